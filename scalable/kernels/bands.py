"""One value per object and band from several epochs: pick a row, or average."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def first_rows(offsets: Int) -> Int:
    """Return the earliest row of each group sorted by time."""
    return offsets[:-1]


def last_rows(offsets: Int) -> Int:
    """Return the latest row of each group sorted by time."""
    return offsets[1:] - 1


@njit(cache=True, nogil=True)
def smallest_rows(values: Float, offsets: Int) -> Int:
    """Return the row with the smallest value of each group; the first on a tie, the first row where every value is NaN."""
    rows = np.empty(len(offsets) - 1, dtype=np.int64)
    for g in range(len(rows)):
        best = offsets[g]
        for i in range(offsets[g] + 1, offsets[g + 1]):
            if values[i] < values[best] or (np.isnan(values[best]) and not np.isnan(values[i])):
                best = i
        rows[g] = best
    return rows


@njit(cache=True, nogil=True)
def means(values: Float, weights: Float, offsets: Int) -> Float:
    """Return the weighted mean of each group, over points with a value and a positive finite weight; NaN without any."""
    out = np.full(len(offsets) - 1, np.nan)
    for g in range(len(out)):
        mean = total = 0.0
        for i in range(offsets[g], offsets[g + 1]):
            if np.isfinite(values[i]) and np.isfinite(weights[i]) and weights[i] > 0.0:
                total += weights[i]
                mean += (values[i] - mean) * (weights[i] / total)
        if total > 0.0:
            out[g] = mean
    return out


@njit(cache=True, nogil=True, error_model="numpy")
def mean_errors(err: Float, offsets: Int) -> Float:
    """Return 1 / sqrt(sum 1/err**2) of each group; NaN without a positive finite error."""
    out = np.full(len(offsets) - 1, np.nan)
    for g in range(len(out)):
        total = 0.0
        for i in range(offsets[g], offsets[g + 1]):
            if np.isfinite(err[i]) and err[i] > 0.0:
                total += 1.0 / (err[i] * err[i])
        if total > 0.0:
            out[g] = 1.0 / np.sqrt(total)
    return out


@njit(cache=True, nogil=True)
def medians(values: Float, offsets: Int) -> Float:
    """Return the median of the finite values of each group; NaN without any."""
    out = np.full(len(offsets) - 1, np.nan)
    for g in range(len(out)):
        group = values[offsets[g] : offsets[g + 1]]
        finite = group[np.isfinite(group)]
        if len(finite):
            out[g] = np.median(finite)
    return out
