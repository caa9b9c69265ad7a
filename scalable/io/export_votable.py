"""VOTable with BINARY2 data, row by row in bounded memory: units, UCDs, descriptions, and a null flag for every cell."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.errors import ColumnError
from scalable.io.export_rows import Facts, filled, list_values, spooled, texts
from scalable.io.parquet import votable_header
from scalable.schema import Column, Schema

_NUMBERS = {
    pa.uint8(): ("unsignedByte", ">u1"), pa.int8(): ("short", ">i2"), pa.int16(): ("short", ">i2"), pa.uint16(): ("int", ">i4"),
    pa.int32(): ("int", ">i4"), pa.uint32(): ("long", ">i8"), pa.int64(): ("long", ">i8"), pa.uint64(): ("long", ">i8"),
    pa.float32(): ("float", ">f4"), pa.float64(): ("double", ">f8"), pa.bool_(): ("boolean", "S1"),
}  # fmt: skip
_END = b"</TABLE>"
_FLAGS = "null flags"


@dataclass(frozen=True)
class _Cell:
    """How a column stands in a row: its VOTable datatype, type of one value, and how many; None for a single one."""

    column: Column
    datatype: str
    dtype: str
    count: int | None = None

    @property
    def field(self) -> tuple[str, str, tuple[int, ...]]:
        """The member of the record of a row."""
        return self.column.name, self.dtype, () if self.count is None or self.dtype.startswith("S") else (self.count,)


def write_votable(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write one table.

    Raises
    ------
    ColumnError
        If lists have different lengths, or an integer is too large.
    """
    with spooled(tables, schema, path) as spool, path.open("wb") as file:
        cells = [_cell(column, spool.facts[column.name]) for column in Schema.from_arrow(schema)]
        types = {cell.column.name: (cell.datatype, None if cell.count is None else str(cell.count)) for cell in cells}
        head, end, tail = votable_header(Schema.from_arrow(schema), types).rpartition(_END)
        file.write(head + b'<DATA><BINARY2><STREAM encoding="base64">\n')
        record = np.dtype([(_FLAGS, "u1", ((len(cells) + 7) // 8,)), *(cell.field for cell in cells)])
        left = b""
        for block in spool.blocks():
            rows = np.zeros(block.num_rows, dtype=record)
            columns = [block[cell.column.name] for cell in cells]
            nulls = [values.is_null().to_numpy(zero_copy_only=False) for values in columns]
            rows[_FLAGS] = np.packbits(np.column_stack(nulls), axis=1)
            for cell, values in zip(cells, columns, strict=True):
                rows[cell.column.name] = _values(cell, values)
            data = left + rows.tobytes()
            # Whole triples: only the end of a stream may be padded.
            whole = len(data) - len(data) % 3
            left = data[whole:]
            file.write(base64.encodebytes(data[:whole]))
        file.write(base64.encodebytes(left) + b"</STREAM></BINARY2></DATA>" + end + tail)


def _cell(column: Column, facts: Facts) -> _Cell:
    dtype = column.dtype
    if pa.types.is_nested(dtype):
        if facts.total and facts.low != facts.high or dtype.value_type not in _NUMBERS or dtype.value_type == pa.bool_():
            raise ColumnError(
                f"column {column.name}: VOTable files of ours hold lists of numbers, all of one length; choose .parquet or .ecsv"
            )
        return _Cell(column, *_NUMBERS[dtype.value_type], facts.high if facts.total else 0)
    if dtype == pa.uint64() and facts.high >= 2**63:
        raise ColumnError(f"column {column.name}: {facts.high} is larger than VOTable integers; choose .parquet or .ecsv")
    if dtype in _NUMBERS:
        return _Cell(column, *_NUMBERS[dtype])
    # A text has no more units of UTF-16 than bytes in UTF-8.
    bytes_each, datatype = (1, "char") if facts.ascii else (2, "unicodeChar")
    return _Cell(column, datatype, f"S{facts.width * bytes_each}", facts.width)


def _values(cell: _Cell, values: pa.Array) -> NDArray[np.generic]:
    """Return the values of a column as records hold them; whatever stands for null is flagged."""
    if cell.datatype in ("char", "unicodeChar"):
        width = np.dtype(cell.dtype).itemsize
        return texts(values, width, "ascii" if cell.datatype == "char" else "utf-16-be")
    if pa.types.is_nested(values.type):
        lists = np.zeros((len(values), cell.count or 0), dtype=cell.dtype)
        lists[values.is_valid().to_numpy(zero_copy_only=False)] = list_values(values)[0].reshape(-1, cell.count or 1)
        return lists
    if cell.datatype == "boolean":
        return np.where(filled(values, False), b"T", b"F")
    return filled(values, float("nan") if pa.types.is_floating(values.type) else 0)
