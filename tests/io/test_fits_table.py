"""FITS binary tables: what astropy reads, or what the test itself wrote, is what arrives in Arrow."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from pathlib import Path

import hypothesis.extra.numpy as hnp
import numpy as np
import pyarrow as pa
import pytest
from astropy.io import fits
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.errors import ColumnError, InputError, MissingInputError
from scalable.io.fits_table import FitsTable
from scalable.io.reader import Source

READER = FitsTable()


def write(path: Path, *columns: fits.Column, header: dict[str, object] | None = None, front: tuple[object, ...] = ()) -> Path:
    """Write columns as the last HDU of a file with astropy."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = fits.BinTableHDU.from_columns(columns)
        table.header.update(header or {})
        fits.HDUList([fits.PrimaryHDU(), *front, table]).writeto(path, overwrite=True)
    return path


def column(name: str, form: str, values: object, **keywords: object) -> fits.Column:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fits.Column(name, form, array=values, **keywords)


def read(path: Path, **options: object) -> pa.Table:
    """Scan the only table of a file and hold every block to the described schema."""
    hdu = options.pop("hdu", 1)
    blocks = list(READER.scan(Source(str(path), hdu), **options))
    described = READER.describe(Source(str(path), hdu)).schema.to_arrow()
    wanted = options.get("columns") or described.names
    for block in blocks:
        block.validate(full=True)
        assert block.schema.equals(pa.schema([described.field(name) for name in wanted]), check_metadata=True)
    return pa.concat_tables(blocks).combine_chunks()


def by_astropy(path: Path, hdu: int = 1) -> tuple[fits.ColDefs, dict[str, np.ndarray]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with fits.open(path, memmap=False) as hdus:
            table = hdus[hdu]
            return table.columns, {name: np.array(table.data[name]) for name in table.columns.names}


def flat(chunked: pa.ChunkedArray) -> pa.Array:
    """Return the items under all fixed-size lists."""
    array = chunked.combine_chunks() if isinstance(chunked, pa.ChunkedArray) else chunked
    if isinstance(array, pa.ChunkedArray):
        array = array.chunk(0)
    while pa.types.is_fixed_size_list(array.type):
        array = array.flatten()
    return array


def assert_same(found: pa.ChunkedArray, expected: np.ndarray) -> None:
    """Hold a column to astropy's array: type, values, and nulls where there is NaN."""
    items = flat(found)
    if expected.dtype.kind in "US":
        assert [item or "" for item in items.to_pylist()] == [str(text).rstrip(" ") for text in expected.ravel()]
        return
    if expected.dtype.kind == "c":
        expected = np.ascontiguousarray(expected).view(expected.real.dtype)
    expected = np.ascontiguousarray(expected).astype(expected.dtype.newbyteorder("=")).ravel()
    assert items.type == pa.from_numpy_dtype(expected.dtype)
    missing = np.isnan(expected) if expected.dtype.kind == "f" else np.zeros(len(expected), bool)
    np.testing.assert_array_equal(items.is_null().to_numpy(zero_copy_only=False), missing)
    np.testing.assert_array_equal(items.to_numpy(zero_copy_only=False)[~missing], expected[~missing])


def assert_as_astropy(path: Path, hdu: int = 1) -> pa.Table:
    table = read(path, hdu=hdu)
    definitions, arrays = by_astropy(path, hdu)
    assert table.column_names == definitions.names
    for definition in definitions:
        assert_same(table[definition.name], arrays[definition.name])
        meta = table.schema.field(definition.name).metadata or {}
        assert meta.get(b"source_unit", b"").decode() == meta.get(b"unit", b"").decode() == (definition.unit or "")
    return table


# Real files


def test_all_vvv_tables_hold_what_astropy_reads(data: Path) -> None:
    paths = sorted((data / "vvv").glob("*.fits"))
    assert len(paths) == 18
    nulls = 0
    for path in paths:
        table = assert_as_astropy(path)
        assert table.num_rows == 10_000
        assert table.schema.field("Ra").metadata == {b"unit": b"RADIANS", b"source_unit": b"RADIANS"}
        nulls += table["Mag1"].null_count
    assert nulls > 0


@pytest.mark.parametrize(
    "name",
    ["photoz/des_dnf/valid.fits", "lightcurves/RRLyrae.fit", "tables/zall-pix-iron_10rows.fits", "tables/tess_gam02_10rows.fits"],
)
def test_other_surveys_tables_hold_what_astropy_reads(data: Path, name: str) -> None:
    assert_as_astropy(data / name)


def test_meaning_comes_from_the_header(data: Path) -> None:
    lyrae = READER.describe(Source(str(data / "lightcurves/RRLyrae.fit"))).schema
    assert (lyrae["Per"].unit, lyrae["Per"].ucd, lyrae["Per"].description) == ("d", "time.period", "Period")
    tess = READER.describe(Source(str(data / "tables/tess_gam02_10rows.fits"))).schema
    assert (tess["FLUX"].shape, tess["FLUX"].dtype) == ("5,5", pa.list_(pa.float32(), 25))
    assert tess["TIME"].source_unit == "BJD - 2457000, days"


# Every format


def test_numbers_of_every_width_arrive_native(tmp_path: Path) -> None:
    values = {
        "B": (pa.uint8(), [0, 1, 255]),
        "I": (pa.int16(), [-(2**15), 0, 2**15 - 1]),
        "J": (pa.int32(), [-(2**31), 7, 2**31 - 1]),
        "K": (pa.int64(), [-(2**63), 7, 2**63 - 1]),
        "E": (pa.float32(), [1.5, -0.0, float("inf")]),
        "D": (pa.float64(), [1e300, 5e-324, float("-inf")]),
    }
    dtypes = {"B": "u1", "I": "i2", "J": "i4", "K": "i8", "E": "f4", "D": "f8"}
    table = read(write(tmp_path / "a.fits", *(column(k, k, np.array(v, dtypes[k])) for k, (_, v) in values.items())))
    for name, (kind, expected) in values.items():
        assert table[name].type == kind
        assert table[name].to_pylist() == expected


def test_nan_becomes_null_and_only_then_is_there_a_bitmap(tmp_path: Path) -> None:
    signalling = np.array([0x7F800001, 0xFFC00000, 0x7F800000, 0xFF7FFFFF], np.uint32).view(np.float32)
    table = read(
        write(
            tmp_path / "a.fits",
            column("e", "E", signalling),
            column("d", "D", np.array([np.nan, 1, -np.nan, np.inf])),
            column("whole", "D", np.arange(4.0)),
        )
    )
    assert table["e"].to_pylist() == [None, None, float("inf"), float(np.float32(-3.4028235e38))]
    assert table["d"].to_pylist() == [None, 1.0, None, float("inf")]
    assert table["whole"].chunk(0).buffers()[0] is None


def test_logicals_are_null_where_they_are_neither(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.fits", column("x", "B", np.frombuffer(b"TF\0?T", np.uint8)), column("v", "2B", np.zeros((5, 2), "u1"))
    )
    raw = path.read_bytes().replace(b"TFORM1  = 'B       '", b"TFORM1  = 'L       '").replace(b"'2B      '", b"'2L      '")
    path.write_bytes(raw)
    table = read(path)
    assert table["x"].to_pylist() == [True, False, None, None, True]
    assert table["v"].to_pylist() == [[None, None]] * 5


@pytest.mark.parametrize("count", [1, 3, 8, 13, 64])
def test_bits_are_lists_of_logicals(tmp_path: Path, count: int) -> None:
    bits = np.random.default_rng(count).random((29, count)) < 0.5
    table = read(write(tmp_path / "a.fits", column("pad", "I", np.arange(29)), column("x", f"{count}X", bits)), block_bytes=40)
    assert table["x"].to_pylist() == (bits[:, 0].tolist() if count == 1 else bits.tolist())
    assert table["x"].type == (pa.bool_() if count == 1 else pa.list_(pa.bool_(), count))


def test_text_loses_trailing_blanks_and_leading_nul_means_null(tmp_path: Path) -> None:
    cells = [b"abcd ef ", b" ab     ", b"        ", b"\0bcdefgh", b"ab\0cdefg", b"ab  \0   ", b"M\xfcnch\xe9n\xff"]
    path = write(tmp_path / "a.fits", column("x", "8B", np.frombuffer(b"".join(cells), np.uint8).reshape(-1, 8)))
    path.write_bytes(path.read_bytes().replace(b"'8B      '", b"'8A      '"))
    assert read(path)["x"].to_pylist() == ["abcd ef", " ab", "", None, "ab", "ab", "Münchénÿ"]


def test_arrays_of_strings_are_lists_by_tdim_or_by_width(tmp_path: Path) -> None:
    raw = np.frombuffer(b"one  two  threea    b    c    ", np.uint8).reshape(2, 15)
    for form, tdim, shape in (("15A", "(5,3)", "3"), ("15A5", None, ""), ("15A", "(5,3,1)", "1,3")):
        path = write(tmp_path / "a.fits", column("x", "15B", raw), header={"TDIM1": tdim} if tdim else None)
        path.write_bytes(path.read_bytes().replace(b"'15B     '", f"'{form:8s}'".encode()))
        assert read(path)["x"].to_pylist() == [["one", "two", "three"], ["a", "b", "c"]]
        assert READER.describe(Source(str(path))).schema["x"].shape == shape


def test_complex_numbers_are_pairs(tmp_path: Path) -> None:
    scalar = np.array([1 + 2j, complex(np.nan, -1)])
    vector = np.arange(6).reshape(2, 3) * (1 - 1j)
    path = write(tmp_path / "a.fits", column("c", "C", scalar.astype("c8")), column("m", "M", scalar), column("v", "3M", vector))
    table = read(path)
    assert table["c"].type == pa.list_(pa.float32(), 2)
    assert table["m"].to_pylist() == [[1, 2], [None, -1]]
    assert table["v"].type == pa.list_(pa.list_(pa.float64(), 2), 3)
    assert table["v"].to_pylist()[1] == [[3, -3], [4, -4], [5, -5]]


def test_vectors_are_fixed_size_lists_in_c_order_with_nulls_inside(tmp_path: Path) -> None:
    cube = np.arange(48, dtype="f4").reshape(2, 2, 3, 4)
    cube[1, 0, 1, 2] = np.nan
    path = write(tmp_path / "a.fits", column("x", "24E", cube, dim="(4,3,2)"), column("n", "3I", np.arange(6).reshape(2, 3)))
    table = read(path)
    assert READER.describe(Source(str(path))).schema["x"].shape == "2,3,4"
    assert table["x"].type == pa.list_(pa.float32(), 24)
    expected = [None if np.isnan(value) else value for value in cube.ravel().tolist()]
    assert flat(table["x"]).to_pylist() == expected
    assert table["n"].to_pylist() == [[0, 1, 2], [3, 4, 5]]


def test_a_tdim_that_does_not_fit_is_passed_over(tmp_path: Path) -> None:
    for tdim in ("(4,3)", "(0)", "()", "(x,y)", "5"):
        path = write(tmp_path / "a.fits", column("x", "6I", np.arange(6).reshape(1, 6)), header={"TDIM1": tdim})
        assert read(path)["x"].to_pylist() == [[0, 1, 2, 3, 4, 5]]
        assert READER.describe(Source(str(path))).schema["x"].shape == ""


def test_a_column_of_repeat_nought_is_left_out(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", column("gone", "2E", np.ones((3, 2))), column("x", "K", np.arange(3)))
    # Three rows of 16 bytes become six of 8 without the first column: its bytes then read as numbers.
    raw = path.read_bytes().replace(b"'2E      '", b"'0E      '")
    raw = raw.replace(b"NAXIS1  =                   16", b"NAXIS1  =                    8")
    path.write_bytes(raw)
    table = read(path)
    assert table.column_names == ["x"]
    assert table["x"].to_pylist()[1] == 0
    with pytest.raises(ColumnError, match="no column 'gone'"):
        read(path, columns=["gone"])


def test_a_column_without_a_name_is_numbered(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", column("a", "E", [1.0]), column("b", "E", [2.0]))
    path.write_bytes(path.read_bytes().replace(b"TTYPE2  = 'b       '", b"XTYPE2  = 'b       '"))
    assert read(path).column_names == ["a", "col2"]


# Lists


@pytest.mark.parametrize("kind", ["P", "Q"])
@pytest.mark.parametrize("code", ["L", "B", "I", "J", "K", "E", "D"])
def test_lists_come_from_the_heap(tmp_path: Path, kind: str, code: str) -> None:
    dtype = {"L": bool, "B": "u1", "I": "i2", "J": "i4", "K": "i8", "E": "f4", "D": "f8"}[code]
    rng = np.random.default_rng(3)
    cells = [rng.integers(0, 2 if code == "L" else 100, length).astype(dtype) for length in (3, 0, 1, 700, 0, 20)]
    rows = np.empty(len(cells), object)
    rows[:] = cells
    path = write(
        tmp_path / "a.fits", column("n", "I", np.arange(6)), column("x", f"{kind}{code}()", rows), column("y", f"{kind}J()", rows)
    )
    expected = [cell.tolist() for cell in cells]
    for block_bytes in (1, 100, 1 << 26):
        table = read(path, block_bytes=block_bytes)
        assert table["x"].to_pylist() == expected
        assert table["y"].to_pylist() == [[int(item) for item in cell] for cell in expected]
    assert (pa.types.is_list if kind == "P" else pa.types.is_large_list)(table["x"].type)


def test_text_of_any_length_comes_from_the_heap(tmp_path: Path) -> None:
    texts = ["abc", "", "a much longer text", "x"]
    table = read(write(tmp_path / "a.fits", column("x", "PA()", np.array(texts))))
    assert table["x"].to_pylist() == texts


def by_hand(path: Path, forms: list[str], rows: bytes, count: int, heap: bytes = b"", extra: tuple[str, ...] = ()) -> Path:
    """Write a table byte by byte: what astropy would not write, or would put right."""
    lines = [
        "XTENSION= 'BINTABLE'",
        "BITPIX  = 8",
        "NAXIS   = 2",
        f"NAXIS1  = {len(rows) // max(count, 1)}",
        f"NAXIS2  = {count}",
    ]
    lines += [f"PCOUNT  = {len(heap)}", "GCOUNT  = 1", f"TFIELDS = {len(forms)}"]
    lines += [line for n, form in enumerate(forms, 1) for line in (f"TTYPE{n:<3d}= 'c{n}'", f"TFORM{n:<3d}= '{form}'")]
    parts = [["SIMPLE  = T", "BITPIX  = 8", "NAXIS   = 0", "END"], [*lines, *extra, "END"]]
    raw = b""
    for part in parts:
        block = "".join(line.ljust(80) for line in part).encode()
        raw += block.ljust(-(-len(block) // 2880) * 2880)
    data = rows + heap
    path.write_bytes(raw + data.ljust(-(-len(data) // 2880) * 2880, b"\0"))
    return path


def test_heap_lists_may_lie_anywhere_and_be_shared(tmp_path: Path) -> None:
    pairs = np.array([[2, 8], [3, 0], [0, 999], [2, 8]], ">i4")
    heap = np.array([10, 11, 12, 13], ">i4").tobytes()
    path = by_hand(tmp_path / "a.fits", ["1PJ(3)"], pairs.tobytes(), 4, b"\xff" * 8 + heap, ("THEAP   = 40",))
    assert read(path)["c1"].to_pylist() == [[12, 13], [10, 11, 12], [], [12, 13]]


def test_bits_complex_and_unsigned_numbers_come_from_the_heap(tmp_path: Path) -> None:
    heap = (
        np.array([0x8000, 0x7FFF], ">u2").tobytes()
        + np.array([1, 2, np.nan, 4], ">f4").tobytes()
        + bytes([0b10110000, 0b11000000])
    )
    pairs = np.array([[2, 0, 2, 4, 10, 20], [1, 2, 0, 0, 3, 20]], ">i8")
    path = by_hand(tmp_path / "a.fits", ["QI", "QC", "QX"], pairs.tobytes(), 2, heap, ("TZERO1  = 32768",))
    table = read(path)
    assert table["c1"].type == pa.large_list(pa.uint16())
    assert table["c1"].to_pylist() == [[0, 65535], [65535]]
    assert table["c2"].to_pylist() == [[[1, 2], [None, 4]], []]
    assert table["c3"].to_pylist() == [[True, False, True, True, False, False, False, False, True, True], [True, False, True]]


@pytest.mark.parametrize("pair", [(-1, 0), (5, 0), (1, 16), (1, -4), (2**31 - 1, 0), (4, 2**31 - 1), (4, 4)])
def test_a_descriptor_outside_the_heap_is_refused(tmp_path: Path, pair: tuple[int, int]) -> None:
    pairs = np.array([[1, 0], pair], ">i4")
    path = by_hand(tmp_path / "a.fits", ["PJ"], pairs.tobytes(), 2, bytes(16))
    with pytest.raises(InputError, match=rf"a\.fits: HDU 1, column 'c1', row 1: {pair[0]} items at {pair[1]} are outside"):
        read(path)


@pytest.mark.parametrize("pair", [(2**63 - 1, 0), (-(2**63), 1), (1, 2**63 - 1), (2**61, 2**61)])
def test_a_long_descriptor_cannot_overflow(tmp_path: Path, pair: tuple[int, int]) -> None:
    path = by_hand(tmp_path / "a.fits", ["QD"], np.array([pair], ">i8").tobytes(), 1, bytes(16))
    with pytest.raises(InputError, match="row 0: .* outside the heap of 16 bytes"):
        read(path)


def test_descriptors_that_multiply_the_heap_are_refused_before_memory_is_spent(tmp_path: Path) -> None:
    heap = bytes(1 << 20)
    pairs = np.tile(np.array([[len(heap), 0]], ">i4"), (400, 1))
    path = by_hand(tmp_path / "a.fits", ["PB"], pairs.tobytes(), 400, heap)
    with pytest.raises(InputError, match="400 lists are too long for one block; use a smaller block_bytes"):
        list(READER.scan(Source(str(path))))


# Scaling and nulls


def test_the_unsigned_convention_is_exact(tmp_path: Path) -> None:
    kinds = {"I": ("u2", 1 << 15), "J": ("u4", 1 << 31), "K": ("u8", 1 << 63)}
    columns = []
    for code, (dtype, zero) in kinds.items():
        top = np.iinfo(dtype).max
        columns.append(column(code, code, np.array([0, 1, zero - 1, zero, top - 1, top], dtype), bzero=zero))
    columns.append(column("B", "B", np.array([-128, -1, 0, 1, 126, 127], "i1"), bzero=-128))
    table = read(write(tmp_path / "a.fits", *columns))
    assert [field.type for field in table.schema] == [pa.uint16(), pa.uint32(), pa.uint64(), pa.int8()]
    assert table["K"].to_pylist() == [0, 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]
    assert table["J"].to_pylist() == [0, 1, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1]
    assert table["I"].to_pylist() == [0, 1, 2**15 - 1, 2**15, 2**16 - 2, 2**16 - 1]
    assert table["B"].to_pylist() == [-128, -1, 0, 1, 126, 127]


def test_scaled_numbers_become_doubles(tmp_path: Path) -> None:
    stored = np.array([[-300, 0], [7, 32767]], ">i2")
    extra = ("TSCAL1  = 0.01", "TZERO1  = 5.0", "TSCAL2  = 2", "TNULL1  = -300")
    rows = b"".join(stored[n].tobytes() + np.array([1.5, np.nan][n], ">f4").tobytes() for n in range(2))
    table = read(by_hand(tmp_path / "a.fits", ["2I", "E"], rows, 2, extra=extra))
    assert table["c1"].type == pa.list_(pa.float64(), 2)
    assert table["c1"].to_pylist() == [[None, 5.0], [7 * 0.01 + 5.0, 32767 * 0.01 + 5.0]]
    assert table["c2"].to_pylist() == [3.0, None]


def test_astropy_scales_alike(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", column("x", "J", np.arange(-5, 6)), column("y", "3B", np.arange(33).reshape(11, 3)))
    for keyword, value in (("TSCAL1", 0.25), ("TZERO1", 1.5), ("TSCAL2", 0.1)):
        fits.setval(path, keyword, value=value, ext=1)
    table = assert_as_astropy(path)
    assert table["x"].to_pylist()[0] == 0.25


def test_tnull_is_compared_with_what_is_stored(tmp_path: Path) -> None:
    stored = np.array([[-99, -99, 5, -99], [3, -32768, 5, 0]])
    rows = b"".join(
        bytes([255 if n == 0 else 4]) + np.array(stored[n], ">i2").tobytes() + np.array(-(2**63) + n, ">i8").tobytes()
        for n in range(2)
    )
    extra = (
        "TNULL1  = 255",
        "TNULL2  = -99",
        "TNULL3  = -99",
        "TZERO3  = 32768",
        "TNULL4  = 70000",
        "TNULL6  = -9223372036854775808",
    )
    table = read(by_hand(tmp_path / "a.fits", ["B", "I", "I", "I", "I", "K"], rows, 2, extra=extra))
    assert table["c1"].to_pylist() == [None, 4]
    assert table["c2"].to_pylist() == [None, 3]
    assert table["c3"].to_pylist() == [None, 0]
    assert table["c4"].to_pylist() == [5, 5]
    assert table["c6"].to_pylist() == [None, -(2**63) + 1]


# Structure


def many_kinds(path: Path, rows: int = 50) -> Path:
    """Write a table with a column of nearly every kind, behind an image."""
    rng = np.random.default_rng(11)
    lists = np.empty(rows, object)
    lists[:] = [rng.random(n % 5).astype("f4") for n in range(rows)]
    floats = np.where(rng.random(rows) < 0.3, np.nan, rng.random(rows))
    write(
        path,
        column("id", "K", rng.integers(-(2**62), 2**62, rows)),
        column("flag", "L", rng.random(rows) < 0.5),
        column("bits", "11X", rng.random((rows, 11)) < 0.5),
        column("byte", "B", rng.integers(0, 255, rows).astype("u1"), null=7),
        column("short", "I", rng.integers(0, 65535, rows).astype("u2"), bzero=32768),
        column("name", "7A", [f"n{n}" for n in range(rows)]),
        column("mag", "E", floats.astype("f4"), unit="mag"),
        column("ra", "D", floats),
        column("image", "6D", rng.random((rows, 2, 3)), dim="(3,2)"),
        column("wave", "PE()", lists),
        column("cplx", "C", (floats + 1j).astype("c8")),
        column("scaled", "J", np.arange(rows)),
        front=(fits.ImageHDU(np.arange(5000, dtype="i2")),),
    )
    fits.setval(path, "TSCAL12", value=0.25, ext=2)  # astropy cannot scale back what it is given scaled
    return path


def test_every_kind_beside_every_other_reads_as_astropy_reads_it(tmp_path: Path) -> None:
    path = many_kinds(tmp_path / "a.fits")
    table = read(path, hdu=2)
    _, arrays = by_astropy(path, 2)
    for name in ("id", "flag", "bits", "short", "name", "mag", "ra", "image", "cplx", "scaled"):
        assert_same(table[name], arrays[name])
    assert table["wave"].to_pylist() == [cell.tolist() for cell in arrays["wave"]]
    assert table["byte"].to_pylist() == [None if value == 7 else value for value in arrays["byte"]]


@pytest.mark.parametrize("block_bytes", [0, 1, 300, 1000, 4096])
def test_the_block_size_does_not_change_the_result(tmp_path: Path, block_bytes: int) -> None:
    path = many_kinds(tmp_path / "a.fits")
    assert read(path, hdu=2, block_bytes=block_bytes).equals(read(path, hdu=2))


def test_rows_longer_than_a_piece_and_pieces_that_do_not_divide_the_rows_change_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = many_kinds(tmp_path / "a.fits", 1300)
    whole, vvv = read(path, hdu=2), read(data / "vvv/Field-1-J.fits")
    for size in (1, 1000, 77_777):
        monkeypatch.setattr("scalable.io.fits_table._READ_BYTES", size)
        assert read(path, hdu=2, block_bytes=100_000).equals(whole)
    assert read(data / "vvv/Field-1-J.fits").equals(vvv)


def test_columns_come_in_the_order_asked_for(tmp_path: Path) -> None:
    path = many_kinds(tmp_path / "a.fits")
    whole = read(path, hdu=2)
    for names in (["ra", "id"], ["wave", "name", "flag"], ["scaled"]):
        table = read(path, hdu=2, columns=names)
        assert table.column_names == names
        assert table.equals(whole.select(names))


def test_the_digest_is_that_of_the_whole_file_in_order(tmp_path: Path, data: Path) -> None:
    path = many_kinds(tmp_path / "a.fits")
    path.write_bytes(path.read_bytes() + b"trailing bytes")
    for file, hdu in ((path, 2), (data / "vvv/Field-1-J.fits", 1)):
        for options in ({}, {"block_bytes": 500}, {"columns": []}):
            digest = hashlib.sha256()
            list(READER.scan(Source(str(file), hdu), digest=digest, **options))
            assert digest.hexdigest() == hashlib.sha256(file.read_bytes()).hexdigest()


def test_a_table_without_rows_is_one_empty_block(tmp_path: Path) -> None:
    path = many_kinds(tmp_path / "a.fits", rows=0)
    digest = hashlib.sha256()
    blocks = list(READER.scan(Source(str(path), 2), digest=digest))
    assert [block.num_rows for block in blocks] == [0]
    assert blocks[0].schema.equals(READER.describe(Source(str(path), 2)).schema.to_arrow(), check_metadata=True)
    assert digest.hexdigest() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_describe_says_rows_bytes_digest_and_keywords(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", column("x", "E", np.arange(7.0)), header={"FILTER": "Ks", "EXPTIME": 4.5})
    info = READER.describe(Source(str(path)))
    raw = path.read_bytes()
    assert (info.rows, info.bytes) == (7, 28)
    assert info.header_digest == hashlib.sha256(raw[2880:5760]).hexdigest()
    assert (info.keywords["FILTER"], info.keywords["EXPTIME"], info.keywords["NAXIS2"]) == ("Ks", 4.5, 7)
    info.keywords["FILTER"] = "spoilt"
    assert READER.describe(Source(str(path))).keywords["FILTER"] == "Ks"


def test_ucds_and_descriptions_are_read_and_boilerplate_is_not(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", *(column(name, "E", [1.0]) for name in "abcd"))
    with fits.open(path, mode="update") as hdus:
        header = hdus[1].header
        header["TUCD1"], header["TBUCD2"] = "phot.mag", "pos.eq.ra"
        header["TCOMM1"] = "Magnitude in the first aperture"
        header.comments["TTYPE2"], header.comments["TTYPE3"], header.comments["TTYPE4"] = (
            "Right ascension",
            "label for field   3",
            "column 4",
        )
    schema = READER.describe(Source(str(path))).schema
    assert [c.ucd for c in schema] == ["phot.mag", "pos.eq.ra", "", ""]
    assert [c.description for c in schema] == ["Magnitude in the first aperture", "Right ascension", "", ""]


def test_a_column_sent_elsewhere_does_not_take_the_block_along(data: Path) -> None:
    block = next(iter(READER.scan(Source(str(data / "vvv/Field-1-J.fits")))))
    assert len(pickle.dumps(block.select(["Class"]))) < 50_000
    assert len(pickle.dumps(block)) < 1_000_000


# What cannot be read


def test_a_missing_file_is_named() -> None:
    with pytest.raises(MissingInputError, match="/nowhere/a.fits: no such file"):
        READER.describe(Source("/nowhere/a.fits"))


def test_an_unknown_column_names_file_hdu_and_the_nearest(data: Path) -> None:
    source = Source(str(data / "vvv/Field-1-J.fits"))
    with pytest.raises(
        ColumnError, match=r"Field-1-J.fits: HDU 1: no column 'mag1'; did you mean 'Mag1'\? choices: RunningID, X"
    ):
        list(READER.scan(source, columns=["mag1"]))


@pytest.mark.parametrize(
    ("hdu", "message"),
    [
        (0, "HDU 0: a unit of kind IMAGE, not a binary table; give the number of the HDU"),
        (2, "HDU 2 does not exist: the file holds HDU 0 to 1"),
        (10**9, "HDU 1000000000 does not exist: the file holds HDU 0 to 1"),
        (-1, "HDU -1 does not exist"),
    ],
)
def test_a_wrong_hdu_is_named(data: Path, hdu: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        READER.describe(Source(str(data / "vvv/Field-1-J.fits"), hdu))


def test_a_truncated_file_says_what_is_missing(data: Path, tmp_path: Path) -> None:
    raw = (data / "vvv/Field-1-J.fits").read_bytes()
    path = tmp_path / "a.fits"
    path.write_bytes(raw[:500_000])
    message = r"a\.fits: HDU 1: file ends at byte 500000, the table needs 808640: truncated; fetch it again"
    for action in (READER.describe, lambda source: list(READER.scan(source))):
        with pytest.raises(InputError, match=message):
            action(Source(str(path)))


def test_missing_padding_behind_the_data_is_forgiven(data: Path, tmp_path: Path) -> None:
    raw = (data / "vvv/Field-1-J.fits").read_bytes()
    (tmp_path / "a.fits").write_bytes(raw[:808_640])
    assert read(tmp_path / "a.fits").equals(read(data / "vvv/Field-1-J.fits"))


def test_a_file_cut_between_two_blocks_raises_and_the_descriptor_is_closed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.fits", column("x", "D", np.arange(10_000.0)))
    scan = READER.scan(Source(str(path)), block_bytes=8000)
    next(scan)
    with path.open("r+b") as file:
        file.truncate(20_000)
    with pytest.raises(InputError, match="HDU 1: file ends at byte 20000, .* cut while it was read"):
        list(scan)


def test_other_kinds_of_units_are_named_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tiles = fits.CompImageHDU(np.zeros((20, 20), "i2"))
        fits.HDUList([fits.PrimaryHDU(), tiles, fits.ImageHDU(np.zeros(3))]).writeto(path)
    for hdu, message in ((1, "HDU 1: a compressed image, not a binary table"), (2, "HDU 2: a unit of kind IMAGE")):
        with pytest.raises(InputError, match=message):
            READER.describe(Source(str(path), hdu))


@pytest.mark.parametrize(
    ("forms", "extra", "message"),
    [
        (["E", "E"], ("NAXIS1  = 9",), None),  # the first NAXIS1 wins
        (["E", "J", "I"], (), "HDU 1: NAXIS1 is 8, its 3 columns take 10 bytes"),
        (["E"], (), "NAXIS1 is 8, its 1 columns take 4 bytes"),
        (["E", "Z"], (), "column 'c2': TFORM2 is 'Z'"),
        (["E", ""], (), "column 'c2': TFORM2 is ''"),
        (["E", "PZ"], (), "column 'c2': TFORM2 is 'PZ': a descriptor"),
        (["E", "2PE"], (), "column 'c2': TFORM2 is '2PE': a descriptor"),
        (["E", "99999999999E"], (), "column 'c2': TFORM2 .* a cell can have fewer"),
        (["E", "J"], ("TNULL2  = 'x'",), "column 'c2': TNULL2 is 'x', a whole number is needed"),
        (["E", "J"], ("TZERO2  = 'x'",), "column 'c2': TSCAL2 and TZERO2 are 1 and 'x', numbers are needed"),
        (["C"], ("TZERO1  = 2.0",), "column 'c1': .* complex numbers is not supported"),
        (["PE"], ("THEAP   = 99999",), "THEAP is 99999, a place behind the rows from 8 to 8"),
        (["PE"], ("THEAP   = 0",), "THEAP is 0"),
        (["E", "E"], ("ZTABLE  = T",), "NAXIS1 is missing"),  # that of the table before, ZNAXIS1
        (["0E"], (), "NAXIS1 is 8, its 1 columns take 0"),
        (["0A"], ("TDIM1   = '(0)'",), "NAXIS1 is 8, its 1 columns take 0"),
    ],
)
def test_a_table_header_that_cannot_be_is_refused(
    tmp_path: Path, forms: list[str], extra: tuple[str, ...], message: str | None
) -> None:
    path = by_hand(tmp_path / "a.fits", forms, bytes(8), 1, extra=extra)
    if message is None:
        assert read(path).num_rows == 1
    else:
        with pytest.raises(InputError, match=message):
            READER.describe(Source(str(path)))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"NAXIS2  = 1 ", b"NAXIS2  = 9223372036854775807 ", "file ends at byte 8640, the table needs"),
        (b"NAXIS2  = 1 ", b"NAXIS2  = 99999999999999999999999999 ", "truncated"),
        (b"NAXIS2  = 1 ", b"NAXIS2  = -1 ", "NAXIS2 is -1"),
        (b"PCOUNT  = 0 ", b"PCOUNT  = 9999999999999 ", "truncated"),
        (b"TFIELDS = 2 ", b"TFIELDS = 1000 ", "TFIELDS is 1000"),
        (b"TFIELDS = 2 ", b"TFIELDS = T ", "TFIELDS is True"),
        (b"GCOUNT  = 1 ", b"GCOUNT  = 2 ", "GCOUNT is 2"),
        (b"NAXIS   = 2 ", b"NAXIS   = 1 ", "NAXIS is 1"),
        (b"NAXIS   = 2 ", b"MAXIS   = 2 ", "NAXIS is missing|NAXIS is 1"),
        (b"XTENSION= 'BINTABLE'", b"YTENSION= 'BINTABLE'", "no extension begins where HDU 0 ends"),
        (b"'c2'", b"'c1'", "column 'c1' is there 2 times"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_allocated(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    path = by_hand(tmp_path / "a.fits", ["E", "E"], bytes(8), 1)
    raw = path.read_bytes()
    at = raw.index(old, 2880)
    new = new.ljust(len(old))
    path.write_bytes(raw[:at] + new + raw[at + len(new) :])
    with pytest.raises(InputError, match=message):
        READER.describe(Source(str(path)))


# Any table

KINDS = {"L": "?", "B": "u1", "I": ">i2", "J": ">i4", "K": ">i8", "E": ">f4", "D": ">f8", "C": ">c8", "M": ">c16", "A": "S"}


@settings(max_examples=60, deadline=None)
@given(drawn=st.data())
def test_any_table_reads_as_astropy_reads_it(tmp_path_factory: pytest.TempPathFactory, drawn: st.DataObject) -> None:
    rows = drawn.draw(st.integers(1, 40), "rows")
    columns = []
    for n, code in enumerate(drawn.draw(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=8), "codes")):
        repeat = drawn.draw(st.integers(1, 5), "repeat")
        dtype = np.dtype(f"S{repeat}" if code == "A" else KINDS[code])
        shape = (rows,) if repeat == 1 or code == "A" else (rows, repeat)
        elements = st.text("ab Z~", max_size=repeat).map(str.encode) if code == "A" else None
        columns.append(column(f"c{n}", f"{repeat}{code}", drawn.draw(hnp.arrays(dtype, shape, elements=elements), "values")))
    path = write(tmp_path_factory.getbasetemp() / "any.fits", *columns)
    whole = assert_as_astropy(path)
    assert read(path, block_bytes=drawn.draw(st.integers(1, 2000), "block")).equals(whole)
