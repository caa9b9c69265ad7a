"""The examples on real data: every row accounted for, sentinels as states, and verified down to the bytes of the sources."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import dask
import numpy as np
import pytest
import sep
from astropy.io import fits
from astropy.table import Table
from astropy.wcs import WCS, FITSFixedWarning
from release.conftest import EXAMPLES

from scalable.catalog.ingest import ingest
from scalable.cube.contract import raw_headers
from scalable.cube.stack import stack_images
from scalable.cube.write import write_cube
from scalable.release.exchange import to_fits
from scalable.release.read import open_release
from scalable.release.recipe import COMPUTED, QUESTIONS, open_recipe, parse_recipe
from scalable.release.verify import verify_release
from scalable.release.write import write_release
from scalable.sky.grid import to_sky
from scalable.survey.read import open_survey


@pytest.fixture(autouse=True)
def _threads() -> None:
    dask.config.set(scheduler="threads")


@pytest.mark.long
def test_des_galaxies_with_their_labels_and_sentinels(data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(EXAMPLES / "des_dnf", tmp_path / "des"))
    shutil.copy(data / "photoz" / "des_dnf" / "valid.fits", folder)
    collection = ingest(open_survey(folder / "survey.yaml"), into=tmp_path / "store")
    write_release(collection, open_recipe(folder / "release.yaml"), into=tmp_path / "release")
    release = open_release(tmp_path / "release")
    books = release.manifest["accounting"]
    with fits.open(folder / "valid.fits") as hdus:
        table = hdus[1].data
        usable = table["MAG_I"] > -90
        assert (books["in"], books["released"]) == (len(table), np.count_nonzero(usable))
        found, row = release.numpy(), None
        row = found["source_row"]
        np.testing.assert_array_equal(np.sort(row), np.flatnonzero(usable))
        np.testing.assert_array_equal(found["MAG_I"], table["MAG_I"][row])
        np.testing.assert_array_equal(found["Z"], table["Z"][row])
        no_error = np.isin(table["ERR_Z"][row], np.array([99.0, -9.999], table["ERR_Z"].dtype.newbyteorder("=")))
        assert np.count_nonzero(no_error) > 0
        np.testing.assert_array_equal(found["ERR_Z_state"] == 3, no_error)
        assert np.all(np.isnan(found["ERR_Z"][no_error]))
        np.testing.assert_array_equal(found["MAG_ERR_I_state"] == 4, table["MAG_ERR_I"][row] <= 0)
    split = release.manifest["split"]
    assert split["leaks"] == 0
    assert split["random_leaks"] > 0
    checked = verify_release(tmp_path / "release", level=4, sources=folder)
    assert checked.passed, checked


DECAM = """
survey: decam
root: .
bands: [g, r, z]
observations: {index: observations.csv, id: id, band: band, mjd: mjd}
files: {format: fits, templates: [{path: sources.fits}]}
columns:
  ID: {role: object_id, unit: "", ucd: meta.id, description: Number of the source}
  RA: {role: ra, unit: deg, ucd: pos.eq.ra, description: Right ascension}
  DEC: {role: dec, unit: deg, ucd: pos.eq.dec, description: Declination}
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
motivation: {text: Try shapes of sources., goal: Shapes., requirements: {shapes: windows of 19 pixels}}
query: {text: the test images of legacypipe}
license: see legacypipe
"""


@pytest.mark.long
def test_decam_cutouts_with_every_header_and_every_exposure_back(data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data / "images" / "decam_legacypipe", tmp_path / "decam"))
    found: list[tuple[float, float]] = []
    exposures = sorted(folder.glob("testcase*/images/decam/**/*_ooi_*.fits"))
    assert len(exposures) == 17
    for path in exposures:
        with warnings.catch_warnings(), fits.open(path) as hdus:
            warnings.simplefilter("ignore", FITSFixedWarning)
            pixels, wcs = np.ascontiguousarray(hdus[1].data, np.float32), WCS(hdus[1].header)
        background = sep.Background(pixels, bw=32, bh=32)
        things = sep.extract(pixels - background.back(), 5.0, err=background.globalrms)
        things = things[np.argsort(-things["flux"], kind="stable")[:3]]
        found += list(zip(*(axis.tolist() for axis in to_sky(wcs, things["x"], things["y"])), strict=True))
    ra, dec = np.array(found).T
    Table({"ID": np.arange(len(ra)), "RA": ra, "DEC": dec}).write(folder / "sources.fits")
    (folder / "observations.csv").write_text("id,band,mjd\n1,g,57000\n")
    (folder / "survey.yaml").write_text(DECAM)
    collection = ingest(open_survey(folder / "survey.yaml"), into=tmp_path / "store")
    objects = collection.objects.select("object_id", "object_ra", "object_dec").compute()
    cube = write_cube(stack_images(open_survey(folder / "survey.yaml"), objects, size=19), tmp_path / "cube")
    recipe = parse_recipe(
        {
            "release": "decam", "title": "DECam cutouts", "images": True, "whole": True,
            "columns": {"image": {"reason": "shapes", "serves": "shapes"}},
            "split": {"order": 6, "guard_arcsec": 10},
            "datasheet": {name: "not applicable: a test" for name in QUESTIONS if name not in COMPUTED},
        },
        "test",
    )  # fmt: skip
    write_release(collection, recipe, into=tmp_path / "release", cube=cube)
    release = open_release(tmp_path / "release")
    back = release.cube()
    assert back.sizes["object"] == len(ra) == release.manifest["images"]["objects_with_image"]
    for source, name in enumerate(back["source_uri"].values.tolist()):
        with fits.open(folder / name) as file:
            assert raw_headers(back, source) == [hdu.header.tostring().encode("latin-1") for hdu in file]
    written = to_fits(tmp_path / "release", tmp_path / "back")
    assert len(written) == 1 + 3 * 17
    for path in written:
        assert path.read_bytes() == (folder / path.relative_to(tmp_path / "back")).read_bytes()
    checked = verify_release(tmp_path / "release", level=4, sources=folder)
    assert checked.passed, checked


@pytest.mark.long
def test_vvv_stars_with_statistics_and_light_curves(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCALABLE_DATA", str(data))
    collection = ingest(open_survey(EXAMPLES / "vvv" / "survey.yaml"), into=tmp_path / "store")
    recipe = open_recipe(EXAMPLES / "vvv" / "release.yaml").model_copy(update={"whole": True})
    write_release(collection, recipe, into=tmp_path / "release")
    release = open_release(tmp_path / "release")
    books = release.manifest["accounting"]
    assert books["in"] == 30_000 == books["released"] + books["rejected"]
    assert books["read"] == 180_000 == books["detections_released"] + books["detections_of_rejected_objects"]
    found = release.numpy(["J_Mag1", "H_Mag1", "flags"])
    bit = release.manifest["flags"]["red"]["bit"]
    np.testing.assert_array_equal(found["flags"] >> bit & 1, found["J_Mag1"].astype(float) - found["H_Mag1"] > 1.5)
    assert release.manifest["split"]["leaks"] == 0
    checked = verify_release(tmp_path / "release", level=4, sources=data / "vvv")
    assert checked.passed, checked
    for path in to_fits(tmp_path / "release", tmp_path / "back"):
        assert path.read_bytes() == (data / "vvv" / path.name).read_bytes()
