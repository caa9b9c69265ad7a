"""Every estimator on the same rows: hyperparameters chosen on training rows only, train beside test, seed mean and best."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from sklearn.base import clone

from scalable.kernels.features import Features
from scalable.train.batches import Batches, Block, Part
from scalable.train.components import PCA, Standardizer
from scalable.train.incremental import Incremental
from scalable.train.linear import ElasticNet, Lasso, LinearRegression, Ridge
from scalable.train.neighbours import KernelRegression, KNeighbors
from scalable.train.network import MLPRegressor
from scalable.train.nonlinear import NonlinearRegression
from scalable.train.photoz import fit_photoz, overall
from scalable.train.trees import AdaBoost, GradientBoosting, RandomForest

CANDIDATES: dict[str, tuple[Any, ...]] = {
    "linear": (LinearRegression(),),
    "ridge": (Ridge(None),),
    "lasso": (Lasso(None),),
    "elastic net": (ElasticNet(None),),
    "stochastic gradient": (Incremental(),),
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
FAR_OUT = 3.5
"""Interquartile ranges from the median beyond which a feature makes an outlier: Tukey's far out, 3 beyond the quartiles."""


@dataclass(frozen=True)
class Variant:
    """Another way to teach the same estimators.

    Attributes
    ----------
    name : str
    train, test : Batches
    transform : PCA or Standardizer, optional
        What the features go through first.
    """

    name: str
    train: Batches
    test: Batches
    transform: Any = None


@dataclass(frozen=True)
class _Inliers:
    """The rows of another part none of whose features is far out."""

    part: Part
    scale: Standardizer

    def blocks(self) -> Iterator[Block]:
        for block in self.part.blocks():
            yield block.take((np.abs(self.scale.transform_columns(block.columns)) <= FAR_OUT).all(axis=0))


def usual_variants(train: Batches, test: Batches, unflagged: Batches | None = None) -> list[Variant]:
    """Return what the table shows beside the plain fit: principal components, and training without outliers.

    The test rows are the same: outliers among them are judged. ``unflagged`` are the training rows that their table does not
    flag as outliers; where it flags none, rows with a feature far out are left out.
    """
    components = Variant("principal components", train, test, PCA())
    if unflagged is not None and unflagged.count() < train.count():
        return [components, Variant("outliers left out", unflagged, test)]
    scale = Standardizer(robust=True).fit(replace(train, target=""))
    inliers = replace(train, parts=tuple(_Inliers(part, scale) for part in train.parts))
    return [components, Variant("outliers left out", inliers, test)]


def compare(
    train: Batches,
    test: Batches,
    features: Features,
    *,
    candidates: Mapping[str, Sequence[Any]] = CANDIDATES,
    variants: Sequence[Variant] = (),
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
    variants : sequence of Variant
        Other ways to teach what was chosen; see `usual_variants`.
    seeds : int
        Fits of estimators that depend on a seed.
    inner, seed : int

    Returns
    -------
    pyarrow.Table
        ``estimator``, ``variant`` (empty for the plain fit), ``chosen``, ``rows`` taught with, ``train``, ``test`` (mean over
        seeds), ``test_best``, ``spread`` (deviation over seeds), ``seconds`` of one fit, and ``note``, which warns where the test
        error exceeds the training error beyond the spread.
    """
    rows = []
    for name, choices in candidates.items():
        chosen = choices[0] if len(choices) == 1 else _choose(train, features, choices, inner, seed)
        times = seeds if name in SEEDED else 1
        said = {"estimator": name, "chosen": " ".join(str(chosen).split()) if len(choices) > 1 else ""}
        for variant in (Variant("", train, test), *variants):
            rows.append({**said, "variant": variant.name, **_judge(chosen, variant, features, times)})
    return pa.Table.from_pylist(rows)


def _judge(chosen: Any, variant: Variant, features: Features, times: int) -> dict[str, Any]:
    """Fit one estimator so many times with other seeds, and measure it on both sides."""
    found, rows = [], 0
    for number in range(times):
        estimator = clone(chosen)
        if times > 1:
            estimator.set_params(seed=number)
        start = time.perf_counter()
        model = fit_photoz(
            variant.train, features, target=variant.train.target, estimator=estimator, transform=variant.transform, folds=0
        )
        seconds = time.perf_counter() - start
        found.append((model.about["metrics"]["train"][METRIC], overall(model, variant.test)[METRIC], seconds))
        rows = model.about["rows"]
    train_error, test_error, seconds = np.array(found).mean(axis=0)
    tests = [one[1] for one in found]
    spread = float(np.std(tests, ddof=1)) if times > 1 else math.nan
    # With one fit, the sampling error of a median of |dz| of this size stands for the spread.
    allowed = 2 * spread if times > 1 else 2.5 * test_error / math.sqrt(variant.test.count())
    excess = test_error - train_error
    return {
        "rows": rows,
        "train": train_error,
        "test": test_error,
        "test_best": min(tests),
        "spread": spread,
        "seconds": seconds,
        "note": f"test exceeds train by {excess:.4f}: overfitted" if excess > allowed else "",
    }


def _choose(train: Batches, features: Features, choices: Sequence[Any], inner: int, seed: int) -> Any:
    teach = train.fold(range(1, inner), inner, seed=seed + 1)
    held = train.fold([0], inner, seed=seed + 1)
    errors = []
    for choice in choices:
        model = fit_photoz(teach, features, target=train.target, estimator=choice, folds=0)
        errors.append(overall(model, held)[METRIC])
    return choices[int(np.argmin(errors))]
