"""Statistics of light curves, held to their formulas in extended precision, point by point."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scalable.kernels import variability
from scalable.kernels.bands import mean_errors
from scalable.kernels.statistic import Float, Statistic, evaluate
from scalable.kernels.variability import ALL, DEFAULT, merge_moments, moments

EPS = float(np.finfo(np.float64).eps)
Curve = NDArray[np.float64]
"""A light curve, shape (n, 2): flux and error."""

# Squares of fluxes below 1e-60 would leave the range of doubles.
fluxes = st.floats(-1e6, 1e6).map(lambda flux: flux if abs(flux) > 1e-60 else 0.0) | st.sampled_from(
    [1e6, 1e6 + 1e-6, 0.0, math.nan, math.inf, -math.inf]
)
errors = st.floats(1e-3, 1e3) | st.sampled_from([1.0, 0.0, -1.0, -0.0, math.nan, math.inf, -math.inf])
curves = st.lists(st.tuples(fluxes, errors), max_size=30).map(lambda points: np.array(points, dtype=np.float64).reshape(-1, 2))


def statistics_of(*some: Curve) -> dict[str, Float]:
    """Evaluate every statistic of some light curves at once."""
    flux, err = np.ascontiguousarray(np.concatenate(some).T)
    offsets = np.cumsum([0] + [len(curve) for curve in some])
    return evaluate(tuple(ALL.values()), flux, err, np.arange(len(flux), dtype=np.float64), offsets)


def sums(curve: Curve) -> Float:
    flux, err = np.ascontiguousarray(curve.T)
    return moments(flux, err, np.zeros(len(flux)), np.array([0, len(flux)]))


def counted(curve: Curve) -> Curve:
    flux, err = curve.T
    return curve[np.isfinite(flux) & np.isfinite(err) & (err > 0)]


def by_formula(curve: Curve) -> dict[str, float]:
    """Return the statistics as their definitions say, in 80-bit arithmetic."""
    flux, err = counted(curve).astype(np.longdouble).T
    n = len(flux)
    found = dict.fromkeys(ALL, math.nan) | {"Ndata": float(n)}
    if n >= 1:
        weight = 1 / err**2
        # About the first point, so that a constant is exact here too.
        mean = flux[0] + (weight * (flux - flux[0])).sum() / weight.sum()
        found |= {"Mean": mean, "MeanErr": 1 / np.sqrt(weight.sum()), "Chi2": (weight * (flux - mean) ** 2).sum()}
    if n >= 2:
        plain_mean = flux[0] + (flux - flux[0]).mean()
        found["Sigma"] = np.sqrt(((flux - plain_mean) ** 2).sum() / (n - 1))
        found["MaxDeviation"] = (np.abs(flux - plain_mean) / err).max()
        found["WeightedMaxDeviation"] = (np.abs(flux - mean) / err).max()
    return found


def rounding(curve: Curve) -> dict[str, float]:
    """Return what ``n`` steps of running means may lose: a few EPS of the largest flux each, in the unit of the statistic."""
    flux, err = counted(curve).T
    if not len(flux):
        return dict.fromkeys(ALL, 0.0)
    loss = 4 * len(flux) * EPS * np.abs(flux).max()
    weight = math.sqrt((1 / err**2).sum())
    return {
        "Ndata": 0.0,
        "Mean": loss,
        "MeanErr": 2 * len(flux) * EPS / weight,
        "Sigma": loss,
        "Chi2": loss * weight**2 * np.ptp(flux),
        "MaxDeviation": loss / err.min() * 2,
        "WeightedMaxDeviation": loss / err.min() * 2,
    }


def assert_close(found: dict[str, float], expected: dict[str, float], loss: dict[str, float]) -> None:
    for name in ALL:
        a, b = found[name], expected[name]
        assert np.isnan(a) == np.isnan(b), name
        assert np.isnan(a) or abs(a - b) <= loss[name] + 8 * EPS * abs(b), (name, a, b)


@settings(deadline=None, max_examples=200)
@given(st.lists(curves, min_size=1, max_size=4))
def test_statistics_are_what_their_formulas_say_over_the_points_that_count(some: list[Curve]) -> None:
    found = statistics_of(*some)
    assert list(found) == list(ALL)
    for index, curve in enumerate(some):
        one = {name: float(values[index]) for name, values in found.items()}
        assert_close(one, by_formula(curve), rounding(curve))


@settings(deadline=None)
@given(curves, st.randoms(use_true_random=False))
def test_points_that_do_not_count_change_nothing_to_the_bit(curve: Curve, random: object) -> None:
    a, b = statistics_of(curve), statistics_of(counted(curve))
    assert {name: values.tobytes() for name, values in a.items()} == {name: values.tobytes() for name, values in b.items()}


@settings(deadline=None)
@given(
    st.floats(-1e30, 1e30, allow_subnormal=False),
    st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=30),
)
def test_a_constant_source_does_not_vary(flux: float, err: list[float]) -> None:
    found = statistics_of(np.column_stack([np.full(len(err), flux), err]))
    assert {name: values[0] for name, values in found.items() if name != "MeanErr"} == {
        "Ndata": len(err),
        "Mean": flux,
        "Sigma": 0.0,
        "Chi2": 0.0,
        "MaxDeviation": 0.0,
        "WeightedMaxDeviation": 0.0,
    }


def test_too_few_points_give_nan_and_never_an_exception() -> None:
    empty, missing, single = np.zeros((0, 2)), np.array([[math.nan, 1.0], [1.0, 0.0]]), np.array([[7.0, 2.0]])
    found = statistics_of(empty, missing, single)
    for name, (nothing, nobody, one) in {
        "Ndata": (0.0, 0.0, 1.0),
        "Mean": (math.nan, math.nan, 7.0),
        "MeanErr": (math.nan, math.nan, 2.0),
        "Sigma": (math.nan, math.nan, math.nan),
        "Chi2": (math.nan, math.nan, 0.0),
        "MaxDeviation": (math.nan, math.nan, math.nan),
        "WeightedMaxDeviation": (math.nan, math.nan, math.nan),
    }.items():
        np.testing.assert_array_equal(found[name], [nothing, nobody, one], err_msg=name)


def test_no_light_curve_gives_no_statistic() -> None:
    none = np.zeros(0)
    found = evaluate(tuple(ALL.values()), none, none, none, np.array([0]))
    assert all(values.shape == (0,) for values in found.values())


@settings(deadline=None)
@given(curves, st.integers(0, 2**32 - 1))
def test_the_order_of_the_points_does_not_matter(curve: Curve, seed: int) -> None:
    found = statistics_of(np.random.default_rng(seed).permutation(curve))
    assert_close({name: float(values[0]) for name, values in found.items()}, by_formula(curve), rounding(curve))


@settings(deadline=None)
@given(curves, st.integers(-40, 40))
def test_a_power_of_two_scales_means_and_scatter_exactly_and_leaves_ratios_alone(curve: Curve, power: int) -> None:
    plain, scaled = statistics_of(curve), statistics_of(curve * 2.0**power)
    for name, values in plain.items():
        factor = 2.0**power if ALL[name].unit == "value" else 1.0
        np.testing.assert_array_equal(scaled[name], values * factor, err_msg=name)


@settings(deadline=None)
@given(st.integers(1, 10**6), st.integers(2, 40), st.integers(0, 2**32 - 1))
def test_scatter_survives_a_mean_a_million_million_times_larger(scatter: int, points: int, seed: int) -> None:
    flux = 1e12 * scatter + scatter * np.random.default_rng(seed).uniform(-1, 1, points)
    curve = np.column_stack([flux, np.full(points, float(scatter))])
    found, expected = statistics_of(curve), by_formula(curve)
    assert float(found["Sigma"][0]) == pytest.approx(float(expected["Sigma"]), abs=4 * points * EPS * 1e12 * scatter)


@settings(deadline=None, max_examples=200)
@given(curves, st.integers(0, 2**32 - 1), st.integers(1, 5))
def test_moments_of_any_parts_merged_in_any_order_are_those_of_the_whole(curve: Curve, seed: int, parts: int) -> None:
    rng = np.random.default_rng(seed)
    part_of = rng.integers(0, parts, len(curve))
    merged = sums(curve[:0])
    for part in rng.permutation(parts):
        merged = merge_moments(merged, sums(curve[part_of == part]))
    found = {s.name: float(s.finalize(merged)[0]) for s in ALL.values() if s.chunk is moments}
    whole = by_formula(curve)
    assert_close({**whole, **found}, whole, {name: 2 * loss for name, loss in rounding(curve).items()})


@settings(deadline=None)
@given(curves)
def test_merging_with_nothing_changes_nothing(curve: Curve) -> None:
    whole, nothing = sums(curve), sums(curve[:0])
    assert merge_moments(whole, nothing).tolist() == whole.tolist()
    assert merge_moments(nothing, whole).tolist() == whole.tolist()


def test_statistics_with_the_same_chunk_share_one_pass() -> None:
    calls = []

    def chunk(flux: Float, err: Float, mjd: Float, offsets: NDArray[np.int64]) -> Float:
        calls.append(len(flux))
        return np.add.reduceat(flux, offsets[:-1])[:, None]

    once, twice = (Statistic(f"Sum{k}", "sum", lambda s, k=k: k * s[:, 0], chunk=chunk) for k in (1, 2))
    own = Statistic("First", "first flux", lambda flux, err, mjd, offsets: flux[offsets[:-1]])
    one = np.ones(5)
    found = evaluate((once, own, twice), np.arange(5.0), one, one, np.array([0, 2, 5]))
    assert {name: values.tolist() for name, values in found.items()} == {"Sum1": [1, 9], "First": [0, 2], "Sum2": [2, 18]}
    assert calls == [5]


def test_declarations_name_what_they_compute_and_merge_where_they_say_so() -> None:
    assert list(ALL) == ["Ndata", "Mean", "MeanErr", "Sigma", "Chi2", "MaxDeviation", "WeightedMaxDeviation"]
    assert [statistic.name for statistic in DEFAULT] == list(ALL)[:-1]
    assert [name for name, statistic in ALL.items() if statistic.integer] == ["Ndata"]
    assert [name for name, statistic in ALL.items() if statistic.unit == "value"] == ["Mean", "MeanErr", "Sigma"]
    for name, statistic in ALL.items():
        assert (statistic.chunk is None) == (statistic.combine is None), name
        assert statistic.definition, name
    assert [name for name, s in ALL.items() if s.chunk is None] == ["MaxDeviation", "WeightedMaxDeviation"]


def test_columns_of_the_partial_sums_are_the_named_ones() -> None:
    names = ("N", "MEAN", "M2", "WEIGHT", "WEIGHTED_MEAN", "WEIGHTED_M2")
    found = sums(np.array([[1.0, 1.0], [4.0, 0.5]]))[0]
    # Weights 1 and 4: the weighted mean is 17 / 5, the weighted squares 2.4**2 + 4 * 0.6**2.
    expected = (2.0, 2.5, 4.5, 5.0, 3.4, 7.2)
    assert {name: found[getattr(variability, name)] for name in names} == pytest.approx(dict(zip(names, expected, strict=True)))
    assert all(b == a + 1 for a, b in pairwise(getattr(variability, name) for name in names))


@pytest.mark.parametrize("err", [1e-170, 5e-324, 1e200])
def test_errors_whose_squares_leave_the_range_of_doubles_give_numbers_or_nan_never_an_exception(err: float) -> None:
    found = statistics_of(np.array([[1.0, err], [2.0, err]]))
    assert found["Ndata"].tolist() == [2.0]
    assert mean_errors(np.array([err, err]), np.array([0, 2])).shape == (1,)


@settings(deadline=None, max_examples=300)
@given(curves)
def test_the_root_of_chi_square_is_as_exact_as_a_distance(curve) -> None:
    found, expected = float(statistics_of(curve)["Chi2"][0]), by_formula(curve)["Chi2"]
    assert np.isnan(found) == np.isnan(expected)
    if not np.isnan(found):
        assert found >= 0
        flux, err = counted(curve).T
        loss = 4 * len(flux) * EPS * np.abs(flux).max() * math.sqrt((1 / err**2).sum())
        assert abs(math.sqrt(found) - float(np.sqrt(expected))) <= loss + 8 * EPS * math.sqrt(found)


def test_chi_square_is_never_negative() -> None:
    assert statistics_of(np.array([[-0.3, 1e9], [0.1, 1.0]]))["Chi2"][0] >= 0
