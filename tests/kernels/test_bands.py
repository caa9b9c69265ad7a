"""One value per object and band: the row that is picked and the averages, held to plain NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scalable.kernels.bands import first_rows, last_rows, mean_errors, means, medians, smallest_rows

EPS = float(np.finfo(np.float64).eps)
Float = NDArray[np.float64]

values = st.floats(-1e6, 1e6) | st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -0.0, 1.0, 1.0])
positives = st.floats(1e-6, 1e6) | st.sampled_from([0.0, -1.0, math.nan, math.inf])
groups = st.lists(st.lists(st.tuples(values, positives), min_size=1, max_size=12), min_size=1, max_size=6)


def flat(some: list[list[tuple[float, float]]]) -> tuple[Float, Float, NDArray[np.int64]]:
    """Return values, weights (or errors) and offsets."""
    pairs = np.array([pair for group in some for pair in group], dtype=np.float64).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy(), np.cumsum([0] + [len(group) for group in some])


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
def test_a_weighted_mean_counts_finite_values_with_positive_finite_weights(some: list[list[tuple[float, float]]]) -> None:
    value, weight, offsets = flat(some)
    for found, group in zip(means(value, weight, offsets), some, strict=True):
        points = np.array(group, dtype=np.longdouble)
        points = points[np.isfinite(points).all(axis=1) & (points[:, 1] > 0)]
        if not len(points):
            assert math.isnan(found)
            continue
        exact = np.average(points[:, 0], weights=points[:, 1])
        # One rounding of the mean, of the size of the largest value, at every step.
        assert abs(found - exact) <= 4 * len(points) * EPS * np.abs(points[:, 0]).max()


@settings(deadline=None)
@given(st.floats(-1e300, 1e300), st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=20))
def test_the_mean_of_a_constant_is_the_constant(value: float, weights: list[float]) -> None:
    assert means(np.full(len(weights), value), np.array(weights), np.array([0, len(weights)])).tolist() == [value]


@settings(deadline=None)
@given(groups)
def test_the_error_of_the_mean_adds_inverse_variances(some: list[list[tuple[float, float]]]) -> None:
    _, err, offsets = flat(some)
    for found, group in zip(mean_errors(err, offsets), some, strict=True):
        good = np.array([e for _, e in group if math.isfinite(e) and e > 0], dtype=np.longdouble)
        if len(good):
            assert found == pytest.approx(float(1 / np.sqrt((1 / good**2).sum())), rel=(2 + len(good)) * EPS, abs=0)
        else:
            assert math.isnan(found)


@settings(deadline=None)
@given(groups)
def test_the_median_is_that_of_the_finite_values(some: list[list[tuple[float, float]]]) -> None:
    value, _, offsets = flat(some)
    for found, group in zip(medians(value, offsets), some, strict=True):
        finite = [v for v, _ in group if math.isfinite(v)]
        assert math.isnan(found) if not finite else found == np.median(finite)


def test_a_group_without_rows_has_no_average() -> None:
    none, offsets = np.zeros(0), np.array([0, 0])
    for found in (means(none, none, offsets), mean_errors(none, offsets), medians(none, offsets)):
        np.testing.assert_array_equal(found, [math.nan])
