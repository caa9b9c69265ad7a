"""HDF5 files that any reader opens without a plugin, with equal bytes for equal values."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numba import njit
from numpy.typing import NDArray

from scalable.errors import StoreError
from scalable.io.atomic import aside

LEVEL = 1
"""Of deflate: on the features and light curves of `data/vvv`, level 4 saves 4 % of the bytes and takes 1.4 times as long."""
CHUNK_BYTES, CHUNK_ROWS = 1 << 20, 1 << 13
"""Most of a chunk: a reader that shuffles reads whole chunks, and of all columns the same rows."""
TEXT = h5py.string_dtype("utf-8")


@dataclass(frozen=True)
class Dataset:
    """An array and its attributes, which are text: JSON where they hold more than a word."""

    values: NDArray[Any]
    attributes: Mapping[str, str] = field(default_factory=dict)


@contextmanager
def new_file(path: Path) -> Iterator[h5py.File]:
    """Give an HDF5 file that appears at ``path`` when it is complete, or not at all.

    Times are not stored, so that equal contents give equal bytes, and the oldest layout is taken, which every reader knows.
    """
    try:
        with aside(path) as temporary, h5py.File(temporary, "w", libver=("earliest", "v108")) as file:
            yield file
    except (RuntimeError, ValueError) as error:  # h5py says so of a full disk, too
        raise StoreError(f"{path}: cannot be written ({error}); make room or mend that, then run again") from error


def write_dataset(group: h5py.Group, name: str, dataset: Dataset) -> None:
    """Write an array compressed, with a checksum for each chunk; an empty one, or text, without."""
    values = dataset.values
    if values.dtype.kind in "OUT":
        made = group.create_dataset(name, data=values.astype(object), dtype=TEXT)
    elif values.size == 0 or values.ndim == 0:
        made = group.create_dataset(name, data=values)
    else:
        chunks = chunk_shape(values.shape, values.dtype.itemsize)
        made = create_chunked(group, name, values.shape, values.dtype, chunks)
        write_rows(made, 0, values)
    write_attributes(made, dataset.attributes)


def write_attributes(thing: Any, attributes: Mapping[str, str]) -> None:
    """Write attributes, which must be new, as texts of any length: those of fixed length end at 64 KB."""
    space, kind = h5py.h5s.create(h5py.h5s.SCALAR), h5py.h5t.py_create(TEXT, logical=True)
    for key, value in sorted(attributes.items()):
        # h5py would write it under another name and rename it, in twice the time: a release has tens of thousands.
        h5py.h5a.create(thing.id, key.encode(), kind, space).write(np.array(value, dtype=TEXT))


def chunk_shape(shape: tuple[int, ...], item_bytes: int) -> tuple[int, ...]:
    """Return chunks of at most `CHUNK_BYTES` and `CHUNK_ROWS` that hold whole rows, or one row where that is larger."""
    row = max(1, math.prod(shape[1:]) * item_bytes)
    return (max(1, min(shape[0], CHUNK_ROWS, CHUNK_BYTES // row)), *shape[1:])


def text_attributes(thing: Any) -> dict[str, str]:
    """Return the attributes of a file, group or dataset."""
    return {str(key): str(value) for key, value in thing.attrs.items()}


class Growing:
    """Datasets of a group to which rows are appended piece by piece: of unknown length, in bounded memory."""

    def __init__(self, group: h5py.Group, columns: Mapping[str, np.dtype[Any] | Any]) -> None:
        self._datasets = {
            name: group.create_dataset(
                name, (0,), dtype=dtype, maxshape=(None,), chunks=(1 << 15,), compression="gzip", compression_opts=LEVEL,
                shuffle=True, fletcher32=h5py.check_string_dtype(dtype) is None,
            )
            for name, dtype in columns.items()
        }  # fmt: skip

    def append(self, columns: Mapping[str, NDArray[Any]]) -> None:
        """Append equally many rows to every dataset."""
        for name, dataset in self._datasets.items():
            values = columns[name]
            dataset.resize(dataset.shape[0] + len(values), axis=0)
            if len(values):
                dataset[-len(values) :] = values


def create_chunked(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...], *, fill: Any = None
) -> h5py.Dataset:
    """Add a dataset that is compressed, with a checksum for each chunk, for `write_rows`; chunks not written hold ``fill``."""
    return group.create_dataset(
        name, shape, dtype=dtype, chunks=chunks, compression="gzip", compression_opts=LEVEL, shuffle=True, fletcher32=True,
        fillvalue=fill,
    )  # fmt: skip


def write_rows(dataset: h5py.Dataset, first: int, values: NDArray[Any]) -> None:
    """Write rows of a dataset of `create_chunked`, whole chunks of them unless they are its last; ``first`` begins a chunk.

    The library's own filters would write the same, but under its lock: here, threads pack at the same time.
    """
    rows, *inner = dataset.chunks
    for start in range(0, len(values), rows):
        block = values[start : start + rows]
        for place in np.ndindex(*(-(-n // k) for n, k in zip(values.shape[1:], inner, strict=True))):
            at = tuple(p * k for p, k in zip(place, inner, strict=True))
            chunk = block[(slice(None), *(slice(a, a + k) for a, k in zip(at, inner, strict=True)))]
            if chunk.shape != dataset.chunks:
                whole = np.zeros(dataset.chunks, values.dtype)
                whole[tuple(slice(0, n) for n in chunk.shape)] = chunk
                chunk = whole
            dataset.id.write_direct_chunk((first + start, *at), pack(np.ascontiguousarray(chunk, dataset.dtype)))


def pack(chunk: NDArray[Any]) -> bytes:
    """Return a chunk as HDF5 stores it behind shuffle, deflate and fletcher32."""
    flat = chunk.reshape(-1).view(np.uint8)
    if chunk.itemsize > 1:
        flat = np.ascontiguousarray(flat.reshape(-1, chunk.itemsize).T)
    packed = zlib.compress(flat.data, LEVEL)
    return packed + int(_fletcher32(np.frombuffer(packed, np.uint8))).to_bytes(4, "little")


@njit(cache=True, nogil=True)
def _fletcher32(data: NDArray[np.uint8]) -> Any:  # pragma: no cover - compiled
    """Return HDF5's checksum of bytes: Fletcher's sums of 16-bit words, big end first."""
    low, high, left = np.uint64(0), np.uint64(0), 0
    for n in range(len(data) // 2):
        low += np.uint64(data[2 * n]) << np.uint64(8) | np.uint64(data[2 * n + 1])
        high += low
        left += 1
        if left == 360:
            low = (low & np.uint64(0xFFFF)) + (low >> np.uint64(16))
            high = (high & np.uint64(0xFFFF)) + (high >> np.uint64(16))
            left = 0
    if len(data) % 2:
        low += np.uint64(data[-1]) << np.uint64(8)
        high += low
    for _ in range(4):
        low = (low & np.uint64(0xFFFF)) + (low >> np.uint64(16))
        high = (high & np.uint64(0xFFFF)) + (high >> np.uint64(16))
    return high << np.uint64(16) | low
