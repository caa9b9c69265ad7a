"""Delimited text: what astropy reads, or what the test itself wrote, is what arrives in Arrow."""

from __future__ import annotations

import csv
import gzip
import json
import os
import tracemalloc
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.table import MaskedColumn, Table
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.errors import ColumnError, InputError, MissingInputError
from scalable.io import delimited
from scalable.io.delimited import DelimitedTable
from scalable.io.drivers import reader_for
from scalable.io.reader import Source
from scalable.testing import check_reader


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def read(path: Path, kind: str = "csv", **options: object) -> pa.Table:
    """Scan a file and hold every block to the described schema and to Arrow's own rules."""
    blocks = list(DelimitedTable(kind).scan(Source(str(path)), **options))
    described = DelimitedTable(kind).describe(Source(str(path)))
    names = options.get("columns") or described.schema.names
    for block in blocks:
        block.validate(full=True)
        assert block.schema.equals(pa.schema([described.schema.to_arrow().field(n) for n in names]), check_metadata=True)
    whole = pa.concat_tables(blocks)
    assert whole.num_rows == described.rows
    return whole


def plain(value: object) -> object:
    """Return a cell of astropy as Python values, with None where it is masked or NaN."""
    if value is np.ma.masked or value is None:
        return None
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, complex):
        return [plain(value.real), plain(value.imag)]
    return None if isinstance(value, float) and value != value else value


def assert_as_astropy(found: pa.Table, expected: Table) -> None:
    assert found.column_names == expected.colnames
    for name in expected.colnames:
        column = expected[name]
        assert found[name].to_pylist() == [plain(cell) for cell in column], name
        meta = found.schema.field(name).metadata or {}
        assert meta.get(b"unit", b"").decode() == meta.get(b"source_unit", b"").decode() == (str(column.unit or ""))
        assert meta.get(b"description", b"").decode() == (column.description or "")


def by_astropy(path: Path) -> Table:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of units, and of complex numbers, which the standard of ECSV leaves out
        return Table.read(path, format="ascii.ecsv")


# Real files


def test_the_sdss_text_holds_what_astropy_reads(data: Path) -> None:
    path = data / "photoz" / "sdss_mgs_mlz" / "SDSS_MGS.test"
    whole = check_reader(DelimitedTable("text"), Source(str(path)))
    assert whole.num_rows == 5000
    assert set(whole.schema.types) == {pa.float64()}
    assert_as_astropy(whole, Table.read(path, format="ascii.commented_header"))


def test_a_header_that_leaves_a_name_out_names_nothing(data: Path) -> None:
    path = data / "photoz" / "sdss_mgs_mlz" / "SDSS_MGS.train"  # 18 names above 19 columns: `eu` is missing
    whole = check_reader(DelimitedTable("text"), Source(str(path)))
    assert whole.column_names == [f"col{n}" for n in range(1, 20)]
    np.testing.assert_array_equal(np.column_stack([column.to_numpy() for column in whole.columns]), np.loadtxt(path))
    assert DelimitedTable("text").describe(Source(str(path))).keywords["comments"][0].startswith("#zs u g r i z")


def test_the_observation_index_holds_what_astropy_reads(data: Path) -> None:
    path = data / "vvv" / "file_info_for_problem.csv"
    assert_as_astropy(check_reader(DelimitedTable("csv"), Source(str(path))), Table.read(path, format="ascii.csv"))


def test_gaia_epoch_photometry_holds_what_astropy_reads_with_its_arrays(data: Path) -> None:
    path = data / "tables" / "gaia_epoch.ecsv"
    whole = check_reader(DelimitedTable("ecsv"), Source(str(path)))
    expected = by_astropy(path)
    assert whole.schema.field("n_transits").type == pa.int16()
    assert whole.schema.field("transit_id").type == pa.list_(pa.int64())
    assert whole.schema.field("g_transit_flux_over_error").type == pa.list_(pa.float32())
    flags = [name for name in whole.column_names if whole.schema.field(name).type == pa.list_(pa.bool_())]
    assert len(flags) == 28
    # Logicals stand there as the texts "True" and "False", which astropy all takes for true: Python's own parsers tell them.
    rows = list(csv.DictReader(line for line in path.read_text().splitlines() if not line.startswith("#")))
    for name in flags:
        assert whole[name].to_pylist() == [[text == "True" for text in json.loads(row[name])] for row in rows]
        assert any(any(cell) for cell in whole[name].to_pylist()) or "noisy" not in name
    whole = whole.drop_columns(flags)
    expected.remove_columns(flags)
    for name in expected.colnames:  # astropy writes this unit in another spelling
        unit = (whole.schema.field(name).metadata or {}).get(b"unit", b"").decode()
        assert unit == {"electron / s": "'electron'.s**-1"}.get(str(expected[name].unit), str(expected[name].unit or ""))
        expected[name].unit = None
    bare = pa.schema([field.with_metadata({b"description": field.metadata[b"description"]}) for field in whole.schema])
    assert_as_astropy(whole.cast(bare), expected)
    assert whole["bp_flux"].combine_chunks().flatten().null_count > 0
    assert whole.schema.field("ra").metadata[b"ucd"] == b"pos.eq.ra;meta.main"
    assert DelimitedTable("ecsv").describe(Source(str(path))).keywords["RELEASE"] == "Gaia DR3"


# Generated ECSV


def many_kinds() -> Table:
    """Return a table with a column of every kind, masked cells among them."""
    rng = np.random.default_rng(1)
    table = Table(meta={"survey": "x", "list": [1, 2]})
    hidden = [False, True, False, False]
    for code in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"):
        info = np.iinfo(code)
        table[code] = MaskedColumn(np.array([info.min, 5, info.max, 7], code), mask=hidden, unit="pix", description=f"a {code}")
    for code in ("float32", "float64"):
        table[code] = MaskedColumn(np.array([np.nan, 1.5, 1 / 3, -np.inf], code), mask=hidden, unit="mag")
    table["bool"] = MaskedColumn([True, False, False, True], mask=hidden)
    table["string"] = MaskedColumn(["a b", "masked", 'say "hé", x', "# line\nline"], mask=hidden)
    table["complex128"] = np.array([1 + 2j, -1j, 3, np.nan])
    table["fixed"] = MaskedColumn(rng.normal(size=(4, 3)), mask=rng.random((4, 3)) < 0.3)
    table["lists"] = np.array([None] * 4, object)
    table["texts"] = np.array([None] * 4, object)
    for n in range(4):
        table["lists"][n] = np.arange(n, dtype=np.int32)
        table["texts"][n] = np.array([f'"{n}', "b"])
    return table


@pytest.mark.parametrize("delimiter", [" ", ","])
def test_every_kind_of_ecsv_column_holds_what_astropy_reads(tmp_path: Path, delimiter: str) -> None:
    path = tmp_path / "a.ecsv"
    many_kinds().write(path, format="ascii.ecsv", delimiter=delimiter)
    whole = check_reader(DelimitedTable("ecsv"), Source(str(path)))
    assert_as_astropy(whole, by_astropy(path))
    for name in ("int8", "uint64", "float32", "bool", "string"):
        assert whole.schema.field(name).type == {"float32": pa.float32(), "bool": pa.bool_()}.get(name, pa.type_for_alias(name))
        assert whole[name][1].as_py() is None
    assert whole.schema.field("fixed").type == pa.list_(pa.float64(), 3)
    assert whole.schema.field("lists").type == pa.list_(pa.int32())
    assert DelimitedTable("csv").describe(Source(str(path))).keywords["survey"] == "x"  # a file that says it is ECSV, is


def test_arrays_of_more_dimensions_are_flat_with_their_shape(tmp_path: Path) -> None:
    values = np.arange(12, dtype="f4").reshape(2, 2, 3)
    Table({"a": values, "n": [1, 2]}).write(tmp_path / "a.ecsv", format="ascii.ecsv")
    whole = check_reader(DelimitedTable("ecsv"), Source(str(tmp_path / "a.ecsv")))
    assert whole.schema.field("a").type == pa.list_(pa.float32(), 6)
    assert whole.schema.field("a").metadata == {b"shape": b"2,3"}
    assert whole["a"].to_pylist() == values.reshape(2, 6).tolist()


BILLION = "[&a [x], " + ", ".join(f"&{b} [{f'*{a}, ' * 9}]" for a, b in pairwise("abcdefghij")) + "]"
HEADER = "# %ECSV 1.0\n# ---\n# datatype:\n"


@pytest.mark.parametrize(
    ("head", "rows", "message"),
    [
        ("# - {name: a, datatype: int8}\n", "a\n1\n300\n", "line 7, column 'a': '300' is not int8, as the header says"),
        ("# - {name: a, datatype: int64}\n", "a\n1.5\n", "line 6, column 'a': '1.5' is not int64"),
        ("# - {name: a, datatype: bool}\n", "a\nTrue\nmaybe\n", "line 7, column 'a': 'maybe' is not bool"),
        ("# - {name: a, datatype: string, subtype: 'int64[null]'}\n", "a\n[1]\n[1,x]\n", r"line 7, .*'\[1,x\]' is not list"),
        (
            "# - {name: a, datatype: string, subtype: 'int64[2]'}\n",
            "a\n[1,2]\n[1]\n",
            r"line 7, .*'\[1\]' is not fixed_size_list",
        ),
        ("# - {name: a, datatype: complex128}\n", "a\n1+x\n", "line 6, column 'a': '1.x' is not fixed_size_list"),
        ("# - {name: a, datatype: object}\n", "a\n1\n", "column 'a': datatype 'object' is none that we read"),
        ("# - {name: a, datatype: string, subtype: 'int64[0]'}\n", "a\n1\n", "none may be 0"),
        ("# - {name: a, datatype: string, subtype: 'int64[9999999]'}\n", "a\n1\n", "at most 1048576"),
        ("# - {name: a, datatype: string, subtype: 'date[2]'}\n", "a\n1\n", "subtype 'date.2.' is none that we read"),
        ("# - {datatype: int8}\n", "a\n1\n", "a column of the ECSV header has no name"),
        ("# - {name: a, datatype: int8}\n", "b\n1\n", "line 5: the names differ .* column 1 is 'a' and 'b'"),
        ("# - {name: a, datatype: int8}\n", "a b\n1\n", "column 2 is nothing and 'b'"),
        ("# - {name: a, datatype: int8}\n# - {name: a, datatype: int8}\n", "a a\n1 1\n", "column 'a' is there 2 times"),
        ("# - {name: a, datatype: int8}\n", "", "line 4: the file ends behind the header"),
        ("# - {name: [a\n", "a\n1\n", "not valid YAML in line"),
        ("# delimiter: 5\n", "a\n1\n", "no `datatype:` list"),
        ("# - {name: a, datatype: int8}\n# delimiter: '|'\n", "a\n1\n", "delimiter is '|'"),
        ("# - " + "[" * 100_000 + "\n", "a\n1\n", "not valid YAML .brackets within brackets"),
        ("# - &a {name: *a}\n", "a\n1\n", "not valid YAML .aliases within aliases"),
        ("# - " + BILLION + "\n", "a\n1\n", "not valid YAML .aliases within aliases"),
        (
            "# - {name: a, datatype: int8}\n# meta: {__serialized_columns__: {a: {mask: !astropy.x {name: a.mask}}}}\n",
            "a\n1\n",
            "column 'a' keeps its mask in a column of its own.* serialize_method='null_value'",
        ),
    ],
)
def test_an_ecsv_file_that_cannot_be_is_refused_by_name_and_line(tmp_path: Path, head: str, rows: str, message: str) -> None:
    path = put(tmp_path / "a.ecsv", HEADER + head + rows)
    with pytest.raises(InputError, match=f"a.ecsv: .*{message}"):
        read(path, "ecsv")


def test_a_tag_in_an_ecsv_header_makes_nothing(tmp_path: Path) -> None:
    meta = "# meta: !!python/object/apply:os.system [touch /tmp/never]\n"
    path = put(
        tmp_path / "a.ecsv", HEADER + "# - {name: a, unit: !astropy.units.Unit {unit: deg}, datatype: int8}\n" + meta + "a\n1\n"
    )
    assert read(path, "ecsv").schema.field("a").metadata == {b"unit": b"deg", b"source_unit": b"deg"}


# Types, nulls, numbers


@pytest.mark.parametrize(
    ("cells", "dtype", "values"),
    [
        ("1 -2 +3", pa.int64(), [1, -2, 3]),
        ("1 nan 3", pa.int64(), [1, None, 3]),
        ("1 -- NULL", pa.int64(), [1, None, None]),
        ("1 2.5 +.5", pa.float64(), [1.0, 2.5, 0.5]),
        ("1.5 NaN -nan", pa.float64(), [1.5, None, None]),
        ("1e3 -inf +Infinity", pa.float64(), [1000.0, -np.inf, np.inf]),
        ("none N/A -", pa.float64(), [None, None, None]),
        ("18446744073709551615 1 2", pa.uint64(), [2**64 - 1, 1, 2]),
        ("184467440737095516150 1 2", pa.string(), ["184467440737095516150", "1", "2"]),
        ("9223372036854775807 -9223372036854775808 0", pa.int64(), [2**63 - 1, -(2**63), 0]),
        ("true False na", pa.bool_(), [True, False, None]),
        ("nan b null", pa.string(), ["nan", "b", "null"]),
        ("12:30:15 +01:02 -", pa.string(), ["12:30:15", "+01:02", "-"]),
        ("2020-01-01 2020-01-02 x", pa.string(), ["2020-01-01", "2020-01-02", "x"]),
    ],
)
@pytest.mark.parametrize("kind", ["csv", "text"])
def test_types_follow_from_the_values_and_words_for_nothing_are_null(
    tmp_path: Path, kind: str, cells: str, dtype: pa.DataType, values: list[object]
) -> None:
    mark = "," if kind == "csv" else "  "
    path = put(tmp_path / "a.txt", "a,b\n".replace(",", mark) + "".join(f"{cell}{mark}0\n" for cell in cells.split()))
    whole = check_reader(DelimitedTable(kind), Source(str(path)))
    assert whole.schema.field("a").type == dtype
    assert whole["a"].to_pylist() == values


def test_empty_cells_are_null_quoted_or_not_in_any_column(tmp_path: Path) -> None:
    path = put(tmp_path / "a.csv", 'n,x,s,e\n1,1.5,a,\n,,"",\n"",  , ,""\n')
    whole = read(path)
    assert whole.schema.types == [pa.int64(), pa.float64(), pa.string(), pa.float64()]
    assert whole.to_pylist()[1:] == [dict.fromkeys("nxse")] * 2


@settings(max_examples=80, deadline=None)
@given(st.lists(st.floats(allow_nan=False).map(repr) | st.from_regex(r"-?[0-9]{1,20}\.[0-9]{0,20}", fullmatch=True), min_size=1))
def test_every_number_is_the_nearest_float(tmp_path_factory: pytest.TempPathFactory, numbers: list[str]) -> None:
    path = put(tmp_path_factory.getbasetemp() / "n.csv", "a,b\n" + "".join(f"{number},x\n" for number in ["0.5", *numbers]))
    found = read(path)["a"].to_numpy()
    assert found.tobytes() == np.array([0.5, *map(float, numbers)]).tobytes()


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"], exclude_characters="\0\r"), max_size=6)


@settings(max_examples=100, deadline=None)
@given(rows=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=20), block=st.integers(1, 300), quote=st.booleans())
def test_any_text_that_pythons_csv_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], block: int, quote: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "w.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_ALL if quote else csv.QUOTE_MINIMAL)
        writer.writerows([("a", "b"), ("x", "y"), *rows])
    whole = read(path, block_bytes=block)
    # Blanks around a cell without quotes do not belong to it; Python quotes a cell for a blank nowhere.
    trim = (
        (lambda cell: cell or None) if quote else (lambda cell: (cell if set(cell) & set(',"\n') else cell.strip(" \t")) or None)
    )
    assert [tuple(row.values()) for row in whole.to_pylist()] == [(trim(a), trim(b)) for a, b in [("x", "y"), *rows]]


def late(tmp_path: Path, value: str) -> Path:
    """Write a file whose last row, far behind the first MB, holds something else than whole numbers."""
    return put(tmp_path / "late.csv", "id,n\n" + "1234567,8901234\n" * 100_000 + f"5,{value}\n6,7\n")


@pytest.mark.parametrize("block_bytes", [1 << 16, 1 << 26])
def test_a_value_that_the_first_rows_did_not_announce_is_named(tmp_path: Path, block_bytes: int) -> None:
    message = r"late.csv: line 100002, column 'n': '1.5' does not fit int64, .* first 1048576 bytes are; write the table as ECSV"
    path = late(tmp_path, "1.5")
    with pytest.raises(InputError, match=message):
        list(DelimitedTable().scan(Source(str(path)), block_bytes=block_bytes))
    assert sum(b.num_rows for b in DelimitedTable().scan(Source(str(path)), columns=["id"], block_bytes=block_bytes)) == 100_002
    assert read(late(tmp_path, " NULL "))["n"].null_count == 1


# Lines and headers


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_line_ends_blank_lines_and_a_byte_order_mark_change_nothing(tmp_path: Path, ending: str, last: bool, bom: bytes) -> None:
    text = ending.join(["a,b", "1,x y", "", "  ", '2,"p', 'q"', "3, z "]) + ending * last
    path = put(tmp_path / "a.csv", bom + text.encode())
    whole = check_reader(DelimitedTable(), Source(str(path)))
    assert whole.to_pydict() == {"a": [1, 2, 3], "b": ["x y", f"p{ending}q", "z"]}


@pytest.mark.parametrize(
    ("kind", "text", "names", "first"),
    [
        ("text", "# made by me\n#\n# a  b\n\n1\t 2\n# end\n3 4", ["a", "b"], [1, 2]),
        ("text", "a b\n1 2\n", ["a", "b"], [1, 2]),
        ("text", '"a b" c\n1 "2 3"\n', ["a b", "c"], [1, "2 3"]),
        ("text", "1 2\n3 4\n", ["col1", "col2"], [1, 2]),
        ("text", "M31 10.68\nM33 23.46\n", ["col1", "col2"], ["M31", 10.68]),
        ("text", "# note that\n1 2 3\n", ["col1", "col2", "col3"], [1, 2, 3]),
        ("csv", "# a, b\n1, 2\n", ["a", "b"], [1, 2]),
        ("csv", "# made in 2020\na,b\n1,2\n", ["a", "b"], [1, 2]),
        ("csv", "a,b\n#1,2\n", ["a", "b"], ["#1", 2]),
        ("csv", ",b\n1,2\n", ["col1", "b"], [1, 2]),
        ("csv", "a;b\n1,5;2\n", ["a", "b"], ["1,5", 2]),
        ("csv", "a\tb\n 1\t\n", ["a", "b"], [1, None]),
        ("csv", "a,2015\n1,2\n", ["a", "2015"], [1, 2]),
        ("csv", '"a,1",b\n1,2\n', ["a,1", "b"], [1, 2]),
    ],
)
def test_names_come_from_the_line_that_names_as_many_columns_as_there_are(
    tmp_path: Path, kind: str, text: str, names: list[str], first: list[object]
) -> None:
    whole = check_reader(DelimitedTable(kind), Source(str(put(tmp_path / "a.txt", text))))
    assert whole.column_names == names
    assert list(whole.to_pylist()[0].values()) == first


@pytest.mark.parametrize(("kind", "text"), [("csv", "a,b\n"), ("csv", "a,b"), ("text", "# a b"), ("csv", "#a,b\n\n")])
def test_a_table_without_rows_gives_one_empty_block(tmp_path: Path, kind: str, text: str) -> None:
    blocks = list(DelimitedTable(kind).scan(Source(str(put(tmp_path / "a.txt", text)))))
    assert [(block.num_rows, block.column_names) for block in blocks] == [(0, ["a", "b"])]
    check_reader(DelimitedTable(kind), Source(str(tmp_path / "a.txt")))


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("csv", b"a,b\n1,2\n1,2,3\n", "line 3: 3 fields, 2 are needed; correct the line, or quote what holds a delimiter"),
        ("csv", b"a,b\n\n1\n", "line 3: 1 fields, 2 are needed"),
        ("csv", b"a,b\n1,2,\n", "line 2: 3 fields, 2 are needed"),
        ("csv", b'a,b\n"x\ny",2\n"x"z,2\n', "line 4: text behind the closing quote of field 1"),
        ("csv", b'a,b\n1,2\n3,"x\n4,5\n', "line 3: quotes are opened and not closed up to the end of the file"),
        ("text", b"# a b\n1 2\n3\n", "line 3: 1 fields, 2 are needed"),
        ("text", b'a b\n"x"y 2\n', "line 2: text behind the closing quote"),
        ("csv", b"1,2\n3,4\n", "line 1: a line with 2 names is needed before the first row; there is no such line"),
        ("csv", b"M31,10.68\nM33,23.46\n", "line 1: a line with 2 names is needed before the first row"),
        ("csv", b"# a,b,c\n3,4\n", r"line 2: a line with 2 names is needed .*; line 1 \(with #\) has 3 of them"),
        ("csv", b"a,a\n1,2\n", "column 'a' is there 2 times"),
        ("csv", b"a,b\r1,2\r3,4\r", "line 1: this is no line of names .new-line character seen"),
        ("csv", b"", "the file is empty"),
        ("csv", b"\n \n", "the file is empty"),
        ("csv", b"a,b\n1,\xff\n", "line 2: not UTF-8; convert the file, for example with iconv"),
        ("csv", b"a,\xff\n1,2\n", "line 1: not UTF-8"),
        ("csv", b"a,b\n1,2\n3,x\0\n", "line 3: a NUL byte"),
        ("csv", b"SIMPLE\0\0\n", "line 1: a NUL byte: this is no text file"),
        ("ecsv", b"a,b\n1,2\n", "line 1: an ECSV file begins with `# %ECSV 1.0`"),
    ],
)
def test_a_malformed_file_is_refused_by_line_and_reason(tmp_path: Path, kind: str, text: bytes, message: str) -> None:
    path = put(tmp_path / "a.txt", text)
    for block_bytes in (1, 1 << 26):
        with pytest.raises(InputError, match=f"^{path}: .*{message}"):
            list(DelimitedTable(kind).scan(Source(str(path)), block_bytes=block_bytes))


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="none.csv: no such file"):
        DelimitedTable().describe(Source(str(tmp_path / "none.csv")))
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(InputError, match="not a regular file"):
            next(DelimitedTable().scan(Source(str(path))))
    with pytest.raises(ColumnError, match="no column 'Ra'; did you mean 'ra'"):
        next(DelimitedTable().scan(Source(str(put(tmp_path / "a.csv", "ra,dec\n1,2\n"))), columns=["Ra"]))


def test_formats_are_found_by_name() -> None:
    assert [reader_for(kind).reader for kind in ("csv", "text", "ecsv")] == [
        DelimitedTable(kind) for kind in ("csv", "text", "ecsv")
    ]


def test_a_row_without_end_is_refused_before_all_of_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delimited, "_LONGEST_RECORD", 1 << 21)
    path = put(tmp_path / "a.csv", b'a,b\n1,2\n3,"' + b"x" * (1 << 24))
    with pytest.raises(InputError, match="line 2: no row ends in 2097152 bytes|line 3: no row ends in 2097152 bytes"):
        list(DelimitedTable().scan(Source(str(path)), block_bytes=1000))


# Compressed files


def test_a_compressed_file_is_read_as_the_plain_one(tmp_path: Path) -> None:
    text = "a,b\n" + "".join(f"{n},{n / 7}\n" for n in range(50_000))
    cut = len(text) // 3
    path = put(tmp_path / "a.csv.gz", gzip.compress(text[:cut].encode()) + gzip.compress(text[cut:].encode()) + b"\0" * 9)
    assert check_reader(DelimitedTable(), Source(str(path))).equals(read(put(tmp_path / "a.csv", text)))


def test_a_cut_or_corrupt_gzip_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    whole = gzip.compress(("a\n" + "\n".join(map(str, rng.integers(0, 10**9, 200_000)))).encode())
    with pytest.raises(InputError, match="the gzip stream is cut after .* bytes: truncated; fetch it again"):
        read(put(tmp_path / "a.gz", whole[: len(whole) // 2]))
    with pytest.raises(InputError, match="corrupt gzip behind byte"):
        read(put(tmp_path / "a.gz", whole[:-8] + b"\1" * 8))


def test_a_bomb_is_refused_and_memory_stays_small(tmp_path: Path) -> None:
    inner = gzip.compress(b"a,b\n" + b"1,2\n" * (1 << 24), 9)  # 64 MB
    path = put(tmp_path / "bomb.gz", inner + gzip.compress(b"1,2\n" * (1 << 23), 9))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="bomb.gz: .* bytes of gzip swell to more than .*: refused as a decompression bomb"):
            DelimitedTable().describe(Source(str(path)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()
