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
def _moments(columns: Float, group: Int, weights: Float, groups: int) -> tuple[Int, Float, Float, Float]:
    d, n = columns.shape
    rows, weight = np.zeros(groups, np.int64), np.zeros(groups)
    mean, scatter = np.zeros((groups, d)), np.zeros((groups, d, d))
    tiles, tile_weights, used = np.empty((groups, d, _TILE)), np.ones((groups, _TILE)), np.zeros(groups, np.int64)
    step = np.empty(d)
    weighted, grouped = len(weights) > 0, len(group) > 0
    for start in range(0, n, _TILE):
        stop = min(n, start + _TILE)
        if grouped:
            for i in range(start, stop):
                g = group[i]
                for j in range(d):
                    tiles[g, j, used[g]] = columns[j, i]
                if weighted:
                    tile_weights[g, used[g]] = weights[i]
                used[g] += 1
                if used[g] == _TILE:
                    _absorb(tiles[g], tile_weights[g], _TILE, g, rows, weight, mean, scatter, step)
                    used[g] = 0
        else:
            for j in range(d):
                tiles[0, j, : stop - start] = columns[j, start:stop]
            if weighted:
                tile_weights[0, : stop - start] = weights[start:stop]
            _absorb(tiles[0], tile_weights[0], stop - start, 0, rows, weight, mean, scatter, step)
    for g in range(groups):
        if used[g]:
            _absorb(tiles[g], tile_weights[g], used[g], g, rows, weight, mean, scatter, step)
        for j in range(d):
            for k in range(j):
                scatter[g, k, j] = scatter[g, j, k]
    return rows, weight, mean, scatter


_NONE_INT, _NONE = np.empty(0, np.int64), np.empty(0)


def moments(columns: Float, group: Int | None = None, weights: Float | None = None, *, groups: int = 1) -> Moments:
    """Return the second moments of each group of rows, in one pass.

    Parameters
    ----------
    columns : ndarray of float64, shape (d, n)
        Values without NaN, each column contiguous.
    group : ndarray of int64, shape (n,), optional
        Group of each row, in [0, groups); by default all rows are one.
    weights : ndarray of float64, shape (n,), optional
        Not negative.
    """
    columns = np.ascontiguousarray(columns, dtype=np.float64)
    return Moments(*_moments(columns, _NONE_INT if group is None else group, _NONE if weights is None else weights, groups))


def merge(a: Moments, b: Moments) -> Moments:
    """Return the moments of two disjoint sets of rows together (Pébay 2008)."""
    weight = a.weight + b.weight
    share = np.divide(b.weight, weight, out=np.zeros_like(weight), where=weight > 0)
    step = b.mean - a.mean
    outer = step[:, :, None] * step[:, None, :] * (a.weight * share)[:, None, None]
    return Moments(a.rows + b.rows, weight, a.mean + step * share[:, None], a.scatter + b.scatter + outer)


def covariance(part: Moments, ddof: float = 1.0) -> Any:
    """Return mean and covariance of a single group; NaN with no more weight than ``ddof``."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return part.mean[0], part.scatter[0] / (part.weight[0] - ddof)
