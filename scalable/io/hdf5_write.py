"""HDF5 files that any reader opens without a plugin, with equal bytes for equal values."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
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
        made = group.create_dataset(
            name, data=values, chunks=chunk_shape(values.shape, values.dtype.itemsize), compression="gzip",
            compression_opts=LEVEL, shuffle=True, fletcher32=True,
        )  # fmt: skip
    write_attributes(made, dataset.attributes)


def write_attributes(thing: Any, attributes: Mapping[str, str]) -> None:
    """Write attributes as texts of any length: those of fixed length end at 64 KB."""
    for key, value in sorted(attributes.items()):
        thing.attrs.create(key, value, dtype=TEXT)


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


class Chunked:
    """A dataset that is filled block by block, each block beginning at a row that no block before it reached."""

    def __init__(self, dataset: h5py.Dataset) -> None:
        self._dataset = dataset

    def write(self, first: int, values: NDArray[Any]) -> None:
        """Write rows from ``first`` on."""
        self._dataset[first : first + len(values)] = values


def create_chunked(
    group: h5py.Group, name: str, shape: tuple[int, ...], dtype: np.dtype[Any], chunks: tuple[int, ...]
) -> Chunked:
    """Add a dataset that is compressed, with a checksum for each chunk."""
    made = group.create_dataset(
        name, shape, dtype=dtype, chunks=chunks, compression="gzip", compression_opts=LEVEL, shuffle=True, fletcher32=True
    )
    return Chunked(made)
