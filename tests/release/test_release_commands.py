"""The verbs of a release on the command line, and the job that a user submits."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
from click.testing import CliRunner, Result

from scalable.catalog.collection import Collection
from scalable.cli.console import USAGE
from scalable.cli.main import main
from scalable.io.runs import read_json
from scalable.release.read import open_release
from scalable.train.model import open_model

JOB = Path(__file__).parents[2] / "jobs" / "make_release.py"


def scalable(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_release_verify_diff_and_to_fits(
    collection: Collection, sources: Path, released: Path, recipe: Path, tmp_path: Path
) -> None:
    store = collection.path.parents[1]
    planned = scalable("release", store, recipe, "--into", tmp_path / "r", "--dry-run", "--json")
    plan = json.loads(planned.output)
    books = read_json(released / "release.json")["accounting"]
    assert (plan["rows_in"], plan["sources"]) == (books["in"], collection.accounting["files"])
    assert not (tmp_path / "r").exists()
    shown = scalable("release", store, recipe, "--into", tmp_path / "r", "--dry-run").output
    assert f"{books['in']:,} rows in, 2 rules (seen_twice, Ks_Mag1 in bounds)" in shown
    made = scalable("release", store, recipe, "--into", tmp_path / "r", "--parent", released, "--scheduler", "threads")
    assert made.exit_code == 0, made.output
    for stage in ("select", "digest", "headers", "shards"):
        assert f"{stage}: " in made.output
    assert f'scalable.open_release("{tmp_path / "r"}").pandas()' in made.output
    assert "version 1.0.1" in made.output
    assert "0 rows; of a random split" in made.output
    again = scalable("release", store, recipe, "--into", tmp_path / "r", "--scheduler", "threads")
    assert again.exit_code == 1
    assert "is there already" in again.output
    checked = scalable("verify", tmp_path / "r", "--level", "3", "--sources", sources, "--scheduler", "threads")
    assert checked.exit_code == 0, checked.output
    assert checked.output.rstrip().endswith("passed")
    same = scalable("diff", released, tmp_path / "r", "--json")
    assert json.loads(same.output)["changed"] == 0
    back = scalable("to-fits", tmp_path / "r", tmp_path / "back")
    assert back.output.startswith("0 files bit for bit and headers of")
    with h5py.File(tmp_path / "r" / str(read_json(released / "release.json")["shards"][0]["path"]), "r+") as file:
        file["ra"][0] += 1
    spoiled = scalable("verify", tmp_path / "r", "--json", "--scheduler", "threads")
    assert spoiled.exit_code == 4
    assert {finding["level"] for finding in json.loads(spoiled.output)["findings"]} == {1, 2}
    assert scalable("verify", tmp_path / "r", "--level", "4").exit_code == 2


def test_a_model_learns_from_one_split_and_is_judged_on_another(released: Path, tmp_path: Path) -> None:
    names = ["Y_Mag1", "J_Mag1", "H_Mag1"]
    model, teach = tmp_path / "m.h5", ["--magnitudes", "Y_Mag1,J_Mag1", "--target", "H_Mag1", "--estimator", "ridge"]
    taught = scalable("train", released, *teach, "--folds", "2", "--split", "train", "--model", model)
    assert taught.exit_code == 0, taught.output
    rows = open_release(released).pandas(names)
    assert open_model(model).about["rows"] == len(open_release(released).pandas(names, split="train").dropna())
    judged = scalable("evaluate", model, released, "--split", "test", "--json")
    test = open_release(released).pandas(names, split="test").dropna()
    assert 0 < len(test) < len(rows)
    assert [row["rows"] for row in json.loads(judged.stdout)] == [len(test)]
    refused = scalable("train", released, *teach, "--split", "train", "--test", released)
    assert refused.exit_code == USAGE
    assert "scalable evaluate --split test" in refused.output


def job(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in (sys.executable, JOB, *arguments)], capture_output=True, text=True)


@pytest.mark.long
def test_the_job_releases_verifies_and_reports(collection: Collection, sources: Path, recipe: Path, tmp_path: Path) -> None:
    store = collection.path.parents[1]
    command = (store, recipe, "--out", tmp_path / "r", "--workers", "2", "--level", "3", "--sources", sources)
    for words in (", verified:", " (there already), version"):
        found = job(*command)
        assert found.returncode == 0, found.stderr
        assert words in found.stdout
        assert "shards: " in found.stderr or "there already" in found.stdout
    wrong = job(store, tmp_path / "none.yaml", "--out", tmp_path / "x", "--workers", "1")
    assert (wrong.returncode, "Traceback" in wrong.stderr) == (1, False)
    report = read_json(tmp_path / "r.json")
    assert report["skipped"]
    books = report["accounting"]
    assert books["in"] == books["released"] + books["rejected"]
    assert report["loader"]["rows_per_second"] > 0


def test_the_job_plans_and_says_what_is_wrong_without_a_traceback(
    collection: Collection, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("make_release", JOB)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    store = collection.path.parents[1]
    assert module.main([str(store), str(recipe), "--out", str(tmp_path / "r"), "--dry-run"]) == 0
    assert json.loads(capsys.readouterr().out)["rows_in"] == collection.accounting["objects"]
    assert not list(tmp_path.iterdir())
    (tmp_path / "bad.yaml").write_text("release: x\n")
    assert module.main([str(store), str(tmp_path / "bad.yaml"), "--out", str(tmp_path / "r"), "--dry-run"]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'bad.yaml'}: title: Field required\n"
