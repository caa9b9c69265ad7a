"""`read_objects`: ids and positions from whatever holds them, as the table that a cube is cut around."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from scalable.catalog.catalog import open_catalog
from scalable.catalog.collection import open_collection
from scalable.io.drivers import format_of, reader_for
from scalable.io.reader import Source


def read_objects(path: str | Path, *, columns: Sequence[str] = ()) -> pa.Table:
    """Read ids and positions from a store, a HATS catalogue, or one table in a file; computes, on the scheduler in use.

    Parameters
    ----------
    path : str or Path
        A store, which stands for its objects; a HATS catalogue; or a FITS, CSV, ECSV, VOTable, text or Parquet file, which is
        read whole.
    columns : sequence of str
        Further columns of a store or catalogue.

    Returns
    -------
    pyarrow.Table
        With the names, types and roles that it has there.

    Raises
    ------
    InputError, StoreError, ColumnError
        If it is missing or damaged, or lacks a column.
    """
    path = Path(path)
    if path.is_dir():
        catalog = open_collection(path).objects if (path / "current").exists() else open_catalog(path)
        sky = [one.name for one in catalog.columns if one.name == "_healpix_29" or one.role in ("object_id", "ra", "dec")]
        found: pa.Table = catalog.select(*dict.fromkeys([*sky, *columns])).compute()
        return found
    name = "parquet" if path.suffix in (".parquet", ".parq") else format_of(path)
    return pa.concat_tables(reader_for(name).scan(Source(str(path))))
