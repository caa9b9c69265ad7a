"""The structure function of light curves on request: how much they vary over a given time."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import pairwise

import numpy as np
from numba import njit

from scalable.kernels.curve_order import column
from scalable.kernels.statistic import Float, Offsets, Statistic


@njit(cache=True, nogil=True, error_model="numpy")
def _structure(flux: Float, err: Float, mjd: Float, offsets: Offsets, edges: Float) -> Float:
    groups, lags = len(offsets) - 1, len(edges) - 1
    out = np.full((groups, lags), np.nan)
    for g in range(groups):
        total, pairs = np.zeros(lags), np.zeros(lags)
        for i in range(offsets[g], offsets[g + 1]):
            for j in range(i + 1, offsets[g + 1]):
                lag = mjd[j] - mjd[i]
                if lag >= edges[-1]:
                    break
                k = np.searchsorted(edges, lag, side="right") - 1
                if k >= 0:
                    pairs[k] += 1
                    total[k] += (flux[j] - flux[i]) ** 2 - err[i] ** 2 - err[j] ** 2
        for k in range(lags):
            if pairs[k] > 0 and total[k] >= 0.0:
                out[g, k] = np.sqrt(total[k] / pairs[k])
    return out


def structure(flux: Float, err: Float, mjd: Float, offsets: Offsets, *, edges: tuple[float, ...]) -> Float:
    """Return the structure function of each curve between each two edges of lag, shape (groups, len(edges) - 1).

    sqrt of the mean of (F1 - F2)**2 - err1**2 - err2**2 over pairs of points (di Clemente et al. 1996, with means of squares);
    NaN without pairs and where errors explain more than the differences, as for a constant source.
    """
    return _structure(flux, err, mjd, offsets, np.array(edges, dtype=np.float64))


def structure_function(lag_edges_days: Sequence[float]) -> tuple[Statistic, ...]:
    """Return statistics ``StructureFunction1``, ``StructureFunction2``, … for `scalable.variability`, one between each two lags.

    Parameters
    ----------
    lag_edges_days : sequence of float
        Rising time lags [d]; a pair of points counts where its lag is at least one edge and less than the next.

    Examples
    --------
    >>> from scalable import structure_function
    >>> [statistic.name for statistic in structure_function([1, 10, 100])]
    ['StructureFunction1', 'StructureFunction2']
    """
    edges = tuple(float(edge) for edge in lag_edges_days)
    if len(edges) < 2 or any(not 0 <= low < high for low, high in pairwise(edges)):
        raise ValueError(f"lag_edges_days={list(lag_edges_days)}: give two or more rising times, none below 0")
    chunk = partial(structure, edges=edges)
    return tuple(
        Statistic(
            f"StructureFunction{number + 1}",
            f"sqrt of mean (F1 - F2)^2 - err1^2 - err2^2 over pairs of points {low:g} to {high:g} d apart",
            partial(column, number),
            "value",
            chunk,
            needs=("flux", "err", "mjd"),
            ucd="stat.value",
        )
        for number, (low, high) in enumerate(pairwise(edges))
    )
