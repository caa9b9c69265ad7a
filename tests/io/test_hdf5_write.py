"""What is written as chunks is what the HDF5 library reads, checksums verified; damaged, it says so."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.io.hdf5_write import Dataset, create_chunked, new_file, pack, write_dataset, write_rows


@pytest.mark.parametrize("dtype", ["u1", "i2", "<f4", ">f4", "<f8", ">i8", "?"])
@pytest.mark.parametrize("shape", [(1,), (9000,), (70, 5, 12, 11), (20_000, 3)])
def test_the_library_reads_what_was_written(tmp_path: Path, dtype: str, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(1).integers(0, 255, shape).astype(dtype)
    with new_file(tmp_path / "x.h5") as file:
        write_dataset(file, "a", Dataset(values))
    with h5py.File(tmp_path / "x.h5") as file:
        assert file["a"].dtype == values.dtype
        assert (file["a"].compression, file["a"].shuffle, file["a"].fletcher32) == ("gzip", True, True)
        np.testing.assert_array_equal(file["a"][()], values)


def test_chunks_that_split_an_object_and_end_before_their_own_end(tmp_path: Path) -> None:
    values = np.random.default_rng(2).normal(size=(7, 3, 10, 10)).astype("f4")
    with new_file(tmp_path / "x.h5") as file:
        made = create_chunked(file, "a", values.shape, values.dtype, (2, 1, 4, 10))
        for first in range(0, 7, 4):
            write_rows(made, first, values[first : first + 4])
    with h5py.File(tmp_path / "x.h5") as file:
        np.testing.assert_array_equal(file["a"][()], values)


@given(st.binary(min_size=1, max_size=3000))
@settings(max_examples=60, deadline=None)
def test_any_bytes_pass_the_checksum_of_the_library(data: bytes) -> None:
    values = np.frombuffer(data, np.uint8)
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        made = create_chunked(file, "a", values.shape, values.dtype, values.shape)
        made.id.write_direct_chunk((0,), pack(values))
        assert file["a"][()].tobytes() == data


@pytest.mark.parametrize("fill", [0, 0xFF])
def test_sums_that_come_out_even_pass_too(fill: int) -> None:
    values = np.full(1 << 20, fill, np.uint8)
    with h5py.File("x", "w", driver="core", backing_store=False) as file:
        write_dataset(file, "a", Dataset(values))
        assert np.all(file["a"][()] == fill)


def test_a_flipped_bit_is_found_by_the_library(tmp_path: Path) -> None:
    with new_file(tmp_path / "x.h5") as file:
        write_dataset(file, "a", Dataset(np.arange(1000.0)))
        at = file["a"].id.get_chunk_info(0)
    data = bytearray((tmp_path / "x.h5").read_bytes())
    data[at.byte_offset + at.size // 2] ^= 1
    (tmp_path / "x.h5").write_bytes(data)
    with h5py.File(tmp_path / "x.h5") as file, pytest.raises(OSError, match="checksum|filter|read"):
        file["a"][()]
