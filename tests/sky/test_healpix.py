"""The door to HEALPix, held to spherical geometry that is computed here."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cdshealpix import nested
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scalable.sky.healpix import SIDE_ARCSEC, cone_ranges, merge_ranges, neighbours, outline, ring_order, to_pixels, with_ring
from scalable.sky.pixel import MAX_ORDER, Pixel

Float = NDArray[np.float64]
SKY = 12 * 4**MAX_ORDER
TRANSITION_DEG = math.degrees(math.asin(2 / 3))  # declination where the polar caps of HEALPix begin

margins = st.floats(-1.5, math.log10(0.25 * SIDE_ARCSEC)).map(lambda log: 10**log)
seeds = st.integers(0, 2**32 - 1)


def vectors(ra_deg: Float, dec_deg: Float) -> Float:
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def angles(xyz: Float) -> tuple[Float, Float]:
    return np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0])) % 360, np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))


def moved(ra_deg: Float, dec_deg: Float, bearing: Float, arcsec: Float) -> tuple[Float, Float]:
    """Return positions moved along great circles by exactly ``arcsec``."""
    ra = np.radians(ra_deg)
    up = vectors(ra_deg, dec_deg)
    east = np.stack([-np.sin(ra), np.cos(ra), np.zeros_like(ra)], axis=-1)
    direction = np.cross(up, east) * np.cos(bearing)[:, None] + east * np.sin(bearing)[:, None]
    angle = np.radians(arcsec / 3600)[:, None]
    return angles(up * np.cos(angle) + direction * np.sin(angle))


def held(ranges: NDArray[np.int64], points: NDArray[np.int64]) -> NDArray[np.bool_]:
    place = np.searchsorted(ranges[:, 0], points, side="right") - 1
    return (place >= 0) & (points < ranges[np.maximum(place, 0), 1])


def border(pixel: Pixel, rng: np.random.Generator, arcsec: float, points: int) -> tuple[Float, Float]:
    """Return points of the pixel within a millionth of ``arcsec`` of its border, corners included."""
    ra, dec = (np.repeat(angle, points // 32) for angle in outline(pixel, 8))
    ra, dec = moved(ra, dec, rng.uniform(0, 2 * np.pi, len(ra)), rng.uniform(0, 1e-6 * arcsec, len(ra)))
    inside = to_pixels(ra, dec, pixel.order) == pixel.index
    return ra[inside], dec[inside]


@st.composite
def places(draw: st.DrawFn) -> tuple[float, float]:
    """Draw positions, often where a sphere is awkward."""
    ra = draw(st.sampled_from([0.0, 45.0, 90.0, 180.0, 270.0, 1e-9, 359.999999999]) | st.floats(0, 360, exclude_max=True))
    special = [0.0, 90.0, -90.0, 89.9999, -89.9999, TRANSITION_DEG, -TRANSITION_DEG]
    return ra, draw(st.sampled_from(special) | st.floats(-90, 90))


@st.composite
def pixels(draw: st.DrawFn, max_order: int) -> Pixel:
    """Draw pixels of any order; often a corner of a base pixel, at a pole, or on the meridian of 0."""
    order = draw(st.integers(0, max_order))
    last = 4**order - 1
    corner = st.tuples(st.integers(0, 11), st.sampled_from([0, last // 3, 2 * last // 3, last])).map(
        lambda pair: pair[0] * 4**order + pair[1]
    )
    somewhere = places().map(lambda p: int(to_pixels(np.array([p[0]]), np.array([p[1]]), order)[0]))
    return Pixel(order, draw(corner | somewhere | st.integers(0, 12 * 4**order - 1)))


@settings(deadline=None)
@given(st.lists(places(), min_size=1, max_size=50), st.integers(0, MAX_ORDER))
def test_a_position_lies_in_the_parent_of_its_deepest_pixel(where: list[tuple[float, float]], order: int) -> None:
    ra, dec = np.array(where).T
    deepest = to_pixels(ra.copy(), dec)
    assert deepest.dtype == np.int64
    assert ((deepest >= 0) & (deepest < SKY)).all()
    assert (to_pixels(ra.copy(), dec, order) == deepest >> 2 * (MAX_ORDER - order)).all()


@settings(deadline=None)
@given(st.lists(places(), min_size=1, max_size=50), st.integers(0, MAX_ORDER))
def test_a_position_is_no_further_from_its_pixels_centre_than_a_cell_is_large(
    where: list[tuple[float, float]], order: int
) -> None:
    ra, dec = np.array(where).T
    lon, lat = nested.healpix_to_lonlat(to_pixels(ra.copy(), dec, order).astype(np.uint64), order)
    chord = np.linalg.norm(vectors(lon.to_value("deg"), lat.to_value("deg")) - vectors(ra, dec), axis=1)
    # The cell with the corner furthest from its centre touches the polar cap on a base pixel's edge (max_pixrad of HEALPix C++).
    side = 2**order
    centre, top = (TRANSITION_DEG, 45 / side), (math.degrees(math.asin(1 - (1 - 1 / side) ** 2 / 3)), 0.0)
    largest = np.linalg.norm(
        vectors(np.float64(centre[1]), np.float64(centre[0])) - vectors(np.float64(top[1]), np.float64(top[0]))
    )
    assert (chord <= largest + 1e-15).all()


@settings(deadline=None)
@given(st.integers(-720, 719), st.integers(-90, 90), st.integers(0, MAX_ORDER))
def test_right_ascension_counts_modulo_360(ra: int, dec: int, order: int) -> None:
    given_as, wrapped = (np.array([float(value)]) for value in (ra, ra % 360))
    assert to_pixels(given_as, np.array([float(dec)]), order) == to_pixels(wrapped, np.array([float(dec)]), order)


def test_no_position_gives_no_pixel() -> None:
    assert to_pixels(np.zeros(0), np.zeros(0)).shape == (0,)


@pytest.mark.parametrize("dec", [90.0000001, -91.0])
def test_a_declination_beyond_the_pole_is_refused(dec: float) -> None:
    with pytest.raises(ValueError, match="-90 deg <= angle <= 90 deg"):
        to_pixels(np.array([1.0]), np.array([dec]))


@settings(deadline=None)
@given(margins, seeds)
def test_cells_of_the_ring_are_wider_than_twice_the_margin(margin: float, seed: int) -> None:
    # Twice, because the width of a cell shrinks towards a corner, and the promise holds there too.
    order = ring_order(margin)
    index = int(np.random.default_rng(seed).integers(12 * 4**order))
    sides = vectors(*outline(Pixel(order, index), 8)).reshape(4, 8, 3)
    sides = np.concatenate([sides, np.roll(sides, -1, axis=0)[:, :1]], axis=1)
    for a, b in ((0, 2), (1, 3)):
        width = np.linalg.norm(sides[a][:, None] - sides[b], axis=-1).min()
        assert width > 2 * 2 * math.sin(math.radians(margin / 3600) / 2)


@settings(deadline=None)
@given(margins.filter(lambda margin: 0 < ring_order(margin) < MAX_ORDER))
def test_the_ring_is_of_the_deepest_order_that_is_four_margins_across(margin: float) -> None:
    side = SIDE_ARCSEC / 2 ** ring_order(margin)
    assert side / 2 < 4 * margin <= side


def test_the_order_of_the_ring_stays_among_healpix_orders() -> None:
    assert ring_order(1e-9) == MAX_ORDER
    assert ring_order(0.3 * SIDE_ARCSEC) == 0


@settings(deadline=None, max_examples=60)
@given(st.data(), margins, seeds)
def test_pixel_and_ring_hold_every_point_within_the_margin_of_the_pixel(data: st.DataObject, margin: float, seed: int) -> None:
    order = ring_order(margin)
    pixel = data.draw(pixels(order))
    rng = np.random.default_rng(seed)
    ra, dec = border(pixel, rng, margin, 640)
    far = np.where(rng.random(len(ra)) < 0.7, margin, margin * rng.random(len(ra)))
    ra, dec = moved(ra, dec, rng.uniform(0, 2 * np.pi, len(ra)), far)
    assert len(ra) > 0
    assert held(with_ring(pixel, order), to_pixels(ra, dec)).all()


@settings(deadline=None)
@given(st.data(), st.integers(0, MAX_ORDER))
def test_pixel_and_ring_are_the_pixel_and_the_cells_that_touch_it(data: st.DataObject, order: int) -> None:
    pixel = data.draw(pixels(min(order, MAX_ORDER)).filter(lambda pixel: order - pixel.order <= 4))
    inside = np.arange(pixel.start >> 2 * (MAX_ORDER - order), pixel.stop >> 2 * (MAX_ORDER - order))
    cells = neighbours(inside, order)
    expected = merge_ranges(cells << 2 * (MAX_ORDER - order), (cells + 1) << 2 * (MAX_ORDER - order))
    assert with_ring(pixel, order).tolist() == expected.tolist()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), min_size=1, max_size=12))
def test_merged_ranges_are_the_runs_of_the_same_integers(pairs: list[tuple[int, int]]) -> None:
    starts = np.array([start for start, _ in pairs])
    stops = np.array([start + length for start, length in pairs])
    wanted = set().union(*(range(a, b) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)))
    merged = merge_ranges(starts, stops)
    assert [n for a, b in merged.tolist() for n in range(a, b)] == sorted(wanted)
    # Largest runs: none begins where the one before ends.
    assert (merged[1:, 0] > merged[:-1, 1]).all()


@settings(deadline=None)
@given(places(), st.floats(-1, 4).map(lambda log: 10**log))
def test_a_cone_reaches_no_further_than_a_few_of_its_radii(where: tuple[float, float], radius_arcsec: float) -> None:
    ranges = cone_ranges(*where, radius_arcsec)
    assert (ranges[1:, 0] > ranges[:-1, 1]).all()
    area = (ranges[:, 1] - ranges[:, 0]).sum() * (SIDE_ARCSEC / 2**MAX_ORDER) ** 2
    # Cells are at most half a radius wide at four radii across and two orders deeper: 2 x (1 + 2 x 0.9)**2 x pi.
    assert area <= 50 * radius_arcsec**2


def test_a_cone_of_180_degrees_is_the_sky() -> None:
    assert cone_ranges(10.0, 20.0, 648_000.0).tolist() == [[0, SKY]]


@settings(deadline=None)
@given(st.data(), st.integers(0, MAX_ORDER))
def test_neighbours_are_the_cells_that_hold_the_points_around_a_cell(data: st.DataObject, order: int) -> None:
    pixel = Pixel(order, data.draw(pixels(order)).start >> 2 * (MAX_ORDER - order))
    found = neighbours(np.array([pixel.index]), order)
    rng = np.random.default_rng(pixel.index % 2**32)
    # A thousandth of a cell out from its border, or what doubles resolve at order 29.
    step = max(1e-3 * SIDE_ARCSEC / 2**order, 3e-7)
    ra, dec = border(pixel, rng, step, 2048)
    ra, dec = moved(ra, dec, rng.uniform(0, 2 * np.pi, len(ra)), np.full(len(ra), step))
    around = np.unique(np.append(to_pixels(ra, dec, order), pixel.index))
    assert set(around.tolist()) <= set(found.tolist())
    assert (np.diff(found) > 0).all()
    assert len(found) in ((7, 8, 9) if order else (7,))


def test_neighbours_of_several_cells_are_the_union() -> None:
    cells = np.array([0, 7, 700, 3071])
    one_by_one = [neighbours(cells[i : i + 1], 4) for i in range(4)]
    assert neighbours(cells, 4).tolist() == np.unique(np.concatenate(one_by_one)).tolist()
    assert neighbours(np.zeros(0, dtype=np.int64), 4).tolist() == []


@settings(deadline=None)
@given(st.data(), st.integers(1, 16))
def test_the_outline_goes_once_around_the_centre_along_the_border(data: st.DataObject, steps: int) -> None:
    pixel = data.draw(pixels(20))
    ra, dec = outline(pixel, steps)
    assert ra.shape == dec.shape == (4 * steps,)
    lon, lat = nested.healpix_to_lonlat(np.array([pixel.index], dtype=np.uint64), pixel.order)
    centre = vectors(lon.to_value("deg"), lat.to_value("deg"))[0]
    corners = vectors(ra, dec)
    east = np.cross([0.0, 0.0, 1.0], centre)
    north = np.cross(centre, east)
    bearing = np.arctan2(corners @ north, corners @ east)
    turns = (np.diff(np.append(bearing, bearing[0])) + np.pi) % (2 * np.pi) - np.pi
    assert (turns > 0).all() or (turns < 0).all()
    assert abs(turns.sum()) == pytest.approx(2 * np.pi, abs=1e-9)
    # On the border: a little towards the centre lies in the pixel, a little away from it does not.
    for factor, inside in ((-1e-6, True), (1e-6, False)):
        around = angles(corners + factor * (corners - centre))
        assert ((to_pixels(*around, pixel.order) == pixel.index) == inside).all()


def test_pixels_are_those_of_the_healpix_definition_at_order_zero() -> None:
    # Centres of the twelve base pixels (Gorski et al. 2005): four around each pole, four on the equator.
    height = TRANSITION_DEG
    ra = np.array([45.0, 135, 225, 315, 0, 90, 180, 270, 45, 135, 225, 315])
    dec = np.array([height] * 4 + [0.0] * 4 + [-height] * 4)
    assert to_pixels(ra, dec, 0).tolist() == list(range(12))


@settings(deadline=None)
@given(places(), st.floats(-1, math.log10(648_000)).map(lambda log: 10**log), st.integers(0, 2**32 - 1))
def test_a_cone_holds_the_pixels_of_all_its_points(where, radius_arcsec, seed) -> None:
    rng = np.random.default_rng(seed)
    n = 1000
    reach = np.where(rng.random(n) < 0.5, 1 - 1e-9, np.sqrt(rng.random(n))) * max(0.0, radius_arcsec - 1e-9)
    ra, dec = moved(np.full(n, where[0]), np.full(n, where[1]), rng.uniform(0, 2 * np.pi, n), reach)
    assert held(cone_ranges(*where, radius_arcsec), to_pixels(ra, dec)).all()


def test_positions_are_not_changed_and_may_be_read_only() -> None:
    ra = np.array([-10.0, 370.0])
    ra.flags.writeable = False
    assert to_pixels(ra, np.zeros(2)).tolist() == to_pixels(np.array([350.0, 10.0]), np.zeros(2)).tolist()
    assert ra.tolist() == [-10.0, 370.0]


def test_no_ranges_merge_to_none() -> None:
    assert merge_ranges(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)).tolist() == []
