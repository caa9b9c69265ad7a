"""A random sample of batches that depends on the seed and on the rows alone, not on their order or chunking."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from scalable.kernels.counter import random_bits
from scalable.train.batches import Batches, Block, keys_of

Float = NDArray[np.float64]


class Sample(NamedTuple):
    """Rows in the order of their random numbers; ``rows`` is the number they were drawn from."""

    order: NDArray[np.uint64]
    columns: Float
    target: Float
    weight: Float
    rows: int
    size: int


def draw(batches: Batches, size: int, *, seed: int) -> Sample:
    """Draw ``size`` rows without replacement, or all rows if there are no more, in one pass.

    The rows with the smallest random numbers are taken, so that samples of parts can be merged. Target and weight are NaN and 1
    where there is none.
    """
    return _sorted(batches.over(_candidates, _merge, size, seed))


def _candidates(block: Block, size: int, seed: int) -> Sample:
    rows = len(block)
    target = np.full(rows, np.nan) if block.target is None else block.target
    weight = np.ones(rows) if block.weight is None else block.weight
    return _cut(Sample(random_bits(block.keys, seed=seed), block.columns, target, weight, rows, size))


def _merge(a: Sample, b: Sample) -> Sample:
    order, target, weight = (np.concatenate([x, y]) for x, y in ((a.order, b.order), (a.target, b.target), (a.weight, b.weight)))
    columns = np.concatenate([a.columns, b.columns], axis=1)
    return _cut(Sample(order, columns, target, weight, a.rows + b.rows, a.size))


def _cut(sample: Sample) -> Sample:
    """Drop rows that are surely not drawn, once there are twice as many as needed: a cut takes time, and so does every copy."""
    if len(sample.order) <= 2 * sample.size:
        return sample
    return _some(sample, np.flatnonzero(sample.order <= np.partition(sample.order, sample.size - 1)[sample.size - 1]))


def _sorted(sample: Sample) -> Sample:
    """Return the rows drawn, in order; those that share an id are told apart by what they hold, not by their place."""
    sample = _cut(sample)
    return _some(sample, np.lexsort((keys_of(sample.columns, sample.target), sample.order))[: sample.size])


def _some(sample: Sample, rows: NDArray[np.int64]) -> Sample:
    order, target, weight = sample.order[rows], sample.target[rows], sample.weight[rows]
    return Sample(order, np.ascontiguousarray(sample.columns[:, rows]), target, weight, sample.rows, sample.size)
