"""The order that learners of small batches see rows in: mixed anew in each epoch, from all over the table."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from scalable.train.batches import ArrayPart, Batches, fold_of

Float = NDArray[np.float64]

SLICE_ROWS = 256
"""Rows that lie together on the disk and are read at once; a buffer holds slices from everywhere."""


class OrderWarning(UserWarning):
    """The rows are sorted by what is to be learnt."""


def mixed(
    batches: Batches, *, batch_rows: int, buffer_rows: int, seed: int, epoch: int, held: int = 0
) -> Iterator[tuple[Float, Float, Float | None]]:
    """Yield (X, y, weight) of small batches that cover all rows once, in an order mixed anew in each epoch.

    Slices of neighbouring rows are drawn from all over the table into a buffer, whose rows are shuffled; what fits the buffer is
    shuffled row by row.

    Parameters
    ----------
    batches : Batches
        Of arrays, from `spilled`.
    batch_rows, buffer_rows : int
        Rows of a batch and of the buffer.
    seed, epoch : int
        What the order is a function of, beside the rows' places.
    held : int
        Leave out the first of so many folds, which are those of ``batches.fold(..., held, seed=seed, inner=True)``.
    """
    rng = np.random.default_rng([seed, epoch])
    parts = [part for part in batches.parts if isinstance(part, ArrayPart)]
    starts = np.cumsum([0, *(part.columns.shape[1] for part in parts)])
    # Slices are those of the table, and so the batches are the same however it is cut into parts.
    order = rng.permutation(-(-starts[-1] // SLICE_ROWS))
    slices = max(1, buffer_rows // SLICE_ROWS)
    for first in range(0, len(order), slices):
        taken = np.sort(order[first : first + slices])
        rows = (taken[:, None] * SLICE_ROWS + np.arange(SLICE_ROWS)).ravel()
        cuts = np.searchsorted(rows, starts)
        own = zip(parts, starts, cuts, cuts[1:], strict=False)
        pieces = [part.take(rows[a:b] - start) for part, start, a, b in own if b > a]
        X = np.concatenate([piece.columns.T for piece in pieces])
        y = np.concatenate([piece.target for piece in pieces])
        weight = np.concatenate([np.zeros(0) if piece.weight is None else piece.weight for piece in pieces])
        rows = rng.permutation(len(X))
        if held:
            groups = np.concatenate([piece.groups for piece in pieces])
            rows = rows[fold_of(groups, held, seed, inner=True)[rows] != 0]
        for start in range(0, len(rows), batch_rows):
            picked = rows[start : start + batch_rows]
            yield X[picked], y[picked], weight[picked] if len(weight) else None


def order_share(batches: Batches) -> float:
    """Return which share of the target's variance lies between the slices of a table, beyond what chance puts there; 0 to 1."""
    totals, counts, squares = [np.zeros(0)], [np.zeros(0)], 0.0
    for part in batches.parts:
        y = part.opened().target if isinstance(part, ArrayPart) else None
        if y is not None and len(y):
            starts = np.arange(0, len(y), SLICE_ROWS)
            totals.append(np.add.reduceat(y, starts))
            counts.append(np.diff(starts, append=len(y)))
            squares += float(y @ y)
    total, count = np.concatenate(totals), np.concatenate(counts)
    rows, groups = count.sum(), len(count)
    scatter = squares - total.sum() ** 2 / max(rows, 1)
    if groups < 3 or rows <= groups or scatter <= 0:
        return 0.0
    between = (count * (total / count - total.sum() / rows) ** 2).sum() / scatter
    chance = (groups - 1) / (rows - 1)
    return float(max(0.0, (between - chance) / (1 - chance)))


def warn_of_order(batches: Batches) -> None:
    """Warn where neighbouring rows share their target: a learner that took them in order would forget."""
    share = order_share(batches)
    if share > 0.1:
        warnings.warn(
            f"{100 * share:.0f} % of the variance of {batches.target} lies between blocks of rows: the table is sorted by it, "
            "or nearly. Batches are mixed from all over the table here, which makes that harmless; other tools need a shuffle",
            OrderWarning,
            stacklevel=3,
        )
