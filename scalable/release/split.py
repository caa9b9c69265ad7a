"""Train, validation and test by pixels of the sky: a stable hash deals them out, a guard band keeps them apart."""

from __future__ import annotations

import hashlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from scalable.errors import SurveyError
from scalable.release.recipe import Split
from scalable.sky.healpix import SIDE_ARCSEC, near_pixel, neighbours, to_pixels, unit_vectors
from scalable.sky.pixel import Pixel

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


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
    # The narrowest cell is wider than a quarter of the square root of its area.
    if split.guard_arcsec > SIDE_ARCSEC / (1 << split.order) / 4:
        fits = int(np.floor(np.log2(SIDE_ARCSEC / 4 / split.guard_arcsec)))
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
        `Part` and number of the fold, from 0. Rows nearer than the guard band to a pixel of another part are `Part.GUARD`, which
        depends on their position alone: rows that are added later change nothing.
    """
    if not len(ids):
        return np.zeros(0, np.int8), np.zeros(0, np.int8)
    cells = ids if split.random else to_pixels(ra, dec, split.order)
    parts = deal(split, cells)
    unique, where = np.unique(cells, return_inverse=True)
    folds = np.array([int(_share(f"{split.salt}:fold:{split.order}:{c}") * split.folds) for c in unique.tolist()], np.int8)[where]
    if split.random:
        return parts, folds
    guarded = parts.copy()
    for cell in unique.tolist():
        mine = np.flatnonzero(cells == cell)
        around = neighbours(np.array([cell]), split.order)
        others = around[deal(split, around) != parts[mine[0]]]
        for other in others.tolist():
            near = near_pixel(Pixel(split.order, other), ra[mine], dec[mine], radius_arcsec=split.guard_arcsec)
            guarded[mine[near]] = Part.GUARD
    return guarded, folds


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
