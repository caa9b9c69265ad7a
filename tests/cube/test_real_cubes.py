"""Cubes of real images: DECam exposures with masks and weights, HSC and HST of one place, scaled integers, odd headers."""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pytest
import sep
import xarray as xr
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS, FITSFixedWarning

from scalable.catalog.check import check
from scalable.cube.contract import cutout_wcs, open_cube, raw_headers
from scalable.cube.stack import stack_images
from scalable.cube.write import write_cube
from scalable.sky.grid import to_pixel, to_sky
from scalable.survey.description import Survey
from scalable.survey.read import open_survey

DECAM = """
bands: [g, r, z]
images:
  glob: "testcase*/images/decam/**/*_ooi_*.fits"
  band: {keyword: FILTER}
  bands_as:
    g DECam SDSS c0001 4720.0 1520.0: g
    r DECam SDSS c0002 6415.0 1480.0: r
    z DECam SDSS c0004 9260.0 1520.0: z
  mjd: {keyword: MJD-OBS}
  psf_fwhm: {keyword: FWHM}
  psf_unit: pix
  unit: adu
  mask: {replace: [_ooi_, _ood_]}
  weight: {replace: [_ooi_, _oow_]}
"""


@pytest.fixture(autouse=True)
def _in_this_thread() -> Any:
    with dask.config.set(scheduler="synchronous"):
        yield


def survey(folder: Path, root: Path, text: str) -> Survey:
    (folder / "survey.yaml").write_text(f"survey: real\nroot: {root}\n{text}")
    return open_survey(folder / "survey.yaml")


@lru_cache(maxsize=64)
def read(path: Path, hdu: int = 0) -> tuple[Any, WCS]:
    with warnings.catch_warnings(), fits.open(path) as file:
        warnings.simplefilter("ignore", FITSFixedWarning)
        return np.asarray(file[hdu].data), WCS(file[hdu].header, naxis=2)


@lru_cache(maxsize=64)
def fwhm(path: Path) -> float:
    return float(fits.getval(path, "FWHM", 1))


def test_seventeen_decam_exposures_around_sources_that_sep_finds(data: Path, tmp_path: Path) -> None:
    root = data / "images" / "decam_legacypipe"
    found: list[tuple[float, float]] = []
    images = sorted(root.glob("testcase*/images/decam/**/*_ooi_*.fits"))
    assert len(images) == 17
    for path in images:
        pixels, wcs = read(path, 1)
        pixels = np.ascontiguousarray(pixels, np.float32)
        background = sep.Background(pixels, bw=32, bh=32)
        things = sep.extract(pixels - background.back(), 5.0, err=background.globalrms)
        things = things[np.argsort(-things["flux"], kind="stable")[:3]]
        found += list(zip(*(axis.tolist() for axis in to_sky(wcs, things["x"], things["y"])), strict=True))
    ra, dec = np.array(found).T
    table = pa.table({"object_id": np.arange(len(ra)), "ra": ra, "dec": dec})
    lazy = stack_images(survey(tmp_path, root, DECAM), table, size=19)
    cube = open_cube(write_cube(lazy, tmp_path / "c.zarr")).load()
    assert cube.sizes["epoch"] == 3
    assert set(cube["exposure"].values[cube["exposure"].values >= 0].tolist()) == set(range(17))
    checked = 0
    for n, b, e in zip(*np.nonzero(cube["exposure"].values >= 0), strict=True):
        one = cube.isel(object=n, band=b, epoch=e)
        path = root / str(cube["exposure_name"].values[int(one["exposure"])])
        pixels, wcs = read(path, 1)
        place = SkyCoord(float(one["ra"]), float(one["dec"]), unit=u.deg)
        expected = Cutout2D(pixels, place, 19, wcs=wcs, mode="partial", fill_value=np.nan)
        assert np.array_equal(one["image"].values, expected.data.astype("f4"), equal_nan=True)
        mask, _ = read(Path(str(path).replace("_ooi_", "_ood_")), 1)
        weight, _ = read(Path(str(path).replace("_ooi_", "_oow_")), 1)
        y, x = expected.slices_cutout
        assert np.array_equal(one["mask"].values[y, x], mask[expected.slices_original])
        assert np.array_equal(one["ivar"].values[y, x], weight[expected.slices_original])
        bad = (mask != 0) | ~(weight > 0)
        assert np.array_equal(one["state"].values[y, x] == 1, bad[expected.slices_original])
        ours = cutout_wcs(cube, object=int(n), band=int(b), epoch=int(e))
        at = to_pixel(ours, np.array([float(one["ra"])]), np.array([float(one["dec"])]))
        assert np.hypot(at[0] - expected.input_position_cutout[0], at[1] - expected.input_position_cutout[1])[0] < 1e-6
        assert float(one["psf_fwhm"]) == pytest.approx(fwhm(path) * 0.263, rel=0.01)
        checked += 1
    assert checked > 30
    for source, name in enumerate(cube["source_uri"].values.tolist()):
        with fits.open(root / name) as file:
            expected_headers = [hdu.header.tostring().encode("latin-1") for hdu in file]
        assert raw_headers(cube, source) == expected_headers


def test_five_hsc_bands_and_hst_in_one_cube_on_the_pixels_of_hsc(data: Path, tmp_path: Path) -> None:
    for name in ("Cut_HSC1.fits", "Cut_HST1.fits"):
        (tmp_path / name).write_bytes((data / "images" / "hsc_hst_scarlet" / name).read_bytes())
    rows = ["name,band,plane", *(f"Cut_HSC1,{band},{n}" for n, band in enumerate("grizy")), "Cut_HST1,F814W,0"]
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    described = survey(
        tmp_path,
        tmp_path,
        "bands: [g, r, i, F814W, z, y]\n"
        "images: {index: index.csv, path: '{name}.fits', band: band, plane: plane, psf_fwhm: {value: 0.6}}\n",
    )
    pixels, wcs = read(tmp_path / "Cut_HSC1.fits")
    ra, dec = to_sky(wcs, np.array([24.0]), np.array([25.0]))
    table = pa.table({"object_id": [7], "ra": ra, "dec": dec})
    size = 15
    cube = stack_images(described, table, size=size, combine="mean", resampling="exact", grid="g").compute()
    assert cube["image"].dtype == np.float64
    hsc = [cube["band"].values.tolist().index(band) for band in "grizy"]
    assert np.array_equal(cube["image"].values[0, hsc], pixels[:, 18:33, 17:32]), "the same pixels, bit for bit"
    ours, other = cube.isel(band=hsc), cube.sel(band=["F814W"])
    scale = float(ours["pixel_scale"][0, 0])
    assert (ours["downsampling"].values == 1).all()
    assert (ours["psf_fwhm_after"].values == np.float32(0.6)).all(), "copied, not moved"
    moved = np.sqrt(0.6**2 + 8 * np.log(2) * (0.168**2 + 0.03**2) / 12)
    assert float(other["psf_fwhm_after"][0, 0]) == pytest.approx(moved, rel=1e-3)
    assert float(other["downsampling"][0, 0]) == pytest.approx(0.168 / 0.03, rel=1e-3)
    # The same light, whatever the pixels: against a sum over HST's own pixels in the same square.
    fine, fine_wcs = read(tmp_path / "Cut_HST1.fits")
    middle = to_pixel(fine_wcs, ra, dec)
    half = size * scale / 0.03 / 2
    y, x = np.indices(fine.shape)
    inside = np.clip(half + 0.5 - np.abs(x - middle[0][0]), 0, 1) * np.clip(half + 0.5 - np.abs(y - middle[1][0]), 0, 1)
    assert float(other["image"].sum()) == pytest.approx(float((fine * inside).sum()), rel=5e-3)
    # One grid: what is bright in both is at the same place.
    middles = []
    for image in (ours["image"].values[0, 2], other["image"].values[0, 0]):
        weight = np.where(image > np.nanmax(image) / 2, image, 0)
        rows, columns = np.indices(weight.shape)
        middles.append(((weight * columns).sum() / weight.sum(), (weight * rows).sum() / weight.sum()))
    assert np.hypot(*(np.array(middles[0]) - middles[1])) < 1.0


def test_scaled_integers_of_2mass_are_astropys_values(data: Path, tmp_path: Path) -> None:
    root = data / "images" / "2mass_gc_jhk"
    described = survey(
        tmp_path, root, "bands: [J, H, K]\nimages: {glob: '*.fits', band: {keyword: BAND}, zero_point: {keyword: MAGZP}}\n"
    )
    pixels, wcs = read(root / "gc_2mass_h.fits")
    rng = np.random.default_rng(2)
    ra, dec = to_sky(wcs, rng.uniform(0, 720, 40), rng.uniform(0, 719, 40))
    cube = stack_images(described, pa.table({"object_id": np.arange(40), "ra": ra, "dec": dec}), size=32).compute()
    assert cube["image"].dtype == np.float32
    for band, letter in enumerate("jhk"):
        pixels, wcs = read(root / f"gc_2mass_{letter}.fits")
        for n in range(40):
            place = SkyCoord(float(cube["ra"][n]), float(cube["dec"][n]), unit=u.deg)
            expected = Cutout2D(pixels, place, 32, wcs=wcs, mode="partial", fill_value=np.nan)
            assert np.array_equal(cube["image"].values[n, band, 0], expected.data, equal_nan=True)


def test_a_galactic_cartesian_map_is_found_by_equatorial_positions_and_plates_without_a_sky_are_set_aside(
    data: Path, tmp_path: Path
) -> None:
    root = data / "images" / "misc_headers"
    described = survey(
        tmp_path, root, "bands: [E]\nimages: {glob: '*.fits', band: {value: E}, pixel_holds: surface_brightness}\n"
    )
    place = SkyCoord(0.0, 0.05, unit=u.deg, frame="galactic").icrs
    table = pa.table({"object_id": [1], "ra": [place.ra.deg], "dec": [place.dec.deg]})
    cube = stack_images(described, table, size=9).compute()
    assert "M13_blue_0001.fits" in cube.attrs["quarantine"]
    assert "no celestial world coordinates" in cube.attrs["quarantine"]
    name = str(cube["exposure_name"].values[int(cube["exposure"].values[0, 0, 0])])
    assert name == "gc_msx_e.fits"
    pixels, wcs = read(root / name)
    assert np.array_equal(cube["image"].values[0, 0, 0], Cutout2D(pixels, place, 9, wcs=wcs).data)
    xr.testing.assert_equal(cube["unreadable"], xr.zeros_like(cube["unreadable"]))


def test_check_finds_a_filter_keyword_that_contradicts_the_index_once(tmp_path: Path) -> None:
    (tmp_path / "frames").mkdir()
    rows = ["name,filter"]
    for n, band in enumerate("gri"):
        header = fits.Header(
            {"CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 0.0, "CRPIX1": 4, "CRPIX2": 4}
        )
        header.update({"CDELT1": -1e-4, "CDELT2": 1e-4, "FILTER": "g"})
        fits.PrimaryHDU(np.ones((8, 8), np.float32), header=header).writeto(tmp_path / "frames" / f"frame-{n}.fits")
        rows.append(f"frame-{n},{band}")
    (tmp_path / "index.csv").write_text("\n".join(rows) + "\n")
    text = "bands: [g, r, i]\nimages: {index: index.csv, path: 'frames/{name}.fits', band: filter}\n"
    [finding] = check(survey(tmp_path, tmp_path, text)).findings
    assert finding.name == "filter-image"
    assert finding.message == ("2 images: frames/frame-1.fits (FILTER 'g', band 'r'), frames/frame-2.fits (FILTER 'g', band 'i')")
    assert check(survey(tmp_path, tmp_path, text + "accept: [filter-image]\n")).findings == ()
    path = tmp_path / "frames" / "frame-2.fits"
    path.write_bytes(path.read_bytes()[:3000])
    found = {finding.name: finding.message for finding in check(survey(tmp_path, tmp_path, text)).findings}
    assert set(found) == {"filter-image", "unreadable-image"}
    assert "frame-2.fits: HDU 0: file ends at byte 3000" in found["unreadable-image"]


def test_check_says_that_no_image_is_there_and_goes_on(tmp_path: Path) -> None:
    (tmp_path / "a.fits").write_bytes(b"SIMPLE")
    (tmp_path / "empty.csv").write_text("name,filter\n")
    for images, message in (
        ("{glob: 'im*/*.fits', band: {value: g}}", f"images.glob: 'im*/*.fits' finds no file below {tmp_path}; correct the glob"),
        ("{index: i.csv, path: '{name}', band: filter}", "i.csv: the index of images is not there; set images.index or root"),
        ("{index: empty.csv, path: '{name}', band: filter}", "empty.csv: the index of images has no row; add one for each"),
        (
            "{glob: '*.fits', band: {value: g}}",
            "none of 1 files holds an image that can be used: a.fits: HDU 0: not a FITS file",
        ),
    ):
        text = f"bands: [g]\nimages: {images}\n"
        [finding] = check(survey(tmp_path, tmp_path, text)).findings
        assert finding.name == "missing-images"
        assert message in finding.message
        assert "accept: [missing-images]" in finding.settle
        assert check(survey(tmp_path, tmp_path, text + "accept: [missing-images]\n")).findings == ()
