"""The linear family: equal to scikit-learn in memory for any chunking, workers and penalty, the choice of it included."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pytest
import sklearn.linear_model as peers
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import PredefinedSplit
from sklearn.utils.estimator_checks import check_estimator

from scalable.errors import InputError
from scalable.train.batches import arrays, fold_of, keys_of
from scalable.train.linear import ElasticNet, Lasso, LinearRegression, Ridge

EXACT: dict[str, Any] = {"tol": 1e-14, "max_iter": 1_000_000}
PAIRS = [
    (LinearRegression(), peers.LinearRegression()),
    (LinearRegression(fit_intercept=False), peers.LinearRegression(fit_intercept=False)),
    (Ridge(2.0), peers.Ridge(2.0)),
    (Lasso(0.02), peers.Lasso(0.02, **EXACT)),
    (ElasticNet(0.05, l1_ratio=0.3), peers.ElasticNet(0.05, l1_ratio=0.3, **EXACT)),
]


def table(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Colours-like features: correlated, far from zero."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, 4)) @ rng.normal(size=(4, 4)) + [18.0, 1.0, 0.5, 0.2]
    return X, X @ [0.02, 0.4, -0.1, 0.0] + 0.05 * rng.normal(size=rows)


@pytest.mark.filterwarnings("ignore", category=ConvergenceWarning)
@settings(max_examples=8, deadline=None)
@given(st.integers(10, 700), st.integers(0, 2**32 - 1), st.booleans())
def test_any_chunking_gives_the_coefficients_of_scikit_learn(part_rows: int, seed: int, weighted: bool) -> None:
    X, y = table(600, seed)
    weights = np.random.default_rng(seed).random(600) if weighted else None
    with dask.config.set(scheduler="sync"):
        batches = arrays(X, y, weights, part_rows=part_rows)
        for ours, theirs in PAIRS:
            ours.fit(batches)
            theirs.fit(X, y, weights)
            np.testing.assert_allclose(ours.coef_, theirs.coef_, rtol=1e-9, atol=1e-11)
            np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=1e-9)


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e6, 1e6), st.booleans())
def test_a_constant_feature_teaches_nothing_whatever_rounding_says(constant: float, weighted: bool) -> None:
    X, y = table(700)
    weights = np.random.default_rng(1).random(700) if weighted else None
    more = np.insert(X, 2, constant, axis=1)
    learners = [LinearRegression(), Ridge(2.0), Lasso(0.02), ElasticNet(0.05)]
    with dask.config.set(scheduler="sync"):
        for learner in learners:
            without = learner.fit(arrays(X, y, weights, part_rows=300)).predict(X)
            learner.fit(arrays(more, y, weights, part_rows=300))
            assert learner.coef_[2] == 0
            np.testing.assert_allclose(learner.predict(more + [0, 0, 1, 0, 0]), without, rtol=1e-9)


def test_the_penalty_chosen_in_the_same_pass_is_that_of_scikit_learn_on_the_same_folds() -> None:
    X, y = table(2000)
    split = PredefinedSplit(fold_of(keys_of(X.T, y), 4, 7, inner=True))
    batches = arrays(X, y, part_rows=300)
    ours = Lasso(None, folds=4, seed=7).fit(batches)
    theirs = peers.LassoCV(alphas=100, cv=split, **EXACT).fit(X, y)
    np.testing.assert_allclose(ours.alphas_, theirs.alphas_, rtol=1e-9)
    np.testing.assert_allclose(ours.cv_mse_, theirs.mse_path_.T, rtol=1e-8)
    assert ours.alpha_ == pytest.approx(theirs.alpha_, rel=1e-9)
    alphas = [1e-3, 1.0, 1e3]
    ours = Ridge(alphas, folds=4, seed=7).fit(batches)
    errors = []
    for train, test in split.split():
        models = [peers.Ridge(alpha).fit(X[train], y[train]) for alpha in alphas[::-1]]
        errors.append([((model.predict(X[test]) - y[test]) ** 2).mean() for model in models])
    np.testing.assert_allclose(ours.cv_mse_, errors, rtol=1e-9)


def test_one_and_four_workers_agree_to_the_bit() -> None:
    X, y = table(3000)
    batches = arrays(X, y, part_rows=400)
    found = []
    for workers in (1, 4):
        with Client(n_workers=1, threads_per_worker=workers, processes=False, dashboard_address=":0"):
            found.append(Ridge(None).fit(batches).coef_)
    with dask.config.set(scheduler="threads"):
        found.append(Ridge(None).fit(batches).coef_)
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])


def test_columns_that_repeat_get_the_solution_of_least_norm() -> None:
    X, y = table(300)
    X = np.column_stack([X, X[:, 0]])
    found = LinearRegression().fit(X, y)
    np.testing.assert_allclose(found.coef_, peers.LinearRegression().fit(X, y).coef_, rtol=1e-6)


def test_a_row_is_predicted_alike_wherever_it_stands() -> None:
    X, y = table(1001)
    model = LinearRegression().fit(X, y)
    assert np.array_equal(model.predict(X)[500:501], model.predict(X[500:501]))


def test_batches_without_target_and_targets_given_twice_are_refused() -> None:
    X, y = table(10)
    with pytest.raises(InputError, match="no target"):
        Ridge().fit(arrays(X))
    with pytest.raises(InputError, match="carry their target"):
        Ridge().fit(arrays(X, y), y)


LONG = [pytest.param(estimator, marks=pytest.mark.long) for estimator in (Ridge(None), Lasso(0.01), ElasticNet(0.01))]


@pytest.mark.parametrize("estimator", [LinearRegression(), *LONG], ids=str)
def test_the_contract_of_scikit_learn_is_kept(estimator: Any) -> None:
    check_estimator(estimator, on_skip=None)
