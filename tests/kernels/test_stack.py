"""Windows are cut as astropy cuts them, combined as numpy combines them, and every pixel's state says what became of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from astropy.nddata import overlap_slices
from astropy.stats import mad_std
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.kernels.stack import CLIP_ROUNDS, CLIP_SIGMA, METHODS, PixelState, combine, mark, place, strips, window_start

MEASURED, MASKED, OUTSIDE, NOT_OBSERVED = (int(state) for state in PixelState)


@settings(max_examples=100, deadline=None)
@given(st.floats(-20, 60), st.integers(1, 12))
def test_a_window_begins_where_astropys_does(centre: float, size: int) -> None:
    [start] = window_start(np.array([centre]), size)
    if start + size > 0 and start < 40:
        (large,), (small,) = overlap_slices((40,), (size,), (centre,), mode="partial")
        assert (large.start, large.stop) == (max(0, start), min(40, start + size))
        assert small.start == max(0, -start)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 40), st.integers(1, 9), st.integers(1, 3000))
def test_strips_hold_every_window_once_and_windows_are_cut_whole(seed: int, count: int, size: int, most: int) -> None:
    rng = np.random.default_rng(seed)
    image = rng.normal(size=(50, 70)).astype(np.float32)
    y0, x0 = rng.integers(-12, 55, count), rng.integers(-12, 75, count)
    out = np.full((count, size, size), np.nan, np.float32)
    seen: list[int] = []
    for which, (top, bottom, left, right) in strips(y0, x0, size, image.shape, most):
        assert 0 <= top < bottom <= 50
        assert 0 <= left < right <= 70
        assert len(which) == 1 or (bottom - top) * (right - left) <= most
        place(image[top:bottom, left:right], top, left, y0[which], x0[which], which, out)
        seen += which.tolist()
    padded = np.pad(image, 80, constant_values=np.nan)
    expected = np.array([padded[y + 80 : y + 80 + size, x + 80 : x + 80 + size] for y, x in zip(y0, x0, strict=True)])
    assert np.array_equal(out, expected, equal_nan=True)
    touching = np.isfinite(expected).any(axis=(1, 2))
    assert sorted(seen) == np.flatnonzero(touching).tolist()
    state = np.full(out.shape, 9, np.uint8)
    mark(out, out, False, np.zeros(out.shape, np.int32), 0, image.shape, y0, x0, np.arange(count), state)
    assert np.array_equal(state, np.where(np.isfinite(expected), MEASURED, OUTSIDE))


def test_crowded_windows_are_read_at_once_and_distant_ones_each_by_itself() -> None:
    rng = np.random.default_rng(1)
    crowded = list(strips(rng.integers(0, 300, 50), rng.integers(0, 300, 50), 32, (4096, 4096), 1 << 23))
    assert len(crowded) == 1
    distant = list(strips(np.array([0, 4000]), np.array([0, 4000]), 32, (4096, 4096), 1 << 23))
    assert len(distant) == 2


def test_what_is_no_number_has_no_weight_or_has_a_bad_bit_is_masked() -> None:
    image = np.array([[[1.0, np.nan, 1.0], [1.0, 1.0, np.inf], [1.0, 1.0, 1.0]]], np.float32)
    ivar = np.array([[[1.0, 1.0, 0.0], [np.nan, 1.0, 1.0], [1.0, -1.0, 1.0]]], np.float32)
    bits = np.zeros((1, 3, 3), np.int32)
    bits[0, 1, 1], bits[0, 2, 0] = 0b100, 0b001
    zero = np.zeros(1, np.int64)

    def masked(weighted: bool, bad: int) -> Any:
        state = np.empty((1, 3, 3), np.uint8)
        mark(image, ivar, weighted, bits, bad, (3, 3), zero, zero, zero, state)
        return (state[0] == MASKED).astype(int).tolist()

    assert masked(False, 0) == [[0, 1, 0], [0, 0, 1], [0, 0, 0]]
    assert masked(True, 0) == [[0, 1, 1], [1, 0, 1], [0, 1, 0]]
    assert masked(False, 0b100) == [[0, 1, 0], [0, 1, 1], [0, 0, 0]]
    assert masked(False, -1) == [[0, 1, 0], [0, 1, 1], [1, 0, 0]]


def numpys(values: Any, variances: Any, method: str) -> tuple[float, float, int]:
    """Combine one pixel's values by the book."""
    if method == "clipped":
        for _ in range(CLIP_ROUNDS):
            if len(values) < 3:
                break
            kept = np.abs(values - np.median(values)) <= CLIP_SIGMA * 1.4826 * np.median(np.abs(values - np.median(values)))
            values, variances = values[kept], variances[kept]
            if kept.all():
                break
    n = len(values)
    if method == "ivar":
        return np.average(values, weights=1 / variances), (1 / variances).sum(), n
    ivar = n**2 / variances.sum()
    if method == "median":
        return np.median(values), ivar * (2 / np.pi if n > 2 else 1), n
    return values.mean(), ivar, n


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("epochs", [1, 2, 3, 9])
def test_exposures_are_combined_as_numpy_does(method: str, epochs: int) -> None:
    rng = np.random.default_rng(epochs)
    image = rng.normal(100, 5, (epochs, 4, 6, 6))
    image[:, 0, :2] += rng.choice([0, 300], (epochs, 2, 6), p=[0.8, 0.2])
    ivar = rng.uniform(0.1, 2, image.shape).astype(np.float32)
    state = rng.choice([MEASURED, MASKED, OUTSIDE, NOT_OBSERVED], image.shape, p=[0.7, 0.1, 0.1, 0.1]).astype(np.uint8)
    out, weight, best, used = combine(image, ivar, state, method)
    for place_ in np.ndindex(*image.shape[1:]):
        good = state[(slice(None), *place_)] == MEASURED
        assert best[place_] == state[(slice(None), *place_)].min()
        if not good.any():
            assert np.isnan(out[place_])
            assert used[place_] == 0
            continue
        value, expected, n = numpys(
            image[(slice(None), *place_)][good], 1 / ivar[(slice(None), *place_)][good].astype(float), method
        )
        assert out[place_] == pytest.approx(value)
        assert weight[place_] == pytest.approx(expected, rel=1e-5)
        assert used[place_] == n


def test_without_an_exposure_nothing_is_observed() -> None:
    empty = np.empty((0, 2, 3, 3))
    out, weight, best, used = combine(empty, empty.astype(np.float32), empty.astype(np.uint8), "mean")
    assert np.isnan(out).all()
    assert np.isnan(weight).all()
    assert (best == NOT_OBSERVED).all()
    assert not used.any()


def test_an_outlier_is_clipped_and_the_spread_of_the_rest_is_that_of_astropys_mad() -> None:
    values = np.array([10.0, 10.1, 9.9, 10.2, 9.8, 40.0]).reshape(6, 1, 1, 1)
    ones = np.ones(values.shape, np.float32)
    out, _, _, used = combine(values, ones, np.zeros(values.shape, np.uint8), "clipped")
    assert used.item() == 5
    assert out.item() == pytest.approx(10.0)
    assert 10 + 3 * mad_std(values) < 40
