"""Batches as arrays on a disk, mapped while they are read: for learners that go through rows many times or in mixed order."""

from __future__ import annotations

import fcntl
import glob
import math
import mmap
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import dask
import numpy as np
from numpy.typing import NDArray

from scalable.errors import StoreError
from scalable.train.batches import PART_ROWS, ArrayPart, Batches, Block, Part

Float = NDArray[np.float64]


@contextmanager
def spilled(batches: Batches, scratch: str | Path | None = None) -> Iterator[Batches]:
    """Give the same rows in the same parts as arrays: those in memory as they are, others mapped from a folder that is removed.

    A part that is the only one may be of any length, as that of an iterable, and is cut.

    Parameters
    ----------
    batches : Batches
        Read once.
    scratch : path, optional
        Folder for the arrays, 8 bytes a value; all workers must see it. By default Dask's for temporary files
        (``DASK_TEMPORARY_DIRECTORY``), or the system's.

    Raises
    ------
    StoreError
        If a worker does not see the folder.
    """
    if all(isinstance(part, ArrayPart) for part in batches.parts):
        yield replace(batches, parts=tuple(_with_keys(part) for part in batches.parts))
        return
    root = Path(scratch or dask.config.get("temporary-directory", None) or tempfile.gettempdir()).absolute()
    root.mkdir(parents=True, exist_ok=True)
    with _own_folder(root) as folder:
        # A part does not know its number; what it writes is named by it.
        parts = [_Numbered(part, str(folder / str(number))) for number, part in enumerate(batches.parts)]
        # Several stay as they are: sums are added up in their order, which decides the last bits.
        most = PART_ROWS if len(parts) == 1 else sys.maxsize
        found = replace(batches, parts=tuple(parts)).each(_spill, len(batches.names), most)
        yield replace(batches, parts=tuple(chain.from_iterable(found)))


@contextmanager
def _own_folder(root: Path) -> Iterator[Path]:
    """Give a new folder that is removed at the end, and remove those that killed processes of this machine have left."""
    # On a shared file system a lock may hold on its own machine only.
    prefix = f"scalable-rows-{socket.gethostname()}-"
    for left in root.glob(glob.escape(prefix) + "*"):
        with suppress(OSError):
            with open(left / "lock", "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(left, ignore_errors=True)
    new = Path(tempfile.mkdtemp(prefix="scalable-new-", dir=root))
    folder = new.with_name(prefix + new.name.removeprefix("scalable-new-"))
    try:
        with open(new / "lock", "w") as lock:
            # A file system without locks has none for the loop above either.
            with suppress(OSError):
                fcntl.flock(lock, fcntl.LOCK_EX)
            # It gets its name with the lock held: before, it would look like one that was left.
            new.rename(folder)
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Numbered:
    def __init__(self, part: Part, path: str) -> None:
        self.part, self.path = part, path

    def blocks(self) -> Iterator[Block]:
        return self.part.blocks()


def _with_keys(part: Any) -> ArrayPart:
    if part.keys is not None:
        return part
    keys = np.concatenate([block.keys for block in part.blocks()] or [np.zeros(0, np.uint64)])
    return replace(part, keys=keys)


def _spill(part: _Numbered, features: int, most: int) -> list[MappedPart]:
    if not Path(part.path).parent.is_dir():
        raise _unseen(Path(part.path))
    runs = groupby(_cut(part.blocks(), most), key=itemgetter(0))
    return [_write(f"{part.path}.{n}", (block for _, block in run), features) for n, run in runs]


def _cut(blocks: Iterable[Block], most: int) -> Iterator[tuple[int, Block]]:
    """Yield the number of a part of so many rows, and a block that lies in it."""
    done = 0
    for block in blocks:
        start = 0
        while start < len(block):
            stop = min(len(block), start + most - done % most)
            yield done // most, block.take(slice(start, stop))
            done, start = done + stop - start, stop


def _write(path: str, blocks: Iterable[Block], features: int) -> MappedPart:
    rows, has_target, has_weight, grouped = 0, False, False, False
    names = [f"{path}.{n}" for n in range(features)]
    with ExitStack() as stack:
        files = [stack.enter_context(open(name, "wb")) for name in (*names, *(f"{path}.{end}" for end in "ywkg"))]
        for block in blocks:
            rows += len(block)
            for file, column in zip(files, block.columns, strict=False):
                file.write(np.ascontiguousarray(column).data)
            for file, extra in zip(files[features:], (block.target, block.weight, block.keys, block.own_groups), strict=True):
                if extra is not None:
                    file.write(np.ascontiguousarray(extra).data)
            has_target, has_weight = block.target is not None, block.weight is not None
            grouped = block.own_groups is not None
    # One array of all features, so that a part is mapped once.
    with open(f"{path}.x", "wb") as whole:
        for name in names:
            with open(name, "rb") as one:
                shutil.copyfileobj(one, whole, 1 << 22)
            Path(name).unlink()
    kinds = (("y", "f8", has_target), ("w", "f8", has_weight), ("k", "u8", True), ("g", "u8", grouped))
    extras = (OnDisk(f"{path}.{end}", kind, (rows,)) if there else None for end, kind, there in kinds)
    return MappedPart(OnDisk(f"{path}.x", "f8", (features, rows)), *extras)


def _unseen(path: Path) -> StoreError:
    return StoreError(
        f"{path.parent}: the folder for rows, made where the fit was called, is not there for a worker; give scratch= or set "
        "DASK_TEMPORARY_DIRECTORY to a folder on a file system that all workers see"
    )


@dataclass(frozen=True)
class OnDisk:
    """Where an array lies."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    def mapped(self) -> NDArray[Any]:
        """Map it; when nothing refers to it any more, neither a descriptor is open nor do its pages count as memory."""
        size = math.prod(self.shape) * np.dtype(self.dtype).itemsize
        try:
            with open(self.path, "rb") as file:
                pages = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
        except FileNotFoundError:
            raise _unseen(Path(self.path)) from None
        return np.frombuffer(pages, self.dtype).reshape(self.shape)


class MappedPart(ArrayPart):
    """Rows in files: the attributes say where, and are mapped while they are read only, since there may be many parts."""

    def opened(self) -> ArrayPart:
        """Return the rows as arrays that can be read."""
        parts = (self.columns, self.target, self.weight, self.keys, self.groups)
        return ArrayPart(*(None if part is None else part.mapped() for part in parts))

    def blocks(self) -> Iterator[Block]:
        """Yield the rows."""
        return self.opened().blocks()

    def take(self, rows: NDArray[np.int64]) -> Block:
        """Return copies of some rows, by their indices."""
        return self.opened().take(rows)


def with_arrays(part: ArrayPart, tag: str, **arrays: NDArray[Any]) -> ArrayPart:
    """Return a part with some of its arrays replaced; those of a mapped part are written beside it, under a tag."""
    if not isinstance(part, MappedPart):
        return replace(part, **arrays)
    written = {}
    for name, array in arrays.items():
        path = f"{part.columns.path}.{name}.{tag}"
        array.tofile(path)
        written[name] = OnDisk(path, array.dtype.str, array.shape)
    return replace(part, **written)
