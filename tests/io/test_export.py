"""Answers as files: other people's readers find the same values, nulls, units, UCDs and descriptions."""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.io.votable import parse_single_table
from astropy.table import Table

from scalable.errors import ColumnError, StoreError
from scalable.io.export import WRITERS, write_tables
from scalable.schema import Column, Schema

COLUMNS = (
    Column("object_id", pa.int64(), ucd="meta.id;meta.main", description="Object"),
    Column("Mag1", pa.float32(), unit="mag", ucd="phot.mag;em.IR.J", description="Magnitude in aperture 1"),
    Column("ra", pa.float64(), unit="deg", ucd="pos.eq.ra", description="Right ascension, " * 20),
    Column("n", pa.int32(), description="Detections, of which there may be none"),
    Column("small", pa.uint8()),
    Column("flag", pa.bool_()),
    Column("sure", pa.bool_()),
    Column("band", pa.string(), description="Filter"),
    Column("spectrum", pa.list_(pa.float32(), 3), unit="adu"),
)
SCHEMA = Schema(COLUMNS).to_arrow()
ROWS = {
    "object_id": [1, -(2**63), 2**53 + 1, 4, 5],
    "Mag1": [15.25, None, 0.1, -3.5, None],
    "ra": [0.1, 359.99999999999994, None, 1e-300, 180.0],
    "n": [0, None, -(2**31), 2**31 - 1, None],
    "small": [0, 255, None, 7, 1],
    "flag": [True, None, False, True, None],
    "sure": [True, True, False, False, True],
    "band": ["J", "Ks", None, "a, \"b\"", "H"],
    "spectrum": [[1.5, 2.5, 3.5], [0.1, 0.2, 0.3], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0], [0.0, -1.0, 1.0]],
}  # fmt: skip
TABLE = pa.table(ROWS, schema=SCHEMA)


def pieces(table: pa.Table, rows: int = 2) -> Iterator[pa.Table]:
    for first in range(0, table.num_rows, rows):
        yield table.slice(first, rows)


def write(table: pa.Table, path: Path) -> Path:
    assert write_tables(pieces(table), table.schema, path) == table.num_rows
    assert [found.name for found in path.parent.iterdir()] == [path.name], "nothing is left beside the file"
    return path


@pytest.mark.parametrize("ending", [".fits", ".vot", ".ecsv"])
def test_astropy_reads_values_nulls_units_and_descriptions(tmp_path: Path, ending: str) -> None:
    path = write(TABLE, tmp_path / f"answer{ending}")
    with warnings.catch_warnings():
        # UCDs of FITS are a convention that astropy does not know.
        warnings.simplefilter("ignore")
        found = Table.read(path)
    assert found.colnames == SCHEMA.names
    for column in COLUMNS:
        name, expected = column.name, ROWS[column.name]
        values = [None if mask else value for value, mask in zip(found[name], masks(found, name), strict=True)]
        for mine, theirs in zip(expected, values, strict=True):
            # For FITS and ECSV, and for astropy in VOTables, a text that is null is the empty one.
            if mine is None:
                assert theirs is None or (column.dtype == pa.string() and theirs == ""), (name, theirs)
            elif column.dtype == pa.float32():
                assert np.float32(theirs) == np.float32(mine), name
            elif pa.types.is_nested(column.dtype):
                assert np.array_equal(np.asarray(theirs, dtype=np.float32), np.float32(mine)), name
            else:
                assert theirs == mine, name
        assert str(found[name].unit or "") == column.unit
        if ending != ".fits":
            assert " ".join((found[name].description or "").split()) == column.description.strip()


def test_a_parquet_file_is_the_table_and_astropy_finds_its_units(tmp_path: Path) -> None:
    path = write(TABLE, tmp_path / "answer.parquet")
    found = pq.read_table(path)
    assert found.equals(TABLE)
    assert Schema.from_arrow(found.schema) == Schema(COLUMNS)
    plain = TABLE.drop_columns(["flag", "spectrum"])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = Table.read(write(plain, tmp_path / "plain" / "answer.parquet"), format="parquet.votable")
    assert [str(table[name].unit or "") for name in plain.column_names] == [
        c.unit for c in COLUMNS if c.name in plain.column_names
    ]


def masks(table: Table, name: str) -> list[bool]:
    values = table[name]
    if values.ndim > 1:
        return [False] * len(values)
    mask = getattr(values, "mask", np.zeros(len(values), dtype=bool))
    missing = np.zeros(len(values), dtype=bool) | mask
    if values.dtype.kind == "f":
        missing |= np.isnan(np.ma.filled(values, np.nan))
    return [bool(m) for m in missing]


def test_a_fits_file_keeps_ucds_and_descriptions_and_is_valid(tmp_path: Path) -> None:
    path = write(TABLE, tmp_path / "answer.fits")
    with fits.open(path) as hdus:
        hdus.verify("exception")
        header = hdus[1].header
        for number, column in enumerate(COLUMNS, 1):
            assert header.get(f"TUCD{number}", "") == column.ucd
            assert header.get(f"TCOMM{number}", "") == column.description.strip()
            assert header.get(f"TUNIT{number}", "") == column.unit
        # A value of the data never means null: the smallest integer is one here.
        assert "TNULL1" not in header
        assert hdus[1].columns["n"].format == "K"
    assert path.stat().st_size % 2880 == 0


def test_a_votable_keeps_ucds_and_tells_null_from_empty_text(tmp_path: Path) -> None:
    table = pa.table({"t": ["", None, "λ Cep 𝛼", "x"], "n": pa.array([0, None, 2, 3], pa.int16())})
    path = write(table, tmp_path / "answer.xml")
    array = parse_single_table(path).array
    assert array["n"].tolist() == [0, None, 2, 3]
    assert array["t"].tolist() == ["", "", "λ Cep 𝛼", "x"]
    # astropy drops the flags of texts: they are read from the bytes, the first bit of every row.
    stream = base64.b64decode(path.read_text().partition('base64">')[2].partition("</STREAM>")[0])
    assert len(stream) % 4 == 0
    assert [byte >> 7 for byte in stream[:: len(stream) // 4]] == [0, 1, 0, 0]
    found = parse_single_table(write(TABLE, tmp_path / "other" / "answer.vot"))
    assert [field.ucd or "" for field in found.fields] == [column.ucd for column in COLUMNS]


def test_lists_of_different_lengths_survive_in_fits_and_ecsv(tmp_path: Path) -> None:
    lists = [[1.5], [], None, [0.1, 0.2, 0.3], [7.0]]
    table = pa.table({"n": range(5), "flux": lists}, schema=pa.schema([("n", pa.int64()), ("flux", pa.list_(pa.float64()))]))
    with fits.open(write(table, tmp_path / "fits" / "answer.fits")) as hdus:
        hdus.verify("exception")
        assert [list(cell) for cell in hdus[1].data["flux"]] == [cell or [] for cell in lists]
    cells = pyarrow.csv.read_csv(write(table, tmp_path / "csv" / "answer.csv"))["flux"].to_pylist()
    assert [json.loads(cell) if cell else None for cell in cells] == lists
    assert pq.read_table(write(table, tmp_path / "pq" / "answer.parquet"))["flux"].to_pylist() == lists
    found = Table.read(write(table, tmp_path / "ecsv" / "answer.ecsv"))
    assert found["flux"][3].tolist() == [0.1, 0.2, 0.3]
    with pytest.raises(ColumnError, match=r"flux.*one length"):
        write(table, tmp_path / "answer.vot")


def test_csv_tells_null_from_empty_text_and_keeps_every_digit(tmp_path: Path) -> None:
    table = pa.table({"t": ["", None, 'a,"b"\nc'], "x": [0.1, 1e-300, None], "b": [True, None, False]})
    path = write(table, tmp_path / "answer.csv")
    options = pyarrow.csv.ConvertOptions(strings_can_be_null=True, quoted_strings_can_be_null=False)
    parsing = pyarrow.csv.ParseOptions(newlines_in_values=True)
    assert pyarrow.csv.read_csv(path, convert_options=options, parse_options=parsing).to_pydict() == table.to_pydict()


@pytest.mark.parametrize("ending", WRITERS)
def test_an_answer_without_rows_has_its_columns_in_every_format(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"answer{ending}"
    assert write_tables(iter(()), SCHEMA, path) == 0
    if ending == ".fits":
        assert fits.getdata(path).names == SCHEMA.names
    assert path.stat().st_size > 0


def test_what_a_format_cannot_hold_is_refused_by_name_and_nothing_appears(tmp_path: Path) -> None:
    cases = [
        (pa.table({"s": pa.array([{"a": 1}])}), "answer.fits", "only .parquet holds columns like s"),
        (pa.table({"t": ["λ"]}), "answer.fits", "ASCII"),
        (pa.table({"größe": [1]}), "answer.fits", "names in FITS"),
        (pa.table({"n": pa.array([-(2**63), 2**63 - 1, None])}), "answer.fits", "no integer is left"),
        (pa.table({"n": pa.array([2**64 - 1], pa.uint64())}), "answer.vot", "larger than"),
    ]
    for table, name, message in cases:
        with pytest.raises(ColumnError, match=message):
            write_tables([table], table.schema, tmp_path / name)
        assert not list(tmp_path.iterdir())


def test_a_file_that_is_there_stays_unless_it_may_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "answer.csv"
    path.write_text("mine")
    with pytest.raises(StoreError, match="--force"):
        write_tables([TABLE], SCHEMA, path)
    assert path.read_text() == "mine"
    assert write_tables([TABLE], SCHEMA, path, overwrite=True) == 5
    with pytest.raises(StoreError, match=r"no format.*\.parquet, "):
        write_tables([TABLE], SCHEMA, tmp_path / "answer.xlsx")


def test_a_failure_half_way_leaves_what_was_there(tmp_path: Path) -> None:
    def broken() -> Iterator[pa.Table]:
        yield TABLE
        raise RuntimeError("the third partition failed")

    for ending in WRITERS:
        path = tmp_path / f"answer{ending}"
        path.write_text("mine")
        with pytest.raises(RuntimeError, match="third partition"):
            write_tables(broken(), SCHEMA, path, overwrite=True)
        assert path.read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == len(WRITERS)
