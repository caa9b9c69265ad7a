"""Exact quantiles of any numbers made from batches, in four counting passes, whatever the chunking."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from scalable.kernels.quantile import PASSES, count_digits, from_sortable, merge_counts, narrow, sortable
from scalable.train.batches import Batches, Block

Float = NDArray[np.float64]
Int = NDArray[np.int64]
MOST_COUNTS = 1 << 20
"""Rows of counts that wait to be merged."""
Numbers = Callable[..., tuple[Float, Int]]
"""From a block (and what is shared) to numbers, none NaN, and the group of each."""


def exact_quantiles(
    batches: Batches, numbers: Numbers, groups: int, levels: Sequence[float], *shared: object
) -> tuple[Float, Int]:
    """Compute quantiles of each group, linear between order statistics as in ``numpy.quantile``; NaN without any number.

    Returns
    -------
    quantiles : ndarray, shape (groups, levels)
    rows : ndarray of int64, shape (groups,)
        Numbers in each group.
    """
    wanted = 2 * len(levels)
    prefixes, ranks = np.zeros(groups * wanted, np.uint64), np.zeros(groups * wanted, np.int64)
    rows, share = np.zeros(groups, np.int64), np.zeros((groups, len(levels)))
    for done in range(PASSES):
        counts = merge_counts(batches.over(_count, _join, numbers, wanted, prefixes, done, shared))
        if done == 0:
            rows = np.bincount(counts[:, 0], weights=counts[:, 2], minlength=groups * wanted).astype(np.int64)[::wanted]
            place = np.maximum(rows - 1, 0)[:, None] * np.asarray(levels, dtype=np.float64)
            low = np.floor(place).astype(np.int64)
            share = place - low
            ranks = np.stack([low, np.minimum(low + 1, np.maximum(rows - 1, 0)[:, None])], axis=2).ravel()
        prefixes, ranks = narrow(counts, prefixes, ranks, done)
    pair = from_sortable(prefixes).reshape(groups, len(levels), 2)
    step = pair[:, :, 1] - pair[:, :, 0]
    # As NumPy's lerp: from the nearer end, so that both ends are met to the bit.
    found = np.where(share < 0.5, pair[:, :, 0] + step * share, pair[:, :, 1] - step * (1 - share))
    return np.where(rows[:, None] > 0, found, np.nan), rows


def _count(
    block: Block, numbers: Numbers, wanted: int, prefixes: NDArray[np.uint64], done: int, shared: tuple[object, ...]
) -> list[Int]:
    values, group = numbers(block, *shared)
    keys = np.repeat(sortable(values), wanted)
    return [count_digits(keys, (group[:, None] * wanted + np.arange(wanted)).ravel(), prefixes, done)]


def _join(a: list[Int], b: list[Int]) -> list[Int]:
    """Return the counts of both: as they are while they are few, since a merge takes time."""
    pieces = a + b
    return [merge_counts(pieces)] if sum(map(len, pieces)) > MOST_COUNTS else pieces
