"""The nearest right positions and mutual pairs, held to all pairs of the sky and to astropy."""

from __future__ import annotations

import time

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import CartesianRepresentation, SkyCoord, match_coordinates_sky, search_around_sky
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scalable.kernels.match import match_mutual, match_nearest
from scalable.kernels.partition import unit_vectors

Float = NDArray[np.float64]
Pairs = tuple[NDArray[np.int64], NDArray[np.int64], Float]
PLACES = [(0.0, 90.0), (0.0, -90.0), (0.0, 0.0), (360.0, 45.0), (45.0, 41.81), (180.0, 0.0), (213.7, -61.2)]
EVERY = 1_000_000


def by_all_pairs(left: Float, right: Float, radius_arcsec: float, k: int) -> list[tuple[int, int]]:
    squared = ((left[:, None, :] - right[None, :, :]) ** 2) @ np.ones(3)
    limit = (2 * np.sin(np.deg2rad(radius_arcsec / 3600) / 2)) ** 2
    # Stable: of equally near ones the lower row comes first.
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    row, place = np.nonzero(np.take_along_axis(squared, order, axis=1) <= limit)
    return list(zip(row.tolist(), order[row, place].tolist(), strict=True))


def listed(pairs: Pairs) -> list[tuple[int, int]]:
    return list(zip(pairs[0].tolist(), pairs[1].tolist(), strict=True))


@st.composite
def skies(draw: st.DrawFn) -> tuple[Float, Float, float]:
    """Draw two catalogues that crowd about a few places, share positions and repeat them, and a radius of their size."""
    radius = draw(st.sampled_from([1e-4, 0.5, 60.0, 36_000.0, 400_000.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    places = draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3))
    pieces = [np.zeros((0, 3))]
    for ra, dec in places:
        n, size = draw(st.integers(0, 30)), draw(st.sampled_from([0.0, 0.3, 1.0, 3.0]))
        pieces.append(unit_vectors(np.full(n, ra), np.full(n, dec)) + np.deg2rad(size * radius / 3600) * rng.normal(size=(n, 3)))
    points = np.concatenate(pieces)
    points /= np.linalg.norm(points, axis=1)[:, None]
    # Drawn with repetition: positions occur twice on a side and on both sides.
    sides = [points[rng.integers(0, len(points), draw(st.integers(0, 40)) * bool(len(points)))] for _ in range(2)]
    return sides[0], sides[1], radius


@settings(max_examples=300, deadline=None, derandomize=True)
@given(skies(), st.sampled_from([1, 2, 5, EVERY]))
def test_the_pairs_are_those_of_all_pairs_and_lower_rows_win_ties(sky: tuple[Float, Float, float], k: int) -> None:
    left, right, radius = sky
    found = match_nearest(left, right, radius, k)
    assert listed(found) == by_all_pairs(left, right, radius, k)
    cross = np.linalg.norm(np.cross(left[found[0]], right[found[1]]), axis=1)
    angle = np.rad2deg(np.arctan2(cross, (left[found[0]] * right[found[1]]).sum(axis=1))) * 3600
    np.testing.assert_allclose(found[2], angle, rtol=1e-6, atol=1e-10)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(skies())
def test_a_mutual_pair_is_nearest_from_both_sides(sky: tuple[Float, Float, float]) -> None:
    left, right, radius = sky
    back = {(row, other) for other, row in by_all_pairs(right, left, radius, 1)}
    assert listed(match_mutual(left, right, radius)) == [p for p in by_all_pairs(left, right, radius, 1) if p in back]


@pytest.mark.parametrize("dec", [-89.9, -30.0, 0.0, 89.99], ids=str)
@pytest.mark.parametrize("radius_arcsec", [2.0, 400.0], ids=str)
def test_astropy_finds_the_same_pairs(dec: float, radius_arcsec: float) -> None:
    rng = np.random.default_rng(1)
    centre = unit_vectors(np.array([0.0]), np.array([dec]))
    points = [centre + np.deg2rad(10 * radius_arcsec / 3600) * rng.normal(size=(n, 3)) for n in (2000, 3000)]
    vectors = [p / np.linalg.norm(p, axis=1)[:, None] for p in points]
    left, right = (SkyCoord(CartesianRepresentation(v.T)) for v in vectors)
    rows, others, angle, _ = search_around_sky(left, right, radius_arcsec * u.arcsec)
    found = match_nearest(*vectors, radius_arcsec, EVERY)
    assert set(listed(found)) == set(zip(rows.tolist(), others.tolist(), strict=True))
    assert len(found[0]) == len(rows) > 1000
    for k in (1, 2, 3):
        nearest, angle, _ = match_coordinates_sky(left, right, nthneighbor=k)
        nth = np.concatenate([[True], found[0][1:] != found[0][:-1]])
        start = np.flatnonzero(nth)
        place = np.arange(len(found[0])) - np.repeat(start, np.diff(np.append(start, len(found[0]))))
        mine = place == k - 1
        within = angle.arcsec <= radius_arcsec
        np.testing.assert_array_equal(found[0][mine], np.flatnonzero(within))
        np.testing.assert_array_equal(found[1][mine], nearest[within])
        np.testing.assert_allclose(found[2][mine], angle.arcsec[within], rtol=1e-6, atol=1e-6)


def test_a_hundred_thousand_rows_cost_their_pairs_alone() -> None:
    # A chain of places along a meridian, four rows of each side at each: all pairs of both sides would be 10**10.
    rng = np.random.default_rng(4)
    place = np.repeat(unit_vectors(np.full(25_000, 10.0), np.arange(25_000) * 3 / 3600), 4, axis=0)
    left, right = (place + np.deg2rad(0.3 / 3600) * rng.normal(size=place.shape) for _ in range(2))
    match_nearest(left[:10], right[:10], 1.0)
    start = time.perf_counter()
    left_row, right_row, _ = match_nearest(left, right, 1.0, EVERY)
    assert time.perf_counter() - start < 5.0
    assert len(left_row) > 200_000
    assert (np.abs(left_row // 4 - right_row // 4) <= 1).all()


def test_a_crowd_of_identical_positions_keeps_the_first_rows_of_many() -> None:
    one = np.repeat(unit_vectors(np.array([0.0]), np.array([90.0])), 5000, axis=0)
    left_row, right_row, separation = match_nearest(one, one, 1.0, 3)
    assert left_row.tolist() == np.repeat(np.arange(5000), 3).tolist()
    assert right_row.tolist() == [0, 1, 2] * 5000
    assert not separation.any()
    assert listed(match_mutual(one, one, 1.0)) == [(0, 0)]


def test_what_is_not_there_and_what_has_no_position_has_no_pair() -> None:
    some, none = unit_vectors(np.array([1.0, 2.0]), np.array([3.0, 3.0])), np.zeros((0, 3))
    for left, right in ((some, none), (none, some), (none, none)):
        assert listed(match_nearest(left, right, 1.0)) == listed(match_mutual(left, right, 1.0)) == []
    lost = np.vstack([some, np.full((1, 3), np.nan), some[::-1]])
    assert listed(match_nearest(lost, lost, 1.0)) == [(0, 0), (1, 1), (3, 1), (4, 0)]


def test_a_separation_of_exactly_the_radius_is_within_it() -> None:
    left, right = unit_vectors(np.array([10.0]), np.array([0.0])), unit_vectors(np.array([10.0]), np.array([1 / 3600]))
    assert len(match_nearest(left, right, 1.0 + 1e-9)[0]) == 1
    assert len(match_nearest(left, right, 1.0 - 1e-9)[0]) == 0
    opposite = unit_vectors(np.array([190.0]), np.array([0.0]))
    assert match_nearest(left, opposite, 648_000.0)[2] == pytest.approx(648_000.0)
