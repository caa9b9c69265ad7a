"""The one door to the HEALPix library: positions to pixels, borders, outlines. Angles in degrees unless named otherwise."""

from __future__ import annotations

import math

import numpy as np
from astropy import units as u
from astropy.coordinates import Latitude, Longitude
from cdshealpix import nested
from numpy.typing import NDArray

from scalable.sky.pixel import MAX_ORDER, Pixel

SIDE_ARCSEC = math.degrees(math.sqrt(math.pi / 3)) * 3600
"""Square root of the area of an order-0 pixel [arcsec]."""


def to_pixels(ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64], order: int = MAX_ORDER) -> NDArray[np.int64]:
    """Return the NESTED pixel of each position.

    Parameters
    ----------
    ra_deg, dec_deg : ndarray, shape (n,)
        ICRS position [deg]; any finite right ascension, declination in [-90, 90].
    order : int
        HEALPix order.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    lon = Longitude(ra_deg, u.deg, copy=False)
    return nested.lonlat_to_healpix(lon, Latitude(dec_deg, u.deg, copy=False), order, num_threads=1).astype(np.int64)


def ring_order(margin_arcsec: float) -> int:
    """Return the deepest order whose cells are surely wider than ``margin_arcsec``.

    The narrowest HEALPix cell is still wider than a quarter of the square root of its area, so cells four times the margin
    across hold every point within the margin of their border.
    """
    return max(0, min(MAX_ORDER, math.floor(math.log2(SIDE_ARCSEC / (4 * margin_arcsec)))))


def with_ring(pixel: Pixel, order: int) -> NDArray[np.int64]:
    """Return the order-29 ranges of a pixel and of the ring of ``order`` cells around it.

    Parameters
    ----------
    pixel : Pixel
        Its order is at most ``order``.
    order : int
        Order of the cells of the ring.

    Returns
    -------
    ndarray of int64, shape (n, 2)
        Sorted, disjoint, merged half-open ranges ``[start, stop)`` at order 29.
    """
    edges, corners = nested.external_neighbours(
        np.array([pixel.index], dtype=np.uint64), pixel.order, order - pixel.order, num_threads=1
    )
    cells = np.concatenate([edges.ravel().astype(np.int64), corners.ravel().astype(np.int64)])
    cells = np.unique(cells[cells >= 0])
    shift = 2 * (MAX_ORDER - order)
    starts = np.append(cells << shift, pixel.start)
    stops = np.append((cells + 1) << shift, pixel.stop)
    return merge_ranges(starts, stops)


def merge_ranges(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return disjoint, sorted ranges that cover the same integers, shape (n, 2)."""
    by_start = np.argsort(starts, kind="stable")
    starts, stops = starts[by_start], np.maximum.accumulate(stops[by_start])
    first = np.append(True, starts[1:] > stops[:-1])
    last = np.append(first[1:], True)
    return np.column_stack([starts[first], stops[last]])


def outline(pixel: Pixel, steps: int = 8) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the closed outline of a pixel as right ascension and declination [deg], shape (4 * steps,)."""
    lon, lat = nested.vertices(np.array([pixel.index], dtype=np.uint64), pixel.order, step=steps)
    return lon.to_value(u.deg).ravel(), lat.to_value(u.deg).ravel()


def cone_ranges(ra_deg: float, dec_deg: float, radius_arcsec: float) -> NDArray[np.int64]:
    """Return order-29 ranges, shape (n, 2), of cells that may hold points within ``radius_arcsec`` of a position."""
    depth = min(MAX_ORDER, ring_order(max(radius_arcsec, 1e-3)) + 2)
    cells, depths, _ = nested.cone_search(Longitude(ra_deg, u.deg), Latitude(dec_deg, u.deg), radius_arcsec * u.arcsec, depth)
    shift = 2 * (MAX_ORDER - depths.astype(np.int64))
    cells = cells.astype(np.int64)
    return merge_ranges(cells << shift, (cells + 1) << shift)


def neighbours(cells: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """Return the distinct cells of ``order`` that touch one of ``cells``, these included, sorted."""
    around = nested.neighbours(cells.astype(np.uint64), order, num_threads=1).astype(np.int64).ravel()
    return np.unique(around[around >= 0])
