"""Batches: rows of any number as blocks of features that can be gone through again and again, part by part."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from scalable.cluster import current_client, run_tasks
from scalable.errors import InputError
from scalable.kernels.counter import Keys, below, row_keys

Float = NDArray[np.float64]
Sum = TypeVar("Sum")

BLOCK_ROWS = 1 << 16
"""Rows of a block: features, target and intermediates of one stay in the cache of a core."""
PART_ROWS = 1 << 18
_FOLDS = 0xF01D


@dataclass(frozen=True)
class Block:
    """Some rows, ready for a learner.

    Attributes
    ----------
    columns : ndarray of float64, shape (features, rows)
        Finite, each feature contiguous.
    target, weight : ndarray of float64, shape (rows,), or None
    own_keys : ndarray of uint64, shape (rows,), or None
        Identity of each row from an id column.
    own_groups : ndarray of uint64, shape (rows,), or None
        What folds keep together, such as a pixel on the sky.
    """

    columns: Float
    target: Any = None
    weight: Any = None
    own_keys: Any = None
    own_groups: Any = None

    @property
    def keys(self) -> Keys:
        """Identity of each row, from an id column or its values; random choices are functions of it."""
        return keys_of(self.columns, self.target) if self.own_keys is None else self.own_keys

    @property
    def groups(self) -> Keys:
        """What folds keep together: the row itself, where nothing else was asked for."""
        return self.keys if self.own_groups is None else self.own_groups

    def __len__(self) -> int:
        """Return the number of rows."""
        return self.columns.shape[1]

    def take(self, rows: Any) -> Block:
        """Return some of the rows: a mask, indices or a slice."""
        parts = (self.target, self.weight, self.own_keys, self.own_groups)
        return Block(np.ascontiguousarray(self.columns[:, rows]), *(None if part is None else part[rows] for part in parts))


class Part(Protocol):
    """Rows that one task goes through; frozen, cheap on the wire."""

    def blocks(self) -> Iterator[Block]:
        """Yield the rows, from the begin each time."""


@dataclass(frozen=True)
class Batches:
    """Rows to learn from, lazily: nothing is read until a learner goes through them.

    Attributes
    ----------
    parts : tuple of Part
        One task each.
    names, units : tuple of str
        Of the features.
    target, target_unit : str
        What is learnt, empty for none.
    column_units : tuple of (str, str)
        Columns that the features are made of, with their units.
    origin : str
        What the rows were taken from, for people.
    """

    parts: tuple[Part, ...]
    names: tuple[str, ...]
    units: tuple[str, ...] = ()
    target: str = ""
    target_unit: str = ""
    column_units: tuple[tuple[str, str], ...] = ()
    origin: str = ""

    def over(self, chunk: Callable[..., Sum], merge: Callable[[Sum, Sum], Sum], *shared: Any) -> Sum:
        """Go through all rows once: ``chunk(block, *shared)`` of every block, merged in the order of the parts.

        That order does not depend on how many workers there are, and so no bit of the result does.

        Raises
        ------
        InputError
            If there is no row.
        """
        total: Sum | None = None
        wave = _wave()
        for start in range(0, len(self.parts), wave):
            some = replace(self, parts=self.parts[start : start + wave])
            for found in some.each(_reduce_part, chunk, merge, shared):
                if found is not None:
                    total = found if total is None else merge(total, found)
        if total is None:
            raise InputError(
                f"no row to learn from: each lacks a feature ({', '.join(self.names)})"
                + (f" or the target {self.target}" if self.target else "")
                + "; look at the missing-data policy and at the null rules of the columns"
            )
        return total

    def each(self, task: Callable[..., Sum], *shared: Any) -> list[Sum]:
        """Run ``task(part, *shared)`` for every part, and return the results in order."""
        if len(self.parts) == 1:
            return [task(self.parts[0], *shared)]
        return run_tasks(_unsealed, [Sealed(part) for part in self.parts], Sealed((task, shared)))

    def blocks(self) -> Iterator[Block]:
        """Yield all rows here, in order."""
        for part in self.parts:
            for block in part.blocks():
                if len(block):
                    yield block

    def fold(self, numbers: Sequence[int], of: int, *, seed: int, inner: bool = False) -> Batches:
        """Return the rows of some of ``of`` folds; a row's fold is a function of its identity, not of the chunking."""
        return replace(self, parts=tuple(FoldPart(part, tuple(numbers), of, seed, inner) for part in self.parts))

    def count(self) -> int:
        """Count the rows, in one pass."""
        return self.over(len, int.__add__)

    def digest(self, *, identity: bool = False) -> str:
        """Return a SHA-256 of the rows that are learnt from, whatever their order and chunking; one pass.

        It is one of their values and weights, and, with ``identity``, of their keys and of what folds keep together.
        """
        return self.digest_and_count(identity=identity)[0]

    def digest_and_count(self, *, identity: bool = False) -> tuple[str, int]:
        """Return the digest and the number of rows, in one pass."""
        total, rows = self.over(_digest, _merge_digests, identity)
        return hashlib.sha256(f"{total:x} {rows} {self.names} {self.target}".encode()).hexdigest(), rows


class Sealed:
    """Something that Dask must not look into: it would compute a catalogue that it finds there."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __repr__(self) -> str:
        """Show what is inside, for messages."""
        return repr(self.value)


def _wave() -> int:
    """Return how many parts are gone through before their sums are merged: enough for all workers, few enough for memory."""
    client = current_client()
    threads = sum(client.nthreads().values()) if client is not None else os.cpu_count() or 1
    return max(2 * threads, 4)


def _unsealed(part: Sealed, call: Sealed) -> Any:
    task, shared = call.value
    return task(part.value, *shared)


def fold_of(groups: Keys, folds: int, seed: int, *, inner: bool = False) -> NDArray[np.int64]:
    """Return the fold of each row.

    Those that a learner makes of the rows it is given, ``inner``, are drawn apart: where fold 0 of 5 was held out from it, none
    of its rows would be in fold 0 of 10.
    """
    return below(groups, folds, seed=seed, stream=_FOLDS + inner)


def keys_of(columns: Float, target: Float | None) -> Keys:
    """Return the identity of rows that have no id: equal rows share one."""
    return row_keys(columns, target)


def _reduce_part(part: Part, chunk: Callable[..., Sum], merge: Callable[[Sum, Sum], Sum], shared: tuple[Any, ...]) -> Sum | None:
    total: Sum | None = None
    for block in part.blocks():
        if len(block):
            found = chunk(block, *shared)
            total = found if total is None else merge(total, found)
    return total


def _digest(block: Block, identity: bool) -> tuple[int, int]:
    numbers = keys_of(block.columns, block.target)
    if identity:
        groups = block.keys if block.own_groups is None else block.own_groups
        numbers = keys_of(np.array([numbers, block.keys, groups]).view(np.float64), None)
    if block.weight is not None:
        numbers = keys_of(numbers.view(np.float64)[None], block.weight)
    return int(numbers.sum(dtype=np.uint64)), len(block)


def _merge_digests(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return (a[0] + b[0]) % (1 << 64), a[1] + b[1]


@dataclass(frozen=True)
class ArrayPart:
    """Rows of arrays in memory; the attributes of a `Block`."""

    columns: Any
    target: Any = None
    weight: Any = None
    keys: Any = None
    groups: Any = None

    def blocks(self) -> Iterator[Block]:
        """Yield the rows."""
        for start in range(0, self.columns.shape[1], BLOCK_ROWS):
            cut = slice(start, start + BLOCK_ROWS)
            parts = (self.target, self.weight, self.keys, self.groups)
            yield Block(np.ascontiguousarray(self.columns[:, cut]), *(None if part is None else part[cut] for part in parts))

    def take(self, rows: NDArray[np.int64]) -> Block:
        """Return copies of some rows, by their indices."""
        parts = (self.target, self.weight, self.keys, self.groups)
        return Block(np.asarray(self.columns)[:, rows], *(None if part is None else np.asarray(part)[rows] for part in parts))

    def opened(self) -> ArrayPart:
        """Return the rows as arrays that can be read: these."""
        return self


@dataclass(frozen=True)
class FoldPart:
    """The rows of another part that lie in some folds."""

    part: Part
    numbers: tuple[int, ...]
    of: int
    seed: int
    inner: bool = False

    def blocks(self) -> Iterator[Block]:
        """Yield the rows."""
        for block in self.part.blocks():
            yield block.take(np.isin(fold_of(block.groups, self.of, self.seed, inner=self.inner), self.numbers))


def arrays(
    X: Float, y: Float | None = None, weight: Float | None = None, *, names: Sequence[str] = (), part_rows: int = PART_ROWS
) -> Batches:
    """Return arrays in memory as batches.

    Parameters
    ----------
    X : ndarray, shape (rows, features)
        Finite.
    y, weight : ndarray, shape (rows,), optional
    names : sequence of str, optional
        Of the features.
    part_rows : int
        Rows of a task.
    """
    columns = np.asarray(X, dtype=np.float64).T
    parts = []
    for start in range(0, max(len(X), 1), part_rows):
        cut = slice(start, start + part_rows)
        parts.append(ArrayPart(columns[:, cut], None if y is None else y[cut], None if weight is None else weight[cut]))
    return Batches(tuple(parts), tuple(names) or tuple(f"x{i}" for i in range(len(columns))), target="" if y is None else "y")
