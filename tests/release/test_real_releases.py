"""The examples on real data: every row accounted for, sentinels as states, and verified down to the bytes of the sources."""

from __future__ import annotations

import shutil
from pathlib import Path

import dask
import numpy as np
import pytest
from astropy.io import fits
from release.conftest import EXAMPLES

from scalable.catalog.ingest import ingest
from scalable.release.exchange import to_fits
from scalable.release.read import open_release
from scalable.release.recipe import open_recipe
from scalable.release.verify import verify_release
from scalable.release.write import write_release
from scalable.survey import open_survey


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
