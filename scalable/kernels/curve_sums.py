"""Statistics of light curves that merge: sums about a stable origin, made in compiled passes over slices of flat arrays.

Each curve is summed twice while it is in the cache: about its first point, which gives the means, then about the means. So
nothing cancels however large the mean is against the scatter, and a constant is exact.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numba import njit
from scipy.special import gammaincc

from scalable.kernels.statistic import FINITE, VECTOR, Float, Offsets, Statistic

N, MEAN, M2, WEIGHT, WEIGHTED_MEAN, WEIGHTED_M2, WEIGHT_SQUARE, ERR_MEAN, ERR_SQUARE = range(9)
"""Columns of the partial sums that `moments` returns."""
M3, M4 = 3, 4
"""Further columns of the partial sums that `higher_moments` returns, after `N`, `MEAN` and `M2`."""


@njit(cache=True, nogil=True, error_model="numpy", fastmath=VECTOR)
def _moments(flux: Float, err: Float, offsets: Offsets) -> Float:
    groups = len(offsets) - 1
    out = np.zeros((groups, 9))
    for g in range(groups):
        x, e = flux[offsets[g] : offsets[g + 1]], err[offsets[g] : offsets[g + 1]]
        n = len(x)
        if n == 0:
            continue
        total = weighted = weight = weight_square = errors = err_square = 0.0
        for i in range(n):
            step, square = x[i] - x[0], e[i] * e[i]
            w = 1.0 / square
            total += step
            weight += w
            weighted += w * step
            weight_square += w * w
            errors += e[i] - e[0]
            err_square += square
        mean, weighted_mean = total / n, weighted / weight
        m2 = weighted_m2 = 0.0
        for i in range(n):
            step = x[i] - x[0]
            m2 += (step - mean) * (step - mean)
            weighted_m2 += (step - weighted_mean) * (step - weighted_mean) / (e[i] * e[i])
        out[g, 0], out[g, 1], out[g, 2] = n, x[0] + mean, m2
        out[g, 3], out[g, 4], out[g, 5] = weight, x[0] + weighted_mean, weighted_m2
        out[g, 6], out[g, 7], out[g, 8] = weight_square, e[0] + errors / n, err_square
    return out


def moments(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return the sums about the mean and about the mean weighted by 1/err**2, shape (groups, 9).

    The columns are count, mean, sum of squares about it; sum of weights, weighted mean, weighted sum of squares about that;
    sum of squared weights; mean error, sum of squared errors.
    """
    return _moments(flux, err, offsets)


def merge_moments(a: Float, b: Float) -> Float:
    """Return the moments of two disjoint sets of points together (Chan, Golub and LeVeque 1983)."""
    out = a + b
    for count, mean, square in ((N, MEAN, M2), (WEIGHT, WEIGHTED_MEAN, WEIGHTED_M2)):
        out[:, mean], step, share = _merged_mean(a, b, count, mean)
        out[:, square] += step * step * a[:, count] * share
    out[:, ERR_MEAN], _, _ = _merged_mean(a, b, N, ERR_MEAN)
    return out


def _merged_mean(a: Float, b: Float, count: int, mean: int) -> tuple[Float, Float, Float]:
    """Return the mean of two parts together, the step from the first to the second, and the share of the second."""
    total = a[:, count] + b[:, count]
    share = np.divide(b[:, count], total, out=np.zeros_like(total), where=total > 0)
    step = b[:, mean] - a[:, mean]
    return a[:, mean] + step * share, step, share


def at_least(points: int, sums: Float, values: Float) -> Float:
    """Return the values, NaN where fewer points count."""
    return np.where(sums[:, N] >= points, values, np.nan)


def ndata(sums: Float) -> Float:
    """Return the number of points that count."""
    return sums[:, N]


def mean(sums: Float) -> Float:
    """Return the inverse-variance weighted mean; the value itself for a constant source."""
    return at_least(1, sums, sums[:, WEIGHTED_MEAN])


def mean_err(sums: Float) -> Float:
    """Return the standard error of the weighted mean, 1 / sqrt(sum 1/err**2)."""
    with np.errstate(divide="ignore"):
        return at_least(1, sums, 1.0 / np.sqrt(sums[:, WEIGHT]))


def sigma(sums: Float) -> Float:
    """Return the standard deviation about the plain mean with n - 1 in the denominator; 0 for a constant source."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return at_least(2, sums, np.sqrt(sums[:, M2] / (sums[:, N] - 1)))


def err_mean(sums: Float) -> Float:
    """Return the mean of the errors."""
    return at_least(1, sums, sums[:, ERR_MEAN])


def chi2(sums: Float) -> Float:
    """Return chi square about the weighted mean, not reduced; 0 for a constant source or a single point."""
    return at_least(1, sums, sums[:, WEIGHTED_M2])


def reduced_chi2(sums: Float) -> Float:
    """Return chi square about the weighted mean over n - 1; 0 for a constant source."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return at_least(2, sums, sums[:, WEIGHTED_M2] / (sums[:, N] - 1))


def chi2_p_value(sums: Float) -> Float:
    """Return the probability of a larger chi square from errors alone, n - 1 degrees of freedom; 1 for a constant source."""
    return at_least(2, sums, gammaincc(np.maximum(sums[:, N] - 1, 1) / 2, sums[:, WEIGHTED_M2] / 2))


def weighted_std(sums: Float) -> Float:
    """Return the weighted standard deviation, unbiased for weights w = 1/err**2 (Sokolovsky et al. 2017, eq. 2).

    sqrt(W / (W**2 - sum w**2) sum w (F - weighted mean)**2) with W = sum w; for equal errors this is `sigma`. 0 for a constant.
    """
    weight = sums[:, WEIGHT]
    with np.errstate(divide="ignore", invalid="ignore"):
        return at_least(2, sums, np.sqrt(weight / (weight**2 - sums[:, WEIGHT_SQUARE]) * sums[:, WEIGHTED_M2]))


def excess_variance(sums: Float) -> Float:
    """Return the variance (ddof 1) less the mean squared error (Nandra et al. 1997); negative where errors explain more."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return at_least(2, sums, sums[:, M2] / (sums[:, N] - 1) - sums[:, ERR_SQUARE] / sums[:, N])


def normalised_excess_variance(sums: Float) -> Float:
    """Return the excess variance over the squared plain mean (Vaughan et al. 2003); NaN for a mean of zero."""
    square = sums[:, MEAN] ** 2
    return np.divide(excess_variance(sums), square, out=np.full(len(sums), np.nan), where=square > 0)


@njit(cache=True, nogil=True, error_model="numpy", fastmath=VECTOR)
def _higher_moments(flux: Float, offsets: Offsets) -> Float:
    groups = len(offsets) - 1
    out = np.zeros((groups, 5))
    for g in range(groups):
        x = flux[offsets[g] : offsets[g + 1]]
        if len(x) == 0:
            continue
        total = 0.0
        for i in range(len(x)):
            total += x[i] - x[0]
        mean = total / len(x)
        m2 = m3 = m4 = 0.0
        for i in range(len(x)):
            step = x[i] - x[0] - mean
            m2 += step * step
            m3 += step * step * step
            m4 += step * step * step * step
        out[g, 0], out[g, 1], out[g, 2], out[g, 3], out[g, 4] = len(x), x[0] + mean, m2, m3, m4
    return out


def higher_moments(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return count, mean, and the sums of second, third and fourth powers about it, shape (groups, 5)."""
    return _higher_moments(flux, offsets)


def merge_higher_moments(a: Float, b: Float) -> Float:
    """Return the moments of two disjoint sets of points together (Pébay 2008, eq. 3.1)."""
    out = a + b
    na = a[:, N]
    out[:, MEAN], step, share = _merged_mean(a, b, N, MEAN)
    part = 1 - share
    out[:, M2] += step**2 * na * share
    out[:, M3] += step**3 * na * share * (part - share) + 3 * step * (part * b[:, M2] - share * a[:, M2])
    out[:, M4] += step**4 * na * share * (part**2 - part * share + share**2) + 6 * step**2 * (
        part**2 * b[:, M2] + share**2 * a[:, M2]
    )
    out[:, M4] += 4 * step * (part * b[:, M3] - share * a[:, M3])
    return out


def skew(sums: Float) -> Float:
    """Return the unbiased sample skewness G1 (Joanes and Gill 1998); NaN for a constant source or fewer than three points."""
    n, m2 = sums[:, N], sums[:, M2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return at_least(3, sums, n * np.sqrt(n - 1) / (n - 2) * sums[:, M3] / m2**1.5)


def kurtosis(sums: Float) -> Float:
    """Return the unbiased excess kurtosis G2 (Joanes and Gill 1998); NaN for a constant source or fewer than four points."""
    n, m2 = sums[:, N], sums[:, M2]
    with np.errstate(divide="ignore", invalid="ignore"):
        fourth = n * (n + 1) * (n - 1) * sums[:, M4] / m2**2
        return at_least(4, sums, (fourth - 3 * (n - 1) ** 2) / ((n - 2) * (n - 3)))


@njit(cache=True, nogil=True, fastmath=FINITE)
def _extremes(flux: Float, offsets: Offsets) -> Float:
    groups = len(offsets) - 1
    out = np.full((groups, 2), np.nan)
    for g in range(groups):
        x = flux[offsets[g] : offsets[g + 1]]
        if len(x):
            least = most = x[0]
            for i in range(len(x)):
                least = min(least, x[i])
                most = max(most, x[i])
            out[g, 0], out[g, 1] = least, most
    return out


def extremes(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return the smallest and the largest value, shape (groups, 2); NaN without points."""
    return _extremes(flux, offsets)


def time_span(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return the first and the last time of each curve [d], shape (groups, 2); NaN without points."""
    ends = np.full((len(offsets) - 1, 2), np.nan)
    some = np.diff(offsets) > 0
    ends[some, 0], ends[some, 1] = mjd[offsets[:-1][some]], mjd[offsets[1:][some] - 1]
    return ends


def merge_ends(a: Float, b: Float) -> Float:
    """Return the lesser of the first and the greater of the second column of two parts."""
    return np.column_stack([np.fmin(a[:, 0], b[:, 0]), np.fmax(a[:, 1], b[:, 1])])


def first_of(ends: Float) -> Float:
    """Return the lower end."""
    return ends[:, 0]


def last_of(ends: Float) -> Float:
    """Return the upper end."""
    return ends[:, 1]


def between(ends: Float) -> Float:
    """Return the distance between the ends; 0 for a single point."""
    return ends[:, 1] - ends[:, 0]


def half_between(ends: Float) -> Float:
    """Return half the distance between the ends; 0 for a constant source."""
    return between(ends) / 2


TIME_MEAN, FLUX_MEAN, TIME_M2, TIME_FLUX = 2, 3, 4, 5
"""Columns of the partial sums that `line_sums` returns, after count and sum of weights."""


@njit(cache=True, nogil=True, error_model="numpy", fastmath=VECTOR)
def _line_sums(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    groups = len(offsets) - 1
    out = np.zeros((groups, 6))
    for g in range(groups):
        start, stop = offsets[g], offsets[g + 1]
        x, e, t = flux[start:stop], err[start:stop], mjd[start:stop]
        if len(x) == 0:
            continue
        weight = weighted = timed = 0.0
        for i in range(len(x)):
            w = 1.0 / (e[i] * e[i])
            weight += w
            weighted += w * (x[i] - x[0])
            timed += w * (t[i] - t[0])
        mean, time = weighted / weight, timed / weight
        square = product = 0.0
        for i in range(len(x)):
            after = t[i] - t[0] - time
            w = 1.0 / (e[i] * e[i])
            square += w * after * after
            product += w * after * (x[i] - x[0] - mean)
        out[g, 0], out[g, 1], out[g, 2], out[g, 3] = len(x), weight, t[0] + time, x[0] + mean
        out[g, 4], out[g, 5] = square, product
    return out


def line_sums(flux: Float, err: Float, mjd: Float, offsets: Offsets) -> Float:
    """Return count, sum of weights 1/err**2, weighted means of time and flux, and weighted sums about them, shape (groups, 6).

    The last two columns are the sums of squared times and of times times flux.
    """
    return _line_sums(flux, err, mjd, offsets)


def merge_line_sums(a: Float, b: Float) -> Float:
    """Return the sums of two disjoint sets of points together (Chan, Golub and LeVeque 1983, for a product of two variables)."""
    out = a + b
    weight = 1
    out[:, TIME_MEAN], time_step, share = _merged_mean(a, b, weight, TIME_MEAN)
    out[:, FLUX_MEAN], flux_step, _ = _merged_mean(a, b, weight, FLUX_MEAN)
    out[:, TIME_M2] += time_step**2 * a[:, weight] * share
    out[:, TIME_FLUX] += time_step * flux_step * a[:, weight] * share
    return out


def linear_slope(sums: Float) -> Float:
    """Return the slope of the line of least chi square; 0 for a constant source, NaN where all points have one time."""
    spread = sums[:, TIME_M2]
    return at_least(2, sums, np.divide(sums[:, TIME_FLUX], spread, out=np.full(len(sums), np.nan), where=spread > 0))


def linear_intercept(sums: Float) -> Float:
    """Return the value of that line at MJD 0; the flux for a constant source."""
    return sums[:, FLUX_MEAN] - linear_slope(sums) * sums[:, TIME_MEAN]


def _of_moments(name: str, definition: str, finalize: Callable[[Float], Float], unit: str = "", ucd: str = "") -> Statistic:
    return Statistic(name, definition, finalize, unit, moments, merge_moments, ucd=ucd)


NDATA = Statistic(
    "Ndata", "number of points with finite flux and positive error", ndata, "", moments, merge_moments, True, ucd="meta.number"
)
MEAN_FLUX = _of_moments("Mean", "inverse-variance weighted mean", mean, "value", "stat.mean")
MEAN_ERR = _of_moments("MeanErr", "standard error of the weighted mean, 1/sqrt(sum 1/err^2)", mean_err, "value", "stat.error")
SIGMA = _of_moments("Sigma", "standard deviation about the plain mean, ddof 1", sigma, "value", "stat.stdev")
ERR_MEAN_OF = _of_moments("ErrMean", "plain mean of the errors", err_mean, "value", "stat.mean;stat.error")
CHI2 = _of_moments("Chi2", "chi square about the weighted mean, not reduced", chi2, "", "stat.fit.chi2")
REDUCED_CHI2 = _of_moments("ReducedChi2", "chi square about the weighted mean, over n - 1", reduced_chi2, "", "stat.fit.chi2")
CHI2_P_VALUE = _of_moments(
    "Chi2PValue",
    "probability that constant flux and Gaussian errors give a larger chi square, n - 1 degrees of freedom",
    chi2_p_value,
    "",
    "stat.probability",
)
WEIGHTED_STD = _of_moments(
    "WeightedStd",
    "weighted standard deviation about the weighted mean, sqrt(W/(W^2 - sum w^2) sum w (F - mean)^2), w = 1/err^2, W = sum w",
    weighted_std,
    "value",
    "stat.stdev",
)
EXCESS_VARIANCE = _of_moments(
    "ExcessVariance", "variance (ddof 1) less the mean of err^2; may be negative", excess_variance, "value**2", "stat.variance"
)
NORMALISED_EXCESS_VARIANCE = _of_moments(
    "NormalisedExcessVariance",
    "variance (ddof 1) less the mean of err^2, over the squared plain mean",
    normalised_excess_variance,
    "",
    "stat.variance",
)
SKEW = Statistic(
    "Skew",
    "unbiased sample skewness G1, of at least three points",
    skew,
    "",
    higher_moments,
    merge_higher_moments,
    ucd="stat.param",
)
KURTOSIS = Statistic(
    "Kurtosis",
    "unbiased sample excess kurtosis G2 (0 for a Gaussian), of at least four points",
    kurtosis,
    "",
    higher_moments,
    merge_higher_moments,
    ucd="stat.param",
)
MIN = Statistic("Min", "smallest value", first_of, "value", extremes, merge_ends, ucd="stat.min")
MAX = Statistic("Max", "largest value", last_of, "value", extremes, merge_ends, ucd="stat.max")
AMPLITUDE = Statistic(
    "Amplitude",
    "half the difference of largest and smallest value",
    half_between,
    "value",
    extremes,
    merge_ends,
    ucd="src.var.amplitude",
)
_TIMED = ("flux", "err", "mjd")
FIRST_MJD = Statistic("FirstMjd", "time of the first point", first_of, "d", time_span, merge_ends, False, _TIMED, "time.start")
LAST_MJD = Statistic("LastMjd", "time of the last point", last_of, "d", time_span, merge_ends, False, _TIMED, "time.end")
TIME_SPAN = Statistic(
    "TimeSpan", "time from the first to the last point", between, "d", time_span, merge_ends, False, _TIMED, "time.duration"
)
LINEAR_SLOPE = Statistic(
    "LinearSlope",
    "slope in time of the straight line of least chi square (weights 1/err^2)",
    linear_slope,
    "value/d",
    line_sums,
    merge_line_sums,
    False,
    _TIMED,
    "stat.fit.param",
)
LINEAR_INTERCEPT = Statistic(
    "LinearIntercept",
    "value at MJD 0 of the straight line of least chi square (weights 1/err^2)",
    linear_intercept,
    "value",
    line_sums,
    merge_line_sums,
    False,
    _TIMED,
    "stat.fit.param",
)
SUMS = (
    NDATA,
    MEAN_FLUX,
    MEAN_ERR,
    SIGMA,
    ERR_MEAN_OF,
    CHI2,
    REDUCED_CHI2,
    CHI2_P_VALUE,
    WEIGHTED_STD,
    EXCESS_VARIANCE,
    NORMALISED_EXCESS_VARIANCE,
    SKEW,
    KURTOSIS,
    MIN,
    MAX,
    AMPLITUDE,
    FIRST_MJD,
    LAST_MJD,
    TIME_SPAN,
    LINEAR_SLOPE,
    LINEAR_INTERCEPT,
)
"""Every statistic of this file, in the order of its definitions."""
