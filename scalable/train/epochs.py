"""Learning in epochs over mixed batches: loss and validation curve, an early stop, a checkpoint after each epoch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin
from threadpoolctl import threadpool_limits

from scalable.errors import InputError
from scalable.kernels.moments import Moments, merge, scales
from scalable.train.base import Streamed
from scalable.train.batches import Batches
from scalable.train.checkpoint import Arrays, Checkpoint
from scalable.train.linear import target_moments
from scalable.train.mixed import mixed, warn_of_order
from scalable.train.spill import spilled

Float = NDArray[np.float64]


class Epochs(RegressorMixin, Streamed, ABC):
    """What learners of small batches share: they scale features, step over mixed batches, and stop when held-out rows say so.

    Attributes
    ----------
    centre_, scale_ : ndarray, shape (features + 1,)
        Mean and deviation of each feature and, last, of the target.
    loss_curve_, validation_curve_ : list of float
        Loss in each epoch, on the rows learnt from and on those kept apart.
    n_iter_ : int
        Epochs.
    """

    epochs: int
    batch_rows: int
    validation: float
    patience: int
    buffer_rows: int
    seed: int
    checkpoint: str | Path | None
    scratch: str | Path | None

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Learn from arrays, or from `Batches`; with a checkpoint, go on where a killed fit stopped."""
        batches = self._batches(X, y, sample_weight, supervised=True)
        with spilled(batches, self.scratch) as rows, threadpool_limits(1):
            warn_of_order(rows)
            self._begin(rows)
            keep = Checkpoint.of(self.checkpoint, rows, **self._recipe())
            best = self._resume(keep)
            while self.n_iter_ < self.epochs and self._stale() < self.patience:
                self._epoch(rows)
                if self.validation_curve_ and self._stale() == 0:
                    best = self._state(file=keep is not None)
                if keep is not None:
                    states = {**_named("now.", self._state(file=True)), **_named("best.", best)}
                    keep.save(states, {"loss": self.loss_curve_, "validation": self.validation_curve_})
        if best:
            self._restore(best)
        return self

    def partial_fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Self:
        """Take steps on the given rows, in their order; the first call sets the scale of features and target."""
        first = not hasattr(self, "centre_")
        batches = self._batches(X, y, sample_weight, supervised=True, reset=first)
        if first:
            self._begin(batches)
        with threadpool_limits(1):
            for block in batches.blocks():
                for start in range(0, len(block), self.batch_rows):
                    cut = slice(start, start + self.batch_rows)
                    weight = None if block.weight is None else block.weight[cut]
                    self._step(self._scaled(block.columns[:, cut]).T, block.target[cut], weight, 0.0)
        return self

    def predict(self, X: Any) -> Float:
        """Return the predictions, in the unit of the target."""
        return self.predict_columns(self._columns(X))

    @abstractmethod
    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows)."""

    def _recipe(self) -> dict[str, Any]:
        """Return the parameters that decide the result."""
        return {name: value for name, value in self.get_params().items() if name not in ("checkpoint", "scratch")}

    @abstractmethod
    def _start(self) -> None:
        """Set what is learnt to where learning starts."""

    @abstractmethod
    def _step(self, X: Float, y: Float, weight: Float | None, done: float) -> float:
        """Learn from a batch of scaled features, with a share of the epochs done; return the loss."""

    @abstractmethod
    def _losses(self, columns: Float, y: Float) -> Float:
        """Return the loss of each row for features of shape (features, rows), as they are."""

    @abstractmethod
    def _state(self, *, file: bool) -> dict[str, Any]:
        """Return a copy of all that learning goes on from; as arrays of numbers, if it is for a file."""

    @abstractmethod
    def _restore(self, state: dict[str, Any]) -> None:
        """Set what `_state` returned."""

    def _begin(self, batches: Batches) -> None:
        found: Moments = batches.over(target_moments, merge, 1, 0)
        self.centre_ = found.mean[0]
        self.scale_ = scales(found)
        self.n_iter_ = 0
        self.loss_curve_: list[float] = []
        self.validation_curve_: list[float] = []
        self._start()

    def _scaled(self, columns: Float) -> Float:
        return (columns - self.centre_[:-1, None]) / self.scale_[:-1, None]

    def _epoch(self, rows: Batches) -> None:
        kept = max(2, round(1 / self.validation)) if self.validation > 0 else 0
        losses, weights = [], []
        how = {"batch_rows": self.batch_rows, "buffer_rows": self.buffer_rows, "seed": self.seed, "epoch": self.n_iter_}
        for X, y, weight in mixed(rows, **how, held=kept):
            scaled = (X - self.centre_[:-1]) / self.scale_[:-1]
            losses.append(self._step(scaled, y, weight, self.n_iter_ / self.epochs))
            weights.append(len(y) if weight is None else weight.sum())
        if sum(weights) == 0:
            raise InputError("no row is left to learn from: all are kept together for the validation curve; take validation=0")
        self.loss_curve_.append(float(np.average(losses, weights=weights)))
        self.n_iter_ += 1
        if kept:
            blocks = rows.fold([0], kept, seed=self.seed, inner=True).blocks()
            held = [summed(self._losses(block.columns, block.target), block.weight) for block in blocks]
            if held:
                total, weight = np.sum(held, axis=0)
                self.validation_curve_.append(float(total / weight))

    def _stale(self) -> int:
        """Return the epochs since the best one."""
        curve = self.validation_curve_
        return len(curve) - 1 - int(np.argmin(curve)) if curve else 0

    def _resume(self, keep: Checkpoint | None) -> dict[str, Any]:
        """Go on from what was kept, and return the best state so far; empty if there is none."""
        saved = keep.load() if keep else None
        if saved is None:
            return {}
        arrays, said = saved
        self.loss_curve_, self.validation_curve_ = said["loss"], said["validation"]
        self.n_iter_ = len(self.loss_curve_)
        self._restore(_unnamed("now.", arrays))
        return _unnamed("best.", arrays)


def summed(losses: Float, weight: Float | None) -> tuple[float, float]:
    """Return the sum of losses, and of weights."""
    return (float(losses.sum()), float(len(losses))) if weight is None else (float(weight @ losses), float(weight.sum()))


def _named(prefix: str, arrays: Arrays) -> Arrays:
    return {prefix + name: array for name, array in arrays.items()}


def _unnamed(prefix: str, arrays: Arrays) -> Arrays:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
