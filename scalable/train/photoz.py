"""`fit_photoz`, `evaluate`, `fit_mixture`: from a table to a model that knows how good it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from sklearn.base import clone

from scalable.errors import InputError, nearest
from scalable.kernels.features import Features
from scalable.kernels.metrics import DEFINITIONS, PdfSums
from scalable.schema import Column, Schema
from scalable.train.base import Streamed
from scalable.train.batches import Batches, Block, Part, fold_of
from scalable.train.components import PCA, Standardizer
from scalable.train.incremental import Incremental
from scalable.train.metrics import pdf_metrics, point_metrics
from scalable.train.mixture import GaussianMixture, log_likelihoods
from scalable.train.model import ESTIMATORS, Model, described, versions
from scalable.train.spill import spilled
from scalable.train.tables import Data, TablePart, batches_of, left_out

Float = NDArray[np.float64]

WORDS = {
    "linear": "LinearRegression",
    "ridge": "Ridge",
    "lasso": "Lasso",
    "elastic_net": "ElasticNet",
    "boosting": "GradientBoosting",
    "forest": "RandomForest",
    "adaboost": "AdaBoost",
    "network": "MLPRegressor",
    "sgd": "Incremental",
    "neighbours": "KNeighbors",
    "kernel": "KernelRegression",
    "curve": "NonlinearRegression",
}
"""Short names of estimators, as the command line takes them."""

JUDGED = ("z_phot", "z_spec")
PDF_ROWS = 1 << 13
"""Rows whose p(z) are held at once."""


@dataclass(frozen=True)
class _Transformed:
    """Rows whose features have gone through a fitted transform."""

    part: Part
    transform: Any

    def blocks(self) -> Iterator[Block]:
        for block in self.part.blocks():
            yield replace(block, columns=self.transform.transform_columns(block.columns), own_keys=block.keys)


@dataclass(frozen=True)
class _Judged:
    """Predictions beside the truth, and what bins are made of."""

    part: Part
    model: Model
    quantities: tuple[int, ...]

    def blocks(self) -> Iterator[Block]:
        for block in self.part.blocks():
            if len(block):
                extra = [block.target if n < 0 else block.columns[n] for n in self.quantities]
                columns = np.vstack([self.model.predict_columns(block.columns), block.target, *extra])
                yield replace(block, columns=columns, own_keys=block.keys)


def estimator_of(estimator: Any, **parameters: Any) -> Any:
    """Return a new estimator from one of `WORDS`, or from one that is given, with some parameters of your own.

    A regressor of others that has ``partial_fit`` is fed by `Incremental`.

    Raises
    ------
    InputError
        If there is no such estimator, it cannot learn in steps, or it has no such parameter.
    """
    if isinstance(estimator, str):
        if estimator not in WORDS:
            raise InputError(f"no estimator {estimator!r}; {nearest(estimator, WORDS)}")
        fresh = ESTIMATORS[WORDS[estimator]]()
    elif isinstance(estimator, Streamed):
        fresh = clone(estimator)
    elif hasattr(estimator, "partial_fit") and hasattr(estimator, "predict"):
        fresh = Incremental(clone(estimator))
    else:
        raise InputError(
            f"{type(estimator).__name__} cannot learn in steps (it has no partial_fit and predict); "
            f"take one of {', '.join(WORDS)}"
        )
    for name in parameters:
        if name not in fresh.get_params():
            raise InputError(f"{type(fresh).__name__} has no parameter {name!r}; {nearest(name, fresh.get_params())}")
    return fresh.set_params(**parameters)


def fit_photoz(
    data: Data,
    features: Features,
    *,
    target: str,
    estimator: Any = "boosting",
    transform: PCA | Standardizer | None = None,
    folds: int = 5,
    seed: int = 0,
    checkpoint: str | Path | None = None,
    **table: Any,
) -> Model:
    """Teach an estimator redshifts, in passes over a table of any size, and measure it on folds it has not seen; computes.

    Parameters
    ----------
    data : Catalog, Batches, pyarrow.Table, path or sequence of paths
        See `batches_of`; ``weight``, ``key``, ``sky_order``, ``rules`` and ``split`` are handed on to it.
    features : Features
    target : str
        Column with the spectroscopic redshifts.
    estimator : str or object
        One of `WORDS`, or an estimator with parameters of your own: of this package, or any regressor with ``partial_fit``.
    transform : PCA or Standardizer, optional
        What the features go through first, fitted on the same rows.
    folds : int
        Folds that the error is measured on, each after a fit to the others: two or more, or 0 for none.
    seed : int
        Of the folds.
    checkpoint : path, optional
        Where the fit to all rows keeps its state, if it takes more than one pass, and beside it (``.fold0``, ...) those to the
        folds: a killed call goes on there.

    Returns
    -------
    Model
        ``about["metrics"]`` holds ``train``, and for each of ``folds`` the metrics on rows unseen.

    Raises
    ------
    InputError
        Before the fit, if a fold has no row.
    """
    if folds < 0 or folds == 1:
        raise InputError(f"folds={folds}: give two or more, each to be judged by a fit to the others, or 0 for none")
    batches = batches_of(data, features, target=target, **table)
    # Without tables there is no account of what was left out.
    account = left_out(batches) if all(isinstance(part, TablePart) for part in batches.parts) else {}
    if folds and (empty := int(np.count_nonzero(batches.over(_fold_sizes, np.add, folds, seed) == 0))):
        raise InputError(
            f"{empty} of {folds} folds would have no row: rows of one key or pixel stay together, and there are too few of "
            "these; take fewer folds, or finer pixels"
        )
    chosen = estimator_of(estimator)
    if checkpoint is not None:
        chosen = _keeping(chosen, checkpoint)
    model = _fit(batches, features, chosen, transform)
    found: dict[str, Any] = {"train": overall(model, batches), "folds": []}
    states = [None if checkpoint is None else Path(f"{checkpoint}.fold{fold}") for fold in range(folds)]
    for fold, state in enumerate(states):
        others = [n for n in range(folds) if n != fold]
        partial = _fit(batches.fold(others, folds, seed=seed), features, _keeping(chosen, state), transform)
        found["folds"].append(overall(partial, batches.fold([fold], folds, seed=seed)))
    for state in states:
        if state is not None:
            state.unlink(missing_ok=True)
    return described(model, metrics=found, left_out=account, seed=seed, **_origin(batches))


def _fold_sizes(block: Block, folds: int, seed: int) -> NDArray[np.int64]:
    return np.bincount(fold_of(block.groups, folds, seed), minlength=folds)


def _origin(batches: Batches) -> dict[str, Any]:
    """Return what a model says of the rows that it was taught with, and of the code."""
    digest, rows = batches.digest_and_count()
    return {"data": digest, "rows": rows, "origin": batches.origin, "versions": versions()}


def _keeping(estimator: Any, checkpoint: str | Path | None) -> Any:
    """Return a new estimator that keeps its state in a file, if it is one that can."""
    fresh = clone(estimator)
    return fresh.set_params(checkpoint=checkpoint) if "checkpoint" in fresh.get_params() else fresh


def _fit(batches: Batches, features: Features, estimator: Any, transform: Any) -> Model:
    fitted = None if transform is None else clone(transform).fit(replace(batches, target=""))
    seen = batches
    if fitted is not None:
        names = tuple(f"{type(fitted).__name__.lower()}{n}" for n in range(_outputs(fitted, batches)))
        seen = replace(batches, parts=tuple(_Transformed(part, fitted) for part in batches.parts), names=names, units=())
    estimator.fit(seen)
    about = {"feature_units": list(batches.units)}
    return Model(estimator, features, dict(batches.column_units), batches.target, batches.target_unit, fitted, about)


def _outputs(transform: Any, batches: Batches) -> int:
    return len(transform.components_) if isinstance(transform, PCA) else len(batches.names)


def batches_for(model: Model, data: Data, **table: Any) -> Batches:
    """Return rows as batches for a model, with its target if it has one.

    Raises
    ------
    ColumnError
        If a column is missing or has another unit than the model was taught with.
    """
    batches = batches_of(data, model.features, target=model.target, **table)
    # Arrays have no columns that could say a unit.
    if batches.column_units:
        columns = (Column(name, pa.float64(), unit=unit) for name, unit in batches.column_units)
        model.check(Schema(tuple(columns)), batches.origin)
    return batches


def judged(model: Model, batches: Batches, bins: Mapping[str, Sequence[float]] | None = None) -> Batches:
    """Return predictions beside the truth as batches, with the quantities of bins: features by name, or the target."""
    quantities = tuple(-1 if name == model.target else _index(batches, name) for name in bins or {})
    names = (*JUDGED, *(bins or {}))
    return Batches(tuple(_Judged(part, model, quantities) for part in batches.parts), names)


def _index(batches: Batches, name: str) -> int:
    if name not in batches.names:
        raise InputError(f"no bins in {name!r}: it is neither a feature nor the target; {nearest(name, batches.names)}")
    return batches.names.index(name)


def evaluate(
    model: Model,
    data: Data,
    *,
    bins: Mapping[str, Sequence[float]] | None = None,
    scratch: str | Path | None = None,
    **table: Any,
) -> pa.Table:
    """Measure a model on a table it has not seen: every metric by id, overall and in bins; computes.

    Parameters
    ----------
    model : Model
        From `fit_photoz`.
    data : Catalog, Batches, pyarrow.Table, path or sequence of paths
        With the target; ``rules`` and ``key`` are handed on to `batches_of`.
    bins : mapping of str to sequence of float
        Edges of bins of features (such as the reference magnitude) and of the target.
    scratch : path, optional
        Folder for the predictions, 8 bytes a value, while they are judged.

    Returns
    -------
    pyarrow.Table
        From `scalable.train.metrics.point_metrics`.
    """
    if not model.target:
        raise InputError(f"{model.kind} predicts nothing that could be judged; give a model of fit_photoz")
    batches = batches_for(model, data, **table)
    edges = {name: np.asarray(found, dtype=np.float64) for name, found in (bins or {}).items()}
    with spilled(judged(model, batches, bins), scratch) as rows:
        return point_metrics(rows, edges)


def evaluate_pdf(model: Model, data: Data, **table: Any) -> dict[str, float]:
    """Measure the p(z) of a model that gives them, in one pass: every metric of `PDF_DEFINITIONS` by its id; computes.

    Parameters
    ----------
    model : Model
        With a network or a forest that has ``bins``.
    data : Catalog, Batches, pyarrow.Table, path or sequence of paths
        With the target; ``rules`` and ``key`` are handed on to `batches_of`.
    """
    if getattr(model.estimator, "bins", None) is None:
        raise InputError(f"{model.kind} gives no p(z) that could be judged; train a network or a forest with bins of the target")
    batches = batches_for(model, data, **table)
    return pdf_metrics(batches.over(_pdf_sums, PdfSums.merge, model))


def _pdf_sums(block: Block, model: Model) -> PdfSums:
    found = []
    for start in range(0, len(block), PDF_ROWS):
        cut = slice(start, start + PDF_ROWS)
        shares = model.estimator.predict_pdf_columns(model.inputs(np.ascontiguousarray(block.columns[:, cut])))
        found.append(PdfSums.of(shares, np.asarray(model.estimator.bins, dtype=np.float64), block.target[cut]))
    return reduce(PdfSums.merge, found)


def overall(model: Model, batches: Batches) -> dict[str, float]:
    """Return every metric on all rows, by its id; computes."""
    row = evaluate(model, batches).to_pylist()[0]
    return {name: row[name] for name in DEFINITIONS}


def permutation_importance(model: Model, batches: Batches, *, seed: int = 0) -> dict[str, float]:
    """Return by how much ``median_abs`` grows when one feature is shuffled within blocks, for each feature."""
    base = overall(model, batches)["median_abs"]
    found = {}
    for n, name in enumerate(batches.names):
        parts = tuple(_Shuffled(part, n, seed) for part in batches.parts)
        found[name] = overall(model, replace(batches, parts=parts))["median_abs"] - base
    return found


@dataclass(frozen=True)
class _Shuffled:
    """Rows with one feature taken from other rows of the same block."""

    part: Part
    feature: int
    seed: int

    def blocks(self) -> Iterator[Block]:
        for block in self.part.blocks():
            columns = block.columns.copy()
            rows = np.random.default_rng([self.seed, len(block)]).permutation(len(block))
            columns[self.feature] = columns[self.feature, rows]
            yield replace(block, columns=columns, own_keys=block.keys)


def fit_mixture(
    data: Data,
    features: Features,
    *,
    components: int | Sequence[int] = 5,
    covariance_type: str = "full",
    held_out: float = 0.2,
    n_init: int = 3,
    tol: float = 1e-4,
    seed: int = 0,
    **options: Any,
) -> Model:
    """Fit Gaussian mixtures by exact expectation maximisation, all numbers of components in the same passes; computes.

    Parameters
    ----------
    data : Catalog, Batches, pyarrow.Table, path or sequence of paths
        ``key``, ``rules`` and ``split`` are handed on to `batches_of`, ``max_iter``, ``reg_covar`` and ``checkpoint`` to
        `GaussianMixture`.
    features : Features
    components : int or sequence of int
        Of several the one with the least BIC is taken.
    covariance_type : str
        ``full``, ``diag`` or ``tied``.
    held_out : float
        Share of the rows, by identity, that is kept to measure the likelihood on.
    n_init : int
        Starts of each mixture; the likeliest is kept.
    tol, seed : float, int

    Returns
    -------
    Model
        ``about["criteria"]`` lists for each number of components log likelihood per row in training and held out, BIC and AIC.
    """
    table = {name: options.pop(name) for name in ("key", "rules", "sky_order", "split") if name in options}
    batches = batches_of(data, features, **table)
    account = left_out(batches) if all(isinstance(part, TablePart) for part in batches.parts) else {}
    of = max(2, round(1 / held_out)) if held_out > 0 else 0
    train = batches.fold(range(1, of), of, seed=seed) if of else batches
    counts = [components] if isinstance(components, int) else list(components)
    start = GaussianMixture(counts[0], covariance_type=covariance_type, n_init=n_init, tol=tol, seed=seed, **options)
    with spilled(train) as rows:
        fits = start.fit_counts(rows, counts)
        number, likelihoods = rows.count(), log_likelihoods(rows, [fit.parameters for fit in fits])
    unseen = batches.fold([0], of, seed=seed) if of else None
    held = log_likelihoods(unseen, [fit.parameters for fit in fits]) if unseen else [None] * len(fits)
    criteria: list[dict[str, Any]] = [
        {
            "components": fit.n_components,
            "train": mean,
            "held_out": apart,
            "bic": fit.criterion(mean, number, float(np.log(number))),
            "aic": fit.criterion(mean, number, 2.0),
            "passes": fit.n_iter_,
            "converged": bool(fit.converged_),
        }
        for fit, mean, apart in zip(fits, likelihoods, held, strict=True)
    ]
    best = int(np.argmin([row["bic"] for row in criteria]))
    model = Model(fits[best], features, dict(batches.column_units), about={"feature_units": list(batches.units)})
    return described(model, criteria=criteria, left_out=account, seed=seed, **_origin(batches))
