"""Statistics of an object across bands: colours, chi square of all bands, and variations that two bands show at the same time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scalable.kernels.curve_order import MEDIAN, column, order_statistics
from scalable.kernels.curve_series import stetson_means
from scalable.kernels.curve_sums import WEIGHTED_M2, WEIGHTED_MEAN, N, moments
from scalable.kernels.statistic import Float, Offsets, told

Curves = NDArray[np.int64]

GAUSSIAN_K = 0.798
"""Stetson's K of Gaussian noise, by which he divides."""


@dataclass(frozen=True)
class Pairing:
    """What statistics across bands must know of the values: how close in time a pair is, and whether they are magnitudes."""

    within_days: float
    magnitudes: bool


@dataclass(frozen=True, eq=False)
class CrossBandStatistic:
    """One number per object from its light curves in several bands.

    Attributes
    ----------
    name, definition, unit, integer, ucd
        As of a `scalable.Statistic`.
    chunk : callable
        ``chunk(flux, err, mjd, offsets, curves, pairing)`` returns what is needed of each object, shape (objects, k). It runs
        once for all statistics that name the same function. Light curves are slices of flat arrays as for a
        `scalable.Statistic`, of points with finite flux, error and time and a positive error; ``curves``, shape (bands, objects),
        numbers those of each object. The last curve is empty and stands where it has none.
    finalize : callable
        ``finalize(chunk's result)`` returns shape (objects,), NaN where too few points count.
    of_pairs : bool
        Whether it is made for pairs of bands, so that ``curves`` has two rows, or of all bands at once.
    """

    name: str
    definition: str
    chunk: Callable[[Float, Float, Float, Offsets, Curves, Pairing], Float]
    finalize: Callable[[Float], Float]
    unit: str = ""
    of_pairs: bool = True
    integer: bool = False
    ucd: str = ""

    def __dask_tokenize__(self) -> object:
        """Name the statistic by what it says it is and by the code that computes it."""
        return (
            self.name,
            self.definition,
            self.unit,
            self.of_pairs,
            self.integer,
            self.ucd,
            told(self.chunk),
            told(self.finalize),
        )


def difference(of_curves: Float, curves: Curves, pairing: Pairing) -> Float:
    """Return colours from one value per curve, shape (objects, 1): differences of magnitudes, -2.5 log10 of flux ratios."""
    first, second = of_curves[curves]
    if pairing.magnitudes:
        return (first - second)[:, None]
    ratio = np.divide(first, second, out=np.full(len(first), np.nan), where=second != 0)
    # A ratio of fluxes of which one is negative is no colour.
    positive = (first > 0) & (second > 0)
    return (-2.5 * np.log10(ratio, out=np.full(len(first), np.nan), where=positive))[:, None]


def mean_colours(flux: Float, err: Float, mjd: Float, offsets: Offsets, curves: Curves, pairing: Pairing) -> Float:
    """Return the colour of the weighted means of two bands."""
    sums = moments(flux, err, mjd, offsets)
    return difference(np.where(sums[:, N] > 0, sums[:, WEIGHTED_MEAN], np.nan), curves, pairing)


def median_colours(flux: Float, err: Float, mjd: Float, offsets: Offsets, curves: Curves, pairing: Pairing) -> Float:
    """Return the colour of the medians of two bands."""
    return difference(order_statistics(flux, err, mjd, offsets)[:, MEDIAN], curves, pairing)


def summed_chi2(flux: Float, err: Float, mjd: Float, offsets: Offsets, curves: Curves, pairing: Pairing) -> Float:
    """Return chi square about the weighted mean of each band, and n - 1, both summed over bands, shape (objects, 2).

    NaN and 0 where no point counts; 0 for a constant source.
    """
    sums = moments(flux, err, mjd, offsets)
    n, chi2 = sums[curves, N], sums[curves, WEIGHTED_M2]
    total = np.where((n > 0).any(axis=0), chi2.sum(axis=0, where=n > 0), np.nan)
    return np.column_stack([total, np.maximum(n - 1, 0).sum(axis=0)])


@njit(cache=True, nogil=True, error_model="numpy")
def _paired(
    flux: Float, err: Float, mjd: Float, offsets: Offsets, curves: Curves, means: Float, sizes: Float, within: float
) -> Float:
    out = np.zeros((curves.shape[1], 6))
    for g in range(curves.shape[1]):
        a, b = curves[0, g], curves[1, g]
        i, last_i, j, last_j = offsets[a], offsets[a + 1], offsets[b], offsets[b + 1]
        while i < last_i or j < last_j:
            wait = np.inf if j == last_j else -np.inf if i == last_i else mjd[j] - mjd[i]
            first = (flux[i] - means[a]) / err[i] * sizes[a] if i < last_i else 0.0
            second = (flux[j] - means[b]) / err[j] * sizes[b] if j < last_j else 0.0
            if abs(wait) <= within:
                product, weight = first * second, 1.0
                out[g, 0] += 1
                out[g, 1] += product
                i, j = i + 1, j + 1
            elif wait > 0.0:
                product, weight, second = first * first - 1.0, 0.5, 0.0
                i += 1
            else:
                product, weight, first = second * second - 1.0, 0.5, 0.0
                j += 1
            out[g, 2] += weight
            out[g, 3] += weight * np.copysign(np.sqrt(abs(product)), product)
            out[g, 4] += abs(first) + abs(second)
            out[g, 5] += first * first + second * second
    return out


def _curve_sizes(offsets: Offsets) -> Float:
    n = np.diff(offsets).astype(np.float64)
    return np.sqrt(np.divide(n, n - 1, out=np.full(len(n), np.nan), where=n > 1))


def paired_about_mean(flux: Float, err: Float, mjd: Float, offsets: Offsets, curves: Curves, pairing: Pairing) -> Float:
    """Return the Welch-Stetson index I of two bands, shape (objects, 1): sqrt(1/(n (n - 1))) sum d1 d2 over n pairs.

    d = (F - weighted mean) / err (Welch and Stetson 1993); NaN for fewer than two pairs, 0 for a constant source.
    """
    means = moments(flux, err, mjd, offsets)[:, WEIGHTED_MEAN]
    found = _paired(flux, err, mjd, offsets, curves, means, np.ones(len(means)), pairing.within_days)
    pairs = found[:, 0]
    scale = np.sqrt(np.divide(1.0, pairs * (pairs - 1), out=np.full(len(pairs), np.nan), where=pairs > 1))
    return (scale * found[:, 1])[:, None]


def paired_about_stetson(flux: Float, err: Float, mjd: Float, offsets: Offsets, curves: Curves, pairing: Pairing) -> Float:
    """Return the J of pairs and the L of two bands, shape (objects, 2) (Stetson 1996); NaN unless both have two points.

    J is the weighted mean of sgn(P) sqrt|P|; P = d1 d2 for a pair, which weighs 1, and d**2 - 1 for a single point, which weighs
    1/2; d = sqrt(n/(n-1)) (F - mean)/err about Stetson's re-weighted mean of the band. L = J K / 0.798 with the K of all points.
    """
    means, sizes = stetson_means(flux, err, offsets), _curve_sizes(offsets)
    found = _paired(flux, err, mjd, offsets, curves, means, sizes, pairing.within_days)
    points = np.diff(offsets)[curves]
    with np.errstate(divide="ignore", invalid="ignore"):
        j = np.where((points > 1).all(axis=0), found[:, 3] / found[:, 2], np.nan)
        k = found[:, 4] / np.sqrt(points.sum(axis=0) * found[:, 5])
    return np.column_stack([j, j * k / GAUSSIAN_K])


_COLOUR = "the difference of magnitudes, or -2.5 log10 of the ratio of positive fluxes"
_PAIRS = "pairs are points of the two bands that follow each other within the given time"
CROSS_BAND = {
    statistic.name: statistic
    for statistic in (
        CrossBandStatistic(
            "MeanColour", f"colour of the weighted means, {_COLOUR}", mean_colours, partial(column, 0), "mag", ucd="phot.color"
        ),
        CrossBandStatistic(
            "MedianColour", f"colour of the medians, {_COLOUR}", median_colours, partial(column, 0), "mag", ucd="phot.color"
        ),
        CrossBandStatistic(
            "SummedChi2",
            "chi square about the weighted mean of each band, not reduced, summed over bands",
            summed_chi2,
            partial(column, 0),
            of_pairs=False,
            ucd="stat.fit.chi2",
        ),
        CrossBandStatistic(
            "SummedDof",
            "points less one, summed over bands: the degrees of freedom of SummedChi2",
            summed_chi2,
            partial(column, 1),
            of_pairs=False,
            integer=True,
            ucd="stat.fit.dof",
        ),
        CrossBandStatistic(
            "WelchStetsonI",
            f"sqrt(1/(n (n-1))) sum d1 d2 over n pairs, d = (F - weighted mean)/err; {_PAIRS}",
            paired_about_mean,
            partial(column, 0),
            ucd="stat.value",
        ),
        CrossBandStatistic(
            "StetsonJ",
            "weighted mean of sgn(P) sqrt|P|, P = d1 d2 of pairs (weight 1) and d^2 - 1 of single points (weight 1/2), "
            f"d = sqrt(n/(n-1)) (F - mean)/err about Stetson's re-weighted mean; {_PAIRS}",
            paired_about_stetson,
            partial(column, 0),
            ucd="stat.value",
        ),
        CrossBandStatistic(
            "StetsonL",
            f"J K / 0.798 of the J of pairs and the K of all points of both bands; {_PAIRS}",
            paired_about_stetson,
            partial(column, 1),
            ucd="stat.value",
        ),
    )
}
"""Statistics across bands by name; all are computed by default."""
