"""Statistics of light curves that need each whole curve: deviations from its means, and steps from point to point in time."""

from __future__ import annotations

from functools import partial

import numpy as np
from numba import njit

from scalable.kernels.curve_order import column
from scalable.kernels.curve_sums import M2, MEAN, WEIGHTED_MEAN, moments
from scalable.kernels.statistic import FINITE, VECTOR, Float, Offsets, Statistic

STETSON_ITERATIONS, STETSON_TOLERANCE = 20, 1e-6
LEAST = -np.finfo(np.float64).max


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FINITE)
def _largest(flux: Float, err: Float, offsets: Offsets, centre: Float) -> Float:
    out = np.full(len(centre), np.nan)
    for g in range(len(centre)):
        x, e = flux[offsets[g] : offsets[g + 1]], err[offsets[g] : offsets[g + 1]]
        if len(x) > 1:
            largest = 0.0
            for i in range(len(x)):
                largest = max(largest, abs(x[i] - centre[g]) / e[i])
            out[g] = largest
    return out


def max_deviation(flux: Float, err: Float, mjd: Float, offsets: Offsets, sums: Float) -> Float:
    """Return max |F - plain mean| / err; 0 for a constant source, NaN for fewer than two points."""
    return _largest(flux, err, offsets, sums[:, MEAN])


def weighted_max_deviation(flux: Float, err: Float, mjd: Float, offsets: Offsets, sums: Float) -> Float:
    """Return max |F - weighted mean| / err; 0 for a constant source, NaN for fewer than two points."""
    centre = sums[:, WEIGHTED_MEAN]
    return np.where(np.isnan(centre), np.nan, _largest(flux, err, offsets, np.nan_to_num(centre)))


@njit(cache=True, nogil=True, error_model="numpy", fastmath=VECTOR)
def _deviations(flux: Float, err: Float, offsets: Offsets, sums: Float) -> Float:
    out = np.full((len(sums), 2), np.nan)
    for g in range(len(sums)):
        x, e = flux[offsets[g] : offsets[g + 1]], err[offsets[g] : offsets[g + 1]]
        n = len(x)
        if n < 2:
            continue
        mean, weighted_mean, sigma = sums[g, 1], sums[g, 4], np.sqrt(sums[g, 2] / (n - 1))
        total = beyond = 0.0
        for i in range(n):
            beyond += 1.0 if abs(x[i] - mean) > sigma else 0.0
            total += abs(x[i] - weighted_mean) / e[i]
        # By Cauchy and Schwarz it is at most 1; 0 / 0 of a constant source stays NaN.
        out[g, 0], out[g, 1] = beyond / n, total / np.sqrt(n * sums[g, 5])
    return out


def deviations(flux: Float, err: Float, mjd: Float, offsets: Offsets, sums: Float) -> Float:
    """Return what follows from the distances to the means, shape (groups, 2); NaN for fewer than two points.

    The columns are the share of points further from the mean than one standard deviation, 0 for a constant source, and Stetson's
    K (Stetson 1996): mean |d| over root mean d**2 of the residuals d = (F - weighted mean) / err, 0.798 for a Gaussian, 0.900
    for a sine, NaN for a constant source.
    """
    return _deviations(flux, err, offsets, sums)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=VECTOR)
def _von_neumann(flux: Float, offsets: Offsets, sums: Float) -> Float:
    out = np.full(len(sums), np.nan)
    for g in range(len(sums)):
        x = flux[offsets[g] : offsets[g + 1]]
        squares = 0.0
        for i in range(len(x) - 1):
            squares += (x[i + 1] - x[i]) * (x[i + 1] - x[i])
        if len(x) > 1:
            out[g] = squares / sums[g, 2]
    return out


def von_neumann(flux: Float, err: Float, mjd: Float, offsets: Offsets, sums: Float) -> Float:
    """Return von Neumann's ratio, sum (F[i+1] - F[i])**2 / (n - 1) over the variance (von Neumann 1941), ddof 1.

    NaN for a constant source or fewer than two points.
    """
    return _von_neumann(flux, offsets, sums)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=FINITE)
def _slopes(flux: Float, mjd: Float, offsets: Offsets) -> Float:
    out = np.zeros((len(offsets) - 1, 3))
    for g in range(len(out)):
        x, t = flux[offsets[g] : offsets[g + 1]], mjd[offsets[g] : offsets[g + 1]]
        if len(x) < 2:
            continue
        squares, steepest = 0.0, LEAST
        for i in range(len(x) - 1):
            wait = t[i + 1] - t[i]
            slope = (x[i + 1] - x[i]) / (wait if wait > 0.0 else 1.0)
            squares += slope * slope if wait > 0.0 else 0.0
            steepest = max(steepest, slope if wait > 0.0 else LEAST)
        out[g, 0], out[g, 1], out[g, 2] = squares, steepest, t[len(t) - 1] - t[0]
    return out


def slopes(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return the sum of squared slopes between successive points, the largest one, and the time span, shape (groups, 3).

    Points at one time have no slope between them. The span is 0 where there is none at all.
    """
    return _slopes(flux, mjd, offsets)


def max_slope(found: Float) -> Float:
    """Return the largest slope, with its sign; 0 for a constant source, NaN where all points have one time."""
    return np.where(found[:, 2] > 0, found[:, 1], np.nan)


def eta_e(flux: Float, err: Float, mjd: Float, offsets: Offsets, sums: Float) -> Float:
    """Return von Neumann's ratio of slopes in time, times span**2 / (n - 1)**2 (Kim et al. 2014).

    NaN for a constant source and where all points have one time.
    """
    found, m2, n = _slopes(flux, mjd, offsets), sums[:, M2], np.diff(offsets)
    some = (found[:, 2] > 0) & (m2 > 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(some, found[:, 0] * found[:, 2] ** 2 / ((n - 1.0) ** 2 * m2), np.nan)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=VECTOR)
def stetson_means(flux: Float, err: Float, offsets: Offsets) -> Float:
    """Return Stetson's re-weighted mean of each curve (Stetson 1996); NaN for fewer than two points.

    From the weighted mean on, weights 1/err**2 are divided by 1 + (|d| / 2)**2 with d = sqrt(n/(n-1)) (F - mean)/err, until the
    mean moves by less than `STETSON_TOLERANCE` of the typical error sqrt(n / sum 1/err**2), at most `STETSON_ITERATIONS` times.
    """
    groups = len(offsets) - 1
    out = np.full(groups, np.nan)
    inverse = np.empty(len(flux))
    for g in range(groups):
        x, e, s = (flux[offsets[g] : offsets[g + 1]], err[offsets[g] : offsets[g + 1]], inverse[offsets[g] : offsets[g + 1]])
        n = len(x)
        if n < 2:
            continue
        weight = weighted = 0.0
        for i in range(n):
            s[i] = 1.0 / e[i]
            weight += s[i] * s[i]
            weighted += s[i] * s[i] * (x[i] - x[0])
        quarter, enough = n / (n - 1.0) / 4.0, STETSON_TOLERANCE * np.sqrt(n / weight)
        mean = weighted / weight
        for _ in range(STETSON_ITERATIONS):
            weight = weighted = 0.0
            for i in range(n):
                step = x[i] - x[0]
                distance = (step - mean) * s[i]
                w = s[i] * s[i] / (1.0 + quarter * distance * distance)
                weight += w
                weighted += w * step
            moved = abs(weighted / weight - mean)
            mean = weighted / weight
            if moved < enough:
                break
        out[g] = x[0] + mean
    return out


@njit(cache=True, nogil=True, error_model="numpy", fastmath=VECTOR)
def _stetson_j(flux: Float, err: Float, offsets: Offsets, centre: Float) -> Float:
    out = np.full(len(centre), np.nan)
    for g in range(len(centre)):
        x, e = flux[offsets[g] : offsets[g + 1]], err[offsets[g] : offsets[g + 1]]
        n = len(x)
        if n < 2:
            continue
        total = 0.0
        for i in range(n):
            distance = (x[i] - centre[g]) / e[i]
            excess = distance * distance * (n / (n - 1.0)) - 1.0
            root = np.sqrt(abs(excess))
            total += np.copysign(root, excess)
        out[g] = total / n
    return out


def stetson_j(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return Stetson's J of single observations about his re-weighted mean; -1 for a constant source.

    Mean of sgn(P) sqrt|P| with P = d**2 - 1, d = sqrt(n/(n-1)) (F - mean)/err (Stetson 1996); NaN for fewer than two points.
    """
    return _stetson_j(flux, err, offsets, stetson_means(flux, err, offsets))


_TIMED = ("flux", "err", "mjd")
MAX_DEVIATION = Statistic(
    "MaxDeviation", "largest |F - plain mean| / err, of at least two points", max_deviation, ucd="stat.max", uses=moments
)
WEIGHTED_MAX_DEVIATION = Statistic(
    "WeightedMaxDeviation",
    "largest |F - weighted mean| / err, of at least two points",
    weighted_max_deviation,
    ucd="stat.max",
    uses=moments,
)
BEYOND_ONE_SIGMA = Statistic(
    "BeyondOneSigma",
    "share of points further from the plain mean than the standard deviation (ddof 1)",
    partial(column, 0),
    "",
    deviations,
    ucd="stat.value",
    uses=moments,
)
STETSON_K = Statistic(
    "StetsonK",
    "mean |d| / sqrt(mean d^2) of d = (F - weighted mean) / err, of at least two points",
    partial(column, 1),
    "",
    deviations,
    ucd="stat.value",
    uses=moments,
)
VON_NEUMANN = Statistic(
    "VonNeumann",
    "sum of squared steps between successive points over n - 1, over the variance (ddof 1)",
    von_neumann,
    needs=_TIMED,
    ucd="stat.value",
    uses=moments,
)
ETA_E = Statistic(
    "EtaE",
    "span^2 / (n - 1)^3 times the sum of squared slopes between successive points, over the variance (ddof 1)",
    eta_e,
    needs=_TIMED,
    ucd="stat.value",
    uses=moments,
)
MAX_SLOPE = Statistic(
    "MaxSlope",
    "largest slope between successive points, signed; pairs at one time do not count",
    max_slope,
    "value/d",
    slopes,
    needs=_TIMED,
    ucd="stat.max",
)
STETSON_J = Statistic(
    "StetsonJ",
    "mean of sgn(P) sqrt|P|, P = d^2 - 1, d = sqrt(n/(n-1)) (F - mean)/err about Stetson's re-weighted mean (alpha 2, beta 2)",
    stetson_j,
    ucd="stat.value",
)
SERIES = (MAX_DEVIATION, WEIGHTED_MAX_DEVIATION, BEYOND_ONE_SIGMA, STETSON_K, VON_NEUMANN, ETA_E, MAX_SLOPE, STETSON_J)
"""Every statistic of this file, in the order of its definitions."""
