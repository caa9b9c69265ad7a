"""Cutting the sky and grouping rows, held to brute force and to extended precision."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scalable.kernels.partition import (
    boundaries,
    box_extent_arcsec,
    boxes,
    bucket_of,
    mean_positions,
    merge_boxes,
    split_pixels,
    spreads_arcsec,
    unit_vectors,
)

Float = NDArray[np.float64]
Long = NDArray[np.longdouble]
EPS = float(np.finfo(np.float64).eps)
PI = np.longdouble("3.14159265358979323846264338327950288")
ARCSEC = 180 * 3600 / PI


def long_vectors(ra_deg: Float, dec_deg: Float) -> Long:
    """Return unit vectors in 80-bit arithmetic: 2000 times finer than what is tested."""
    ra, dec = (np.asarray(angle, np.longdouble) * PI / 180 for angle in (ra_deg, dec_deg))
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def separation_arcsec(a: Long, b: Long) -> Long:
    """Return the angle by atan2 of cross and dot product, accurate at any separation."""
    cross = np.stack([a[..., i - 2] * b[..., i - 1] - a[..., i - 1] * b[..., i - 2] for i in range(3)], axis=-1)
    return np.arctan2(np.sqrt((cross**2).sum(axis=-1)), (a * b).sum(axis=-1)) * ARCSEC


@st.composite
def clusters(draw: st.DrawFn, max_arcsec: float = 3600.0) -> tuple[Float, Float]:
    """Draw a group of positions, often across right ascension 0 or at a pole."""
    ra = draw(st.sampled_from([0.0, 360.0, 180.0, 90.0]) | st.floats(0, 360))
    dec = draw(st.sampled_from([0.0, 90.0, -90.0, 89.9999]) | st.floats(-90, 90))
    n = draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    size = 10 ** draw(st.floats(-4, np.log10(max_arcsec))) / 3600
    dec_deg = np.clip(dec + size * rng.uniform(-1, 1, n), -90, 90)
    ra_deg = (ra + size * rng.uniform(-1, 1, n) / max(np.cos(np.radians(dec)), 1e-3)) % 360
    return ra_deg, dec_deg


def whole(points: Float) -> NDArray[np.int64]:
    return np.array([0, len(points)])


@st.composite
def skies(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    order = draw(st.integers(0, 8))
    cell = st.integers(0, 12 * 4**order - 1)
    near = draw(cell)
    crowd = st.integers(max(0, near - 40), min(12 * 4**order - 1, near + 40))
    rows = draw(st.dictionaries(cell | crowd, st.integers(0, 30), max_size=60))
    cells = np.array(sorted(rows), dtype=np.int64)
    return cells, np.array([rows[cell] for cell in cells.tolist()], dtype=np.int64), order


@settings(deadline=None, max_examples=200)
@given(skies(), st.integers(1, 60), st.data())
def test_the_sky_is_cut_into_the_largest_pixels_that_keep_the_limit(
    sky: tuple[NDArray[np.int64], NDArray[np.int64], int], limit: int, data: st.DataObject
) -> None:
    cells, counts, cell_order = sky
    max_order = data.draw(st.integers(0, cell_order))

    def rows_in(order: int, index: int) -> int:
        return int(counts[cells >> 2 * (cell_order - order) == index].sum())

    pixels = split_pixels(cells, counts, cell_order, limit=limit, max_order=max_order)
    starts = [index << 2 * (cell_order - order) for order, index, _ in pixels]
    stops = [index + 1 << 2 * (cell_order - order) for order, index, _ in pixels]
    assert all(stop <= start for stop, start in zip(stops, starts[1:], strict=False)), "disjoint, along the sky"
    assert sum(rows for _, _, rows in pixels) == counts.sum(), "every row is in one"
    for cell in cells.tolist():
        assert any(start <= cell < stop for start, stop in zip(starts, stops, strict=True)), "and every cell, be it empty"
    for order, index, rows in pixels:
        assert rows == rows_in(order, index)
        assert index in cells >> 2 * (cell_order - order)
        assert rows <= limit or order == max_order
        assert order == 0 or rows_in(order - 1, index >> 2) > limit, "its parent would be too large"


def test_a_sky_without_cells_has_no_pixels_and_one_without_rows_the_largest() -> None:
    none = np.zeros(0, dtype=np.int64)
    assert split_pixels(none, none, 5, limit=3, max_order=3) == []
    # The mean of an object may lie in a cell that holds none of its rows.
    assert split_pixels(np.array([1, 2, 3000]), np.array([0, 0, 0]), 5, limit=3, max_order=3) == [(0, 0, 0), (0, 2, 0)]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from("abc")), max_size=30).map(sorted))
def test_boundaries_are_where_any_key_changes(rows: list[tuple[int, str]]) -> None:
    numbers, letters = np.array([n for n, _ in rows], dtype=np.int64), np.array([c for _, c in rows], dtype="U1")
    expected = [i for i in range(len(rows)) if i == 0 or rows[i] != rows[i - 1]] + [len(rows)]
    assert boundaries(numbers, letters).tolist() == expected
    assert boundaries(numbers, letters).dtype == np.int64


@settings(deadline=None)
@given(clusters())
def test_unit_vectors_are_exact_to_rounding(cluster: tuple[Float, Float]) -> None:
    error = np.abs(unit_vectors(*cluster) - long_vectors(*cluster))
    # An angle of 360 degrees is rounded to 4 EPS rad, the functions to less than 1.
    assert error.max() <= 4 * EPS


@settings(deadline=None)
@given(clusters())
def test_the_mean_position_is_the_direction_of_the_vector_sum(cluster: tuple[Float, Float]) -> None:
    vectors = unit_vectors(*cluster)
    ra, dec = mean_positions(vectors, whole(vectors))
    assert 0 <= ra[0] < 360
    assert -90 <= dec[0] <= 90
    exact = long_vectors(*cluster).sum(axis=0)
    off = separation_arcsec(long_vectors(ra, dec)[0], exact / np.sqrt((exact**2).sum()))
    # Each vector is off by 4 EPS, each sum rounds once per member, and an angle of 360 degrees by 4 EPS: at most 7e-10 arcsec.
    assert off <= (8 + len(vectors)) * EPS * ARCSEC


def test_a_pair_astride_right_ascension_zero_has_its_mean_there() -> None:
    vectors = unit_vectors(np.array([359.0, 1.0, 359.75, 0.75]), np.zeros(4))
    ra, dec = mean_positions(vectors, np.array([0, 2, 4]))
    assert min(ra[0], 360 - ra[0]) <= 360 * EPS
    assert ra[1] == pytest.approx(0.25, abs=360 * EPS)
    assert dec.tolist() == [0.0, 0.0]


def test_points_around_a_pole_have_their_mean_at_the_pole() -> None:
    vectors = unit_vectors(np.array([0.0, 90, 180, 270]), np.full(4, 89.0))
    assert mean_positions(vectors, whole(vectors))[1][0] == 90.0


def test_the_meridian_just_west_of_zero_is_not_360() -> None:
    ra, _ = mean_positions(np.array([[1.0, -1e-20, 0.0]]), np.array([0, 1]))
    assert ra.tolist() == [0.0]


@settings(deadline=None)
@given(st.lists(clusters(), min_size=1, max_size=6))
def test_a_group_has_the_same_mean_to_the_bit_whatever_stands_beside_it(groups: list[tuple[Float, Float]]) -> None:
    vectors = [unit_vectors(*group) for group in groups]
    offsets = np.cumsum([0] + [len(group) for group in vectors])
    together = mean_positions(np.concatenate(vectors), offsets)
    alone = [mean_positions(group, whole(group)) for group in vectors]
    assert together[0].tobytes() == np.concatenate([ra for ra, _ in alone]).tobytes()
    assert together[1].tobytes() == np.concatenate([dec for _, dec in alone]).tobytes()


@settings(deadline=None)
@given(clusters(max_arcsec=90 * 3600))
def test_the_spread_is_the_largest_separation_of_a_pair(cluster: tuple[Float, Float]) -> None:
    vectors = unit_vectors(*cluster)
    exact = long_vectors(*cluster)
    largest = separation_arcsec(exact[:, None], exact).max()
    # The chord is off by what its ends are; the angle by more where the chord nears the diameter.
    slope = 1 / np.cos(min(largest / ARCSEC / 2, PI / 2 * (1 - np.longdouble(1e-7))))
    assert abs(spreads_arcsec(vectors, whole(vectors))[0] - largest) <= 12 * EPS * ARCSEC * slope


def test_a_single_point_has_no_spread_and_opposite_points_the_whole_half_circle() -> None:
    vectors = np.array([[1.0, 0, 0], [0, 0, 1], [0, 0, -1]])
    assert spreads_arcsec(vectors, np.array([0, 1, 3])).tolist() == [0.0, 180 * 3600.0]


@settings(deadline=None)
@given(clusters(max_arcsec=90 * 3600), st.integers(0, 2**32 - 1))
def test_boxes_merged_from_any_parts_are_the_box_of_the_whole(cluster: tuple[Float, Float], seed: int) -> None:
    vectors = unit_vectors(*cluster)
    whole_box = np.concatenate([vectors.min(axis=0), vectors.max(axis=0)])
    assert boxes(vectors, whole(vectors)).tolist() == [whole_box.tolist()]
    cuts = np.random.default_rng(seed).integers(0, len(vectors) + 1, 2)
    offsets = np.unique(np.concatenate([[0], cuts, [len(vectors)]]))
    parts = boxes(vectors, offsets)
    assert merge_boxes(parts, np.array([0, len(parts)])).tolist() == [whole_box.tolist()]


@settings(deadline=None, max_examples=200)
@given(clusters(max_arcsec=90 * 3600))
def test_the_extent_of_the_box_is_no_smaller_than_the_spread(cluster: tuple[Float, Float]) -> None:
    vectors = unit_vectors(*cluster)
    extent = box_extent_arcsec(boxes(vectors, whole(vectors)))[0]
    spread = spreads_arcsec(vectors, whole(vectors))[0]
    assert extent >= spread * (1 - 4 * EPS)
    # And no more than the diagonal of a cube of that size, on the chord.
    assert np.sin(min(extent / float(ARCSEC), np.pi) / 2) <= np.sqrt(3) * np.sin(spread / float(ARCSEC) / 2) * (1 + 8 * EPS)


@settings(deadline=None, max_examples=50)
@given(st.integers(-(2**63), 2**62), st.integers(1, 64), st.sampled_from([1, 2, 1000, 1 << 20]))
def test_buckets_are_in_range_and_level_for_ids_at_equal_steps(first: int, buckets: int, step: int) -> None:
    bucket = bucket_of(first + np.arange(200_000, dtype=np.int64) * step, buckets)
    assert bucket.dtype == np.int64
    filled = np.bincount(bucket, minlength=buckets)
    assert len(filled) == buckets
    assert filled.max() <= 1.1 * 200_000 / buckets


def test_the_bucket_of_an_id_does_not_depend_on_the_others() -> None:
    ids = np.array([5, -1, 2**62, 5])
    assert bucket_of(ids, 7).tolist() == [int(bucket_of(ids[i : i + 1], 7)[0]) for i in range(4)]
