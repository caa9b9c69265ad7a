"""Delimited text in compiled passes: find the cells of whole records, gather those of a column, make them Arrow values.

A record ends with its line, unless the line ends within quotes. Blanks and carriage returns around a cell do not belong to it,
and a quote opens quotes only at the start of a cell; a quote within quotes is doubled. Blank lines are no records. A blank as the
delimiter means any run of blanks and tabs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scalable.io.text_passes import BEHIND_QUOTE, HARD, NULL, POWERS, WIDTH, copy, measure, numbers, split_records

Bytes = npt.NDArray[np.uint8]
Spans = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Cells:
    """Where the cells of some whole records are.

    Attributes
    ----------
    raw : array of uint8
        The text.
    spans : array of int32, shape (columns, records, 2)
        First byte of each cell, and the one behind its last. A start is inverted (``~start``) if quotes in the cell are doubled.
    """

    raw: Bytes
    spans: Spans

    def __len__(self) -> int:  # noqa: D105
        return self.spans.shape[1]

    def text(self, column: int, numeric: bool) -> pa.Array:
        """Return a column as strings; null are empty cells and, in a ``numeric`` column, words for no value.

        Of a numeric column the plus signs are dropped, and the words are those of `_is_null`.
        """
        spans = self.spans[column]
        ends = np.zeros(len(spans) + 1, np.int32)
        valid = np.zeros(len(spans), np.bool_)
        data = np.empty(measure(self.raw, spans, numeric, ends, valid), np.uint8)
        copy(self.raw, spans, ends, data)
        bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
        return pa.Array.from_buffers(pa.string(), len(spans), [bitmap, pa.py_buffer(ends), pa.py_buffer(data)])

    def values(self, column: int, dtype: pa.DataType) -> pa.Array:
        """Return a column as Arrow values of a plain type; in all but text, words for no value and NaN are null.

        Raises
        ------
        CellError
            Naming the first cell that is none.
        """
        if not (pa.types.is_float64(dtype) or pa.types.is_int64(dtype)):
            return parse(self.text(column, not pa.types.is_string(dtype)), dtype)
        spans = self.spans[column]
        out = np.empty(len(spans), np.float64 if pa.types.is_float64(dtype) else np.int64)
        state = np.empty(len(spans), np.uint8)
        numbers(self.raw, spans, POWERS, out, state)
        hard = np.flatnonzero(state == HARD)
        if len(hard):
            try:
                rest = parse(Cells(self.raw, np.ascontiguousarray(spans[hard])[None]).text(0, True), dtype)
            except CellError as error:
                raise CellError(int(hard[error.index])) from error
            out[hard] = rest.fill_null(0).to_numpy(zero_copy_only=False)
            state[hard] = rest.is_valid().to_numpy(zero_copy_only=False)
        valid = state != NULL
        bitmap = None if valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))
        return pa.Array.from_buffers(dtype, len(out), [bitmap, pa.py_buffer(out)])

    def start(self, record: int) -> int:
        """Return the first byte of a record's first cell."""
        at = int(self.spans[0, record, 0])
        return at if at >= 0 else ~at


class RecordError(ValueError):
    """A record that has no place in the table: why, and at which byte of the text it begins."""

    def __init__(self, reason: str, at: int) -> None:
        super().__init__(reason)
        self.at = at


def split(raw: Bytes, columns: int, delimiter: int, comment: bool) -> tuple[Cells, int]:
    """Find the cells of the whole records of a text; return them, and where the last record ends.

    Raises
    ------
    RecordError
        If a record has more or fewer than ``columns`` cells, or text behind closing quotes.
    """
    # A record takes a line, and a byte for each of its cells: that bounds what is set aside for a malformed text.
    most = min(int(np.count_nonzero(raw == 10)), len(raw) // columns) + 1
    spans = np.empty((columns, most, 2), np.int32)
    rows, end, fault, found = split_records(raw, delimiter, comment, spans, True)
    if fault == WIDTH:
        raise RecordError(f"{found} fields, {columns} are needed", end)
    if fault == BEHIND_QUOTE:
        raise RecordError(f"text behind the closing quote of field {found} (write a quote within quotes twice)", end)
    return Cells(raw, spans[:, :rows]), end


def count(raw: Bytes, delimiter: int, comment: bool) -> tuple[int, int]:
    """Return how many whole records a text holds, and where the last one ends."""
    rows, end, _, _ = split_records(raw, delimiter, comment, np.empty((0, 0, 2), np.int32), False)
    return rows, end


def parse(text: pa.Array, dtype: pa.DataType) -> pa.Array:
    """Parse strings as numbers or logicals; NaN becomes null.

    Raises
    ------
    CellError
        Naming the first cell that is none.
    """
    if pa.types.is_string(dtype):
        return text
    if pa.types.is_float16(dtype):
        dtype = pa.float32()
    values = convert(text, lambda part: pc.cast(part, dtype))
    return null_nan(values)


def null_nan(values: pa.Array) -> pa.Array:
    """Return floating numbers with NaN as null; anything else as it is."""
    if not pa.types.is_floating(values.type):
        return values
    nan = pc.is_nan(values)
    return pc.if_else(nan, pa.scalar(None, values.type), values) if pc.any(nan).as_py() else values


class CellError(ValueError):
    """A cell that cannot be parsed: which one."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


def convert(text: pa.Array, function: Callable[[pa.Array], pa.Array]) -> pa.Array:
    """Apply a function that raises where any cell is wrong, and then say by halving which is the first.

    Raises
    ------
    CellError
        Naming it.
    """
    try:
        return function(text)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        good, bad = 0, len(text)  # the first `good` cells are right, the first wrong one is below `bad`
        while bad - good > 1:
            middle = (good + bad) // 2
            try:
                function(text.slice(good, middle - good))
                good = middle
            except (ValueError, TypeError, OverflowError, RecursionError):
                bad = middle
        raise CellError(good) from error
