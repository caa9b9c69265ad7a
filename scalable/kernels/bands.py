"""One value per object and band from several epochs: pick a row, or average."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scalable.kernels.curve_order import PERCENTILE
from scalable.kernels.curve_sums import MEAN, MEAN_ERR, MEAN_FLUX, at_least, merge_moments, moments
from scalable.kernels.statistic import Float, Statistic

Int = NDArray[np.int64]


@njit(cache=True, nogil=True)
def band_curves(
    ids: Int, named: NDArray[np.int32], bands_of: NDArray[np.int32], bands: int, complete: bool
) -> tuple[Int, Int, Int]:
    """Cut rows, sorted by object, band and time, into light curves of the wanted bands.

    Parameters
    ----------
    ids : ndarray of int64, shape (n,)
        The object of each row.
    named : ndarray of int32, shape (n,)
        The number of its band's name; -1 for none.
    bands_of : ndarray of int32, shape (names + 1,)
        The wanted band that each name is, from 0 to ``bands``, or -1; the last is -1, for no name.
    bands : int
        How many bands are wanted.
    complete : bool
        Whether only objects are listed that have all of them.

    Returns
    -------
    first_rows : ndarray, shape (objects,)
        The first row of each object, whatever its band.
    offsets : ndarray, shape (curves + 1,)
        Where each light curve begins and ends among the rows of wanted bands.
    curve_of : ndarray, shape (bands, objects)
        The light curve of each object in each band; -1 where there is none.
    """
    objects = 1 if len(ids) else 0
    for i in range(1, len(ids)):
        objects += 1 if ids[i] != ids[i - 1] else 0
    first_rows, curve_of = np.empty(objects, dtype=np.int64), np.full((bands, objects), -1)
    offsets = np.empty(len(ids) + 1, dtype=np.int64)
    rows = curves = 0
    g, band, lacking = -1, np.int32(-1), 0
    for i in range(len(ids)):
        fresh = i == 0 or ids[i] != ids[i - 1]
        if fresh:
            # An object that lacks a band leaves its place to the next.
            if lacking == 0:
                g += 1
            else:
                curve_of[:, g] = -1
            first_rows[g] = i
            lacking = bands if complete else 0
        if fresh or named[i] != named[i - 1]:
            band = bands_of[named[i]]
            if band >= 0:
                lacking -= 1 if complete and curve_of[band, g] < 0 else 0
                curve_of[band, g] = curves
                offsets[curves] = rows
                curves += 1
        rows += 1 if band >= 0 else 0
    offsets[curves] = rows
    objects = g + 1 if lacking == 0 else g
    return first_rows[:objects], offsets[: curves + 1].copy(), curve_of[:, :objects]


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


def plain_mean(sums: Float) -> Float:
    """Return the plain mean; the value itself for a constant source."""
    return at_least(1, sums, sums[:, MEAN])


AVERAGES = {
    "mean": Statistic("mean", "plain mean of the finite values", plain_mean, "value", moments, merge_moments, needs=("flux",)),
    "weighted_mean": MEAN_FLUX,
    "median": replace(PERCENTILE[50], definition="median of the finite values", needs=("flux",)),
}
"""What stands for several epochs, by the name of the choice."""
ERROR_OF_MEAN = replace(MEAN_ERR, needs=("err",))
"""What stands for several errors where values are averaged by weight; it needs no values."""


def average_of_one(statistic: Statistic, values: NDArray[Any], errors: NDArray[Any]) -> Float:
    """Return one of `AVERAGES`, or `ERROR_OF_MEAN`, of groups of one point each: what it gives to the bit, and much faster."""
    counts = np.ones(len(values), dtype=np.bool_)
    if "flux" in statistic.needs:
        counts &= np.isfinite(values)
    if "err" in statistic.needs:
        counts &= (errors > 0) & (errors < np.inf)
    if statistic is not ERROR_OF_MEAN:
        return np.where(counts, values.astype(np.float64), np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(counts, 1.0 / np.sqrt(1.0 / errors.astype(np.float64) ** 2), np.nan)


CLASS_RULES = ("any", "all", "majority")
"""How bands that differ over an object's class are heard."""


def class_holds(says: NDArray[np.bool_], votes: NDArray[np.bool_], rule: str) -> NDArray[np.bool_]:
    """Return whether each object is of a class, by what its bands say.

    Parameters
    ----------
    says, votes : ndarray of bool, shape (bands, objects)
        Whether the band says that the object is of the class, and whether it says anything; no band says so without a vote.
    rule : str
        One of `CLASS_RULES`: at least one band, all that vote, or more than half of them. Without a vote it is of no class.
    """
    yes, asked = says.sum(axis=0), votes.sum(axis=0)
    needed = {"any": np.ones_like(asked), "all": np.maximum(asked, 1), "majority": asked // 2 + 1}[rule]
    return np.asarray(yes >= needed)
