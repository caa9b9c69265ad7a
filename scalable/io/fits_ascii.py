"""FITS ASCII tables: numbers written as text in fixed columns of fixed rows, to Arrow columns.

What a cell becomes:

==========  ======================================  ==================================================================
TFORM       Arrow type                              null where
==========  ======================================  ==================================================================
Aw          string, without trailing blanks         it is TNULL, or its first byte is NUL; a blank text is an empty one
Iw          int32 to 9 characters, else int64;      it is blank or TNULL
            double if scaled
Fw.d Ew.d   double                                  it is blank, TNULL or NaN
Dw.d
==========  ======================================  ==================================================================

A blank number is nought by the standard; nobody who left it blank meant that, so it is null. A number without a decimal point has
one before its last d digits, as the standard and CFITSIO have it. A column of width 0 is left out.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scalable.errors import InputError
from scalable.io.fits_header import MAX_BLOCK, FitsFile, Header, data_bytes, parse_header
from scalable.io.reader import Hash
from scalable.schema import Column, Schema

Bytes = npt.NDArray[np.uint8]

_KIND = re.compile(rb"XTENSION= *'TABLE *'")
_TFORM = re.compile(r"\s*([AIFED])\s*(\d*)(?:\.(\d+)(?:E\d+)?)?\s*$")
_INTEGER = r"^[+-]?[0-9]+$"
_REAL = r"^[+-]?(([0-9]+\.?[0-9]*|\.[0-9]+)([ED]?[+-][0-9]+|[ED][0-9]+)?|NAN|INF|INFINITY)$"


@dataclass(frozen=True)
class AsciiField:
    """Where the cells of one column are within the row, and what they mean; ``null`` is TNULL without blanks around it."""

    column: Column
    arrow: pa.Field
    form: str
    at: int
    width: int
    decimals: int
    scale: tuple[float, float]
    null: str | None


@dataclass(frozen=True)
class AsciiLayout:
    """An ASCII table as its header describes it."""

    fields: dict[str, AsciiField]
    schema: Schema
    rows: int
    row_bytes: int
    data_bytes: int
    digest: str
    keywords: dict[str, object]


def is_ascii(raw: bytes) -> bool:
    """Return whether a raw header is that of an ASCII table."""
    return _KIND.match(raw) is not None


@lru_cache(maxsize=64)
def ascii_layout(raw: bytes) -> AsciiLayout:
    """Parse a table's header.

    Raises
    ------
    ValueError
        If it describes no table; says which keyword is wrong.
    """
    header = parse_header(raw)
    for keyword, needed in (("BITPIX", 8), ("NAXIS", 2), ("GCOUNT", 1)):
        if (value := header.values.get(keyword, 1)) != needed:
            raise ValueError(f"{keyword} is {value!r}, an ASCII table has {needed}: the header is corrupt")
    row_bytes, rows, size = header.integer("NAXIS1"), header.integer("NAXIS2"), data_bytes(raw)
    if not 0 < row_bytes <= MAX_BLOCK:
        raise ValueError(f"NAXIS1 is {row_bytes}, rows of 1 to {MAX_BLOCK} bytes can be read")
    if (found := header.integer("TFIELDS")) > 999:
        raise ValueError(f"TFIELDS is {found}, at most 999 columns are allowed")
    fields = [field for n in range(1, found + 1) if (field := _field(header, n, row_bytes)).width]
    for name, times in Counter(field.column.name for field in fields).items():
        if times > 1:
            raise ValueError(f"column {name!r} is there {times} times: rename all but one (TTYPE)")
    schema = Schema(tuple(field.column for field in fields))
    by_name = {field.column.name: field for field in fields}
    return AsciiLayout(by_name, schema, rows, row_bytes, size, hashlib.sha256(raw).hexdigest(), dict(header.values))


def _field(header: Header, n: int, row_bytes: int) -> AsciiField:
    name = header.text(f"TTYPE{n}").strip() or f"col{n}"
    try:
        return _parse_field(header, n, name, row_bytes)
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from error


def _parse_field(header: Header, n: int, name: str, row_bytes: int) -> AsciiField:
    form = header.text(f"TFORM{n}")
    match = _TFORM.match(form.upper())
    if match is None or not (match[2] or match[1] == "A"):
        raise ValueError(f"TFORM{n} is {form!r}, which is no format of an ASCII table: Aw, Iw, Fw.d, Ew.d or Dw.d")
    code, width, decimals = match[1], int(match[2] or 1), int(match[3] or 0)
    at = header.integer(f"TBCOL{n}") - 1
    if at < 0 or at + width > row_bytes:
        raise ValueError(f"TBCOL{n} is {at + 1} and TFORM{n} {form!r}: outside the row of {row_bytes} bytes")
    scale = _scale(header, n)
    dtype = pa.float64()
    if code == "A":
        dtype = pa.string()
    elif code == "I" and scale == (1, 0):
        dtype = pa.int32() if width <= 9 else pa.int64()
    null = header.values.get(f"TNULL{n}")
    if null is None and f"TNULL{n}" in header.values:
        null = ""
    unit = header.text(f"TUNIT{n}")
    ucd = next(filter(None, (header.text(f"{key}{n}") for key in ("TUCD", "TBUCD", "UCD__"))), "")
    column = Column(name, dtype, unit=unit, source_unit=unit, ucd=ucd, description=header.text(f"TCOMM{n}"))
    return AsciiField(
        column, column.to_field(), form, at, width, min(decimals, width), scale, None if null is None else str(null).strip()
    )


def _scale(header: Header, n: int) -> tuple[float, float]:
    scale, zero = header.values.get(f"TSCAL{n}", 1), header.values.get(f"TZERO{n}", 0)
    for value in (scale, zero):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"TSCAL{n} and TZERO{n} are {scale!r} and {zero!r}, numbers are needed")
    return float(scale), float(zero)  # type: ignore[arg-type]


@dataclass(frozen=True)
class AsciiScan:
    """One pass over the rows of an open table."""

    file: FitsFile
    hdu: int
    layout: AsciiLayout
    data_at: int
    fields: list[AsciiField]
    digest: Hash | None

    def blocks(self, block_bytes: int) -> Iterator[pa.Table]:
        """Yield all rows, and give their bytes to the digest."""
        layout = self.layout
        step = max(1, min(block_bytes, MAX_BLOCK) // layout.row_bytes)
        schema = pa.schema([field.arrow for field in self.fields])
        for first in range(0, max(layout.rows, 1), step):
            raw = np.empty((min(step, layout.rows - first), layout.row_bytes), np.uint8)
            view = memoryview(raw.reshape(-1))  # type: ignore[arg-type]
            self.file.read_into(view, self.data_at + first * layout.row_bytes, self.hdu)
            if self.digest is not None:
                self.digest.update(view)
            yield pa.Table.from_arrays([self._decode(field, raw, first) for field in self.fields], schema=schema)

    def _decode(self, field: AsciiField, raw: Bytes, first: int) -> pa.Array:
        text = _texts(np.ascontiguousarray(raw[:, field.at : field.at + field.width]))
        if pa.types.is_string(field.column.dtype):
            return text if field.null is None else pc.if_else(pc.equal(pc.ascii_trim(text, " "), field.null), None, text)
        text = pc.ascii_upper(pc.ascii_trim(text, " "))
        unknown = pc.equal(text, "") if not field.null else pc.is_in(text, pa.array(["", field.null.upper()]))
        text = pc.if_else(unknown, None, text)
        whole = field.form.strip().upper().startswith("I")
        self._check(field, text, _INTEGER if whole else _REAL, first)
        text = pc.ascii_ltrim(text, "+")
        if pa.types.is_integer(field.column.dtype):
            try:
                return text.cast(field.column.dtype)
            except pa.ArrowInvalid as error:
                raise InputError(f"{self._where(field)}, rows from {first}: a number beyond 64 bits: {error}") from error
        return _real(text, 0 if whole else field.decimals, field.scale)

    def _check(self, field: AsciiField, text: pa.Array, pattern: str, first: int) -> None:
        """Refuse the first cell that is no number."""
        good = pc.fill_null(pc.match_substring_regex(text, pattern), True)
        if (row := pc.index(good, False).as_py()) >= 0:
            raise InputError(
                f"{self._where(field)}, row {first + row}: {text[row].as_py()!r} is no number of the form {field.form!r}: "
                "corrupt, fetch the file again; or a text that means no value, name it in TNULL"
            )

    def _where(self, field: AsciiField) -> str:
        return f"{self.file.path}: HDU {self.hdu}, column {field.column.name!r}"


def _texts(raw: Bytes) -> pa.Array:
    """Make strings of cells of one width, without trailing blanks; NUL ends a text, and bytes above 127 are Latin-1."""
    rows, width = raw.shape
    if raw.size and (raw.max() > 127 or raw.min() == 0):
        cells = (row.tobytes().decode("latin-1") for row in raw)
        return pa.array([None if cell[0] == "\0" else cell.split("\0")[0].rstrip(" ") for cell in cells], pa.string())
    cells = pa.FixedSizeBinaryArray.from_buffers(pa.binary(width), rows, [None, pa.py_buffer(raw)])
    return pc.ascii_rtrim(cells.cast(pa.string()), " ")


def _real(text: pa.Array, decimals: int, scale: tuple[float, float]) -> pa.Array:
    """Read checked numbers; text that is null stays so."""
    power = text
    if pc.any(pc.match_substring_regex(text, "[D+-]")).as_py():
        power = pc.replace_substring_regex(pc.replace_substring(text, "D", "E"), r"([0-9.])([+-])", r"\1E\2")
    with np.errstate(all="ignore"):
        values = power.cast(pa.float64()).to_numpy(zero_copy_only=False)
        if decimals:
            implied = pc.invert(pc.match_substring(text, ".")).fill_null(False).to_numpy(zero_copy_only=False)
            values = np.where(implied, values / float(f"1e{decimals}"), values)
        if scale != (1, 0):
            values = values * scale[0] + scale[1]
    return pa.array(values, pa.float64(), from_pandas=True)
