"""Parquet leaves: what goes in comes out, equal tables are equal bytes, damage is noticed, units travel."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io.votable import parse_single_table
from astropy.table import Table
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.errors import ColumnError, StoreError
from scalable.io.parquet import read_leaf, votable_header, write_common_metadata, write_footers, write_leaf
from scalable.schema import Column, Schema

VALUES = {
    pa.bool_(): [True, False, None],
    pa.int8(): [-128, 127, None],
    pa.uint8(): [0, 255, None],
    pa.int16(): [-(2**15), 2**15 - 1, None],
    pa.uint16(): [0, 2**16 - 1, None],
    pa.int32(): [-(2**31), 2**31 - 1, None],
    pa.uint32(): [0, 2**32 - 1, None],
    pa.int64(): [-(2**63), 2**63 - 1, None],
    pa.uint64(): [0, 2**64 - 1, None],
    pa.float16(): [np.float16(0.5), np.float16("inf"), None],
    pa.float32(): [-0.0, float("inf"), None],
    pa.float64(): [5e-324, -1.7976931348623157e308, None],
    pa.string(): ["", "Größe ☉", None],
    pa.large_string(): ["", "x" * 1000, None],
    pa.list_(pa.float32()): [[], [1.5, None], None],
    pa.large_list(pa.int16()): [[], [1, 2, 3], None],
    pa.list_(pa.string()): [["a", None], [], None],
    pa.list_(pa.float64(), 2): [[1.0, 2.0], [None, 3.0], None],
    pa.list_(pa.list_(pa.int32(), 2), 2): [[[1, 2], [3, 4]], [[5, 6], [7, 8]], None],
    pa.timestamp("us"): [0, 10**15, None],
}


def example(rows: int = 5_000) -> pa.Table:
    rng = np.random.default_rng(7)
    flux = pa.array(rng.normal(size=rows).astype(np.float32), mask=rng.random(rows) < 0.1)
    columns = {
        "object_id": np.sort(rng.integers(0, 2**60, rows)),
        "band": np.repeat(["J", "H"], [rows // 2, rows - rows // 2]),
        "mjd": np.repeat(rng.uniform(5e4, 6e4, rows // 50 + 1), 50)[:rows],
        "Flux": flux,
        "quality": rng.integers(0, 9, rows).astype(np.uint8),
        "pair": pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=2 * rows)), 2),
    }
    return pa.table(columns)


@pytest.mark.parametrize("dtype", VALUES, ids=str)
def test_every_type_comes_back_with_its_values_nulls_and_meaning(tmp_path: Path, dtype: pa.DataType) -> None:
    schema = Schema((Column("x", dtype, "value", unit="adu", description="a value"),))
    table = pa.table([pa.array(VALUES[dtype], dtype)], schema=schema.to_arrow())
    write_leaf(table, tmp_path, "a.parquet")
    found = read_leaf(tmp_path / "a.parquet")
    found.validate(full=True)
    assert found.equals(table)
    # The items of a list are called `element` in Parquet; what the column means is the same.
    assert Schema.from_arrow(found.schema) == schema


@pytest.mark.parametrize(
    ("dtype", "encoding"),
    [
        (pa.float64(), "BYTE_STREAM_SPLIT"),
        (pa.list_(pa.float32()), "BYTE_STREAM_SPLIT"),
        (pa.list_(pa.list_(pa.int32(), 2), 2), "DELTA_BINARY_PACKED"),
        (pa.large_list(pa.int64()), "DELTA_BINARY_PACKED"),
        (pa.list_(pa.float64(), 2), "BYTE_STREAM_SPLIT"),
        (pa.list_(pa.string()), "RLE_DICTIONARY"),
        (pa.large_list(pa.int16()), "PLAIN"),
    ],
    ids=str,
)
def test_items_of_lists_are_encoded_as_plain_columns_are(tmp_path: Path, dtype: pa.DataType, encoding: str) -> None:
    values = VALUES.get(dtype, [[1, 2], None])
    write_leaf(pa.table({"x": pa.array(values, dtype)}), tmp_path, "a")
    assert encoding in pq.read_metadata(tmp_path / "a").row_group(0).column(0).encodings


def test_nan_and_null_and_both_zeros_stay_apart(tmp_path: Path) -> None:
    values = np.array([np.nan, 0.0, -0.0, 1.0])
    table = pa.table({"x": pa.array(values, mask=np.array([False, False, False, True]))})
    write_leaf(table, tmp_path, "a")
    found = read_leaf(tmp_path / "a")["x"]
    assert found.is_null().to_pylist() == [False, False, False, True]
    assert found.to_numpy()[:3].tobytes() == values[:3].tobytes()


@pytest.mark.parametrize("rows", [0, 1, 100_001])
def test_a_leaf_says_what_was_written(tmp_path: Path, rows: int) -> None:
    table = example(rows)
    leaf = write_leaf(table, tmp_path, "dataset/Norder=0/Dir=0/Npix=3.parquet")
    path = tmp_path / leaf.path
    data = path.read_bytes()
    assert (leaf.rows, leaf.size_bytes) == (rows, len(data))
    assert leaf.sha256 == hashlib.sha256(data).hexdigest()
    assert os.listdir(path.parent) == ["Npix=3.parquet"]
    footer = pq.read_metadata(pa.BufferReader(leaf.footer))
    assert footer.num_rows == rows
    if rows:
        # The path of HATS, below the folder of the data set.
        assert footer.row_group(0).column(0).file_path == "Norder=0/Dir=0/Npix=3.parquet"
    assert read_leaf(path).equals(table)


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(0, 5_000), max_size=4).map(sorted))
def test_equal_tables_give_equal_bytes_however_they_lie_in_memory(tmp_path_factory, cuts: list[int]) -> None:
    folder = tmp_path_factory.mktemp("leaves")
    table = example()
    pieces = pa.concat_tables([table.slice(a, b - a) for a, b in zip([0, *cuts], [*cuts, table.num_rows], strict=True)])
    shifted = pa.concat_tables([table.slice(3, 5), table]).combine_chunks().slice(5)
    digests = {write_leaf(t, folder, f"{n}").sha256 for n, t in enumerate((table, pieces, pieces.combine_chunks(), shifted))}
    assert len(digests) == 1


def test_other_tables_give_other_bytes(tmp_path: Path) -> None:
    table = example()
    other = table.set_column(0, "object_id", table["object_id"].combine_chunks().take(pa.array([1, *range(1, 5_000)])))
    assert write_leaf(table, tmp_path, "a").sha256 != write_leaf(other, tmp_path, "a").sha256


def test_a_flipped_bit_in_a_page_is_noticed_and_the_file_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = example(300)
    whole = write_leaf(table, tmp_path, "a.parquet")
    data = path.read_bytes()
    metadata = pq.read_metadata(path)
    chunks = [metadata.row_group(0).column(i) for i in range(metadata.num_columns)]
    for chunk in chunks:
        end = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size
        # The last bytes of a chunk are the end of its data page, behind every header.
        for at in range(end - 12, end):
            damaged = bytearray(data)
            damaged[at] ^= 1 << at % 8
            path.write_bytes(damaged)
            assert hashlib.sha256(damaged).hexdigest() != whole.sha256
            with pytest.raises(StoreError, match="a.parquet: cannot be read .*; the store is damaged or incomplete"):
                read_leaf(path)


@pytest.mark.parametrize("cut", [0, 4, 1000, -1])
def test_a_leaf_cut_short_or_missing_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(StoreError, match="a.parquet: cannot be read .*No such file"):
        read_leaf(path)
    write_leaf(example(), tmp_path, "a.parquet")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(StoreError, match="a.parquet: cannot be read .* run the ingest again"):
        read_leaf(path)


def test_only_the_wanted_columns_are_read(tmp_path: Path) -> None:
    table = example()
    write_leaf(table, tmp_path, "a")
    names = ["Flux", "object_id"]
    assert read_leaf(tmp_path / "a", names).equals(table.select(names))
    assert read_leaf(tmp_path / "a", []).num_rows == table.num_rows
    with pytest.raises(ColumnError, match=r"a: no column 'Flx'; did you mean 'Flux'\? choices: object_id, band"):
        read_leaf(tmp_path / "a", ["band", "Flx"])


def test_damage_in_one_column_does_not_keep_the_others_from_being_read(tmp_path: Path) -> None:
    write_leaf(example(), tmp_path, "a")
    chunk = pq.read_metadata(tmp_path / "a").row_group(0).column(3)
    data = bytearray((tmp_path / "a").read_bytes())
    data[chunk.data_page_offset + chunk.total_compressed_size - 9] ^= 16
    (tmp_path / "a").write_bytes(data)
    assert chunk.path_in_schema == "Flux"
    assert read_leaf(tmp_path / "a", ["object_id"]).equals(example().select(["object_id"]))
    with pytest.raises(StoreError, match="damaged"):
        read_leaf(tmp_path / "a", ["Flux"])


def test_footers_of_several_leaves_make_one_metadata_file(tmp_path: Path) -> None:
    paths = ["dataset/Norder=1/Dir=0/Npix=1.parquet", "dataset/Norder=1/Dir=0/Npix=2.parquet"]
    leaves = [write_leaf(example(rows), tmp_path, path) for rows, path in zip((100_001, 7), paths, strict=True)]
    write_footers([leaf.footer for leaf in leaves], tmp_path / "dataset" / "_metadata")
    metadata = pq.read_metadata(tmp_path / "dataset" / "_metadata")
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    found = [("dataset/" + group.column(0).file_path, group.num_rows) for group in groups]
    assert found == [(paths[0], 100_000), (paths[0], 1), (paths[1], 7)]


def test_units_and_descriptions_reach_astropy_and_come_back_to_us(tmp_path: Path) -> None:
    schema = Schema(
        (
            Column("Ra", pa.float64(), "ra", unit="deg", ucd="pos.eq.ra", description="Right ascension"),
            Column("Flux", pa.float32(), "flux", unit="ct.s**-1", error="FluxErr", description="a < b & c"),
            Column("n", pa.int16()),
            Column("pair", pa.list_(pa.float32(), 2), unit="mag"),
            Column("image", pa.list_(pa.float32(), 6), unit="adu", shape="2,3"),
            Column("curve", pa.list_(pa.float64()), unit="mag"),
            Column("name", pa.string(), description="Größe"),
        )
    )
    write_common_metadata(schema.to_arrow(), tmp_path / "_common_metadata")
    table = Table.read(tmp_path / "_common_metadata", format="parquet.votable")
    assert table.colnames == schema.names
    assert [table[name].unit for name in table.colnames] == [u.deg, u.ct / u.s, None, u.mag, u.adu, u.mag, None]
    assert [table[name].description for name in table.colnames] == ["Right ascension", "a < b & c", *4 * [None], "Größe"]
    assert table["Ra"].meta["ucd"] == "pos.eq.ra"
    assert len(table) == 0
    assert Schema.from_arrow(pq.read_schema(tmp_path / "_common_metadata")) == schema


@pytest.mark.parametrize(
    ("dtype", "arraysize"),
    [
        (pa.int16(), None),
        (pa.list_(pa.float32(), 10), "10"),
        (pa.list_(pa.float64()), "*"),
        (pa.list_(pa.list_(pa.float32(), 2), 6), "2x6"),
        (pa.list_(pa.list_(pa.float32(), 2)), "2x*"),
        (pa.list_(pa.list_(pa.float32())), "*"),
        (pa.list_(pa.string(), 3), "*"),
    ],
    ids=str,
)
def test_sizes_of_arrays_are_those_of_votable_the_fastest_first(dtype: pa.DataType, arraysize: str | None) -> None:
    document = votable_header(Schema((Column("x", dtype),)))
    (field,) = parse_single_table(io.BytesIO(document)).fields
    assert field.arraysize == arraysize


def test_equal_schemas_give_equal_metadata_bytes(tmp_path: Path) -> None:
    schema = Schema((Column("Ra", pa.float64(), "ra", unit="deg"), Column("name", pa.string()))).to_arrow()
    for name in ("a", "b"):
        write_common_metadata(schema, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_damaged_footer_is_a_store_error_whatever_it_hits(tmp_path: Path) -> None:
    table = example(50)
    write_leaf(table, tmp_path, "a.parquet")
    data = (tmp_path / "a.parquet").read_bytes()
    raised = 0
    for at in range(len(data) - 8 - int.from_bytes(data[-8:-4], "little"), len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 128
        (tmp_path / "a.parquet").write_bytes(damaged)
        try:
            read_leaf(tmp_path / "a.parquet")
        except StoreError:
            raised += 1
    assert raised > 100
