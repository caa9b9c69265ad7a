"""Exact order statistics of data too large to sort: bracketing passes over sortable keys, independent of the chunking."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

DIGIT_BITS = 16
PASSES = 64 // DIGIT_BITS
_SIGN = np.uint64(1 << 63)


def sortable(values: NDArray[np.float64]) -> NDArray[np.uint64]:
    """Return keys that sort as the values do (the usual flip of IEEE 754 bits); the values hold no NaN."""
    bits = (values + 0.0).view(np.uint64)
    return np.where(bits & _SIGN, ~bits, bits | _SIGN)


def from_sortable(keys: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Return the values that `sortable` keys stand for."""
    return np.where(keys & _SIGN, keys & ~_SIGN, ~keys).view(np.float64)


def count_digits(
    keys: NDArray[np.uint64], groups: NDArray[np.int64], prefixes: NDArray[np.uint64], done: int
) -> NDArray[np.int64]:
    """Count, for each wanted value, the keys of its group that share its prefix, by their next digit.

    Parameters
    ----------
    keys, groups : ndarray, shape (n,)
        Keys and the wanted value that each belongs to.
    prefixes : ndarray of uint64, shape (wanted,)
        Leading bits found so far, in place; the other bits are 0.
    done : int
        Number of digits found so far.

    Returns
    -------
    ndarray of int64, shape (m, 3)
        Rows (wanted value, digit, count) that occur, sorted.
    """
    if done:
        shift = np.uint64(64 - done * DIGIT_BITS)
        near = (keys >> shift) == (prefixes[groups] >> shift)
        keys, groups = keys[near], groups[near]
    digit = (keys >> np.uint64(64 - (done + 1) * DIGIT_BITS)).astype(np.int64) & ((1 << DIGIT_BITS) - 1)
    cells, counts = np.unique(groups << DIGIT_BITS | digit, return_counts=True)
    return np.column_stack([cells >> DIGIT_BITS, cells & ((1 << DIGIT_BITS) - 1), counts])


def merge_counts(pieces: list[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Return the sum of tables from `count_digits`."""
    rows = np.concatenate(pieces)
    cells, where = np.unique(rows[:, 0] << DIGIT_BITS | rows[:, 1], return_inverse=True)
    counts = np.zeros(len(cells), dtype=np.int64)
    np.add.at(counts, where, rows[:, 2])
    return np.column_stack([cells >> DIGIT_BITS, cells & ((1 << DIGIT_BITS) - 1), counts])


def narrow(
    counts: NDArray[np.int64], prefixes: NDArray[np.uint64], ranks: NDArray[np.int64], done: int
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Return prefixes one digit longer, and ranks within them, after a pass with the given ``counts``."""
    prefixes, ranks = prefixes.copy(), ranks.copy()
    for wanted in range(len(prefixes)):
        rows = counts[counts[:, 0] == wanted]
        total = np.cumsum(rows[:, 2])
        at = int(np.searchsorted(total, ranks[wanted], side="right"))
        if at < len(rows):
            ranks[wanted] -= total[at - 1] if at else 0
            prefixes[wanted] |= np.uint64(int(rows[at, 1]) << 64 - (done + 1) * DIGIT_BITS)
    return prefixes, ranks
