"""`write_table`: the result of any lazy verb as one file, partition by partition."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import dask
import pyarrow as pa
from dask.system import CPU_COUNT

from scalable.catalog.catalog import Catalog
from scalable.io.export import check_target, write_tables
from scalable.io.remote import local_place


def write_table(catalog: Catalog, path: str | Path, *, overwrite: bool = False) -> int:
    """Compute a catalogue and write it as one file with its units; a few partitions are in memory at a time.

    Parameters
    ----------
    catalog : Catalog
        The result of any verb.
    path : str or Path
        The ending says the format: ``.parquet``, ``.fits``, ``.vot`` or ``.xml`` (VOTable), ``.ecsv``, ``.csv`` (no units).
    overwrite : bool
        Whether a file that is there may be replaced.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    StoreError
        If the file exists already or its ending is unknown, before anything is computed.
    ColumnError
        If the format cannot hold a column.
    """
    path = local_place(path)
    check_target(path, overwrite=overwrite)
    return write_tables(_tables(catalog), catalog.schema, path, overwrite=overwrite)


def _tables(catalog: Catalog) -> Iterator[pa.Table]:
    parts = [replace(catalog, partitions=(partition,)) for partition in catalog.partitions]
    for first in range(0, len(parts), CPU_COUNT):
        yield from dask.compute(*parts[first : first + CPU_COUNT])
