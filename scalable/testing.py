"""For tests of ours and of others: proof that a verb is lazy, and the contract that every table reader keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import dask
import pyarrow as pa

from scalable.io.reader import Source, TableReader


class Computed(AssertionError):
    """Something computed although nothing should."""


@contextmanager
def no_compute() -> Iterator[None]:
    """Fail as soon as any Dask graph is run inside the block."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        raise Computed("a Dask graph was run although the verb must be lazy")

    with dask.config.set(scheduler=refuse):
        yield


def check_reader(reader: TableReader, source: Source) -> pa.Table:
    """Check what every `TableReader` must keep, and return the whole table.

    Raises
    ------
    AssertionError
        If blocks, projection, schema or digest disagree with each other or with the file.
    """
    info = reader.describe(source)
    whole = pa.concat_tables(reader.scan(source))
    assert whole.num_rows == info.rows
    assert whole.schema.equals(info.schema.to_arrow(), check_metadata=True)
    small = pa.concat_tables(reader.scan(source, block_bytes=1000))
    assert small.equals(whole)
    names = info.schema.names[::-2]
    assert pa.concat_tables(reader.scan(source, columns=names)).equals(whole.select(names))
    digest = hashlib.sha256()
    for _ in reader.scan(source, columns=names, digest=digest):
        pass
    if Path(source.path).exists():
        assert digest.hexdigest() == hashlib.sha256(Path(source.path).read_bytes()).hexdigest()
    return whole
