"""Standardisation and principal components from second moments, or exact medians and quartiles; weights do not count."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import OneToOneFeatureMixin, TransformerMixin

from scalable.errors import InputError
from scalable.kernels.moments import Moments, covariance, merge, moments, scales
from scalable.train.base import Streamed
from scalable.train.batches import Batches, Block
from scalable.train.quantiles import exact_quantiles

Float = NDArray[np.float64]


def block_moments(block: Block, centre: Float, scale: Float) -> Moments:
    """Return the moments of the features, centred and scaled first."""
    return moments((block.columns - centre[:, None]) / scale[:, None])


def _feature_numbers(block: Block) -> tuple[Float, NDArray[np.int64]]:
    features, rows = block.columns.shape
    return block.columns.ravel(), np.repeat(np.arange(features), rows)


def _robust(batches: Batches) -> tuple[Float, Float]:
    """Return median and interquartile range of each feature; a range of 0 counts as 1."""
    quartiles, _ = exact_quantiles(batches, _feature_numbers, len(batches.names), (0.25, 0.5, 0.75))
    spread = quartiles[:, 2] - quartiles[:, 0]
    return quartiles[:, 1], np.where(spread > 0, spread, 1.0)


class Standardizer(OneToOneFeatureMixin, TransformerMixin, Streamed):
    """Shift and scale features to mean 0 and deviation 1, or, robustly, to median 0 and interquartile range 1.

    Parameters
    ----------
    robust : bool
        Exact medians and quartiles (four passes) instead of moments (one).

    Attributes
    ----------
    centre_, scale_ : ndarray, shape (features,)
        In the units of the features.
    """

    def __init__(self, *, robust: bool = False) -> None:
        self.robust = robust

    def fit(self, X: Any, y: Any = None) -> Standardizer:
        """Learn from arrays, or from `Batches`."""
        del y  # scikit-learn's pipelines hand one on
        batches = self._batches(X, supervised=False)
        if self.robust:
            self.centre_, self.scale_ = _robust(batches)
            return self
        d = len(batches.names)
        found = batches.over(block_moments, merge, np.zeros(d), np.ones(d))
        self.centre_, self.scale_ = found.mean[0], scales(found)
        return self

    def transform(self, X: Any) -> Float:
        """Return the scaled features, shape (rows, features)."""
        return self.transform_columns(self._columns(X)).T

    def transform_columns(self, columns: Float) -> Float:
        """Return the scaled features, shape (features, rows)."""
        return (columns - self.centre_[:, None]) / self.scale_[:, None]


class PCA(TransformerMixin, Streamed):
    """Principal components, as scikit-learn's ``PCA``.

    Parameters
    ----------
    n_components : int, optional
        How many are kept; by default all.
    whiten : bool
        Whether components are scaled to variance 1.
    robust : bool
        Centre and scale by exact medians and interquartile ranges first.

    Attributes
    ----------
    mean_, scale_, components_, explained_variance_, explained_variance_ratio_ : ndarray
        Components are rows, signed so that the largest entry is positive.
    """

    def __init__(self, n_components: int | None = None, *, whiten: bool = False, robust: bool = False) -> None:
        self.n_components = n_components
        self.whiten = whiten
        self.robust = robust

    def fit(self, X: Any, y: Any = None) -> PCA:
        """Learn from arrays, or from `Batches`."""
        del y
        batches = self._batches(X, supervised=False)
        d = len(batches.names)
        centre, self.scale_ = _robust(batches) if self.robust else (np.zeros(d), np.ones(d))
        found = batches.over(block_moments, merge, centre, self.scale_)
        kept = min(d, int(found.rows[0])) if self.n_components is None else self.n_components
        if not 1 <= kept <= min(d, int(found.rows[0])):
            raise InputError(f"n_components={kept} must lie between 1 and min(rows, features)={min(d, int(found.rows[0]))}")
        mean, spread = covariance(found)
        self.mean_ = centre + mean * self.scale_
        values, vectors = np.linalg.eigh(np.nan_to_num(spread))
        values, rows = np.maximum(values[::-1], 0.0), vectors.T[::-1]
        rows = rows * np.sign(rows[np.arange(d), np.abs(rows).argmax(axis=1)])[:, None]
        self.components_, self.explained_variance_ = rows[:kept], values[:kept]
        self.explained_variance_ratio_ = values[:kept] / (values.sum() or 1.0)
        self.n_components_, self.n_samples_ = kept, int(found.rows[0])
        return self

    @property
    def _n_features_out(self) -> int:
        return int(self.n_components_)

    def transform(self, X: Any) -> Float:
        """Return the components of each row, shape (rows, components)."""
        return self.transform_columns(self._columns(X)).T

    def transform_columns(self, columns: Float) -> Float:
        """Return the components, shape (components, rows)."""
        centred = (columns - self.mean_[:, None]) / self.scale_[:, None]
        out = np.zeros((len(self.components_), columns.shape[1]))
        for row, direction in zip(out, self.components_, strict=True):
            for factor, column in zip(direction, centred, strict=True):
                row += factor * column
        if self.whiten:
            out /= np.sqrt(np.where(self.explained_variance_ > 0, self.explained_variance_, 1.0))[:, None]
        return out

    def inverse_transform(self, X: Any) -> Float:
        """Return features from components, shape (rows, features)."""
        parts = np.asarray(X, dtype=np.float64)
        if self.whiten:
            parts = parts * np.sqrt(self.explained_variance_)
        return (parts @ self.components_) * self.scale_ + self.mean_
