"""HDF5 tables, read in a process of their own: a damaged file can crash the library, and must not take a worker with it.

Any group of equally long datasets is a table, with a column for each, and so is any dataset of compound type; see `hdf5_values`
for what a cell becomes and `hdf5_layout` for what is refused. If a file holds several, ``files.table`` says which, by its path.
What a process costs, about half a second, is paid once for the headers and once for the rows.
"""

from __future__ import annotations

import io
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import IO, Any

import pyarrow as pa

from scalable.errors import ColumnError, InputError
from scalable.io.ecsv_header import astropy_meanings
from scalable.io.reader import Hash, Source, TableInfo
from scalable.io.regular import feed, open_regular
from scalable.schema import Column, Schema

_COMMAND = ["-P", "-m", "scalable.io.hdf5_child"]
_REFUSED = 3  # as in `hdf5_child`, which is not imported here: nothing of the library is ever loaded into this process
_INFO_KEY = b"scalable.table"
_PATIENCE_S = 120.0


@dataclass(frozen=True)
class Hdf5Table:
    """Reads tables in HDF5 files (`TableReader`)."""

    def describe(self, source: Source) -> TableInfo:
        """Read headers only; ``bytes`` are those of the rows once decompressed, a text of any length taken for 64."""
        with _open(source, None, 0, rows=False) as child:
            info, schema = child.info, child.schema
            child.check_end()
        return TableInfo(Schema.from_arrow(schema), info["rows"], info["bytes"], info["digest"], info["keywords"])

    def scan(
        self, source: Source, *, columns: Sequence[str] | None = None, block_bytes: int = 1 << 26, digest: Hash | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows in file order, of ``columns`` in the order given, in blocks of about ``block_bytes``.

        With ``digest``, every byte of the file has been fed to it once the iterator is exhausted; that reads the file once more,
        behind the rows. A table without rows yields one empty block.

        Raises
        ------
        InputError
            If the file is missing, cut or corrupt, leads out of itself, holds no table or several, or crashes the library.
        ColumnError
            If a column does not exist.
        """
        with _open(source, columns, block_bytes, rows=True) as child:
            schema = child.schema
            for batch in child.batches():
                yield pa.Table.from_batches([pa.RecordBatch.from_arrays(batch.columns, schema=schema)])
            child.check_end()
            feed(digest, child.path, child.descriptor, 0, child.size)


@contextmanager
def _open(source: Source, columns: Sequence[str] | None, block_bytes: int, *, rows: bool) -> Iterator[_Child]:
    """Start a process that reads a table; it is gone when the block is left."""
    with (
        open(open_regular(source.path, "HDF5 file"), "rb", buffering=0) as file,
        tempfile.TemporaryFile() as asked,
        tempfile.TemporaryFile() as said,
    ):
        descriptor, size = file.fileno(), os.fstat(file.fileno()).st_size
        names = None if columns is None else list(columns)
        request = {"descriptor": descriptor, "table": source.table, "columns": names, "block_bytes": block_bytes, "rows": rows}
        asked.write(json.dumps(request).encode())
        asked.seek(0)
        # The same package as here, wherever this process has it from; one thread, as the caller has one task a core already.
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        process = subprocess.Popen(
            [sys.executable, *_COMMAND],
            stdin=asked,
            stdout=subprocess.PIPE,
            stderr=said,
            pass_fds=[descriptor],
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )
        try:
            yield _Child(source.path, descriptor, size, process, said)
        finally:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()


@dataclass
class _Child:
    """A process that reads a table, and the stream it writes: what the headers say, with the schema, and the blocks."""

    path: str
    descriptor: int
    size: int
    process: subprocess.Popen[bytes]
    said: IO[bytes]
    stream: Any = field(init=False)
    info: dict[str, Any] = field(init=False)
    schema: pa.Schema = field(init=False)

    def __post_init__(self) -> None:
        pipe = io.BufferedReader(_Pipe(self.process), 1 << 20)
        try:
            self.stream = pa.ipc.open_stream(pa.PythonFile(pipe, mode="r"))
        except (OSError, pa.ArrowException) as error:
            self.fail(error)
        self.info = json.loads(self.stream.schema.metadata[_INFO_KEY])
        self.schema = self._with_meanings(self.stream.schema.remove_metadata())

    def _with_meanings(self, schema: pa.Schema) -> pa.Schema:
        """Add what astropy's header says; it is parsed here because the library that does takes long to load."""
        try:
            said = astropy_meanings(self.info["header"].encode()) if self.info["header"] else {}
        except ValueError as error:
            raise InputError(f"{self.path}: the header that astropy wrote beside the table: {error}") from error
        for n, own in enumerate(map(Column.from_field, schema)):
            if column := said.get(own.name):
                meaning = {key: getattr(column, key) for key in ("unit", "source_unit", "ucd", "description")}
                schema = schema.set(n, replace(own, **meaning).to_field())
        return schema

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield what the process sends."""
        while True:
            try:
                batch = self.stream.read_next_batch()
            except StopIteration:
                return
            except (OSError, pa.ArrowException) as error:
                self.fail(error)
            yield batch

    def check_end(self) -> None:
        """Make sure that the process came to a good end: a stream that merely stops looks complete."""
        for _ in self.batches():
            pass
        if self.wait() != 0:
            self.fail(None)

    def wait(self) -> int:
        """Return the exit code, once there is one."""
        try:
            return self.process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()

    def fail(self, error: Exception | None) -> None:
        """Raise what the process said, or what became of it."""
        if isinstance(error, TimeoutError):
            raise InputError(f"{self.path}: {error}: damaged, or on a disk that does not answer; fetch it again") from error
        code = self.wait()
        self.said.seek(0)
        words = self.said.read().decode("utf-8", "replace").strip().splitlines() or [""]
        if code == _REFUSED:
            refusal = json.loads(words[-1])
            kind = ColumnError if refusal["kind"] == "ColumnError" else InputError
            raise kind(f"{self.path}: {refusal['text']}") from error
        if code == -signal.SIGPROF:
            raise InputError(f"{self.path}: the HDF5 library computed on it without end: damaged; fetch it again") from error
        if code < 0:
            raise InputError(
                f"{self.path}: the HDF5 library was ended by {signal.Signals(-code).name} while it read the file: damaged; check "
                "it with h5dump, fetch it again"
            ) from error
        raise InputError(f"{self.path}: the process that reads it ended with code {code}: {words[-1]}") from error


class _Pipe(io.RawIOBase):
    """The standard output of a process; reading it does not wait for ever."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._descriptor = process.stdout.fileno() if process.stdout is not None else -1
        self._poll = select.poll()
        self._poll.register(self._descriptor, select.POLLIN)

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def readinto(self, view: Any) -> int:
        """Read what is there."""
        if not self._poll.poll(_PATIENCE_S * 1000):
            self._process.kill()
            raise TimeoutError(f"nothing came from the HDF5 library for {_PATIENCE_S:.0f} s")
        return os.readv(self._descriptor, [view])
