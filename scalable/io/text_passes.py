"""The compiled passes over delimited text; `scalable.io.text_cells` says what they are for."""

from __future__ import annotations

import numpy as np
from numba import njit

WIDTH, BEHIND_QUOTE = 1, 2
NULL, EASY, HARD = 0, 1, 2
POWERS = 10.0 ** np.arange(23)  # those that float64 holds exactly


@njit(cache=True, nogil=True)
def _blank(byte, delimiter):  # type: ignore[no-untyped-def]
    return (byte == 32 or byte == 9 or byte == 13) and (byte != delimiter or delimiter == 32)


@njit(cache=True, nogil=True)
def _skip(raw, at, delimiter):  # type: ignore[no-untyped-def]
    """Return the first byte at or behind ``at`` that is not blank."""
    while at < len(raw) and _blank(raw[at], delimiter):
        at += 1
    return at


@njit(cache=True, nogil=True)
def _quoted(raw, at):  # type: ignore[no-untyped-def]
    """Return where a cell in quotes begins (inverted if quotes in it are doubled) and where it ends."""
    size, start, stop, doubled = len(raw), at + 1, at + 1, False
    while stop < size:
        if raw[stop] == 34:
            if stop + 1 == size or raw[stop + 1] != 34:
                break
            doubled = True
            stop += 1
        stop += 1
    return (~start if doubled else start), stop


@njit(cache=True, nogil=True)
def _record(raw, at, delimiter, stops, spans, row, strict):  # type: ignore[no-untyped-def]
    """Write the cells of one record; return where its line ends (or the text), the number of cells, and a fault."""
    size, column = len(raw), 0
    columns = spans.shape[0] if row < spans.shape[1] else 0
    while True:
        if raw[at] == 34:
            start, stop = _quoted(raw, at)
            at = stop + 1
        else:
            start = at
            while at < size and not stops[raw[at]]:
                at += 1
            stop = at
            while stop > start and _blank(raw[stop - 1], delimiter):
                stop -= 1
        if column < columns:
            spans[column, row, 0] = start
            spans[column, row, 1] = stop
        column += 1
        behind = at
        while at < size and _blank(raw[at], delimiter):
            at += 1
        if at >= size or raw[at] == 10:
            return at, column, 0
        if (at == behind if delimiter == 32 else raw[at] != delimiter) and strict:
            return at, column, BEHIND_QUOTE
        if delimiter != 32:
            at += 1
            while at < size and _blank(raw[at], delimiter):
                at += 1
            if at >= size:
                return at, column, 0


@njit(cache=True, nogil=True)
def split_records(raw, delimiter, comment, spans, strict):  # type: ignore[no-untyped-def]
    """Write the cells of whole records; return their number, the end of the last, and fault and field where one is wrong."""
    size = len(raw)
    stops = np.zeros(256, np.bool_)
    stops[10] = stops[delimiter] = True
    stops[9] = stops[9] or delimiter == 32
    at = rows = end = 0
    while True:
        at = begin = _skip(raw, at, delimiter)
        column = fault = 0
        if comment and at < size and raw[at] == 35:
            while at < size and raw[at] != 10:
                at += 1
        elif at < size and raw[at] != 10:
            at, column, fault = _record(raw, at, delimiter, stops, spans, rows, strict)
        if fault:
            return rows, begin, fault, column
        if at >= size:
            return rows, end, 0, 0
        if column and strict and column != spans.shape[0]:
            return rows, begin, WIDTH, column
        rows += column > 0
        at += 1
        end = at


_NULLS = tuple(
    int.from_bytes(word.encode(), "big") for word in ("nan", "-nan", "+nan", "na", "n/a", "null", "none", "-", "--", "---")
)


@njit(cache=True, nogil=True)
def _is_null(raw, start, stop):  # type: ignore[no-untyped-def]
    """Say whether a cell is a word for no value: one of `_NULLS`, in any case."""
    size = stop - start
    if size == 0:
        return True
    if size > 4:
        return False
    word, found = 0, False
    for at in range(start, stop):
        byte = int(raw[at])
        word = (word << 8) | (byte + 32 if 65 <= byte <= 90 else byte)
    for known in _NULLS:
        found |= word == known
    return found


@njit(cache=True, nogil=True)
def _number(raw, start, stop):  # type: ignore[no-untyped-def]
    """Return where a number begins: behind a plus sign, which Arrow does not take before whole numbers."""
    plus = stop - start > 1 and raw[start] == 43 and raw[start + 1] != 45 and raw[start + 1] != 43
    return start + 1 if plus else start


@njit(cache=True, nogil=True)
def measure(raw, spans, numeric, ends, valid):  # type: ignore[no-untyped-def]
    """Find how long each cell is once it is copied, and which have a value; return the size of it all."""
    total = 0
    for cell in range(len(spans)):
        start, stop = int(spans[cell, 0]), int(spans[cell, 1])
        if start < 0:
            quotes = 0
            for at in range(~start, stop):
                quotes += raw[at] == 34
            total += stop - ~start - quotes // 2
            valid[cell] = True
        elif numeric:
            valid[cell] = not _is_null(raw, start, stop)
            if valid[cell]:
                total += stop - _number(raw, start, stop)
        else:
            valid[cell] = stop > start
            total += stop - start
        ends[cell + 1] = total
    return total


@njit(cache=True, nogil=True)
def copy(raw, spans, ends, out):  # type: ignore[no-untyped-def]
    """Write the cells that `measure` measured."""
    for cell in range(len(spans)):
        start, to, size = int(spans[cell, 0]), int(ends[cell]), int(ends[cell + 1] - ends[cell])
        if start < 0:
            at = ~start
            for n in range(size):
                out[to + n] = raw[at]
                at += 2 if raw[at] == 34 else 1
            continue
        at = int(spans[cell, 1]) - size  # behind a plus sign, if there is one
        for n in range(size):
            out[to + n] = raw[at + n]


@njit(cache=True, nogil=True)
def numbers(raw, spans, powers, out, state):  # type: ignore[no-untyped-def]
    """Parse the numbers for which one correctly rounded operation is exact, and say which are null and which are left.

    A whole number below 2**53, times or by a power of ten that is exact, is rounded once: to the nearest, as it must be.
    """
    whole = isinstance(out[0], np.int64) if len(out) else True
    for cell in range(len(spans)):
        at, stop = int(spans[cell, 0]), int(spans[cell, 1])
        out[cell] = 0
        state[cell] = HARD
        if at < 0:
            continue
        if stop - at <= 4 and _is_null(raw, at, stop):
            state[cell] = NULL
            continue
        minus = raw[at] == 45
        if minus or raw[at] == 43:
            at += 1
        digits = fraction = 0
        mantissa, point = 0, False
        while at < stop:
            byte = int(raw[at])
            if 48 <= byte <= 57:
                mantissa = mantissa * 10 + (byte - 48)
                digits += 1
                fraction += point
            elif byte == 46 and not point and not whole:
                point = True
            else:
                break
            at += 1
        if at < stop or digits == 0 or digits > 15:
            continue
        if whole:
            out[cell] = -mantissa if minus else mantissa
        else:
            value = np.float64(mantissa) / powers[fraction]
            out[cell] = -value if minus else value
        state[cell] = EASY
