"""FITS ASCII tables and files compressed with gzip: what astropy reads, or what the test wrote by hand, is what arrives."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import warnings
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits

from scalable.errors import ColumnError, InputError, StoreError
from scalable.io.fits_table import FitsTable
from scalable.io.reader import Source
from scalable.testing import check_reader

READER = FitsTable()


def ascii_file(path: Path, rows: list[str], *columns: tuple[object, ...], extra: tuple[str, ...] = ()) -> Path:
    """Write rows of text as an ASCII table; a column is its name, TBCOL, TFORM."""
    width = len(rows[0]) if rows else 10
    cards = ["XTENSION= 'TABLE   '", "BITPIX  = 8", "NAXIS   = 2", f"NAXIS1  = {width}", f"NAXIS2  = {len(rows)}"]
    cards += ["PCOUNT  = 0", "GCOUNT  = 1", f"TFIELDS = {len(columns)}"]
    for n, (name, at, form) in enumerate(columns, 1):
        cards += [
            f"{key:8s}= {value}" for key, value in ((f"TTYPE{n}", f"'{name}'"), (f"TBCOL{n}", at), (f"TFORM{n}", f"'{form}'"))
        ]
    header = "".join(card.ljust(80) for card in [*cards, *extra, "END"]).encode()
    front = "".join(card.ljust(80) for card in ("SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "END")).encode()
    data = "".join(rows).encode("latin-1")
    path.write_bytes(b"".join(part + b" " * (-len(part) % 2880) for part in (front, header, data)))
    return path


def read(path: Path) -> dict[str, list[object]]:
    return check_reader(READER, Source(str(path))).to_pydict()


def numbers(tmp_path: Path, form: str, cells: list[str], extra: tuple[str, ...] = ()) -> list[object]:
    path = ascii_file(tmp_path / "a.fits", cells, ("x", 1, form), extra=extra)
    return read(path)["x"]


# Against astropy


def test_the_ascii_table_of_a_real_plate_holds_what_astropy_reads(data: Path) -> None:
    path = data / "images/misc_headers/HorseHead.fits"
    found = check_reader(READER, Source(str(path)))
    with fits.open(path) as hdus:
        expected = {name: np.array(hdus[1].data[name]) for name in hdus[1].columns.names}
        units = [column.unit for column in hdus[1].columns]
    assert found.num_rows == 1600
    assert found.column_names == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name].to_numpy(), values)
    assert [field.metadata[b"unit"].decode() for field in found.schema] == units


def generated(path: Path, rows: int = 60) -> Path:
    rng = np.random.default_rng(3)
    columns = [
        fits.Column("id", "I10", array=np.arange(rows) - 7, ascii=True),
        fits.Column("small", "I4", array=np.arange(rows), ascii=True, unit="pix"),
        fits.Column("flux", "E16.8", array=rng.normal(size=rows) * 1e6, ascii=True, unit="Jy"),
        fits.Column("ra", "D24.16", array=rng.uniform(0, 360, rows), ascii=True, unit="deg"),
        fits.Column("mag", "F8.3", array=rng.uniform(10, 20, rows), ascii=True),
        fits.Column("name", "A9", array=np.array([f"star {n}" for n in range(rows)]), ascii=True),
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fits.HDUList([fits.PrimaryHDU(), fits.TableHDU.from_columns(columns)]).writeto(path, overwrite=True)
    return path


def test_what_astropy_writes_reads_as_astropy_reads_it(tmp_path: Path) -> None:
    path = generated(tmp_path / "a.fits")
    found = check_reader(READER, Source(str(path)))
    with fits.open(path) as hdus:
        for name in hdus[1].columns.names:
            values = np.array(hdus[1].data[name])
            expected = np.char.rstrip(values) if values.dtype.kind == "U" else values
            assert found[name].to_pylist() == expected.tolist(), name
    assert found.schema.types == [pa.int64(), pa.int32(), *[pa.float64()] * 3, pa.string()]


@pytest.mark.parametrize("block_bytes", [1, 71, 500, 1 << 26])
def test_the_block_size_does_not_change_the_result(tmp_path: Path, block_bytes: int) -> None:
    source = Source(str(generated(tmp_path / "a.fits")))
    blocks = list(READER.scan(source, block_bytes=block_bytes))
    row_bytes = 10 + 4 + 16 + 24 + 8 + 9
    assert max(block.num_rows for block in blocks) <= max(1, block_bytes // row_bytes)
    assert pa.concat_tables(blocks).equals(pa.concat_tables(READER.scan(source)))


# By the standard


def test_blank_numbers_are_null_and_blank_texts_are_empty(tmp_path: Path) -> None:
    path = ascii_file(tmp_path / "a.fits", [" 12 1.5 ab ", "           "], ("i", 1, "I3"), ("f", 5, "F3.1"), ("a", 8, "A4"))
    assert read(path) == {"i": [12, None], "f": [1.5, None], "a": [" ab", ""]}


def test_tnull_is_null_wherever_it_stands_in_the_field(tmp_path: Path) -> None:
    path = ascii_file(
        tmp_path / "a.fits",
        ["-99 *** none", "  7 1.5 star", " -9 ***     "],
        ("i", 1, "I3"),
        ("f", 5, "F3.1"),
        ("a", 9, "A4"),
        extra=("TNULL1  = '-99'", "TNULL2  = '***'", "TNULL3  = 'none'"),
    )
    assert read(path) == {"i": [None, 7, -9], "f": [None, 1.5, None], "a": [None, "star", ""]}


def test_a_blank_tnull_makes_blank_texts_null(tmp_path: Path) -> None:
    assert numbers(tmp_path, "A3", ["ab ", "   "], ("TNULL1  = '   '",)) == ["ab", None]


def test_integers_may_have_signs_zeros_and_blanks_around(tmp_path: Path) -> None:
    assert numbers(tmp_path, "I6", ["   +12", "-12   ", "000012", "  -0  "]) == [12, -12, 12, 0]
    assert numbers(tmp_path, "I19", ["9223372036854775807", "-922337203685477580"]) == [2**63 - 1, -922337203685477580]


def test_exponents_may_be_written_in_every_way_of_fortran(tmp_path: Path) -> None:
    cells = ["1.5E+03 ", " 1.5D-3 ", "+1.5e3  ", "-1.5d3  ", "1.5+3   ", "1.5-3   ", ".5      ", "5.      "]
    assert numbers(tmp_path, "E8.1", cells) == [1500, 0.0015, 1500, -1500, 1500, 0.0015, 0.5, 5]


def test_a_number_without_a_point_has_it_before_its_last_digits(tmp_path: Path) -> None:
    assert numbers(tmp_path, "F6.2", ["   314", "  3.14", "     7", "  -314", "  1E+4"]) == [3.14, 3.14, 0.07, -3.14, 100.0]


def test_nan_is_null_and_infinity_is_not(tmp_path: Path) -> None:
    assert numbers(tmp_path, "F4.1", [" NaN", "nan ", "-Inf", " 1.0"]) == [None, None, float("-inf"), 1.0]


def test_scaled_numbers_become_doubles_and_tnull_is_what_is_written(tmp_path: Path) -> None:
    extra = ("TSCAL1  = 0.5", "TZERO1  = 10", "TNULL1  = '-1'")
    assert numbers(tmp_path, "I3", [" -1", "  4", " 10"], extra) == [None, 12.0, 15.0]
    assert numbers(tmp_path, "F4.1", ["-1.0", " 4.0"], extra) == [9.5, 12.0]


def test_texts_lose_trailing_blanks_and_latin_1_and_nul_are_understood(tmp_path: Path) -> None:
    assert numbers(tmp_path, "A5", ["ab   ", " é   ", "a\0bcd", "\0    "]) == ["ab", " é", "a", None]


def test_columns_may_overlap_leave_gaps_and_have_no_name(tmp_path: Path) -> None:
    path = ascii_file(tmp_path / "a.fits", ["12|34", "56|78"], ("", 1, "I2"), ("b", 4, "I2"), ("c", 1, "A5"), ("none", 1, "A0"))
    assert read(path) == {"col1": [12, 56], "b": [34, 78], "c": ["12|34", "56|78"]}


def test_a_table_without_rows_is_one_empty_block(tmp_path: Path) -> None:
    source = Source(str(ascii_file(tmp_path / "a.fits", [], ("x", 1, "I4"))))
    assert [block.num_rows for block in READER.scan(source)] == [0]
    check_reader(READER, source)


# What cannot be read


@pytest.mark.parametrize(
    ("form", "cell", "message"),
    [
        ("I4", "1.5 ", r"a\.fits: HDU 1, column 'x', row 1: '1\.5' is no number of the form 'I4': .*TNULL"),
        ("I4", "0x1F", "row 1: '0X1F' is no number"),
        ("I4", "1 2 ", "row 1: '1 2' is no number"),
        ("F4.1", "1,5 ", "row 1: '1,5' is no number of the form 'F4.1'"),
        ("F4.1", "12E ", "row 1: '12E' is no number"),
        ("E4.1", "--- ", "row 1: '---' is no number"),
        ("I20", "99999999999999999999", "HDU 1, column 'x', rows from 0: a number beyond 64 bits"),
    ],
)
def test_a_cell_that_is_no_number_is_named_with_its_row(tmp_path: Path, form: str, cell: str, message: str) -> None:
    path = ascii_file(tmp_path / "a.fits", ["1".ljust(len(cell)), cell], ("x", 1, form))
    with pytest.raises(InputError, match=message):
        list(READER.scan(Source(str(path))))


@pytest.mark.parametrize(
    ("column", "extra", "message"),
    [
        (("x", 1, "Q4"), (), r"a\.fits: HDU 1: column 'x': TFORM1 is 'Q4', which is no format of an ASCII table"),
        (("x", 1, "I"), (), "TFORM1 is 'I', which is no format"),
        (("x", 1, "1PE(9)"), (), "TFORM1 is '1PE"),
        (("x", 0, "I4"), (), "TBCOL1 is 0 and TFORM1 'I4': outside the row of 4 bytes"),
        (("x", 2, "I4"), (), "TBCOL1 is 2 and TFORM1 'I4': outside the row of 4 bytes"),
        (("x", "'a'", "I4"), (), "TBCOL1 is 'a', a whole number"),
        (("x", 1, "I4"), ("TSCAL1  = 'x'",), "TSCAL1 and TZERO1 are 'x' and 0, numbers are needed"),
    ],
)
def test_a_header_that_cannot_be_is_refused(
    tmp_path: Path, column: tuple[object, ...], extra: tuple[str, ...], message: str
) -> None:
    path = ascii_file(tmp_path / "a.fits", ["   1"], column, extra=extra)
    with pytest.raises(InputError, match=message):
        READER.describe(Source(str(path)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"NAXIS2  = 1 ", b"NAXIS2  = 9223372036854775807 ", "file ends at byte 8640, the table needs"),
        (b"NAXIS1  = 4 ", b"NAXIS1  = 0 ", "NAXIS1 is 0, rows of 1 to"),
        (b"BITPIX  = 8 ", b"BITPIX  = 16 ", "BITPIX is 16, an ASCII table has 8"),
        (b"TFIELDS = 2 ", b"TFIELDS = 1000 ", "TFIELDS is 1000"),
        (b"'y'", b"'x'", "column 'x' is there 2 times"),
    ],
)
def test_absurd_headers_are_refused_before_anything_is_allocated(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = ascii_file(tmp_path / "a.fits", ["   1"], ("x", 1, "I4"), ("y", 1, "A4"))
    raw = path.read_bytes()
    at = raw.index(old, 2880)
    path.write_bytes(raw[:at] + new.ljust(len(old)) + raw[at + max(len(old), len(new)) :])
    with pytest.raises(InputError, match=message):
        READER.describe(Source(str(path)))


def test_an_unknown_column_is_named(tmp_path: Path) -> None:
    path = generated(tmp_path / "a.fits")
    with pytest.raises(ColumnError, match=r"a\.fits: HDU 1: no column 'Flux'; did you mean 'flux'"):
        list(READER.scan(Source(str(path)), columns=["Flux"]))


# Compressed with gzip


@pytest.mark.parametrize("name", ["testcase3/survey-ccds-1", "testcase6/survey-ccds-1", "testcase9/survey-bricks"])
def test_compressed_tables_of_a_survey_hold_what_astropy_reads(data: Path, name: str) -> None:
    path = data / f"images/decam_legacypipe/{name}.fits.gz"
    found = check_reader(READER, Source(str(path)))
    with fits.open(path) as hdus:
        table = hdus[1].data
        assert found.column_names == table.columns.names
        for name in found.column_names:
            values = [None if value != value else value for value in np.array(table[name]).tolist()]
            assert found[name].to_pylist() == values, name


def test_a_compressed_table_is_the_same_table_with_the_digest_of_what_lies_on_disk(tmp_path: Path) -> None:
    plain = generated(tmp_path / "a.fits", 3000)
    raw, packed = plain.read_bytes(), tmp_path / "a.fits.gz"
    for content in (gzip.compress(raw), gzip.compress(raw[:9000]) + bytes(700) + gzip.compress(raw[9000:]) + bytes(512)):
        packed.write_bytes(content)
        found = check_reader(READER, Source(str(packed)))
        assert found.equals(pa.concat_tables(READER.scan(Source(str(plain)))), check_metadata=True)
        digest = hashlib.sha256()
        list(READER.scan(Source(str(packed)), digest=digest))
        assert digest.hexdigest() == hashlib.sha256(content).hexdigest()


def test_nothing_of_an_unpacked_file_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    path = tmp_path / "a.fits.gz"
    path.write_bytes(gzip.compress(generated(tmp_path / "a.fits").read_bytes()))
    before = len(os.listdir("/proc/self/fd"))
    scan = READER.scan(Source(str(path)), block_bytes=100)
    next(scan)
    assert os.listdir(tmp_path / "scratch") == []
    scan.close()
    assert len(os.listdir("/proc/self/fd")) == before


class Counting(io.RawIOBase):
    size = 0

    def write(self, piece: memoryview) -> int:
        self.size += len(piece)
        return len(piece)


def test_a_bomb_is_refused_before_it_has_burst(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.fits.gz"
    with gzip.open(path, "wb", compresslevel=9) as file:
        for _ in range(200):
            file.write(bytes(1 << 20))
    unpacked = Counting()
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: unpacked)
    with pytest.raises(InputError, match=r"bomb\.fits\.gz: \d+ bytes of gzip swell to more than \d+: refused.*run gunzip"):
        READER.describe(Source(str(path)))
    assert 1 << 26 < unpacked.size + (1 << 20) <= (1 << 26) + 200 * path.stat().st_size + (1 << 20)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda raw: raw[:-20], r"a\.fits\.gz: the gzip stream is cut after \d+ bytes: truncated; fetch it again"),
        (lambda raw: raw[:5], "the gzip stream is cut after 0 bytes"),
        (lambda raw: raw[:100] + bytes(50) + raw[150:], "corrupt gzip behind byte"),
        (lambda raw: raw[:-6] + b"\1\2\3\4\5\6", "corrupt gzip behind byte .*check"),
        (lambda raw: gzip.compress(b"no table"), "HDU 0: not a FITS file: it begins with b'no table'"),
    ],
    ids=["cut", "cut in its header", "overwritten", "checksum", "no fits"],
)
def test_a_damaged_compressed_file_is_named(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "a.fits.gz"
    path.write_bytes(damage(gzip.compress(generated(tmp_path / "a.fits").read_bytes())))
    with pytest.raises(InputError, match=message):
        list(READER.scan(Source(str(path))))


def test_a_full_disk_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.fits.gz"
    path.write_bytes(gzip.compress(generated(tmp_path / "a.fits").read_bytes()))
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **_: Path("/dev/full").open("wb", buffering=0))  # noqa: SIM115
    with pytest.raises(StoreError, match=r"a\.fits\.gz: cannot be unpacked in .* \(No space left on device\); set TMPDIR"):
        READER.describe(Source(str(path)))
