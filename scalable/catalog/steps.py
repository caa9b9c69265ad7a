"""What a partition's task does: load leaves, apply pending steps, read only the columns that these need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from scalable.io.layout import HEALPIX_COLUMN, LeafInfo
from scalable.io.parquet import read_leaf
from scalable.io.remote import place
from scalable.sky.healpix import to_pixels


class Step(Protocol):
    """One pending operation on a leaf; frozen, cheap on the wire. An object never spans leaves, so a step sees it whole.

    ``name`` is the word under which the history of a catalogue lists the step. A step that changes columns and can be undone
    lists in its parameters under ``kept`` where each column is kept as it was, and under ``added`` what else it added.
    """

    name: ClassVar[str]

    def parameters(self) -> dict[str, Any]:
        """Return what the history says of this step, as JSON can hold it."""

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema after this step, without data."""

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the input columns needed to give the ``wanted`` output columns."""

    def apply(self, table: pa.Table) -> pa.Table:
        """Return the table after this step."""


@runtime_checkable
class Narrowing(Protocol):
    """A step that can leave out what nobody wants of it."""

    def narrowed(self, wanted: Sequence[str]) -> Step:
        """Return the step that gives no more than the ``wanted`` columns and what they need."""


@runtime_checkable
class TakesCodes(Protocol):
    """A step that is content with dictionaries in place of some text columns, which are read much faster."""

    coded: ClassVar[tuple[str, ...]]


@runtime_checkable
class PassesOn(Protocol):
    """A step that leaves out rows or columns and gives the others on as they are."""

    @property
    def looks_at(self) -> tuple[str, ...]:
        """Return the columns whose values it asks for."""


class Loader(Protocol):
    """Where the rows of a leaf come from; ``pending`` is what a loader that combines will do first, for people."""

    @property
    def pending(self) -> tuple[object, ...]:
        """Return what is pending before the rows are there."""

    def load(self, leaf: LeafInfo, columns: Sequence[str]) -> pa.Table:
        """Return the named columns of one leaf."""


@dataclass(frozen=True)
class Select:
    """Keep some columns, in the given order."""

    name: ClassVar[str] = "select"
    columns: tuple[str, ...]

    def parameters(self) -> dict[str, Any]:
        """Return the columns."""
        return {"columns": self.columns}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema of the kept columns."""
        return pa.schema([schema.field(name) for name in self.columns], schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return what is wanted: nothing else is read."""
        return list(wanted)

    @property
    def looks_at(self) -> tuple[str, ...]:
        """No column."""
        return ()

    def apply(self, table: pa.Table) -> pa.Table:
        """Return the columns that are there; projection has dropped those nobody wants."""
        return table.select([name for name in self.columns if name in table.column_names])

    def __str__(self) -> str:
        """Show what is pending."""
        return f"select {', '.join(self.columns)}"


@dataclass(frozen=True)
class LeafLoader:
    """Rows of a catalogue on disk, along the sky.

    Those of a ``foreign`` one may lie in any order within a leaf, and ``_healpix_29`` may have to be ``made_from`` a column that
    holds the same, or from the position.
    """

    pending: ClassVar[tuple[object, ...]] = ()
    root: str
    foreign: bool = False
    made_from: tuple[str, ...] = ()

    def load(self, leaf: LeafInfo, columns: Sequence[str]) -> pa.Table:
        """Read one leaf; every call for it gives its rows in the same order."""
        path = place(self.root) / leaf.path
        if not self.foreign:
            return read_leaf(path, columns)
        sources = self.made_from or (HEALPIX_COLUMN,)
        read = [name for name in columns if name != HEALPIX_COLUMN]
        table = read_leaf(path, list(dict.fromkeys([*read, *sources])))
        if len(sources) == 1:
            index = table[sources[0]].to_numpy().astype(np.int64)
        else:
            index = to_pixels(*(table[name].to_numpy().astype(np.float64) for name in sources))
        if self.made_from:
            table = table.append_column(HEALPIX_COLUMN, pa.array(index))
        # HATS asks for rows along the sky; lsdb 0.11 writes them as they came.
        if np.any(index[1:] < index[:-1]):
            table = table.take(np.argsort(index, kind="stable"))
        return table.select(list(columns))

    def load_coded(self, leaf: LeafInfo, columns: Sequence[str], coded: Sequence[str]) -> pa.Table:
        """Read one leaf with text columns as dictionaries, where they are stored so."""
        return self.load(leaf, columns) if self.foreign else read_leaf(place(self.root) / leaf.path, columns, coded=coded)


@dataclass(frozen=True)
class Chain:
    """A loader and the steps that follow it."""

    loader: Loader
    steps: tuple[Step, ...] = ()

    @property
    def pending(self) -> tuple[object, ...]:
        """Everything that is not done yet, in order."""
        return (*self.loader.pending, *self.steps)

    def load(self, leaf: LeafInfo, columns: Sequence[str]) -> pa.Table:
        """Load one leaf, reading only the columns that the steps and the result need."""
        needed = columns_needed(self.steps, columns)
        if isinstance(self.loader, LeafLoader) and (coded := _coded(self.steps)):
            table = self.loader.load_coded(leaf, needed, coded)
        else:
            table = self.loader.load(leaf, needed)
        return apply_steps(table, self.steps, columns)


def _coded(steps: Sequence[Step]) -> tuple[str, ...]:
    """Return the text columns that the first step to look at them takes as dictionaries."""
    seen: set[str] = set()
    for step in steps:
        if isinstance(step, TakesCodes):
            return tuple(name for name in step.coded if name not in seen)
        if not isinstance(step, PassesOn):
            return ()
        seen.update(step.looks_at)
    return ()


def columns_needed(steps: Sequence[Step], wanted: Sequence[str]) -> list[str]:
    """Return the columns to read so that ``steps`` can give the ``wanted`` ones."""
    return _narrowed(steps, wanted)[1]


def _narrowed(steps: Sequence[Step], wanted: Sequence[str]) -> tuple[list[Step], list[str]]:
    """Return steps that do no more than the ``wanted`` columns need, and what they read."""
    needed = list(dict.fromkeys(wanted))
    kept: list[Step] = []
    for step in reversed(steps):
        kept.append(step.narrowed(needed) if isinstance(step, Narrowing) else step)
        needed = list(dict.fromkeys(step.needs(needed)))
    return kept[::-1], needed


def apply_steps(table: pa.Table, steps: Sequence[Step], columns: Sequence[str]) -> pa.Table:
    """Apply the steps in order and return the named columns; what is not among them is not computed where a step can leave it."""
    for step in _narrowed(steps, columns)[0]:
        table = step.apply(table)
    return table.select(list(columns))


def load_partition(leaves: tuple[LeafInfo, ...], chain: Chain, schema: pa.Schema) -> pa.Table:
    """Load the leaves of one partition: the whole work of one task."""
    return _conform([chain.load(leaf, schema.names) for leaf in leaves], schema)


def continue_partition(table: pa.Table, steps: tuple[Step, ...], schema: pa.Schema) -> pa.Table:
    """Apply pending steps to a partition that an earlier task made."""
    return _conform([apply_steps(table, steps, schema.names)], schema)


def _conform(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    """Concatenate leaves under the declared schema, which carries units and roles that single files lack."""
    return pa.concat_tables([table.cast(schema) for table in tables] or [schema.empty_table()])


class _NoLoader:
    """Stands where rows come from earlier tasks."""

    pending: ClassVar[tuple[object, ...]] = ()

    def load(self, leaf: LeafInfo, columns: Sequence[str]) -> pa.Table:
        raise TypeError("rows of this catalogue come from earlier tasks")

    def __dask_tokenize__(self) -> str:
        return "no loader"


NO_LOADER = _NoLoader()
