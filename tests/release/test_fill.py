"""Empty cells filled by neighbours and by regression: what scikit-learn gives, frozen, and told apart from what was measured."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pytest
from release.conftest import of_objects
from sklearn.impute import KNNImputer
from sklearn.linear_model import LinearRegression

from scalable.catalog.collection import Collection
from scalable.errors import ColumnError, InputError, SurveyError
from scalable.io.runs import read_json
from scalable.release import fill
from scalable.release.fill import Filling, candidates, fillings, first_lots, fit, merge
from scalable.release.read import open_release
from scalable.release.recipe import Impute
from scalable.release.verify import verify_release
from scalable.release.write import write_release
from scalable.schema import State

PLANE = {"column": "Y_Mag1", "method": "regression", "using": ["H_Mag1", "Ks_Mag1"], "reason": "a learner that takes no null"}
REST = {"column": "Y_Mag1", "reason": "what has no H or Ks either"}
NEAR = {"column": "H_Mag1", "method": "nearest", "using": ["Y_Mag1", "Ks_Mag1"], "neighbours": 3, "reason": "as for Y"}


def rows(n: int, seed: int = 0) -> pa.Table:
    """Return rows of a part whose column C follows from A and B, some cells empty."""
    rng = np.random.default_rng(seed)
    a, b = rng.normal(20, 2, n), rng.normal(0.5, 0.1, n)
    values = {"A": a, "B": b, "C": 3 + 0.5 * a - 4 * b + rng.normal(0, 0.1, n)}
    columns = {name: pa.array(column, mask=rng.random(n) < 0.2) for name, column in values.items()}
    keys = {"object_id": rng.permutation(n) + (1 << 60), "__source_id": np.ones(n, np.int64), "__source_row": np.arange(n)}
    return pa.table({**keys, **columns})


@pytest.mark.parametrize("method", ["nearest", "regression"])
def test_any_partition_in_any_order_gives_the_same_rule(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fill, "PLANE_ROWS", 150)  # so that the sample is one
    asked = Impute(column="C", method=method, using=("A", "B"), reference=150, reason="test")
    table, rng = rows(1000), np.random.default_rng(1)
    whole = fit(candidates(table, asked), asked)
    assert whole.rows == 150
    for parts in (1, 3, 12):
        edges = [0, *np.sort(rng.choice(np.arange(1, 999), parts - 1, replace=False)).tolist(), 1000]
        shuffled = table.take(pa.array(rng.permutation(1000)))
        pieces = [candidates(shuffled.slice(a, b - a), asked) for a, b in zip(edges, edges[1:], strict=False)]
        assert fit(merge(pieces, asked), asked) == whole


def test_rows_of_one_lot_are_told_apart_by_what_they_hold() -> None:
    pieces = np.array([[5.0, 1.0, 2.0], [5.0, 0.5, 3.0], [4.0, 9.0, 9.0]])
    np.testing.assert_array_equal(first_lots(pieces, 2), first_lots(pieces[::-1], 2))
    np.testing.assert_array_equal(first_lots(pieces, 2), [[4.0, 9.0, 9.0], [5.0, 0.5, 3.0]])


def test_a_rule_is_what_scikit_learn_gives() -> None:
    table = rows(300)
    values = np.column_stack([table[name].to_numpy() for name in ("A", "B", "C")])
    known = np.isfinite(values).all(axis=1)
    empty = np.isfinite(values[:, :2]).all(axis=1) & ~np.isfinite(values[:, 2])
    assert empty.sum() > 20
    plane = Impute(column="C", method="regression", using=("A", "B"), reason="test")
    found = fit(candidates(table, plane), plane).values(table, np.arange(300))
    line = LinearRegression().fit(values[known, :2], values[known, 2])
    np.testing.assert_allclose(found[empty], line.predict(values[empty, :2]), rtol=1e-10)
    near = Impute(column="C", method="nearest", using=("A", "B"), neighbours=7, reason="test")
    found = fit(candidates(table, near), near).values(table, np.arange(300))
    scale = np.append(values[known, :2].std(axis=0), 1.0)
    taught = KNNImputer(n_neighbors=7).fit(values[known] / scale)
    np.testing.assert_allclose(found[empty], taught.transform(values[empty] / scale)[:, 2], rtol=1e-12)
    assert np.isnan(found[~np.isfinite(values[:, :2]).all(axis=1)]).all()


def test_a_rule_comes_back_from_json_to_the_bit() -> None:
    for method in ("nearest", "regression"):
        asked = Impute(column="C", method=method, using=("A", "B"), reason="test")
        made = fit(candidates(rows(60), asked), asked)
        assert Filling.from_json(made.to_json()) == made
        assert made.is_of(asked)
        assert not made.is_of(asked.model_copy(update={"using": ("B", "A")}))
        assert fillings({"imputed": [made.to_json()]}) == (made,)


def test_the_medians_of_the_first_releases_are_rules_too() -> None:
    (kept,) = fillings({"imputed": {"C": 1.5}})
    assert kept.is_of(Impute(column="C", reason="test"))
    np.testing.assert_array_equal(kept.values(rows(5), np.array([1, 3])), [1.5, 1.5])


def test_a_rule_that_has_nothing_to_learn_from_is_refused(collection: Collection, tmp_path: Path) -> None:
    asked = Impute(column="C", method="regression", using=("A", "B"), reason="test")
    with pytest.raises(InputError, match="too few to learn from"):
        fit(candidates(rows(300).slice(0, 2), asked), asked)
    with pytest.raises(SurveyError, match="median takes no using"):
        of_objects(impute=[PLANE | {"method": "median"}])
    with pytest.raises(SurveyError, match="nearest needs using"):
        of_objects(impute=[NEAR | {"using": []}])
    with pytest.raises(ColumnError, match="no column 'H_Mag9'"):
        write_release(collection, of_objects(impute=[NEAR | {"using": ["H_Mag9"]}]), into=tmp_path / "r")


def test_imputed_cells_follow_from_the_others_and_the_source_comes_back(
    collection: Collection, released: Path, sources: Path, tmp_path: Path
) -> None:
    with dask.config.set(scheduler="threads"):
        write_release(collection, of_objects(impute=[PLANE, REST, NEAR]), into=tmp_path / "r")
        checked = verify_release(tmp_path / "r", level=3, sources=sources, samples=1000)
    assert checked.passed, checked
    before, after = open_release(released).numpy(), open_release(tmp_path / "r").numpy()
    y, h, k = (before[f"{band}_Mag1"].astype(np.float64) for band in ("Y", "H", "Ks"))
    known, others = np.isfinite(y) & np.isfinite(h) & np.isfinite(k), np.isfinite(h) & np.isfinite(k)
    line = LinearRegression().fit(np.column_stack([h, k])[known], y[known])
    planes, medians = ~np.isfinite(y) & others, ~np.isfinite(y) & ~others
    assert planes.any()
    assert medians.any()
    expected = line.predict(np.column_stack([h, k])[planes])
    np.testing.assert_allclose(after["Y_Mag1"][planes], expected, rtol=1e-6)
    middle = np.sort(before["Y_Mag1"][np.isfinite(y)])[int(0.5 * (np.isfinite(y).sum() - 1))]
    assert set(after["Y_Mag1"][medians].tolist()) == {middle}
    # A row without Y keeps its empty H: nothing is left that it would follow from.
    empty = ~np.isfinite(h) & ~(np.isfinite(y) & np.isfinite(k))
    np.testing.assert_array_equal(np.isnan(after["H_Mag1"]), empty)
    for name in ("Y_Mag1", "H_Mag1"):
        filled = np.isnan(before[name]) & np.isfinite(after[name])
        np.testing.assert_array_equal(after[f"{name}_state"] == State.IMPUTED, filled)
        np.testing.assert_array_equal(after[f"{name}_state_in_source"], before[f"{name}_state"])
        same = after[f"{name}_state"] == after[f"{name}_state_in_source"]
        np.testing.assert_array_equal(np.where(same, after[name], np.float32(np.nan)), before[name])
    manifest = read_json(tmp_path / "r" / "release.json")
    assert [step["method"] for step in manifest["steps"] if step["step"] == "impute"] == ["regression", "median", "nearest"]
    assert "least squares over" in (tmp_path / "r" / "README.txt").read_text()


@pytest.mark.long
def test_fitted_rules_are_those_of_the_parent(collection: Collection, sources: Path, tmp_path: Path) -> None:
    with dask.config.set(scheduler="threads"):
        write_release(collection, of_objects(impute=[PLANE, REST, NEAR]), into=tmp_path / "first")
        more = of_objects(impute=[PLANE, REST, NEAR], select=[])
        write_release(collection, more, into=tmp_path / "more", parent=tmp_path / "first")
        write_release(collection, more, into=tmp_path / "anew")
        checked = verify_release(tmp_path / "more", level=4, sources=sources)
    assert checked.passed, checked
    first, more_said, anew = (read_json(tmp_path / name / "release.json") for name in ("first", "more", "anew"))
    assert more_said["version"] == "1.1.0"
    assert more_said["imputed"] == first["imputed"] != anew["imputed"]
    assert more_said["parent"]["changed"] == 0
