"""Every estimator on the same rows: hyperparameters chosen on training rows only, train beside test, seed mean and best."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.base import clone

from scalable.kernels.features import Features
from scalable.train.batches import Batches
from scalable.train.incremental import MLPRegressor
from scalable.train.linear import ElasticNet, Lasso, LinearRegression, Ridge
from scalable.train.neighbours import KernelRegression, KNeighbors
from scalable.train.nonlinear import NonlinearRegression
from scalable.train.photoz import evaluate, fit_photoz
from scalable.train.trees import AdaBoost, GradientBoosting, RandomForest

CANDIDATES: dict[str, tuple[Any, ...]] = {
    "linear": (LinearRegression(),),
    "ridge": (Ridge(None),),
    "lasso": (Lasso(None),),
    "elastic net": (ElasticNet(None),),
    "quadratic": (NonlinearRegression("quadratic"),),
    "curve": tuple(NonlinearRegression(curve) for curve in ("softplus", "exponential")),
    "nearest neighbours": tuple(KNeighbors(k, weights="distance") for k in (5, 10, 20, 40)),
    "local planes": tuple(KNeighbors(k, weights="distance", local="plane") for k in (20, 40, 80)),
    "kernel": tuple(KernelRegression(width) for width in (0.1, 0.2, 0.4)),
    "AdaBoost": tuple(AdaBoost(50, max_depth=depth) for depth in (6, 9)),
    "random forest": tuple(RandomForest(60, least_rows=rows) for rows in (2, 5)),
    "gradient boosting": tuple(
        GradientBoosting(trees, max_depth=depth, learning_rate=0.07) for trees, depth in ((200, 5), (400, 5), (400, 7))
    ),
    "network": tuple(MLPRegressor((64, 64), learning_rate=rate) for rate in (1e-3, 3e-3)),
}
"""What the table tries; the candidate with the least error on held-out training rows is taken."""

SEEDED = ("network",)
METRIC = "median_abs"


def compare(
    train: Batches,
    test: Batches,
    features: Features,
    *,
    candidates: Mapping[str, Sequence[Any]] = CANDIDATES,
    seeds: int = 1,
    inner: int = 4,
    seed: int = 0,
) -> pa.Table:
    """Fit every estimator and measure it on both tables; computes.

    Parameters
    ----------
    train, test : Batches
    features : Features
    candidates : mapping of str to sequence of estimator
        Of several, the one with the least `METRIC` on one of ``inner`` folds of the training rows, taught with the others, is
        fitted to all of them. The test rows choose nothing.
    seeds : int
        Fits of estimators that depend on a seed.
    inner, seed : int

    Returns
    -------
    pyarrow.Table
        ``estimator``, ``chosen``, ``train``, ``test`` (mean over seeds), ``test_best``, ``spread`` (deviation over seeds),
        ``seconds`` of one fit, and ``note``, which warns where the test error exceeds the training error beyond the spread.
    """
    rows = []
    for name, choices in candidates.items():
        chosen = choices[0] if len(choices) == 1 else _choose(train, features, choices, inner, seed)
        found = []
        for number in range(seeds if name in SEEDED else 1):
            estimator = clone(chosen)
            if "seed" in estimator.get_params() and name in SEEDED:
                estimator.set_params(seed=number)
            start = time.perf_counter()
            model = fit_photoz(train, features, target=train.target, estimator=estimator, folds=0)
            seconds = time.perf_counter() - start
            pair = (model.about["metrics"]["train"][METRIC], evaluate(model, test)[METRIC][0].as_py())
            found.append((*pair, seconds))
        train_error, test_error, seconds = np.array(found).mean(axis=0)
        tests = [pair[1] for pair in found]
        spread = float(np.std(tests, ddof=1)) if len(found) > 1 else math.nan
        # With one fit, the sampling error of a median of |dz| of this size stands for the spread.
        allowed = 2 * spread if len(found) > 1 else 2.5 * test_error / math.sqrt(test.count())
        excess = test_error - train_error
        rows.append(
            {
                "estimator": name,
                "chosen": " ".join(str(chosen).split()) if len(choices) > 1 else "",
                "train": train_error,
                "test": test_error,
                "test_best": min(tests),
                "spread": spread,
                "seconds": seconds,
                "note": f"test exceeds train by {excess:.4f}: overfitted" if excess > allowed else "",
            }
        )
    return pa.Table.from_pylist(rows)


def _choose(train: Batches, features: Features, choices: Sequence[Any], inner: int, seed: int) -> Any:
    teach = train.fold(range(1, inner), inner, seed=seed + 1)
    held = train.fold([0], inner, seed=seed + 1)
    errors = []
    for choice in choices:
        model = fit_photoz(teach, features, target=train.target, estimator=choice, folds=0)
        errors.append(evaluate(model, held)[METRIC][0].as_py())
    return choices[int(np.argmin(errors))]
