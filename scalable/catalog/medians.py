"""Exact medians by group over a whole catalogue: a few counting passes, independent of the partitioning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.catalog import Catalog
from scalable.kernels.quantile import PASSES, count_digits, from_sortable, merge_counts, narrow, sortable

COUNTS = pa.schema([("wanted", pa.int64()), ("digit", pa.int64()), ("rows", pa.int64())])


class Values(Protocol):
    """Numbers that a leaf gives, each with the index of its group; frozen, cheap on the wire."""

    @property
    def columns(self) -> list[str]:
        """Columns that the numbers are made of."""

    def of(self, table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return groups and numbers; none is NaN."""


@dataclass(frozen=True)
class DigitCounts:
    """One pass: count numbers by the next digit of their sortable key.

    ``prefixes`` holds what earlier passes found, two entries (lower and upper median) per group.
    """

    name: ClassVar[str] = "count"
    values: Values
    prefixes: tuple[int, ...]
    done: int

    def parameters(self) -> dict[str, Any]:
        """Return nothing: counts are made and used at once."""
        return {}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns of the counts."""
        return COUNTS

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the columns that the numbers are made of."""
        return self.values.columns

    def apply(self, table: pa.Table) -> pa.Table:
        """Count."""
        group, numbers = self.values.of(table)
        keys = np.repeat(sortable(numbers), 2)
        wanted = np.column_stack([2 * group, 2 * group + 1]).ravel()
        counts = count_digits(keys, wanted, np.array(self.prefixes, dtype=np.uint64), self.done)
        return pa.table([counts[:, i] for i in range(3)], schema=COUNTS)


def exact_medians(catalog: Catalog, values: Values, groups: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Compute the median of each group, and how many numbers it has; NaN without any.

    No pass holds more than counts. The median of an even number is the mean of the two in the middle.
    """
    prefixes = np.zeros(2 * groups, dtype=np.uint64)
    ranks = np.zeros(2 * groups, dtype=np.int64)
    rows = np.zeros(groups, dtype=np.int64)
    for done in range(PASSES):
        found = catalog.then(DigitCounts(values, tuple(prefixes.tolist()), done)).compute()
        counts = merge_counts([np.column_stack([column.to_numpy() for column in found.columns])])
        if done == 0:
            every = np.bincount(counts[:, 0], weights=counts[:, 2], minlength=len(prefixes)).astype(np.int64)
            rows = every[::2]
            ranks[::2], ranks[1::2] = (rows - 1) // 2, rows // 2
        prefixes, ranks = narrow(counts, prefixes, ranks, done)
    pair = from_sortable(prefixes).reshape(-1, 2)
    return np.where(rows > 0, pair.mean(axis=1), np.nan), rows
