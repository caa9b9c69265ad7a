"""VOTables: what astropy reads, or what the test itself wrote, is what arrives in Arrow."""

from __future__ import annotations

import base64
import gzip
import struct
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.io.votable import from_table, parse_single_table
from astropy.table import MaskedColumn, Table
from astropy.units import UnrecognizedUnit
from astropy.utils.data import get_pkg_data_path
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.errors import ColumnError, InputError, MissingInputError
from scalable.io import votable
from scalable.io.drivers import reader_for
from scalable.io.reader import Source
from scalable.io.votable import VOTable
from scalable.schema import parse_unit
from scalable.testing import check_reader

READER = VOTable()
KINDS = ["tabledata", "binary", "binary2"]


def put(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def document(fields: str, data: str, table: str = "", front: str = "") -> str:
    """Write a document with one table by hand."""
    name = 'version="1.4" xmlns="http://www.ivoa.net/xml/VOTable/v1.3"'
    return (
        f'<?xml version="1.0"?>\n<VOTABLE {name}>{front}<RESOURCE>\n<TABLE {table}>{fields}{data}</TABLE>\n</RESOURCE></VOTABLE>'
    )


def rows(*cells: tuple[str, ...]) -> str:
    lines = ("<TR>" + "".join(f"<TD>{cell}</TD>" for cell in row) + "</TR>\n" for row in cells)
    return f"<DATA><TABLEDATA>{''.join(lines)}</TABLEDATA></DATA>"


def binary(raw: bytes, kind: str = "BINARY") -> str:
    return f'<DATA><{kind}><STREAM encoding="base64">{base64.encodebytes(raw).decode()}</STREAM></{kind}></DATA>'


def field(name: str, datatype: str, size: str = "", inside: str = "") -> str:
    size = f' arraysize="{size}"' if size else ""
    return f'<FIELD name="{name}" datatype="{datatype}"{size}>{inside}</FIELD>'


def read(path: Path, hdu: int = 1, **options: object) -> pa.Table:
    """Scan a table and hold every block to the described schema and to Arrow's own rules."""
    blocks = list(READER.scan(Source(str(path), hdu=hdu), **options))
    info = READER.describe(Source(str(path), hdu=hdu))
    for block in blocks:
        block.validate(full=True)
        assert block.schema.equals(info.schema.to_arrow(), check_metadata=True)
    whole = pa.concat_tables(blocks)
    assert whole.num_rows == info.rows
    return whole


def plain(value: object) -> object:
    """Return a cell of astropy as Python values, with None where it is masked, NaN or an empty text."""
    if value is np.ma.masked or value is None:
        return None
    if isinstance(value, np.ndarray):
        return [plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, complex):
        return [plain(value.real), plain(value.imag)]
    if isinstance(value, bytes):
        value = value.decode()
    return None if value == "" or value != value else value


def assert_as_astropy(found: pa.Table, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parsed = parse_single_table(path)
    assert found.column_names == [field.name for field in parsed.fields]
    for declared in parsed.fields:
        name, column = declared.name, parsed.array[declared.ID]
        got = found[name].to_pylist()
        if pa.types.is_list(found.schema.field(name).type):  # astropy makes an empty array of an empty TD
            got = [cell or [] for cell in got]
        assert got == [plain(cell) for cell in column], name
        meta = {key.decode(): value.decode() for key, value in (found.schema.field(name).metadata or {}).items()}
        assert meta.get("unit", "") == meta.get("source_unit", "")
        unit = declared.unit or parse_unit("")
        assert parse_unit(meta.get("unit", "")) == unit or isinstance(unit, UnrecognizedUnit)
        assert meta.get("ucd", "") == (declared.ucd or "")
        assert meta.get("description", "") == " ".join(str(declared.description or "").split())


# Tables that astropy wrote


def many_kinds() -> Table:
    table = Table()
    hidden = [False, True, False, False]
    for code in ("uint8", "int16", "int32", "int64"):
        info = np.iinfo(code)
        values = MaskedColumn(np.array([info.min, 5, info.max - 1, 7], code), mask=hidden, unit="pix", description=f"a {code}")
        table[code] = values
    for code in ("float32", "float64"):
        table[code] = MaskedColumn(np.array([np.nan, 1.5, 1 / 3, -np.inf], code), mask=hidden, unit="mag")
    table["bool"] = np.array([True, False, False, True])
    table["char"] = ["a b", "", "x < y & z", "last"]
    table["wide"] = np.array(["é", "", "日本", "z"])
    table["complex"] = np.array([1 + 2j, -1j, 3, 0.5])
    table["fixed"] = np.arange(12, dtype="f4").reshape(4, 3)
    table["lists"] = np.array([None] * 4, object)
    for n in range(4):
        table["lists"][n] = np.ma.array(np.arange(n, dtype=np.int32), mask=np.zeros(n, bool))
    return table


def write(path: Path, table: Table, kind: str) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        document = from_table(table)
        for declared in document.get_first_table().fields:
            declared.ucd = "meta.id" if declared.name == "int64" else None
            if declared.datatype in ("unsignedByte", "short", "int", "long") and kind != "binary2" and declared.arraysize is None:
                declared.values.null = 99
        document.to_xml(str(path), tabledata_format=kind)
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_column_holds_what_astropy_reads(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "a.xml", many_kinds(), kind)
    whole = check_reader(READER, Source(str(path)))
    assert_as_astropy(whole, path)
    assert whole.schema.field("fixed").type == pa.list_(pa.float32(), 3)
    assert whole.schema.field("lists").type == pa.list_(pa.int32())
    assert whole.schema.field("complex").type == pa.list_(pa.float64(), 2)
    for name in ("uint8", "int16", "int32", "int64", "float32", "float64"):
        assert whole[name][1].as_py() is None
        assert whole.schema.field(name).type == pa.from_numpy_dtype(np.dtype(name))


@pytest.mark.parametrize(
    "name",
    [
        "binary2_masked_strings.xml",
        "binary2_variable_length_char.xml",
        "gemini.xml",
        "regression.bin.tabledata.truth.1.3.xml",
        "valid_votable.xml",
        "vizier_b2_votable.xml",
    ],
)
def test_documents_that_others_wrote_hold_what_astropy_reads(name: str, tmp_path: Path) -> None:
    path = Path(get_pkg_data_path("tests", "data", name, package="astropy.io.votable"))
    if not path.exists():
        pytest.skip("astropy was installed without its tests' data")
    if name.startswith("vizier"):
        with pytest.raises(InputError, match=r"vizier.*: line 101, .*the service cut the result"):
            list(READER.scan(Source(str(path))))
        path = put(tmp_path / name, path.read_text().replace('value="OVERFLOW"', 'value="OK"'))
    whole = check_reader(READER, Source(str(path)))
    assert whole.num_rows > 0
    if not name.startswith(("regression", "gemini")):  # astropy makes 0 of an empty TD in documents of version 1.1
        assert_as_astropy(whole, path)


@pytest.mark.parametrize("kind", KINDS)
def test_the_size_of_blocks_changes_nothing_but_the_blocks(tmp_path: Path, kind: str) -> None:
    rng = np.random.default_rng(3)
    table = Table({"id": np.arange(3000), "x": rng.normal(size=3000), "s": rng.integers(0, 99, 3000).astype(str)})
    path = write(tmp_path / "a.xml", table, kind)
    whole = read(path)
    assert whole["x"].to_numpy().tobytes() == table["x"].data.tobytes()
    for block_bytes in (1000, 20_000, 1 << 20):
        blocks = list(READER.scan(Source(str(path)), block_bytes=block_bytes))
        assert pa.concat_tables(blocks).equals(whole)
        assert max(block.num_rows for block in blocks) <= max(300, block_bytes // 8)
        assert all(column.num_chunks == 1 for block in blocks for column in block.columns)


@settings(max_examples=25, deadline=None)
@given(drawn=st.data())
def test_any_table_reads_as_astropy_reads_it(tmp_path_factory: pytest.TempPathFactory, drawn: st.DataObject) -> None:
    count = drawn.draw(st.integers(1, 20))
    table = Table()
    for n, code in enumerate(
        drawn.draw(st.lists(st.sampled_from(["u1", "i2", "i4", "i8", "f4", "f8", "U"]), min_size=1, max_size=6))
    ):
        if code == "U":
            words = st.text(
                st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Cs"]), min_size=1, max_size=5
            )
            table[f"c{n}"] = drawn.draw(st.lists(words, min_size=count, max_size=count))
            continue
        shape = drawn.draw(st.sampled_from([(count,), (count, 2)]))
        raw = drawn.draw(st.binary(min_size=16 * count, max_size=16 * count))
        with np.errstate(all="ignore"):
            table[f"c{n}"] = np.frombuffer(raw, code)[: np.prod(shape)].reshape(shape)
    path = write(tmp_path_factory.getbasetemp() / "any.xml", table, drawn.draw(st.sampled_from(KINDS)))
    with np.errstate(all="ignore"):
        assert_as_astropy(read(path, block_bytes=drawn.draw(st.integers(1, 3000))), path)


# Documents by hand


def test_cells_of_text_become_values_and_nulls(tmp_path: Path) -> None:
    nulls = '<VALUES null="-99"/>'
    fields = (
        field("flag", "boolean") + field("n", "int", inside=nulls) + field("x", "float", inside=nulls) + field("s", "char", "*")
        + field("v", "double", "2x2") + field("w", "short", "*", nulls) + field("b", "bit", "3") + field("z", "floatComplex")
    )  # fmt: skip
    data = rows(
        ("T", "+5", "1.5", "a &lt; b", "1 2 3 4", "1 -99 3", "101", "1 2"),
        ("?", "-99", "-99.0", "", "NaN 1 +Inf 2", "", "0 1 0", "NaN 1"),
        (" false ", "0x1F", "NaN", " b ", "", "7", "", ""),
        ("", "", "", "<![CDATA[<x>]]>", "1 2 3 4", " ", "000", "1e3 -1"),
    )
    whole = check_reader(READER, Source(str(put(tmp_path / "a.xml", document(fields, data)))))
    assert whole.to_pydict() == {
        "flag": [True, None, False, None],
        "n": [5, None, 31, None],
        "x": [1.5, None, None, None],
        "s": ["a < b", None, " b ", "<x>"],
        "v": [[1, 2, 3, 4], [None, 1, np.inf, 2], None, [1, 2, 3, 4]],
        "w": [[1, None, 3], None, [7], None],
        "b": [[True, False, True], [False, True, False], None, [False] * 3],
        "z": [[1, 2], [None, 1], None, [1000, -1]],
    }
    assert whole.schema.field("v").type == pa.list_(pa.float64(), 4)
    assert whole.schema.field("v").metadata == {b"shape": b"2,2"}


@pytest.mark.parametrize("kind", ["BINARY", "BINARY2"])
def test_cells_of_bytes_become_values_and_nulls(tmp_path: Path, kind: str) -> None:
    fields = (
        field("s", "char", "*") + field("flag", "boolean", "2") + field("n", "int", inside='<VALUES null="-99"/>')
        + field("f", "char", "4") + field("u", "unicodeChar", "*") + field("b", "bit", "9") + field("w", "double", "*")
        + field("c", "bit", "*") + field("z", "doubleComplex", "*")
    )  # fmt: skip

    def row(
        s: bytes, flag: bytes, n: int, f: bytes, u: str, b: bytes, w: list[float], c: tuple[int, bytes], z: list[float]
    ) -> bytes:
        wide = u.encode("utf-16-be")
        return b"".join(
            [struct.pack(">I", len(s)), s, flag, struct.pack(">i", n), f, struct.pack(">I", len(wide) // 2), wide, b]
            + [struct.pack(f">I{len(w)}d", len(w), *w), struct.pack(">I", c[0]), c[1]]
            + [struct.pack(f">I{len(z)}d", len(z) // 2, *z)]
        )

    flags = (b"\0\0", b"\xff\x80", b"\0\0") if kind == "BINARY2" else (b"",) * 3
    raw = flags[0] + row(b"ab", b"TF", 5, b"xy\0z", "é日", b"\xa0\x80", [1.5, np.nan], (3, b"\xa0"), [1, 2, 3, 4])
    raw += flags[1] + row(b"gone", b"TT", 9, b"gone", "x", b"\0\0", [1], (2, b"\xc0"), [1, 2])
    raw += flags[2] + row(b"", b"?1", -99, b"\xe9\0\0\0", "", b"\xff\x00", [], (0, b""), [])
    whole = check_reader(READER, Source(str(put(tmp_path / "a.xml", document(fields, binary(raw, kind))))))
    whole = whole.take([0, 2, 1])
    assert whole.slice(0, 2).to_pydict() == {
        "s": ["ab", None],
        "flag": [[True, False], [None, True]],
        "n": [5, None],
        "f": ["xy", "é"],
        "u": ["é日", None],
        "b": [[True, False, True, False, False, False, False, False, True], [True] * 8 + [False]],
        "w": [[1.5, None], []],
        "c": [[True, False, True], []],
        "z": [[[1, 2], [3, 4]], []],
    }
    last = list(whole.to_pylist()[2].values())
    assert last == [None] * 9 if kind == "BINARY2" else last[:4] == ["gone", [True, True], 9, "gone"]


def test_a_single_bit_may_be_where_the_standard_or_where_astropy_puts_it(tmp_path: Path) -> None:
    path = put(tmp_path / "a.xml", document(field("b", "bit"), binary(b"\x80\x08\0")))
    assert read(path)["b"].to_pylist() == [True, True, False]


def test_tables_count_from_one_through_all_resources_and_zero_is_the_first(tmp_path: Path) -> None:
    other = "<RESOURCE><TABLE>" + field("b", "long") + rows(("1",), ("2",)) + "</TABLE></RESOURCE></VOTABLE>"
    text = document('<PARAM name="p" datatype="int" value="3"/>' + field("a", "int"), rows(("7",))).replace("</VOTABLE>", other)
    path = put(tmp_path / "a.xml", text)
    for hdu, expected in ((0, {"a": [7]}), (1, {"a": [7]}), (2, {"b": [1, 2]})):
        assert check_reader(READER, Source(str(path), hdu=hdu)).to_pydict() == expected
    assert READER.describe(Source(str(path))).keywords == {"p": "3"}
    digests = {READER.describe(Source(str(path), hdu=hdu)).header_digest for hdu in (0, 1, 2)}
    assert len(digests) == 2
    with pytest.raises(InputError, match=r"a.xml: table 3 does not exist: the document holds 2 \(they count from 1\)"):
        READER.describe(Source(str(path), hdu=3))
    with pytest.raises(InputError, match="table -1 does not exist"):
        READER.describe(Source(str(path), hdu=-1))


@pytest.mark.parametrize("data", ["", "<DATA><TABLEDATA/></DATA>", binary(b""), binary(b"", "BINARY2")])
def test_a_table_without_rows_gives_one_empty_block(tmp_path: Path, data: str) -> None:
    path = put(tmp_path / "a.xml", document(field("a", "int") + field("v", "char", "*"), data))
    assert [block.num_rows for block in READER.scan(Source(str(path)))] == [0]
    check_reader(READER, Source(str(path)))


def test_prefixes_encodings_and_comments_change_nothing(tmp_path: Path) -> None:
    text = document(field("é", "char", "*"), rows(("ü",)) + "<!-- x -->").replace("<?xml version='1.0'?>", "")
    expected = read(put(tmp_path / "a.xml", text))
    assert expected.to_pydict() == {"é": ["ü"]}
    latin = text.replace('<?xml version="1.0"?>', '<?xml version="1.0" encoding="ISO-8859-1"?>').encode("latin-1")
    assert read(put(tmp_path / "b.xml", latin)).equals(expected)
    assert read(put(tmp_path / "c.xml", text.replace('<?xml version="1.0"?>', "").encode("utf-16"))).equals(expected)
    prefixed = text.replace("</", "</v:").replace("xmlns=", "xmlns:v=")
    for name in ("VOTABLE", "RESOURCE", "TABLE", "FIELD", "DATA", "TABLEDATA", "TR", "TD"):
        prefixed = prefixed.replace(f"<{name} ", f"<v:{name} ").replace(f"<{name}>", f"<v:{name}>")
    assert read(put(tmp_path / "d.xml", prefixed)).equals(expected)


def test_nrows_saves_reading_the_rows_and_is_held_to_them(tmp_path: Path) -> None:
    good = document(field("a", "int"), rows(("1",), ("2",)), 'nrows="2"')
    check_reader(READER, Source(str(put(tmp_path / "a.xml", good))))
    path = put(tmp_path / "b.xml", good.replace('nrows="2"', 'nrows="3"'))
    assert READER.describe(Source(str(path))).rows == 3
    with pytest.raises(InputError, match="nrows says 3 rows, 2 are there: fetch the file again"):
        list(READER.scan(Source(str(path))))


INT = field("a", "int")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not well-formed XML: no element found"),
        ("<html/>", "line 1, column 0: not a VOTable: the document is 'html'; give the format it has"),
        ("a,b\n1,2\n", "line 1, column 0: not well-formed XML: syntax error"),
        (document(INT, rows(("1",)))[:-30], r"line \d+, column \d+: not well-formed XML: .* \(or the file was cut\)"),
        (document(INT, rows(("1",), ("x",))), "row 1, column 'a': 'x' is not int32 as the FIELD says; correct the cell"),
        (document(INT, rows(("1",), ("99999999999",))), "row 1, column 'a': '99999999999' is not int32"),
        (document(field("a", "boolean"), rows(("1",), ("y",))), "row 1, column 'a': 'y' is not bool"),
        (document(field("a", "int", "2"), rows(("1 2",), ("1 2 3",))), "row 1, column 'a': '1 2 3' is not fixed_size_list"),
        (document(field("a", "int", "2x*"), rows(("1 2",), ("1 2 3",))), "row 1, column 'a': '1 2 3' is not list"),
        (document(INT, rows(("1",), ("1", "2"))), r"line 4, column \d+: row 1 has 2 TD, 1 are needed"),
        (document(INT, rows(("1",), ())), "row 1 has 0 TD, 1 are needed"),
        (document("", rows(("1",))), "a table without FIELD"),
        (document(INT + INT, ""), "column 'a' is there 2 times; rename all but one FIELD"),
        (document(field("a", "integer"), ""), "column 'a': datatype 'integer' is none of VOTable; did you mean 'int'"),
        (document(field("a", "int", "x"), ""), "column 'a': arraysize 'x' is none"),
        (document(field("a", "int", "0"), ""), "column 'a': arraysize '0': a cell can have 1 to 1048576 items"),
        (document(field("a", "int", "99999x99999"), ""), "a cell can have 1 to 1048576 items"),
        (document(field("a", "char", "3x4"), ""), "arrays of texts are not read"),
        (document(INT, "", 'nrows="x"'), "nrows is 'x', a whole number is needed"),
        (document(INT, binary(b"\0\0\0\1\0\0")), "the binary stream ends 2 bytes into row 1: truncated"),
        (
            document(field("a", "char", "*"), binary(b"\xff\xff\xff\xff12")),
            "row 0, column 'a': an array of more than 67108864 bytes",
        ),
        (document(INT, binary(b"\0\0\0\1").replace("==", "==AAAA")), "is not base64|goes on behind the padding"),
        (document(INT, binary(b"\0\0\0\1").replace("==", "")), "ends within a group of base64: truncated"),
        (document(INT, binary(b"\0\0\0\1").replace("AAAA", "AA?A")), "the binary stream is not base64"),
        (document(INT, binary(b"\0\0\0\1").replace("AAAA", "AAéA")), "the binary stream holds 'é', which is not base64"),
        (
            document(INT, '<DATA><BINARY><STREAM href="http://x/y"/></BINARY></DATA>'),
            "STREAM that is not base64 within the document",
        ),
        (document(INT, "<DATA><FITS><STREAM/></FITS></DATA>"), "the data are FITS, .* write the table as BINARY2"),
        (document(INT, '<DATA><TABLEDATA><TR><TD encoding="base64">AA</TD></TR></TABLEDATA></DATA>'), "TD with an encoding"),
        (document(INT, rows(("1",)) + rows(("2",))), "DATA a second time in one table"),
        ("<VOTABLE>" + "<RESOURCE>" * 200, "elements within elements, more than 100 deep"),
        (
            '<VOTABLE><RESOURCE><INFO name="QUERY_STATUS" value="ERROR"/></RESOURCE></VOTABLE>',
            "the service answered with an error",
        ),
        (
            document(INT, rows(("1",))).replace("</TABLE>", '</TABLE><INFO name="QUERY_STATUS" value="OVERFLOW"/>'),
            "the service cut the result .* larger MAXREC",
        ),
        (
            document(INT, rows(("1",))).replace("</TABLE>", '</TABLE><INFO name="QUERY_STATUS" value="ERROR"/>'),
            "the service broke off with an error",
        ),
        ('<?xml version="1.0" encoding="none-such"?><VOTABLE/>', "cannot be decoded|unknown encoding"),
    ],
)
def test_a_document_that_cannot_be_is_refused_by_place_and_reason(tmp_path: Path, text: str, message: str) -> None:
    path = put(tmp_path / "a.xml", text)
    for block_bytes in (7, 1 << 26):
        with pytest.raises(InputError, match=f"^{path}: .*({message})"):
            list(READER.scan(Source(str(path)), block_bytes=block_bytes))


def test_a_result_that_the_service_cut_behind_another_table_is_not_this_one(tmp_path: Path) -> None:
    first = document(INT, rows(("1",)))
    other = "<TABLE>" + INT + rows(("2",)) + '</TABLE><INFO name="QUERY_STATUS" value="OVERFLOW"/>'
    path = put(tmp_path / "a.xml", first.replace("</TABLE>", "</TABLE>" + other))
    assert [block.num_rows for block in READER.scan(Source(str(path)))] == [1]
    with pytest.raises(InputError, match="the service cut the result"):
        list(READER.scan(Source(str(path), 2)))


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE VOTABLE [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;"><!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;">]>',
        '<!DOCTYPE VOTABLE [<!ENTITY a SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE VOTABLE SYSTEM "http://us-vo.org/xml/VOTable.dtd">',
    ],
)
def test_entities_and_document_types_are_refused(tmp_path: Path, declaration: str) -> None:
    text = document(field("a", "char", "*"), rows(("&c;",))).replace("<VOTABLE", f"{declaration}<VOTABLE", 1)
    with pytest.raises(InputError, match="line 2, column .*: a document type or entity declaration.*; delete it"):
        read(put(tmp_path / "a.xml", text))
    with pytest.raises(InputError, match="undefined entity"):
        read(put(tmp_path / "b.xml", document(field("a", "char", "*"), rows(("&c;",)))))


def test_a_tag_without_end_is_refused_before_all_of_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(votable, "_LONGEST_TOKEN", 1 << 20)
    path = put(tmp_path / "a.xml", '<VOTABLE a="' + "x" * (1 << 23))
    with pytest.raises(InputError, match="a tag longer than 1048576 bytes"):
        READER.describe(Source(str(path)))


def test_compressed_documents_are_read_and_bombs_are_not(tmp_path: Path) -> None:
    text = document(field("a", "int"), rows(*((str(n),) for n in range(5000))))
    expected = read(put(tmp_path / "a.xml", text))
    whole = check_reader(READER, Source(str(put(tmp_path / "a.xml.gz", gzip.compress(text.encode())))))
    assert whole.equals(expected)
    bomb = gzip.compress(b"<VOTABLE>") + gzip.compress(b" " * (1 << 26)) * 2 + gzip.compress(b"</VOTABLE>")
    path = put(tmp_path / "bomb.gz", bomb)
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="bomb.gz: .*refused as a decompression bomb"):
            READER.describe(Source(str(path)))
        assert tracemalloc.get_traced_memory()[1] < 1 << 26
    finally:
        tracemalloc.stop()


def test_a_missing_file_a_missing_column_and_the_format_are_named(tmp_path: Path) -> None:
    assert isinstance(reader_for("votable").reader, VOTable)
    with pytest.raises(MissingInputError, match="none.xml: no such file"):
        READER.describe(Source(str(tmp_path / "none.xml")))
    path = put(tmp_path / "a.xml", document(field("ra", "double"), rows(("1",))))
    with pytest.raises(ColumnError, match="a.xml: no column 'Ra'; did you mean 'ra'"):
        next(READER.scan(Source(str(path)), columns=["Ra"]))
