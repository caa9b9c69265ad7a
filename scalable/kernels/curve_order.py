"""Statistics of light curves that sort: every curve is sorted once, and quantiles, deviations and ranges are read off."""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scalable.kernels.statistic import VECTOR, Float, Offsets, Statistic

PERCENTILES = (5, 25, 50, 75, 95)
MEDIAN, MAD, ROMS = 2, 5, 6
"""Columns of what `order_statistics` returns, after and among the `PERCENTILES`."""
_WIDTH_STEP = 8


def sort_curves(values: Float, offsets: Offsets) -> Float:
    """Return the values, sorted within each light curve.

    Curves of about the same length stand in one matrix, the rest of each row infinite, whose rows NumPy sorts with the vector
    instructions of the machine (measured: 3 to 5 ns a value, a compiled quicksort curve by curve 50).
    """
    lengths = np.diff(offsets)
    widths = np.where(lengths > 1, -(-lengths // _WIDTH_STEP) * _WIDTH_STEP, 0)
    out = values.copy()
    for width in (np.flatnonzero(np.bincount(widths)[1:]) + 1).tolist():
        mine = np.flatnonzero(widths == width)
        rows = np.empty((len(mine), width))
        _fill_rows(values, offsets, mine, rows)
        rows.sort(axis=1)
        _empty_rows(rows, offsets, mine, out)
    return out


@njit(cache=True, nogil=True)
def _fill_rows(values: Float, offsets: Offsets, curves: NDArray[np.int64], rows: Float) -> None:
    for k in range(len(curves)):
        curve = values[offsets[curves[k]] : offsets[curves[k] + 1]]
        rows[k, : len(curve)] = curve
        rows[k, len(curve) :] = np.inf


@njit(cache=True, nogil=True)
def _empty_rows(rows: Float, offsets: Offsets, curves: NDArray[np.int64], out: Float) -> None:
    for k in range(len(curves)):
        start, stop = offsets[curves[k]], offsets[curves[k] + 1]
        out[start:stop] = rows[k, : stop - start]


@njit(cache=True, nogil=True, inline="always")
def _quantile(ordered: Float, share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    low, high = ordered[below], ordered[min(below + 1, len(ordered) - 1)]
    return low + (high - low) * (place - below)


@njit(cache=True, nogil=True, inline="always")
def _median_deviation(ordered: Float, median: float) -> float:
    """Return the median distance of two sorted values or more from their median.

    The distances grow to both sides of it: of the lower half of all, as many lie to the left as a binary search says.
    """
    n = len(ordered)
    left, right, half = (n - 1) // 2, (n - 1) // 2 + 1, n // 2
    least, most = max(0, half - (n - right)), min(half, left + 1)
    while least < most:
        middle = (least + most) // 2
        if median - ordered[left - middle] < ordered[right + half - 1 - middle] - median:
            least = middle + 1
        else:
            most = middle
    before, after = left - least, right + half - least
    deviation = np.inf if before < 0 else median - ordered[before]
    if after < n:
        deviation = min(deviation, ordered[after] - median)
    if n % 2:
        return deviation
    lower = median - ordered[before + 1] if least > 0 else 0.0
    if half > least:
        lower = max(lower, ordered[after - 1] - median)
    return (lower + deviation) / 2


@njit(cache=True, nogil=True, error_model="numpy", fastmath=VECTOR)
def _order_statistics(flux: Float, err: Float, ordered: Float, offsets: Offsets, shares: Float) -> Float:
    groups, wanted = len(offsets) - 1, len(shares)
    out = np.full((groups, wanted + 2), np.nan)
    for g in range(groups):
        start, stop = offsets[g], offsets[g + 1]
        x, e, s = flux[start:stop], err[start:stop], ordered[start:stop]
        n = len(x)
        if n == 1:
            out[g, :wanted], out[g, wanted] = x[0], 0.0
        if n < 2:
            continue
        for k in range(wanted):
            out[g, k] = _quantile(s, shares[k])
        median = _quantile(s, 0.5)
        out[g, wanted] = _median_deviation(s, median)
        total = 0.0
        for i in range(n):
            total += abs(x[i] - median) / e[i]
        out[g, wanted + 1] = total / (n - 1)
    return out


def order_statistics(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return what follows from the sorted values of each curve, shape (groups, 7); NaN without points.

    The columns are the `PERCENTILES` (linear between neighbours, the default of NumPy), the median of |F - median|, which is 0
    for a constant source, and the sum of |F - median| / err over n - 1 (Enoch et al. 2003), NaN for a single point.
    """
    return _order_statistics(flux, err, sort_curves(flux, offsets), offsets, np.array(PERCENTILES) / 100)


def column(number: int, found: Float) -> Float:
    """Return one column."""
    return found[:, number]


def interquartile_range(found: Float) -> Float:
    """Return the 75th less the 25th percentile; 0 for a constant source."""
    return found[:, 3] - found[:, 1]


def median_cadence(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return the median time between successive points [d], 0 counted where two share their time; NaN for a single point."""
    between = np.maximum(offsets[1:] - offsets[:-1] - 1, 0)
    ends = np.concatenate([[0], np.cumsum(between)])
    steps = _steps(mjd, offsets, ends)
    return _order_statistics(steps, steps, sort_curves(steps, ends), ends, np.array([0.5]))[:, 0]


@njit(cache=True, nogil=True)
def _steps(mjd: Float, offsets: Offsets, ends: Offsets) -> Float:
    steps = np.empty(ends[-1])
    for g in range(len(offsets) - 1):
        for i in range(offsets[g] + 1, offsets[g + 1]):
            steps[ends[g] + i - offsets[g] - 1] = mjd[i] - mjd[i - 1]
    return steps


def _percentile(number: int) -> Statistic:
    percent = PERCENTILES[number]
    return Statistic(
        f"Percentile{percent:02d}",
        f"{percent}th percentile, linear between neighbours (Hyndman and Fan type 7)",
        partial(column, number),
        "value",
        order_statistics,
        ucd="stat.median" if percent == 50 else "stat.value",
    )


PERCENTILE = {percent: _percentile(number) for number, percent in enumerate(PERCENTILES)}
MAD_OF = Statistic(
    "MAD", "median of |F - median|, not scaled", partial(column, MAD), "value", order_statistics, ucd="stat.stdev;stat.median"
)
IQR = Statistic(
    "IQR",
    "75th less 25th percentile, linear between neighbours",
    interquartile_range,
    "value",
    order_statistics,
    ucd="stat.value",
)
ROMS_OF = Statistic(
    "Roms",
    "sum of |F - median| / err, over n - 1 (robust median statistic)",
    partial(column, ROMS),
    "",
    order_statistics,
    ucd="stat.value",
)
MEDIAN_CADENCE = Statistic(
    "MedianCadence",
    "median time between successive points, of at least two",
    median_cadence,
    "d",
    needs=("flux", "err", "mjd"),
    ucd="time.interval",
)
ORDER = (*PERCENTILE.values(), MAD_OF, IQR, ROMS_OF, MEDIAN_CADENCE)
"""Every statistic of this file, in the order of its definitions."""
