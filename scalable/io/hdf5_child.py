"""The process that reads one HDF5 file of somebody else: the C library may crash on a damaged one, and takes only this with it.

``python -m scalable.io.hdf5_child`` takes a request as JSON on its standard input, reads the file from a descriptor it inherits,
and writes an Arrow stream to its standard output: the schema with what the headers say, then the blocks. What is wrong with the
file goes as JSON to standard error, with exit code 3.
"""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import pyarrow as pa

from scalable.errors import nearest
from scalable.io.hdf5_layout import MAX_BLOCK, FoundTable, Refused, find_table, select
from scalable.io.hdf5_values import to_arrow

REFUSED = 3
INFO_KEY = b"scalable.table"
_ROOM = 1 << 30
_LEAST_S, _MOST_S = 6.0, 60.0
_BYTES_PER_S = 1 << 20


def main() -> int:
    """Answer the request on standard input."""
    request = json.load(sys.stdin)
    limit_memory(request["block_bytes"])
    limit_time(_LEAST_S)
    # Whatever the library writes to standard output must not get into the stream.
    with os.fdopen(os.dup(1), "wb") as sink:
        os.dup2(2, 1)
        try:
            with os.fdopen(request["descriptor"], "rb") as raw, h5py.File(raw, "r") as file:
                answer(file, request, sink)
        except BrokenPipeError:
            return 1
        except _NoColumn as error:
            return _refuse("ColumnError", error)
        except Refused as error:
            return _refuse("InputError", error)
        except Exception as error:  # whatever a library raises on a foreign file, it is the file
            if isinstance(error, MemoryError) or "memory" in str(error):
                return _refuse("InputError", f"needs more memory than a table of its size ({error}): a bomb, or damaged")
            return _refuse(
                "InputError", f"cannot be read as HDF5 ({type(error).__name__}: {error}): damaged or cut; fetch it again"
            )
    return 0


class _NoColumn(Exception):
    """A column that is not there."""


def _refuse(kind: str, what: object) -> int:
    sys.stderr.write("\n" + json.dumps({"kind": kind, "text": str(what)}))
    return REFUSED


def limit_memory(block_bytes: int) -> None:
    """Let this process grow by some blocks and 1 GiB, so that a bomb bursts here and not on the machine."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        now = int(statm.read_text().split()[0]) * resource.getpagesize()
        most = now + 8 * min(block_bytes, MAX_BLOCK) + _ROOM
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def limit_time(seconds: float) -> None:
    """Let this process compute so long until the next call, then SIGPROF ends it: damaged files can make the library loop.

    What it waits for a disk does not count.
    """
    signal.setitimer(signal.ITIMER_PROF, seconds)


def answer(file: h5py.File, request: dict[str, Any], sink: BinaryIO) -> None:
    """Write the schema of a table and, unless only that is asked for, its blocks."""
    table = find_table(file, request["table"])
    info = json.dumps(describe(table)).encode()
    names = list(table.columns) if request["columns"] is None else request["columns"]
    for name in names:
        if name not in table.columns:
            raise _NoColumn(f"{table.name}: no column {name!r}; {nearest(name, table.columns)}")
    table = select(table, names)
    schema = pa.schema([column.arrow for column in table.columns.values()], metadata={INFO_KEY: info})
    # A file of a few megabytes takes no long time however it is laid out, a large one may be in very small chunks.
    seconds = min(_LEAST_S + file.id.get_filesize() / _BYTES_PER_S, _MOST_S)
    with pa.ipc.new_stream(sink, schema) as stream:
        limit_time(seconds)
        for batch in blocks(table, request["block_bytes"]) if request["rows"] else ():
            stream.write_batch(batch)
            limit_time(seconds)


def describe(table: FoundTable) -> dict[str, Any]:
    """Return what the headers say of a table, beside its schema."""
    columns = [[c.name, str(c.cell.arrow), sorted(c.meaning.items())] for c in table.columns.values()]
    said = json.dumps([table.name, table.rows, columns, sorted(table.keywords.items()), table.header])
    digest = hashlib.sha256(said.encode("utf-8", "surrogateescape")).hexdigest()
    sizes = {"rows": table.rows, "bytes": table.rows * table.row_bytes}
    return {**sizes, "digest": digest, "keywords": table.keywords, "header": table.header}


def blocks(table: FoundTable, block_bytes: int) -> Iterator[pa.RecordBatch]:
    """Yield all rows of a table; one without rows is one empty block."""
    columns = list(table.columns.values())
    # Texts of any length lie in the file as they are, so that all of them together are no longer than it.
    texts = [column.dataset.file.id.get_filesize() // max(table.rows, 1) for column in columns if column.cell.any_length]
    step = max(1, min(block_bytes, MAX_BLOCK) // max(table.row_bytes + max(texts, default=0), 1))
    schema = pa.schema([column.arrow for column in columns])
    members = [column.member for column in columns if column.member]
    for first in range(0, max(table.rows, 1), step):
        rows = slice(first, min(first + step, table.rows))
        # The members of a compound are read at once, a dataset for each column one by one.
        record = columns[0].dataset.fields(members)[rows] if members else None
        arrays = [to_arrow(c.dataset[rows] if record is None else record[c.member], c.cell) for c in columns]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


if __name__ == "__main__":
    sys.exit(main())
