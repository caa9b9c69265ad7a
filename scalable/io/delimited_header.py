"""What the first lines of delimited text say: names, and types that are declared (ECSV) or inferred from the first rows."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.compute as pc

from scalable.io.ecsv_header import EcsvColumn, ecsv_header
from scalable.io.text_cells import Cells
from scalable.schema import Column, Schema

_BOM = b"\xef\xbb\xbf"
_ECSV = re.compile(rb"# %ECSV \d")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-]?(nan|inf)", re.IGNORECASE)
_PART = re.compile(r'"((?:[^"]|"")*)"|\S+')


@dataclass(frozen=True)
class Layout:
    """A table as its first lines describe it.

    Attributes
    ----------
    columns : tuple of EcsvColumn
        In order; types and meaning are known only for ECSV before `infer`.
    delimiter : int
        The byte between cells, or a blank for any run of blanks and tabs.
    comment : bool
        Whether lines that begin with # are passed over.
    data_at, line : int
        The byte where the rows begin, and the number of that line.
    declared : bool
        Whether the file itself states the types.
    digest : str
        SHA-256 of all bytes before the rows.
    meta : dict
        What the header says of the table.
    """

    columns: tuple[EcsvColumn, ...]
    delimiter: int
    comment: bool
    data_at: int
    line: int
    declared: bool
    digest: str
    meta: dict[str, object] = field(default_factory=dict)

    @property
    def schema(self) -> Schema:
        """The columns that the table gives."""
        return Schema(tuple(column.column for column in self.columns))


@dataclass(frozen=True)
class _Line:
    text: str
    number: int
    at: int
    stop: int

    def names(self, delimiter: str) -> list[str]:
        """Split a header line as a row is split, without the # that may stand before it."""
        text = self.text.lstrip().lstrip("#").strip()
        if delimiter == " ":
            return [part[1].replace('""', '"') if part[1] is not None else part[0] for part in _PART.finditer(text)]
        try:
            return [part.strip() for part in next(csv.reader([text], delimiter=delimiter, skipinitialspace=True), [])]
        except csv.Error as error:
            raise ValueError(f"line {self.number}: this is no line of names ({str(error).split(' - ')[0]})") from error


def read_layout(head: bytes, kind: str, whole: bool) -> Layout:
    """Read names and, where declared, types from the first bytes of a file.

    Parameters
    ----------
    head : bytes
        The first bytes: the header must be among them.
    kind : str
        ``csv``, ``text`` or ``ecsv``. A file that begins with ``# %ECSV`` is read as ECSV in any case.
    whole : bool
        Whether the file has no more bytes.

    Raises
    ------
    ValueError
        Saying what is wrong and what to do.
    """
    comments, first = _header_lines(head, whole)
    if comments and _ECSV.match(head.removeprefix(_BOM)):
        return _ecsv(head, comments, first)
    if kind == "ecsv":
        raise ValueError("line 1: an ECSV file begins with `# %ECSV 1.0`; give the format csv or text, or write it as ECSV")
    if first is None and not comments:
        raise ValueError("the file is empty; a line with the names of the columns is needed")
    delimiter = " " if kind == "text" else _delimiter((first or comments[-1]).text)
    names, data_at, line = _names(kind, comments[-1] if comments else None, first, delimiter)
    _check_names(names, line)
    columns = tuple(EcsvColumn(Column(name, pa.null()), pa.null()) for name in names)
    digest = hashlib.sha256(head[:data_at]).hexdigest()
    meta: dict[str, object] = {"comments": [comment.text for comment in comments]} if comments else {}
    return Layout(columns, ord(delimiter), kind == "text", data_at, line, False, digest, meta)


def _header_lines(head: bytes, whole: bool) -> tuple[list[_Line], _Line | None]:
    """Return the leading lines that begin with #, and the first other one; blank lines are passed over."""
    comments: list[_Line] = []
    at, number = len(_BOM) if head.startswith(_BOM) else 0, 0
    while at < len(head):
        stop = head.find(b"\n", at) + 1
        if not stop and not whole:
            break
        stop, number = stop or len(head), number + 1
        raw = head[at:stop]
        if b"\0" in raw:
            raise ValueError(f"line {number}: a NUL byte: this is no text file; give the format it has")
        try:
            text = raw.decode().strip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"line {number}: not UTF-8 ({error.reason}); convert the file, for example with iconv") from error
        line = _Line(text, number, at, stop)
        if text.lstrip().startswith("#"):
            comments.append(line)
        elif text.strip():
            return comments, line
        at = stop
    if not whole:
        raise ValueError(f"no row in the first {len(head)} bytes: the header is too long")
    return comments, None


def _delimiter(text: str) -> str:
    """Return what stands between the names of a CSV header: a comma if there is one."""
    return next((mark for mark in ",;\t|" if mark in text), ",")


def _names(kind: str, comment: _Line | None, first: _Line | None, delimiter: str) -> tuple[list[str], int, int]:
    """Return the names, and byte and number of the line where the rows begin.

    The last line with # names the columns if it has as many words as the first row; else the first line without # does, if there
    is no number in it (but, without lines with #, some names may be whole numbers: years). A text without any such line gets
    neutral names: of a wrong line of names, nobody knows which is missing.
    """
    if first is None:
        return (_named(comment, delimiter), comment.stop, comment.number + 1) if comment else ([], 0, 1)
    cells = first.names(delimiter)
    numbers = sum(_NUMBER.fullmatch(cell) is not None for cell in cells)
    names = _named(comment, delimiter) if comment else []
    if len(names) == len(cells) and (kind == "text" or numbers):
        return names, first.at, first.number
    years = sum(cell.isdecimal() for cell in cells)
    if not numbers or (comment is None and numbers == years < len(cells)):
        return _named(first, delimiter), first.stop, first.number + 1
    if kind == "text":
        return [f"col{n}" for n in range(1, len(cells) + 1)], first.at, first.number
    have = f"line {comment.number} (with #) has {len(names)} of them" if comment else "there is no such line"
    raise ValueError(f"line {first.number}: a line with {len(cells)} names is needed before the first row; {have}; correct that")


def _named(line: _Line, delimiter: str) -> list[str]:
    return [name or f"col{n}" for n, name in enumerate(line.names(delimiter), 1)]


def _check_names(names: list[str], line: int) -> None:
    for name, times in Counter(names).items():
        if times > 1:
            raise ValueError(f"header before line {line}: column {name!r} is there {times} times: rename all but one")
        if not name.isprintable():
            raise ValueError(
                f"header before line {line}: column {name!r}: only printable characters make a name; old Mac line ends?"
            )


def _ecsv(head: bytes, comments: list[_Line], first: _Line | None) -> Layout:
    header = ecsv_header(tuple(line.text for line in comments[1:]))
    names = [column.column.name for column in header.columns]
    if first is None:
        raise ValueError(f"line {comments[-1].number}: the file ends behind the header: truncated; fetch it again")
    found = first.names(header.delimiter)
    if found != names:
        wrong = next((n for n, (a, b) in enumerate(zip(found, names, strict=False)) if a != b), min(len(found), len(names)))
        both = " and ".join(repr(part[wrong]) if wrong < len(part) else "nothing" for part in (names, found))
        raise ValueError(f"line {first.number}: the names differ from those of the header: column {wrong + 1} is {both}")
    _check_names(names, first.number + 1)
    digest = hashlib.sha256(head[: first.stop]).hexdigest()
    delimiter = ord(header.delimiter)
    return Layout(header.columns, delimiter, True, first.stop, first.number + 1, True, digest, header.meta)


def infer(layout: Layout, sample: Cells | None) -> Layout:
    """Settle the types that the file does not state, by the first rows of it (None if it has no rows).

    The first of these that holds all values: int64, uint64, float64 (but not whole numbers beyond 64 bits, which float64 would
    change), bool of true and false, string. A column without any value is float64.
    """
    types = [pa.float64() if sample is None else _type_of(sample, n) for n in range(len(layout.columns))]
    columns = [EcsvColumn(Column(c.column.name, dtype), dtype) for c, dtype in zip(layout.columns, types, strict=True)]
    return replace(layout, columns=tuple(columns))


def _type_of(cells: Cells, column: int) -> pa.DataType:
    text = cells.text(column, True).drop_null()
    if not len(text):
        return pa.float64()
    for dtype in (pa.int64(), pa.uint64(), pa.float64(), pa.bool_()):
        if all(_casts(part, dtype) for part in (text[:4], text)) and not (pa.types.is_float64(dtype) and _whole(text)):
            return dtype
    return pa.string()


def _casts(text: pa.Array, dtype: pa.DataType) -> bool:
    """Say whether all strings can be of a type."""
    try:
        pc.cast(text, dtype)
    except pa.ArrowInvalid:
        return False
    return True


def _whole(text: pa.Array) -> bool:
    """Say whether all strings are whole numbers; that the first one is not is soon known."""
    return all(pc.all(pc.match_substring_regex(part, r"^-?\d+$")).as_py() for part in (text[:1], text))
