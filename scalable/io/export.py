"""Answers as files that other tools read."""

from __future__ import annotations

import io
from pathlib import Path

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from scalable.errors import StoreError
from scalable.io.atomic import write_bytes


def write_table(table: pa.Table, path: Path) -> None:
    """Write a table as Parquet or CSV, by the ending of its name."""
    writers = {".parquet": pq.write_table, ".csv": pyarrow.csv.write_csv}
    if path.suffix not in writers:
        raise StoreError(f"{path}: no format for the ending {path.suffix!r}; choose {' or '.join(writers)}")
    sink = io.BytesIO()
    writers[path.suffix](table, sink)
    write_bytes(path, sink.getvalue())
