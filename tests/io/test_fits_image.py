"""Pixels are astropy's own, in native order; headers are the bytes of the file; what is cut or damaged is refused."""

from __future__ import annotations

import bz2
import gzip
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits
from astropy.io.fits.verify import VerifyWarning

from scalable.errors import InputError, MissingInputError
from scalable.io.fits_image import FitsImage
from scalable.io.image_reader import FakeImages, ImageReader, Window

RNG = np.random.default_rng(3)
KINDS = ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


def image(kind: str, shape: tuple[int, ...] = (37, 53)) -> np.ndarray[Any, Any]:
    """Return numbers over the whole range of a type."""
    dtype = np.dtype(kind)
    if dtype.kind == "f":
        values = RNG.normal(100, 30, shape).astype(dtype)
        values[..., 3, 5] = np.nan
        return values
    limits = np.iinfo(dtype)
    return RNG.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def same(path: Path, hdu: int) -> None:
    """Hold every plane, and windows of them, against astropy."""
    with fits.open(path, uint=True) as theirs, FitsImage().opened(str(path)) as ours:
        data = np.asarray(theirs[hdu].data)
        rows, columns = data.shape[-2:]
        for plane, expected in enumerate(data.reshape(-1, rows, columns)):
            for window in (
                None,
                Window(0, rows, 0, columns),
                Window(2, 9, 1, 4),
                Window(rows - 1, rows, 0, columns),
                Window(5, 5, 0, 3),
            ):
                cut = expected if window is None else expected[window.y0 : window.y1, window.x0 : window.x1]
                found = ours.read(hdu, window, plane=plane)
                assert found.dtype == data.dtype.newbyteorder("=")
                assert np.array_equal(found, cut, equal_nan=found.dtype.kind == "f")


def same_headers(path: Path) -> None:
    """Hold the headers against the bytes between where astropy says that headers and data begin."""
    raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    with warnings.catch_warnings(), FitsImage().opened(str(path)) as ours:
        warnings.simplefilter("ignore", VerifyWarning)
        with fits.open(path, disable_image_compression=True) as theirs:
            places = [(hdu.fileinfo()["hdrLoc"], hdu.fileinfo()["datLoc"]) for hdu in theirs]
    assert [hdu.header for hdu in ours.hdus] == [raw[start:stop] for start, stop in places]


@pytest.mark.parametrize("kind", KINDS)
def test_pixels_of_every_type_are_those_of_astropy(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a.fits"
    hdus = fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image(kind)), fits.ImageHDU(image(kind, (2, 3, 11, 13)))])
    hdus.writeto(path)
    same(path, 1)
    same(path, 2)
    same_headers(path)


@pytest.mark.parametrize("kind", ["u1", "i2", "i4", "i8"])
@pytest.mark.parametrize(
    "keywords", [{"BSCALE": 0.0457, "BZERO": 1500.0}, {"BZERO": 7.0}, {"BLANK": 5}, {"BSCALE": 3.0, "BLANK": 5}]
)
def test_scaled_integers_and_blanks_are_those_of_astropy(tmp_path: Path, kind: str, keywords: dict[str, float]) -> None:
    path = tmp_path / "a.fits"
    stored = image(kind)
    stored[4:6, 7] = 5
    fits.PrimaryHDU(stored).writeto(path)
    raw = bytearray(path.read_bytes())
    cards = "".join(str(fits.Card(key, value)) for key, value in keywords.items())
    end = raw.index(b"END" + b" " * 77)
    raw[end : end + len(cards) + 80] = cards.encode() + b"END".ljust(80)
    path.write_bytes(raw)
    same(path, 0)
    with FitsImage().opened(str(path)) as file:
        assert np.isnan(file.read(0)).any() == ("BLANK" in keywords)


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("i2", "RICE_1"),
        ("u2", "RICE_1"),
        ("i4", "GZIP_2"),
        ("u1", "PLIO_1"),
        ("i4", "HCOMPRESS_1"),
        ("f4", "RICE_1"),
        ("f8", "GZIP_1"),
    ],
)
def test_images_in_tiles_are_those_of_astropy_and_keep_their_raw_headers(tmp_path: Path, kind: str, method: str) -> None:
    path = tmp_path / "a.fits.fz"
    pixels = image(kind, (41, 60))
    if kind == "i4":
        pixels >>= 8
    tiled = fits.CompImageHDU(pixels, compression_type=method, tile_shape=(10, 20) if method != "HCOMPRESS_1" else (12, 20))
    tiled.header["OBJECT"] = "M 31"
    fits.HDUList([fits.PrimaryHDU(), tiled]).writeto(path)
    same(path, 1)
    same_headers(path)
    with FitsImage().opened(str(path)) as file:
        assert b"ZIMAGE" in file.hdus[1].header
        assert file.hdus[1].shape == (41, 60)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress])
def test_a_compressed_file_is_unpacked_and_one_that_is_cut_is_refused(tmp_path: Path, pack: Any) -> None:
    plain, path = tmp_path / "a.fits", tmp_path / "a.fits.packed"
    fits.PrimaryHDU(image("f4")).writeto(plain)
    packed = pack(plain.read_bytes())
    path.write_bytes(packed)
    with FitsImage().opened(str(path)) as file, FitsImage().opened(str(plain)) as other:
        assert np.array_equal(file.read(0), other.read(0), equal_nan=True)
        assert file.hdus[0].header == other.hdus[0].header
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError, match=r"a\.fits\.packed: the (gzip|bzip2) stream is cut"), FitsImage().opened(str(path)):
        pass


def test_bzip2_streams_one_behind_the_other_are_one_file_and_a_bomb_is_refused(tmp_path: Path) -> None:
    plain, path = tmp_path / "a.fits", tmp_path / "a.fits.bz2"
    fits.PrimaryHDU(image("i2")).writeto(plain)
    raw = plain.read_bytes()
    path.write_bytes(bz2.compress(raw[:3000]) + bz2.compress(raw[3000:]) + b"junk")
    same(plain, 0)
    with FitsImage().opened(str(path)) as file:
        assert np.array_equal(file.read(0), fits.getdata(plain))
    path.write_bytes(bz2.compress(raw + bytes(80 << 20)))
    with pytest.raises(InputError, match="decompression bomb"), FitsImage().opened(str(path)):
        pass


def test_a_file_cut_anywhere_is_refused_when_it_is_opened_and_says_where(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.ImageHDU(image("f4"))]).writeto(path)
    raw = path.read_bytes()
    for size in (0, 100, 2880 + 100, 2 * 2880 + 5000):
        path.write_bytes(raw[:size])
        with pytest.raises(InputError, match=r"a\.fits: HDU [01]: .*"), FitsImage().opened(str(path)):
            pass
    with pytest.raises(MissingInputError, match="no such file"), FitsImage().opened(str(tmp_path / "b.fits")):
        pass


def test_damaged_tiles_name_file_and_hdu(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(image("f4"), compression_type="GZIP_1")]).writeto(path)
    raw = bytearray(path.read_bytes())
    raw[-2000:] = bytes(2000)
    path.write_bytes(raw)
    with FitsImage().opened(str(path)) as file, pytest.raises(InputError, match=r"a\.fits: HDU 1: its tiles cannot be decoded"):
        file.read(1)


def test_a_stream_on_which_the_decoder_writes_beside_its_memory_is_refused_and_we_live(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    pixels = np.random.default_rng(1).integers(0, 99, (24, 40)).astype(np.int32)
    fits.HDUList([fits.PrimaryHDU(), fits.CompImageHDU(pixels, compression_type="HCOMPRESS_1", tile_shape=(24, 40))]).writeto(
        path
    )
    raw = path.read_bytes()
    at = raw.index(b"\xdd\x99")  # then come rows and columns
    path.write_bytes(raw[: at + 2] + (20_000).to_bytes(4, "big") * 2 + raw[at + 10 :])
    with FitsImage().opened(str(path)) as file:
        for _ in range(2):
            with pytest.raises(InputError, match=r"a\.fits: HDU 1: its tiles cannot be decoded .*fetch the file again"):
                file.read(1)


def test_what_is_no_image_or_outside_is_refused_and_says_what_there_is(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    table = fits.BinTableHDU.from_columns([fits.Column("a", "J", array=[1, 2])])
    fits.HDUList([fits.PrimaryHDU(), table, fits.ImageHDU(image("i2"), name="SCI")]).writeto(path)
    with FitsImage().opened(str(path)) as file:
        assert [hdu.name for hdu in file.hdus] == ["", "", "SCI"]
        for hdu, plane, window, message in [
            (1, 0, None, "HDU 1 holds no image; HDUs that do: 2"),
            (0, 0, None, "HDU 0 holds no image"),
            (3, 0, None, "HDU 3 does not exist: the file holds HDU 0 to 2"),
            (2, 1, None, "HDU 2 has planes 0 to 0, not 1"),
            (2, 0, Window(0, 38, 0, 5), "leaves the image of 37 rows and 53 columns"),
        ]:
            with pytest.raises(InputError, match=message):
                file.read(hdu, window, plane=plane)


def test_a_keyword_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.fits"
    header = fits.Header({"BZERO": "much"})
    fits.PrimaryHDU(image("i2")).writeto(path)
    raw = path.read_bytes()
    path.write_bytes(raw.replace(b"END" + b" " * 157, str(fits.Card("BZERO", header["BZERO"])).encode() + b"END" + b" " * 77, 1))
    with pytest.raises(InputError, match=r"HDU 0: BZERO is 'much', a number is needed"), FitsImage().opened(str(path)):
        pass


def test_every_hdu_of_the_real_images_keeps_its_header_and_its_pixels(data: Path) -> None:
    paths = sorted((data / "images").rglob("*.fits*"))
    assert len(paths) > 60
    headers = 0
    for path in paths:
        same_headers(path)
        with FitsImage().opened(str(path)) as file:
            headers += len(file.hdus)
            images = [hdu.number for hdu in file.hdus if hdu.is_image]
        for hdu in images:
            same(path, hdu)
    assert headers > 130


def test_the_fake_keeps_the_protocol() -> None:
    fake: ImageReader = FakeImages({"a": [(b"END", None), (b"END", np.arange(12.0).reshape(3, 4))]}, {})
    with fake.opened("a") as file:
        assert file.read(1, Window(1, 2, 0, 2)).tolist() == [[4.0, 5.0]]
        with pytest.raises(InputError, match="holds no image"):
            file.read(0)
    with pytest.raises(MissingInputError), fake.opened("b"):
        pass
