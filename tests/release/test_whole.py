"""A FITS file that went into HDF5 comes back bit for bit, and its numbers can be read there without us."""

from __future__ import annotations

import bz2
import gzip
from pathlib import Path

import h5py
import numpy as np
import pytest
from astropy.io import fits

from scalable.release.whole import read_back, write_fits_as_hdf5

KINDS = {"images": 60, "tables": 2, "vvv": 18}
"""Folders of real data, and how many FITS files are at least in each."""


def plain(path: Path) -> bytes:
    data = path.read_bytes()
    unpack = {b"\x1f\x8b": gzip.decompress, b"BZ": bz2.decompress}.get(data[:2])
    return unpack(data) if unpack else data


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_real_file_comes_back_bit_for_bit(data: Path, tmp_path: Path, kind: str) -> None:
    paths = [path for path in sorted((data / kind).rglob("*")) if path.is_file() and "tar" not in path.name]
    seen = 0
    for path in paths:
        original = plain(path)
        if not original.startswith(b"SIMPLE  ="):
            continue
        held = tmp_path / f"{seen}.h5"
        write_fits_as_hdf5(str(path), held, {})
        read_back(held, tmp_path / "back.fits")
        assert (tmp_path / "back.fits").read_bytes() == original, path
        held.unlink()
        seen += 1
    assert seen >= KINDS[kind]


def test_pixels_and_columns_are_there_in_their_own_types(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    columns = [
        fits.Column("X", "E", array=rng.normal(size=7).astype(np.float32)),
        fits.Column("N", "J", bzero=2**31, array=np.arange(7, dtype=np.uint32)),
        fits.Column("NAME", "5A", array=["a", "bb", "ccc", "", "e", "f", "g"]),
        fits.Column("V", "3D", array=rng.normal(size=(7, 3))),
        fits.Column("P", "PE()", array=np.array([np.arange(i, dtype=np.float32) for i in range(7)], dtype=object)),
    ]
    image = fits.ImageHDU(np.arange(12, dtype=np.int16).reshape(3, 4))
    fits.HDUList([fits.PrimaryHDU(), fits.BinTableHDU.from_columns(columns), image]).writeto(tmp_path / "in.fits")
    write_fits_as_hdf5(str(tmp_path / "in.fits"), tmp_path / "in.h5", {})
    with h5py.File(tmp_path / "in.h5") as file, fits.open(tmp_path / "in.fits") as hdus:
        table = file["hdu0001/data"][()]
        np.testing.assert_array_equal(table["X"], hdus[1].data["X"])
        np.testing.assert_array_equal(table["V"], hdus[1].data["V"])
        np.testing.assert_array_equal(table["N"], np.arange(7) - 2**31)
        assert file["hdu0001/heap"].shape == (21 * 4,)
        np.testing.assert_array_equal(file["hdu0002/data"], hdus[2].data)
    read_back(tmp_path / "in.h5", tmp_path / "out.fits")
    assert (tmp_path / "out.fits").read_bytes() == (tmp_path / "in.fits").read_bytes()


def test_what_stands_behind_the_last_hdu_comes_back_too(tmp_path: Path) -> None:
    fits.PrimaryHDU(np.arange(10, dtype=np.float32)).writeto(tmp_path / "in.fits")
    original = (tmp_path / "in.fits").read_bytes()
    # Padding that is not what the standard asks for.
    odd = original[:-100] + b"junk" * 25
    (tmp_path / "in.fits").write_bytes(odd)
    write_fits_as_hdf5(str(tmp_path / "in.fits"), tmp_path / "in.h5", {})
    read_back(tmp_path / "in.h5", tmp_path / "out.fits")
    assert (tmp_path / "out.fits").read_bytes() == odd
