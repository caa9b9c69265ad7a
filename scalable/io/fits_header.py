"""What the headers of a FITS file say: cards, where each header and data unit begins and ends, columns of a binary table."""

from __future__ import annotations

import hashlib
import math
import os
import re
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from scalable.errors import InputError, StoreError
from scalable.io.bzip2 import BZIP2, unpack_bzip2
from scalable.io.reader import Hash
from scalable.io.regular import open_regular
from scalable.io.stream import GZIP, ByteStream
from scalable.schema import Column, Schema

Value = str | int | float | bool | None

BLOCK = 2880
_CARD = 80
_PIECE = 1 << 20  # of what is unpacked
_STEP = 2 * BLOCK  # the first read of a header; each further one doubles what is there
MAX_BLOCK = 1 << 28  # so that string and list offsets of a block fit 32 bits even if every byte becomes two
_LONGEST = 1 << 26  # a header beyond this is garbage: it is refused before memory is spent on it

_STRING = re.compile(r"\s*'((?:[^']|'')*)'\s*(?:/\s*(.*))?")
_PLAIN = re.compile(r"\s*([^/]*?)\s*(?:/\s*(.*))?$", re.DOTALL)
_INTEGER = re.compile(r"[+-]?\d+$")
_FLOAT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([EDed][+-]?\d+)?$")


@dataclass(frozen=True)
class Header:
    """The parsed cards of one header; where a keyword repeats, the first wins.

    Attributes
    ----------
    values : dict
        Keyword to str, int, float, bool, or None where the value is undefined. Text that follows no rule stays text.
    comments : dict
        Keyword to the comment of its card; keywords without a comment are absent.
    """

    values: dict[str, Value] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)

    def integer(self, keyword: str, default: int | None = None) -> int:
        """Return a whole number that is not negative.

        Raises
        ------
        ValueError
            If the keyword is absent and has no default, or is something else.
        """
        value = self.values.get(keyword, default)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            found = "is missing" if keyword not in self.values else f"is {value!r}"
            raise ValueError(f"{keyword} {found}, a whole number from 0 is needed")
        return value

    def text(self, keyword: str) -> str:
        """Return the value if it is text, else an empty string."""
        value = self.values.get(keyword)
        return value if isinstance(value, str) else ""


def parse_header(raw: bytes) -> Header:
    """Parse raw 80-byte cards up to END; commentary, blank and unknown cards are passed over."""
    header = Header()
    text = raw.decode("latin-1")
    at = 0
    while at < len(text):
        card = text[at : at + _CARD]
        at += _CARD
        keyword = card[:8].rstrip()
        if keyword == "END":
            break
        if card[8:10] != "= " or keyword in ("", "COMMENT", "HISTORY", "CONTINUE"):
            continue
        value, comment = _value(card[10:])
        while isinstance(value, str) and value.endswith("&") and text[at : at + 10] == "CONTINUE  ":
            more, more_comment = _value(text[at + 10 : at + _CARD])
            value = value[:-1] + (more if isinstance(more, str) else "")
            comment = f"{comment} {more_comment}".strip()
            at += _CARD
        if keyword not in header.values:
            header.values[keyword] = value.rstrip() if isinstance(value, str) else value
            if comment:
                header.comments[keyword] = comment
    return header


def _value(text: str) -> tuple[Value, str]:
    """Return value and comment of the part of a card behind its value indicator."""
    if match := _STRING.match(text):
        # Blanks at the end of a string mean nothing; blanks at its start do.
        return match[1].replace("''", "'").rstrip(), (match[2] or "").strip()
    match = _PLAIN.match(text)
    word, comment = (match[1], (match[2] or "").strip()) if match else (text, "")
    if word in ("T", "F"):
        return word == "T", comment
    if _INTEGER.match(word):
        return int(word), comment
    if _FLOAT.match(word):
        return float(word.upper().replace("D", "E")), comment
    return word or None, comment


@lru_cache(maxsize=256)
def data_bytes(raw: bytes) -> int:
    """Return the size of the data behind a header, without padding.

    Raises
    ------
    ValueError
        If a keyword that says so is missing or is not a whole number.
    """
    header = parse_header(raw)
    bits = header.values.get("BITPIX")
    if bits not in (8, 16, 32, 64, -32, -64):
        raise ValueError(f"BITPIX is {bits!r}, one of 8, 16, 32, 64, -32, -64 is needed")
    dimensions = header.integer("NAXIS")
    if dimensions > 999:
        raise ValueError(f"NAXIS is {dimensions}, at most 999 is allowed")
    sizes = [header.integer(f"NAXIS{n}") for n in range(1, dimensions + 1)]
    if sizes and sizes[0] == 0 and header.values.get("GROUPS") is True:
        sizes = sizes[1:]
    pixels = math.prod(sizes) if sizes else 0
    return abs(int(bits)) // 8 * header.integer("GCOUNT", 1) * (header.integer("PCOUNT", 0) + pixels)


@dataclass(frozen=True)
class FitsFile:
    """An open FITS file: reads by position, so that threads may share nothing and a cut file raises instead of killing.

    Attributes
    ----------
    path : str
        For messages.
    descriptor, size : int
        Open file descriptor, and the size of the file when it was opened; if it is compressed, of what it unpacks to.
    packed : bool
        Whether it is.
    """

    path: str
    descriptor: int
    size: int
    packed: bool = False

    def read_into(self, view: memoryview, at: int, hdu: int) -> None:
        """Fill ``view`` with the bytes from position ``at``, which belong to ``hdu``."""
        done = 0
        while done < len(view):
            try:
                count = os.preadv(self.descriptor, [view[done:]], at + done)
            except OSError as error:
                raise OSError(error.errno, error.strerror, self.path) from error
            if count == 0:
                raise InputError(
                    f"{self.path}: HDU {hdu}: file ends at byte {at + done}, bytes to {at + len(view)} are needed: "
                    "it was cut while it was read; fetch it again"
                )
            done += count

    def read_header(self, at: int, hdu: int) -> bytes:
        """Return the raw header, padding included, that begins at byte ``at``."""
        raw = b""
        while True:
            searched = len(raw)
            more = bytearray(max(0, min(max(_STEP, searched), self.size - at - searched)))
            self.read_into(memoryview(more), at + searched, hdu)
            raw += more
            self._check_start(raw, hdu)
            if (end := _find_end(raw, searched)) >= 0:
                size = -(-(end + _CARD) // BLOCK) * BLOCK
                if size <= len(raw):
                    return raw[:size]
                self.check_end(at + size, hdu, "the header needs")
            if not more:
                raise InputError(
                    f"{self.path}: HDU {hdu}: file ends at byte {self.size} inside the header: truncated; fetch it again"
                )
            if len(raw) > _LONGEST:
                raise InputError(f"{self.path}: HDU {hdu}: no END in {len(raw)} bytes of header; fetch the file again")

    def walk(self) -> Iterator[tuple[bytes, int]]:
        """Yield the raw header of every HDU in order, and the position of its data, which are checked when the walk goes on."""
        at = number = 0
        while not number or at < self.size:
            raw = self.read_header(at, number)
            data_at = at + len(raw)
            yield raw, data_at
            try:
                data = data_bytes(raw)
            except ValueError as error:
                raise InputError(f"{self.path}: HDU {number}: {error}") from error
            self.check_end(data_at + data, number, "the data need")
            at = data_at + -(-data // BLOCK) * BLOCK
            number += 1

    def find(self, hdu: int) -> tuple[bytes, int]:
        """Walk to extension ``hdu`` (0 = primary) and return its raw header and the position of its data."""
        if hdu < 0:
            raise InputError(f"{self.path}: HDU {hdu} does not exist: extensions count from 0, the primary")
        number = -1
        for number, found in enumerate(self.walk()):
            if number == hdu:
                return found
        raise InputError(f"{self.path}: HDU {hdu} does not exist: the file holds HDU 0 to {number}")

    def check_end(self, needed: int, hdu: int, what: str) -> None:
        """Refuse a file that is shorter than its headers promise, before anything is allocated for it."""
        if needed > self.size:
            raise InputError(f"{self.path}: HDU {hdu}: file ends at byte {self.size}, {what} {needed}: truncated; fetch it again")

    def _check_start(self, raw: bytes, hdu: int) -> None:
        if hdu and not raw.startswith(b"XTENSION"):
            raise InputError(f"{self.path}: HDU {hdu}: no extension begins where HDU {hdu - 1} ends; fetch the file again")
        if not hdu and not raw.startswith(b"SIMPLE  ="):
            if raw.startswith(GZIP):
                raise InputError(f"{self.path}: HDU 0: the file is compressed with gzip twice; run gunzip on it first")
            what = "the file is empty" if not raw else f"it begins with {raw[:8]!r}, not with SIMPLE"
            raise InputError(f"{self.path}: HDU 0: not a FITS file: {what}")


def _find_end(raw: bytes, start: int) -> int:
    """Return the position of the END card at or behind ``start``, or -1."""
    at = raw.find(b"END", start)
    while at >= 0 and (at % _CARD or raw[at + 3 : at + 8] != b"     "):
        at = raw.find(b"END", at + 1)
    return at


@contextmanager
def open_fits(path: str, digest: Hash | None = None) -> Iterator[FitsFile]:
    """Open a file for reading by position; one compressed with gzip or bzip2 is unpacked into a temporary file first.

    That file has no name, so that a kill leaves nothing behind, and lies where ``TMPDIR`` says. The digest is fed here with a
    compressed file, as it lies on disk; with a plain one by who reads it.

    Raises
    ------
    MissingInputError
        If there is no such file.
    InputError
        If it is something else than a file, may not be read, is damaged, or unpacks to more than `limits.most_expanded` allows.
    StoreError
        If there is no room to unpack it.
    """
    descriptor = open_regular(path, "FITS file")
    try:
        begin = os.pread(descriptor, len(BZIP2), 0)
        if not begin.startswith((GZIP, BZIP2)):
            yield FitsFile(path, descriptor, os.fstat(descriptor).st_size)
            return
        with open(descriptor, "rb", buffering=0, closefd=False) as file:
            stream = ByteStream(path, file, digest)
            pieces = iter(lambda: stream.read(_PIECE), b"") if begin.startswith(GZIP) else unpack_bzip2(stream)
            with laid_out(path, pieces) as plain:
                yield plain
    finally:
        os.close(descriptor)


@contextmanager
def laid_out(path: str, pieces: Iterable[bytes]) -> Iterator[FitsFile]:
    """Write what is unpacked from a file into a temporary one, in whose place it is read.

    Raises
    ------
    StoreError
        If there is no room for it.
    """
    with tempfile.TemporaryFile(buffering=0, prefix="scalable-") as plain:
        for piece in pieces:
            view = memoryview(piece)
            try:
                while view:
                    view = view[plain.write(view) :]
            except OSError as error:
                raise StoreError(
                    f"{path}: cannot be unpacked in {tempfile.gettempdir()} ({error.strerror}); set TMPDIR to a folder with more "
                    "room, or unpack the file first"
                ) from error
        yield FitsFile(path, plain.fileno(), os.fstat(plain.fileno()).st_size, packed=True)


_DTYPES = {
    "L": pa.bool_(), "X": pa.bool_(), "A": pa.string(), "B": pa.uint8(), "I": pa.int16(), "J": pa.int32(), "K": pa.int64(),
    "E": pa.float32(), "D": pa.float64(), "C": pa.float32(), "M": pa.float64(),
}  # fmt: skip
_WIDTHS = {"L": 1, "X": 1, "A": 1, "B": 1, "I": 2, "J": 4, "K": 8, "E": 4, "D": 8, "C": 4, "M": 8}
_OTHER_SIGN: dict[tuple[str, Value], pa.DataType] = {
    ("B", -128): pa.int8(), ("I", 1 << 15): pa.uint16(), ("J", 1 << 31): pa.uint32(), ("K", 1 << 63): pa.uint64()
}  # fmt: skip
_TFORM = re.compile(r"\s*(\d*)([LXBIJKAEDCMPQ])\s*(.*)", re.DOTALL)
_BOILERPLATE = re.compile(
    r"(label|name|title|(data )?format)\s+(for|of)\b|(column|field)?\s*(name|label)?\s*#?\d*$", re.IGNORECASE
)


@dataclass(frozen=True)
class Field:
    """Where the cells of one column are, and what they mean.

    Attributes
    ----------
    column, arrow : Column, pyarrow.Field
        What it becomes.
    code, heap : str
        Code of the items, and P or Q if the row holds only a descriptor of them.
    at, width, count : int
        First byte within the row, and size and number of what the row holds there: items, or the two halves of a descriptor.
    stored, dtype : numpy.dtype, pyarrow.DataType
        An item as it is stored (but in native order, and of the sign that it means), and as Arrow holds it.
    items, per : int
        Elements in a cell, and items in each: the characters of a string, the parts of a complex number.
    sign : int
        Bits to flip in an item: the unsigned convention is that and nothing more.
    scale : tuple of float, optional
        TSCAL and TZERO, if they do more than that.
    null : int, optional
        The item that stands for no value.
    """

    column: Column
    arrow: pa.Field
    code: str
    heap: str
    at: int
    width: int
    count: int
    stored: np.dtype[Any]
    dtype: pa.DataType
    items: int
    per: int
    sign: int
    scale: tuple[float, float] | None
    null: int | None

    @cached_property
    def staged(self) -> bool:
        """Whether the gathered bytes are not yet what Arrow holds."""
        return bool(self.heap) or self.code in "LXA" or self.scale is not None

    @cached_property
    def line(self) -> tuple[int, ...]:
        """Return what gathering needs to know: at, width, count, sign, and flip, mask and limit of the null rule.

        An item is null if ``((item ^ flip) & mask) > limit``, which needs no branch: without its sign, a NaN's bits lie above
        those of infinity, and of all integers only the null one, its zeros flipped, is ones throughout.
        """
        ones = (1 << 8 * self.width) - 1
        place = (self.at, self.width, self.count)
        if self.heap:
            return *place, 0, 0, 0, 0
        if self.stored.kind == "f":
            return *place, 0, 0, ones >> 1, 0x7F800000 if self.width == 4 else 0x7FF0000000000000
        return (*place, self.sign, 0, 0, 0) if self.null is None else (*place, self.sign, ~self.null & ones, ones, ones - 1)


@dataclass(frozen=True)
class Layout:
    """A binary table as its header describes it; ``heap_at`` counts from the start of the data."""

    fields: dict[str, Field]
    schema: Schema
    rows: int
    row_bytes: int
    heap_at: int
    data_bytes: int
    digest: str
    keywords: dict[str, object]


@lru_cache(maxsize=64)
def table_layout(raw: bytes) -> Layout:
    """Parse a table's header; files of one schema often share every byte of it."""
    header = parse_header(raw)
    _check_kind(header)
    row_bytes, rows, size = header.integer("NAXIS1"), header.integer("NAXIS2"), data_bytes(raw)
    found = header.integer("TFIELDS")
    if found > 999:
        raise ValueError(f"TFIELDS is {found}, at most 999 columns are allowed")
    fields: list[Field] = []
    at = 0
    for n in range(1, found + 1):
        field = _field(header, n, at)
        at += field.width * field.count
        fields.append(field)
    if at != row_bytes:
        raise ValueError(f"NAXIS1 is {row_bytes}, its {found} columns take {at} bytes: the header is corrupt")
    if not 0 < row_bytes <= MAX_BLOCK:
        raise ValueError(f"NAXIS1 is {row_bytes}, rows of 1 to {MAX_BLOCK} bytes can be read")
    for name, times in Counter(field.column.name for field in fields).items():
        if times > 1:
            raise ValueError(f"column {name!r} is there {times} times: rename all but one (TTYPE)")
    heap_at = header.integer("THEAP", rows * row_bytes) if any(field.heap for field in fields) else rows * row_bytes
    if not rows * row_bytes <= heap_at <= size:
        raise ValueError(f"THEAP is {heap_at}, a place behind the rows from {rows * row_bytes} to {size} is needed")
    fields = [field for field in fields if field.count]
    schema = Schema(tuple(field.column for field in fields))
    digest = hashlib.sha256(raw).hexdigest()
    by_name = {field.column.name: field for field in fields}
    return Layout(by_name, schema, rows, row_bytes, heap_at, size, digest, dict(header.values))


def _check_kind(header: Header) -> None:
    """Refuse what is not a plain binary table, and say what it is and what to do."""
    kind = header.text("XTENSION") or "IMAGE"
    if header.values.get("ZIMAGE") is True:
        raise ValueError("a compressed image, not a binary table; give the number of the HDU that holds the table")
    if kind not in ("BINTABLE", "A3DTABLE"):
        raise ValueError(f"a unit of kind {kind}, not a binary table; give the number of the HDU that holds the table")
    for keyword, needed in (("BITPIX", 8), ("NAXIS", 2), ("GCOUNT", 1)):
        if (value := header.values.get(keyword, 1)) != needed:
            raise ValueError(f"{keyword} is {value!r}, a binary table has {needed}: the header is corrupt")


def _field(header: Header, n: int, at: int) -> Field:
    """Read the keywords of column ``n``, whose cells begin at byte ``at`` of each row."""
    name = header.text(f"TTYPE{n}").strip() or f"col{n}"
    try:
        return _parse_field(header, n, at, name)
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from error


def _parse_field(header: Header, n: int, at: int, name: str) -> Field:
    form = header.text(f"TFORM{n}")
    match = _TFORM.match(form.upper())
    if match is None:
        raise ValueError(f"TFORM{n} is {form!r}, which is no format of a binary table")
    repeat, code, heap = int(match[1] or 1), match[2], ""
    if repeat >= 8 * MAX_BLOCK:
        raise ValueError(f"TFORM{n} is {form!r}: a cell can have fewer than {8 * MAX_BLOCK} items")
    if code in "PQ":
        heap, code = code, match[3][:1]
        if code not in _WIDTHS or repeat > 1:
            raise ValueError(f"TFORM{n} is {form!r}: a descriptor is written 1{heap} and a code of {' '.join(_WIDTHS)}")
    shape, per = _shape(header.text(f"TDIM{n}"), match[3], code, repeat) if not heap else ((), 1)
    per = 2 if code in "CM" else per
    stored, dtype, sign, scale = _numbers(header, n, code)
    kind = pa.list_(dtype, 2) if code in "CM" else dtype
    if heap:
        width, count, items = (4 if heap == "P" else 8), 2 * repeat, 1
        kind = kind if code == "A" else pa.list_(kind) if heap == "P" else pa.large_list(kind)
    else:
        width, items = _WIDTHS[code], repeat // per if code == "A" else repeat
        count = -(-repeat // 8) if code == "X" else items * per
        kind = pa.list_(kind, items) if items > 1 else kind
    comment = header.text(f"TCOMM{n}") or header.comments.get(f"TTYPE{n}", "")
    column = Column(
        name,
        kind,
        unit=header.text(f"TUNIT{n}"),
        source_unit=header.text(f"TUNIT{n}"),
        ucd=next(filter(None, (header.text(f"{key}{n}") for key in ("TUCD", "TBUCD", "UCD__"))), ""),
        description="" if _BOILERPLATE.match(comment) else comment,
        shape=",".join(map(str, shape)),
    )
    null = _null(header, n, stored, sign) if code in "BIJK" else None
    return Field(column, column.to_field(), code, heap, at, width, count, stored, dtype, items, per, sign, scale, null)


def _shape(tdim: str, rest: str, code: str, repeat: int) -> tuple[tuple[int, ...], int]:
    """Return the shape of a cell in C order, and the number of characters of its strings.

    A TDIM that does not multiply to the repeat count says nothing that could be trusted, and is passed over.
    """
    digits = [part.strip() for part in tdim.strip().removeprefix("(").removesuffix(")").split(",")]
    shape = tuple(int(part) for part in reversed(digits)) if all(part.isdecimal() for part in digits) else ()
    if not repeat or math.prod(shape) != repeat:
        shape = ()
    if code != "A":
        return shape, 1
    if shape:
        return shape[:-1], shape[-1]
    width = int(rest) if rest.isdecimal() else 0  # rAw: substrings of w characters
    return ((), width) if 0 < width <= repeat and repeat % width == 0 else ((), max(repeat, 1))


def _numbers(header: Header, n: int, code: str) -> tuple[np.dtype[Any], pa.DataType, int, tuple[float, float] | None]:
    """Return the stored type, the Arrow type, the bits to flip, and the scaling, if there is one."""
    dtype = _DTYPES[code]
    stored = np.dtype(np.uint8) if code in "LXA" else np.dtype(dtype.to_pandas_dtype())
    scale, zero = header.values.get(f"TSCAL{n}", 1), header.values.get(f"TZERO{n}", 0)
    if code in "LXA" or (scale, zero) == (1, 0):
        return stored, dtype, 0, None
    for value in (scale, zero):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"TSCAL{n} and TZERO{n} are {scale!r} and {zero!r}, numbers are needed")
    if scale == 1 and (other := _OTHER_SIGN.get((code, zero))) is not None:
        return np.dtype(other.to_pandas_dtype()), other, 1 << (8 * _WIDTHS[code] - 1), None
    if code in "CM":
        raise ValueError(f"TSCAL{n} or TZERO{n} on complex numbers is not supported; remove the scaling")
    return stored, pa.float64(), 0, (float(scale), float(zero))  # type: ignore[arg-type]


def _null(header: Header, n: int, stored: np.dtype[Any], sign: int) -> int | None:
    """Return the stored integer that means null, as it reads once its sign is settled."""
    value = header.values.get(f"TNULL{n}")
    if value is None:
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"TNULL{n} is {value!r}, a whole number is needed")
    if sign:
        value += sign if stored.kind == "u" else -sign
    limits = np.iinfo(stored)
    return value if limits.min <= value <= limits.max else None  # out of range: no item can equal it
