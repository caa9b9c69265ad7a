"""The table that compares estimators, random samples, and the tests of a sample against data."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats
from scipy.spatial.distance import cdist

from scalable.kernels.features import Features
from scalable.train.batches import arrays, keys_of
from scalable.train.compare import compare, usual_variants
from scalable.train.goodness import energy_distance, sample_tests
from scalable.train.linear import LinearRegression
from scalable.train.metrics import metrics_of
from scalable.train.neighbours import KNeighbors
from scalable.train.network import MLPRegressor
from scalable.train.photoz import fit_mixture
from scalable.train.predict import sample_mixture
from scalable.train.sample import draw
from scalable.train.tables import batches_of


def test_candidates_are_chosen_on_training_rows_and_all_are_judged_on_both_tables() -> None:
    rng = np.random.default_rng(0)
    z = rng.uniform(0, 0.5, 1200)
    table = pa.table({"a": z + 0.02 * rng.normal(size=1200), "b": rng.normal(size=1200), "z": z})
    features = Features((), others=("a", "b"))
    train, test = batches_of(table.slice(0, 600), features, target="z"), batches_of(table.slice(600), features, target="z")
    network = MLPRegressor((4,), epochs=2)
    nearest = [KNeighbors(1), KNeighbors(25)]
    candidates = {"linear": [LinearRegression()], "nearest": nearest, "itself": nearest[:1], "network": [network]}
    found = {row["estimator"]: row for row in compare(train, test, features, candidates=candidates, seeds=3).to_pylist()}
    assert found["nearest"]["chosen"] == "KNeighbors(n_neighbors=25)"
    X, y = np.column_stack([table["a"], table["b"]]), z
    expected = metrics_of(LinearRegression().fit(X[:600], y[:600]).predict(X[600:]), y[600:])["median_abs"]
    assert found["linear"]["test"] == pytest.approx(expected, rel=1e-9)
    assert np.isnan(found["linear"]["spread"])
    assert found["linear"]["note"] == ""
    assert found["itself"]["note"] == f"test exceeds train by {found['itself']['test']:.4f}: overfitted"
    errors = [MLPRegressor((4,), epochs=2, seed=seed).fit(X[:600], y[:600]).predict(X[600:]) for seed in range(3)]
    errors = [metrics_of(guess, y[600:])["median_abs"] for guess in errors]
    assert found["network"]["test"] == pytest.approx(np.mean(errors))
    assert found["network"]["test_best"] == pytest.approx(min(errors))
    assert found["network"]["spread"] == pytest.approx(np.std(errors, ddof=1))


def test_the_ways_to_teach_differ_in_what_they_say() -> None:
    rng = np.random.default_rng(1)
    z = rng.uniform(0, 0.5, 800)
    a, b = z + 0.02 * rng.normal(size=800), rng.normal(size=800)
    a[:40] += 20.0  # as if the photometry had failed
    table = pa.table({"a": a, "b": b, "z": z})
    features = Features((), others=("a", "b"))
    train, test = batches_of(table.slice(0, 500), features, target="z"), batches_of(table.slice(500), features, target="z")
    candidates = {"linear": [LinearRegression()]}
    found = compare(train, test, features, candidates=candidates, variants=usual_variants(train, test)).to_pylist()
    plain, components, inliers = found
    assert [row["variant"] for row in found] == ["", "principal components", "outliers left out"]
    assert [row["rows"] for row in found] == [500, 500, 460]
    # A turn of the axes changes no linear fit; forty rows far out do.
    assert components["test"] == pytest.approx(plain["test"], rel=1e-6)
    assert inliers["test"] < 0.3 * plain["test"]
    X, y = np.column_stack([a, b])[40:500], z[40:500]
    expected = metrics_of(LinearRegression().fit(X, y).predict(np.column_stack([a, b])[500:]), z[500:])["median_abs"]
    assert inliers["test"] == pytest.approx(expected, rel=1e-9)


def test_a_sample_is_the_rows_with_the_least_random_numbers_in_any_order_and_chunking() -> None:
    X = np.random.default_rng(0).normal(size=(3000, 2))
    found = [draw(arrays(rows, part_rows=size), 100, seed=3) for rows, size in ((X, 3000), (X, 64), (X[::-1], 1000))]
    for other in found[1:]:
        assert np.array_equal(found[0].columns, other.columns)
        assert other.rows == 3000
    assert found[0].columns.shape == (2, 100)
    assert np.isin(keys_of(found[0].columns, None), keys_of(X.T, None)).all()
    assert stats.ks_2samp(draw(arrays(X), 1000, seed=1).columns[0], X[:, 0]).pvalue > 1e-3
    assert draw(arrays(X), 5000, seed=1).columns.shape == (2, 3000)


def test_a_sample_of_the_right_mixture_passes_and_one_of_another_does_not() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(300, 2)), rng.normal(size=(200, 2)) + 0.5
    expected = 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()
    assert energy_distance(a, b) == pytest.approx(expected, rel=1e-12)
    rows = np.concatenate([rng.normal(size=(3000, 2)), rng.normal(size=(2000, 2)) * 0.2 + 3])
    table = pa.table({"a": rows[:, 0], "b": rows[:, 1]})
    features = Features((), others=("a", "b"))
    right, wrong = (sample_tests(fit_mixture(table, features, components=k), table) for k in (2, 1))
    assert right["ks"]["a"]["pvalue"] > 1e-3
    assert right["energy"] < 5 * right["energy_of_data"]
    assert wrong["ks"]["a"]["pvalue"] < 1e-6
    assert wrong["energy"] > 3 * right["energy"]
    sample = sample_mixture(fit_mixture(table, features, components=2), 2000).compute()
    assert stats.ks_2samp(sample["b"].to_numpy(), rows[:, 1]).pvalue > 1e-3
