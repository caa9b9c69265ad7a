"""Parquet tables of others: what Arrow reads, in plain types, with NaN as null and within bounds of memory."""

from __future__ import annotations

import datetime
import decimal
import hashlib
import os
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy.table import MaskedColumn, Table

from scalable.errors import ColumnError, InputError, MissingInputError
from scalable.io.drivers import reader_for
from scalable.io.parquet import votable_header
from scalable.io.parquet_table import ParquetTable
from scalable.io.reader import Source
from scalable.io.voparquet import VOTABLE_KEY, votable_fields
from scalable.schema import Column, Schema
from scalable.testing import check_reader

READER = ParquetTable()


def write(path: Path, table: pa.Table, **options: object) -> Source:
    pq.write_table(table, path, **options)
    return Source(str(path))


def many_kinds(rows: int = 300) -> pa.Table:
    rng = np.random.default_rng(5)
    flux = rng.normal(size=rows)
    flux[::7] = np.nan
    words = [None if n % 5 == 0 else f"star {n % 11}" * (n % 4) for n in range(rows)]
    lists = [None if n % 6 == 0 else flux[: n % 5].tolist() for n in range(rows)]
    return pa.table(
        {
            "id": pa.array(range(rows), pa.int64()),
            "flux": pa.array(flux),
            "small": pa.array(flux, pa.float32()),
            "half": pa.array(flux.astype(np.float16)),
            "flag": pa.array([n % 3 == 0 for n in range(rows)]),
            "band": pa.array(words).dictionary_encode(),
            "code": pa.array(np.arange(rows) % 9, pa.int16()).dictionary_encode(),
            "name": pa.array(words, pa.large_string()),
            "view": pa.array(words, pa.string_view()),
            "blob": pa.array([b"\xff" * (n % 3) for n in range(rows)], pa.large_binary()),
            "curve": pa.array(lists),
            "bands": pa.ListArray.from_arrays(
                pa.array(range(rows + 1), pa.int32()), pa.array([f"{n % 3}" for n in range(rows)]).dictionary_encode()
            ),
            "pair": pa.FixedSizeListArray.from_arrays(pa.array(np.repeat(flux, 2)), 2),
            "shape": pa.array([None if n % 8 == 0 else {"e1": flux[n], "label": "x"} for n in range(rows)]),
            "dotted.name": pa.array(range(rows), pa.uint16()),
            "when": pa.array([datetime.datetime(2020, 1, 1)] * rows),
            "exact": pa.array([decimal.Decimal("1.50")] * rows),
            "uuid": pa.array([bytes(16)] * rows, pa.uuid()),
        }
    )


def without_nan(value: object) -> object:
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and value != value else value


# What is read


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("row_group_size", [300, 37])
def test_every_kind_beside_every_other_reads_as_arrow_reads_it(tmp_path: Path, compression: str, row_group_size: int) -> None:
    table = many_kinds()
    source = write(tmp_path / "a.parquet", table, compression=compression, row_group_size=row_group_size)
    found = check_reader(READER, source)
    found.validate(full=True)
    for name in table.column_names:
        expected = table["uuid"].cast(pa.binary(16)) if name == "uuid" else table[name]
        assert found[name].to_pylist() == without_nan(expected.to_pylist()), name


def test_types_are_plain(tmp_path: Path) -> None:
    found = READER.describe(write(tmp_path / "a.parquet", many_kinds())).schema
    plain = {"half": pa.float32(), "band": pa.string(), "code": pa.int16(), "name": pa.string(), "view": pa.string()}
    plain |= {"blob": pa.binary(), "bands": pa.list_(pa.string()), "uuid": pa.binary(16), "exact": pa.decimal128(3, 2)}
    for name, dtype in plain.items():
        assert found[name].dtype.equals(dtype), name


def test_the_index_of_pandas_is_a_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"flux": [1.0, 2.0]}, index=pd.Index([7, 9], name="objectId"))
    frame.to_parquet(tmp_path / "a.parquet")
    assert check_reader(READER, Source(str(tmp_path / "a.parquet"))).to_pydict() == {"flux": [1.0, 2.0], "objectId": [7, 9]}


def test_a_nan_in_a_slice_of_lists_is_null_in_its_own_place(tmp_path: Path) -> None:
    lists = pa.array([[1.0], [float("nan"), 2.0], None, [], [float("nan")]])
    source = write(tmp_path / "a.parquet", pa.table({"x": lists}))
    for block_bytes in (1, 20, 1000):
        blocks = list(READER.scan(source, block_bytes=block_bytes))
        assert pa.concat_tables(blocks)["x"].to_pylist() == [[1.0], [None, 2.0], None, [], [None]]


@pytest.mark.parametrize("rows", [0, 1])
def test_tables_of_few_rows_are_one_block(tmp_path: Path, rows: int) -> None:
    source = write(tmp_path / "a.parquet", many_kinds(300).slice(0, rows))
    assert [block.num_rows for block in READER.scan(source)] == [rows]
    check_reader(READER, source)


@pytest.mark.parametrize("block_bytes", [1, 200, 5000, 1 << 26])
def test_the_block_size_does_not_change_the_result(tmp_path: Path, block_bytes: int) -> None:
    source = write(tmp_path / "a.parquet", many_kinds(), row_group_size=123)
    whole = pa.concat_tables(READER.scan(source))
    blocks = list(READER.scan(source, block_bytes=block_bytes))
    assert pa.concat_tables(blocks).equals(whole)
    assert len(blocks) >= {1: 300, 200: 200, 5000: 6, 1 << 26: 3}[block_bytes]


# What the columns mean


def test_meaning_comes_from_the_fields_of_arrow(tmp_path: Path) -> None:
    meta = {b"unit": b"nJy", b"ucd": b"phot.flux", b"description": b"a flux", b"role": b"object_id", b"PARQUET:field_id": b"7"}
    schema = pa.schema([pa.field("flux", pa.float64(), metadata=meta), pa.field("odd", pa.int8(), metadata={b"\xff": b"\xff"})])
    source = write(tmp_path / "a.parquet", pa.table([[1.0], [2]], schema=schema))
    expected = Column("flux", pa.float64(), unit="nJy", source_unit="nJy", ucd="phot.flux", description="a flux")
    assert READER.describe(source).schema["flux"] == expected
    assert READER.describe(source).schema["odd"] == Column("odd", pa.int8())


def test_meaning_comes_from_the_votable_header_first(tmp_path: Path) -> None:
    said = Schema((Column("ra", pa.float64(), unit="deg", ucd="pos.eq.ra", description="right <ascension> & all"),))
    schema = pa.schema(
        [
            pa.field("ra", pa.float64(), metadata={b"unit": b"rad"}),
            pa.field("flux", pa.float64(), metadata={b"unit": b"nJy"}),
        ],
        metadata={VOTABLE_KEY: votable_header(said)},
    )
    found = READER.describe(write(tmp_path / "a.parquet", pa.table([[1.0], [2.0]], schema=schema))).schema
    assert (found["ra"].unit, found["ra"].ucd, found["ra"].description) == ("deg", "pos.eq.ra", "right <ascension> & all")
    assert found["flux"].unit == "nJy"


def astropy_file(path: Path, **columns: object) -> Source:
    table = Table(columns)
    table["ra"].unit, table["ra"].description, table["ra"].info.meta = "deg", "right ascension", {"ucd": "pos.eq.ra"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.write(path, format="parquet")
    return Source(str(path))


def test_a_table_that_astropy_wrote_keeps_meanings_and_shapes(tmp_path: Path) -> None:
    image = np.arange(12.0).reshape(2, 3, 2)
    source = astropy_file(tmp_path / "a.parquet", ra=[1.5, np.nan], image=image)
    found = check_reader(READER, source)
    ra, shown = Schema.from_arrow(found.schema)
    assert (ra.unit, ra.ucd, ra.description, shown.shape) == ("deg", "pos.eq.ra", "right ascension", "3,2")
    assert found["ra"].to_pylist() == [1.5, None]
    assert found["image"].to_pylist() == image.reshape(2, 6).tolist()


def test_masked_values_of_astropy_are_not_taken_for_valid_ones(tmp_path: Path) -> None:
    source = astropy_file(tmp_path / "a.parquet", ra=[1.5, 2.5], n=MaskedColumn([1, 2], mask=[True, False]))
    with pytest.raises(InputError, match=r"a\.parquet: its metadata table_meta_yaml: column 'n' keeps its mask in a column"):
        READER.describe(source)


def test_fields_are_those_of_the_first_table_whatever_their_prefix() -> None:
    found = votable_fields(
        b"""<v:VOTABLE xmlns:v="http://www.ivoa.net/xml/VOTable/v1.3"><v:RESOURCE><v:TABLE><v:DESCRIPTION>no</v:DESCRIPTION>
        <v:FIELD name="a" unit="deg"><v:DESCRIPTION> two
        words </v:DESCRIPTION><v:VALUES/></v:FIELD></v:TABLE><v:TABLE><v:FIELD name="a" unit="rad"/><v:FIELD name="b"/></v:TABLE>
        </v:RESOURCE></v:VOTABLE>"""
    )
    assert {name: (field.unit, field.description) for name, field in found.items()} == {"a": ("deg", "two words")}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b'<!DOCTYPE a [<!ENTITY x "y">]><VOTABLE>&x;</VOTABLE>', "it declares a document type or entities"),
        (b'<!DOCTYPE a SYSTEM "file:///etc/passwd"><VOTABLE/>', "it declares a document type or entities"),
        (b"<VOTABLE>", "it is no XML: no element found"),
        (b'<?xml version="1.0" encoding="nonsense"?><VOTABLE/>', "it is no XML: unknown encoding"),
    ],
)
def test_a_votable_header_that_is_none_is_refused(tmp_path: Path, document: bytes, message: str) -> None:
    table = pa.table({"x": [1]}).replace_schema_metadata({VOTABLE_KEY: document})
    source = write(tmp_path / "a.parquet", table)
    with pytest.raises(InputError, match=rf"a\.parquet: its metadata IVOA\.VOTable-Parquet\.content: {message}.*write the file"):
        READER.describe(source)


def test_describe_says_rows_bytes_digest_and_keywords(tmp_path: Path) -> None:
    table = many_kinds().replace_schema_metadata({"FILTER": "Ks"})
    source = write(tmp_path / "a.parquet", table)
    info = READER.describe(source)
    raw = Path(source.path).read_bytes()
    footer = raw[-8 - int.from_bytes(raw[-8:-4], "little") :]
    assert (info.rows, info.keywords) == (300, {"FILTER": "Ks"})
    assert info.header_digest == hashlib.sha256(footer).hexdigest()
    group = pq.read_metadata(source.path).row_group(0)
    assert info.bytes == sum(group.column(n).total_uncompressed_size for n in range(group.num_columns))


def test_the_digest_is_that_of_the_whole_file_whatever_is_read(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", many_kinds(), row_group_size=50)
    for options in ({}, {"columns": ["flux"]}, {"block_bytes": 300}):
        digest = hashlib.sha256()
        list(READER.scan(source, digest=digest, **options))
        assert digest.hexdigest() == hashlib.sha256(Path(source.path).read_bytes()).hexdigest()


def test_a_file_replaced_while_it_is_read_is_read_to_its_end(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", many_kinds(), row_group_size=50)
    raw, digest = Path(source.path).read_bytes(), hashlib.sha256()
    scan = READER.scan(source, digest=digest)
    blocks = [next(scan)]
    write(tmp_path / "b.parquet", pa.table({"x": [1]}))
    (tmp_path / "b.parquet").replace(source.path)
    assert sum(block.num_rows for block in [*blocks, *scan]) == 300
    assert digest.hexdigest() == hashlib.sha256(raw).hexdigest()


# What is refused


def test_a_wrong_column_or_file_is_named(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", many_kinds(5))
    with pytest.raises(ColumnError, match=r"a\.parquet: no column 'Flux'; did you mean 'flux'"):
        next(READER.scan(source, columns=["Flux"]))
    with pytest.raises(MissingInputError, match=r"b\.parquet: no such file"):
        READER.describe(Source(str(tmp_path / "b.parquet")))
    with pytest.raises(InputError, match="not a Parquet file: it is not a regular file"):
        READER.describe(Source(str(tmp_path)))
    assert isinstance(reader_for("parquet").reader, ParquetTable)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"id,flux\n1,2\n" * 5, b"PAR1" + bytes(500) + b"PAR1"])
def test_what_is_no_parquet_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.parquet").write_bytes(content)
    with pytest.raises(InputError, match=r"a\.parquet: cannot be read as Parquet \(.*\): damaged or cut; fetch it again"):
        READER.describe(Source(str(tmp_path / "a.parquet")))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", pa.table([[1], [2]], names=["x", "x"]))
    with pytest.raises(InputError, match=r"a\.parquet: column 'x' is there 2 times: rename all but one"):
        READER.describe(source)


# Bombs


def repeated(values: pa.Array, times: int) -> pa.Table:
    return pa.table({"x": pa.chunked_array([values] * times)})


def test_pages_that_expand_beyond_measure_are_refused_by_the_footer_alone(tmp_path: Path) -> None:
    table = repeated(pa.array(np.zeros(1 << 20)), 64)
    source = write(tmp_path / "bomb.parquet", table, row_group_size=1 << 26, use_dictionary=False, compression="zstd")
    assert os.path.getsize(source.path) < 1 << 20
    before = pa.total_allocated_bytes()
    with pytest.raises(InputError, match=r"row group 0, column 'x': \d+ bytes expand to 5\d+, at most .* decompression bomb"):
        next(READER.scan(source))
    assert pa.total_allocated_bytes() == before


def test_a_constant_of_many_rows_comes_in_blocks_of_bounded_size(tmp_path: Path) -> None:
    source = write(tmp_path / "a.parquet", repeated(pa.array(np.ones(1 << 20)), 64), row_group_size=1 << 26)
    assert os.path.getsize(source.path) < 1 << 20
    blocks = READER.scan(source, block_bytes=1 << 20)
    for block in (next(blocks), next(blocks)):
        assert 1 << 19 < block.nbytes < 1.1 * (1 << 20)  # the bitmap of nulls is beside the values
        assert pc.min(block["x"]).as_py() == 1.0
    blocks.close()


def test_a_long_text_said_a_million_times_comes_in_blocks_of_bounded_size(tmp_path: Path) -> None:
    codes = np.zeros(1 << 18, np.int32)
    words = pa.DictionaryArray.from_arrays(pa.array(codes), ["y" * 100_000])
    for n, table in enumerate((repeated(words, 4), repeated(words, 4).cast(pa.schema([("x", words.type)])))):
        path = tmp_path / f"{n}.parquet"
        pq.write_table(table.replace_schema_metadata(None), path, store_schema=n == 0)
        assert path.stat().st_size < 1 << 20
        blocks = READER.scan(Source(str(path)), block_bytes=1 << 22)
        for block in (next(blocks), next(blocks)):
            assert 1 << 21 < block.nbytes <= 1 << 22
        blocks.close()


def test_lists_that_expand_beyond_measure_are_refused(tmp_path: Path) -> None:
    items = pa.array(np.zeros(1 << 24))
    table = pa.table({"x": pa.ListArray.from_arrays(pa.array([0, 1 << 24], pa.int32()), items)})
    source = write(tmp_path / "bomb.parquet", table)
    with pytest.raises(InputError, match=r"bomb\.parquet: row group 0, column 'x': \d+ bytes expand to 134217728"):
        next(READER.scan(source))
