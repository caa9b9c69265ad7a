"""Runs: the sorted pieces that ingest's map stage leaves for its reduce stage, and their small tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.errors import StoreError
from scalable.io.atomic import aside, write_text
from scalable.io.remote import Place


def write_arrow(table: pa.Table, path: Path) -> None:
    """Write a table atomically as one uncompressed Arrow IPC batch, so that slices of it can be read without a copy."""
    with aside(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())


def read_arrow(path: Path) -> pa.Table:
    """Map an Arrow IPC file of our own into memory; columns are read when they are touched."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(
            f"{path}: an intermediate file is missing or damaged ({error}); delete {path.parent} and rerun"
        ) from error


def ranges_of(run: pa.Table, key: str, ranges: NDArray[np.int64]) -> pa.Table:
    """Return the rows of a run sorted by ``key`` whose key lies in one of the half-open ``ranges``, shape (n, 2).

    They are copied: of a mapped run, pages around each slice of each column would stay in memory as long as a row is used, and
    add up over many runs.
    """
    keys = flat(run, key)
    if len(keys) == 0:
        return run
    near = (ranges[:, 1] > keys[0]) & (ranges[:, 0] <= keys[-1])
    first = np.searchsorted(keys, ranges[near, 0])
    last = np.searchsorted(keys, ranges[near, 1])
    pieces = [run.slice(a, b - a) for a, b in zip(first, last, strict=True) if b > a]
    batches = [batch for piece in pieces for batch in piece.to_batches()]
    return pa.Table.from_batches([pa.ipc.read_record_batch(batch.serialize(), run.schema) for batch in batches], run.schema)


def take_rows(table: pa.Table, index: NDArray[np.int64], *, nulls: bool = True) -> pa.Table:
    """Return rows of a table by index, as one chunk a column.

    Numbers go through NumPy, which gathers them several times faster than Arrow gathers from many chunks; a null among floats
    travels as NaN, which no stored column holds otherwise. Without ``nulls`` it stays so: in a run, whose rows are taken again.
    """
    columns = []
    for values in table.columns:
        if pa.types.is_floating(values.type) or (pa.types.is_integer(values.type) and values.null_count == 0):
            columns.append(pa.array(np.take(_joined(values), index), values.type, from_pandas=nulls))
        else:
            columns.append(values.combine_chunks().take(pa.array(index)))
    return pa.table(columns, schema=table.schema)


def _joined(values: pa.ChunkedArray) -> NDArray[Any]:
    chunks = [chunk.to_numpy(zero_copy_only=False) for chunk in values.chunks]
    return chunks[0] if len(chunks) == 1 else np.concatenate([np.zeros(0, values.type.to_pandas_dtype()), *chunks])


def flat(table: pa.Table, name: str) -> NDArray[Any]:
    """Return one column as a flat NumPy array, without a copy where it is one chunk; floats that are null are NaN."""
    return _joined(table[name])


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file atomically, with sorted keys: equal values give equal bytes."""
    write_text(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def read_json(path: Place) -> dict[str, Any]:
    """Read a JSON file of our own."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({error}); is this a store that ingest made?") from error
