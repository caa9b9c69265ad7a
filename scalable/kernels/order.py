"""Sorting and gathering rows: canonical order from keys, columns through one index."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Int = NDArray[np.int64]

_SHORT = 64


@njit(cache=True, nogil=True)
def _settle_ties(order: Int, ids: Int, keys: Int) -> None:
    """Sort every run of equal ids in ``order`` by key, in place: by insertion where it is short, as most light curves are."""
    start = 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and ids[order[stop]] == ids[order[start]]:
            stop += 1
        if stop - start <= _SHORT:
            for i in range(start + 1, stop):
                row = order[i]
                j = i - 1
                while j >= start and keys[order[j]] > keys[row]:
                    order[j + 1] = order[j]
                    j -= 1
                order[j + 1] = row
        else:
            run = order[start:stop].copy()
            order[start:stop] = run[np.argsort(keys[run])]
        start = stop


def canonical_order(ids: Int, observations: NDArray[np.int32], rows: Int) -> Int:
    """Return the permutation that sorts by (id, observation, row); no two rows share all three.

    Parameters
    ----------
    ids : ndarray of int64, shape (n,)
        Object ids.
    observations : ndarray of int32, shape (n,)
        Ranks of observations, below 2**23.
    rows : ndarray of int64, shape (n,)
        Row numbers in their files, below 2**40.
    """
    order = np.argsort(ids)
    _settle_ties(order, ids, observations.astype(np.int64) << 40 | rows)
    return order
