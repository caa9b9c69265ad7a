"""Answers as files that other tools read, with units, UCDs and descriptions where the format has a place for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalable.errors import ColumnError, StoreError
from scalable.io.atomic import aside
from scalable.io.export_fits import write_fits
from scalable.io.export_text import write_csv, write_ecsv
from scalable.io.export_votable import write_votable
from scalable.io.parquet import with_votable

Tables = Iterable[pa.Table]


def write_tables(tables: Tables, schema: pa.Schema, path: Path, *, overwrite: bool = False) -> int:
    """Write tables of one schema, one after the other, into a file; only one of them is in memory at a time.

    The file appears in one rename when it is whole.

    Parameters
    ----------
    tables : iterable of pyarrow.Table
        Made as they are asked for.
    schema : pyarrow.Schema
        Columns with their meaning as field metadata.
    path : Path
        The format goes by the ending: ``.parquet``, ``.fits``, ``.vot`` or ``.xml`` (VOTable), ``.ecsv``, ``.csv``.
    overwrite : bool
        Whether a file that is there may be replaced.

    Returns
    -------
    int
        Rows written.

    Raises
    ------
    StoreError
        If there is no format for the ending, the file exists already or cannot be written.
    ColumnError
        If the format cannot hold a column; names it.
    """
    check_target(path, overwrite=overwrite)
    if path.suffix.lower() not in (".parquet", ".pq"):
        for field in schema:
            if pa.types.is_nested(field.type) and not _is_plain_list(field.type):
                raise ColumnError(f"{path}: only .parquet holds columns like {field.name} ({field.type}); select others")
    rows = 0

    def counted() -> Tables:
        nonlocal rows
        for table in tables:
            rows += table.num_rows
            yield table.cast(schema)

    with aside(path) as temporary:
        WRITERS[path.suffix.lower()](counted(), schema, temporary)
    return rows


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise where nothing can be written under a name, before anything is computed for it.

    Raises
    ------
    StoreError
        If there is no format for the ending, or a file is there and may not be replaced.
    """
    if path.suffix.lower() not in WRITERS:
        raise StoreError(f"{path}: no format for the ending {path.suffix!r}; choose {', '.join(WRITERS)}")
    if path.exists() and not overwrite:
        raise StoreError(f"{path}: exists already; choose another name, or say that it may be replaced (--force)")


def write_parquet(tables: Tables, schema: pa.Schema, path: Path) -> None:
    """Write Parquet with the meaning of columns as VOParquet and as Arrow field metadata."""
    with pq.ParquetWriter(path, with_votable(schema), compression="zstd") as writer:
        for table in tables:
            writer.write_table(table)


def _is_plain_list(dtype: pa.DataType) -> bool:
    is_list = pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)
    return is_list and not pa.types.is_nested(dtype.value_type)


WRITERS: dict[str, Callable[[Tables, pa.Schema, Path], None]] = {
    ".parquet": write_parquet,
    ".pq": write_parquet,
    ".fits": write_fits,
    ".fit": write_fits,
    ".vot": write_votable,
    ".xml": write_votable,
    ".ecsv": write_ecsv,
    ".csv": write_csv,
}
"""The writer of each format, by the ending of the file."""
