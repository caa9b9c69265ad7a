"""HDF5 tables: what h5py reads, or the test wrote, is what arrives; no other file is opened, and no crash gets out."""

from __future__ import annotations

import hashlib
import os
import warnings
import zlib
from pathlib import Path

import h5py
import numpy as np
import psutil
import pyarrow as pa
import pytest
from astropy import units as u
from astropy.table import MaskedColumn, Table

from scalable.errors import ColumnError, InputError, MissingInputError
from scalable.io import hdf5_table
from scalable.io.drivers import reader_for
from scalable.io.hdf5_child import blocks, describe
from scalable.io.hdf5_layout import Refused, find_table, select
from scalable.io.hdf5_table import Hdf5Table
from scalable.io.reader import Source
from scalable.schema import Schema
from scalable.testing import check_reader

READER = Hdf5Table()
NAN = float("nan")


def read(path: Path, table: str = "", columns: list[str] | None = None, block_bytes: int = 1 << 26) -> pa.Table:
    """Read as the child process does, but in this one: for files that the test itself wrote."""
    with h5py.File(path, "r") as file:
        found = find_table(file, table)
        return pa.Table.from_batches(blocks(select(found, columns or list(found.columns)), block_bytes))


def many_kinds(path: Path, rows: int = 60) -> Path:
    rng = np.random.default_rng(2)
    flux = rng.normal(size=rows)
    flux[::5] = np.nan
    with h5py.File(path, "w") as file:
        group = file.create_group("data/stars")
        file.attrs["FILTER"] = "Ks"
        group.attrs["epochs"] = 3
        for name in ("i1", "<i4", ">i8", "<u2", ">u4", "u8", "<f2", "<f4", ">f4", ">f8"):
            values = flux if "f" in name else rng.integers(0, 100, rows)
            group.create_dataset(name, data=values.astype(name), chunks=(7,), compression="gzip", shuffle=True)
        group["flag"] = rng.random(rows) > 0.5
        group["enum"] = rng.integers(0, 2, rows).astype(h5py.enum_dtype({"STAR": 0, "GALAXY": 1}, "i2"))
        group["complex"] = (flux + 1j).astype(">c8")
        group["vector"] = rng.normal(size=(rows, 3)).astype(">f4")
        group["image"] = np.arange(rows * 6).reshape(rows, 2, 3)
        group["fixed"] = np.array([f"star {n}".encode() for n in range(rows)])
        group.create_dataset("any", data=["étoile " * (n % 3) for n in range(rows)], dtype=h5py.string_dtype())
        group["scalar"] = 4
        group["alias"] = h5py.SoftLink("/data/stars/flag")
        group[">f8"].attrs["Units"] = "Jy"
        group[">f8"].attrs["description"] = np.bytes_("a flux")
        group[">f8"].attrs["UCD"] = ["phot.flux"]
    return path


# What is read


def test_simulated_galaxies_hold_what_h5py_reads(data: Path) -> None:
    path = data / "photoz/rail_dc2_sim/training_100gal.hdf5"
    found = check_reader(READER, Source(str(path)))
    with h5py.File(path) as file:
        assert found.column_names == list(file["photometry"])
        for column, dataset in file["photometry"].items():
            np.testing.assert_array_equal(found[column].to_numpy(), dataset[:])
            assert found[column].type == pa.from_numpy_dtype(dataset.dtype)


def test_every_kind_beside_every_other_keeps_the_contract(tmp_path: Path) -> None:
    path = many_kinds(tmp_path / "a.h5")
    whole = check_reader(READER, Source(str(path)))
    whole.validate(full=True)
    assert whole.equals(read(path), check_metadata=True)
    with h5py.File(path) as file:
        for name in (">i8", "<u2", "u8", "flag", "enum", "alias"):
            assert whole[name].to_pylist() == file["data/stars"][name][:].tolist(), name
        for name in ("<f2", "<f4", ">f4", ">f8"):
            values = file["data/stars"][name][:].tolist()
            assert whole[name].to_pylist() == [None if value != value else value for value in values], name
        assert whole["vector"].to_pylist() == file["data/stars/vector"][:].tolist()
        assert whole["image"].to_pylist() == file["data/stars/image"][:].reshape(60, 6).tolist()
        parts = file["data/stars/complex"][:].astype("<c8").view("<f4").reshape(60, 2).tolist()
        assert whole["complex"].to_pylist() == [[None if part != part else part for part in pair] for pair in parts]
    assert whole["any"].to_pylist() == [("étoile " * (n % 3)).rstrip() for n in range(60)]
    assert "scalar" not in whole.column_names


def test_types_and_meaning_come_from_datasets_and_their_attributes(tmp_path: Path) -> None:
    info = READER.describe(Source(str(many_kinds(tmp_path / "a.h5"))))
    flux = info.schema[">f8"]
    assert (flux.dtype, flux.unit, flux.source_unit, flux.ucd, flux.description) == (
        pa.float64(),
        "Jy",
        "Jy",
        "phot.flux",
        "a flux",
    )
    assert (info.schema["image"].dtype, info.schema["image"].shape) == (pa.list_(pa.int64(), 6), "2,3")
    assert (info.schema["<f2"].dtype, info.schema["fixed"].dtype) == (pa.float32(), pa.string())
    assert (info.rows, info.keywords) == (60, {"FILTER": "Ks", "epochs": 3})
    with h5py.File(tmp_path / "a.h5") as same, h5py.File(many_kinds(tmp_path / "b.h5", 61)) as other:
        assert describe(find_table(same, ""))["digest"] == info.header_digest != describe(find_table(other, ""))["digest"]


@pytest.mark.parametrize("block_bytes", [1, 700, 5000])
def test_the_block_size_does_not_change_the_result(tmp_path: Path, block_bytes: int) -> None:
    path = many_kinds(tmp_path / "a.h5")
    assert read(path, block_bytes=block_bytes).equals(read(path))
    assert read(path, columns=["fixed", ">f8"], block_bytes=block_bytes).column_names == ["fixed", ">f8"]


def test_a_table_that_astropy_wrote_keeps_its_units(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    table = Table({"ra": [1.5, NAN], "name": ["ab", "c"], "n": np.array([1, 2], ">i2")})
    table["ra"].unit = u.deg
    table["ra"].description = "right ascension"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table.write(path, path="catalogue", serialize_meta=True)
    found = check_reader(READER, Source(str(path)))
    assert found.to_pydict() == {"ra": [1.5, None], "name": ["ab", "c"], "n": [1, 2]}
    ra = Schema.from_arrow(found.schema)["ra"]
    assert (ra.unit, ra.source_unit, ra.description) == ("deg", "deg", "right ascension")


def test_masked_values_of_astropy_are_not_taken_for_valid_ones(tmp_path: Path) -> None:
    table = Table({"n": MaskedColumn([1, 2], mask=[True, False])})
    table.write(tmp_path / "a.h5", path="catalogue", serialize_meta=True)
    with pytest.raises(InputError, match=r"a\.h5: the header that astropy wrote beside the table: column 'n' keeps its mask"):
        READER.describe(Source(str(tmp_path / "a.h5")))


def test_bit_fields_as_pytables_writes_logicals_are_numbers(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        kind = h5py.h5t.create(h5py.h5t.COMPOUND, 2)
        kind.insert(b"flag", 0, h5py.h5t.STD_B8LE)
        kind.insert(b"n", 1, h5py.h5t.STD_I8LE)
        dataset = h5py.h5d.create(file.id, b"t", kind, h5py.h5s.create_simple((2,)))
        dataset.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array([(1, 5), (0, 6)], [("flag", "u1"), ("n", "i1")]), kind)
    assert read(tmp_path / "a.h5").to_pydict() == {"flag": [1, 0], "n": [5, 6]}


def test_members_of_a_compound_dataset_are_columns(tmp_path: Path) -> None:
    kind = np.dtype([("index", "<i8"), ("values", ">f8", (2,)), ("name", "S4"), ("pos", "<f4", (2, 2)), ("z", "<c16")])
    rows = np.zeros(5, kind)
    rows["index"], rows["values"], rows["name"] = range(5), [[n, NAN] for n in range(5)], b"ab  "
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("df/table", data=rows)
        file["df/_i_table/index/bounds"] = np.zeros(3)  # as PyTables keeps its indices
    found = read(tmp_path / "a.h5", block_bytes=150)
    assert found["index"].to_pylist() == [0, 1, 2, 3, 4]
    assert found["values"].to_pylist() == [[float(n), None] for n in range(5)]
    assert found["name"].to_pylist() == ["ab"] * 5
    assert found.field("pos").metadata == {b"shape": b"2,2"}
    assert read(tmp_path / "a.h5", columns=["z", "index"]).column_names == ["z", "index"]


def test_texts_are_utf_8_or_latin_1_and_end_at_nul_or_blanks(tmp_path: Path) -> None:
    raw = np.array([b"ab\0cd", b"ab   ", b"", "é".encode(), "é".encode("latin-1")], "S5")
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t/x"] = raw
    assert read(tmp_path / "a.h5")["x"].to_pylist() == ["ab", "ab", "", "é", "é"]
    assert read(tmp_path / "a.h5", block_bytes=5)["x"].to_pylist() == ["ab", "ab", "", "é", "é"]


def test_a_table_without_rows_is_one_empty_block_and_a_column_of_no_items_is_left_out(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t/x"], file["t/none"], file["t/name"] = np.zeros(0), np.zeros((0, 0)), np.zeros(0, "S3")
    with h5py.File(tmp_path / "a.h5") as file:
        assert [batch.num_rows for batch in blocks(find_table(file, ""), 1000)] == [0]
    assert read(tmp_path / "a.h5").schema.names == ["name", "x"]


def test_long_texts_come_in_blocks_that_are_no_longer(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("t/x", data=["y" * 10_000] * 400, dtype=h5py.string_dtype())
    with h5py.File(tmp_path / "a.h5") as file:
        found = list(blocks(find_table(file, ""), 1 << 20))
    assert sum(batch.num_rows for batch in found) == 400
    assert max(batch.nbytes for batch in found) <= 1 << 20


# Which table


def several(path: Path) -> Path:
    with h5py.File(path, "w") as file:
        file["b/x"], file["a/x"], file["c/x"], file["c/y"] = [1, 2], [1], [3], [4, 5]
        file["a/deep"] = np.zeros(3, [("z", "f8")])
    return path


def test_one_of_several_tables_has_to_be_named(tmp_path: Path) -> None:
    path = several(tmp_path / "a.h5")
    with pytest.raises(Refused, match=r"with files\.table which one to read: /a \(1 rows\), /a/deep \(3 rows\), /b \(2 rows\)$"):
        read(path)
    assert [read(path, table).num_rows for table in ("a", "/a/deep", "b/")] == [1, 3, 2]
    assert READER.describe(Source(str(path), table="/a/deep")).rows == 3


def test_a_path_that_is_no_table_says_which_are(data: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match=r"files\.table: no table 'a/dep'; did you mean '/a/deep'\? choices: /a, /a/deep, /b"):
        read(several(tmp_path / "a.h5"), "a/dep")
    path = data / "photoz/rail_dc2_sim/training_100gal.hdf5"
    assert read(path, "photometry").equals(read(path))
    with pytest.raises(InputError, match=r"training_100gal\.hdf5: files\.table: no table 'x'; choices: /photometry"):
        READER.describe(Source(str(path), table="x"))


def test_a_file_without_a_table_says_what_is_there(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["c/x"], file["c/y"], file["n"] = [3], [4, 5], 7
        file.create_dataset("r/ref", data=np.array([file["c"].ref], h5py.ref_dtype))
        file.create_dataset("v/lists", (2,), h5py.vlen_dtype("f4"))
    message = (
        r"no table in it \(/c: datasets of 1 and 2 rows; /r: column 'ref' holds references.*'lists' holds arrays of any length"
    )
    with pytest.raises(Refused, match=message):
        read(tmp_path / "a.h5")


def test_a_group_with_a_column_that_cannot_be_read_is_no_table_rather_than_one_without_it(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t/x"], file["good/x"] = [1.0, 2.0], [3.0]
        h5py.h5d.create(file["t"].id, b"when", h5py.h5t.UNIX_D32LE, h5py.h5s.create_simple((2,)))
    with pytest.raises(Refused, match=r"no table 't'; choices: /good; not readable: /t/when: of a type that NumPy does not know"):
        read(tmp_path / "a.h5", "t")


def test_groups_that_contain_themselves_are_walked_once(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["t/x"] = [1.0, 2.0]
        file["t/again"] = file["t"]
        file["t/up"] = file["/"]
    assert read(tmp_path / "a.h5").to_pydict() == {"x": [1.0, 2.0]}


# Out of the file


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.arange(4.0)
    (tmp_path / "secret.raw").write_bytes(np.arange(4.0).tobytes())
    return tmp_path


def external_storage(file: h5py.File, folder: Path) -> None:
    file.create_dataset("t/x", (4,), "f8", external=[(str(folder / "secret.raw"), 0, 32)])


def external_link(file: h5py.File, folder: Path) -> None:
    file["t/x"] = h5py.ExternalLink(str(folder / "secret.h5"), "/x")


def external_link_behind_a_soft_one(file: h5py.File, folder: Path) -> None:
    file["t/x"] = h5py.SoftLink("/t/_i_hidden/x")
    file["t/_i_hidden"] = h5py.ExternalLink(str(folder / "secret.h5"), "/")


def virtual(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((4,), "f8")
    layout[:] = h5py.VirtualSource(str(folder / "secret.h5"), "x", (4,))
    file.create_virtual_dataset("t/x", layout)


def dangling(file: h5py.File, folder: Path) -> None:
    file["t/x"] = h5py.SoftLink("/nowhere/x")


def endless(file: h5py.File, folder: Path) -> None:
    file["t/x"], file["t/y"] = h5py.SoftLink("/t/y"), h5py.SoftLink("/t/x")


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (external_storage, "/t/x is in external storage: its values lie in other files, which are not opened: copy the data"),
        (external_link, r"/t/x is a link out of the file, to .*secret\.h5:/x; it is not followed: copy the data into one file"),
        (external_link_behind_a_soft_one, r"is a link out of the file, to .*secret\.h5"),
        (virtual, "/t/x is virtual: its values lie in other files"),
        (dangling, "/t/x is a link to /nowhere/x, which leads nowhere"),
        (endless, "is a link to /t/., which leads nowhere"),
    ],
)
def test_nothing_outside_the_file_is_read(secret: Path, build: object, message: str) -> None:
    with h5py.File(secret / "a.h5", "w") as file:
        file["t/id"] = np.arange(4)
        build(file, secret)
    with pytest.raises(Refused, match=message):
        read(secret / "a.h5")


def test_the_reader_says_so_with_the_file(secret: Path) -> None:
    with h5py.File(secret / "a.h5", "w") as file:
        external_link(file, secret)
    with pytest.raises(InputError, match=r"a\.h5: no table in it \(/t/x is a link out of the file"):
        READER.describe(Source(str(secret / "a.h5")))


def test_a_link_out_of_the_file_spoils_its_own_table_only_and_silently_nothing(secret: Path) -> None:
    with h5py.File(secret / "a.h5", "w") as file:
        external_link(file, secret)
        file["good/x"] = [1.0, 2.0]
    assert read(secret / "a.h5", "good").to_pydict() == {"x": [1.0, 2.0]}
    for table, message in (("", "say with files.table which one"), ("t", "files.table: no table 't'; choices: /good")):
        with pytest.raises(Refused, match=rf"{message}.*; not readable: /t/x is a link out of the file"):
            read(secret / "a.h5", table)


# Bombs


def test_data_that_expand_beyond_measure_are_refused_before_they_are_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("t/x", (1 << 40,), "f8", chunks=(1 << 16,), compression="gzip")
    assert path.stat().st_size < 1 << 14
    with pytest.raises(Refused, match=r"/t/x: declares 8796093022208 bytes and stores 0, .*refused as a decompression bomb"):
        read(path)


def test_chunks_and_rows_too_large_to_hold_are_refused(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("t/x", (1 << 26,), "f8", chunks=(1 << 26,), compression="gzip")
    with pytest.raises(Refused, match="/t/x: chunks of 536870912 bytes, at most 268435456 can be read: h5repack it"):
        read(tmp_path / "a.h5")


def test_a_text_that_is_said_many_times_bursts_in_the_child_alone(tmp_path: Path) -> None:
    path, rows = tmp_path / "a.h5", 40_000
    with h5py.File(path, "w") as file:
        x = file.create_dataset("t/x", (rows,), h5py.string_dtype(), chunks=(rows,), compression="gzip")
        x[:1] = "y" * 1_000_000
    with h5py.File(path, "r+") as file:
        # Every cell, 16 bytes of length and place, is made to point to the one text that is there: 40 GB if they were read.
        filters, packed = file["t/x"].id.read_direct_chunk((0,))
        file["t/x"].id.write_direct_chunk((0,), zlib.compress(zlib.decompress(packed)[:16] * rows), filters)
    with h5py.File(path) as file:
        assert file["t/x"][rows - 1] == b"y" * 1_000_000
    with pytest.raises(InputError, match=r"a\.h5: (needs more memory than a table of its size|the HDF5 library was ended)"):
        list(READER.scan(Source(str(path)), block_bytes=1 << 24))


# What goes wrong


def test_a_wrong_column_or_file_is_named(tmp_path: Path) -> None:
    path = many_kinds(tmp_path / "a.h5")
    with pytest.raises(ColumnError, match=r"a\.h5: /data/stars: no column 'Flag'; did you mean 'flag'"):
        list(READER.scan(Source(str(path)), columns=["Flag"]))
    with pytest.raises(MissingInputError, match=r"b\.h5: no such file"):
        READER.describe(Source(str(tmp_path / "b.h5")))
    (tmp_path / "c.h5").write_bytes(b"id,flux\n1,2\n")
    with pytest.raises(InputError, match=r"c\.h5: cannot be read as HDF5 \(OSError: .*signature.*damaged or cut; fetch it again"):
        READER.describe(Source(str(tmp_path / "c.h5")))
    assert isinstance(reader_for("hdf5").reader, Hdf5Table)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)",
            "the HDF5 library was ended by SIGSEGV while it read the file",
        ),
        (
            "import scalable.io.hdf5_child as c; c.limit_time(0.1); all(iter(lambda: 1, 0))",
            "the HDF5 library computed on it without end",
        ),
        ("import time; time.sleep(60)", "nothing came from the HDF5 library for 3 s: damaged, or on a disk"),
        ("raise SystemExit('no numpy')", "the process that reads it ended with code 1: no numpy"),
        ("pass", "the process that reads it ended with code 0"),
    ],
    ids=["crash", "endless", "hang", "broken", "silent"],
)
def test_a_library_that_crashes_or_hangs_is_an_error_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    path = many_kinds(tmp_path / "a.h5")
    monkeypatch.setattr(hdf5_table, "_COMMAND", ["-P", "-c", code])
    # A busy machine may need long for a tenth of a second of computing.
    monkeypatch.setattr(hdf5_table, "_PATIENCE_S", 60.0 if "without end" in message else 3.0)
    with pytest.raises(InputError, match=rf"a\.h5: {message}"):
        READER.describe(Source(str(path)))


def test_a_crash_between_two_blocks_is_not_taken_for_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = many_kinds(tmp_path / "a.h5")
    code = """
import os, signal, sys, scalable.io.hdf5_child as child
whole = child.blocks
def cut(*options):
    yield next(iter(whole(*options)))
    sys.stdout.flush()
    os.kill(os.getpid(), signal.SIGABRT)
child.blocks = cut
child.main()
"""
    monkeypatch.setattr(hdf5_table, "_COMMAND", ["-P", "-c", code])
    scan = READER.scan(Source(str(path)), block_bytes=1000)
    with pytest.raises(InputError, match="was ended by SIGABRT"):
        list(scan)


def test_a_scan_that_is_given_up_leaves_no_process_and_no_descriptor(tmp_path: Path) -> None:
    path = many_kinds(tmp_path / "a.h5", 5000)
    before = len(os.listdir("/proc/self/fd"))
    others = psutil.Process().children()
    scan = READER.scan(Source(str(path)), block_bytes=1000)
    next(scan)
    assert set(psutil.Process().children()) > set(others)
    scan.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert set(psutil.Process().children()) <= set(others)


# Any damage


def test_a_file_that_is_cut_is_named(tmp_path: Path) -> None:
    raw, path = many_kinds(tmp_path / "whole.h5", 20).read_bytes(), tmp_path / "damaged.h5"
    path.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InputError, match=r"damaged\.h5: cannot be read as HDF5 \(.*\): damaged or cut; fetch it again"):
        list(READER.scan(Source(str(path)), digest=hashlib.sha256()))
