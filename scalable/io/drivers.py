"""Which reader reads which format."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pyarrow as pa

from scalable.errors import InputError, SurveyError, nearest
from scalable.io.delimited import DelimitedTable
from scalable.io.fits_table import FitsTable
from scalable.io.hdf5_table import Hdf5Table
from scalable.io.parquet_table import ParquetTable
from scalable.io.reader import CutReader, Hash, Source, TableInfo, TableReader
from scalable.io.regular import open_regular
from scalable.io.remote import local_copy, local_head
from scalable.io.votable import VOTable
from scalable.survey.root import is_remote

_READERS: dict[str, Callable[[], TableReader]] = {
    "fits": FitsTable,
    "csv": partial(DelimitedTable, "csv"),
    "text": partial(DelimitedTable, "text"),
    "ecsv": partial(DelimitedTable, "ecsv"),
    "votable": VOTable,
    "parquet": ParquetTable,
    "hdf5": Hdf5Table,
}


@dataclass(frozen=True)
class AnyPlace:
    """Reads tables of one format from this machine and, each by a temporary copy, from servers (`TableReader`)."""

    reader: TableReader
    headers_first: bool = False
    """Whether headers lie before the data; then only the begin of an object on a server is fetched for them."""

    def describe(self, source: Source) -> TableInfo:
        """Read headers only; of an object on a server that is all of it, unless they stand near its begin."""
        if self.headers_first and is_remote(source.path):
            # Zeros are in no header: where the begin is not enough, the reader says so.
            with suppress(InputError), local_head(source.path) as here:
                return self.reader.describe(replace(source, path=here))
        with local_copy(source.path) as here:
            return self.reader.describe(replace(source, path=here))

    def scan(
        self, source: Source, *, columns: Sequence[str] | None = None, block_bytes: int = 1 << 26, digest: Hash | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows in file order, as the reader of the format does."""
        with local_copy(source.path) as here:
            yield from self.reader.scan(replace(source, path=here), columns=columns, block_bytes=block_bytes, digest=digest)

    def cut(self, source: Source, rows: int) -> list[Source]:
        """Return sources of about so many rows each, or the source alone where its format, or its place, has to be read whole."""
        if is_remote(source.path) or not isinstance(self.reader, CutReader):
            return [source]
        return self.reader.cut(source, rows)


def reader_for(name: str) -> AnyPlace:
    """Return a reader for the format that ``files.format`` names."""
    try:
        return AnyPlace(_READERS[name](), headers_first=name == "fits")
    except KeyError:
        raise SurveyError(f"files.format: {name!r} is no format we read; {nearest(name, _READERS)}") from None


_OTHERS = {b"PAR1": "Parquet", b"\x89HDF": "HDF5"}


def format_of(path: Path) -> str:
    """Return the format that the first bytes of a file, compressed with gzip or not, and its name speak for."""
    with os.fdopen(open_regular(str(path), "table"), "rb") as file:
        begin = file.read(4096)
        if begin.startswith(b"\x1f\x8b"):
            file.seek(0)
            try:
                begin = gzip.GzipFile(fileobj=file).read(4096)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{path}: its gzip compression is damaged ({error}); fetch it again") from error
    for magic, name in _OTHERS.items():
        if begin.startswith(magic):
            raise InputError(f"{path}: is {name}, which is not read yet; files.format can be {', '.join(_READERS)}")
    if begin.startswith(b"SIMPLE  ="):
        return "fits"
    text = begin.decode("utf-8", "replace").lstrip("\ufeff \r\n")
    if text.startswith("<"):
        return "votable"
    if text.startswith("# %ECSV"):
        return "ecsv"
    if "\0" in text:
        raise InputError(f"{path}: is no table that we know; files.format can be {', '.join(_READERS)}")
    first = next((line for line in text.splitlines() if line.strip() and not line.startswith("#")), "")
    return "csv" if ".csv" in path.suffixes or "," in first else "text"
