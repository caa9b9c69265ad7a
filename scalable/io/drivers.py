"""Which reader reads which format."""

from __future__ import annotations

from scalable.errors import SurveyError, nearest
from scalable.io.fits_table import FitsTable
from scalable.io.reader import TableReader

_READERS: dict[str, type[FitsTable]] = {"fits": FitsTable}


def reader_for(name: str) -> TableReader:
    """Return a reader for the format that ``files.format`` names."""
    try:
        return _READERS[name]()
    except KeyError:
        raise SurveyError(f"files.format: {name!r} is no format we read; {nearest(name, _READERS)}") from None
