"""Linear, ridge, lasso and elastic net regression in one pass of second moments, the choice of the penalty included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin

from scalable.kernels.linear import elastic_net, heights, least_squares
from scalable.kernels.moments import Moments, deviations, merge, moments
from scalable.train.base import Streamed
from scalable.train.batches import Block, fold_of

Float = NDArray[np.float64]


def target_moments(block: Block, folds: int, seed: int) -> Moments:
    """Return the moments of features and target, for each fold apart."""
    group = fold_of(block.groups, folds, seed, inner=True) if folds > 1 else None
    return moments(block.columns, group, block.weight, groups=folds, last=block.target)


class _MomentsRegressor(RegressorMixin, Streamed):
    """What the linear family shares: moments in one pass, then algebra on small matrices."""

    alpha: float | Sequence[float] | None
    folds: int
    fit_intercept: bool
    seed: int

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> Any:
        """Learn from arrays, or from `Batches` in one pass.

        Parameters
        ----------
        X : ndarray, shape (rows, features), or Batches
        y, sample_weight : ndarray, shape (rows,)
            For arrays only.
        """
        batches = self._batches(X, y, sample_weight, supervised=True)
        several = not np.isscalar(self.alpha)
        parts = batches.over(target_moments, merge, self.folds if several else 1, self.seed)
        every = parts.of(range(len(parts.rows)))
        if several:
            self.alphas_ = self._path(every)
            self.cv_mse_ = np.array([self._errors(parts, fold) for fold in range(self.folds) if parts.weight[fold] > 0])
            self.alpha_ = float(self.alphas_[np.argmin(self.cv_mse_.mean(axis=0))])
        else:
            self.alpha_ = float(self.alpha)  # type: ignore[arg-type]
        self.coef_ = self._solve(every, self.alpha_, None)
        self.intercept_ = self._intercept(every, self.coef_)
        self.rows_ = int(every.rows[0])
        self.train_mse_ = self._mse(every, self.coef_, self.intercept_)
        self.centre_, self.spread_ = every.mean[0, :-1], deviations(every)[:-1]
        return self

    def predict(self, X: Any) -> Float:
        """Return the predictions, in the unit of the target."""
        return self.predict_columns(self._columns(X))

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows); the same bits for a row wherever it stands."""
        return heights(columns, self.coef_, self.intercept_)

    def _solve(self, every: Moments, alpha: float, start: Float | None) -> Float:
        raise NotImplementedError

    def _path(self, every: Moments) -> Float:
        """Return the penalties to choose from, largest first."""
        if self.alpha is not None:
            return np.sort(np.asarray(self.alpha, dtype=np.float64))[::-1]
        return self._default_path(every)

    def _default_path(self, every: Moments) -> Float:
        raise NotImplementedError

    def _products(self, every: Moments) -> tuple[Float, Float]:
        """Return the products of the features, and those with the target; about the means if there is an intercept.

        What is constant but for rounding has none about its mean: scaled up, rounding would be a feature.
        """
        if self.fit_intercept:
            varies = deviations(every) > 0
            products = every.scatter[0] * np.outer(varies, varies)
        else:
            products = every.scatter[0] + every.weight[0] * np.outer(every.mean[0], every.mean[0])
        return products[:-1, :-1], products[:-1, -1]

    def _intercept(self, every: Moments, w: Float) -> float:
        return float(every.mean[0, -1] - every.mean[0, :-1] @ w) if self.fit_intercept else 0.0

    def _errors(self, parts: Moments, fold: int) -> Float:
        """Return the mean squared error on one fold of what the others teach, for each penalty: from moments alone."""
        others = parts.of([other for other in range(len(parts.rows)) if other != fold])
        held, errors = parts.of([fold]), []
        w: Float | None = None
        for alpha in self.alphas_:
            w = self._solve(others, alpha, w)
            errors.append(self._mse(held, w, self._intercept(others, w)))
        return np.array(errors)

    def _mse(self, held: Moments, w: Float, intercept: float) -> float:
        # The residual is (w, -1) on (x, y): its variance is a quadratic form, and its mean adds in square.
        contrast = np.append(w, -1.0)
        mean = float(held.mean[0] @ contrast) + intercept
        return float(contrast @ held.scatter[0] @ contrast / held.weight[0] + mean * mean)


class LinearRegression(_MomentsRegressor):
    """Least squares.

    Parameters
    ----------
    fit_intercept : bool
        Whether there is a constant.

    Attributes
    ----------
    coef_, intercept_ : ndarray, shape (features,), and float
        In the unit of the target per unit of the feature.
    rows_, train_mse_ : int, float
        Rows learnt from and the mean squared error on them.
    """

    alpha = 0.0
    folds, seed = 1, 0

    def __init__(self, *, fit_intercept: bool = True) -> None:
        self.fit_intercept = fit_intercept

    def _solve(self, every: Moments, alpha: float, start: Float | None) -> Float:
        return least_squares(*self._products(every))


class Ridge(_MomentsRegressor):
    """Least squares with a penalty on the squares of the coefficients, as scikit-learn's ``Ridge``.

    Parameters
    ----------
    alpha : float, sequence of float, or None
        Penalty; of several the one with the least cross-validated error is taken, None stands for a logarithmic range.
    folds, seed : int
        Folds of the cross-validation, which takes no pass of its own.
    fit_intercept : bool
        Whether there is a constant, which is not penalised.
    """

    def __init__(
        self, alpha: float | Sequence[float] | None = 1.0, *, folds: int = 5, fit_intercept: bool = True, seed: int = 0
    ) -> None:
        self.alpha = alpha
        self.folds = folds
        self.fit_intercept = fit_intercept
        self.seed = seed

    def _solve(self, every: Moments, alpha: float, start: Float | None) -> Float:
        return least_squares(*self._products(every), alpha)

    def _default_path(self, every: Moments) -> Float:
        return np.logspace(3, -9, 49) * np.trace(self._products(every)[0]) / self.n_features_in_


class ElasticNet(_MomentsRegressor):
    """Least squares with penalties on sizes and squares of the coefficients, as scikit-learn's ``ElasticNet``.

    Parameters
    ----------
    alpha : float, sequence of float, or None
        Penalty; of several the one with the least cross-validated error is taken, None stands for 100 from the least that
        makes every coefficient 0 down to a thousandth of it, as in ``ElasticNetCV``.
    l1_ratio : float
        Share of the penalty on sizes, above 0.
    folds, seed : int
        Folds of the cross-validation, which takes no pass of its own.
    fit_intercept : bool
        Whether there is a constant, which is not penalised.
    """

    def __init__(
        self,
        alpha: float | Sequence[float] | None = 1.0,
        *,
        l1_ratio: float = 0.5,
        folds: int = 5,
        fit_intercept: bool = True,
        seed: int = 0,
    ) -> None:
        self.alpha = alpha
        self.l1_ratio = l1_ratio
        self.folds = folds
        self.fit_intercept = fit_intercept
        self.seed = seed

    def _solve(self, every: Moments, alpha: float, start: Float | None) -> Float:
        return elastic_net(*self._products(every), float(every.weight[0]), alpha, self.l1_ratio, start)

    def _default_path(self, every: Moments) -> Float:
        largest = np.abs(self._products(every)[1]).max() / (every.weight[0] * self.l1_ratio)
        return largest * np.logspace(0, -3, 100)


class Lasso(ElasticNet):
    """Least squares with a penalty on the sizes of the coefficients: `ElasticNet` with ``l1_ratio`` 1."""

    l1_ratio = 1.0

    def __init__(
        self, alpha: float | Sequence[float] | None = 1.0, *, folds: int = 5, fit_intercept: bool = True, seed: int = 0
    ) -> None:
        self.alpha = alpha
        self.folds = folds
        self.fit_intercept = fit_intercept
        self.seed = seed
