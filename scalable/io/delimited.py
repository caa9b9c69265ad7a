"""Tables in delimited text: CSV, columns between blanks below a # header, and ECSV; compressed with gzip or not.

======  ===========================================  =================================================  =======================
format  names                                        cells                                              lines with #
======  ===========================================  =================================================  =======================
csv     the first line (or the # line before rows    between commas; if the line of names has none,     passed over only before
        with numbers)                                then ``;``, tab or ``|``                           the rows
text    the last # line before the rows, or the      between runs of blanks and tabs                    passed over
        first line; col1, col2, … if neither has
        as many words as the rows
ecsv    its header, with types, units, descriptions  as the header says                                 passed over
======  ===========================================  =================================================  =======================

Any cell may stand in double quotes, and then hold delimiters, line ends, and quotes written twice. An empty cell is null, quoted
or not. In a column of numbers or logicals so are, in any case, ``nan``, ``na``, ``n/a``, ``null``, ``none`` and one to three
dashes; in a column of text those are text. Where no types are stated, the rows in the first MB settle them for the whole file.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import pyarrow as pa

from scalable.errors import ColumnError, InputError, nearest
from scalable.io.delimited_header import Layout, infer, read_layout
from scalable.io.ecsv_header import EcsvColumn
from scalable.io.reader import Hash, Source, TableInfo, TableReader
from scalable.io.stream import ByteStream, open_stream
from scalable.io.text_cells import Bytes, CellError, Cells, RecordError, count, split

_HEAD = 1 << 20  # what is read to learn names and types
_LONGEST_RECORD = 1 << 26
_MAX_BLOCK = 1 << 28  # so that positions in a block fit 32 bits
_COUNT_BLOCK = 1 << 22

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class DelimitedTable(TableReader):
    """Reads delimited text (`TableReader`).

    Attributes
    ----------
    kind : str
        ``csv``, ``text`` or ``ecsv``.
    """

    kind: str = "csv"

    def describe(self, source: Source) -> TableInfo:
        """Read the header, infer types from the first rows, and count all rows; ``bytes`` are those of the rows' text."""
        with open_stream(source.path) as stream:
            text = _Text(stream, self.kind)
            layout, rows = text.layout, sum(text.walk(_COUNT_BLOCK, text.count))
        return TableInfo(layout.schema, rows, text.done, layout.digest, dict(layout.meta))

    def scan(
        self, source: Source, *, columns: Sequence[str] | None = None, block_bytes: int = 1 << 26, digest: Hash | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows in file order, of ``columns`` in the order given, in blocks of about ``block_bytes`` of text.

        With ``digest``, every byte of the file has been fed to it once the iterator is exhausted. A table without rows yields
        one empty block.

        Raises
        ------
        InputError
            If the file is missing, cut, corrupt or no such table, or a value is not of its column's type.
        ColumnError
            If a column does not exist.
        """
        with open_stream(source.path, digest) as stream:
            text = _Text(stream, self.kind)
            wanted = _wanted(source.path, text.layout, columns)
            schema = pa.schema([column.column.to_field() for _, column in wanted])
            empty = True
            for cells in text.walk(block_bytes, text.split):
                if len(cells):
                    yield pa.Table.from_arrays([_array(text, cells, n, column) for n, column in wanted], schema=schema)
                    empty = False
            if empty:
                yield schema.empty_table()


def _wanted(path: str, layout: Layout, columns: Sequence[str] | None) -> list[tuple[int, EcsvColumn]]:
    """Return number and column of each name, in the order given."""
    places = {column.column.name: (n, column) for n, column in enumerate(layout.columns)}
    for name in columns or ():
        if name not in places:
            raise ColumnError(f"{path}: no column {name!r}; {nearest(name, places)}")
    return [places[name] for name in (places if columns is None else columns)]


def _array(text: _Text, cells: Cells, n: int, column: EcsvColumn) -> pa.Array:
    """Convert one column of a block."""
    dtype = column.column.dtype
    try:
        if pa.types.is_nested(dtype):
            return column.decode(cells.text(n, False))
        return cells.values(n, dtype)
    except CellError as error:
        value = cells.text(n, False)[error.index].as_py()
        shown = repr(value if len(value) <= 60 else value[:60] + "…")
        if text.layout.declared:
            advice = f"is not {dtype}, as the header says; correct the cell or the header's datatype"
        else:
            advice = (
                f"does not fit {dtype}, which the rows in the first {_HEAD} bytes are; write the table as ECSV, whose header "
                "states types"
            )
        where = f"{text.stream.path}: line {text.line_at(cells.start(error.index))}, column {column.column.name!r}"
        raise InputError(f"{where}: {shown} {advice}") from error


class _Text:
    """The rows of an open file as text: a window that moves over whole records to the end."""

    def __init__(self, stream: ByteStream, kind: str) -> None:
        self.stream = stream
        self.done = 0  # bytes of rows before the window
        head = stream.read(_HEAD)
        self._ended = len(head) < _HEAD
        try:
            self.layout = read_layout(head, kind, self._ended)
        except ValueError as error:
            raise InputError(f"{stream.path}: {error}") from error
        self._line = self.layout.line
        self._window = memoryview(head)[self.layout.data_at :]
        self._end_last_line()
        if not self.layout.declared:
            samples = self.walk(len(self._window), self.split)
            sample = next((cells for cells in samples if len(cells)), None)
            self.layout = infer(self.layout, sample)

    def walk(self, size: int, work: Callable[[Bytes], tuple[_Result, int]]) -> Iterator[_Result]:
        """Yield what ``work`` makes of each stretch of about ``size`` bytes.

        It is given bytes that begin with a record, and returns its result and where the last whole record ends. While the result
        is in use, positions in these bytes mean something to `line_at`.
        """
        size = view = max(1, min(size, _MAX_BLOCK))
        while True:
            self._read(view)
            if not self._window:
                return
            result, end = work(np.frombuffer(self._window[:view], np.uint8))
            if end:
                yield result
                self._line = self.line_at(end)
                self.done += end
                self._window = self._window[end:]
                view = size
            elif view < len(self._window) or not self._ended:
                if view > _LONGEST_RECORD:
                    raise InputError(f"{self._where(0)}: no row ends in {_LONGEST_RECORD} bytes: is a quote not closed?")
                view *= 2
            else:
                raise InputError(f"{self._where(0)}: quotes are opened and not closed up to the end of the file; close them")

    def split(self, part: Bytes) -> tuple[Cells, int]:
        """Find the cells of the whole records, and where the last one ends."""
        layout = self.layout
        try:
            cells, end = split(part, len(layout.columns), layout.delimiter, layout.comment)
        except RecordError as error:
            raise InputError(f"{self._where(error.at)}: {error}; correct the line, or quote what holds a delimiter") from error
        self._check_text(bytes(self._window[:end]))
        return cells, end

    def count(self, part: Bytes) -> tuple[int, int]:
        """Count whole records, and say where the last one ends."""
        return count(part, self.layout.delimiter, self.layout.comment)

    def line_at(self, at: int) -> int:
        """Return the number of the line that holds a byte."""
        return self._line + bytes(self._window[:at]).count(b"\n")

    def _where(self, at: int) -> str:
        return f"{self.stream.path}: line {self.line_at(at)}"

    def _read(self, size: int) -> None:
        missing = size - len(self._window)
        if missing <= 0 or self._ended:
            return
        piece = self.stream.read(missing)
        self._window = memoryview(bytes(self._window) + piece)
        self._ended = len(piece) < missing
        self._end_last_line()

    def _end_last_line(self) -> None:
        if self._ended and self._window and self._window[-1] != ord("\n"):
            self._window = memoryview(bytes(self._window) + b"\n")

    def _check_text(self, text: bytes) -> None:
        """Refuse what is not text: Arrow takes its strings on trust."""
        if text.isascii() and b"\0" not in text:
            return
        try:
            text.decode()
        except UnicodeDecodeError as error:
            raise InputError(f"{self._where(error.start)}: not UTF-8; convert the file, for example with iconv") from error
        if (at := text.find(b"\0")) >= 0:
            raise InputError(f"{self._where(at)}: a NUL byte: this is no text file, or it is corrupt; fetch it again")
