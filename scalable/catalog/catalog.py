"""`Catalog`: a lazy, partitioned table that knows its sky; a Dask collection with one task per partition."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pyarrow as pa
from dask._task_spec import List, Task, TaskRef
from dask.base import DaskMethodsMixin, tokenize
from dask.threaded import get as threaded_get

from scalable.catalog.condition import parse_condition
from scalable.catalog.history import about, history_of, recorded, shown
from scalable.catalog.leaves_in import in_regions
from scalable.catalog.nested import nest_others
from scalable.catalog.steps import NO_LOADER, Chain, LeafLoader, Select, Step, continue_partition, load_partition
from scalable.errors import ColumnError, StoreError, nearest, require
from scalable.io.blocks import holds_blocks, read_blocks
from scalable.io.layout import LeafInfo, read_layout
from scalable.io.remote import Place, place
from scalable.schema import Schema

PARTITION_BYTES = 500_000_000
"""Most bytes of decoded leaves in one partition, so that a task with its intermediates fits a usual worker."""
SMALL_PARTITION_BYTES = 32_000_000
"""Partitions smaller than this are not worth a task of their own."""


@dataclass(frozen=True, eq=False)
class Catalog(DaskMethodsMixin):
    """A lazy, partitioned table of objects or detections.

    Made by `open_catalog` and by verbs, never by hand. Every method but `head`, `compute`, `persist` and `to_pandas` returns at
    once; nothing is read until one of those is called.

    Attributes
    ----------
    chain : Chain
        Where rows come from and what is pending.
    partitions : tuple
        Runs of neighbouring leaves, or keys of ``graph``; one task each.
    schema : pyarrow.Schema
        Columns with units, roles and descriptions as field metadata.
    title : str
        Name for people.
    graph : mapping
        Tasks that the partitions depend on, where an earlier verb made some.
    """

    chain: Chain
    partitions: tuple[Any, ...]
    schema: pa.Schema
    title: str
    graph: Mapping[Any, Any] = field(default_factory=dict)

    # The Dask collection protocol ------------------------------------------------------------------------------------------

    def __dask_tokenize__(self) -> Any:  # noqa: D105
        return (self.chain, self.partitions, self.schema.to_string(), self.title)

    @property
    def _name(self) -> str:
        return f"{self.title.replace(' ', '-')}-{tokenize(self)}"

    def __dask_graph__(self) -> dict[Any, Any]:  # noqa: D105
        graph = dict(self.graph)
        for key, partition in zip(self.__dask_keys__(), self.partitions, strict=True):
            if isinstance(partition, tuple):
                graph[key] = Task(key, load_partition, partition, self.chain, self.schema)
            else:
                graph[key] = Task(key, continue_partition, TaskRef(partition), self.chain.steps, self.schema)
        return graph

    def __dask_keys__(self) -> list[str]:  # noqa: D105
        name = self._name
        return [f"{name}-{number}" for number in range(len(self.partitions))]

    def __dask_postcompute__(self) -> tuple[Callable[..., pa.Table], tuple[Any, ...]]:  # noqa: D105
        return _concatenate, (self.schema,)

    def __dask_postpersist__(self) -> tuple[Callable[..., Catalog], tuple[Any, ...]]:  # noqa: D105
        return _persisted, (self.__dask_keys__(), self.schema, self.title)

    def __dask_optimize__(self, graph: Any, keys: Any, **_: Any) -> Any:  # noqa: D105
        return graph  # One task per partition already; what was projected away was never in it.

    __dask_scheduler__ = staticmethod(threaded_get)

    # What it is ----------------------------------------------------------------------------------------------------------

    @property
    def npartitions(self) -> int:
        """Number of partitions, which is the number of tasks."""
        return len(self.partitions)

    @property
    def columns(self) -> Schema:
        """Columns with role, unit and description."""
        return Schema.from_arrow(self.schema)

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of the survey, in order of wavelength; empty where the catalogue does not say."""
        return tuple(about(self.schema).get("bands", ()))

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """What was done to the rows and columns since ingest, step by step with name and parameters; also of a written one."""
        return history_of(self.schema)

    @property
    def leaves(self) -> tuple[LeafInfo, ...]:
        """Leaves on disk that this catalogue reads, along the sky; none where its rows come from earlier tasks."""
        return tuple(leaf for partition in self.partitions if isinstance(partition, tuple) for leaf in partition)

    @property
    def rows(self) -> int | None:
        """Number of rows where that is known without computing, else None."""
        known = all(isinstance(step, Select) for step in self.chain.steps) and isinstance(self.chain.loader, LeafLoader)
        return sum(leaf.rows for leaf in self.leaves) if known and self.leaves else None

    # Lazy verbs of one table ----------------------------------------------------------------------------------------------

    def select(self, *names: str) -> Catalog:
        """Return the catalogue with only these columns; nothing is computed."""
        for name in names:
            if name not in self.schema.names:
                raise ColumnError(f"no column {name!r} in {self.title}; {nearest(name, self.schema.names)}")
        return self.then(Select(names))

    def where(self, condition: str) -> Catalog:
        """Return the rows for which an SQL condition holds, for example ``"Flux1 / dFlux1 > 5 and Class = -1"``.

        Nothing is computed. Arithmetic is in float64, a division by zero is null, and null is not true.

        Raises
        ------
        QueryError, ColumnError
            If the condition cannot be parsed, holds anything but columns, numbers and plain functions, or names no column.
        """
        parsed = parse_condition(condition, self.schema)
        regions = [parsed.regions[number] for number in parsed.within]
        near = self.on_leaves(in_regions(self.leaves, regions)) if regions and self.leaves else self
        return near.then(parsed)

    def nest(self, column: str = "lightcurve") -> Catalog:
        """Return one row per object with all its detections in one nested column, a struct of lists; nothing is computed.

        Written with `write_catalog`, LSDB opens it as a catalogue with a nested column.

        Parameters
        ----------
        column : str
            Name of the nested column; `select` first what it shall hold beside the keys of the object.

        Raises
        ------
        ColumnError
            If these are no detections, or nothing is left to be nested.
        """
        self.need_positions("nest")
        return self.then(nest_others(self.schema, column))

    def then(self, step: Step) -> Catalog:
        """Return the catalogue with one more pending step; nothing is computed."""
        chain = Chain(self.chain.loader, (*self.chain.steps, step))
        schema = recorded(step.output(self.schema), self.history, step.name, step.parameters())
        return Catalog(chain, self.partitions, schema, self.title, self.graph)

    def need_positions(self, verb: str) -> None:
        """Raise where the rows are not placed on the sky by object.

        Raises
        ------
        ColumnError
            Naming the verb.
        """
        missing = [role for role in ("ra", "dec") if not self.columns.by_role(role)]
        if missing or any(not leaf.on_sky for leaf in self.leaves):
            raise ColumnError(
                f"{verb} needs positions, and {self.title} has none; where(), select() and sql() work on it, and tables with "
                "positions are ingested by giving columns the roles ra and dec"
            )

    def repartition(self, npartitions: int) -> Catalog:
        """Return the same rows cut into at most ``npartitions`` runs of whole leaves; nothing is computed."""
        if not self.leaves:
            raise ValueError("only a catalogue that reads leaves can be cut anew; repartition before the verb that combines")
        size = sum(leaf.decoded_bytes for leaf in self.leaves) / npartitions
        return Catalog(self.chain, _cut(self.leaves, size, at_most=npartitions), self.schema, self.title, self.graph)

    def on_leaves(self, leaves: Sequence[LeafInfo]) -> Catalog:
        """Return the catalogue restricted to some of its leaves; nothing is computed."""
        keep = set(leaves)
        kept = tuple(tuple(leaf for leaf in partition if leaf in keep) for partition in self.partitions)
        return Catalog(self.chain, tuple(p for p in kept if p), self.schema, self.title, self.graph)

    def combined(self, finish: Callable[..., pa.Table], *arguments: Any, schema: pa.Schema) -> Catalog:
        """Return a catalogue of one partition that ``finish(list of tables, *arguments)`` makes of all; nothing is computed."""
        keys = self.__dask_keys__()
        key = f"combined-{tokenize(self, finish, arguments)}"
        graph = self.__dask_graph__()
        graph[key] = Task(key, finish, List(*[TaskRef(k) for k in keys]), *arguments)
        return Catalog(Chain(NO_LOADER), (key,), schema, self.title, graph)

    # Verbs that compute ---------------------------------------------------------------------------------------------------

    def compute(self, **options: Any) -> pa.Table:
        """Compute all partitions and return one Arrow table."""
        return cast(pa.Table, super().compute(**options))

    def head(self, n: int = 5) -> pa.Table:
        """Compute as few leaves as give the first ``n`` rows."""
        found: list[pa.Table] = []
        for part in self._small_parts():
            found.append(part.compute().slice(0, n))
            n -= found[-1].num_rows
            if n <= 0:
                break
        return pa.concat_tables(found) if found else self.schema.empty_table()

    def _small_parts(self) -> Iterator[Catalog]:
        pieces = [(leaf,) for leaf in self.leaves] or list(self.partitions)
        for piece in pieces:
            yield Catalog(self.chain, (piece,), self.schema, self.title, self.graph)

    def to_pandas(self) -> Any:
        """Compute and return a pandas data frame with Arrow-backed columns, so that nulls stay nulls."""
        return _to_pandas(self.compute())

    def to_nested(self, column: str = "lightcurve") -> Any:
        """Compute and return detections as a ``nested_pandas.NestedFrame``, one row per object; needs the extra ``hats``."""
        frames = require("nested_pandas", "hats")
        return frames.from_pyarrow(self.nest(column).compute())

    def to_dask(self) -> Any:
        """Return a lazy ``dask.dataframe`` with the same partitions; nothing is computed."""
        frames = require("dask.dataframe", "dataframe")
        return frames.from_map(
            _pandas_part, list(range(self.npartitions)), meta=_to_pandas(self.schema.empty_table()), catalog=self
        )

    def to_lsdb(self) -> Any:
        """Return the catalogue as LSDB opens it, with its index; needs the extra ``hats``.

        Raises
        ------
        StoreError
            If something is pending: LSDB reads what is on disk, so write it first.
        """
        self.need_positions("to_lsdb")
        if self.chain.steps or not isinstance(self.chain.loader, LeafLoader):
            raise StoreError(f"{self.title} has pending steps; write_catalog() it and open the result with to_lsdb()")
        root = place(self.chain.loader.root)
        collection = root.parent if (root.parent / "collection.properties").exists() else root
        return require("lsdb", "hats").open_catalog(str(collection))

    # For people -----------------------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        """Show columns, units, partitions, rows and what is pending."""
        lines = [f"<Catalog {self.title}: {self._extent()}>"]
        width = max((len(column.name) for column in self.columns), default=0)
        for column in self.columns:
            lines.append(f"  {column.name:<{width}}  {str(column.dtype):<8} {column.unit:<8} {column.description}".rstrip())
        lines += [f"  done: {line}" for line in self._done()]
        lines += [f"  pending: {step}" for step in self.chain.pending]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(c.name)}</td><td>{html.escape(str(c.dtype))}</td><td>{html.escape(c.unit)}</td>"
            f"<td>{html.escape(c.description)}</td></tr>"
            for c in self.columns
        )
        done = "".join(f"<li>{html.escape(line)}</li>" for line in self._done())
        pending = "".join(f"<li>{html.escape(str(step))}</li>" for step in self.chain.pending)
        return (
            f"<div><strong>Catalog {html.escape(self.title)}</strong>: {html.escape(self._extent())}"
            f"<details><summary>{len(self.schema)} columns</summary><table><thead><tr><th>column</th><th>type</th><th>unit</th>"
            f"<th>description</th></tr></thead><tbody>{rows}</tbody></table></details>"
            f"{f'<p>done</p><ol>{done}</ol>' if done else ''}"
            f"{f'<p>pending</p><ol>{pending}</ol>' if pending else ''}</div>"
        )

    def _done(self) -> list[str]:
        """Return the steps of the history that are not pending any more."""
        return [shown(record) for record in self.history[: len(self.history) - len(self.chain.pending)]]

    def _extent(self) -> str:
        rows = "unknown number of" if self.rows is None else f"{self.rows:,}"
        area = sum(41252.96 / (12 * 4**leaf.pixel.order) for leaf in self.leaves if leaf.on_sky)
        sky = f", {len(self.leaves)} leaves" if self.leaves else ""
        sky += f", {area:,.2f} square degrees of pixels" if area else ""
        return f"{rows} rows, {len(self.schema)} columns, {self.npartitions} partitions{sky}"


def open_catalog(path: str | Place, *, columns: Sequence[str] | None = None) -> Catalog:
    """Open a HATS catalogue or collection, or a store's rows without positions; only its metadata are read.

    Parameters
    ----------
    path : str or Path
        Folder, here or at a URL, with ``hats.properties`` or ``collection.properties``, or the folder ``rows`` of a version.
    columns : sequence of str, optional
        Columns to keep; by default all. Only columns that are used are ever read.

    Returns
    -------
    Catalog
        Lazy.

    Raises
    ------
    StoreError
        If the folder is no HATS catalogue.
    """
    path = place(path)
    layout = read_blocks(path) if holds_blocks(path) else read_layout(path)
    total = sum(leaf.decoded_bytes for leaf in layout.leaves)
    size = min(PARTITION_BYTES, max(SMALL_PARTITION_BYTES, total / 16))
    loader = LeafLoader(str(layout.path), layout.foreign, layout.made_from)
    catalog = Catalog(Chain(loader), _cut(layout.leaves, size), layout.schema, layout.name)
    return catalog if columns is None else catalog.select(*columns)


def _cut(leaves: Sequence[LeafInfo], size: float, *, at_most: int | None = None) -> tuple[tuple[LeafInfo, ...], ...]:
    """Cut leaves along the sky into runs of about ``size`` decoded bytes."""
    runs: list[list[LeafInfo]] = []
    filled = 0.0
    for number, leaf in enumerate(leaves):
        full = filled + leaf.decoded_bytes / 2 > size or (at_most is not None and at_most - len(runs) >= len(leaves) - number)
        if not runs or (full and (at_most is None or len(runs) < at_most)):
            runs.append([])
            filled = 0.0
        runs[-1].append(leaf)
        filled += leaf.decoded_bytes
    return tuple(map(tuple, runs))


def _concatenate(tables: Sequence[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(list(tables)) if tables else schema.empty_table()


def _persisted(graph: Mapping[Any, Any], keys: Sequence[str], schema: pa.Schema, title: str, **_: Any) -> Catalog:
    return Catalog(Chain(NO_LOADER), tuple(keys), schema, title, dict(graph))


def _to_pandas(table: pa.Table) -> Any:
    pandas = require("pandas", "dataframe")
    return table.to_pandas(types_mapper=pandas.ArrowDtype)


def _pandas_part(number: int, catalog: Catalog) -> Any:
    piece = Catalog(catalog.chain, (catalog.partitions[number],), catalog.schema, catalog.title, catalog.graph)
    return _to_pandas(piece.compute(scheduler="sync"))
