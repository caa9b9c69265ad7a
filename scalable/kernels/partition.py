"""How rows become leaves: adaptive pixels from counts, groups in sorted arrays, mean positions, spread."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Int = NDArray[np.int64]
Float = NDArray[np.float64]


MANY = 2000
"""Members from which on a group's spread is bounded instead of measured pair by pair."""


def split_pixels(cells: Int, counts: Int, cell_order: int, *, limit: int, max_order: int) -> list[tuple[int, int, int]]:
    """Cut the occupied sky into the largest pixels that hold at most ``limit`` rows each.

    Parameters
    ----------
    cells, counts : ndarray of int64, shape (n,)
        Sorted occupied NESTED cells of ``cell_order`` and the rows in each.
    limit : int
        Largest number of rows in a pixel, unless it is a pixel of ``max_order`` already.
    max_order : int
        Deepest order, at most ``cell_order``.

    Returns
    -------
    list of (order, index, rows)
        Pixels that hold cells, along the sky; none inside another.
    """
    total = np.concatenate([[0], np.cumsum(counts)])
    pixels: list[tuple[int, int, int]] = []
    waiting = np.unique(cells >> 2 * cell_order)
    for order in range(max_order + 1):
        shift = 2 * (cell_order - order)
        first = np.searchsorted(cells, waiting << shift)
        last = np.searchsorted(cells, (waiting + 1) << shift)
        rows = total[last] - total[first]
        done = (rows <= limit) | (order == max_order)
        # Cells without rows count too: the mean of an object may lie there.
        kept = done & (last > first)
        pixels += [(order, int(p), int(n)) for p, n in zip(waiting[kept], rows[kept], strict=True)]
        waiting = ((waiting[~done] << 2)[:, None] + np.arange(4)).ravel()
    return sorted(pixels, key=lambda pixel: pixel[1] << 2 * (max_order - pixel[0]))


def boundaries(*keys: NDArray[np.generic]) -> Int:
    """Return offsets, shape (groups + 1,), of runs of equal keys in arrays sorted by them."""
    rows = len(keys[0])
    if rows == 0:
        return np.zeros(1, dtype=np.int64)
    changed = np.zeros(rows - 1, dtype=bool)
    for key in keys:
        changed |= key[1:] != key[:-1]
    return np.concatenate([[0], np.flatnonzero(changed) + 1, [rows]]).astype(np.int64)


@njit(cache=True, nogil=True)
def unit_vectors(ra_deg: Float, dec_deg: Float) -> Float:
    """Return Cartesian unit vectors, shape (n, 3), of positions in degrees."""
    vectors = np.empty((len(ra_deg), 3))
    for i in range(len(ra_deg)):
        ra, dec = np.deg2rad(ra_deg[i]), np.deg2rad(dec_deg[i])
        vectors[i, 0] = np.cos(dec) * np.cos(ra)
        vectors[i, 1] = np.cos(dec) * np.sin(ra)
        vectors[i, 2] = np.sin(dec)
    return vectors


@njit(cache=True, nogil=True)
def mean_positions(vectors: Float, offsets: Int) -> tuple[Float, Float]:
    """Return the normalised vector mean of each group as right ascension in [0, 360) and declination [deg].

    Vectors are added in row order, so that two tasks that see the same group agree to the bit.

    Parameters
    ----------
    vectors : ndarray, shape (n, 3)
        Unit vectors, sorted by group.
    offsets : ndarray of int64, shape (groups + 1,)
        Where each group begins and ends.
    """
    groups = len(offsets) - 1
    ra_deg, dec_deg = np.empty(groups), np.empty(groups)
    for g in range(groups):
        x = y = z = 0.0
        for i in range(offsets[g], offsets[g + 1]):
            x += vectors[i, 0]
            y += vectors[i, 1]
            z += vectors[i, 2]
        ra = np.rad2deg(np.arctan2(y, x))
        if ra < 0.0:
            ra += 360.0
        # -1e-17 + 360 rounds to 360, which is the same meridian as 0.
        ra_deg[g] = 0.0 if ra >= 360.0 else ra
        dec_deg[g] = np.rad2deg(np.arctan2(z, np.hypot(x, y)))
    return ra_deg, dec_deg


@njit(cache=True, nogil=True)
def spreads_arcsec(vectors: Float, offsets: Int) -> Float:
    """Return the largest separation between any two members of each group [arcsec]; 0 for a single one.

    The angle is 2 asin(chord / 2), which stays accurate for small separations. For a group of more than `MANY` members, whose
    pairs would take too long, the diagonal of its Cartesian box stands for it, which is never too small.
    """
    groups = len(offsets) - 1
    spread = np.zeros(groups)
    for g in range(groups):
        largest = 0.0
        if offsets[g + 1] - offsets[g] > MANY:
            for axis in range(3):
                along = vectors[offsets[g] : offsets[g + 1], axis]
                largest += (along.max() - along.min()) ** 2
            spread[g] = np.rad2deg(2.0 * np.arcsin(min(1.0, np.sqrt(largest) / 2.0))) * 3600.0
            continue
        for i in range(offsets[g], offsets[g + 1]):
            for j in range(i + 1, offsets[g + 1]):
                dx = vectors[i, 0] - vectors[j, 0]
                dy = vectors[i, 1] - vectors[j, 1]
                dz = vectors[i, 2] - vectors[j, 2]
                largest = max(largest, dx * dx + dy * dy + dz * dz)
        spread[g] = np.rad2deg(2.0 * np.arcsin(min(1.0, np.sqrt(largest) / 2.0))) * 3600.0
    return spread


@njit(cache=True, nogil=True)
def boxes(vectors: Float, offsets: Int) -> Float:
    """Return the Cartesian bounding box of each group, shape (groups, 6): the three minima, then the three maxima."""
    groups = len(offsets) - 1
    box = np.empty((groups, 6))
    for g in range(groups):
        for axis in range(3):
            low, high = np.inf, -np.inf
            for i in range(offsets[g], offsets[g + 1]):
                low = min(low, vectors[i, axis])
                high = max(high, vectors[i, axis])
            box[g, axis], box[g, axis + 3] = low, high
    return box


def merge_boxes(box: Float, offsets: Int) -> Float:
    """Return the union of the boxes of each group, shape (groups, 6)."""
    lower = np.minimum.reduceat(box[:, :3], offsets[:-1], axis=0)
    upper = np.maximum.reduceat(box[:, 3:], offsets[:-1], axis=0)
    return np.concatenate([lower, upper], axis=1)


def box_extent_arcsec(box: Float) -> Float:
    """Return the separation that the diagonal of each box spans [arcsec]: no member pair is further apart than that."""
    diagonal = np.sqrt(((box[:, 3:] - box[:, :3]) ** 2).sum(axis=1))
    return np.rad2deg(2.0 * np.arcsin(np.minimum(1.0, diagonal / 2.0))) * 3600.0


def bucket_of(ids: Int, buckets: int) -> NDArray[np.int64]:
    """Return a well mixed bucket in [0, buckets) for each id (Fibonacci hashing, Knuth 6.4)."""
    mixed = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    return (mixed >> np.uint64(40)).astype(np.int64) % buckets
