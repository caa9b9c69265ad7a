"""Binary tables compressed in tiles (``ZTABLE``, as ``fpack -table`` writes them), laid out as the plain tables they were.

A tile holds some thousand rows; each of its columns is compressed for itself: GZIP_1 as it lies, GZIP_2 with the bytes of like
weight side by side, RICE_1 as differences of whole numbers.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from numba import njit

from scalable.errors import InputError
from scalable.io.fits_header import MAX_BLOCK, Field, FitsFile, Header, Layout, parse_header, table_layout
from scalable.io.limits import most_expanded

Bytes = npt.NDArray[np.uint8]

_CARD = 80
_OWN = re.compile(r"TFORM\d+|NAXIS[12]|PCOUNT|THEAP")
_HIDDEN = re.compile(r"Z(NAXIS\d|PCOUNT|THEAP)|Z(FORM\d+)")
_METHODS = {"GZIP_1": "LXBIJKAEDCM", "GZIP_2": "BIJKED", "RICE_1": "BIJ"}
"""What is read, on which codes: GZIP_2 on complex numbers is written by CFITSIO in a way that it does not read itself."""
_RICE = {"B": (3, 6, 8), "I": (4, 14, 16), "J": (5, 25, 32)}  # bits of a block's width, its largest value, bits of an item
_RICE_BLOCK = 32


@dataclass(frozen=True)
class Tiles:
    """A compressed table as its header describes it.

    Attributes
    ----------
    plain : Layout
        Of the table it was; its digest is that of the header as it is.
    rows : int
        Rows in a tile; the last one may have fewer.
    number, data_bytes : int
        Tiles, and bytes of the compressed data.
    heap_at : int
        Where the heap begins within them.
    methods, wide : list of str, list of bool
        Of each column: its method, and whether its descriptors are of 64 bits.
    """

    plain: Layout
    rows: int
    number: int
    data_bytes: int
    heap_at: int
    methods: list[str]
    wide: list[bool]


def is_tiled(raw: bytes) -> bool:
    """Return whether a raw header is that of a compressed table."""
    return b"ZTABLE  =" in raw and parse_header(raw).values.get("ZTABLE") is True


def tiles(raw: bytes) -> Tiles:
    """Parse a compressed table's header.

    Raises
    ------
    ValueError
        If it describes no table, or one that is not read; says which keyword is wrong.
    """
    header = parse_header(raw)
    outer = table_layout(raw)
    names = {field.column.name: n for n, field in enumerate(outer.fields.values(), 1)}
    plain = table_layout(_plain(raw))
    if list(plain.fields) != list(names):
        raise ValueError("columns of no items in a compressed table are not read; run funpack on the file first")
    for name, field in plain.fields.items():
        _check_column(header, names[name], field, outer.fields[name])
    rows = max(header.integer("ZTILELEN", plain.rows), 1)
    if outer.rows != -(-plain.rows // rows):
        raise ValueError(f"NAXIS2 is {outer.rows}, which is not ZNAXIS2 {plain.rows} in tiles of ZTILELEN {rows}")
    if min(rows, plain.rows) * plain.row_bytes > MAX_BLOCK:
        raise ValueError(f"ZTILELEN is {rows}: tiles of at most {MAX_BLOCK} bytes are read; run funpack on the file first")
    if (whole := plain.rows * plain.row_bytes) > (limit := most_expanded(outer.data_bytes)):
        raise ValueError(
            f"ZNAXIS2 is {plain.rows}: {outer.data_bytes} bytes swell to {whole}, at most {limit} are read: refused as a "
            "decompression bomb; if it is none, run funpack on the file first"
        )
    methods = [header.text(f"ZCTYP{n}") for n in names.values()]
    wide = [field.heap == "Q" for field in outer.fields.values()]
    return Tiles(replace(plain, digest=outer.digest), rows, outer.rows, outer.data_bytes, outer.heap_at, methods, wide)


def _plain(raw: bytes) -> bytes:
    """Return the header of the table it was: the keywords that describe the tiles make room for those that they hide."""
    text, kept = raw.decode("latin-1"), []
    for at in range(0, len(text), _CARD):
        card = text[at : at + _CARD]
        keyword = card[:8].rstrip()
        if hidden := _HIDDEN.fullmatch(keyword):
            card = (hidden[1] or f"T{hidden[2]}").ljust(8) + card[8:]
        if not _OWN.fullmatch(keyword):
            kept.append(card)
    return "".join(kept).encode("latin-1")


def _check_column(header: Header, n: int, field: Field, outer: Field) -> None:
    method = header.text(f"ZCTYP{n}")
    if field.heap:
        form = header.text(f"ZFORM{n}")
        raise ValueError(f"ZFORM{n} is {form!r}: arrays of any length in a compressed table are not read; run funpack first")
    if field.code not in _METHODS.get(method, ""):
        known = ", ".join(f"{name} on {' '.join(codes)}" for name, codes in _METHODS.items())
        raise ValueError(f"ZCTYP{n} is {method!r} on {field.code}; {known} are read; write the table without compression")
    if not outer.heap or outer.code != "B":
        raise ValueError(f"TFORM{n} is no descriptor of bytes, as a compressed column has; fetch the file again")


def unpack(file: FitsFile, hdu: int, data_at: int, table: Tiles) -> Iterator[bytes]:
    """Yield the rows of the plain table, a tile at a time.

    Raises
    ------
    InputError
        If a tile is damaged; names it and the column.
    """
    sizes = [16 if wide else 8 for wide in table.wide]
    row = bytearray(sum(sizes))
    for tile in range(table.number):
        file.read_into(memoryview(row), data_at + tile * len(row), hdu)
        rows = min(table.rows, table.plain.rows - tile * table.rows)
        out, at = np.empty((rows, table.plain.row_bytes), np.uint8), 0
        for field, method, size in zip(table.plain.fields.values(), table.methods, sizes, strict=True):
            count, start = (int(word) for word in np.frombuffer(row, f">i{size // 2}", 2, at))
            at += size
            where = f"{file.path}: HDU {hdu}: tile {tile}, column {field.column.name!r}"
            if count < 0 or start < 0 or table.heap_at + start + count > table.data_bytes:
                raise InputError(f"{where}: {count} bytes from {start} on lie outside the table: corrupt; fetch the file again")
            packed = bytearray(count)
            file.read_into(memoryview(packed), data_at + table.heap_at + start, hdu)
            try:
                column = _unpack(packed, method, field, rows)
            except (zlib.error, ValueError) as error:
                raise InputError(f"{where}: {method}: {error}: corrupt; fetch the file again") from error
            out[:, field.at : field.at + field.width * field.count] = column
        yield out.tobytes()


def _unpack(packed: bytearray, method: str, field: Field, rows: int) -> Bytes:
    """Return the bytes of a column in a tile, a row each."""
    items = rows * field.count
    if method == "RICE_1":
        numbers = np.empty(items, f">i{field.width}" if field.code != "B" else "u1")
        if not _rice(np.frombuffer(packed, np.uint8), numbers.view(np.uint8), items, *_RICE[field.code]):
            raise ValueError("the bits end before the numbers do")
        return numbers.view(np.uint8).reshape(rows, -1)
    inflate = zlib.decompressobj(wbits=31)
    raw = inflate.decompress(packed, items * field.width + 1)
    if len(raw) != items * field.width or not inflate.eof:
        raise ValueError(f"{len(raw)} bytes are not the {items * field.width} of its rows")
    flat = np.frombuffer(raw, np.uint8)
    return (flat.reshape(field.width, items).T if method == "GZIP_2" else flat).reshape(rows, -1)


@njit(cache=True, nogil=True)
def _rice(packed, out, items, width_bits, full, bits):  # type: ignore[no-untyped-def]
    """Decode RICE_1 into big-endian bytes; False if the bits end before the numbers do.

    The first number stands as it is. Then comes, for each block of 32, one more than how many low bits of a number stand as they
    are (nought: all numbers are the last one; ``full`` and one: all bits stand so); before them come the high bits, a run of as
    many zeros and a one. A number is the difference to the one before, with its sign in the lowest bit (FITS standard, 10.4.1).
    """
    step, mask = bits // 8, (1 << bits) - 1
    last = 0
    if len(packed) < step:
        return False
    for n in range(step):
        last = last << 8 | int(packed[n])
    at, end = bits, 8 * len(packed)
    for first in range(0, items, _RICE_BLOCK):
        if at + width_bits > end:
            return False
        low = 0
        for _ in range(width_bits):
            low = low << 1 | (int(packed[at >> 3]) >> (7 - (at & 7)) & 1)
            at += 1
        low -= 1
        for n in range(first, min(first + _RICE_BLOCK, items)):
            if low >= 0:
                high, count = 0, bits
                if low != full:
                    while at < end and not int(packed[at >> 3]) >> (7 - (at & 7)) & 1:
                        high += 1
                        at += 1
                    at += 1
                    count = low
                if at + count > end:
                    return False
                coded = high
                for _ in range(count):
                    coded = coded << 1 | (int(packed[at >> 3]) >> (7 - (at & 7)) & 1)
                    at += 1
                coded &= mask
                last = (last + (~(coded >> 1) if coded & 1 else coded >> 1)) & mask
            for byte in range(step):
                out[n * step + byte] = last >> (8 * (step - 1 - byte)) & 255
    return True
