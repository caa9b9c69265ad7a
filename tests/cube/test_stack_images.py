"""A cube's pixels are those of the images that show its objects, bit for bit or moved with their flux; no zero is silent."""

from __future__ import annotations

import bz2
import gzip
import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pytest
import xarray as xr
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS, FITSFixedWarning

from scalable.cube.contract import cutout_wcs, raw_headers
from scalable.cube.stack import CutoutSize, stack_images
from scalable.errors import ColumnError, InputError, SurveyError
from scalable.io.fits_image import FitsImage
from scalable.io.image_reader import FakeImages
from scalable.sky.grid import Tiles, to_pixel, to_sky
from scalable.sky.healpix import to_pixels
from scalable.survey.description import Survey
from scalable.survey.read import open_survey
from scalable.synthetic.images import ImageSpec, make_sources, write_images
from scalable.testing import no_compute

MEASURED, MASKED, OUTSIDE, NOT_OBSERVED = range(4)


@pytest.fixture(autouse=True)
def _in_this_thread() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def positions(ra: Any, dec: Any, ids: Any = None) -> pa.Table:
    ra = np.atleast_1d(np.asarray(ra, float))
    return pa.table(
        {"object_id": np.arange(len(ra)) if ids is None else ids, "ra": ra, "dec": np.atleast_1d(np.asarray(dec, float))}
    )


def sky_wcs(header: Any) -> WCS:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)
        return WCS(header, naxis=2)


def theirs(path: Path, hdu: int | str, ra: float, dec: float, size: int, wcs_hdu: int | str | None = None, plane: int = 0) -> Any:
    """Return astropy's own cutout, NaN (or 0) outside."""
    with fits.open(path) as file:
        wcs = sky_wcs(file[hdu if wcs_hdu is None else wcs_hdu].header)
        data = np.asarray(file[hdu].data)
        data = data.reshape(-1, *data.shape[-2:])[plane]
        filling = np.nan if data.dtype.kind == "f" else 0
        return Cutout2D(data, SkyCoord(ra, dec, unit=u.deg), size, wcs=wcs, mode="partial", fill_value=filling)


@pytest.fixture(scope="module")
def field_of_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[Survey, pa.Table, Path]:
    spec = ImageSpec(seed=5, bands=("g", "r", "z"), epochs=3, size=128, stars=12, galaxies=6)
    folder = tmp_path_factory.mktemp("images")
    return open_survey(write_images(spec, folder)), make_sources(spec), folder


def test_every_epoch_is_astropys_cutout_bit_for_bit(field_of_images: tuple[Survey, pa.Table, Path]) -> None:
    survey, sources, folder = field_of_images
    cube = stack_images(survey, sources.slice(0, 6), size=21).compute()
    assert dict(cube.sizes)["epoch"] == 3
    seen = 0
    for n, thing in enumerate(cube["object_id"].values):
        row = sources.filter(pa.compute.equal(sources["object_id"], thing)).to_pylist()[0]
        for b, band in enumerate("grz"):
            for e in range(3):
                path = folder / "images" / f"{band}-{e:03d}.fits"
                one = cube.isel(object=n, band=b, epoch=e)
                expected = theirs(path, "SCI", row["ra"], row["dec"], 21)
                assert cube["exposure_name"].values[int(one["exposure"])] == f"images/{band}-{e:03d}.fits"
                assert np.array_equal(one["image"].values, expected.data, equal_nan=True)
                mask = theirs(path, "MASK", row["ra"], row["dec"], 21, "SCI").data
                assert np.array_equal(one["mask"].values, mask)
                outside = np.isnan(expected.data)
                state = np.where(outside, OUTSIDE, np.where(mask != 0, MASKED, MEASURED))
                assert np.array_equal(one["state"].values, state)
                assert float(one["pad_fraction"]) == pytest.approx(outside.mean())
                assert float(one["mjd"]) == fits.getheader(path)["MJD-OBS"]
                assert float(one["psf_fwhm"]) == pytest.approx(fits.getheader(path)["FWHM"])
                assert float(one["psf_fwhm_after"]) == float(one["psf_fwhm"])
                seen += 1
    assert seen == 6 * 9
    assert (cube["downsampling"].values == 1).all()
    pixels = to_pixels(cube["ra"].values, cube["dec"].values)
    assert (np.diff(pixels) >= 0).all(), "objects are ordered along the sky"


def test_world_coordinates_of_many_kinds_are_astropys(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    plain = {"CRVAL1": 40.0, "CRVAL2": 0.0, "CRPIX1": 31, "CRPIX2": 29, "CDELT1": -1e-4, "CDELT2": 1e-4}
    turned = {"CD1_1": -8e-5, "CD1_2": 6e-5, "CD2_1": 6e-5, "CD2_2": 8e-5}
    distorted = {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 2e-4, "A_1_1": -1e-4, "B_0_2": 3e-4, "B_1_1": 1e-4}
    polynomial = {"PV1_0": 1e-4, "PV1_1": 1.001, "PV1_4": 2e-3, "PV2_0": -1e-4, "PV2_1": 0.999, "PV2_6": 1e-3}
    kinds: dict[str, tuple[str, dict[str, float]]] = {
        "TAN": ("RA---TAN DEC--TAN", plain),
        "CD": ("RA---TAN DEC--TAN", {**plain, **turned}),
        "SIP": ("RA---TAN-SIP DEC--TAN-SIP", {**plain, **turned, **distorted}),
        "TPV": ("RA---TPV DEC--TPV", {**plain, **turned, **polynomial}),
        "CAR": ("RA---CAR DEC--CAR", plain),
        "SIN": ("RA---SIN DEC--SIN", plain),
        "ZEA": ("RA---ZEA DEC--ZEA", plain),
        "AIT": ("RA---AIT DEC--AIT", plain),
        "GAL": ("GLON-TAN GLAT-TAN", {**plain, "CRVAL1": 171.0, "CRVAL2": -52.5}),
    }
    rng = np.random.default_rng(4)
    places = []
    for band, (types, cards) in kinds.items():
        header = fits.Header({**dict(zip(("CTYPE1", "CTYPE2"), types.split(), strict=True)), **cards, "FILTER": band})
        if "CD1_1" in cards:
            del header["CDELT*"]
        fits.PrimaryHDU(rng.normal(size=(60, 64)), header=header).writeto(tmp_path / "images" / f"{band}.fits")
        places.append(to_sky(sky_wcs(header), rng.uniform(2, 60, 2), rng.uniform(2, 56, 2)))
    ra, dec = np.concatenate(places, axis=1)
    (tmp_path / "s.yaml").write_text(
        f"survey: a\nroot: .\nbands: [{', '.join(kinds)}]\nimages: {{glob: images/*.fits, band: {{keyword: FILTER}}}}\n"
    )
    cube = stack_images(open_survey(tmp_path / "s.yaml"), positions(ra, dec), size=14).compute()
    seen = dict.fromkeys(kinds, 0)
    for n, b in zip(*np.nonzero(cube["exposure"].values[..., 0] >= 0), strict=True):
        band, one = str(cube["band"].values[b]), cube.isel(object=n, band=b, epoch=0)
        expected = theirs(tmp_path / "images" / f"{band}.fits", 0, float(one["ra"]), float(one["dec"]), 14)
        assert np.array_equal(one["image"].values, expected.data, equal_nan=True), band
        at = to_pixel(cutout_wcs(cube, object=int(n), band=int(b), epoch=0), np.array([one["ra"]]), np.array([one["dec"]]))
        assert np.allclose(np.ravel(at), expected.input_position_cutout, atol=1e-6), band
        seen[band] += 1
    assert min(seen.values()) >= 2, seen


def test_images_in_every_form_give_astropys_pixels_and_keep_their_headers(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(5)
    cards = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 60.0, "CRPIX1": 20, "CRPIX2": 20}
    cards |= {"CDELT1": -1e-4, "CDELT2": 1e-4}
    whole = rng.integers(-900, 900, (40, 40)).astype(np.int16)
    makers: dict[str, Any] = {
        "plain": lambda header: fits.ImageHDU(rng.normal(size=(40, 40)).astype(">f4"), header),
        "double": lambda header: fits.ImageHDU(rng.normal(size=(40, 40)).astype(">f8"), header),
        "unsigned": lambda header: fits.ImageHDU(whole.astype(np.uint16), header),
        "scaled": lambda header: scaled(fits.ImageHDU(whole * 0.25 + 7, header)),
        "rice": lambda header: fits.CompImageHDU(whole, header, compression_type="RICE_1"),
        "gzip": lambda header: fits.CompImageHDU(rng.normal(size=(40, 40)), header, compression_type="GZIP_2", quantize_level=0),
        "quantized": lambda header: fits.CompImageHDU(rng.normal(size=(40, 40)), header, compression_type="RICE_1"),
        "plio": lambda header: fits.CompImageHDU(abs(whole), header, compression_type="PLIO_1"),
        "hcompress": lambda header: fits.CompImageHDU(whole, header, compression_type="HCOMPRESS_1"),
    }

    def scaled(hdu: fits.ImageHDU) -> fits.ImageHDU:
        hdu.scale("int16", bscale=0.25, bzero=7)
        return hdu

    for band, make in makers.items():
        # A second image, of another band, is one more extension of the same file.
        hdus = [make(fits.Header({**cards, "FILTER": name})) for name in (band, f"{band}2")]
        fits.HDUList([fits.PrimaryHDU(), *hdus]).writeto(tmp_path / "images" / f"{band}.fits")
    for band, packed in (("plain", "double"), ("rice", "scaled")):
        (tmp_path / "images" / f"{packed}.fits").rename(tmp_path / f"{packed}.fits")
        pack, ending = (gzip.compress, "gz") if band == "plain" else (bz2.compress, "bz2")
        (tmp_path / "images" / f"{packed}.fits.{ending}").write_bytes(pack((tmp_path / f"{packed}.fits").read_bytes()))
    bands = [name for band in makers for name in (band, f"{band}2")]
    (tmp_path / "s.yaml").write_text(
        f"survey: a\nroot: .\nbands: [{', '.join(bands)}]\nimages: {{glob: 'images/*', band: {{keyword: FILTER}}}}\n"
    )
    cube = stack_images(open_survey(tmp_path / "s.yaml"), positions([10.0, 10.004], [60.0, 60.001]), size=12).compute()
    assert cube["image"].dtype == np.float64
    for source, name in enumerate(cube["source_uri"].values.tolist()):
        path = tmp_path / name
        if path.suffix != ".fits":
            path = tmp_path / path.stem  # as it was before it was packed
        raw = path.read_bytes()
        with fits.open(path, disable_image_compression=True) as file:
            spans = [(hdu.fileinfo()["hdrLoc"], hdu.fileinfo()["datLoc"]) for hdu in file]
        assert raw_headers(cube, source) == [raw[start:stop] for start, stop in spans]
        for hdu in (1, 2):
            band = bands.index(f"{path.stem}{'2' * (hdu - 1)}")
            for n in range(2):
                expected = theirs(path, hdu, float(cube["ra"][n]), float(cube["dec"][n]), 12)
                inside = np.zeros((12, 12), np.bool_)
                inside[expected.slices_cutout] = True
                assert np.array_equal(cube["image"].values[n, band, 0][inside], expected.data[inside]), name
                assert (cube["state"].values[n, band, 0] == np.where(inside, MEASURED, OUTSIDE)).all(), name


def test_nothing_is_computed_and_each_file_is_opened_once_a_task(field_of_images: tuple[Survey, pa.Table, Path]) -> None:
    survey, sources, _ = field_of_images
    reader = Counting({})
    cube = stack_images(survey, sources, size=16, combine="mean", resampling="adaptive", reader=reader)
    assert all(count == 1 for count in reader.opens.values()), "headers are read once"
    reader.opens.clear()
    with no_compute():
        assert "image" in repr(cube)
        cube["image"].mean(("y", "x"))
    cube[["image", "state"]].compute()
    assert len(reader.opens) == 9
    assert set(reader.opens.values()) == {1}


def test_a_task_opens_only_the_images_that_may_show_its_objects(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalable.cube.stack.MOST_OBJECTS", 5)
    header = {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRPIX1": 16, "CRPIX2": 16, "CDELT1": -1e-4, "CDELT2": 1e-4}
    files, ra = {}, []
    for n in range(8):
        (tmp_path / f"{n}.fits").touch()
        cards = fits.Header({**header, "CRVAL1": 40.0 + 5 * n, "CRVAL2": 60.0})
        pixels = np.full((32, 32), n, np.float32)
        files[str(tmp_path / f"{n}.fits")] = [(cards.tostring().encode(), pixels)]
        ra += [40.0 + 5 * n + 1e-4 * k for k in range(5)]
    (tmp_path / "s.yaml").write_text("survey: a\nroot: .\nbands: [g]\nimages: {glob: '*.fits', band: {value: g}}\n")
    reader = FakeImages(files, {})
    cube = stack_images(open_survey(tmp_path / "s.yaml"), positions(ra, [60.0] * 40), size=4, combine="mean", reader=reader)
    reader.opens.clear()
    found = cube[["image"]].compute().sortby("object_id")
    assert (found["image"].values == np.repeat(np.arange(8), 5)[:, None, None, None]).all()
    assert reader.opens == dict.fromkeys(files, 1), "eight tasks, an image each"


@dataclass(frozen=True)
class Counting:
    """Opens FITS files and counts how often."""

    opens: dict[str, int] = field(hash=False)

    def opened(self, path: str) -> Any:
        self.opens[path] = self.opens.get(path, 0) + 1
        return FitsImage().opened(path)

    def __dask_tokenize__(self) -> str:
        return "counting"


def test_objects_that_no_image_shows_are_not_observed_and_never_zero(field_of_images: tuple[Survey, pa.Table, Path]) -> None:
    survey, _, _ = field_of_images
    cube = stack_images(
        survey, positions([150.0, 151.0, 330.0], [2.2, 2.2, -80.0]), size=9, combine="median", resampling="interp"
    )
    cube = cube.compute().sortby("object_id")
    assert (cube["state"].values[1:] == NOT_OBSERVED).all()
    assert np.isnan(cube["image"].values[1:]).all()
    assert (cube["n_exposures"].values == [[3, 3, 3], [0, 0, 0], [0, 0, 0]]).all()
    assert (cube["pad_fraction"].values[1:] == 1).all()
    assert (cube["exposure"].values[1:] == -1).all()


def test_an_object_beside_the_image_has_the_part_of_its_window_that_is_there(
    field_of_images: tuple[Survey, pa.Table, Path],
) -> None:
    survey, _, folder = field_of_images
    wcs = sky_wcs(fits.getheader(folder / "images" / "g-000.fits", "SCI"))
    ra, dec = to_sky(wcs, np.array([-4.0, 130.0, 64.0]), np.array([64.0, 64.0, 400.0]))
    cube = stack_images(survey, positions(ra, dec), size=16, bands=["g"]).compute().sortby("object_id")
    where = np.flatnonzero(cube["exposure"].values[0, 0] >= 0)
    first = int(where[np.argmin(cube["mjd"].values[0, 0, where])])
    expected = theirs(folder / "images" / "g-000.fits", "SCI", ra[0], dec[0], 16)
    assert np.array_equal(cube["image"].values[0, 0, first], expected.data, equal_nan=True)
    assert 0.5 < float(cube["pad_fraction"].values[0, 0, first]) < 1
    assert (cube["state"].values[2] == NOT_OBSERVED).all()


# Interpolation passes over pixels when a grid is coarser: it is not for that.
@pytest.mark.parametrize(
    ("method", "step"), [("interp", 0.25), ("adaptive", 0.25), ("exact", 0.25), ("adaptive", 0.5), ("exact", 0.5)]
)
def test_moved_point_sources_keep_flux_and_place(tmp_path: Path, method: str, step: float) -> None:
    spec = ImageSpec(
        seed=2,
        bands=("r",),
        epochs=2,
        size=200,
        stars=1,
        galaxies=0,
        noise=0,
        defects=False,
        seeing_arcsec=1.2,
        rotation_deg=30.0,
    )
    rng = np.random.default_rng(1)
    offsets = rng.uniform(-8, 8, (2, 6)) / 3600
    flux = 10 ** rng.uniform(2, 4, 6)
    size = int(16 / step)
    for n in range(4):
        one = pa.table(
            {
                "object_id": [n], "ra": [150.0 + offsets[0, n]], "dec": [2.2 + offsets[1, n]], "kind": [0],
                "size_arcsec": [0.0], "flux_r": [flux[n]],
            }
        )  # fmt: skip
        survey = open_survey(write_images(spec, tmp_path / str(n), sources=one))
        cube = stack_images(survey, one, size=size, combine="mean", resampling=method, grid=step).compute()
        assert method in cube.attrs["cube"] or "reproject" in cube.attrs["cube"]
        image = cube["image"].values[0, 0].astype(float)
        assert (cube["state"].values == MEASURED).all()
        assert image.sum() == pytest.approx(flux[n], rel=1e-3)
        y, x = np.indices(image.shape)
        expected = to_pixel(cutout_wcs(cube, object=0, band=0), np.array(one["ra"]), np.array(one["dec"]))
        assert (image * x).sum() / image.sum() == pytest.approx(expected[0][0], abs=0.05)
        assert (image * y).sum() / image.sum() == pytest.approx(expected[1][0], abs=0.05)
        assert float(cube["downsampling"].values[0, 0]) == pytest.approx(step / 0.25, rel=1e-3)
        # The width of the star as it lies there, without the side of the pixel that it was recorded with.
        apart = (x - expected[0][0]) ** 2 + (y - expected[1][0]) ** 2
        variance = (image * apart).sum() / image.sum() / 2 * step**2 - 0.25**2 / 12
        assert float(cube["psf_fwhm_after"].values[0, 0]) == pytest.approx(np.sqrt(8 * np.log(2) * variance), rel=0.005)


def test_a_surface_brightness_is_not_multiplied_by_the_area(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    header = sky_wcs(fits.Header()).to_header()
    header.update({"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 60.0, "CRPIX1": 40, "CRPIX2": 40})
    header.update({"CDELT1": -1e-4, "CDELT2": 1e-4, "FILTER": "g"})
    fits.PrimaryHDU(np.full((80, 80), 7.0, np.float32), header=header).writeto(tmp_path / "images" / "a.fits")
    for holds, expected in (("surface_brightness", 7.0), ("flux", 7.0 * 4)):
        (tmp_path / "s.yaml").write_text(
            "survey: a\nroot: .\nbands: [g]\nimages: {glob: images/*.fits, band: {keyword: FILTER}, pixel_holds: " + holds + "}\n"
        )
        for method in ("adaptive", "exact"):
            cube = stack_images(
                open_survey(tmp_path / "s.yaml"), positions(10.0, 60.0), size=12, combine="mean", resampling=method, grid=0.72
            ).compute()
            assert np.allclose(cube["image"].values, expected, rtol=1e-4)
            assert np.isnan(cube["psf_fwhm"].values).all()
            assert np.isnan(cube["psf_fwhm_after"].values).all()


def test_exposures_on_one_grid_are_combined_bit_for_bit(tmp_path: Path) -> None:
    spec = ImageSpec(seed=3, bands=("g",), epochs=3, size=64, stars=5, galaxies=0, dither_pixels=0, rotation_deg=0, defects=False)
    survey = open_survey(write_images(spec, tmp_path))
    images = [fits.getdata(tmp_path / "images" / f"g-{n:03d}.fits", "SCI").astype(float) for n in range(3)]
    cube = stack_images(survey, positions(150.0, 2.2), size=20, combine="median").compute()
    y0, x0 = int(cube["y0"].values[0, 0]), int(cube["x0"].values[0, 0])
    part = [image[y0 : y0 + 20, x0 : x0 + 20] for image in images]
    assert np.array_equal(cube["image"].values[0, 0], np.median(part, axis=0).astype(np.float32))
    assert np.allclose(cube["ivar"].values, 3 / spec.noise**2 * 2 / np.pi)
    widths = np.array([fits.getheader(tmp_path / "images" / f"g-{n:03d}.fits")["FWHM"] for n in range(3)])
    assert float(cube["psf_fwhm"].values[0, 0]) == pytest.approx(widths.mean())
    assert float(cube["psf_fwhm_after"].values[0, 0]) == pytest.approx(np.sqrt((widths**2).mean()))
    moved = ImageSpec(seed=3, bands=("g",), epochs=2, size=64, stars=5, galaxies=0)
    with pytest.raises(SurveyError, match="different pixel grids"):
        stack_images(open_survey(write_images(moved, tmp_path / "b")), positions(150.0, 2.2), size=20, combine="mean").compute()


@pytest.mark.parametrize("method", ["mean", "median", "ivar", "clipped"])
def test_exposures_are_combined_by_their_weights_as_numpy_does_it(tmp_path: Path, method: str) -> None:
    spec = ImageSpec(seed=3, bands=("g",), epochs=5, size=48, stars=5, galaxies=0, dither_pixels=0, rotation_deg=0)
    survey = open_survey(write_images(spec, tmp_path))
    assert survey.images is not None
    assert survey.images.mask is not None
    bits = sum(1 << bit for bit in survey.images.mask.bad_bits or ())
    values, weights, bad = [], [], []
    for n in range(5):
        with fits.open(tmp_path / "images" / f"g-{n:03d}.fits", mode="update") as file:
            file["WEIGHT"].data = file["WEIGHT"].data * np.float32(n + 1)
            file["SCI"].data[24, 24 + n] += 1000  # a ray of cosmic origin
            values.append(file["SCI"].data.astype(float))
            weights.append(file["WEIGHT"].data.astype(float))
            bad.append(((file["MASK"].data & bits) != 0) | ~(weights[-1] > 0))
    cube = stack_images(survey, positions(150.0, 2.2), size=20, combine=method).compute().isel(object=0, band=0)
    y0, x0 = int(cube["y0"]), int(cube["x0"])
    part = np.s_[:, y0 : y0 + 20, x0 : x0 + 20]
    out = np.array(bad)[part]
    assert out.any(axis=0).any()
    assert not out.all(axis=0).any()
    image, weight = (np.ma.array(np.array(things)[part], mask=out.copy()) for things in (values, weights))
    if method == "clipped":
        for _ in range(5):
            middle = np.ma.median(image, axis=0)
            far = abs(image - middle) > 3 * 1.4826 * np.ma.median(abs(image - middle), axis=0)
            image.mask |= far.filled(False) & ((~image.mask).sum(axis=0) >= 3)
            weight.mask = image.mask
        assert image.mask.sum() >= out.sum() + 5
    count = (~image.mask).sum(axis=0)
    of_mean = count**2 / (1 / weight).sum(axis=0)
    expected = {
        "mean": (image.mean(axis=0), of_mean),
        "median": (np.ma.median(image, axis=0), of_mean * np.where(count > 2, 2 / np.pi, 1)),
        "ivar": ((image * weight).sum(axis=0) / weight.sum(axis=0), weight.sum(axis=0)),
        "clipped": (image.mean(axis=0), of_mean),
    }[method]
    assert np.allclose(cube["image"].values, expected[0], rtol=1e-6, atol=1e-6)
    assert np.allclose(cube["ivar"].values, expected[1], rtol=1e-6)
    assert (cube["state"].values == MEASURED).all()
    assert int(cube["n_exposures"]) == 5


def test_bands_are_put_on_the_pixels_of_one_of_them(field_of_images: tuple[Survey, pa.Table, Path]) -> None:
    survey, sources, folder = field_of_images
    few = sources.slice(0, 6)
    cube = stack_images(survey, few, size=17, bands=["g", "r"], combine="mean", resampling="interp", grid="r").compute()
    seen = 0
    for n in range(cube.sizes["object"]):
        if cube["grid"].values[n, 1] < 0:
            continue
        name = cube["exposure_name"].values[cube["grid"].values[n, 1]]
        assert name == "images/r-000.fits"
        y0, x0 = int(cube["y0"].values[n, 1]), int(cube["x0"].values[n, 1])
        assert (y0, x0) == (int(cube["y0"].values[n, 0]), int(cube["x0"].values[n, 0]))
        wcs = cutout_wcs(cube, object=n, band=0)
        ra, dec = to_sky(wcs, np.array([3.0]), np.array([8.0]))
        whole = sky_wcs(fits.getheader(folder / name, "SCI"))
        x, y = to_pixel(whole, ra, dec)
        assert (x[0] - x0, y[0] - y0) == pytest.approx((3.0, 8.0), abs=1e-6)
        seen += 1
    assert seen >= 4


def test_tiles_of_the_sky_hold_every_image_pixel_once(field_of_images: tuple[Survey, pa.Table, Path]) -> None:
    survey, _, _ = field_of_images
    order = 13
    index = np.unique(to_pixels(np.array([150.0, 149.998, 150.002]), np.array([2.2, 2.198, 2.202]), order))
    tiles = Tiles(order, index, 0.5)
    cube = stack_images(survey, tiles, bands=["r"], combine="ivar", resampling="adaptive").compute()
    assert cube["image"].dims == ("tile", "band", "y", "x")
    assert cube.sizes["y"] == tiles.size
    assert sorted(cube["tile_id"].values) == sorted(index)
    assert json.loads(cube.attrs["cube"])["kind"] == "tiles"
    states = np.unique(cube["state"].values)
    assert MEASURED in states
    assert OUTSIDE in states or NOT_OBSERVED in states


@pytest.mark.parametrize(
    ("size", "pixels", "scale"),
    [
        (CutoutSize(arcsec=5.0), 20, np.nan),
        (CutoutSize(pixels=24, arcsec=12.0), 24, 0.5),
        (CutoutSize(pixels=10, column="r", times=4), 10, None),
    ],
)
def test_sizes_are_pixels_lengths_or_multiples_of_a_column(
    field_of_images: tuple[Survey, pa.Table, Path], size: CutoutSize, pixels: int, scale: float | None
) -> None:
    survey, sources, _ = field_of_images
    radius = np.linspace(0.5, 2.0, sources.num_rows)
    table = sources.append_column("r", pa.array(radius))
    resampling = "native" if scale is not None and np.isnan(scale) else "adaptive"
    cube = stack_images(survey, table, size=size, combine=None if resampling == "native" else "mean", resampling=resampling)
    assert cube.sizes["y"] == cube.sizes["x"] == pixels
    asked = dict(zip(cube["object_id"].values.tolist(), cube["scale_asked"].values.tolist(), strict=True))
    if scale is None:
        expected = dict(zip(sources["object_id"].to_pylist(), (radius * 4 / 10).tolist(), strict=True))
        assert asked == pytest.approx(expected)
    elif np.isfinite(scale):
        assert set(asked.values()) == {scale}
    assert json.loads(cube.attrs["cube"])["size_asked"]["pixels"] == size.pixels


def test_what_a_window_does_not_hold_of_the_square_asked_for_is_the_crop_fraction(
    field_of_images: tuple[Survey, pa.Table, Path],
) -> None:
    survey, sources, _ = field_of_images
    cube = stack_images(survey, sources, size=CutoutSize(pixels=16, arcsec=8.0), bands=["g"]).compute()
    crop = cube["crop_fraction"].values[cube["exposure"].values >= 0]
    assert crop == pytest.approx(1 - (16 * 0.25 / 8) ** 2, abs=1e-4)


def test_raw_headers_are_the_bytes_of_the_files(field_of_images: tuple[Survey, pa.Table, Path]) -> None:
    survey, sources, folder = field_of_images
    cube = stack_images(survey, sources, size=8).compute()
    for source, name in enumerate(cube["source_uri"].values):
        raw = (folder / name).read_bytes()
        with fits.open(folder / name) as file:
            places = [(hdu.fileinfo()["hdrLoc"], hdu.fileinfo()["datLoc"]) for hdu in file]
        assert raw_headers(cube, source) == [raw[start:stop] for start, stop in places]
        assert int(cube["source_size"][source]) == len(raw)


def test_a_cut_image_is_set_aside_with_a_reason_and_the_rest_goes_on(tmp_path: Path) -> None:
    spec = ImageSpec(seed=6, bands=("g",), epochs=3, size=64, stars=4, galaxies=0)
    survey = open_survey(write_images(spec, tmp_path))
    path = tmp_path / "images" / "g-001.fits"
    path.write_bytes(path.read_bytes()[:-9000])
    cube = stack_images(survey, positions(150.0, 2.2), size=8).compute()
    assert cube.sizes["epoch"] == 2
    [found] = json.loads(cube.attrs["quarantine"])
    assert found["file"] == "images/g-001.fits"
    assert "truncated" in found["reason"]
    assert (cube["state"].values <= MASKED).all()


def test_an_image_whose_tiles_turn_out_damaged_is_left_out_and_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    spec = ImageSpec(seed=6, bands=("g",), epochs=2, size=64, stars=4, galaxies=0)
    survey = open_survey(write_images(spec, tmp_path))
    path = tmp_path / "images" / "g-001.fits"
    with fits.open(path) as file:
        tiled = fits.CompImageHDU(file["SCI"].data, header=file["SCI"].header, compression_type="GZIP_1", quantize_level=0)
        fits.HDUList([file[0].copy(), tiled, file["MASK"].copy(), file["WEIGHT"].copy()]).writeto(tmp_path / "b.fits")
    raw = bytearray((tmp_path / "b.fits").read_bytes())
    with fits.open(tmp_path / "b.fits", disable_image_compression=True) as file:
        place = file[1].fileinfo()
    middle = place["datLoc"] + place["datSpan"] // 2
    raw[middle : middle + 3000] = bytes(3000)
    path.write_bytes(raw)
    (tmp_path / "b.fits").unlink()
    cube = stack_images(survey, positions(150.0, 2.2), size=30).compute()
    assert cube["unreadable"].values.tolist() == [[1]]
    assert "g-001.fits: HDU 1" in caplog.text
    assert (cube["state"].values[0, 0, 0] <= MASKED).all()
    assert (cube["state"].values[0, 0, 1] == NOT_OBSERVED).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 8, "bands": ["q"]}, SurveyError, "no band 'q'"),
        ({"size": 8, "combine": "mode"}, SurveyError, "'mode' is no way to combine; .*choices: mean, median"),
        ({"size": 8, "resampling": "linear"}, SurveyError, "resampling: 'linear' is none"),
        ({"size": 8, "grid": 0.3}, SurveyError, "native pixels have a grid already"),
        (
            {"size": 8, "resampling": "interp", "grid": "z", "bands": ["g"]},
            SurveyError,
            "must be one of the bands that are stacked: g",
        ),
        ({}, SurveyError, "size: give the pixels"),
        ({"size": CutoutSize(column="radius")}, ColumnError, "no column 'radius'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_any_pixel_is_read(
    field_of_images: tuple[Survey, pa.Table, Path], options: dict[str, Any], error: type[Exception], message: str
) -> None:
    survey, sources, _ = field_of_images
    with pytest.raises(error, match=message):
        stack_images(survey, sources, **options)
    with pytest.raises(ColumnError, match="no column with the role 'ra'"):
        stack_images(survey, sources.drop_columns(["ra"]), size=8)
    with pytest.raises(InputError, match="no position"):
        stack_images(survey, positions([np.nan, 1.0], [0.0, 0.0]), size=8)


def test_objects_in_any_groups_give_the_same_cube(
    field_of_images: tuple[Survey, pa.Table, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    survey, sources, _ = field_of_images
    cubes = []
    for most in (4096, 3, 1):
        monkeypatch.setattr("scalable.cube.stack.MOST_OBJECTS", most)
        few = sources.slice(0, 5)
        cubes.append(stack_images(survey, few, size=12, bands=["g"], combine="clipped", resampling="adaptive").compute())
    for other in cubes[1:]:
        xr.testing.assert_identical(cubes[0], other)
