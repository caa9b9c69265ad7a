"""Rows as fixed records of bytes, as FITS and VOTable hold them: kept aside once, to learn how wide their columns are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

BLOCK_ROWS = 65_536


@dataclass
class Facts:
    """What is known of a column's values once all have been seen.

    Attributes
    ----------
    nulls : int
        Number of nulls.
    low, high : int
        Extremes of integers, and of the lengths of lists.
    total : int
        Values in all lists together.
    width : int
        Bytes of the longest text in UTF-8, and at least 1.
    ascii : bool
        Whether all texts are ASCII.
    """

    nulls: int = 0
    low: int = 2**64
    high: int = -(2**64)
    total: int = 0
    width: int = 1
    ascii: bool = True

    def see(self, values: pa.ChunkedArray) -> None:
        """Look at some more values."""
        self.nulls += values.null_count
        if is_text(values.type):
            longest = pc.max(pc.binary_length(values)).as_py()
            self.width = max(self.width, longest or 0)
            self.ascii = self.ascii and pc.all(pc.string_is_ascii(values)).as_py() is not False
        lengths = values
        if pa.types.is_nested(values.type):
            lengths = pc.list_value_length(values)
            self.total += pc.sum(lengths).as_py() or 0
        if pa.types.is_integer(lengths.type):
            extremes = pc.min_max(lengths).as_py()
            if extremes["min"] is not None:
                self.low, self.high = min(self.low, extremes["min"]), max(self.high, extremes["max"])


@dataclass
class Spool:
    """Tables kept in a file beside the result, the number of their rows, and what is known of their columns."""

    path: Path
    rows: int = 0
    facts: dict[str, Facts] = field(default_factory=dict)

    def blocks(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in blocks, again and again if need be; read from disk as they are asked for."""
        with pa.memory_map(str(self.path)) as source, pa.ipc.open_file(source) as file:
            for number in range(file.num_record_batches):
                yield file.get_batch(number)


@contextmanager
def spooled(tables: Iterable[pa.Table], schema: pa.Schema, beside: Path) -> Iterator[Spool]:
    """Keep tables in a file, which is gone at the end; times and other values without a number become text."""
    flat = pa.schema([field.with_type(_flat_type(field.type)) for field in schema])
    spool = Spool(beside.with_name(f"{beside.name}.rows"), facts={name: Facts() for name in schema.names})
    try:
        with pa.OSFile(str(spool.path), "wb") as sink, pa.ipc.new_file(sink, flat) as writer:
            for table in tables:
                table = table.cast(flat)
                spool.rows += table.num_rows
                for name, facts in spool.facts.items():
                    facts.see(table[name])
                writer.write_table(table, max_chunksize=BLOCK_ROWS)
        yield spool
    finally:
        spool.path.unlink(missing_ok=True)


def is_text(dtype: pa.DataType) -> bool:
    """Return whether a column holds text."""
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype)


def _flat_type(dtype: pa.DataType) -> pa.DataType:
    numeric = pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_boolean(dtype)
    if dtype == pa.float16():
        return pa.float32()
    if pa.types.is_large_list(dtype):
        return pa.list_(dtype.value_type)
    return dtype if numeric or pa.types.is_nested(dtype) or is_text(dtype) else pa.string()


def filled(values: pa.Array, null: float | int | bool) -> NDArray[np.generic]:
    """Return numbers as a flat array with ``null`` in place of nulls."""
    return np.asarray(pc.fill_null(values, pa.scalar(null, values.type)).to_numpy(zero_copy_only=False))


def list_values(values: pa.Array) -> tuple[NDArray[np.generic], NDArray[np.int64]]:
    """Return all numbers in a column of lists, NaN or 0 for nulls, and the length of each list, 0 for null."""
    inner = values.flatten()
    null = float("nan") if pa.types.is_floating(inner.type) else False if pa.types.is_boolean(inner.type) else 0
    return filled(inner, null), pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False).astype(np.int64)


def texts(values: pa.Array, width: int, encoding: str) -> NDArray[np.bytes_]:
    """Return texts as fixed-width bytes in an encoding, padded with NUL; null is the empty text."""
    words = pc.fill_null(values, "")
    if encoding == "ascii":
        return np.array(words.cast(pa.binary()).to_pylist(), dtype=f"S{width}")
    return np.array([word.encode(encoding) for word in words.to_pylist()], dtype=f"S{width}")
