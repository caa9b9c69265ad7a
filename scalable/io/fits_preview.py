"""A small FITS table of a catalogue's first rows, for TOPCAT and for a first look."""

from __future__ import annotations

import io
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from astropy.io import fits

from scalable.io.atomic import write_bytes
from scalable.schema import Schema

_FORMATS = {
    pa.int16(): "I",
    pa.int32(): "J",
    pa.int64(): "K",
    pa.float32(): "E",
    pa.float64(): "D",
    pa.bool_(): "L",
    pa.uint8(): "B",
}
_INTEGER_NULL = {"I": -(2**15), "J": -(2**31), "K": -(2**63)}


def write_preview(table: pa.Table, path: Path) -> None:
    """Write a table as one FITS binary table, with units, nulls as NaN or TNULL; columns of other types are left out."""
    columns = []
    for column in Schema.from_arrow(table.schema):
        values = table[column.name].combine_chunks()
        form = _FORMATS.get(column.dtype)
        if pa.types.is_string(column.dtype):
            words = pc.fill_null(values, "").to_pylist()
            width = max((len(word.encode()) for word in words), default=1)
            columns.append(fits.Column(column.name, f"{max(width, 1)}A", array=np.array(words, dtype=str)))
        elif form:
            null = _INTEGER_NULL.get(form)
            filled = pc.fill_null(values, math.nan if form in "ED" else null or 0).to_numpy(zero_copy_only=False)
            columns.append(fits.Column(column.name, form, unit=column.unit or None, null=null, array=filled))
    sink = io.BytesIO()
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns, name="PREVIEW")]).writeto(sink)
    write_bytes(path, sink.getvalue())
