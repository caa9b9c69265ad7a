"""The command line: what a person sees, exit codes, and no traceback."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from astropy import units
from astropy.table import QTable
from click.testing import CliRunner, Result

from scalable.cli import console
from scalable.cli.console import FAULT, QUARANTINED, USAGE
from scalable.cli.main import main
from scalable.cube.contract import open_cube
from scalable.errors import ClusterError
from scalable.synthetic.images import ImageSpec, write_images
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables


def scalable(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small survey with one truncated file, and its store after a run."""
    folder = tmp_path_factory.mktemp("cli")
    sky = make_sky(SkySpec(seed=3, fields=2, stars_per_field=200, epochs=3))
    write_tables(sky, folder, bad=["truncated"])
    return folder


@pytest.fixture(scope="module")
def ran(folder: Path) -> Result:
    return scalable("run", folder / "survey.yaml", "--into", folder / "store", "--scheduler", "threads")


def test_help_answers_at_once_and_names_every_verb() -> None:
    start = time.monotonic()
    found = subprocess.run([sys.executable, "-m", "scalable.cli", "--help"], capture_output=True, text=True, check=True)
    seconds = time.monotonic() - start
    for verb in ("demo", "init", "check", "plan", "run", "append", "query", "log", "clean", "help"):
        assert f"  {verb} " in found.stdout
    assert "Examples" in found.stdout
    modules = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "scalable.cli", "--help"], capture_output=True, text=True, check=True
    ).stderr
    for heavy in ("numpy", "dask", "astropy", "pyarrow", "pandas", "matplotlib"):
        assert f" {heavy}\n" not in modules, f"--help imports {heavy}"
    assert seconds < 5


def test_a_run_goes_to_the_end_with_a_bad_file_and_says_so(ran: Result, folder: Path) -> None:
    assert ran.exit_code == QUARANTINED, ran.output
    assert "files set aside" in ran.output
    assert "quarantine.csv" in ran.output
    assert "rows read =" in ran.output
    assert (folder / "store" / "report.html").exists()
    assert "lsdb.open_catalog" in ran.output
    assert "Traceback" not in ran.output


def test_a_second_run_does_nothing_again(ran: Result, folder: Path) -> None:
    again = scalable("run", folder / "survey.yaml", "--into", folder / "store", "--scheduler", "threads", "--json")
    assert again.exit_code == QUARANTINED
    answer = json.loads(again.stdout[again.stdout.index("{") :])
    assert answer["accounting"]["quarantined"] == 1
    assert (folder / "store" / "versions" / "0002").exists() is False


def test_a_dry_run_writes_nothing(folder: Path) -> None:
    found = scalable("run", folder / "survey.yaml", "--into", folder / "nowhere", "--dry-run")
    assert found.exit_code == 0
    assert "unreadable-file" in found.output
    assert not (folder / "nowhere").exists()


def test_check_lists_each_kind_once_with_the_line_that_settles_it(folder: Path) -> None:
    found = scalable("check", folder / "survey.yaml")
    assert found.exit_code == 0
    assert found.output.count("unreadable-file:") == 1
    assert "settle it with" in found.output
    findings = json.loads(scalable("check", folder / "survey.yaml", "--json").stdout.splitlines()[-1])["findings"]
    assert len({finding["name"] for finding in findings}) == len(findings)


def test_a_query_shows_units_nulls_and_writes_files(ran: Result, folder: Path, tmp_path: Path) -> None:
    store = folder / "store"
    found = scalable("query", "SELECT object_id, Mag1 FROM detections WHERE Mag1 IS NULL LIMIT 1", "--store", store)
    assert found.exit_code == 0, found.output
    assert "Mag1 [mag]" in found.output
    assert "null" in found.output
    target = tmp_path / "answer.parquet"
    found = scalable("query", "SELECT band, count(*) AS n FROM detections GROUP BY band", "--store", store, "--to", target)
    assert found.exit_code == 0, found.output
    assert pq.read_table(target).num_rows == 5


def test_a_query_writes_fits_with_units_and_replaces_nothing_unasked(ran: Result, folder: Path, tmp_path: Path) -> None:
    store, target = folder / "store", tmp_path / "bright.fits"
    ask = ("query", "SELECT object_id, band, Mag1 FROM detections WHERE Mag1 < 13", "--store", store, "-o", target)
    assert "rows written" in scalable(*ask).output
    table = QTable.read(target)
    assert (table["Mag1"] < 13 * units.mag).all()
    assert len(table) > 3
    again = scalable(*ask)
    assert again.exit_code == FAULT
    assert "--force" in again.output
    assert scalable(*ask, "--force").exit_code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["bright.fits"]


def test_a_query_is_explained_and_the_views_are_listed(ran: Result, folder: Path) -> None:
    store = folder / "store"
    found = scalable("query", "explain SELECT band, avg(Mag1) AS m FROM detections GROUP BY band", "--store", store)
    assert found.exit_code == 0
    for word in ("mapped", "combined", "reads     detections: band, Mag1", "leaves", "tasks"):
        assert word in found.output
    found = scalable("query", "--views", "--store", store)
    assert found.exit_code == 0
    for word in ("objects: one row per object", "Field_1_J: one row per detection of one file", "  Mag1", " mag "):
        assert word in found.output, word
    assert scalable("query", "--store", store).exit_code == USAGE


def test_a_night_is_planned_appended_run_and_listed(tmp_path: Path) -> None:
    write_tables(make_sky(SkySpec(seed=4, fields=1, stars_per_field=100, epochs=3)), tmp_path)
    survey, store, index = tmp_path / "survey.yaml", tmp_path / "store", tmp_path / "observations.csv"
    lines = index.read_text().splitlines(keepends=True)
    index.write_text("".join(line for line in lines if ",J," not in line and ",H," not in line))
    assert scalable("run", survey, "--into", store, "--only", "ingest").exit_code == 0
    index.write_text("".join(lines))
    damaged = tmp_path / "tables" / "Field-1-H.fits"
    damaged.write_bytes(damaged.read_bytes()[:3000])
    found = scalable("append", survey, "--into", store, "--dry-run")
    assert found.exit_code == 0, found.output
    assert "files to add: 1, rows: " in found.output
    assert "to set aside: 1" in found.output
    assert "Field-1-H.fits  set aside: " in found.output
    assert "leaves written anew: " in found.output
    assert not (store / "versions" / "0002").exists()
    found = scalable("append", survey, "--into", store)
    assert found.exit_code == QUARANTINED, found.output
    assert "rows added; " in found.output
    assert "1 files set aside" in found.output
    again = scalable("append", survey, "--into", store, "--json")
    assert again.exit_code == QUARANTINED
    answer = json.loads(again.stdout.splitlines()[-1])
    assert (answer["version"], answer["added"], answer["leaves_written"]) == ("0002", 0, 0)
    listed = json.loads(scalable("log", "--store", store, "--json").stdout)
    assert [version["number"] for version in listed] == [2, 1]
    assert listed[0]["added"] == listed[0]["stored"] - listed[1]["stored"] > 0
    other = survey.read_text().replace("leaf_mb: 0.25", "leaf_mb: 0.5")
    survey.write_text(other)
    refused = scalable("append", survey, "--into", store)
    assert refused.exit_code == FAULT
    assert "made under other rules" in refused.output
    anew = scalable("run", survey, "--into", store, "--only", "ingest")
    assert anew.exit_code == QUARANTINED, anew.output
    assert "ingested anew, not appended: " in anew.output


def test_a_plain_console_shows_rate_and_time_left_of_every_long_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 1000))
    monkeypatch.setattr(console.time, "monotonic", lambda: float(next(now)))
    said: list[str] = []
    monkeypatch.setattr(console.console, "print", lambda text, **_: said.append(text))
    with console.display() as tell:
        for stage in ("map", "plan", "reduce", "commit", "products"):
            for done in range(5):
                tell(stage, done, 4, done * 10**8 if stage in ("map", "reduce") else 0)
    for stage in ("map", "plan", "reduce", "commit", "products"):
        lines = [line for line in said if line.startswith(stage)]
        assert any(line.endswith(" s left") for line in lines), lines
        assert " in " in lines[-1]
        assert all(("MB/s" if stage in ("map", "reduce") else "/s") in line for line in lines)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["query", "SELECT Flx1 FROM detections"], USAGE, "did you mean 'Flux1'"),
        (["query", "COPY detections TO '/tmp/x'"], USAGE, "only SELECT"),
        (["query", "SELECT 1 AS a", "--to", "answer.doc"], USAGE, "choose .parquet, .pq, .fits"),
        (["query", "SELECT count(*) AS n FROM objects", "--store", "/nowhere"], FAULT, "no committed version"),
        (["run", "/nowhere/survey.yaml"], USAGE, "cannot be read"),
        (["help", "store.leafmb"], USAGE, "did you mean 'leaf_mb'"),
    ],
)
def test_a_mistake_gets_a_message_an_exit_code_and_no_traceback(
    ran: Result, folder: Path, arguments: list[str], code: int, message: str
) -> None:
    if arguments[0] == "query" and "--store" not in arguments:
        arguments = [*arguments, "--store", str(folder / "store")]
    found = scalable(*arguments)
    assert found.exit_code == code, found.output
    assert message in " ".join(found.output.split())
    assert "Traceback" not in found.output


def test_debug_shows_the_traceback() -> None:
    found = scalable("--debug", "run", "/nowhere/survey.yaml")
    assert type(found.exception).__name__ == "SurveyError"


def test_help_explains_every_field_of_the_survey_file() -> None:
    assert "VOUnit" in scalable("help", "columns.Ra.unit").output
    assert "margin_arcsec" in scalable("help", "store").output
    assert "survey (required)" in scalable("help").output


def test_after_the_cluster_failed_the_command_that_goes_on_is_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ClusterError("tcp://127.0.0.1:8786: the Dask scheduler is gone")

    monkeypatch.setattr("scalable.pipeline.run", fail)
    monkeypatch.setattr(sys, "argv", ["scalable", "run", "my survey.yaml", "--into", "out"])
    found = scalable("run", folder / "survey.yaml", "--into", folder / "none", "--scheduler", "threads")
    assert found.exit_code == FAULT
    assert "8786: the Dask scheduler is gone" in found.output
    assert "go on with: scalable run 'my survey.yaml' --into out" in found.output
    assert "our fault" not in found.output


def test_cube_stacks_images_around_objects_and_names_what_was_set_aside(tmp_path: Path) -> None:
    survey = write_images(ImageSpec(seed=2, bands=("g", "r"), epochs=1, size=48, stars=5, galaxies=0), tmp_path)
    arguments = ["cube", str(survey), "--objects", str(tmp_path / "truth.csv"), "--size", "9", "--out", str(tmp_path / "c.zarr")]
    found = CliRunner().invoke(main, arguments)
    assert found.exit_code == 0, found.output
    assert "5 objects, 2 bands, 2 exposures" in found.output
    assert (tmp_path / "c.zarr.html").exists()
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    (tmp_path / "images" / "r-000.fits").write_bytes(b"cut")
    length = ["--size-column", "flux_g", "--times", "1e-4"]
    found = CliRunner().invoke(main, [*arguments[:-1], str(tmp_path / "d.zarr"), "--bands", "g", "--scheduler", "sync", *length])
    assert found.exit_code == 3
    asked = json.loads(open_cube(tmp_path / "d.zarr").attrs["cube"])["size_asked"]
    assert asked == {"pixels": 9, "arcsec": None, "column": "flux_g", "times": 1e-4}
    assert "images/r-000.fits" in found.output
