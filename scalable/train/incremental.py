"""Learning from a stream: rows in mixed order through a bounded buffer, a validation curve, an early stop, a checkpoint."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, RegressorMixin, clone
from threadpoolctl import threadpool_limits

from scalable.kernels.moments import Moments, merge
from scalable.kernels.network import forward, gradients, softmax
from scalable.train.base import Streamed
from scalable.train.batches import ArrayPart, Batches, Block, fold_of
from scalable.train.checkpoint import Checkpoint
from scalable.train.linear import target_moments
from scalable.train.spill import spilled

Float = NDArray[np.float64]

SLICE_ROWS = 256
"""Rows that lie together on the disk and are read at once; a buffer holds slices from everywhere."""


class OrderWarning(UserWarning):
    """The rows are sorted by what is to be learnt."""


def mixed(
    batches: Batches, *, batch_rows: int, buffer_rows: int, seed: int, epoch: int, held: int = 0
) -> Iterator[tuple[Float, Float, Float | None]]:
    """Yield (X, y, weight) of small batches that cover all rows once, in an order mixed anew in each epoch.

    Slices of neighbouring rows are drawn from all over the table into a buffer, whose rows are shuffled; what fits the buffer is
    shuffled row by row.

    Parameters
    ----------
    batches : Batches
        Of arrays, from `spilled`.
    batch_rows, buffer_rows : int
        Rows of a batch and of the buffer.
    seed, epoch : int
        What the order is a function of, beside the rows' places.
    held : int
        Leave out the first of so many folds, which are those of ``batches.fold(..., held, seed=seed)``.
    """
    rng = np.random.default_rng([seed, epoch])
    parts = [part for part in batches.parts if isinstance(part, ArrayPart)]
    places = [(n, start) for n, part in enumerate(parts) for start in range(0, part.columns.shape[1], SLICE_ROWS)]
    order = rng.permutation(len(places))
    slices = max(1, buffer_rows // SLICE_ROWS)
    for first in range(0, len(order), slices):
        taken = [places[n] for n in sorted(order[first : first + slices])]
        cuts = [(parts[n], slice(start, start + SLICE_ROWS)) for n, start in taken]
        X = np.concatenate([part.columns[:, cut].T for part, cut in cuts])
        y = np.concatenate([part.target[cut] for part, cut in cuts if part.target is not None])
        weight = np.concatenate([part.weight[cut] for part, cut in cuts if part.weight is not None] or [np.zeros(0)])
        rows = rng.permutation(len(X))
        if held:
            groups = np.concatenate([(part.keys if part.groups is None else part.groups)[cut] for part, cut in cuts])
            rows = rows[fold_of(groups, held, seed)[rows] != 0]
        for start in range(0, len(rows), batch_rows):
            picked = rows[start : start + batch_rows]
            yield X[picked], y[picked], weight[picked] if len(weight) else None


def order_share(batches: Batches) -> float:
    """Return which share of the target's variance lies between the slices of a table, beyond what chance puts there; 0 to 1."""
    parts = [part for part in batches.parts if isinstance(part, ArrayPart) and part.target is not None]
    means, counts, total, squares = [], [], 0.0, 0.0
    for part in parts:
        for start in range(0, part.columns.shape[1], SLICE_ROWS):
            y = np.asarray(part.target[start : start + SLICE_ROWS])
            means.append(y.mean())
            counts.append(len(y))
            total += y.sum()
            squares += (y * y).sum()
    rows, groups = sum(counts), len(counts)
    scatter = squares - total * total / rows
    if groups < 3 or rows <= groups or scatter <= 0:
        return 0.0
    between = (np.array(counts) * (np.array(means) - total / rows) ** 2).sum() / scatter
    chance = (groups - 1) / (rows - 1)
    return float(max(0.0, (between - chance) / (1 - chance)))


def warn_of_order(batches: Batches) -> None:
    """Warn where neighbouring rows share their target: a learner that took them in order would forget."""
    share = order_share(batches)
    if share > 0.1:
        warnings.warn(
            f"{100 * share:.0f} % of the variance of {batches.target} lies between blocks of rows: the table is sorted by it, "
            "or nearly. Batches are mixed from all over the table here, which makes that harmless; other tools need a shuffle",
            OrderWarning,
            stacklevel=3,
        )


class MLPRegressor(RegressorMixin, Streamed):
    """A network of rectified layers that learns by Adam from mixed batches (Kingma and Ba 2015).

    Parameters
    ----------
    hidden : sequence of int
        Width of each hidden layer.
    bins : sequence of float, optional
        Edges of target bins: then the network gives a probability for each, and `predict` their mean.
    epochs : int
        Most passes over the rows.
    learning_rate, alpha, batch_rows : float, float, int
        Step of Adam, falling with a cosine to a hundredth; penalty on squared weights; rows of a batch.
    validation : float
        Share of rows, by identity, that is kept for the validation curve; 0 for none.
    patience : int
        Epochs without a better validation loss after which learning stops, with the best weights.
    buffer_rows : int
        Rows of the mixing buffer, in memory.
    seed : int
    checkpoint, scratch : path, optional
        Where the state is kept after each epoch, and where rows are spilled that are not in memory.

    Attributes
    ----------
    weights_, biases_ : list of ndarray
    loss_curve_, validation_curve_ : list of float
        Loss in each epoch; half the mean squared error in units of the target's variance, or the cross-entropy of bins.
    n_iter_ : int
        Epochs.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        *,
        bins: Sequence[float] | None = None,
        epochs: int = 100,
        learning_rate: float = 3e-3,
        alpha: float = 1e-4,
        batch_rows: int = 128,
        validation: float = 0.1,
        patience: int = 20,
        buffer_rows: int = 1 << 18,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        self.hidden = hidden
        self.bins = bins
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.batch_rows = batch_rows
        self.validation = validation
        self.patience = patience
        self.buffer_rows = buffer_rows
        self.seed = seed
        self.checkpoint = checkpoint
        self.scratch = scratch

    def fit(self, X: Any, y: Any = None) -> MLPRegressor:
        """Learn from arrays, or from `Batches`; with a checkpoint, go on where a killed fit stopped."""
        batches = self._batches(X, y, supervised=True)
        with spilled(batches, self.scratch) as rows, threadpool_limits(1):
            warn_of_order(rows)
            self._begin(rows)
            local = ("checkpoint", "scratch")
            recipe = {name: value for name, value in self.get_params().items() if name not in local}
            keep = Checkpoint.of(self.checkpoint, rows, **recipe)
            best = self._resume(keep)
            while self.n_iter_ < self.epochs and self._stale(best) < self.patience:
                best = self._epoch(rows, best)
                if keep is not None:
                    self._keep(keep, best)
        if best[1]:
            self._set(best[1])
        return self

    def partial_fit(self, X: Any, y: Any) -> MLPRegressor:
        """Take steps on the given rows, in their order; the first call sets the scale of features and target."""
        first = not hasattr(self, "weights_")
        batches = self._batches(X, y, supervised=True, reset=first)
        if first:
            self._begin(batches)
        with threadpool_limits(1):
            for block in batches.blocks():
                for start in range(0, len(block), self.batch_rows):
                    cut = slice(start, start + self.batch_rows)
                    self._step(block.columns[:, cut].T, block.target[cut], self.learning_rate)
        return self

    def predict(self, X: Any) -> Float:
        """Return the predictions, in the unit of the target."""
        return self.predict_columns(self._columns(X))

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows); the same bits for a row wherever it stands."""
        if self.bins is None:
            return self._outputs(columns)[0] * self.scale_[-1] + self.centre_[-1]
        edges = np.asarray(self.bins, dtype=np.float64)
        return _mean_of_bins(self.predict_pdf_columns(columns), edges)

    def predict_pdf_columns(self, columns: Float) -> Float:
        """Return the probability of each target bin, shape (rows, bins)."""
        return np.ascontiguousarray(softmax(self._outputs(columns)).T)

    def _outputs(self, columns: Float) -> Float:
        scaled = (columns - self.centre_[:-1, None]) / self.scale_[:-1, None]
        return forward(scaled, self.weights_, self.biases_)

    def _begin(self, batches: Batches) -> None:
        found: Moments = batches.over(target_moments, merge, 1, 0)
        self.centre_ = found.mean[0]
        deviation = np.sqrt(np.diag(found.scatter[0]) / found.weight[0])
        self.scale_ = np.where(deviation > 1e-12 * np.abs(self.centre_), deviation, 1.0)
        rng = np.random.default_rng([self.seed, 1 << 31])
        outputs = 1 if self.bins is None else len(self.bins) - 1
        sizes = [len(self.centre_) - 1, *self.hidden, outputs]
        limits = [np.sqrt(6.0 / (a + b)) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.weights_ = [rng.uniform(-limit, limit, (a, b)) for limit, a, b in zip(limits, sizes, sizes[1:], strict=False)]
        self.biases_ = [np.zeros(b) for b in sizes[1:]]
        self._first = [np.zeros_like(p) for p in (*self.weights_, *self.biases_)]
        self._second = [np.zeros_like(p) for p in (*self.weights_, *self.biases_)]
        self.t_, self.n_iter_ = 0, 0
        self.loss_curve_: list[float] = []
        self.validation_curve_: list[float] = []

    def _target(self, y: Float) -> Float:
        if self.bins is None:
            return (y - self.centre_[-1]) / self.scale_[-1]
        return bin_of(y, np.asarray(self.bins, dtype=np.float64)).astype(np.float64)

    def _step(self, X: Float, y: Float, rate: float, weight: Float | None = None) -> float:
        scaled = (X - self.centre_[:-1]) / self.scale_[:-1]
        how: dict[str, Any] = {"alpha": self.alpha, "classes": self.bins is not None, "row_weights": weight}
        loss, by_weight, by_bias = gradients(scaled, self._target(y), self.weights_, self.biases_, **how)
        self.t_ += 1
        rate *= np.sqrt(1 - 0.999**self.t_) / (1 - 0.9**self.t_)
        every = zip((*self.weights_, *self.biases_), (*by_weight, *by_bias), self._first, self._second, strict=True)
        for parameter, gradient, first, second in every:
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient * gradient - second)
            parameter -= rate * first / (np.sqrt(second) + 1e-8)
        return loss

    def _epoch(self, rows: Batches, best: tuple[float, list[Float]]) -> tuple[float, list[Float]]:
        kept = max(2, round(1 / self.validation)) if self.validation > 0 else 0
        rate = self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * self.n_iter_ / self.epochs)))
        losses, counts = [], []
        how = {"batch_rows": self.batch_rows, "buffer_rows": self.buffer_rows, "seed": self.seed, "epoch": self.n_iter_}
        for X, y, weight in mixed(rows, **how, held=kept):
            losses.append(self._step(X, y, rate, weight))
            counts.append(len(y))
        self.loss_curve_.append(float(np.average(losses, weights=counts)))
        self.n_iter_ += 1
        if not kept:
            return best
        held = [(self._loss(block), len(block)) for block in rows.fold([0], kept, seed=self.seed).blocks()]
        if not held:
            return best
        found = float(np.average([loss for loss, _ in held], weights=[number for _, number in held]))
        self.validation_curve_.append(found)
        return (found, [p.copy() for p in (*self.weights_, *self.biases_)]) if found < best[0] else best

    def _loss(self, block: Block) -> float:
        target, outputs = self._target(block.target), self._outputs(block.columns)
        if self.bins is None:
            return float(0.5 * ((outputs[0] - target) ** 2).mean())
        picked = softmax(outputs)[target.astype(np.int64), np.arange(len(block))]
        return float(-np.log(np.maximum(picked, 1e-300)).mean())

    def _stale(self, best: tuple[float, list[Float]]) -> int:
        curve = self.validation_curve_
        return len(curve) - 1 - int(np.argmin(curve)) if curve else 0

    def _set(self, parameters: Sequence[Float]) -> None:
        layers = len(self.weights_)
        self.weights_, self.biases_ = list(parameters[:layers]), list(parameters[layers:])

    def _resume(self, keep: Checkpoint | None) -> tuple[float, list[Float]]:
        saved = keep.load() if keep else None
        if saved is None:
            return np.inf, []
        arrays, state = saved
        several = {
            name: [arrays[f"{name}{n}"] for n in range(2 * len(self.weights_)) if f"{name}{n}" in arrays] for name in "pmvb"
        }
        self._set(several["p"])
        self._first, self._second = several["m"], several["v"]
        self.t_, self.n_iter_ = state["t"], len(state["loss"])
        self.loss_curve_, self.validation_curve_ = state["loss"], state["validation"]
        return (min(self.validation_curve_), several["b"]) if several["b"] else (np.inf, [])

    def _keep(self, keep: Checkpoint, best: tuple[float, list[Float]]) -> None:
        several = {"p": [*self.weights_, *self.biases_], "m": self._first, "v": self._second, "b": best[1]}
        arrays = {f"{name}{n}": part for name, parts in several.items() for n, part in enumerate(parts)}
        keep.save(arrays, {"t": self.t_, "loss": self.loss_curve_, "validation": self.validation_curve_})


def bin_of(values: Float, edges: Float) -> NDArray[np.int64]:
    """Return the bin of each value; those beyond the ends are put into the last ones."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def _mean_of_bins(shares: Float, edges: Float) -> Float:
    out = np.zeros(len(shares))
    for share, centre in zip(shares.T, (edges[1:] + edges[:-1]) / 2, strict=True):
        out += share * centre
    return out


class Incremental(RegressorMixin, BaseEstimator):
    """Any estimator with ``partial_fit``, fed with mixed batches for some epochs.

    Parameters
    ----------
    estimator : object
        Scikit-learn's contract; a clone learns.
    epochs, batch_rows, buffer_rows, seed, scratch
        As in `MLPRegressor`. Scale features first, for example with `Standardizer`.

    Attributes
    ----------
    estimator_ : object
        What has learnt.
    """

    def __init__(
        self,
        estimator: Any,
        *,
        epochs: int = 20,
        batch_rows: int = 1024,
        buffer_rows: int = 1 << 18,
        seed: int = 0,
        scratch: str | Path | None = None,
    ) -> None:
        self.estimator = estimator
        self.epochs = epochs
        self.batch_rows = batch_rows
        self.buffer_rows = buffer_rows
        self.seed = seed
        self.scratch = scratch

    def fit(self, batches: Batches) -> Incremental:
        """Learn from `Batches`."""
        self.estimator_ = clone(self.estimator)
        how = {"batch_rows": self.batch_rows, "buffer_rows": self.buffer_rows, "seed": self.seed}
        with spilled(batches, self.scratch) as rows:
            warn_of_order(rows)
            for epoch in range(self.epochs):
                for X, y, weight in mixed(rows, **how, epoch=epoch):
                    weights = {} if weight is None else {"sample_weight": weight}
                    self.estimator_.partial_fit(X, y, **weights)
        return self

    def predict(self, X: Any) -> Float:
        """Return the predictions, in the unit of the target."""
        return np.asarray(self.estimator_.predict(X))
