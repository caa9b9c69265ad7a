"""Values of HDF5 datasets, as NumPy has read them, to Arrow arrays.

=====================  ==========================================  ================
HDF5                   Arrow                                       null where
=====================  ==========================================  ================
integer, enumeration   integer of that width                       never
boolean enumeration    bool                                        never
float                  float, double; half is float, wider double  NaN
complex                fixed_size_list[2] of float, double         (parts) NaN
string                 string, of fixed or any length              never
more dimensions        fixed_size_list, flat in C order            (items) as above
=====================  ==========================================  ================

A string ends at its first NUL and loses trailing blanks; one that is not UTF-8 is Latin-1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
import pyarrow as pa

_ANY_TEXT = 64
"""Bytes that a string of any length is taken for, where a size is needed before it is read."""


@dataclass(frozen=True)
class Cell:
    """What a cell of a column is.

    Attributes
    ----------
    native : numpy.dtype, optional
        Type of an item in native order; None for strings.
    leaf : pyarrow.DataType
        An item in Arrow, of which a complex number has two.
    per, shape, bytes : int, tuple of int, int
        Leaves in an item, the shape of a cell, and its bytes as read.
    any_length : bool
        Whether it is a string of any length, whose bytes are a guess.
    """

    native: np.dtype[Any] | None
    leaf: pa.DataType
    per: int
    shape: tuple[int, ...]
    bytes: int
    any_length: bool = False

    @property
    def items(self) -> int:
        """Items in a cell."""
        return math.prod(self.shape)

    @property
    def arrow(self) -> pa.DataType:
        """Arrow's type of a cell."""
        item = pa.list_(self.leaf, self.per) if self.per > 1 else self.leaf
        return pa.list_(item, self.items) if self.items > 1 else item


def cell_of(dtype: np.dtype[Any], shape: tuple[int, ...]) -> Cell:
    """Return what a cell of NumPy type ``dtype`` and ``shape`` becomes.

    Raises
    ------
    ValueError
        If it becomes nothing; says what it is.
    """
    if dtype.subdtype is not None:
        dtype, inner = dtype.subdtype
        shape = (*shape, *inner)
    items = math.prod(shape)
    if h5py.check_string_dtype(dtype) is not None:
        fixed = dtype.kind == "S"
        return Cell(None, pa.string(), 1, shape, items * (dtype.itemsize if fixed else _ANY_TEXT), not fixed)
    if dtype.kind in "biufc":
        per = 2 if dtype.kind == "c" else 1
        size = dtype.itemsize // per
        if dtype.kind in "fc":
            size = 4 if size < 4 else min(size, 8)
        native = np.dtype(f"{dtype.kind}{size * per}")
        leaf = pa.from_numpy_dtype(np.dtype(f"f{size}") if per > 1 else native)
        return Cell(native, leaf, per, shape, items * max(native.itemsize, dtype.itemsize))
    what = "references" if h5py.check_ref_dtype(dtype) else "arrays of any length" if h5py.check_vlen_dtype(dtype) else str(dtype)
    raise ValueError(f"holds {what}, which is no column")


def to_arrow(values: np.ndarray[Any, Any], cell: Cell) -> pa.Array:
    """Return the cells of one column as an Arrow array; the first axis of ``values`` are the rows."""
    # Arrow arrays are laid over buffers: `pyarrow.array` would import pandas, which takes longer than most files.
    if cell.native is None:
        return _nest(_texts(values.reshape(-1)), cell)
    flat = np.ascontiguousarray(values, cell.native).reshape(-1)
    if cell.per > 1:
        flat = flat.view(f"f{cell.native.itemsize // 2}")
    valid = flat == flat if flat.dtype.kind == "f" else np.ones(0, np.bool_)
    data = np.packbits(flat, bitorder="little") if flat.dtype.kind == "b" else flat
    bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
    return _nest(pa.Array.from_buffers(cell.leaf, len(flat), [bitmap, pa.py_buffer(data)]), cell)


def _nest(leaves: pa.Array, cell: Cell) -> pa.Array:
    for size in (cell.per, cell.items):
        leaves = pa.FixedSizeListArray.from_arrays(leaves, size) if size > 1 else leaves
    return leaves


def _texts(values: np.ndarray[Any, Any]) -> pa.Array:
    texts = [_text(value) for value in values.tolist()]
    ends = np.cumsum([0, *map(len, texts)])
    if ends[-1] >= 1 << 31:
        raise ValueError(f"{len(texts)} texts of {ends[-1]} bytes are too long for one block; use a smaller block_bytes")
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(texts))]
    return pa.Array.from_buffers(pa.string(), len(texts), buffers)


def _text(value: bytes | str) -> bytes:
    raw = value.encode("utf-8", "surrogateescape") if isinstance(value, str) else bytes(value)
    raw = raw.split(b"\0", 1)[0].rstrip(b" ")
    try:
        raw.decode()
    except UnicodeDecodeError:
        return raw.decode("latin-1").encode()
    return raw
