"""Batches as plain arrays on a disk, mapped into memory: for learners that go through the rows many times or in mixed order."""

from __future__ import annotations

import mmap
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalable.train.batches import ArrayPart, Batches, Block, Part

Float = NDArray[np.float64]


@contextmanager
def spilled(batches: Batches, scratch: str | Path | None = None) -> Iterator[Batches]:
    """Give the same rows in the same parts as arrays: those in memory as they are, others mapped from a folder that is removed.

    Parameters
    ----------
    batches : Batches
        Read once.
    scratch : path, optional
        Folder for the arrays, 8 bytes a value; all workers must see it. By default one for temporary files.
    """
    if all(isinstance(part, ArrayPart) for part in batches.parts):
        yield replace(batches, parts=tuple(_with_keys(part) for part in batches.parts))
        return
    if scratch is not None:
        Path(scratch).mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="scalable-rows-", dir=scratch))
    try:
        # A part does not know its number; what it writes is named by it.
        parts = [_Numbered(part, str(folder / str(number))) for number, part in enumerate(batches.parts)]
        found = replace(batches, parts=tuple(parts)).each(_spill, len(batches.names))
        yield replace(batches, parts=tuple(part for part in found if part is not None))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Numbered:
    def __init__(self, part: Part, path: str) -> None:
        self.part, self.path = part, path

    def blocks(self) -> Iterator[Any]:
        return self.part.blocks()


def _with_keys(part: Any) -> ArrayPart:
    if part.keys is not None:
        return part
    keys = np.concatenate([block.keys for block in part.blocks()] or [np.zeros(0, np.uint64)])
    return replace(part, keys=keys)


def _spill(part: Any, features: int) -> ArrayPart | None:
    path = Path(part.path)
    rows, has_target, has_weight, grouped = 0, False, False, False
    names = [f"{path}.{n}" for n in range(features)]
    with ExitStack() as stack:
        files = [stack.enter_context(open(name, "wb")) for name in (*names, *(f"{path}.{end}" for end in "ywkg"))]
        for block in part.blocks():
            rows += len(block)
            for file, column in zip(files, block.columns, strict=False):
                file.write(np.ascontiguousarray(column).data)
            for file, extra in zip(files[features:], (block.target, block.weight, block.keys, block.own_groups), strict=True):
                if extra is not None:
                    file.write(np.ascontiguousarray(extra).data)
            has_target, has_weight = block.target is not None, block.weight is not None
            grouped = block.own_groups is not None
    if rows == 0:
        return None
    # One array of all features, so that a part is mapped once.
    with open(f"{path}.x", "wb") as whole:
        for name in names:
            with open(name, "rb") as one:
                shutil.copyfileobj(one, whole, 1 << 22)
            Path(name).unlink()
    columns = np.memmap(f"{path}.x", np.float64, "r", shape=(features, rows))
    target = np.memmap(f"{path}.y", np.float64, "r") if has_target else None
    weight = np.memmap(f"{path}.w", np.float64, "r") if has_weight else None
    groups = np.memmap(f"{path}.g", np.uint64, "r") if grouped else None
    return MappedPart(columns, target, weight, np.memmap(f"{path}.k", np.uint64, "r"), groups)


class MappedPart(ArrayPart):
    """Rows mapped from files; sent to a worker as their paths."""

    def blocks(self) -> Iterator[Block]:
        """Yield the rows."""
        try:
            yield from super().blocks()
        finally:
            self.release()

    def release(self) -> None:
        """Let go of the pages that were read: else all rows would in time count as memory of this process."""
        for array in (self.columns, self.target, self.weight, self.keys, self.groups):
            if array is not None:
                array.base.madvise(mmap.MADV_DONTNEED)

    def __reduce__(self) -> Any:
        """Return how to map the files again elsewhere."""
        return _map_again, tuple(
            None if part is None else (part.filename, part.dtype.str, part.shape)
            for part in (self.columns, self.target, self.weight, self.keys, self.groups)
        )


def _map_again(*parts: tuple[str, str, tuple[int, ...]] | None) -> MappedPart:
    arrays: list[Any] = [None if said is None else np.memmap(said[0], said[1], "r", shape=said[2]) for said in parts]
    return MappedPart(*arrays)


def with_arrays(part: ArrayPart, tag: str, **arrays: NDArray[Any]) -> ArrayPart:
    """Return a part with some of its arrays replaced; those of a mapped part are written beside it, under a tag, and mapped."""
    if isinstance(part, MappedPart):
        for name, array in arrays.items():
            path = f"{part.columns.filename}.{name}.{tag}"
            array.tofile(path)
            arrays[name] = np.memmap(path, array.dtype, "r", shape=array.shape)
        part.release()
    return replace(part, **arrays)
