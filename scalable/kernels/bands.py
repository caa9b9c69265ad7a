"""One value per object and band from several epochs: pick a row, or average."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scalable.kernels.curve_order import PERCENTILE
from scalable.kernels.curve_sums import MEAN, MEAN_ERR, MEAN_FLUX, at_least, merge_moments, moments
from scalable.kernels.statistic import Float, Statistic

Int = NDArray[np.int64]


@njit(cache=True, nogil=True)
def band_curves(ids: Int, codes: NDArray[np.int32], bands: int) -> tuple[Int, Int, Int]:
    """Cut rows, sorted by object, band and time, into light curves of the wanted bands.

    Parameters
    ----------
    ids : ndarray of int64, shape (n,)
        The object of each row.
    codes : ndarray of int32, shape (n,)
        The number of its band, from 0 to ``bands``; negative for a band that is not wanted.

    Returns
    -------
    first_rows : ndarray, shape (objects,)
        The first row of each object, whatever its band.
    offsets : ndarray, shape (curves + 1,)
        Where each light curve begins and ends among the rows of wanted bands.
    curve_of : ndarray, shape (bands, objects)
        The light curve of each object in each band; -1 where there is none.
    """
    objects = 0
    for i in range(len(ids)):
        objects += i == 0 or ids[i] != ids[i - 1]
    first_rows, curve_of = np.empty(objects, dtype=np.int64), np.full((bands, objects), -1)
    offsets = np.zeros(len(ids) + 1, dtype=np.int64)
    curves = rows = 0
    g = -1
    for i in range(len(ids)):
        fresh = i == 0 or ids[i] != ids[i - 1]
        if fresh:
            g += 1
            first_rows[g] = i
        if codes[i] < 0:
            continue
        if fresh or codes[i] != codes[i - 1]:
            curve_of[codes[i], g] = curves
            curves += 1
        rows += 1
        offsets[curves] = rows
    return first_rows, offsets[: curves + 1].copy(), curve_of


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
