"""The reader protocol, on the reader that stands for all in tests."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator, Sequence
from dataclasses import replace

import dask
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.errors import MissingInputError, SurveyError
from scalable.io.drivers import reader_for
from scalable.io.fits_table import FitsTable
from scalable.io.reader import FakeTable, Hash, Source, TableInfo
from scalable.schema import Column, Schema
from scalable.testing import Computed, check_reader, no_compute

SCHEMA = Schema(
    (
        Column("SourceID", pa.int64(), "object_id"),
        Column("Flux", pa.float32(), "flux", unit="adu", error="FluxErr"),
        Column("Name", pa.string(), description="a name"),
    )
)


def table(rows: int) -> pa.Table:
    columns = [range(rows), [None if i % 3 == 0 else i / 8 for i in range(rows)], [f"star {i}" for i in range(rows)]]
    return pa.table([pa.array(c, s.dtype) for c, s in zip(columns, SCHEMA, strict=True)], schema=SCHEMA.to_arrow())


@pytest.mark.parametrize("rows", [0, 1, 1000])
def test_the_fake_keeps_the_contract_and_gives_what_was_put_in(rows: int) -> None:
    assert check_reader(FakeTable({"a": table(rows)}), Source("a")).equals(table(rows), check_metadata=True)


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 20_000))
def test_blocks_of_the_fake_are_small_and_in_order(rows: int, block_bytes: int) -> None:
    blocks = list(FakeTable({"a": table(rows)}).scan(Source("a"), block_bytes=block_bytes))
    assert pa.concat_tables(blocks).equals(table(rows))
    assert len(blocks) >= 1
    assert all(block.num_rows <= max(1, block_bytes * rows // max(table(rows).nbytes, 1)) for block in blocks)


def test_the_fake_feeds_a_digest_that_tells_tables_apart() -> None:
    def digest(source: pa.Table) -> str:
        fed = hashlib.sha256()
        for _ in FakeTable({"a": source}).scan(Source("a"), columns=["Flux"], digest=fed):
            pass
        return fed.hexdigest()

    assert digest(table(5)) == digest(table(5))
    assert digest(table(5)) != digest(table(6))
    described = [FakeTable({"a": table(n)}).describe(Source("a")).header_digest for n in (5, 5, 6)]
    assert described[0] == described[1] != described[2]


def test_a_file_that_is_not_there_is_missing_input() -> None:
    reader = FakeTable({"a": table(1)})
    with pytest.raises(MissingInputError, match="b.fits: no such file"):
        reader.describe(Source("b.fits"))
    with pytest.raises(FileNotFoundError, match="b.fits: no such file"):
        next(reader.scan(Source("b.fits")))


class Broken(FakeTable):
    """A reader that keeps the contract but for one thing."""

    def __init__(self, fault: str) -> None:
        super().__init__({"a": table(1000)})
        self.fault = fault

    def describe(self, source: Source) -> TableInfo:
        info = super().describe(source)
        rows = info.rows + (self.fault == "rows")
        unit = "Jy" if self.fault == "meaning" else ""
        schema = Schema(tuple(replace(c, unit=unit or c.unit) if c.name == "Flux" else c for c in info.schema))
        return TableInfo(schema, rows, info.bytes, info.header_digest)

    def scan(
        self, source: Source, *, columns: Sequence[str] | None = None, block_bytes: int = 1 << 26, digest: Hash | None = None
    ) -> Iterator[pa.Table]:
        blocks = super().scan(source, columns=columns, block_bytes=block_bytes, digest=digest)
        if self.fault == "blocks" and block_bytes == 1000:
            next(blocks)
        for block in blocks:
            yield block.select(block.column_names[::-1]) if columns is not None and self.fault == "order" else block


@pytest.mark.parametrize("fault", ["rows", "meaning", "blocks", "order"])
def test_the_contract_finds_a_reader_that_breaks_it(fault: str) -> None:
    check_reader(Broken("none"), Source("a"))
    with pytest.raises(AssertionError):
        check_reader(Broken(fault), Source("a"))


def test_the_contract_finds_a_reader_that_leaves_bytes_out_of_the_digest(tmp_path) -> None:
    path = str(tmp_path / "a.fits")
    (tmp_path / "a.fits").write_bytes(b"other bytes than the fake feeds")
    with pytest.raises(AssertionError):
        check_reader(FakeTable({path: table(3)}), Source(path))


def test_a_source_is_a_value_that_travels_cheaply() -> None:
    said = {"hdu": 1, "observation_id": 7, "field": "3", "band": "Ks", "mjd": 55000.25, "epoch": 2}
    source = Source("/data/a.fits", **said)
    assert pickle.loads(pickle.dumps(source)) == source
    assert hash(source) == hash(Source("/data/a.fits", **said))
    assert len(pickle.dumps(source)) < 500


def test_formats_are_found_by_name() -> None:
    assert isinstance(reader_for("fits").reader, FitsTable)
    with pytest.raises(SurveyError, match=r"files.format: 'fitz' is no format we read; did you mean 'fits'\? choices: fits"):
        reader_for("fitz")


def test_no_compute_fails_as_soon_as_a_graph_runs_and_not_before() -> None:
    lazy = dask.delayed(sum)([1, 2])
    with no_compute():
        lazier = dask.delayed(sum)([lazy, 3])
    assert lazier.compute() == 6
    with no_compute(), pytest.raises(Computed, match="a Dask graph was run although the verb must be lazy"):
        lazy.compute()
