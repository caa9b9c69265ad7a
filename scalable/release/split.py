"""Train, validation and test by pixels of the sky: a stable hash deals them out, a guard band keeps them apart."""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from scalable.errors import SurveyError
from scalable.release.recipe import Split
from scalable.sky.healpix import SIDE_ARCSEC, to_pixels, unit_vectors

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_DIRECTIONS, _ROWS = 24, 1 << 14
"""Points looked up around a row, and rows looked at together: some 20 MB of points."""


class Part(IntEnum):
    """What a row is for; the codes are part of the release format."""

    TRAIN = 0
    VALIDATION = 1
    TEST = 2
    GUARD = 3


def check_split(split: Split) -> None:
    """Refuse a guard band so wide that it could reach beyond the neighbours of a pixel.

    Raises
    ------
    SurveyError
        Naming the largest order that has room for it.
    """
    # The narrowest cell is wider than a quarter of the square root of its area; the circle that is looked at, twice the band.
    if split.guard_arcsec > SIDE_ARCSEC / (1 << split.order) / 8:
        fits = int(np.floor(np.log2(SIDE_ARCSEC / 8 / split.guard_arcsec)))
        raise SurveyError(f"split.order: pixels of order {split.order} are too small for a guard band of {split.guard_arcsec} "
                          f"arcsec; take order {fits} or less")  # fmt: skip


def deal(split: Split, cells: Ints) -> NDArray[np.int8]:
    """Return the part that each pixel, or with ``random`` each object, is dealt to; it depends on nothing but number and salt."""
    unique, where = np.unique(cells, return_inverse=True)
    shares = np.array([_share(f"{split.salt}:{split.order}:{cell}") for cell in unique.tolist()])
    edges = [split.train, split.train + split.validation]
    # A share of exactly nothing gets nothing, whatever rounding says.
    parts = np.searchsorted(edges, shares, side="right").astype(np.int8)
    if not split.test:
        parts = np.minimum(parts, 1 if split.validation else 0).astype(np.int8)
    return parts[where] if len(unique) else np.zeros(0, np.int8)


def _share(text: str) -> float:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def split_rows(split: Split, ids: Ints, ra: Floats, dec: Floats) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    """Return the part and the fold of every row.

    Parameters
    ----------
    split : Split
        How.
    ids : ndarray of int64, shape (n,)
        Objects; rows of one object get the same.
    ra, dec : ndarray of float64, shape (n,)
        Positions of the objects [deg].

    Returns
    -------
    parts, folds : ndarray of int8, shape (n,)
        `Part` and number of the fold, from 0. All rows nearer than the guard band to a pixel of another part, and some up
        to twice as far, are `Part.GUARD`, which depends on their position alone: rows that are added later change nothing.
    """
    if not len(ids):
        return np.zeros(0, np.int8), np.zeros(0, np.int8)
    cells = ids if split.random else to_pixels(ra, dec, split.order)
    parts = deal(split, cells)
    unique, where = np.unique(cells, return_inverse=True)
    folds = np.array([int(_share(f"{split.salt}:fold:{split.order}:{c}") * split.folds) for c in unique.tolist()], np.int8)[where]
    if not split.random:
        for first in range(0, len(ids), _ROWS):
            some = slice(first, first + _ROWS)
            parts[some][_near_others(split, parts[some], ra[some], dec[some])] = Part.GUARD
    return parts, folds


def _near_others(split: Split, parts: NDArray[np.int8], ra: Floats, dec: Floats) -> NDArray[np.bool_]:
    """Return which rows may lie within the guard band of a pixel of another part.

    Points on a circle of twice the band's width around a row are looked up: a border that comes nearer than the width, even the
    corner of a pixel, which opens by 40 degrees or more, is wider there than the points are apart.
    """
    radius = 2 * np.deg2rad(split.guard_arcsec / 3600)
    centre = unit_vectors(ra, dec)
    east = np.column_stack([-np.sin(np.deg2rad(ra)), np.cos(np.deg2rad(ra)), np.zeros(len(ra))])
    north = np.cross(centre, east)
    angles = (np.arange(_DIRECTIONS) * (2 * np.pi / _DIRECTIONS))[:, None, None]
    points = np.cos(radius) * centre + np.sin(radius) * (np.cos(angles) * east + np.sin(angles) * north)
    x, y, z = points.reshape(-1, 3).T
    cells = to_pixels(np.rad2deg(np.arctan2(y, x)) % 360, np.rad2deg(np.arctan2(z, np.hypot(x, y))), split.order)
    dealt = deal(split, cells).reshape(_DIRECTIONS, -1)
    return np.any(dealt != parts, axis=0)


def leaks(parts: NDArray[np.int8], ra: Floats, dec: Floats, *, radius_arcsec: float) -> int:
    """Return how many rows of test and validation have a row of another part, the guard band aside, within the radius."""
    chord = 2 * np.sin(np.deg2rad(radius_arcsec / 3600) / 2)
    vectors = unit_vectors(ra, dec)
    found = 0
    for part in (Part.VALIDATION, Part.TEST):
        mine = parts == part
        others = ~mine & (parts != Part.GUARD)
        if mine.any() and others.any():
            nearest, _ = cKDTree(vectors[others]).query(vectors[mine], distance_upper_bound=np.nextafter(chord, 1))
            found += int(np.count_nonzero(nearest <= chord))
    return found


def random_leaks(split: Split, ids: Ints, ra: Floats, dec: Floats) -> int:
    """Return the leaks that a random split of the same shares has, to be printed beside the other's."""
    return leaks(deal(split.model_copy(update={"random": True}), ids), ra, dec, radius_arcsec=split.guard_arcsec)
