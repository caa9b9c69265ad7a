"""Which positions of catalogues lie near each other: the k nearest within a radius, mutual nearest pairs, objects seen in many.

All work on unit vectors in a Cartesian grid, so that poles and right ascension 0 are places like any other. Both sides are
sorted by grid cell, and one pointer for each column of neighbouring cells walks along the right side: no tree, no hash table.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

Int = NDArray[np.int64]
Float = NDArray[np.float64]

_BITS = 21
_SHORTEST = 2.0**-19
"""Shortest side of a cell: the numbers of three axes from -1 to 1, with a neighbour on each side, fit into 63 bits."""


def match_nearest(left_vectors: Float, right_vectors: Float, radius_arcsec: float, k: int = 1) -> tuple[Int, Int, Float]:
    """Return for each left position the ``k`` nearest right positions within ``radius_arcsec``, exactly.

    Distances are chords in double precision, angles ``2 asin(chord / 2)``. Work and memory grow with the pairs that lie within
    about the radius and with the pairs that are kept, never with the product of both sides.

    Parameters
    ----------
    left_vectors, right_vectors : ndarray, shape (n, 3) and (m, 3)
        Unit vectors; one that is NaN has no pair.
    radius_arcsec : float
        Largest separation [arcsec], up to 180 degrees.
    k : int
        Largest number of pairs of a left position; of equally near right positions the lower rows come first.

    Returns
    -------
    left_row, right_row : ndarray of int64, shape (pairs,)
        Rows of each pair, sorted by left row, separation, right row.
    separation_arcsec : ndarray, shape (pairs,)
        Angle between them [arcsec].
    """
    reach = 2.0 * np.sin(np.deg2rad(radius_arcsec / 3600.0) / 2.0)
    # A little longer than the radius, by more than coordinates are rounded: a pair is never two cells apart.
    side = max(1.000001 * reach, _SHORTEST)
    left_cells, right_cells = _cells(left_vectors, side), _cells(right_vectors, side)
    left_order, right_order = np.argsort(left_cells), np.argsort(right_cells)
    sides = (
        left_vectors.take(left_order, axis=0),
        left_cells[left_order],
        left_order,
        right_vectors.take(right_order, axis=0),
        right_cells[right_order],
        right_order,
    )
    if k == 1:
        right_row, squared = _nearest_one(*sides, reach * reach)
        left_row = np.flatnonzero(right_row >= 0)
        right_row, squared = right_row[left_row], squared[left_row]
    else:
        counts, right_row, squared = _nearest(*sides, reach * reach, min(k, len(right_order)))
        left_row = np.repeat(np.arange(len(counts)), counts)
    separation = np.rad2deg(2.0 * np.arcsin(np.minimum(1.0, np.sqrt(squared) / 2.0))) * 3600.0
    return left_row, right_row, separation


def match_mutual(left_vectors: Float, right_vectors: Float, radius_arcsec: float) -> tuple[Int, Int, Float]:
    """Return the pairs in which each is the nearest of the other within ``radius_arcsec``: no position is in two of them.

    Of equally near ones the lowest row is the nearest, on both sides. Parameters and returned arrays are those of
    `match_nearest`.
    """
    left_row, right_row, separation = match_nearest(left_vectors, right_vectors, radius_arcsec)
    of_right = np.full(len(right_vectors), -1, dtype=np.int64)
    back, nearest, _ = match_nearest(right_vectors, left_vectors, radius_arcsec)
    of_right[back] = nearest
    mutual = of_right[right_row] == left_row
    return left_row[mutual], right_row[mutual], separation[mutual]


def match_many(vectors: Sequence[Float], radius_arcsec: float) -> tuple[Int, Float]:
    """Return objects seen in several catalogues, one after another: each row of each is in exactly one object.

    The rows of the first catalogue found an object each. Each further catalogue is matched with the objects there are, at the
    positions that founded them, in pairs in which each is the nearest of the other (`match_mutual`); its other rows found objects
    of their own.

    Parameters
    ----------
    vectors : sequence of ndarray, shape (n, 3)
        Unit vectors of each catalogue.
    radius_arcsec : float
        Largest separation from the founding position [arcsec].

    Returns
    -------
    rows : ndarray of int64, shape (objects, catalogues)
        Row of each object in each catalogue, -1 where it is not seen, in the order in which they were founded.
    separation_arcsec : ndarray, shape (objects, catalogues)
        Angle from the founding position [arcsec], 0 for that one itself, NaN where it is not seen.
    """
    rows = np.full((sum(map(len, vectors)), len(vectors)), -1, dtype=np.int64)
    separation = np.full(rows.shape, np.nan)
    founded = np.zeros((0, 3))
    for number, found in enumerate(vectors):
        known, mine, apart = match_mutual(founded, found, radius_arcsec)
        rows[known, number], separation[known, number] = mine, apart
        new = np.setdiff1d(np.arange(len(found)), mine)
        at = slice(len(founded), len(founded) + len(new))
        rows[at, number], separation[at, number] = new, 0.0
        founded = np.concatenate([founded, found[new]])
    return rows[: len(founded)], separation[: len(founded)]


@njit(cache=True, nogil=True)
def _cells(vectors: Float, side: float) -> Int:
    """Return the grid cell of each vector: its number along each axis, from 1, in `_BITS` bits; 0 for NaN."""
    cells = np.zeros(len(vectors), dtype=np.int64)
    for i in range(len(vectors)):
        if not np.isnan(vectors[i].sum()):
            for axis in range(3):
                cells[i] = cells[i] << _BITS | np.int64(np.floor((vectors[i, axis] + 1.0) / side)) + 1
    return cells


@njit(cache=True, nogil=True)
def _nearest(
    left: Float, left_cells: Int, left_rows: Int, right: Float, right_cells: Int, right_rows: Int, limit: float, k: int
) -> tuple[Int, Int, Float]:
    """Return for each left row its number of pairs, and the right rows and squared chords of all; both sides sorted by cell."""
    n, m = len(left_cells), len(right_cells)
    counts = np.zeros(n, dtype=np.int64)
    pair_rows, pair_squared, total = np.empty(n, dtype=np.int64), np.empty(n), 0
    heap_rows, heap_squared = np.empty(k, dtype=np.int64), np.empty(k)
    first = np.zeros(9, dtype=np.int64)
    for i in range(n):
        found = 0
        for column in range(9):
            lowest = left_cells[i] + ((column // 3 - 1) << 2 * _BITS) + ((column % 3 - 1) << _BITS) - 1
            while first[column] < m and right_cells[first[column]] < lowest:
                first[column] += 1
            j = first[column]
            while j < m and right_cells[j] <= lowest + 2:
                x, y, z = left[i, 0] - right[j, 0], left[i, 1] - right[j, 1], left[i, 2] - right[j, 2]
                squared = x * x + y * y + z * z
                # Most pairs are too far or no longer wanted: that is seen here, for a call costs more than they do.
                if squared <= limit and (found < k or _farther(heap_squared[0], heap_rows[0], squared, right_rows[j])):
                    found = _keep(heap_squared, heap_rows, found, squared, right_rows[j])
                j += 1
        # From a heap, whose largest stands first, to ascending order.
        for last in range(found - 1, 0, -1):
            heap_squared[0], heap_squared[last] = heap_squared[last], heap_squared[0]
            heap_rows[0], heap_rows[last] = heap_rows[last], heap_rows[0]
            _sink(heap_squared, heap_rows, last)
        while total + found > len(pair_rows):
            pair_rows = np.concatenate((pair_rows, np.empty_like(pair_rows)))
            pair_squared = np.concatenate((pair_squared, np.empty_like(pair_squared)))
        pair_rows[total : total + found], pair_squared[total : total + found] = heap_rows[:found], heap_squared[:found]
        counts[left_rows[i]] = found
        total += found
    return counts, *_by_left_row(counts, left_rows, pair_rows[:total], pair_squared[:total])


@njit(cache=True, nogil=True)
def _nearest_one(
    left: Float, left_cells: Int, left_rows: Int, right: Float, right_cells: Int, right_rows: Int, limit: float
) -> tuple[Int, Float]:
    """Return for each left row the nearest right row, -1 where there is none, and the squared chord."""
    n, m = len(left_cells), len(right_cells)
    nearest, nearest_squared = np.full(n, -1, dtype=np.int64), np.empty(n)
    first = np.zeros(9, dtype=np.int64)
    for i in range(n):
        best, best_squared = np.int64(-1), limit
        for column in range(9):
            lowest = left_cells[i] + ((column // 3 - 1) << 2 * _BITS) + ((column % 3 - 1) << _BITS) - 1
            j = first[column]
            while j < m and right_cells[j] < lowest:
                j += 1
            first[column] = j
            while j < m and right_cells[j] <= lowest + 2:
                x, y, z = left[i, 0] - right[j, 0], left[i, 1] - right[j, 1], left[i, 2] - right[j, 2]
                squared = x * x + y * y + z * z
                if squared <= best_squared and (squared < best_squared or best < 0 or right_rows[j] < best):
                    best, best_squared = right_rows[j], squared
                j += 1
        nearest[left_rows[i]], nearest_squared[left_rows[i]] = best, best_squared
    return nearest, nearest_squared


@njit(cache=True, nogil=True)
def _keep(squared: Float, rows: Int, found: int, new_squared: float, new_row: int) -> int:
    """Put a pair into the heap of the nearest ones, in place of the farthest if it is full, and return how many it holds."""
    if found == len(rows):
        squared[0], rows[0] = new_squared, new_row
        _sink(squared, rows, found)
        return found
    at = found
    while at > 0:
        parent = (at - 1) // 2
        if not _farther(new_squared, new_row, squared[parent], rows[parent]):
            break
        squared[at], rows[at] = squared[parent], rows[parent]
        at = parent
    squared[at], rows[at] = new_squared, new_row
    return found + 1


@njit(cache=True, nogil=True)
def _sink(squared: Float, rows: Int, size: int) -> None:
    """Move the first entry of a heap of ``size`` down to its place."""
    top_squared, top_row = squared[0], rows[0]
    at, child = 0, 1
    while child < size:
        if child + 1 < size and _farther(squared[child + 1], rows[child + 1], squared[child], rows[child]):
            child += 1
        if not _farther(squared[child], rows[child], top_squared, top_row):
            break
        squared[at], rows[at] = squared[child], rows[child]
        at, child = child, 2 * child + 1
    squared[at], rows[at] = top_squared, top_row


@njit(cache=True, nogil=True)
def _farther(squared: float, row: int, other_squared: float, other_row: int) -> bool:
    return squared > other_squared or (squared == other_squared and row > other_row)


@njit(cache=True, nogil=True)
def _by_left_row(counts: Int, left_rows: Int, pair_rows: Int, pair_squared: Float) -> tuple[Int, Float]:
    """Bring the pairs, which come cell by cell, into the order of the left rows."""
    starts = np.cumsum(counts) - counts
    rows, squared = np.empty_like(pair_rows), np.empty_like(pair_squared)
    done = 0
    for row in left_rows:
        start, count = starts[row], counts[row]
        rows[start : start + count], squared[start : start + count] = (
            pair_rows[done : done + count],
            pair_squared[done : done + count],
        )
        done += count
    return rows, squared
