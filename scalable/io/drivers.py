"""Which reader reads which format."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from scalable.errors import SurveyError, nearest
from scalable.io.delimited import DelimitedTable
from scalable.io.fits_table import FitsTable
from scalable.io.hdf5_table import Hdf5Table
from scalable.io.parquet_table import ParquetTable
from scalable.io.reader import TableReader
from scalable.io.votable import VOTable

_READERS: dict[str, Callable[[], TableReader]] = {
    "fits": FitsTable,
    "csv": partial(DelimitedTable, "csv"),
    "text": partial(DelimitedTable, "text"),
    "ecsv": partial(DelimitedTable, "ecsv"),
    "votable": VOTable,
    "parquet": ParquetTable,
    "hdf5": Hdf5Table,
}


def reader_for(name: str) -> TableReader:
    """Return a reader for the format that ``files.format`` names."""
    try:
        return _READERS[name]()
    except KeyError:
        raise SurveyError(f"files.format: {name!r} is no format we read; {nearest(name, _READERS)}") from None
