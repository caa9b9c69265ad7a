"""One value per object and band: the row that is picked and the averages, held to plain NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scalable.kernels.bands import (
    AVERAGES,
    ERROR_OF_MEAN,
    average_of_one,
    band_curves,
    class_holds,
    first_rows,
    last_rows,
    smallest_rows,
)
from scalable.kernels.statistic import Statistic, evaluate

EPS = float(np.finfo(np.float64).eps)
Float = NDArray[np.float64]

values = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1.0])
positives = st.floats(1e-6, 1e6) | st.sampled_from([0.0, -1.0, math.nan, math.inf])
groups = st.lists(st.lists(st.tuples(values, positives), min_size=1, max_size=12), min_size=1, max_size=6)


def flat(some: list[list[tuple[float, float]]]) -> tuple[Float, Float, NDArray[np.int64]]:
    """Return values, weights (or errors) and offsets."""
    pairs = np.array([pair for group in some for pair in group], dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy(), np.cumsum([0] + [len(group) for group in some])


def average(statistic: Statistic, value: Float, err: Float, offsets: NDArray[np.int64]) -> Float:
    return evaluate((statistic,), value, err, None, offsets)[statistic.name]


def test_first_and_last_rows_are_the_ends_of_each_group() -> None:
    offsets = np.array([0, 3, 4, 9])
    assert first_rows(offsets).tolist() == [0, 3, 4]
    assert last_rows(offsets).tolist() == [2, 3, 8]


@settings(deadline=None)
@given(groups)
def test_the_smallest_row_is_the_first_of_the_smallest_values_and_nan_is_larger_than_all(
    some: list[list[tuple[float, float]]],
) -> None:
    value, _, offsets = flat(some)
    expected = [
        start
        + min(range(len(group)), key=lambda i: (math.isnan(group[i][0]), group[i][0] if group[i][0] == group[i][0] else 0, i))
        for start, group in zip(offsets[:-1].tolist(), some, strict=True)
    ]
    assert smallest_rows(value, offsets).tolist() == expected


@settings(deadline=None)
@given(groups)
def test_a_weighted_mean_counts_finite_values_with_positive_finite_errors(some: list[list[tuple[float, float]]]) -> None:
    value, err, offsets = flat(some)
    for found, group in zip(average(AVERAGES["weighted_mean"], value, err, offsets), some, strict=True):
        points = np.array(group, dtype=np.longdouble)
        points = points[np.isfinite(points).all(axis=1) & (points[:, 1] > 0)]
        if not len(points):
            assert math.isnan(found)
            continue
        exact = np.average(points[:, 0], weights=points[:, 1] ** -2)
        # One rounding of the mean, of the size of the largest value, at every step.
        assert abs(found - exact) <= 4 * len(points) * EPS * np.abs(points[:, 0]).max()


@settings(deadline=None)
@given(groups)
def test_plain_mean_and_median_count_finite_values_whatever_their_errors(some: list[list[tuple[float, float]]]) -> None:
    value, err, offsets = flat(some)
    means, medians = (average(AVERAGES[name], value, err, offsets) for name in ("mean", "median"))
    for mean, median, group in zip(means, medians, some, strict=True):
        finite = [v for v, _ in group if math.isfinite(v)]
        if not finite:
            assert math.isnan(mean)
            assert math.isnan(median)
            continue
        size = max(map(abs, finite))
        assert abs(mean - np.mean(finite)) <= 4 * len(finite) * EPS * size
        assert abs(median - np.median(finite)) <= 2 * EPS * size


@settings(deadline=None)
@given(st.floats(-1e300, 1e300), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_an_average_of_a_constant_is_the_constant(value: float, err: list[float]) -> None:
    for statistic in AVERAGES.values():
        found = average(statistic, np.full(len(err), value), np.array(err), np.array([0, len(err)]))
        assert found.tolist() == [value], statistic.name


@settings(deadline=None)
@given(groups)
def test_the_error_of_the_mean_adds_inverse_variances(some: list[list[tuple[float, float]]]) -> None:
    _, err, offsets = flat(some)
    for found, group in zip(average(ERROR_OF_MEAN, np.full(len(err), math.nan), err, offsets), some, strict=True):
        good = np.array([e for _, e in group if math.isfinite(e) and e > 0], dtype=np.longdouble)
        if len(good):
            assert found == pytest.approx(float(1 / np.sqrt((1 / good**2).sum())), rel=(4 + len(good)) * EPS, abs=0)
        else:
            assert math.isnan(found)


def test_a_group_without_rows_has_no_average() -> None:
    none, offsets = np.zeros(0), np.array([0, 0])
    for statistic in (*AVERAGES.values(), ERROR_OF_MEAN):
        np.testing.assert_array_equal(average(statistic, none, none, offsets), [math.nan])


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(-1, 2), max_size=8).map(sorted), max_size=12), st.booleans())
def test_rows_are_cut_into_the_light_curves_of_the_wanted_bands(objects: list[list[int]], complete: bool) -> None:
    objects = [codes for codes in objects if codes]
    ids = np.repeat(np.arange(len(objects)) * 7, [len(codes) for codes in objects])
    codes = np.array([code for some in objects for code in some], dtype=np.int32)
    first, offsets, curve_of = band_curves(ids, codes, np.array([0, 1, 2, -1], dtype=np.int32), 3, complete)
    listed = [number for number, some in enumerate(objects) if not complete or {0, 1, 2} <= set(some)]
    assert ids[first].tolist() == [7 * number for number in listed]
    assert curve_of.shape == (3, len(listed))
    kept = codes[codes >= 0]
    assert offsets[-1] == len(kept)
    for number, some in enumerate(objects[index] for index in listed):
        for band in range(3):
            curve = curve_of[band, number]
            length = offsets[curve + 1] - offsets[curve] if curve >= 0 else 0
            assert length == some.count(band)
            assert length == 0 or set(kept[offsets[curve] : offsets[curve + 1]]) == {band}
    of_listed = sorted(curve_of[curve_of >= 0])
    assert of_listed == list(range(len(offsets) - 1)) if len(listed) == len(objects) else len(set(of_listed)) == 3 * len(listed)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([None, False, True]), min_size=3, max_size=3), min_size=1, max_size=9))
def test_class_rules_hear_the_bands_that_vote(objects: list[list[bool | None]]) -> None:
    says = np.array([[vote is True for vote in some] for some in objects]).T
    votes = np.array([[vote is not None for vote in some] for some in objects]).T
    for number, some in enumerate(objects):
        heard = [vote for vote in some if vote is not None]
        assert class_holds(says, votes, "any")[number] == any(heard)
        assert class_holds(says, votes, "all")[number] == (bool(heard) and all(heard))
        assert class_holds(says, votes, "majority")[number] == (2 * sum(heard) > len(heard))


@settings(deadline=None)
@given(groups)
def test_the_average_of_one_point_is_that_of_the_pass_to_the_bit(some: list[list[tuple[float, float]]]) -> None:
    value, err, _ = flat(some)
    for dtype in (np.float64, np.float32):
        values, errors = value.astype(dtype), err.astype(dtype)
        for statistic in (*AVERAGES.values(), ERROR_OF_MEAN):
            passed = average(statistic, values, errors, np.arange(len(values) + 1))
            np.testing.assert_array_equal(average_of_one(statistic, values, errors), passed)
