"""Runs: written whole, mapped back, and searched by ranges of their key."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.errors import StoreError
from scalable.io.runs import flat, ranges_of, read_arrow, read_json, write_arrow, write_json


def test_a_table_comes_back_as_it_was_in_one_piece(tmp_path: Path) -> None:
    field = pa.field("Flux", pa.float32(), metadata={"unit": "adu"})
    part = pa.table([pa.array([1.5, None, float("nan")], pa.float32())], schema=pa.schema([field]))
    table = pa.concat_tables([part, part.slice(1)])
    write_arrow(table, tmp_path / "new" / "a.arrow")
    found = read_arrow(tmp_path / "new" / "a.arrow")
    assert found.schema.equals(table.schema, check_metadata=True)
    assert found["Flux"].num_chunks == 1
    assert str(found.to_pylist()) == str(table.to_pylist())
    assert os.listdir(tmp_path / "new") == ["a.arrow"]


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    empty = pa.table({"k": pa.array([], pa.int64()), "s": pa.array([], pa.string())})
    write_arrow(empty, tmp_path / "a")
    assert read_arrow(tmp_path / "a").equals(empty)
    assert flat(read_arrow(tmp_path / "a"), "k").tolist() == []


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[: len(data) // 2], lambda data: b"x" * len(data)])
def test_a_damaged_or_missing_run_is_named_with_what_to_do(tmp_path: Path, damage) -> None:
    path = tmp_path / "a.arrow"
    with pytest.raises(StoreError, match=f"a.arrow: an intermediate file is missing or damaged .* delete {tmp_path} and rerun"):
        read_arrow(path)
    write_arrow(pa.table({"k": [1, 2, 3]}), path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match="a.arrow: an intermediate file is missing or damaged"):
        read_arrow(path)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 50), max_size=40).map(sorted),
    st.lists(st.integers(0, 60), max_size=10, unique=True).map(sorted),
)
def test_ranges_give_the_rows_whose_key_lies_in_one_of_them(keys: list[int], edges: list[int]) -> None:
    edges = edges[: len(edges) // 2 * 2]
    ranges = np.array(edges, dtype=np.int64).reshape(-1, 2)
    run = pa.table({"key": pa.array(keys, pa.int64()), "row": np.arange(len(keys))})
    found = ranges_of(run, "key", ranges)
    assert found["row"].to_pylist() == [i for i, key in enumerate(keys) if any(a <= key < b for a, b in ranges.tolist())]
    assert found.schema == run.schema


def test_a_column_of_one_chunk_is_not_copied() -> None:
    values = np.arange(10.0)
    table = pa.table({"x": values})
    assert np.shares_memory(flat(table, "x"), values)
    assert flat(pa.concat_tables([table, table]), "x").tolist() == [*range(10), *range(10)]


def test_equal_values_give_equal_json_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": 1, "a": {"d": [1.5, "ü"], "c": None}})
    write_json(tmp_path / "b", {"a": {"c": None, "d": [1.5, "ü"]}, "b": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert read_json(tmp_path / "a") == {"b": 1, "a": {"d": [1.5, "ü"], "c": None}}


@pytest.mark.parametrize("data", [None, b"", b"{", b"\xff"])
def test_json_that_cannot_be_read_is_no_store(tmp_path: Path, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / "run.json").write_bytes(data)
    with pytest.raises(StoreError, match="run.json: cannot be read .* is this a store that ingest made"):
        read_json(tmp_path / "run.json")
