"""The scripts that a user submits: they run on a laptop command, resume, and report."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalable.catalog.catalog import open_catalog
from scalable.catalog.ingest import ingest
from scalable.survey.read import open_survey
from scalable.synthetic.images import ImageSpec, write_images
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables
from scalable.train.checkpoint import Checkpoint

JOBS = Path(__file__).parents[1] / "jobs"


def job(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, JOBS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sky = make_sky(SkySpec(seed=4, fields=1, stars_per_field=150, epochs=3))
    return write_tables(sky, tmp_path_factory.mktemp("jobs"))


@pytest.fixture(scope="module")
def store(survey: Path) -> Path:
    """Ingest by the laptop command: a process of its own, which starts its own cluster."""
    store = survey.parent / "store"
    command = [sys.executable, JOBS / "ingest_catalog.py", survey, "--into", store, "--workers", "2"]
    found = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "rows stored" in found.stdout
    return store


def test_ingest_reports_and_a_rerun_skips(survey: Path, store: Path) -> None:
    report = json.loads((store / "ingest.json").read_text())
    assert report["accounting"]["read"] == report["accounting"]["stored"] > 0
    assert not report["skipped"]
    module = job("ingest_catalog")
    again = module.run(module.parse_args([str(survey), "--into", str(store), "--workers", "1"]))
    assert again["skipped"]
    assert again["version"] == "0001"


def test_a_night_is_appended_and_a_rerun_skips(tmp_path: Path) -> None:
    survey = write_tables(make_sky(SkySpec(seed=5, fields=1, stars_per_field=150, epochs=3)), tmp_path)
    index, store = tmp_path / "observations.csv", tmp_path / "store"
    *before, last = index.read_text().splitlines(keepends=True)
    index.write_text("".join(before))
    with dask.config.set(scheduler="threads"):
        first = ingest(open_survey(survey), into=store)
    index.write_text("".join([*before, last]))
    module = job("append_night")
    arguments = [str(survey), "--into", str(store), "--workers", "1"]
    assert module.main(arguments) == 0
    report = json.loads((store / "append.json").read_text())
    assert report["version"] == "0002"
    assert report["added"] == report["accounting"]["stored"] - first.accounting["stored"] > 0
    again = module.run(module.parse_args(arguments))
    assert (again["skipped"], again["version"], again["added"]) == (True, "0002", 0)


def test_variability_writes_a_catalogue_with_one_row_per_object_and_a_rerun_skips(store: Path) -> None:
    module = job("compute_variability")
    out = store.parent / "statistics"
    wanted = ["--statistics", "Chi2", "StetsonK", "--bands", "Ks"]
    arguments = [str(store), "--out", str(out), *wanted, "--calibrate", "Ks", "--workers", "1"]
    assert module.main(arguments) == 0
    report = json.loads(out.with_name("statistics.json").read_text())
    catalog = open_catalog(out)
    assert catalog.rows == report["objects"] == open_catalog(store / "current" / "objects").rows
    assert catalog.columns.names[4:] == ["Ks_Flux1Chi2", "Ks_Flux1StetsonK"]
    assert module.run(module.parse_args(arguments))["skipped"]


def test_crossmatch_writes_the_pairs_of_two_catalogues_and_a_rerun_skips(store: Path) -> None:
    module = job("crossmatch")
    out = store.parent / "pairs"
    objects = store / "current" / "objects"
    arguments = [str(store), str(objects), "--radius-arcsec", "1", "--out", str(out), "--right-columns", "n_Ks", "--workers", "1"]
    assert module.main(arguments) == 0
    report = json.loads(out.with_name("pairs.json").read_text())
    catalog = open_catalog(out)
    assert catalog.rows == report["rows"] == open_catalog(objects).rows
    assert report["history"][-1]["radius_arcsec"] == 1.0
    pairs = catalog.compute()
    # With itself, every object is its own nearest.
    assert pairs["object_id"].equals(pairs["object_id_2"])
    assert pairs["n_Ks"].equals(pairs["n_Ks_2"])
    assert "n_J_2" not in catalog.columns
    assert module.run(module.parse_args(arguments))["skipped"]


def test_a_cube_is_stacked_with_its_page_and_a_rerun_skips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    survey = write_images(ImageSpec(seed=2, bands=("g", "r"), epochs=2, size=64, stars=9, galaxies=3), tmp_path)
    (tmp_path / "images" / "g-001.fits").write_bytes(b"cut")
    out = tmp_path / "cube.zarr"
    arguments = [str(survey), "--objects", str(tmp_path / "truth.csv"), "--size", "12", "--out", str(out), "--workers", "1"]
    module = job("stack_cube")
    assert module.main(arguments) == 3
    assert capsys.readouterr().out == f"12 objects, 1 files set aside: {out}\n"
    report = json.loads((tmp_path / "cube.zarr.json").read_text())
    assert report["quarantined"][0]["file"] == "images/g-001.fits"
    assert (report["sizes"]["object"], report["bands"], report["skipped"]) == (12, ["g", "r"], False)
    assert "Cube of synthetic_images" in (tmp_path / "cube.zarr.html").read_text()
    assert module.run(module.parse_args(arguments))["skipped"]


@pytest.fixture(scope="module")
def galaxies(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of galaxies with redshifts, without positions."""
    rng = np.random.default_rng(0)
    z = rng.uniform(0, 0.5, 2000)
    columns = {band: 20 + slope * z + 0.02 * rng.normal(size=2000) for band, slope in (("g", 3.0), ("r", 1.0), ("i", 0.0))}
    path = tmp_path_factory.mktemp("galaxies") / "galaxies.parquet"
    pq.write_table(pa.table({**columns, "z": z, "w": np.full(2000, 3.0)}), path)
    return path


def test_photoz_job_trains_judges_and_a_rerun_skips(galaxies: Path, tmp_path: Path) -> None:
    module = job("train_photoz")
    out = tmp_path / "model.h5"
    arguments = [str(galaxies), "--out", str(out), "--magnitudes", "g,r,i", "--target", "z", "--estimator", "linear"]
    arguments += ["--test", str(galaxies), "--folds", "2", "--workers", "1", "--weight", "w"]
    (tmp_path / "model.h5.state").write_text("what another fit keeps")
    assert module.main(arguments) == 0
    assert (tmp_path / "model.h5.state").exists()
    report = json.loads((tmp_path / "model.h5.json").read_text())
    assert report["rows"] == 2000
    assert report["test"]["median_abs"] == pytest.approx(report["metrics"]["train"]["median_abs"])
    assert report["test"]["median_abs"] < 0.01
    again = module.run(module.parse_args(arguments))
    assert again["skipped"]
    assert again["digest"] == report["digest"]


@pytest.mark.long
def test_mixture_job_goes_on_after_a_kill(galaxies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, steps, most = Checkpoint.save, [], 2

    def killed(self: Checkpoint, *arguments: Any) -> None:
        save(self, *arguments)
        steps.append(arguments)
        if len(steps) == most:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", killed)
    module = job("sample_mixture")
    arguments = [str(galaxies), "--out", str(tmp_path / "m"), "--magnitudes", "g,r,i", "--components", "1", "--rows", "100"]
    arguments += ["--workers", "1"]
    with pytest.raises(KeyboardInterrupt):
        module.main(arguments)
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["mixture.h5.state"]
    most = 0
    assert module.main(arguments) == 0
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["mixture.h5", "report.json", "sample.parquet"]


@pytest.mark.long
def test_mixture_job_draws_a_sample_like_the_data_and_a_rerun_skips(galaxies: Path, tmp_path: Path) -> None:
    module = job("sample_mixture")
    arguments = [str(galaxies), "--out", str(tmp_path / "m"), "--magnitudes", "g,r,i", "--components", "1,6", "--rows", "5000"]
    arguments += ["--workers", "1"]
    assert module.main(arguments) == 0
    report = json.loads((tmp_path / "m" / "report.json").read_text())
    assert report["components"] == 6
    assert report["tests"]["energy"] < report["tests"]["energy_of_data"] + 0.02
    sample = pq.read_table(tmp_path / "m" / "sample.parquet")
    assert sample.num_rows == 5000
    assert module.run(module.parse_args(arguments))["skipped"] == ["mixture.h5", "sample.parquet"]
    assert pq.read_table(tmp_path / "m" / "sample.parquet").equals(sample)
