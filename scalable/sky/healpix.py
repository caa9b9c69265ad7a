"""The one door to the HEALPix library: positions to pixels, borders, outlines. Angles in degrees unless named otherwise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from astropy import units as u
from astropy.coordinates import Latitude, Longitude
from cdshealpix import nested
from numpy.typing import NDArray

from scalable.sky.pixel import MAX_ORDER, Pixel

_SAMPLES = 64
_FINE = 17
_CORNERS = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])

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
    # A copy: angles beyond a turn are wrapped in place.
    lon = Longitude(ra_deg, u.deg)
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


def around_pixel(pixel: Pixel, *, radius_arcsec: float) -> NDArray[np.int64]:
    """Return order-29 ranges, shape (n, 2), that hold a pixel and every point within ``radius_arcsec`` of it, and some more.

    A ring of cells goes around a pixel that is large against them, a cone around a small one: whichever adds less.
    """
    ring = ring_order(radius_arcsec)
    if pixel.order < ring - 1:
        return with_ring(pixel, ring)
    lon, lat = nested.healpix_to_lonlat(np.array([pixel.index], dtype=np.uint64), pixel.order, num_threads=1)
    reach = math.degrees(cell_radius(pixel.order)) * 3600 + radius_arcsec
    return cone_ranges(float(lon.to_value(u.deg)[0]), float(lat.to_value(u.deg)[0]), reach)


def merge_ranges(starts: NDArray[np.int64], stops: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return disjoint, sorted ranges that cover the same integers, shape (n, 2)."""
    if len(starts) == 0:
        return np.zeros((0, 2), dtype=np.int64)
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
    """Return order-29 ranges, shape (n, 2), of cells that may hold points within ``radius_arcsec`` of a position.

    `cdshealpix.nested.cone_search` is not used: it loses cells of cones beyond some degrees (measured with version 0.9.0).
    """
    radius, ra, dec = math.radians(radius_arcsec / 3600), math.radians(ra_deg), math.radians(dec_deg)

    def distance(ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64]) -> NDArray[np.float64]:
        lon, lat = np.radians(ra_deg), np.radians(dec_deg)
        haversine = np.sin((lat - dec) / 2) ** 2 + np.cos(lat) * math.cos(dec) * np.sin((lon - ra) / 2) ** 2
        return 2 * np.arcsin(np.sqrt(np.minimum(1.0, haversine))) - radius

    return covering(distance, depth=min(MAX_ORDER, ring_order(max(radius_arcsec, 1e-3)) + 2))


def covering(
    distance: Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]],
    *,
    depth: int = MAX_ORDER,
    most_cells: int = 8_000,
) -> NDArray[np.int64]:
    """Return order-29 ranges, shape (n, 2), of cells that hold all of a region, and some more.

    Cells are cut in four until they lie in the region, outside, or are small against it.

    Parameters
    ----------
    distance : callable
        Gives for positions [deg] the distance to the border of the region [rad] or less, negative inside.
    depth : int
        Order of the smallest cells.
    most_cells : int
        As soon as more cells than these lie on the border, they are not cut further.
    """
    cells = np.arange(12, dtype=np.int64)
    starts, stops = [], []
    for order in range(depth + 1):
        lon, lat = (angle.to_value(u.deg) for angle in nested.healpix_to_lonlat(cells.astype(np.uint64), order, num_threads=1))
        apart = distance(lon, lat)
        # What rounding may add to an angle is far below the smallest cell.
        reach = cell_radius(order) + 1e-14
        near = apart <= reach
        last = order == depth or 4 * np.count_nonzero(near & (apart > -reach)) > most_cells
        done = near & ((apart <= -reach) | last)
        shift = 2 * (MAX_ORDER - order)
        starts.append(cells[done] << shift)
        stops.append(cells[done] + 1 << shift)
        cells = ((cells[near & ~done] << 2)[:, None] + np.arange(4)).ravel()
    return merge_ranges(np.concatenate(starts), np.concatenate(stops))


def cell_radius(order: int) -> float:
    """Return the largest angle between the centre and a corner of any cell of an order [rad] (as HEALPix C++, max_pixrad)."""
    side = 2**order
    height, top = 2 / 3, 1 - (1 - 1 / side) ** 2 / 3
    width, narrow = math.sqrt(1 - height**2), math.sqrt(1 - top**2)
    turn = math.pi / (4 * side)
    chord = math.dist((width * math.cos(turn), width * math.sin(turn), height), (narrow, 0.0, top))
    return 2 * math.asin(chord / 2)


def centres(cells: NDArray[np.int64], order: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return right ascension and declination [deg] of the middles of cells."""
    lon, lat = nested.healpix_to_lonlat(cells.astype(np.uint64), order, num_threads=1)
    return lon.to_value(u.deg), lat.to_value(u.deg)


def neighbours(cells: NDArray[np.int64], order: int) -> NDArray[np.int64]:
    """Return the distinct cells of ``order`` that touch one of ``cells``, these included, sorted."""
    around = nested.neighbours(cells.astype(np.uint64), order, num_threads=1).astype(np.int64).ravel()
    return np.unique(around[around >= 0])


def neighbour_ranges(pixels: Sequence[Pixel]) -> list[NDArray[np.int64]]:
    """Return for each pixel the order-29 ranges, shape (n, 2), of itself and of the pixels of its order that touch it."""
    ranges: list[NDArray[np.int64]] = [np.zeros((0, 2), dtype=np.int64)] * len(pixels)
    orders = np.array([pixel.order for pixel in pixels], dtype=np.int64)
    index = np.array([pixel.index for pixel in pixels], dtype=np.uint64)
    for order in np.unique(orders).tolist():
        mine = np.flatnonzero(orders == order)
        around = nested.neighbours(index[mine], order, num_threads=1).astype(np.int64)
        shift = 2 * (MAX_ORDER - order)
        for at, cells in zip(mine.tolist(), around, strict=True):
            starts = cells[cells >= 0] << shift
            ranges[at] = np.column_stack([starts, starts + (1 << shift)])
    return ranges


def near_pixel(
    pixel: Pixel, ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64], *, radius_arcsec: float
) -> NDArray[np.bool_]:
    """Return which positions outside a pixel lie within ``radius_arcsec`` of its border.

    In the plane of the HEALPix projection a pixel is a square that stands on its corner. Along its four straight sides the
    nearest sample is found first and, only where that leaves a doubt, the nearest point, to far below a milliarcsecond.

    Parameters
    ----------
    pixel : Pixel
        The pixel.
    ra_deg, dec_deg : ndarray, shape (n,)
        Positions around it [deg].
    radius_arcsec : float
        Threshold [arcsec].
    """
    side, step, chord = _nearest_sample(pixel, ra_deg, dec_deg)
    # Between two samples the border is nearer by at most their distance along the longest side, twice that of a square one.
    gap = 2 * SIDE_ARCSEC / (1 << pixel.order) / _SAMPLES
    near: NDArray[np.bool_] = _arcsec(chord) <= radius_arcsec + gap
    doubtful = np.flatnonzero(near)
    exact = _refined(pixel, unit_vectors(ra_deg[doubtful], dec_deg[doubtful]), side[doubtful], step[doubtful])
    near[doubtful] = exact <= radius_arcsec
    return near


def _nearest_sample(
    pixel: Pixel, ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Return side and step of the sample of the border that is nearest to each position, and the chord to it."""
    sides = np.repeat(np.arange(4), _SAMPLES)
    steps = np.tile((np.arange(_SAMPLES) + 0.5) / _SAMPLES, 4)
    border = _on_side(_corners(pixel), sides, steps)
    point = unit_vectors(ra_deg, dec_deg)
    # The nearest sample has the largest cosine; blocks bound the memory of the table of all pairs.
    nearest = np.concatenate([np.argmax(block @ border.T, axis=1) for block in np.array_split(point, len(point) // 4096 + 1)])
    return sides[nearest], steps[nearest], _chord(point, border[nearest])


def _refined(pixel: Pixel, point: NDArray[np.float64], side: NDArray[np.int64], step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance [arcsec] of points to the border about a sample of it.

    The bracket is searched at `_FINE` points and narrowed to the neighbours of the best until these are a tenth of an arcsecond
    apart; there the border is straight to a part in 1e6, and the lowest point of the parabola through the three is taken.
    """
    corners = _corners(pixel)
    low, high = (np.clip(step + delta / _SAMPLES, 0.0, 1.0) for delta in (-1.0, 1.0))
    width = 4 * SIDE_ARCSEC / (1 << pixel.order) / _SAMPLES
    while True:
        steps = low[:, None] + (high - low)[:, None] * np.linspace(0.0, 1.0, _FINE)
        on_side = _on_side(corners, np.repeat(side, _FINE), steps.ravel()).reshape(len(point), _FINE, 3)
        squared = ((on_side - point[:, None, :]) ** 2).sum(axis=2)
        best = np.clip(np.argmin(squared, axis=1), 1, _FINE - 2)
        row = np.arange(len(point))
        if width < 0.1:
            break
        low, high = steps[row, best - 1], steps[row, best + 1]
        width *= 2 / (_FINE - 1)
    left, middle, right = (squared[row, best + offset] for offset in (-1, 0, 1))
    bend = left - 2 * middle + right
    shift = np.clip(np.divide(left - right, 2 * bend, out=np.zeros_like(bend), where=bend > 0), -1.0, 1.0)
    lowest = middle + (right - left) / 2 * shift + bend / 2 * shift**2
    return _arcsec(np.sqrt(np.maximum(lowest, 0.0)))


def _arcsec(chord: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.degrees(2 * np.arcsin(np.minimum(1.0, chord / 2))) * 3600


def _corners(pixel: Pixel) -> NDArray[np.float64]:
    """Return the corners of a pixel in the projection plane, shape (4, 2)."""
    centre = np.column_stack(nested.healpix_to_xy(np.array([pixel.index], dtype=np.uint64), pixel.order, num_threads=1))
    return centre + _CORNERS / (1 << pixel.order)


def _on_side(corners: NDArray[np.float64], side: NDArray[np.int64], step: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return unit vectors, shape (n, 3), of points on the four sides of a pixel, ``step`` from 0 to 1 along each."""
    plane = corners[side] + step[:, None] * (np.roll(corners, -1, axis=0) - corners)[side]
    # Twice: a hair below 0 gives 8 itself at first.
    lon, lat = nested.xy_to_lonlat(plane[:, 0] % 8.0 % 8.0, np.clip(plane[:, 1], -2.0, 2.0), num_threads=1)
    return unit_vectors(lon.to_value(u.deg), lat.to_value(u.deg))


def unit_vectors(ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return Cartesian unit vectors, shape (n, 3), of positions [deg]."""
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def _chord(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sqrt(((a - b) ** 2).sum(axis=1))
