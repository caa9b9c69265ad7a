"""Nonlinear least squares: Gauss and Newton's steps, damped, from normal equations that add up."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin

from scalable.errors import InputError, nearest
from scalable.kernels.moments import merge, scales
from scalable.kernels.nonlinear import CURVES, parameters_of
from scalable.train.base import Streamed
from scalable.train.batches import Block
from scalable.train.checkpoint import Checkpoint
from scalable.train.components import block_moments

Float = NDArray[np.float64]


class Normal(NamedTuple):
    """Sums of the normal equations: J'WJ, J'Wr, the weighted squares of the residuals r, and the weights."""

    gram: Float
    cross: Float
    squares: float
    weight: float


def _normal(block: Block, curve: str, parameters: Float, centre: Float, scale: Float) -> Normal:
    with np.errstate(over="ignore", invalid="ignore"):
        value, slopes = CURVES[curve](parameters, (block.columns - centre[:, None]) / scale[:, None])
        residual = block.target - value
        weighted = slopes if block.weight is None else slopes * block.weight
        squares = residual**2 if block.weight is None else block.weight * residual**2
        return Normal(
            weighted @ slopes.T,
            weighted @ residual,
            float(squares.sum()),
            float(len(block) if block.weight is None else block.weight.sum()),
        )


def _merge(a: Normal, b: Normal) -> Normal:
    return Normal(a.gram + b.gram, a.cross + b.cross, a.squares + b.squares, a.weight + b.weight)


class NonlinearRegression(RegressorMixin, Streamed):
    """A curve from `scalable.kernels.nonlinear.CURVES`, fitted by damped Gauss-Newton steps (Levenberg 1944, Marquardt 1963).

    Parameters
    ----------
    curve : str
        ``exponential``, ``softplus`` or ``quadratic``; of features shifted and scaled to mean 0 and deviation 1.
    start : sequence of float, optional
        Parameters to start from; by default 0.
    tol : float
        Stops when a step lessens the squares by less than this share of them, and changes no parameter by more.
    max_iter : int
        Most steps, a pass each.
    checkpoint : path, optional
        Where the parameters are kept after each step.

    Attributes
    ----------
    parameters_ : ndarray
    mse_, n_iter_ : float, int
    """

    def __init__(
        self,
        curve: str = "softplus",
        *,
        start: Sequence[float] | None = None,
        tol: float = 1e-12,
        max_iter: int = 100,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.curve = curve
        self.start = start
        self.tol = tol
        self.max_iter = max_iter
        self.checkpoint = checkpoint

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> NonlinearRegression:
        """Learn from arrays, or from `Batches`; with a checkpoint, go on where a killed fit stopped.

        Raises
        ------
        InputError
            If the curve has no such name, or the start has not as many parameters as it.
        """
        if self.curve not in CURVES:
            raise InputError(f"curve={self.curve!r}: {nearest(self.curve, CURVES)}")
        batches = self._batches(X, y, sample_weight, supervised=True)
        d = len(batches.names)
        size = parameters_of(self.curve, d)
        parameters = np.zeros(size) if self.start is None else np.array(self.start, dtype=np.float64)
        if len(parameters) != size:
            raise InputError(f"start has {len(parameters)} parameters, the curve {self.curve!r} of {d} features needs {size}")
        found = batches.over(block_moments, merge, np.zeros(d), np.ones(d))
        self.centre_, self.scale_ = found.mean[0], scales(found)
        recipe = {name: value for name, value in self.get_params().items() if name != "checkpoint"}
        keep = Checkpoint.of(self.checkpoint, batches, **recipe)
        damping, self.n_iter_ = 1e-3, 0
        if keep is not None and (saved := keep.load()) is not None:
            parameters, damping, self.n_iter_ = saved[0]["parameters"], saved[1]["damping"], saved[1]["steps"]
        normal = batches.over(_normal, _merge, self.curve, parameters, self.centre_, self.scale_)
        while self.n_iter_ < self.max_iter:
            self.n_iter_ += 1
            scaled = normal.gram + damping * np.diag(np.maximum(np.diag(normal.gram), 1e-300))
            step = np.linalg.lstsq(scaled, normal.cross, rcond=None)[0]
            tried = batches.over(_normal, _merge, self.curve, parameters + step, self.centre_, self.scale_)
            better = tried.squares <= normal.squares
            small = np.abs(step).max() <= self.tol * max(1.0, np.abs(parameters).max())
            done = small or (better and normal.squares - tried.squares <= self.tol * self.tol * normal.squares)
            if better:
                parameters, normal, damping = parameters + step, tried, damping / 10
            else:
                damping *= 10
            if done or damping > 1e16:
                break
            if keep is not None:
                keep.save({"parameters": parameters}, {"damping": damping, "steps": self.n_iter_})
        self.parameters_, self.mse_ = parameters, normal.squares / normal.weight
        return self

    def predict(self, X: Any) -> Float:
        """Return the predictions, in the unit of the target."""
        return self.predict_columns(self._columns(X))

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows); the same bits for a row wherever it stands."""
        scaled = (columns - self.centre_[:, None]) / self.scale_[:, None]
        return CURVES[self.curve](self.parameters_, scaled)[0]
