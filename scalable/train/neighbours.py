"""Nearest neighbours and kernel regression from a reference set of bounded size, searched exactly."""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.base import RegressorMixin

from scalable.errors import InputError
from scalable.kernels.moments import merge, scales
from scalable.train.base import Streamed
from scalable.train.batches import Batches, Block
from scalable.train.components import block_moments
from scalable.train.sample import draw

Float = NDArray[np.float64]


PLANES = 4096
"""Rows whose planes are fitted at once."""
RADIUS = 6.0
"""Deviations of a kernel beyond which cells do not count: there they weigh less than 2e-8 of one at hand."""
AROUND = 1 << 18
"""Cells around points that are held at once, beside those of one point."""


def _scale(batches: Batches) -> Float:
    d = len(batches.names)
    return scales(batches.over(block_moments, merge, np.zeros(d), np.ones(d)))


class KNeighbors(RegressorMixin, Streamed):
    """The mean of the nearest rows of a reference set: all rows, or a seeded sample of them if there are more than it may hold.

    Parameters
    ----------
    n_neighbors : int
    weights : str
        ``uniform``, or ``distance`` for weights of one over the distance; row weights multiply either.
    local : str
        ``mean`` of the neighbours, or ``plane``: the least-squares plane through them, at the row.
    standardize : bool
        Whether distances are in units of the features' deviations.
    reference_rows : int
        Most rows of the reference set.
    seed : int
        Of the sample.

    Attributes
    ----------
    reference_, reference_target_, reference_weight_, scale_ : ndarray
    rows_ : int
        Rows that the reference set was drawn from.
    """

    def __init__(
        self,
        n_neighbors: int = 20,
        *,
        weights: str = "uniform",
        local: str = "mean",
        standardize: bool = True,
        reference_rows: int = 200_000,
        seed: int = 0,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.weights = weights
        self.local = local
        self.standardize = standardize
        self.reference_rows = reference_rows
        self.seed = seed

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KNeighbors:
        """Draw the reference set from arrays, or from `Batches`."""
        batches = self._batches(X, y, sample_weight, supervised=True)
        self.scale_ = _scale(batches) if self.standardize else np.ones(len(batches.names))
        found = draw(batches, self.reference_rows, seed=self.seed)
        self.reference_ = np.ascontiguousarray((found.columns / self.scale_[:, None]).T)
        self.reference_target_, self.reference_weight_, self.rows_ = found.target, found.weight, found.rows
        self.restore()
        return self

    def _planes(self, points: Float, index: NDArray[np.int64], weight: Float) -> Float:
        """Return the planes' heights at the points; within the neighbours' range, as a plane may lead far out of it."""
        out = np.empty(len(points))
        d = points.shape[1]
        for start in range(0, len(points), PLANES):
            cut = slice(start, start + PLANES)
            x = self.reference_[index[cut]] - points[cut, None, :]
            y, w = self.reference_target_[index[cut]], weight[cut]
            total = w.sum(axis=1)
            mean = np.einsum("nk,nkd->nd", w, x) / total[:, None]
            level = np.einsum("nk,nk->n", w, y) / total
            x = x - mean[:, None, :]
            gram = np.einsum("nk,nkd,nke->nde", w, x, x)
            # A little of the trace keeps neighbours that lie in a plane from tilting it.
            gram[:, np.arange(d), np.arange(d)] += 1e-3 * np.trace(gram, axis1=1, axis2=2)[:, None] / d + 1e-300
            slope = np.linalg.solve(gram, np.einsum("nk,nkd,nk->nd", w, x, y - level[:, None])[:, :, None])[:, :, 0]
            found = level - np.einsum("nd,nd->n", slope, mean)
            out[cut] = np.clip(found, y.min(axis=1), y.max(axis=1))
        return out

    def restore(self) -> None:
        """Make what is not kept in a file: the tree to search in."""
        self._tree = cKDTree(self.reference_)

    def predict(self, X: Any) -> Float:
        """Return the predictions, in the unit of the target."""
        return self.predict_columns(self._columns(X))

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows); the same bits for a row wherever it stands."""
        k = min(self.n_neighbors, len(self.reference_))
        points = (columns / self.scale_[:, None]).T
        distance, index = self._tree.query(points, k=[*range(1, k + 1)])
        weight = self.reference_weight_[index]
        if self.weights == "distance":
            with np.errstate(divide="ignore"):
                near = 1.0 / distance
            # At no distance, only the rows that are there count.
            there = np.isinf(near).any(axis=1)
            near[there] = np.isinf(near[there])
            weight = weight * near
        if self.local == "plane":
            return self._planes(points, index, weight)
        return (weight * self.reference_target_[index]).sum(axis=1) / weight.sum(axis=1)


class Cells(NamedTuple):
    """Occupied cells of a grid, sorted: sums of weight, weighted features and weighted target."""

    place: NDArray[np.int64]
    sums: Float


def _cells(block: Block, width: Float, most: int) -> Cells:
    index = np.floor(block.columns / width[:, None]).astype(np.int64).T
    weight = np.ones(len(block)) if block.weight is None else np.asarray(block.weight)
    sums = np.column_stack([weight, (weight * block.columns).T, weight * block.target])
    return _unique(index, sums, most)


def _unique(index: NDArray[np.int64], sums: Float, most: int) -> Cells:
    order = _order(index)
    index, sums = index[order], sums[order]
    starts = np.flatnonzero(np.append(True, (index[1:] != index[:-1]).any(axis=1)))
    if len(starts) > most:
        raise InputError(f"more than {most} cells are occupied: take fewer cells per bandwidth, a wider one, or fewer features")
    return Cells(index[starts], np.add.reduceat(sums, starts))


def _order(index: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return what sorts cells, by one number each where their ranges allow it."""
    least = index.min(axis=0)
    sizes = [int(size) for size in index.max(axis=0) - least + 1]
    if math.prod(sizes) >= 1 << 63:
        return np.lexsort(index.T[::-1])
    key = np.zeros(len(index), np.int64)
    for size, column in zip(sizes, (index - least).T, strict=True):
        key = key * size + column
    return np.argsort(key, kind="stable")


def _merge_cells(a: Cells, b: Cells, most: int) -> Cells:
    return _unique(np.concatenate([a.place, b.place]), np.concatenate([a.sums, b.sums]), most)


class KernelRegression(RegressorMixin, Streamed):
    """Nadaraya and Watson's estimate with a Gaussian kernel, from sums on a grid much finer than the kernel.

    Parameters
    ----------
    bandwidth : float
        Deviation of the kernel, in units of the features' deviations.
    cells : float
        Cells of the grid per bandwidth; each is one point at its mean with its weight.
    most_cells : int
        Most cells that may be occupied.

    Attributes
    ----------
    centres_, cell_weight_, cell_target_, scale_ : ndarray
    """

    def __init__(self, bandwidth: float = 0.2, *, cells: float = 4.0, most_cells: int = 2_000_000) -> None:
        self.bandwidth = bandwidth
        self.cells = cells
        self.most_cells = most_cells

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> KernelRegression:
        """Sum arrays, or `Batches`, on the grid.

        Raises
        ------
        InputError
            If more cells are occupied than may be, as soon as they are.
        """
        batches = self._batches(X, y, sample_weight, supervised=True)
        self.scale_ = _scale(batches) * self.bandwidth
        merge_cells = partial(_merge_cells, most=self.most_cells)
        found = batches.over(_cells, merge_cells, self.scale_ / self.cells, self.most_cells)
        self.cell_weight_ = found.sums[:, 0]
        self.centres_ = found.sums[:, 1:-1] / found.sums[:, :1] / self.scale_
        self.cell_target_ = found.sums[:, -1] / found.sums[:, 0]
        self.restore()
        return self

    def restore(self) -> None:
        """Make what is not kept in a file: the tree to search in."""
        self._tree = cKDTree(self.centres_)

    def predict(self, X: Any) -> Float:
        """Return the predictions, in the unit of the target."""
        return self.predict_columns(self._columns(X))

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows); far from every cell, that of the nearest."""
        points = (columns / self.scale_[:, None]).T
        out = np.empty(len(points))
        nearest = self._tree.query(points)[1]
        counts = self._tree.query_ball_point(points, RADIUS, return_length=True)
        # Cells around some points at a time: of all points of a block they would take gigabytes.
        ends = np.searchsorted(np.cumsum(counts), np.arange(AROUND, counts.sum() + AROUND, AROUND), side="right")
        for some in np.split(np.arange(len(points)), np.unique(ends)):
            for i, around in zip(some, self._tree.query_ball_point(points[some], RADIUS, return_sorted=True), strict=True):
                square = ((self.centres_[around] - points[i]) ** 2).sum(axis=1)
                if len(around) == 0:
                    out[i] = self.cell_target_[nearest[i]]
                    continue
                weight = self.cell_weight_[around] * np.exp(-0.5 * (square - square.min()))
                out[i] = (weight * self.cell_target_[around]).sum() / weight.sum()
        return out
