"""The verbs that learn, as one types them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from scalable.catalog.catalog import open_catalog
from scalable.catalog.collection import Collection
from scalable.cli import console
from scalable.cli.console import USAGE
from scalable.cli.main import main
from scalable.train.checkpoint import Checkpoint
from scalable.train.compare import CANDIDATES
from scalable.train.model import open_model


def scalable(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    z = rng.uniform(0, 0.5, 1500)
    path = tmp_path_factory.mktemp("cli") / "galaxies.parquet"
    pq.write_table(pa.table({"g": 20 + 3 * z + 0.02 * rng.normal(size=1500), "r": 20 + z, "i": 20 + z * z, "z": z}), path)
    return path


def test_train_evaluate_and_predict_files(table: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "m.h5", tmp_path / "out.parquet"
    arguments = ["--magnitudes", "g,r,i", "--reference", "r", "--target", "z", "--estimator", "ridge", "--folds", "2"]
    found = scalable("train", table, *arguments, "--model", model)
    assert found.exit_code == 0, found.output
    assert "median_abs" in found.output
    assert "unseen folds" in found.output
    assert f"scalable predict {model}" in found.output
    found = scalable("evaluate", model, table, "--bins", "z=0,0.25,0.5", "--json")
    rows = json.loads(found.stdout)
    assert [row["rows"] for row in rows] == [1500, rows[1]["rows"], 1500 - rows[1]["rows"]]
    assert "outlier_rail" in scalable("evaluate", model, table, "--bins", "r=19,20,21").output
    found = scalable("predict", model, table, "--to", out)
    assert "1,500 rows written" in found.output
    assert pq.read_table(out).column_names == ["g", "r", "i", "z", "z_phot"]
    assert pq.read_schema(out).field("z_phot").metadata[b"role"] == b"value"


def test_a_model_is_judged_on_test_files_and_taught_with_weights(table: Path, tmp_path: Path) -> None:
    whole = pq.read_table(table)
    weight = np.where(np.arange(1500) < 1000, 2.0, 0.0)
    pq.write_table(whole.append_column("w", pa.array(weight)), tmp_path / "train.parquet")
    pq.write_table(whole.slice(1000), tmp_path / "test.parquet")
    (tmp_path / "m.h5.state").write_text("what another fit keeps")
    arguments = ["--magnitudes", "g,r,i", "--target", "z", "--estimator", "linear", "--folds", "0", "--model", tmp_path / "m.h5"]
    found = scalable("train", tmp_path / "train.parquet", *arguments, "--weight", "w", "--test", tmp_path / "test.parquet")
    assert found.exit_code == 0, found.output
    assert open_model(tmp_path / "m.h5").about["left_out"] == {"used": 1000, "weight 0": 500}
    assert (tmp_path / "m.h5.state").exists()
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in found.output.splitlines() if line.startswith("│")]
    judged = json.loads(scalable("evaluate", tmp_path / "m.h5", tmp_path / "test.parquet", "--json").stdout)[0]
    assert "test rows" in found.output
    assert rows[0][::2] == ["median_abs", f"{judged['median_abs']:.5f}"]
    assert rows[0][1] != rows[0][2]


def test_densities_are_trained_measured_and_predicted(table: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "m.h5", tmp_path / "out.parquet"
    arguments = ["--magnitudes", "g,r,i", "--target", "z", "--estimator", "forest", "--folds", "0", "--pdf", "0,0.6,12"]
    found = scalable("train", table, *arguments, "--model", model)
    assert found.exit_code == 0, found.output
    assert open_model(model).estimator.bins == pytest.approx(np.linspace(0, 0.6, 13))
    rows = json.loads(scalable("evaluate", model, table, "--bins", "z=0,0.5", "--json").stdout)
    assert 0 < rows[0]["crps"] < 0.05
    assert rows[1]["crps"] is None
    scalable("predict", model, table, "--to", out, "--pdf")
    assert pq.read_schema(out).field("z_phot_pdf").type == pa.list_(pa.float32(), 12)
    found = scalable("train", table, "--magnitudes", "g,r", "--target", "z", "--estimator", "ridge", "--pdf", "0,1,9")
    assert "Ridge has no parameter 'bins'" in found.output
    assert "is not STATE=NUMBER" in scalable("train", table, "--missing", "sentinel=x").output
    assert "is not LOW,HIGH,BINS" in scalable("train", table, "--pdf", "0,1").output


def test_every_estimator_is_compared_in_several_ways(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console.out, "width", 200)
    # The others take minutes; which is chosen of several is tested with the table itself.
    some = ("linear", "nearest neighbours")
    for name in set(CANDIDATES) - set(some):
        monkeypatch.delitem(CANDIDATES, name)
    whole = pq.read_table(table)
    g = whole["g"].to_numpy().copy()
    g[::10] = np.nan  # rows that are filled, and in one variant left out
    lacking, judge = tmp_path / "lacking.parquet", tmp_path / "judge.parquet"
    far = pa.array(np.where(np.arange(1500) % 4 == 1, 2, 0).astype(np.uint8))
    pq.write_table(whole.set_column(0, "g", [g]).append_column("outlier_class", far).slice(0, 1000), lacking)
    pq.write_table(whole.slice(1000), judge)
    arguments = ["--magnitudes", "g,r,i", "--reference", "r", "--target", "z", "--missing", "sentinel=21", "--compare"]
    found = scalable("train", lacking, *arguments, "--test", judge, "--model", tmp_path / "m.h5")
    assert found.exit_code == 0, found.output
    rows = [[cell.strip() for cell in line.split("│")[1:]] for line in found.output.splitlines() if line.startswith("│")]
    variants = ["", "principal components", "outliers left out", "taught and judged on whole rows"]
    assert [row[:2] for row in rows] == [[name, variant] for name in some for variant in variants]
    assert {(row[1], row[2]) for row in rows} == set(zip(variants, ("1,000", "1,000", "750", "900"), strict=True))
    assert all(0 <= float(number) < 0.1 for row in rows for number in row[3:6])
    assert not (tmp_path / "m.h5").exists()


def test_a_store_is_predicted_into_a_catalogue(synthetic: Collection, tmp_path: Path) -> None:
    objects = synthetic.path.parents[1]
    model, out = tmp_path / "m.h5", tmp_path / "out"
    found = scalable(
        "train", objects, "--others", "n_J,n_H", "--target", "n_Ks", "--estimator", "linear", "--folds", "0", "--model", model
    )
    assert found.exit_code == 0, found.output
    found = scalable("predict", model, objects, "--to", out)
    assert found.exit_code == 0, found.output
    catalog = open_catalog(out)
    assert catalog.rows == synthetic.objects.rows
    assert catalog.history[-1]["digest"] == open_model(model).digest


def test_a_mixture_is_fitted_and_drawn_from(table: Path, tmp_path: Path) -> None:
    model, out = tmp_path / "m.h5", tmp_path / "sample.parquet"
    found = scalable("train", table, "--magnitudes", "g,r,i", "--components", "1,2", "--model", model)
    assert found.exit_code == 0, found.output
    assert "BIC" in found.output
    assert "1,000 rows written" in scalable("sample", model, "--rows", "1000", "--to", out).output
    assert pq.read_table(out).column_names == ["row", "component", "g - r", "r - i"]


@pytest.mark.parametrize("how", ["--target z --estimator curve --folds 2", "--components 2"], ids=["redshifts", "mixture"])
def test_the_same_command_goes_on_after_a_kill(how: str, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save, steps = Checkpoint.save, []
    kills: list[int] = []

    def killed(self: Checkpoint, *arguments: Any) -> None:
        save(self, *arguments)
        steps.append(arguments)
        if len(steps) in kills:
            raise KeyboardInterrupt

    monkeypatch.setattr(Checkpoint, "save", killed)
    command = ("train", table, "--magnitudes", "g,r,i", *how.split(), "--model")
    assert scalable(*command, tmp_path / "whole.h5").exit_code == 0
    whole = len(steps)
    # The second kill falls into the fit to the last fold, if there are folds.
    kills += [whole + 2, 2 * whole - 1]
    for _ in kills:
        assert scalable(*command, tmp_path / "m.h5").exit_code != 0
        assert "m.h5.state" in {path.name for path in tmp_path.iterdir()}
        assert not (tmp_path / "m.h5").exists()
    again = scalable(*command, tmp_path / "m.h5")
    assert again.exit_code == 0, again.output
    assert len(steps) == 2 * whole
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.h5", "whole.h5"]
    assert (tmp_path / "m.h5").read_bytes() == (tmp_path / "whole.h5").read_bytes()


def test_what_is_wrong_is_said_in_one_sentence(table: Path, tmp_path: Path) -> None:
    found = scalable("train", table, "--magnitudes", "g,r,y", "--target", "z", "--model", tmp_path / "m.h5")
    assert found.exit_code == USAGE
    assert "no column 'y'" in found.output
    assert "--compare needs" in scalable("train", table, "--magnitudes", "g,r", "--target", "z", "--compare").output
    assert "is not NAME=EDGE" in scalable("evaluate", "m.h5", table, "--bins", "z=a,b").output
    assert "give a finite number" in scalable("train", table, "--magnitudes", "g,r", "--missing", "sentinel=nan").output


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("--components two", "'two' is not K,K,..."),
        ("--components 0", "'0': a mixture has one component or more"),
        ("--seed -1", "-1 is not in the range x>=0"),
        ("--model .", "File '.' is a directory"),
        ("--page .", "File '.' is a directory"),
        ("--test TABLE", "--test needs --target"),
        ("--target z --estimator linear --folds 1", "folds=1: give two or more"),
    ],
)
def test_options_that_cannot_be_meant_are_refused_before_any_work(typed: str, said: str, table: Path, tmp_path: Path) -> None:
    words = [str(table) if word == "TABLE" else word for word in typed.split()]
    found = scalable("train", table, "--magnitudes", "g,r,i", "--model", tmp_path / "m.h5", *words)
    assert found.exit_code != 0
    assert said in found.output
    assert not list(tmp_path.iterdir())
