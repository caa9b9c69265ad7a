"""Centred second moments of many columns in one pass: mergeable, for every group of rows at once, compiled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]

_TILE = 256
_SUMS = {"reassoc", "contract", "nsz"}
"""What the compiler may do to a sum over a tile, so that it uses vector registers; NaN and infinities stay what they are."""


class Moments(NamedTuple):
    """Weight, mean and scatter about the mean of d columns for each of g groups of rows.

    Attributes
    ----------
    rows : ndarray of int64, shape (g,)
        Rows that count.
    weight : ndarray of float64, shape (g,)
        Sum of weights; the number of rows where none are given.
    mean : ndarray of float64, shape (g, d)
        Weighted means, in the units of the columns.
    scatter : ndarray of float64, shape (g, d, d)
        Sums of weighted products of deviations from the means, symmetric.
    """

    rows: Int
    weight: Float
    mean: Float
    scatter: Float

    def of(self, groups: Sequence[int]) -> Moments:
        """Return the moments of some groups together, as one group; merged in the order given."""
        total = empty(1, self.mean.shape[1])
        for group in groups:
            one = slice(group, group + 1)
            total = merge(total, Moments(self.rows[one], self.weight[one], self.mean[one], self.scatter[one]))
        return total


def empty(groups: int, columns: int) -> Moments:
    """Return the moments of no rows."""
    return Moments(
        np.zeros(groups, np.int64), np.zeros(groups), np.zeros((groups, columns)), np.zeros((groups, columns, columns))
    )


@njit(cache=True, nogil=True, fastmath=_SUMS, error_model="numpy")
def _absorb(
    tile: Float, weights: Float, used: int, group: int, rows: Int, weight: Float, mean: Float, scatter: Float, step: Float
) -> None:
    """Merge a tile of rows into a group: two passes over the tile, then the update of Chan, Golub and LeVeque (1983)."""
    d = tile.shape[0]
    total = 0.0
    for i in range(used):
        total += weights[i]
    if total == 0.0:
        return
    before = weight[group]
    share = total / (before + total)
    for j in range(d):
        column, centre = tile[j], 0.0
        for i in range(used):
            centre += weights[i] * column[i]
        centre /= total
        for i in range(used):
            column[i] -= centre
        step[j] = centre - mean[group, j]
    for j in range(d):
        for k in range(j + 1):
            first, second, dot = tile[j], tile[k], 0.0
            for i in range(used):
                dot += weights[i] * first[i] * second[i]
            scatter[group, j, k] += dot + step[j] * step[k] * before * share
    for j in range(d):
        mean[group, j] += step[j] * share
    rows[group] += used
    weight[group] = before + total


@njit(cache=True, nogil=True)
def _moments(columns: Float, last: Float, group: Int, weights: Float, groups: int) -> tuple[Int, Float, Float, Float]:
    n = columns.shape[1]
    d = columns.shape[0] + (len(last) > 0)
    rows, weight = np.zeros(groups, np.int64), np.zeros(groups)
    mean, scatter = np.zeros((groups, d)), np.zeros((groups, d, d))
    tile, tile_weights, step = np.empty((d, _TILE)), np.ones(_TILE), np.empty(d)
    # About a tile of each group at a time: its rows are picked column by column while all are near.
    run = min(n, _TILE * groups)
    order, ends = np.empty(run, np.int64), np.zeros(groups, np.int64)
    for start in range(0, n, run):
        stop = min(n, start + run)
        if len(group) == 0:
            ends[0] = stop - start
            for i in range(start, stop):
                order[i - start] = i
        else:
            ends[:] = 0
            for i in range(start, stop):
                ends[group[i]] += 1
            total = 0
            for g in range(groups):
                total, ends[g] = total + ends[g], total
            for i in range(start, stop):
                order[ends[group[i]]] = i
                ends[group[i]] += 1
        first = 0
        for g in range(groups):
            while first < ends[g]:
                used = min(_TILE, ends[g] - first)
                for j in range(d):
                    column = columns[j] if j < columns.shape[0] else last
                    for i in range(used):
                        tile[j, i] = column[order[first + i]]
                if len(weights) > 0:
                    for i in range(used):
                        tile_weights[i] = weights[order[first + i]]
                _absorb(tile, tile_weights, used, g, rows, weight, mean, scatter, step)
                first += used
    for g in range(groups):
        for j in range(d):
            for k in range(j):
                scatter[g, k, j] = scatter[g, j, k]
    return rows, weight, mean, scatter


_NONE_INT, _NONE = np.empty(0, np.int64), np.empty(0)


def moments(
    columns: Float, group: Int | None = None, weights: Float | None = None, *, groups: int = 1, last: Float | None = None
) -> Moments:
    """Return the second moments of each group of rows, in one pass.

    Parameters
    ----------
    columns : ndarray of float64, shape (d, n)
        Values without NaN, each column contiguous.
    group : ndarray of int64, shape (n,), optional
        Group of each row, in [0, groups); by default all rows are one.
    weights : ndarray of float64, shape (n,), optional
        Not negative.
    last : ndarray of float64, shape (n,), optional
        One more column behind them, such as a target, so that nobody copies all to append it.
    """
    columns = np.ascontiguousarray(columns, dtype=np.float64)
    extra = _NONE if last is None else np.ascontiguousarray(last, dtype=np.float64)
    group, weights = _NONE_INT if group is None else group, _NONE if weights is None else weights
    return Moments(*_moments(columns, extra, group, weights, groups))


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of two disjoint sets of rows together (Pébay 2008)."""
    weight = a.weight + b.weight
    share = np.divide(b.weight, weight, out=np.zeros_like(weight), where=weight > 0)
    step = b.mean - a.mean
    outer = step[:, :, None] * step[:, None, :] * (a.weight * share)[:, None, None]
    return Moments(a.rows + b.rows, weight, a.mean + step * share[:, None], a.scatter + b.scatter + outer)


CONSTANT = 1e-12
"""Share of a column's mean below which its deviation is taken for rounding."""


def deviations(part: Moments) -> Float:
    """Return the deviation of each column of a single group; 0 for a column that is constant but for rounding."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.sqrt(np.diag(part.scatter[0]) / part.weight[0])
    return np.where(found > CONSTANT * np.abs(part.mean[0]), found, 0.0)


def scales(part: Moments) -> Float:
    """Return what to divide each column of a single group by: its deviation, 1 if it is constant."""
    found = deviations(part)
    return np.where(found > 0, found, 1.0)


def covariance(part: Moments, ddof: float = 1.0) -> Any:
    """Return mean and covariance of a single group; NaN with no more weight than ``ddof``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return part.mean[0], part.scatter[0] / (part.weight[0] - ddof)
