"""FITS binary tables, row by row in bounded memory: units, UCDs and descriptions in the header, nulls as NaN or TNULL."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from astropy.io import fits
from numpy.typing import NDArray

from scalable.errors import ColumnError
from scalable.io.export_rows import Facts, filled, list_values, spooled, texts
from scalable.io.layout import META_KEY
from scalable.schema import Column, Schema

BLOCK = 2880

_FLOATS = {pa.float32(): ("E", ">f4"), pa.float64(): ("D", ">f8")}
_INTEGERS = {
    pa.uint8(): ("B", ">u1"), pa.int8(): ("I", ">i2"), pa.int16(): ("I", ">i2"), pa.uint16(): ("J", ">i4"),
    pa.int32(): ("J", ">i4"), pa.uint32(): ("K", ">i8"), pa.int64(): ("K", ">i8"), pa.uint64(): ("K", ">i8"),
}  # fmt: skip
"""FITS has no signed bytes and no unsigned words: the next wider type holds them."""
_WIDER = {"B": ("I", ">i2"), "I": ("J", ">i4"), "J": ("K", ">i8")}


@dataclass(frozen=True)
class _Cell:
    """How a column stands in a row: its TFORM letter, type of one value, number of values, and the value that means null.

    ``count`` is None for lists of different lengths, whose values lie in the heap behind the rows.
    """

    column: Column
    letter: str
    dtype: str
    count: int | None = 1
    null: int | None = None

    @property
    def form(self) -> str:
        """The TFORM."""
        if self.count is None:
            return f"1Q{self.letter}"
        return f"{self.count}{self.letter}"

    @property
    def field(self) -> tuple[str, str, tuple[int, ...]]:
        """The member of the record of a row."""
        if self.count is None:
            return self.column.name, ">i8", (2,)
        if self.letter == "A":
            return self.column.name, f"S{self.count}", ()
        return self.column.name, self.dtype, (self.count,) if pa.types.is_nested(self.column.dtype) else ()


def write_fits(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write one binary table.

    Raises
    ------
    ColumnError
        If a text is not ASCII, or no integer is left to mean null.
    """
    with spooled(tables, schema, path) as spool:
        cells = [_cell(column, spool.facts[column.name]) for column in Schema.from_arrow(schema)]
        record = np.dtype([cell.field for cell in cells])
        heap = path.with_name(f"{path.name}.heap")
        try:
            with path.open("wb") as file, heap.open("w+b") as tail:
                lists = [cell for cell in cells if cell.count is None]
                size = sum(spool.facts[cell.column.name].total * np.dtype(cell.dtype).itemsize for cell in lists)
                history = json.loads((schema.metadata or {}).get(META_KEY, b"{}")).get("history", [])
                file.write(_header(cells, record.itemsize, spool.rows, size, history))
                written = 0
                for block in spool.blocks():
                    rows = np.zeros(block.num_rows, dtype=record)
                    for cell in cells:
                        _fill(rows, cell, block[cell.column.name], tail)
                    file.write(rows.tobytes())
                    written += rows.nbytes
                written += tail.tell()
                tail.seek(0)
                shutil.copyfileobj(tail, file)
                file.write(b"\0" * (-written % BLOCK))
        finally:
            heap.unlink(missing_ok=True)


def _cell(column: Column, facts: Facts) -> _Cell:
    dtype = column.dtype
    if pa.types.is_nested(dtype):
        inner = _cell(Column(column.name, dtype.value_type), Facts())
        if inner.letter in "AL":
            raise ColumnError(f"column {column.name}: FITS files of ours hold lists of numbers alone; choose .parquet or .ecsv")
        same = facts.nulls == 0 and facts.low == facts.high
        return _Cell(column, inner.letter, inner.dtype, facts.high if same else None)
    if dtype in _FLOATS:
        return _Cell(column, *_FLOATS[dtype])
    if dtype == pa.bool_():
        # FITS has an undefined logical value, which astropy reads as false: where some are null, 0 and 1 stand for them.
        return _Cell(column, "B", ">u1", null=255) if facts.nulls else _Cell(column, "L", "S1")
    if dtype in _INTEGERS:
        return _integer(column, facts)
    if not facts.ascii:
        raise ColumnError(f"column {column.name}: FITS holds ASCII texts alone; choose .parquet, .vot or .ecsv")
    return _Cell(column, "A", "S", facts.width)


def _integer(column: Column, facts: Facts) -> _Cell:
    letter, dtype = _INTEGERS[column.dtype]
    if column.dtype == pa.uint64() and facts.high >= 2**63:
        raise ColumnError(f"column {column.name}: {facts.high} is larger than FITS integers; choose .parquet, .vot or .ecsv")
    if not facts.nulls:
        return _Cell(column, letter, dtype)
    while True:
        limits = np.iinfo(dtype)
        for null in (limits.min, limits.max):
            if not facts.low <= null <= facts.high:
                return _Cell(column, letter, dtype, null=int(null))
        if letter not in _WIDER:
            raise ColumnError(f"column {column.name}: no integer is left to stand for null; choose .parquet or .vot")
        letter, dtype = _WIDER[letter]


def _header(cells: list[_Cell], width: int, rows: int, heap: int, history: list[Any]) -> bytes:
    """Return the headers of an empty primary HDU and of the table, with what was done to its rows."""
    sizes = (("NAXIS", 2), ("NAXIS1", width), ("NAXIS2", rows), ("PCOUNT", heap), ("GCOUNT", 1), ("TFIELDS", len(cells)))
    header = fits.Header([("XTENSION", "BINTABLE"), ("BITPIX", 8), *sizes])
    for number, cell in enumerate(cells, 1):
        column = cell.column
        if not column.name.isascii():
            raise ColumnError(f"column {column.name!r}: names in FITS are ASCII; name it otherwise with AS")
        said = {"TTYPE": column.name, "TFORM": cell.form, "TUNIT": column.unit, "TNULL": cell.null}
        said |= {"TUCD": column.ucd, "TCOMM": column.description}
        for key, value in said.items():
            if value not in (None, ""):
                header[f"{key}{number}"] = value.encode("ascii", "replace").decode() if isinstance(value, str) else value
    for number, step in enumerate(history, 1):
        # HISTORY cards lose a blank wherever a text is cut.
        header[f"STEP{number}"] = json.dumps(step)
    return "".join(part.tostring() for part in (fits.PrimaryHDU().header, header)).encode("ascii")


def _fill(rows: NDArray[np.void], cell: _Cell, values: pa.Array, heap: BinaryIO) -> None:
    """Put the values of a column into the records of a block."""
    name = cell.column.name
    if cell.count is None:
        flat, lengths = list_values(values)
        ends = np.cumsum(lengths)
        data = flat.astype(cell.dtype)
        rows[name][:, 0] = lengths
        rows[name][:, 1] = heap.tell() + (ends - lengths) * data.itemsize
        heap.write(data.tobytes())
    elif pa.types.is_nested(values.type):
        rows[name] = list_values(values)[0].reshape(len(rows), -1)
    elif cell.letter == "A":
        rows[name] = texts(values, cell.count, "ascii")
    elif cell.letter == "L":
        rows[name] = np.where(filled(values, False), b"T", b"F")
    elif values.null_count and cell.null is not None:
        numbers = filled(values.cast(pa.uint8()) if values.type == pa.bool_() else values, 0).astype(cell.dtype)
        numbers[values.is_null().to_numpy(zero_copy_only=False)] = cell.null
        rows[name] = numbers
    else:
        values = values.cast(pa.uint8()) if values.type == pa.bool_() else values
        rows[name] = filled(values, float("nan") if pa.types.is_floating(values.type) else 0)
