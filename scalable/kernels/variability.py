"""Statistics of light curves: compiled passes over slices of flat arrays, and the declarations that name them."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scalable.kernels.statistic import Float, Offsets, Statistic

N, MEAN, M2, WEIGHT, WEIGHTED_MEAN, WEIGHTED_M2 = range(6)
"""Columns of the partial sums that `moments` returns."""


@njit(cache=True, nogil=True, error_model="numpy")
def _counts(flux: float, err: float) -> bool:
    return bool(np.isfinite(flux) and np.isfinite(err) and err > 0.0)


@njit(cache=True, nogil=True, error_model="numpy")
def _moments(flux: Float, err: Float, offsets: Offsets) -> Float:
    groups = len(offsets) - 1
    out = np.zeros((groups, 6))
    for g in range(groups):
        n = 0
        mean = m2 = weight = weighted_mean = weighted_m2 = 0.0
        for i in range(offsets[g], offsets[g + 1]):
            if not _counts(flux[i], err[i]):
                continue
            # Running means: no cancellation however large the mean is against the scatter (Welford 1962, West 1979).
            n += 1
            step = flux[i] - mean
            mean += step / n
            m2 += step * step * ((n - 1) / n)
            w = 1.0 / (err[i] * err[i])
            before, weight = weight, weight + w
            step = flux[i] - weighted_mean
            weighted_mean += step * (w / weight)
            weighted_m2 += w * step * step * (before / weight)
        out[g, 0], out[g, 1], out[g, 2], out[g, 3], out[g, 4], out[g, 5] = n, mean, m2, weight, weighted_mean, weighted_m2
    return out


def moments(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return count, mean, sum of squares about it, and the same weighted by 1/err**2, shape (groups, 6)."""
    return _moments(flux, err, offsets)


def merge_moments(a: Float, b: Float) -> Float:
    """Return the moments of two disjoint sets of points together (Chan, Golub and LeVeque 1983)."""
    out = np.empty_like(a)
    for count, mean, square in ((N, MEAN, M2), (WEIGHT, WEIGHTED_MEAN, WEIGHTED_M2)):
        total = a[:, count] + b[:, count]
        share = np.divide(b[:, count], total, out=np.zeros_like(total), where=total > 0)
        step = b[:, mean] - a[:, mean]
        out[:, count] = total
        out[:, mean] = a[:, mean] + step * share
        out[:, square] = a[:, square] + b[:, square] + step * step * a[:, count] * share
    return out


def _at_least(points: int, sums: Float, values: Float) -> Float:
    return np.where(sums[:, N] >= points, values, np.nan)


def ndata(sums: Float) -> Float:
    """Return the number of points that count."""
    return sums[:, N]


def mean(sums: Float) -> Float:
    """Return the inverse-variance weighted mean; the value itself for a constant source."""
    return _at_least(1, sums, sums[:, WEIGHTED_MEAN])


def mean_err(sums: Float) -> Float:
    """Return the standard error of the weighted mean, 1 / sqrt(sum 1/err**2)."""
    with np.errstate(divide="ignore"):
        return _at_least(1, sums, 1.0 / np.sqrt(sums[:, WEIGHT]))


def sigma(sums: Float) -> Float:
    """Return the standard deviation about the plain mean with n - 1 in the denominator; 0 for a constant source."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return _at_least(2, sums, np.sqrt(sums[:, M2] / (sums[:, N] - 1)))


def chi2(sums: Float) -> Float:
    """Return chi square about the weighted mean, not reduced; 0 for a constant source or a single point."""
    return _at_least(1, sums, sums[:, WEIGHTED_M2])


@njit(cache=True, nogil=True, error_model="numpy")
def _max_deviation(flux: Float, err: Float, offsets: Offsets, centre: NDArray[np.float64]) -> Float:
    groups = len(offsets) - 1
    out = np.full(groups, np.nan)
    for g in range(groups):
        n = 0
        largest = 0.0
        for i in range(offsets[g], offsets[g + 1]):
            if _counts(flux[i], err[i]):
                n += 1
                largest = max(largest, abs(flux[i] - centre[g]) / err[i])
        if n >= 2:
            out[g] = largest
    return out


def max_deviation(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return max |F - plain mean| / err; 0 for a constant source, NaN for fewer than two points."""
    return _max_deviation(flux, err, offsets, _moments(flux, err, offsets)[:, MEAN])


def weighted_max_deviation(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return max |F - weighted mean| / err; 0 for a constant source, NaN for fewer than two points."""
    return _max_deviation(flux, err, offsets, _moments(flux, err, offsets)[:, WEIGHTED_MEAN])


NDATA = Statistic("Ndata", "number of points with finite flux and positive error", ndata, "", moments, merge_moments, True)
MEAN_FLUX = Statistic("Mean", "inverse-variance weighted mean", mean, "value", moments, merge_moments)
MEAN_ERR = Statistic(
    "MeanErr", "standard error of the weighted mean, 1/sqrt(sum 1/err^2)", mean_err, "value", moments, merge_moments
)
SIGMA = Statistic("Sigma", "standard deviation about the plain mean, ddof 1", sigma, "value", moments, merge_moments)
CHI2 = Statistic("Chi2", "chi square about the weighted mean, not reduced", chi2, "", moments, merge_moments)
MAX_DEVIATION = Statistic("MaxDeviation", "largest |F - plain mean| / err, of at least two points", max_deviation)
WEIGHTED_MAX_DEVIATION = Statistic(
    "WeightedMaxDeviation", "largest |F - weighted mean| / err, of at least two points", weighted_max_deviation
)

DEFAULT = (NDATA, MEAN_FLUX, MEAN_ERR, SIGMA, CHI2, MAX_DEVIATION)
ALL = {statistic.name: statistic for statistic in (*DEFAULT, WEIGHTED_MAX_DEVIATION)}
