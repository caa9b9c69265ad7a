"""Simulated rows that joined a release: apart in its books, marked in every cell, kept out of test and folds, drawn again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pytest
from release.conftest import of_detections, of_objects
from release.test_verify import seal

from scalable.catalog.bands import join_bands
from scalable.catalog.collection import Collection
from scalable.errors import ColumnError, SurveyError
from scalable.io.runs import read_json
from scalable.kernels.features import Features
from scalable.release import drawn
from scalable.release.read import open_release
from scalable.release.recipe import Recipe
from scalable.release.verify import verify_release
from scalable.release.write import write_release
from scalable.train.model import open_model
from scalable.train.photoz import fit_mixture
from scalable.train.predict import sample_mixture

BANDS = ("J_Mag1", "H_Mag1", "Ks_Mag1")
ROWS, SEED = 500, 7


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    dask.config.set(scheduler="threads")
    monkeypatch.setattr(drawn, "PART_ROWS", 200)


def simulating(**changes: Any) -> Recipe:
    """Return a recipe with simulated rows, and one column that is imputed in them too."""
    asked = {"rows": ROWS, "seed": SEED, "reason": "more faint stars than were seen"} | changes
    return of_objects(simulate=asked, impute=[{"column": "Z_Mag1", "reason": "a learner that takes no null"}])


@pytest.fixture(scope="module")
def mixture(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of the magnitudes of the stars, fainter and brighter ones alike."""
    with dask.config.set(scheduler="threads"):
        joined = join_bands(collection.detections, ["J", "H", "Ks"], values=["Mag1"])
        model = fit_mixture(joined, Features(BANDS, reference="H_Mag1"), components=[2])
    path = tmp_path_factory.mktemp("mixture") / "mixture.h5"
    model.save(path)
    return path


@pytest.fixture(scope="module")
def joined(collection: Collection, mixture: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release with simulated rows; do not change it."""
    with dask.config.set(scheduler="threads"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(drawn, "PART_ROWS", 200)
        return write_release(collection, simulating(), into=tmp_path_factory.mktemp("joined") / "r", model=mixture)


def test_simulated_rows_are_those_that_the_mixture_gives(joined: Path, mixture: Path) -> None:
    sample = sample_mixture(open_model(mixture), ROWS, seed=SEED).compute()
    rows = open_release(joined).numpy()
    mine = {name: values[rows["source_id"] == -1] for name, values in rows.items()}
    j, h, k = (mine[name].astype(np.float64) for name in BANDS)
    np.testing.assert_array_equal(mine["source_row"], np.arange(ROWS))
    for name, values in (("H_Mag1", h), ("J_Mag1 - H_Mag1", j - h), ("H_Mag1 - Ks_Mag1", h - k)):
        np.testing.assert_allclose(values, sample[name].to_numpy(), atol=5e-6)


def test_simulated_rows_are_apart_in_books_splits_and_states(joined: Path, released: Path) -> None:
    manifest, before = (read_json(folder / "release.json") for folder in (joined, released))
    books = manifest["accounting"]
    assert books["in"] == books["released"] + books["rejected"]
    assert (books["released"], books["simulated"]) == (before["accounting"]["released"], ROWS)
    assert manifest["origins"]["simulated"] == before["origins"]["simulated"] + ROWS
    for key in ("split", "sketches", "coverage", "completeness"):
        same = {name: value for name, value in before[key].items() if name != "Z_Mag1"}
        assert {name: manifest[key][name] for name in same} == same, key
    rows = open_release(joined).numpy()
    mine = rows["source_id"] == -1
    assert mine.sum() == ROWS
    assert set(rows["origin"][mine].tolist()) == {2}
    assert set(rows["split"][mine].tolist()) == {0}
    assert set(rows["fold"][mine].tolist()) == {-1}
    assert np.isnan(rows["ra"][mine]).all()
    assert np.isnan(rows["dec"][mine]).all()
    assert len(np.unique(rows["object_id"])) == len(mine)
    for name in open_release(joined).columns:
        states, values = rows[f"{name}_state"][mine], rows[name][mine]
        assert 0 not in states, name
        np.testing.assert_array_equal(states == 5, np.isfinite(values) & (name in (*BANDS, "Z_Mag1")), err_msg=name)
    assert set(rows["Z_Mag1_state_in_source"][mine].tolist()) == {2}
    answer = read_json(joined / "datasheet.json")["composition_instances"]["answer"]
    assert f"{ROWS} simulated rows" in answer
    assert manifest["simulated"]["model"] in answer


def test_a_reader_takes_them_or_leaves_them(joined: Path, released: Path) -> None:
    every, observed = open_release(joined), open_release(joined, simulated=False)
    assert every.rows == observed.rows + ROWS
    np.testing.assert_array_equal(observed.numpy()["object_id"], open_release(released).numpy()["object_id"])
    assert (every.index.num_rows, observed.index.num_rows) == (every.rows, observed.rows)
    for split in ("validation", "test", "guard"):
        assert (every.numpy(["source_id"], split=split)["source_id"] >= 0).all()
    seen = np.concatenate([block["source_id"] for block in every.blocks(["source_id"], split="train", seed=3)])
    assert np.count_nonzero(seen == -1) == ROWS
    assert len(every.xarray()["object_id"]) == every.rows


def test_verify_draws_every_row_again(joined: Path, sources: Path) -> None:
    found = verify_release(joined, level=3, sources=sources, samples=50)
    assert found.passed, found
    assert (3, "simulated rows", ROWS + 1) in found.checked


def forge_a_row(release: Path) -> str:
    """Move one simulated row."""
    with h5py.File(release / "data" / "Simulated" / "Part=1.h5", "r+") as file:
        file["J_Mag1"][3] += 0.5
    return "data/Simulated/Part=1.h5: row 3: J_Mag1 not as the mixture gives"


@pytest.mark.long
def test_a_forged_simulated_row_is_found_and_named(joined: Path, sources: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(joined, tmp_path / "copied"))
    where = forge_a_row(copied)
    seal(copied)
    assert verify_release(copied, level=2).passed
    found = verify_release(copied, level=3, sources=sources, samples=10)
    assert where in str(found)


def test_what_cannot_be_simulated_is_refused(collection: Collection, mixture: Path, tmp_path: Path) -> None:
    with pytest.raises(SurveyError, match="give the model"):
        write_release(collection, simulating(), into=tmp_path / "r")
    with pytest.raises(SurveyError, match="say how many rows"):
        write_release(collection, of_objects(), into=tmp_path / "r", model=mixture)
    with pytest.raises(SurveyError, match="a mixture draws objects"):
        of_detections(simulate={"rows": 1, "reason": "none"})
    colours = fit_mixture(join_bands(collection.detections, ["J", "H"], values=["Mag1"]), Features(BANDS[:2]), components=[1])
    colours.save(tmp_path / "colours.h5")
    with pytest.raises(ColumnError, match="fit it with a reference magnitude"):
        write_release(collection, simulating(), into=tmp_path / "r", model=tmp_path / "colours.h5")


@pytest.mark.long
def test_rows_that_are_simulated_raise_the_minor_version_and_are_rebuilt(
    collection: Collection, mixture: Path, sources: Path, tmp_path: Path
) -> None:
    plain = of_objects(impute=[{"column": "Z_Mag1", "reason": "a learner that takes no null"}])
    write_release(collection, plain, into=tmp_path / "plain")
    asked = simulating(split="test")
    write_release(collection, asked, into=tmp_path / "more", parent=tmp_path / "plain", model=mixture)
    manifest = read_json(tmp_path / "more" / "release.json")
    assert (manifest["version"], manifest["parent"]["added"], manifest["parent"]["changed"]) == ("1.1.0", ROWS, 0)
    test = open_release(tmp_path / "more").numpy(["source_id"], split="test")
    assert np.count_nonzero(test["source_id"] == -1) == ROWS
    found = verify_release(tmp_path / "more", level=4, sources=sources, samples=20)
    assert found.passed, found
