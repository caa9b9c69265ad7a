"""FITS binary tables, from the bytes to Arrow columns in one compiled pass.

Rows of a binary table are records of big-endian items. A scan reads some hundred kilobytes of rows at a time, a piece that stays
in cache, and gathers and swaps the items of each wanted column straight into that column's slice of the block's one buffer.
Arrow arrays are then laid over the slices without a copy. Text, logicals, bits, scaled numbers and heap descriptors are gathered
into a second, reused buffer, and converted from there once a block.

What a cell becomes:

=========  =====================================================  =====================================================
TFORM      Arrow type                                             null where
=========  =====================================================  =====================================================
L          bool                                                   the byte is neither T nor F
X          bool                                                   never
B I J K    uint8 int16 int32 int64; int8 uint16 uint32 uint64     the stored number is TNULL
           under the unsigned convention; float64 if scaled
E D        float, double; double if scaled                        NaN
C M        fixed_size_list[2] of float, double                    (items) NaN
A          string; bytes above 127 are Latin-1                    the first byte is NUL
rT, TDIM   fixed_size_list[r], flat in C order                    (items) as above
P, Q       list, large_list; of A: string                         (items) as above
=========  =====================================================  =====================================================

A column of repeat 0 holds nothing and is left out of the schema.

DATASUM and CHECKSUM are not verified: sound files carry wrong ones, for headers are edited without mending them, and astropy
summed tables with a heap or in little-endian pieces wrongly (astropy issues 14396 and 19990).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from numba import njit
from numba.extending import intrinsic

from scalable.errors import ColumnError, InputError, nearest
from scalable.io.fits_ascii import AsciiLayout, AsciiScan, ascii_layout, is_ascii
from scalable.io.fits_header import MAX_BLOCK, Field, FitsFile, Layout, laid_out, open_fits, parse_header, table_layout
from scalable.io.fits_tiles import Tiles, is_tiled, tiles, unpack
from scalable.io.reader import Hash, Source, TableInfo
from scalable.io.regular import feed

_READ_BYTES = 1 << 18  # a piece of rows that stays in the second-level cache between its read and its decoding
_CHUNK_ROWS = 256  # rows over which all columns are gathered before the next rows: they stay in the first-level cache

Bytes = npt.NDArray[np.uint8]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class FitsTable:
    """Reads FITS binary tables, in tiles or not, and ASCII tables, also in files compressed with gzip (`TableReader`)."""

    def describe(self, source: Source) -> TableInfo:
        """Read headers only; ``bytes`` are those of the table's rows and heap."""
        with open_fits(source.path) as file:
            found, _ = _open(file, source.hdu)
            # Most archives put telescope, filter and time there.
            primary = parse_header(file.find(0)[0]).values
        layout = found.plain if isinstance(found, Tiles) else found
        return TableInfo(layout.schema, layout.rows, layout.data_bytes, layout.digest, {**primary, **layout.keywords})

    def cut(self, source: Source, rows: int) -> list[Source]:
        """Return sources of ``rows`` rows each; a table in tiles, in ASCII or in a compressed file is read whole."""
        with open_fits(source.path) as file:
            found, _ = _open(file, source.hdu)
            if file.packed or not isinstance(found, Layout):
                return [source]
        starts = range(0, max(found.rows, 1), rows)
        return [replace(source, rows=(first, min(first + rows, found.rows))) for first in starts]

    def scan(
        self, source: Source, *, columns: Sequence[str] | None = None, block_bytes: int = 1 << 26, digest: Hash | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows in file order, of ``columns`` in the order given, in blocks of about ``block_bytes`` of source.

        With ``digest``, every byte of the file has been fed to it once the iterator is exhausted. A table without rows yields
        one empty block.

        Raises
        ------
        InputError
            If the file is missing, cut, corrupt or holds no table in that HDU.
        ColumnError
            If a column does not exist.
        """
        with open_fits(source.path, digest) as file:
            found, data_at = _open(file, source.hdu)
            layout = found.plain if isinstance(found, Tiles) else found
            names = list(layout.fields) if columns is None else list(columns)
            for name in names:
                if name not in layout.fields:
                    raise ColumnError(f"{file.path}: HDU {source.hdu}: no column {name!r}; {nearest(name, layout.fields)}")
            rest = None if file.packed else digest
            if isinstance(found, Tiles):
                fields = [found.plain.fields[name] for name in names]
                with laid_out(file.path, unpack(file, source.hdu, data_at, found)) as plain:
                    yield from _Scan(plain, source.hdu, found.plain, 0, fields, None).blocks(block_bytes)
                feed(rest, file.path, file.descriptor, 0, file.size)
                return
            feed(rest, file.path, file.descriptor, 0, data_at)
            if isinstance(found, AsciiLayout):
                scan = AsciiScan(file, source.hdu, found, data_at, [found.fields[name] for name in names], rest)
                yield from scan.blocks(block_bytes)
            else:
                fields = [found.fields[name] for name in names]
                yield from _Scan(file, source.hdu, found, data_at, fields, rest).blocks(block_bytes, source.rows)
            feed(rest, file.path, file.descriptor, data_at + found.rows * found.row_bytes, file.size)


def _open(file: FitsFile, hdu: int) -> tuple[Layout | AsciiLayout | Tiles, int]:
    """Return the layout of the table in an HDU and where its data begin, once the file is known to be long enough."""
    raw, data_at = file.find(hdu)
    try:
        layout = ascii_layout(raw) if is_ascii(raw) else tiles(raw) if is_tiled(raw) else table_layout(raw)
    except ValueError as error:
        raise InputError(f"{file.path}: HDU {hdu}: {error}") from error
    file.check_end(data_at + layout.data_bytes, hdu, "the table needs")
    return layout, data_at


@dataclass(frozen=True)
class _Scan:
    """One pass over the rows of an open table."""

    file: FitsFile
    hdu: int
    layout: Layout
    data_at: int
    fields: list[Field]
    digest: Hash | None

    def blocks(self, block_bytes: int, wanted: tuple[int, int] | None = None) -> Iterator[pa.Table]:
        """Yield all rows, or those from the first to before the last that is wanted."""
        layout = self.layout
        begin, end = wanted or (0, layout.rows)
        # A list column's share of the heap belongs to the row that points to it.
        heap = layout.data_bytes - layout.heap_at if any(field.heap for field in self.fields) else 0
        row_bytes = layout.row_bytes + heap // max(layout.rows, 1)
        step = max(1, min(block_bytes, MAX_BLOCK) // row_bytes)
        schema = pa.schema([field.arrow for field in self.fields])
        piece_rows = max(1, min(_READ_BYTES // layout.row_bytes, layout.rows))
        piece = np.empty(piece_rows * layout.row_bytes if layout.rows else 0, np.uint8)
        for first in range(begin, max(end, begin + 1), step):
            rows = min(step, end - first)
            yield pa.Table.from_arrays(self._block(first, rows, piece), schema=schema)

    def _block(self, first: int, rows: int, piece: Bytes) -> list[pa.Array]:
        row_bytes = self.layout.row_bytes
        groups = ([f for f in self.fields if f.staged == staged] for staged in (False, True))
        targets = [_Target.make(group, rows) for group in groups if group]
        view = memoryview(piece)  # type: ignore[arg-type]
        step = max(1, len(piece) // row_bytes)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            part = view[: count * row_bytes]
            self.file.read_into(part, self.data_at + (first + start) * row_bytes, self.hdu)
            if self.digest is not None:
                self.digest.update(part)
            for target in targets:
                _gather(piece, count, row_bytes, target.plan, start, target.out, target.nulls)
        places = {name: place for target in targets for name, place in target.places().items()}
        return [self._array(field, *places[field.column.name], first, rows) for field in self.fields]

    def _array(self, field: Field, data: pa.Buffer, nulls: int, first: int, rows: int) -> pa.Array:
        if field.heap:
            return self._lists(field, data, first, rows)
        return _nest(field.arrow.type, _leaf(field, data, rows * field.items, nulls))

    def _lists(self, field: Field, data: pa.Buffer, first: int, rows: int) -> pa.Array:
        """Follow the descriptors of a block to the heap."""
        heap_bytes = self.layout.data_bytes - self.layout.heap_at
        pairs = np.frombuffer(data, f"i{field.width}").reshape(rows, 2).astype(np.int64)
        counts, offsets = pairs[:, 0], pairs[:, 1]
        item = field.stored.itemsize * field.per
        bad = (counts < 0) | (counts > (8 * heap_bytes if field.code == "X" else heap_bytes // item))
        sizes = np.where(bad, 0, (counts + 7) // 8 if field.code == "X" else counts * item)
        bad |= (sizes > 0) & ((offsets < 0) | (offsets > heap_bytes - sizes))
        where = f"{self.file.path}: HDU {self.hdu}, column {field.column.name!r}"
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            raise InputError(
                f"{where}, row {first + row}: {counts[row]} items at {offsets[row]} are outside the heap of {heap_bytes} bytes: "
                "corrupt; fetch the file again"
            )
        # As floats, because descriptors that all point to the same place can add up to more than 64 bits hold.
        if sizes.sum(dtype=float) > max(heap_bytes, MAX_BLOCK) or counts.sum(dtype=float) >= 1 << 30:
            raise InputError(f"{where}, rows from {first}: {rows} lists are too long for one block; use a smaller block_bytes")
        edges = np.concatenate(([0], np.cumsum(counts)))
        leaf = _leaf(field, self._heap(field, offsets, sizes), int(edges[-1]), 1, edges)
        if field.code == "A":
            return leaf
        ends = pa.py_buffer(edges.astype(np.int32 if field.heap == "P" else np.int64))
        child = _nest(field.arrow.type.value_type, leaf)
        return pa.Array.from_buffers(field.arrow.type, rows, [None, ends], children=[child])

    def _heap(self, field: Field, offsets: Ints, sizes: Ints) -> pa.Buffer:
        """Read the items of a block one behind the other; what is neighbouring in the heap is read at once."""
        ends = np.cumsum(sizes)
        out = pa.allocate_buffer(int(sizes.sum()))
        view = memoryview(out)
        filled = np.flatnonzero(sizes)
        new = np.ones(len(filled), np.bool_)
        new[1:] = offsets[filled][1:] != (offsets + sizes)[filled][:-1]
        runs = filled[new]
        places = np.append((ends - sizes)[runs], len(view)).tolist()
        for n, begin in enumerate(offsets[runs].tolist()):
            self.file.read_into(view[places[n] : places[n + 1]], self.data_at + self.layout.heap_at + begin, self.hdu)
        items = np.frombuffer(out, f"u{field.stored.itemsize}")
        if field.stored.itemsize > 1:
            items.byteswap(inplace=True)
        if field.sign:
            items ^= items.dtype.type(field.sign)
        return out


@dataclass(frozen=True)
class _Target:
    """Where the cells of a block go: one buffer, with a contiguous slice for each field."""

    fields: list[Field]
    rows: int
    plan: npt.NDArray[np.uint64]
    buffer: pa.Buffer
    out: Bytes
    nulls: Ints

    @classmethod
    def make(cls, fields: list[Field], rows: int) -> _Target:
        """Allocate for ``rows`` rows; slices begin where Arrow likes them, at multiples of 64 bytes."""
        lines, size = [], 0
        for field in fields:
            lines.append((size, *field.line))
            size += -(-rows * field.width * field.count // 64) * 64
        buffer = pa.allocate_buffer(size)
        plan = np.array(lines, np.uint64)
        return cls(fields, rows, plan, buffer, np.frombuffer(buffer, np.uint8), np.zeros(len(lines), np.int64))

    def places(self) -> dict[str, tuple[pa.Buffer, int]]:
        """Return each column's slice and the number of its nulls."""
        # Slices of exact length: a column that is sent to another process takes its buffers with it as they are.
        rows, places = self.rows, {}
        for f, at, nulls in zip(self.fields, self.plan[:, 0].tolist(), self.nulls.tolist(), strict=True):
            places[f.column.name] = self.buffer.slice(at, rows * f.width * f.count), nulls
        return places


def _nest(kind: pa.DataType, leaf: pa.Array) -> pa.Array:
    """Lay fixed-size lists over the flat items."""
    if not pa.types.is_fixed_size_list(kind):
        return leaf
    child = _nest(kind.value_type, leaf)
    return pa.Array.from_buffers(kind, len(child) // kind.list_size, [None], children=[child])


def _leaf(field: Field, data: pa.Buffer, items: int, nulls: int, edges: Ints | None = None) -> pa.Array:
    """Make the flat array of a column's items; ``nulls`` may be 0 only if there are none.

    ``edges`` says where the cells begin and end, in characters or bits, if they are not all of one size.
    """
    if field.code == "A":
        return _text(np.frombuffer(data, np.uint8), np.arange(items + 1) * field.per if edges is None else edges)
    if field.code == "X":
        bits = np.zeros(-(-items // 8), np.uint8)
        cells = np.arange(0, items + 1, field.items) if edges is None else edges
        _unpack_bits(np.frombuffer(data, np.uint8), cells, bits)
        return pa.Array.from_buffers(field.dtype, items, [None, pa.py_buffer(bits)])
    stored = np.frombuffer(data, field.stored)
    if field.code == "L":
        yes = stored == ord("T")
        return pa.Array.from_buffers(field.dtype, items, [_bitmap(yes | (stored == ord("F"))), _bits(yes)])
    valid = None
    if field.scale is not None:
        with np.errstate(all="ignore"):
            values = stored * np.float64(field.scale[0]) + np.float64(field.scale[1])
        valid, data = values == values, pa.py_buffer(values)
    elif nulls and stored.dtype.kind == "f":
        valid = stored == stored
    if field.null is not None and (nulls or field.scale is not None):
        valid = (stored != field.null) & (True if valid is None else valid)
    return pa.Array.from_buffers(field.dtype, len(stored), [None if valid is None else _bitmap(valid), data])


def _bits(flags: npt.NDArray[np.bool_]) -> pa.Buffer:
    return pa.py_buffer(np.packbits(flags, bitorder="little"))


def _bitmap(valid: npt.NDArray[np.bool_]) -> pa.Buffer | None:
    """Return Arrow's validity bitmap, or None where nothing is null."""
    return None if valid.all() else _bits(valid)


def _text(raw: Bytes, edges: Ints) -> pa.Array:
    """Make strings of the cells between ``edges``, without trailing blanks."""
    count = len(edges) - 1
    ends = np.zeros(count + 1, np.int32)
    valid = np.ones(count, np.bool_)
    data = np.empty(_measure_text(raw, edges, ends, valid), np.uint8)
    _encode_text(raw, edges, ends, data)
    return pa.Array.from_buffers(pa.string(), count, [_bitmap(valid), pa.py_buffer(ends), pa.py_buffer(data)])


@intrinsic
def _load(context: Any, source: Any, at: Any, like: Any) -> Any:
    """Load the big-endian number at byte ``at`` as the type of ``like``: one instruction, wherever it lies.

    The compiler does not find that instruction behind shifts of single bytes, and NumPy's unaligned views cost one call a column.
    """

    def build(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        pointer = builder.gep(array.data, [arguments[1]])
        value = builder.load(builder.bitcast(pointer, context.get_value_type(like).as_pointer()))
        value.align = 1
        return builder.bswap(value) if like.bitwidth > 8 else value

    return like(source, at, like), build


@njit(cache=True, nogil=True)
def _gather_field(source, at, row_bytes, rows, count, out, sign, flip, mask, limit):  # type: ignore[no-untyped-def]
    """Gather one field of some rows; return the number of nulls."""
    if count == 1:
        for row in range(rows):
            out[row] = _load(source, at + row * row_bytes, sign) ^ sign
    else:
        for row in range(rows):
            for item in range(count):
                out[row * count + item] = _load(source, at + row * row_bytes + item * out.itemsize, sign) ^ sign
    nulls = np.uint32(0)
    if mask:
        # A loop of its own, over what was just written and is in cache, counts several items an instruction.
        for item in range(rows * count):
            nulls += np.uint32(((out[item] ^ flip) & mask) > limit)
    return np.int64(nulls)


@njit(cache=True, nogil=True)
def _gather(source, rows, row_bytes, plan, first, out, nulls):  # type: ignore[no-untyped-def]
    """Bring ``rows`` rows into the columns of ``plan``, from their row ``first``; a line is a start, then `Field.line`."""
    out16, out32, out64 = out.view(np.uint16), out.view(np.uint32), out.view(np.uint64)
    for start in range(0, rows, _CHUNK_ROWS):
        chunk = min(_CHUNK_ROWS, rows - start)
        for n in range(len(plan)):
            width, count = np.int64(plan[n, 2]), np.int64(plan[n, 3])
            at = start * row_bytes + np.int64(plan[n, 1])
            low = np.int64(plan[n, 0]) // width + (first + start) * count
            high = low + chunk * count
            sign, flip, mask, limit = plan[n, 4], plan[n, 5], plan[n, 6], plan[n, 7]
            if width == 1:
                nulls[n] += _gather_field(
                    source,
                    at,
                    row_bytes,
                    chunk,
                    count,
                    out[low:high],
                    np.uint8(sign),
                    np.uint8(flip),
                    np.uint8(mask),
                    np.uint8(limit),
                )
            elif width == 2:
                nulls[n] += _gather_field(
                    source,
                    at,
                    row_bytes,
                    chunk,
                    count,
                    out16[low:high],
                    np.uint16(sign),
                    np.uint16(flip),
                    np.uint16(mask),
                    np.uint16(limit),
                )
            elif width == 4:
                nulls[n] += _gather_field(
                    source,
                    at,
                    row_bytes,
                    chunk,
                    count,
                    out32[low:high],
                    np.uint32(sign),
                    np.uint32(flip),
                    np.uint32(mask),
                    np.uint32(limit),
                )
            else:
                nulls[n] += _gather_field(source, at, row_bytes, chunk, count, out64[low:high], sign, flip, mask, limit)


@njit(cache=True, nogil=True)
def _measure_text(raw, edges, ends, valid):  # type: ignore[no-untyped-def]
    """Find where each cell's text ends in UTF-8, and which cells begin with NUL; return the size of it all."""
    total = 0
    for cell in range(len(edges) - 1):
        start, stop = edges[cell], edges[cell + 1]
        valid[cell] = start == stop or raw[start] != 0
        kept = size = 0
        for at in range(start, stop):
            if raw[at] == 0:
                break
            size += 1 if raw[at] < 128 else 2
            if raw[at] != 32:
                kept = size
        total += kept
        ends[cell + 1] = total
    return total


@njit(cache=True, nogil=True)
def _encode_text(raw, edges, ends, out):  # type: ignore[no-untyped-def]
    """Write the text that `_measure_text` measured, Latin-1 to UTF-8."""
    for cell in range(len(edges) - 1):
        at, to = edges[cell], ends[cell]
        while to < ends[cell + 1]:
            if raw[at] < 128:
                out[to] = raw[at]
                to += 1
            else:
                out[to] = 0xC0 | (raw[at] >> 6)
                out[to + 1] = 0x80 | (raw[at] & 0x3F)
                to += 2
            at += 1


@njit(cache=True, nogil=True)
def _unpack_bits(raw, edges, out):  # type: ignore[no-untyped-def]
    """Turn bits that run from the top of whole bytes, cell by cell, into Arrow's, that run on from the bottom."""
    byte = 0
    for cell in range(len(edges) - 1):
        for bit in range(edges[cell + 1] - edges[cell]):
            to = edges[cell] + bit
            out[to >> 3] |= ((raw[byte + (bit >> 3)] >> (7 - (bit & 7))) & 1) << (to & 7)
        byte += (edges[cell + 1] - edges[cell] + 7) >> 3
