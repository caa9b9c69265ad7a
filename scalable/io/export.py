"""Answers as files that other tools read."""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from scalable.errors import StoreError
from scalable.io.atomic import aside, write_bytes


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet or CSV, by the ending of its name."""
    writers = {".parquet": pq.write_table, ".csv": pyarrow.csv.write_csv}
    if path.suffix not in writers:
        raise StoreError(f"{path}: no format for the ending {path.suffix!r}; choose {' or '.join(writers)}")
    sink = io.BytesIO()
    writers[path.suffix](table, sink)
    write_bytes(path, sink.getvalue())


def write_parquet(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> int:
    """Write tables, one in memory at a time, as one Parquet file, whole or not at all; return the number of rows."""
    rows = 0
    with aside(path) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        for table in tables:
            writer.write_table(table.cast(schema))
            rows += table.num_rows
    return rows
