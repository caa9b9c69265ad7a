"""The reader protocol: what every table format gives to ingest, and the fake that tests it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import pyarrow as pa

from scalable.errors import MissingInputError
from scalable.schema import Schema


@dataclass(frozen=True)
class Source:
    """One input table to read; cheap on the wire.

    Attributes
    ----------
    path : str
        Where the file is.
    hdu : int
        Extension number in a FITS file, or which TABLE of a VOTable; other formats ignore it.
    observation_id : int
        Row of the observation index that lists this file.
    field, band : str
        Field and filter of the observation.
    mjd : float
        Time of the observation [d].
    epoch : int
        Rank of this observation in time within its field and band, from 1.
    name : str
        Path of the file below the survey's root: what a store's records show.
    problem : str
        Why the file is to be set aside unread: it does not show its band or MJD. Empty for a good one.
    table : str
        Path of the table inside an HDF5 file; other formats ignore it.
    rows : tuple of int, optional
        First row to read and the one behind the last, as `CutReader.cut` gives them; by default all.
    """

    path: str
    hdu: int = 1
    observation_id: int = 0
    field: str = ""
    band: str = ""
    mjd: float = float("nan")
    epoch: int = 1
    name: str = ""
    problem: str = ""
    table: str = ""
    rows: tuple[int, int] | None = None


@dataclass(frozen=True)
class TableInfo:
    """What the headers alone say about one table.

    ``header_digest`` is the SHA-256 of the raw header bytes of the table's HDU; ``keywords`` are its parsed keys (first one
    wins where a key repeats) and, in FITS, those of the primary header that it has not; kept for checks and for keys of
    observations.
    """

    schema: Schema
    rows: int
    bytes: int
    header_digest: str
    keywords: dict[str, object] = field(default_factory=dict, compare=False)


class Hash(Protocol):
    """The part of a ``hashlib`` object that a reader feeds."""

    def update(self, data: bytes | memoryview, /) -> None:
        """Add the next bytes of the file."""


class TableReader(Protocol):
    """What a format must give: its headers, and its rows in blocks of native Arrow columns with nulls."""

    def describe(self, source: Source) -> TableInfo:
        """Read headers only."""

    def scan(
        self, source: Source, *, columns: Sequence[str] | None = None, block_bytes: int = 1 << 26, digest: Hash | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows in file order in blocks of about ``block_bytes`` of source.

        With ``digest``, every byte of the file has been fed to it once the iterator is exhausted. A table without rows yields
        one empty block.
        """


@runtime_checkable
class CutReader(Protocol):
    """What a format gives too whose rows can be read from the middle on."""

    def cut(self, source: Source, rows: int) -> list[Source]:
        """Return sources of about ``rows`` rows each, in file order and together the whole table."""


class FakeTable:
    """A reader over tables in memory, for tests: the path of a source is the key."""

    def __init__(self, tables: dict[str, pa.Table]) -> None:
        self._tables = tables

    def describe(self, source: Source) -> TableInfo:
        """Return the schema and the number of rows of the table that stands for the file."""
        table = self._find(source)
        return TableInfo(Schema.from_arrow(table.schema), table.num_rows, table.nbytes, _digest(table))

    def scan(
        self, source: Source, *, columns: Sequence[str] | None = None, block_bytes: int = 1 << 26, digest: Hash | None = None
    ) -> Iterator[pa.Table]:
        """Yield the table in blocks."""
        table = self._find(source)
        if digest is not None:
            digest.update(_digest(table).encode())
        if columns is not None:
            table = table.select(list(columns))
        rows = max(1, block_bytes * table.num_rows // max(table.nbytes, 1))
        for start in range(0, max(table.num_rows, 1), rows):
            yield table.slice(start, rows)

    def _find(self, source: Source) -> pa.Table:
        try:
            return self._tables[source.path]
        except KeyError:
            raise MissingInputError(f"{source.path}: no such file") from None


def _digest(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()
