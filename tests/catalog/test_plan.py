"""What a plan predicts, held against the ingest of the same survey."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import dask
import pyarrow as pa
import pyarrow.csv
import pytest
from click.testing import CliRunner
from surveys import fingerprint, leaf_paths, read_by_astropy

import scalable
from scalable.catalog import collection, plan
from scalable.catalog.collection import Collection
from scalable.cli.console import USAGE
from scalable.cli.main import main
from scalable.errors import InputError
from scalable.survey.description import Survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import table_paths, write_tables

SKY = make_sky(SkySpec(seed=6, fields=3, stars_per_field=300, bands=("J", "Ks"), epochs=3))


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    """Twelve files of three fields, cut into small leaves."""
    survey = scalable.open_survey(write_tables(SKY, tmp_path_factory.mktemp("plan")))
    return survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 0.03})})


@pytest.fixture(scope="module")
def stored(survey: Survey, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """The survey's store, with the intermediate files still there."""
    store = tmp_path_factory.mktemp("stored") / "store"
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="sync"):
        patch.setattr(collection, "sweep", lambda store: None)
        return scalable.ingest(survey, into=store)


def used_bytes(folder: Path) -> int:
    states = [path.lstat() for path in folder.rglob("*") if path.is_file()]
    return sum({state.st_ino: state.st_size for state in states}.values())


def leaves_by_order(stored: Collection) -> dict[int, int]:
    names = [path.parents[1].name for path in leaf_paths(stored.path / "detections" / "detections")]
    return dict(Counter(int(name.removeprefix("Norder=")) for name in names))


def test_rows_of_fits_files_are_exact_and_nothing_is_written(survey: Survey, stored: Collection, tmp_path: Path) -> None:
    before = fingerprint(survey.input_root)
    found = scalable.plan_ingest(survey, into=tmp_path / "deep" / "store")
    assert (found.rows, found.exact) == (stored.accounting["read"], True)
    assert (found.files, found.unusable) == (len(table_paths(SKY)), 0)
    assert found.input_bytes == stored.accounting["input_bytes"]
    assert fingerprint(survey.input_root) == before
    assert list(tmp_path.iterdir()) == []


def test_of_a_full_sample_the_tiling_is_that_of_the_ingest(survey: Survey, stored: Collection, tmp_path: Path) -> None:
    found = scalable.plan_ingest(survey, into=tmp_path)
    assert found.sampled_rows == found.rows
    actual = leaves_by_order(stored)
    # A pixel with detections can hold no object's mean: it gets no leaf.
    assert set(found.leaves) == set(actual)
    assert sum(actual.values()) <= sum(found.leaves.values()) <= 1.05 * sum(actual.values())
    assert sum(actual.values()) > 30


def test_of_a_few_files_and_their_first_rows_the_leaves_are_right_within_a_factor_of_two(
    survey: Survey, stored: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "SAMPLE_FILES", 5)
    monkeypatch.setattr(plan, "SAMPLE_BYTES", 8000)
    found = scalable.plan_ingest(survey, into=tmp_path)
    assert found.sampled_files == 5
    assert 0 < found.sampled_rows < found.rows / 3
    actual = sum(leaves_by_order(stored).values())
    assert actual / 2 <= sum(found.leaves.values()) <= actual * 2


def test_disk_is_never_predicted_below_what_is_used_nor_far_above(survey: Survey, stored: Collection, tmp_path: Path) -> None:
    found = scalable.plan_ingest(survey, into=tmp_path)
    version, runs = used_bytes(stored.path), used_bytes(stored.path.parents[1] / "work")
    assert version <= found.version_bytes <= 4 * version
    assert runs <= found.runs_bytes <= 4 * runs
    batches = list((stored.path.parents[1] / "work").glob("*/map/*.json"))
    assert found.batches == len(batches)


def test_files_that_will_be_set_aside_do_not_count(tmp_path: Path) -> None:
    survey = scalable.open_survey(write_tables(SKY, tmp_path / "s", bad=["truncated", "missing_column", "absent"]))
    found = scalable.plan_ingest(survey, into=tmp_path / "store")
    with dask.config.set(scheduler="sync"):
        actual = scalable.ingest(survey, into=tmp_path / "store").accounting
    assert (found.rows, found.unusable) == (actual["read"], actual["quarantined"])
    assert any(warning.startswith("3 files will be set aside; the first: ") for warning in found.warnings)


def test_rows_of_text_are_scaled_from_one_counted_file(survey: Survey, tmp_path: Path) -> None:
    rows = 0
    for path in table_paths(SKY):
        table = pa.table(read_by_astropy(survey.input_root / path))
        (tmp_path / path).parent.mkdir(exist_ok=True)
        pyarrow.csv.write_csv(table, tmp_path / path.replace(".fits", ".csv"))
        rows += table.num_rows
    shutil.copy(survey.input_root / "observations.csv", tmp_path)
    text = (survey.input_root / "survey.yaml").read_text().replace("format: fits", "format: csv").replace(".fits", ".csv")
    (tmp_path / "survey.yaml").write_text(text)
    (tmp_path / table_paths(SKY)[0].replace(".fits", ".csv")).unlink()
    found = scalable.plan_ingest(scalable.open_survey(tmp_path / "survey.yaml"), into=tmp_path / "store")
    assert not found.exact
    rows -= len(read_by_astropy(survey.input_root / table_paths(SKY)[0])["Ra"])
    assert found.rows == pytest.approx(rows, rel=0.05)
    assert found.unusable == 1


def test_too_little_memory_or_disk_is_warned_of(survey: Survey, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scalable.plan_ingest(survey, into=tmp_path, workers=1).warnings == ()
    monkeypatch.setattr(plan.psutil, "virtual_memory", lambda: SimpleNamespace(available=1_000_000_000))
    monkeypatch.setattr(plan, "worker_memory_bytes", lambda *_, **__: 300_000_000)
    [warning] = scalable.plan_ingest(survey, into=tmp_path, workers=4).warnings
    assert warning == "4 workers need 1,200 MB of memory, 1,000 MB are free: use --workers 3"
    monkeypatch.setattr(plan.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    [warning] = scalable.plan_ingest(survey, into=tmp_path, workers=3).warnings
    assert warning.endswith(f"are free at {tmp_path}: choose another place with --into")


def test_a_survey_of_which_nothing_can_be_used_has_no_plan(survey: Survey, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none of the 12 files can be used; the first says: .*Field-1-J.fits: no such file"):
        scalable.plan_ingest(survey.model_copy(update={"root": str(copy_of_index(survey, tmp_path))}), into=tmp_path / "store")


def copy_of_index(survey: Survey, folder: Path) -> Path:
    shutil.copy(survey.input_root / "observations.csv", folder)
    return folder


def test_the_commands_show_the_plan_and_write_nothing(survey: Survey, tmp_path: Path) -> None:
    path, store = str(survey.input_root / "survey.yaml"), str(tmp_path / "store")
    for arguments in (["plan", path, "--into", store], ["run", path, "--into", store, "--dry-run"]):
        shown = CliRunner().invoke(main, arguments)
        assert shown.exit_code == 0, shown.output
        for word in ("input", "rows", "leaves", "tasks", "memory", "disk"):
            assert f"\n{word} " in f"\n{shown.output}"
        assert "as the headers say" in shown.output
        value = json.loads(CliRunner().invoke(main, [*arguments, "--json"]).stdout.splitlines()[-1])
        assert value.get("plan", value)["rows"] == value["rows"]
    assert list(tmp_path.iterdir()) == []
    missing = CliRunner().invoke(main, ["plan", "/nowhere/survey.yaml"])
    assert missing.exit_code == USAGE
    assert "Traceback" not in missing.output
