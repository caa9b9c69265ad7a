"""Which positions belong together: friends of friends, and the nearest object of a reference catalogue.

Both work on unit vectors in a Cartesian grid, so that poles and right ascension 0 are places like any other. Points are sorted by
grid cell, and one pointer for each column of neighbouring cells walks along with them: no tree, no hash table.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scalable.kernels.partition import boundaries, boxes

Int = NDArray[np.int64]
Float = NDArray[np.float64]

MIN_RADIUS_ARCSEC = 1e-3
"""Smallest radius that the grid can count cells for."""


def chord(radius_arcsec: float) -> float:
    """Return the straight distance of two unit vectors that are ``radius_arcsec`` apart."""
    return float(2.0 * np.sin(np.deg2rad(radius_arcsec / 3600.0) / 2.0))


def friends_of_friends(vectors: Float, radius_arcsec: float) -> Int:
    """Return which positions are connected by steps of at most ``radius_arcsec``.

    The components of the graph of all pairs with a separation of at most the radius, exactly. Cells are so small that all points
    of one are friends; of two neighbouring cells one pair of friends is looked for, and only until it is found. So neither
    identical positions nor dense clusters cost the square of their number.

    Parameters
    ----------
    vectors : ndarray, shape (n, 3)
        Unit vectors.
    radius_arcsec : float
        Linking length [arcsec], at least `MIN_RADIUS_ARCSEC`.

    Returns
    -------
    ndarray of int64, shape (n,)
        For each position the first row of its component.
    """
    reach = chord(radius_arcsec)
    # The diagonal of a cell is a little shorter than the radius, by far more than coordinates are rounded.
    columns, levels = _cells(vectors, 0.999 * reach / np.sqrt(3.0))
    order = np.lexsort((vectors[:, 0], levels, columns))
    points = vectors[order]
    new = np.ones(len(points), dtype=bool)
    new[1:] = (points[1:] != points[:-1]).any(axis=1)
    columns, levels = columns[order[new]], levels[order[new]]
    offsets = boundaries(columns, levels)
    # The sort is stable: of identical positions the first row stands first.
    first = _linked(points[new], order[new], offsets, columns[offsets[:-1]], levels[offsets[:-1]], reach * reach)
    labels = np.empty(len(order), dtype=np.int64)
    labels[order] = first[np.cumsum(new) - 1]
    return labels


def nearest_reference(vectors: Float, reference_vectors: Float, radius_arcsec: float) -> tuple[Int, Float]:
    """Return the nearest reference position within ``radius_arcsec`` of each position.

    Parameters
    ----------
    vectors, reference_vectors : ndarray, shape (n, 3) and (m, 3)
        Unit vectors.
    radius_arcsec : float
        Largest separation [arcsec], at least `MIN_RADIUS_ARCSEC`.

    Returns
    -------
    index : ndarray of int64, shape (n,)
        Row of the reference, the lower of two that are equally near; -1 where none is within the radius.
    separation_arcsec : ndarray, shape (n,)
        Angle to it [arcsec]; NaN where there is none.
    """
    reach = chord(radius_arcsec)
    columns, levels = _cells(vectors, reach)
    order = np.lexsort((levels, columns))
    reference_columns, reference_levels = _cells(reference_vectors, reach)
    reference_order = np.lexsort((reference_levels, reference_columns))
    index, squared = _nearest(
        vectors[order],
        columns[order],
        levels[order],
        reference_vectors[reference_order],
        reference_order,
        reference_columns[reference_order],
        reference_levels[reference_order],
        reach * reach,
    )
    separation = np.rad2deg(2.0 * np.arcsin(np.minimum(1.0, np.sqrt(squared) / 2.0))) * 3600.0
    found, apart = np.empty(len(order), dtype=np.int64), np.empty(len(order))
    found[order], apart[order] = index, separation
    return found, apart


_SHIFT = 1 << 32
"""What the cell number of one axis is multiplied with to make room for that of another."""


@njit(cache=True, nogil=True)
def _cells(vectors: Float, side: float) -> tuple[Int, Int]:
    """Return the grid cell of each vector: the column along the third axis, from the first two, and the level in it."""
    columns, levels = np.empty(len(vectors), dtype=np.int64), np.empty(len(vectors), dtype=np.int64)
    for i in range(len(vectors)):
        x, y = np.int64(np.floor(vectors[i, 0] / side)), np.int64(np.floor(vectors[i, 1] / side))
        columns[i] = x * _SHIFT + y
        levels[i] = np.int64(np.floor(vectors[i, 2] / side))
    return columns, levels


@njit(cache=True, nogil=True)
def _root(parents: Int, cell: int) -> int:
    while parents[cell] != cell:
        parents[cell] = parents[parents[cell]]
        cell = parents[cell]
    return cell


@njit(cache=True, nogil=True)
def _squared_to_box(point: Float, box: Float) -> float:
    """Return the squared distance of a point from a box (three minima, three maxima)."""
    squared = 0.0
    for axis in range(3):
        outside = max(box[axis] - point[axis], point[axis] - box[axis + 3], 0.0)
        squared += outside * outside
    return squared


@njit(cache=True, nogil=True)
def _any_friends(left: Float, right: Float, box: Float, limit: float) -> bool:
    """Return whether any point of one cell is a friend of any point of the other, whose box is given."""
    for i in range(len(left)):
        # Rounded the way the distance of a pair is, the distance from the box is never larger than that of a point in it.
        if _squared_to_box(left[i], box) > limit:
            continue
        for j in range(len(right)):
            dx, dy, dz = left[i, 0] - right[j, 0], left[i, 1] - right[j, 1], left[i, 2] - right[j, 2]
            if dx * dx + dy * dy + dz * dz <= limit:
                return True
    return False


@njit(cache=True, nogil=True)
def _linked(vectors: Float, rows: Int, offsets: Int, columns: Int, levels: Int, limit: float) -> Int:
    """Link cells that hold friends, and return for each vector the lowest of ``rows`` in its component.

    Cells are sorted by column and level.
    """
    cells = len(offsets) - 1
    parents = np.arange(cells)
    box = boxes(vectors, offsets)
    # Friends are at most two cells apart on each axis; half of the columns around are enough, for friendship is mutual.
    for dx in range(3):
        for dy in range(-2, 3):
            if dx == 0 and dy < 0:
                continue
            step = dx * _SHIFT + dy
            first = 0
            for cell in range(cells):
                column, lowest = columns[cell] + step, levels[cell] - 2
                while first < cells and (columns[first] < column or (columns[first] == column and levels[first] < lowest)):
                    first += 1
                other = max(first, cell + 1)
                while other < cells and columns[other] == column and levels[other] <= levels[cell] + 2:
                    a, b = _root(parents, cell), _root(parents, other)
                    if a != b and _any_friends(
                        vectors[offsets[cell] : offsets[cell + 1]],
                        vectors[offsets[other] : offsets[other + 1]],
                        box[other],
                        limit,
                    ):
                        parents[max(a, b)] = min(a, b)
                    other += 1
    lowest_row = np.full(cells, np.iinfo(np.int64).max)
    labels = np.empty(len(vectors), dtype=np.int64)
    for cell in range(cells):
        root = _root(parents, cell)
        lowest_row[root] = min(lowest_row[root], rows[offsets[cell] : offsets[cell + 1]].min())
    for cell in range(cells):
        labels[offsets[cell] : offsets[cell + 1]] = lowest_row[_root(parents, cell)]
    return labels


@njit(cache=True, nogil=True)
def _nearest(
    vectors: Float,
    columns: Int,
    levels: Int,
    reference_vectors: Float,
    reference_order: Int,
    reference_columns: Int,
    reference_levels: Int,
    limit: float,
) -> tuple[Int, Float]:
    """Return row of and squared distance to the nearest reference; both sides are sorted by column and level."""
    n, m = len(vectors), len(reference_vectors)
    index, least = np.full(n, -1, dtype=np.int64), np.full(n, np.nan)
    for dx in range(-1, 2):
        for dy in range(-1, 2):
            step = dx * _SHIFT + dy
            first = 0
            for i in range(n):
                column, lowest = columns[i] + step, levels[i] - 1
                while first < m and (
                    reference_columns[first] < column or (reference_columns[first] == column and reference_levels[first] < lowest)
                ):
                    first += 1
                j = first
                while j < m and reference_columns[j] == column and reference_levels[j] <= levels[i] + 1:
                    x = vectors[i, 0] - reference_vectors[j, 0]
                    y = vectors[i, 1] - reference_vectors[j, 1]
                    z = vectors[i, 2] - reference_vectors[j, 2]
                    squared = x * x + y * y + z * z
                    nearer = index[i] < 0 or squared < least[i] or (squared == least[i] and reference_order[j] < index[i])
                    if squared <= limit and nearer:
                        index[i], least[i] = reference_order[j], squared
                    j += 1
    return index, least
