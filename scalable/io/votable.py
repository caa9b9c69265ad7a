"""VOTable documents, parsed as they stream by: TABLEDATA, BINARY and BINARY2; compressed with gzip or not.

Document type declarations and entities are refused: nothing in a document is expanded, and nothing outside of it is opened.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from xml.parsers import expat

import pyarrow as pa

from scalable.errors import ColumnError, InputError, nearest
from scalable.io.reader import Hash, Source, TableInfo, TableReader
from scalable.io.stream import ByteStream, open_stream
from scalable.io.votable_document import Document
from scalable.schema import Schema

_PIECE = 1 << 18  # what is parsed, and then turned into Arrow columns, at a time
_LONGEST_TOKEN = 1 << 26


@dataclass(frozen=True)
class VOTable(TableReader):
    """Reads VOTables (`TableReader`).

    `Source.hdu` says which TABLE of the document: they count from 1, through all its resources. 0 is the first one, too.
    """

    def describe(self, source: Source) -> TableInfo:
        """Read the FIELDs of the table, and the whole document only if it does not state its ``nrows``.

        ``bytes`` are those of the file; the digest is that of the elements of the table before its data; ``keywords`` are its
        INFOs and PARAMs and those before it.
        """
        with open_stream(source.path) as stream:
            parse = _Parse(stream, source.hdu)
            parse.to_header()
            document = parse.document
            rows = document.declared_rows
            if rows is None:
                document.take([])
                while parse.step(_PIECE):
                    document.take([])
                rows = document.rows
        schema = Schema(tuple(field.column for field in document.fields))
        return TableInfo(schema, rows, stream.size, document.digest.hexdigest(), dict(document.keywords))

    def scan(
        self, source: Source, *, columns: Sequence[str] | None = None, block_bytes: int = 1 << 26, digest: Hash | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows in file order, of ``columns`` in the order given, in blocks of about ``block_bytes`` of source.

        With ``digest``, every byte of the file has been fed to it once the iterator is exhausted. A table without rows yields
        one empty block.

        Raises
        ------
        InputError
            If the file is missing, cut, corrupt or no VOTable, or has no such table.
        ColumnError
            If a column does not exist.
        """
        with open_stream(source.path, digest) as stream:
            parse = _Parse(stream, source.hdu)
            parse.to_header(max(block_bytes, 1))
            document = parse.document
            places = {field.column.name: n for n, field in enumerate(document.fields)}
            for name in columns or ():
                if name not in places:
                    raise ColumnError(f"{source.path}: no column {name!r}; {nearest(name, places)}")
            wanted = [places[name] for name in (places if columns is None else columns)]
            schema = pa.schema([document.fields[n].column.to_field() for n in wanted])
            empty = True
            for block in _blocks(parse, wanted, schema, max(block_bytes, 1)):
                yield block
                empty = False
            if empty:
                yield schema.empty_table()
        if document.declared_rows not in (None, document.rows):
            raise InputError(
                f"{source.path}: nrows says {document.declared_rows} rows, {document.rows} are there: fetch the file again"
            )


def _blocks(parse: _Parse, wanted: list[int], schema: pa.Schema, block_bytes: int) -> Iterator[pa.Table]:
    tables: list[pa.Table] = []
    size = parse.last
    while True:
        before = parse.document.rows
        arrays = parse.document.take(wanted)
        if parse.document.rows > before:
            tables.append(pa.Table.from_arrays(arrays, schema=schema))
        if tables and (size >= block_bytes or parse.ended):
            yield tables[0] if len(tables) == 1 else pa.concat_tables(tables).combine_chunks()
            tables, size = [], 0
        if not parse.step(min(_PIECE, block_bytes)):
            return
        size += parse.last


class _Parse:
    """The XML parser on its way through an open file."""

    def __init__(self, stream: ByteStream, hdu: int) -> None:
        if hdu < 0:
            raise InputError(f"{stream.path}: table {hdu} does not exist: tables count from 1 (0 is the first one, too)")
        self.stream = stream
        self.document = Document(stream.path, max(hdu, 1))
        self.ended = False
        self.last = 0  # bytes of the last step
        self._fed = 0

    def to_header(self, size: int = _PIECE) -> None:
        """Parse until the columns are known."""
        while not self.document.fields:
            if not self.step(min(_PIECE, size)):
                raise InputError(f"{self.stream.path}: {self.document.no_table()}")

    def step(self, size: int) -> bool:
        """Parse some bytes; False if there were none left."""
        if self.ended:
            return False
        piece = self.stream.read(size)
        self.ended = len(piece) < size
        self.last = len(piece)
        self._fed += len(piece)
        parser = self.document.parser
        try:
            parser.Parse(piece, self.ended)
        except InputError:
            raise
        except expat.ExpatError as error:
            cut = " (or the file was cut)" if self.ended else ""
            raise InputError(
                f"{self.stream.path}: line {error.lineno}, column {error.offset}: not well-formed XML: "
                f"{expat.ErrorString(error.code)}{cut}; fetch the file again"
            ) from error
        except (ValueError, LookupError) as error:
            raise InputError(f"{self.stream.path}: the XML cannot be decoded ({error}); convert it to UTF-8") from error
        if self._fed - parser.CurrentByteIndex > _LONGEST_TOKEN:
            raise InputError(f"{self.stream.path}: a tag longer than {_LONGEST_TOKEN} bytes: corrupt; fetch the file again")
        return True
