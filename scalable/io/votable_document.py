"""What the parser of a VOTable hands over: columns of one table, then its cells, row by row or as a binary stream."""

from __future__ import annotations

import binascii
import hashlib
from collections import Counter
from collections.abc import Sequence
from typing import Any, NoReturn
from xml.parsers import expat

import numpy as np
import pyarrow as pa
from numba import njit

from scalable.errors import InputError
from scalable.io.text_cells import CellError
from scalable.io.votable_fields import VoField, vo_field

_DEEPEST = 100
_BINARY2 = "write the table as BINARY2"
_BLANKS = b" \t\r\n"
_LONGEST_CELL = 1 << 26


class Document:
    """The handlers of one parse: they keep what stands in the wanted table, as far as it is parsed and not taken.

    Attributes
    ----------
    parser : expat parser
        Whose handlers these are.
    fields : list of VoField
        The columns; empty until the data begin.
    rows : int
        How many were taken.
    declared_rows : int or None
        What the table's ``nrows`` says.
    keywords : dict
        Values of INFO and PARAM elements by name.
    digest : hash
        Of all elements of the table before its data.
    """

    def __init__(self, path: str, number: int) -> None:
        self.fields: list[VoField] = []
        self.rows = 0
        self.declared_rows: int | None = None
        self.keywords: dict[str, object] = {}
        self.digest = hashlib.sha256()
        self._path, self._number, self._seen = path, number, 0
        self._stack: list[str] = []
        self._field: dict[str, str] | None = None  # of the FIELD that is open
        self._declared: list[tuple[dict[str, str], str, str]] = []
        self._table: list[str] | None = None  # the stack at the wanted TABLE, while it is open
        self._kind = ""  # TABLEDATA, BINARY or BINARY2, once it has begun
        self._in_rows = False  # within TABLEDATA of the wanted table
        self._text: list[str] | None = None  # what a TD, STREAM or DESCRIPTION holds, while one is open
        self._cells: list[str] = []
        self._row_at = 0  # first of the open row's cells
        self._code = b""  # base64 that is no group of four yet
        self._bytes = b""  # decoded and not yet taken
        self._padded = False
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.buffer_size = 1 << 16
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._characters
        self.parser.StartDoctypeDeclHandler = self._refuse_doctype
        self.parser.EntityDeclHandler = self._refuse_doctype

    def no_table(self) -> str:
        """Say why there are no columns at the end of the document."""
        if self.keywords.get("QUERY_STATUS") == "ERROR":
            return "no table: the service answered with an error (INFO QUERY_STATUS); look into the file and repeat the query"
        return f"table {self._number} does not exist: the document holds {self._seen} (they count from 1)"

    def take(self, wanted: Sequence[int]) -> list[pa.Array]:
        """Return the whole rows that were parsed since the last time, as the columns ``wanted``."""
        if self._kind in ("", "TABLEDATA"):
            rows = self._row_at // max(len(self.fields), 1)
            arrays = [self._from_text(n, rows) for n in wanted]
            del self._cells[: self._row_at]
            self._row_at = 0
        else:
            rows, arrays = self._from_bytes(wanted)
        self.rows += rows
        return arrays

    def _from_text(self, n: int, rows: int) -> pa.Array:
        cells = self._cells[n : self._row_at : len(self.fields)]
        try:
            return self.fields[n].from_text(pa.array(cells, pa.string()))
        except CellError as error:
            self._refuse_cell(n, self.rows + error.index, repr(cells[error.index][:60]))

    def _refuse_cell(self, n: int, row: int, value: str) -> NoReturn:
        field = self.fields[n]
        raise InputError(
            f"{self._path}: row {row}, column {field.column.name!r}: {value} is not {field.column.dtype} as the FIELD says; "
            "correct the cell or the FIELD's datatype and arraysize"
        )

    def _from_bytes(self, wanted: Sequence[int]) -> tuple[int, list[pa.Array]]:
        self._decode()
        raw, fields = np.frombuffer(self._bytes, np.uint8), self.fields
        flag_bytes = (len(fields) + 7) // 8 if self._kind == "BINARY2" else 0
        kinds = np.array([(f.item_bytes, -f.step if f.count is None else f.count, f.datatype == "bit") for f in fields])
        sizes = [4 if f.count is None else _cell_bytes(f, f.count) for f in fields]
        least = flag_bytes + sum(sizes)
        spans = np.empty((len(fields), len(raw) // least + 1, 2), np.int64)
        rows, end, wrong = _walk(raw, flag_bytes, kinds, spans, _LONGEST_CELL)
        if wrong >= 0:
            self._refuse_cell(wrong, self.rows + rows, f"an array of more than {_LONGEST_CELL} bytes")
        arrays = []
        for n in wanted:
            starts, counts = spans[n, :rows, 0], spans[n, :rows, 1]
            lengths = _cell_bytes(fields[n], counts)
            cells = np.empty(int(lengths.sum()), np.uint8)
            _gather(raw, starts, lengths, cells)
            valid = np.ones(rows, np.bool_)
            if flag_bytes:
                first = spans[0, :rows, 0] - (4 if fields[0].count is None else 0) - flag_bytes
                valid = raw[first + n // 8] >> (7 - n % 8) & 1 == 0
            try:
                arrays.append(fields[n].from_bytes(cells, counts, valid))
            except ValueError as error:
                self._refuse_cell(n, self.rows, f"text in rows from there ({error})")
        self._bytes = self._bytes[end:]
        if self._bytes and self._text is None:
            self._fail(
                f"the binary stream ends {len(self._bytes)} bytes into row {self.rows + rows}: truncated", "fetch the file again"
            )
        return rows, arrays

    def _decode(self) -> None:
        """Decode the base64 that has come in, as far as it comes in groups of four."""
        if self._text:
            try:
                self._code += "".join(self._text).encode("ascii").translate(None, _BLANKS)
            except UnicodeEncodeError as error:
                self._fail(f"the binary stream holds {error.object[error.start]!r}, which is not base64")
            self._text = []
        size = len(self._code) // 4 * 4
        if not size:
            return
        try:
            more = binascii.a2b_base64(self._code[:size], strict_mode=True)
        except binascii.Error as error:
            self._fail(f"the binary stream is not base64 ({error})")
        if self._padded:
            self._fail("the binary stream goes on behind the padding of base64")
        self._padded = len(more) % 3 > 0
        self._bytes += more
        self._code = self._code[size:]

    def _fail(self, what: str, advice: str = "correct it or fetch the file again") -> NoReturn:
        line, column = self.parser.CurrentLineNumber, self.parser.CurrentColumnNumber
        raise InputError(f"{self._path}: line {line}, column {column}: {what}; {advice}")

    def _refuse_doctype(self, *_: object) -> None:
        self._fail("a document type or entity declaration, which could expand without end", "delete it")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        name = name.rpartition(":")[2]
        if self._in_rows and name in ("TD", "TR"):
            if name == "TD":
                self._text = []
                if "encoding" in attributes:
                    self._fail("TD with an encoding, which is not read", _BINARY2)
            return
        if not self._stack and name != "VOTABLE":
            self._fail(f"not a VOTable: the document is {name!r:.40}", "give the format it has")
        if len(self._stack) >= _DEEPEST:
            self._fail(f"elements within elements, more than {_DEEPEST} deep", "this is no VOTable")
        self._stack.append(name)
        if name == "TABLE":
            self._seen += 1
            if self._seen == self._number:
                self._table = self._stack.copy()
                self._set_rows(attributes.get("nrows", ""))
        if name in ("INFO", "PARAM") and (self._table or self._seen < self._number) and attributes.get("name"):
            self.keywords.setdefault(attributes["name"], attributes.get("value", ""))
        if name == "INFO" and attributes.get("name") == "QUERY_STATUS" and self._seen <= self._number:
            self._check_status(attributes.get("value", ""))
        if self._table:
            self._start_inside(name, attributes)

    def _check_status(self, status: str) -> None:
        """Refuse what a service says it did not finish: it does so before its table, or behind it."""
        if status == "OVERFLOW":
            self._fail(
                "the service cut the result (INFO QUERY_STATUS is OVERFLOW)",
                "repeat the query with a larger MAXREC, or delete that INFO if the rows that are there will do",
            )
        if status == "ERROR" and self._seen:
            self._fail("the service broke off with an error (INFO QUERY_STATUS)", "look into the file and repeat the query")

    def _set_rows(self, text: str) -> None:
        if text:
            if not text.strip().isdecimal() or len(text) > 18:
                self._fail(f"nrows is {text!r:.40}, a whole number is needed")
            self.declared_rows = int(text)

    def _start_inside(self, name: str, attributes: dict[str, str]) -> None:
        """Deal with an element in the wanted table."""
        if not self.fields:
            self.digest.update(repr((name, sorted(attributes.items()))).encode())
        if name == "FIELD":
            self._declared.append((attributes, "", ""))
        elif name == "VALUES" and self._stack[-2] == "FIELD" and attributes.get("null"):
            field, _, description = self._declared[-1]
            self._declared[-1] = field, attributes["null"], description
        elif name == "DESCRIPTION" and self._stack[-2] == "FIELD":
            self._text = []
        elif name == "DATA":
            self._finish_header()
        elif name in ("TABLEDATA", "BINARY", "BINARY2", "FITS", "PARQUET") and self._stack[-2] == "DATA":
            if name in ("FITS", "PARQUET"):
                self._fail(f"the data are {name}, which is not read within a VOTable", _BINARY2)
            self._kind, self._in_rows = name, name == "TABLEDATA"
        elif name == "STREAM":
            if attributes.get("href") or attributes.get("encoding") != "base64":
                self._fail("STREAM that is not base64 within the document, which is not read", _BINARY2)
            self._text = []

    def _finish_header(self) -> None:
        if self.fields:
            self._fail("DATA a second time in one table")
        try:
            self.fields = [vo_field(said[0], said[1], said[2], n) for n, said in enumerate(self._declared, 1)]
        except ValueError as error:
            self._fail(str(error))
        for name, times in Counter(field.column.name for field in self.fields).items():
            if times > 1:
                self._fail(f"column {name!r} is there {times} times", "rename all but one FIELD")
        if not self.fields:
            self._fail("a table without FIELD")

    def _characters(self, text: str) -> None:
        if self._text is not None:
            self._text.append(text)

    def _end(self, name: str) -> None:
        name = name.rpartition(":")[2]
        if self._in_rows:
            if name == "TD":
                self._cells.append("".join(self._text or ()))
                self._text = None
                return
            if name == "TR":
                if (found := len(self._cells) - self._row_at) != len(self.fields):
                    self._fail(
                        f"row {self.rows + self._row_at // len(self.fields)} has {found} TD, {len(self.fields)} are needed"
                    )
                self._row_at = len(self._cells)
                return
            self._in_rows = name != "TABLEDATA"
        if self._table is not None:
            self._end_inside(name)
        self._stack.pop()

    def _end_inside(self, name: str) -> None:
        if name == "DESCRIPTION" and self._text is not None:
            field, null, _ = self._declared[-1]
            self._declared[-1] = field, null, "".join(self._text)
            self._text = None
        elif name == "STREAM":
            self._end_stream()
        elif name == "TABLE" and self._stack == self._table:
            if not self.fields:
                self._finish_header()
            self._table = None

    def _end_stream(self) -> None:
        self._decode()
        self._text = None
        if self._code:
            self._fail("the binary stream ends within a group of base64: truncated", "fetch the file again")


def _cell_bytes(field: VoField, counts: Any) -> Any:
    """Return the bytes of cells of so many items."""
    return (counts + 7) // 8 if field.datatype == "bit" else counts * field.item_bytes


@njit(cache=True, nogil=True)
def _walk(raw, flag_bytes, kinds, spans, longest):  # type: ignore[no-untyped-def]
    """Find the cells of whole rows: first byte and number of items of each.

    Return the number of rows, where the last one ends, and the column of a cell that is too long, or -1.
    """
    rows = end = 0
    while end < len(raw):
        at = end + flag_bytes
        for n in range(len(kinds)):
            size, count, is_bit = kinds[n]
            if count < 0:
                if at + 4 > len(raw):
                    return rows, end, -1
                stated = 0
                for byte in range(4):
                    stated = stated * 256 + int(raw[at + byte])
                count = -count * stated
                at += 4
            length = (count + 7) // 8 if is_bit else count * size
            if length > longest:
                return rows, end, n
            if at + length > len(raw):
                return rows, end, -1
            spans[n, rows, 0] = at
            spans[n, rows, 1] = count
            at += length
        rows += 1
        end = at
    return rows, end, -1


@njit(cache=True, nogil=True)
def _gather(raw, starts, sizes, out):  # type: ignore[no-untyped-def]
    """Copy the cells of a column one behind the other."""
    to = 0
    for row in range(len(starts)):
        for n in range(sizes[row]):
            out[to + n] = raw[starts[row] + n]
        to += sizes[row]
