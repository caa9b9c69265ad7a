"""Reading a survey's FITS tables: the 18 real tables of the sample, all columns and three of them; cache warm."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from astropy.table import Table
from astropy.units import UnitsWarning

from benchmarks.measure import DATA, Measured, compare
from scalable.io.fits_table import FitsTable
from scalable.io.reader import Source

COLUMNS = ["Flux1", "dFlux1", "Mag1"]


def run() -> list[Measured]:
    """Compare with astropy and with merely reading the bytes."""
    warnings.simplefilter("ignore", UnitsWarning)
    paths = sorted((DATA / "vvv").glob("*.fits"))
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    reader = FitsTable()
    for path in paths:
        check(reader, path)
    buffers = {path: bytearray(path.stat().st_size) for path in paths}

    def ours(columns: list[str] | None) -> None:
        for path in paths:
            for _ in reader.scan(Source(str(path)), columns=columns):
                pass

    def astropy(columns: list[str] | None) -> None:
        for path in paths:
            table = Table.read(path)
            for name in columns or table.colnames:
                np.asarray(table[name])

    def only_bytes() -> None:
        for path, buffer in buffers.items():
            with path.open("rb", buffering=0) as file:
                file.readinto(buffer)

    limit = "reading the same bytes"
    every = {"scalable": lambda: ours(None), "astropy Table.read": lambda: astropy(None), limit: only_bytes}
    three = {"scalable": lambda: ours(COLUMNS), "astropy Table.read": lambda: astropy(COLUMNS), limit: only_bytes}
    return [
        *compare(f"read {len(paths)} tables, all columns", every, megabytes=megabytes),
        *compare(f"read {len(paths)} tables, 3 columns", three, megabytes=megabytes),
    ]


def check(reader: FitsTable, path: Path) -> None:
    """Assert that both readers give the same values before either is timed."""
    theirs = Table.read(path)
    for block in reader.scan(Source(str(path))):
        assert block.column_names == theirs.colnames
        for name in theirs.colnames:
            mine = block[name].to_numpy()
            assert np.array_equal(mine, np.ma.filled(theirs[name], np.nan), equal_nan=mine.dtype.kind == "f"), (path, name)
