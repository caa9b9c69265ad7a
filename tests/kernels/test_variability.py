"""Statistics of light curves, held to their formulas in extended precision, point by point."""

from __future__ import annotations

import math
from functools import partial
from itertools import pairwise

import light_curve as light_curve_package
import numpy as np
import pytest
from dask.base import tokenize
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from scalable.errors import InputError
from scalable.kernels import curve_sums
from scalable.kernels.bands import ERROR_OF_MEAN
from scalable.kernels.curve_sums import merge_moments, moments
from scalable.kernels.statistic import Float, Statistic, evaluate
from scalable.kernels.variability import ALL, DEFAULT
from scalable.testing import check_statistic

EXACT = {name: ALL[name] for name in ("Ndata", "Mean", "MeanErr", "Sigma", "Chi2", "MaxDeviation", "WeightedMaxDeviation")}
"""Statistics that are held to the last rounding, over all that doubles can hold; the others to their formulas below."""
TIMED = [name for name, statistic in ALL.items() if "mjd" in statistic.needs]

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
    return evaluate(tuple(EXACT.values()), flux, err, np.arange(len(flux), dtype=np.float64), offsets)


def sums(curve: Curve) -> Float:
    """Return the moments of the points that count: only those reach a chunk."""
    flux, err = np.ascontiguousarray(counted(curve).T)
    return moments(flux, err, np.zeros(len(flux)), np.array([0, len(flux)]))


def counted(curve: Curve) -> Curve:
    flux, err = curve.T
    return curve[np.isfinite(flux) & np.isfinite(err) & (err > 0)]


def by_formula(curve: Curve) -> dict[str, float]:
    """Return the statistics as their definitions say, in 80-bit arithmetic."""
    flux, err = counted(curve).astype(np.longdouble).T
    n = len(flux)
    found = dict.fromkeys(EXACT, math.nan) | {"Ndata": float(n)}
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
        return dict.fromkeys(EXACT, 0.0)
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
    for name in EXACT:
        a, b = found[name], expected[name]
        assert np.isnan(a) == np.isnan(b), name
        assert np.isnan(a) or abs(a - b) <= loss[name] + 8 * EPS * abs(b), (name, a, b)


@settings(deadline=None, max_examples=200)
@given(st.lists(curves, min_size=1, max_size=4))
def test_statistics_are_what_their_formulas_say_over_the_points_that_count(some: list[Curve]) -> None:
    found = statistics_of(*some)
    assert list(found) == list(EXACT)
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
    found = evaluate(tuple(EXACT.values()), none, none, none, np.array([0]))
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
    found = {s.name: float(s.finalize(merged)[0]) for s in EXACT.values() if s.chunk is moments}
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
    found = evaluate((once, own, twice), np.arange(5.0), one, None, np.array([0, 2, 5]))
    assert {name: values.tolist() for name, values in found.items()} == {"Sum1": [1, 9], "First": [0, 2], "Sum2": [2, 18]}
    assert calls == [5]


def test_what_a_statistic_uses_is_made_once_of_the_points_that_count_for_it() -> None:
    calls = []

    def total(flux: Float, err: Float, mjd: Float, offsets: NDArray[np.int64]) -> Float:
        calls.append(flux.tolist())
        return np.add.reduceat(flux, offsets[:-1])[:, None]

    def share(flux: Float, err: Float, mjd: Float, offsets: NDArray[np.int64], sums: Float) -> Float:
        return flux[offsets[:-1]] / sums[:, 0]

    plain = Statistic("Sum", "sum", lambda sums: sums[:, 0], chunk=total)
    first = Statistic("First", "share of the first", share, uses=total)
    timed = Statistic("Timed", "the same of points with a time", share, needs=("flux", "err", "mjd"), uses=total)
    flux, one, offsets = np.arange(1.0, 6.0), np.ones(5), np.array([0, 2, 5])
    found = evaluate((first, plain, timed), flux, one, np.arange(5.0), offsets)
    assert [found[name].tolist() for name in ("Sum", "First", "Timed")] == [[3, 12], [1 / 3, 3 / 12], [1 / 3, 3 / 12]]
    assert calls == [[1, 2, 3, 4, 5]]
    found = evaluate((first, plain, timed), flux, one, np.array([0, 1, math.nan, 3, 4]), offsets)
    assert [found[name].tolist() for name in ("First", "Timed")] == [[1 / 3, 3 / 12], [1 / 3, 4 / 9]]
    assert calls[1:] == [[1, 2, 3, 4, 5], [1, 2, 4, 5]]


def test_one_function_on_other_sums_is_another_statistic() -> None:
    def lengths(flux: Float, err: Float, mjd: Float, offsets: NDArray[np.int64]) -> Float:
        return np.diff(offsets).astype(float)

    def first(flux: Float, err: Float, mjd: Float, offsets: NDArray[np.int64]) -> Float:
        return flux[offsets[:-1]]

    def same(flux: Float, err: Float, mjd: Float, offsets: NDArray[np.int64], sums: Float) -> Float:
        return sums

    both = Statistic("Length", "points", same, uses=lengths), Statistic("First", "first flux", same, uses=first)
    found = evaluate(both, np.arange(1.0, 6.0), np.ones(5), None, np.array([0, 2, 5]))
    assert {name: values.tolist() for name, values in found.items()} == {"Length": [2, 3], "First": [1, 3]}


def test_columns_of_the_partial_sums_are_the_named_ones() -> None:
    names = ["N", "MEAN", "M2", "WEIGHT", "WEIGHTED_MEAN", "WEIGHTED_M2", "WEIGHT_SQUARE", "ERR_MEAN", "ERR_SQUARE"]
    found = sums(np.array([[1.0, 1.0], [4.0, 0.5]]))[0]
    # Weights 1 and 4: the weighted mean is 17 / 5, the weighted squares 2.4**2 + 4 * 0.6**2.
    expected = (2.0, 2.5, 4.5, 5.0, 3.4, 7.2, 17.0, 0.75, 1.25)
    assert {name: found[getattr(curve_sums, name)] for name in names} == pytest.approx(dict(zip(names, expected, strict=True)))
    assert all(b == a + 1 for a, b in pairwise(getattr(curve_sums, name) for name in names))


@pytest.mark.parametrize("err", [1e-170, 5e-324, 1e200])
def test_errors_whose_squares_leave_the_range_of_doubles_give_numbers_or_nan_never_an_exception(err: float) -> None:
    found = statistics_of(np.array([[1.0, err], [2.0, err]]))
    assert found["Ndata"].tolist() == [2.0]
    every = evaluate((*ALL.values(), ERROR_OF_MEAN), np.ones(2), np.array([err, err]), np.arange(2.0), np.array([0, 2]))
    assert all(values.shape == (1,) for values in every.values())


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


# Every statistic ---------------------------------------------------------------------------------------------------------------


def light_curve(seed: int, points: int) -> tuple[Float, Float, Float]:
    """Return flux, error and time of a random curve; some points share their time."""
    rng = np.random.default_rng(seed)
    mjd = 57000 + np.sort(rng.integers(0, 2 * points + 1, points)) / 4
    return rng.normal(50.0, 10.0, points) + 3 * np.sin(mjd), rng.uniform(1.0, 15.0, points), mjd


def every(flux: Float, err: Float, mjd: Float) -> dict[str, float]:
    found = evaluate(tuple(ALL.values()), flux, err, mjd, np.array([0, len(flux)]))
    return {name: float(values[0]) for name, values in found.items()}


def stetson_mean(flux: Float, err: Float) -> float:
    """Return Stetson's mean as his paper has it, with NumPy's averages."""
    n = len(flux)
    mean = np.average(flux, weights=err**-2)
    for _ in range(20):
        distance = math.sqrt(n / (n - 1)) * (flux - mean) / err
        before, mean = mean, np.average(flux, weights=err**-2 / (1 + (np.abs(distance) / 2) ** 2))
        if abs(mean - before) < 1e-6 * math.sqrt(n / (err**-2).sum()):
            break
    return float(mean)


def by_libraries(flux: Float, err: Float, mjd: Float) -> dict[str, float]:
    """Return every statistic of at least four points from NumPy and SciPy."""
    n, weight = len(flux), err**-2.0
    mean, weighted, sigma = flux.mean(), np.average(flux, weights=weight), flux.std(ddof=1)
    chi2 = (((flux - weighted) / err) ** 2).sum()
    residual = (flux - weighted) / err
    slope, intercept = np.polyfit(mjd - mjd[0], flux, 1, w=1 / err)
    step, wait = np.diff(flux), np.diff(mjd)
    slopes = step[wait > 0] / wait[wait > 0]
    distance = math.sqrt(n / (n - 1)) * (flux - stetson_mean(flux, err)) / err
    excess = distance**2 - 1
    quantiles = dict(zip((5, 25, 50, 75, 95), np.percentile(flux, (5, 25, 50, 75, 95)), strict=True))
    return {
        "Ndata": n,
        "Mean": weighted,
        "MeanErr": weight.sum() ** -0.5,
        "Sigma": sigma,
        "ErrMean": err.mean(),
        "Chi2": chi2,
        "ReducedChi2": chi2 / (n - 1),
        "Chi2PValue": stats.chi2.sf(chi2, n - 1),
        "WeightedStd": math.sqrt(weight.sum() / (weight.sum() ** 2 - (weight**2).sum()) * chi2),
        "ExcessVariance": sigma**2 - (err**2).mean(),
        "NormalisedExcessVariance": (sigma**2 - (err**2).mean()) / mean**2,
        "Skew": stats.skew(flux, bias=False),
        "Kurtosis": stats.kurtosis(flux, bias=False),
        "Min": flux.min(),
        "Max": flux.max(),
        "Amplitude": np.ptp(flux) / 2,
        "FirstMjd": mjd[0],
        "LastMjd": mjd[-1],
        "TimeSpan": np.ptp(mjd),
        "LinearSlope": slope,
        "LinearIntercept": intercept - slope * mjd[0],
        **{f"Percentile{percent:02d}": value for percent, value in quantiles.items()},
        "MAD": stats.median_abs_deviation(flux),
        "IQR": stats.iqr(flux),
        "Roms": (np.abs(flux - np.median(flux)) / err).sum() / (n - 1),
        "MedianCadence": np.median(wait),
        "MaxDeviation": (np.abs(flux - mean) / err).max(),
        "WeightedMaxDeviation": (np.abs(flux - weighted) / err).max(),
        "BeyondOneSigma": (np.abs(flux - mean) > sigma).mean(),
        "StetsonK": np.abs(residual).mean() / math.sqrt((residual**2).mean()),
        "VonNeumann": (step**2).sum() / (n - 1) / sigma**2,
        "EtaE": np.ptp(mjd) ** 2 / (n - 1) ** 3 * (slopes**2).sum() / sigma**2,
        "MaxSlope": slopes.max(),
        "StetsonJ": (np.sign(excess) * np.sqrt(np.abs(excess))).mean(),
    }


@settings(deadline=None, max_examples=150)
@given(st.integers(0, 2**32 - 1), st.integers(4, 120))
def test_every_statistic_is_what_numpy_and_scipy_make_of_its_definition(seed: int, points: int) -> None:
    curve = light_curve(seed, points)
    if np.ptp(curve[2]) == 0:
        return
    found, expected = every(*curve), by_libraries(*curve)
    assert set(found) == set(expected)
    for name, value in expected.items():
        # The intercept is extrapolated by 57,000 days.
        assert found[name] == pytest.approx(float(value), rel=1e-9, abs=1e-7 if name == "LinearIntercept" else 1e-9), name


def test_the_published_values_of_stetson_j_slopes_and_k_come_out() -> None:
    flux, err, mjd = np.linspace(-1, 1, 10), np.ones(10), np.arange(10.0)
    found = every(flux, err, mjd)
    assert found["StetsonJ"] == pytest.approx(-0.5958393936080928, rel=1e-14)
    assert found["MaxSlope"] == pytest.approx(2 / 9, rel=1e-14)
    assert found["LinearSlope"] == pytest.approx(2 / 9, rel=1e-14)
    assert found["LinearIntercept"] == pytest.approx(-1, rel=1e-14)
    flux[7] = err[4] = math.nan
    assert every(flux, err, mjd)["StetsonJ"] == pytest.approx(-0.5412797916187173, rel=1e-14)


def test_stetson_k_tells_noise_from_a_sine() -> None:
    points = 200_000
    ones, mjd = np.ones(points), np.arange(float(points))
    assert every(np.random.default_rng(3).normal(size=points), ones, mjd)["StetsonK"] == pytest.approx(0.798, abs=2e-3)
    assert every(np.sin(2 * np.pi * mjd / points), ones, mjd)["StetsonK"] == pytest.approx(0.900, abs=5e-4)


def test_statistics_agree_with_the_light_curve_package_where_definitions_do() -> None:
    theirs = {
        "Amplitude": light_curve_package.Amplitude(),
        "BeyondOneSigma": light_curve_package.BeyondNStd(1.0),
        "VonNeumann": light_curve_package.Eta(),
        "EtaE": light_curve_package.EtaE(),
        "NormalisedExcessVariance": light_curve_package.ExcessVariance(),
        "Kurtosis": light_curve_package.Kurtosis(),
        "LinearSlope": light_curve_package.LinearFit(),
        "MAD": light_curve_package.MedianAbsoluteDeviation(),
        "Percentile50": light_curve_package.Median(),
        "Mean": light_curve_package.WeightedMean(),
        "ReducedChi2": light_curve_package.ReducedChi2(),
        "Roms": light_curve_package.Roms(),
        "Skew": light_curve_package.Skew(),
        "Sigma": light_curve_package.StandardDeviation(),
        "StetsonK": light_curve_package.StetsonK(),
        "TimeSpan": light_curve_package.Duration(),
    }
    for seed in range(30):
        flux, err, mjd = light_curve(seed, 5 + 7 * seed)
        mjd = mjd[0] + np.cumsum(np.diff(mjd, prepend=mjd[0]) + 0.1)  # They divide by the time between any two points.
        found = every(flux, err, mjd)
        for name, feature in theirs.items():
            assert found[name] == pytest.approx(float(feature(mjd, flux, err)[0]), rel=1e-6), name


@pytest.mark.parametrize("name", ALL)
def test_a_statistic_keeps_the_contract_merging_order_scale_and_gaps_included(name: str) -> None:
    check_statistic(ALL[name])


@settings(deadline=None, max_examples=100)
@given(st.integers(0, 2**32 - 1), st.integers(0, 60), st.integers(1, 6))
def test_any_parts_merged_in_any_order_give_what_the_whole_gives(seed: int, points: int, parts: int) -> None:
    flux, err, mjd = light_curve(seed, points)
    rng = np.random.default_rng(seed)
    part_of, order = rng.integers(0, parts, points), rng.permutation(parts)
    whole = every(flux, err, mjd)
    for name, statistic in ALL.items():
        if statistic.chunk is None or statistic.combine is None:
            continue
        merged = None
        for mine in (part_of == part for part in order):
            one = statistic.chunk(flux[mine], err[mine], mjd[mine], np.array([0, mine.sum()]))
            merged = one if merged is None else statistic.combine(merged, one)
        found = float(statistic.finalize(merged)[0])
        assert found == pytest.approx(whole[name], rel=1e-8, abs=1e-6 if name == "LinearIntercept" else 1e-9, nan_ok=True), name


def test_few_points_give_what_can_be_said_and_nothing_more() -> None:
    offsets = np.array([0, 0, 1, 3])
    flux, err, mjd = np.array([7.0, 2.0, 4.0]), np.array([2.0, 1.0, 1.0]), np.array([5.0, 5.0, 7.0])
    found = evaluate(tuple(ALL.values()), flux, err, mjd, offsets)
    one = {
        **dict.fromkeys(("Ndata",), 1.0),
        **dict.fromkeys(
            ("Mean", "Min", "Max", "Percentile05", "Percentile25", "Percentile50", "Percentile75", "Percentile95"), 7.0
        ),
        **dict.fromkeys(("MeanErr", "ErrMean"), 2.0),
        **dict.fromkeys(("Chi2", "Amplitude", "MAD", "IQR", "TimeSpan"), 0.0),
        **dict.fromkeys(("FirstMjd", "LastMjd"), 5.0),
    }
    for name, values in found.items():
        assert values[0] == 0 if name == "Ndata" else np.isnan(values[0]), name
        assert values[1] == one[name] if name in one else np.isnan(values[1]), name
    assert [name for name, values in found.items() if np.isnan(values[2])] == ["Skew", "Kurtosis"]


def test_a_constant_source_has_the_answers_that_the_definitions_state() -> None:
    for points in (5, 8):
        found = every(np.full(points, 3.7), np.linspace(1, 2, points), np.arange(float(points)))
        zero = "Sigma Chi2 ReducedChi2 WeightedStd Amplitude MAD IQR Roms MaxDeviation WeightedMaxDeviation BeyondOneSigma"
        zeros = [*zero.split(), "MaxSlope", "LinearSlope"]
        assert {name: found[name] for name in zeros} == dict.fromkeys(zeros, 0.0)
        undefined = [name for name, value in found.items() if math.isnan(value)]
        assert undefined == ["Skew", "Kurtosis", "StetsonK", "VonNeumann", "EtaE"]
        assert found["Chi2PValue"] == 1.0
        assert found["StetsonJ"] == -1.0
        assert found["LinearIntercept"] == found["Percentile05"] == found["Percentile50"] == 3.7


def test_points_at_one_time_have_no_slope_between_them() -> None:
    flux, err = np.array([1.0, 9.0, 2.0, 4.0]), np.ones(4)
    # Between the two at day 1 there is none; the steepest of the others rises from 2 to 4 within a day.
    found = every(flux, err, np.array([0.0, 1.0, 1.0, 2.0]))
    assert found["MaxSlope"] == 8.0
    assert every(flux[[0, 2, 1, 3]], err, np.array([0.0, 1.0, 1.0, 2.0]))["MaxSlope"] == 1.0
    found = every(flux, err, np.full(4, 5.0))
    missing = [name for name in TIMED if math.isnan(found[name])]
    assert missing == ["LinearSlope", "LinearIntercept", "EtaE", "MaxSlope"]
    assert found["VonNeumann"] > 0
    assert found["MedianCadence"] == 0.0


def test_a_falling_source_has_a_negative_largest_slope() -> None:
    assert every(np.array([9.0, 5.0, 4.0, 1.0]), np.ones(4), np.arange(4.0))["MaxSlope"] == -1.0


def test_a_point_without_a_time_is_missing_only_where_time_is_needed() -> None:
    flux, err, mjd = np.array([1.0, 2.0, 4.0]), np.ones(3), np.array([0.0, math.nan, 2.0])
    found = evaluate((ALL["Ndata"], ALL["Mean"], ALL["TimeSpan"], ALL["LinearSlope"]), flux, err, mjd, np.array([0, 3]))
    assert {name: values[0] for name, values in found.items()} == pytest.approx(
        {"Ndata": 3, "Mean": 7 / 3, "TimeSpan": 2, "LinearSlope": 1.5}
    )


def test_single_precision_gives_what_the_same_numbers_give_in_double() -> None:
    flux, err, mjd = (values.astype(np.float32) for values in light_curve(1, 40))
    wide = every(flux.astype(np.float64), err.astype(np.float64), mjd.astype(np.float64))
    np.testing.assert_equal(every(flux, err, mjd), wide)


@pytest.mark.parametrize("points", [1, 3, 8, 100])
def test_cutting_the_curves_into_blocks_changes_nothing_to_the_bit(points: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = np.random.default_rng(points).integers(0, 12, 60)
    flux, err, mjd = light_curve(points, int(lengths.sum()))
    flux[::17] = math.nan
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    whole = evaluate(tuple(ALL.values()), flux, err, mjd, offsets)
    monkeypatch.setattr("scalable.kernels.statistic.BLOCK_POINTS", points)
    np.testing.assert_equal(evaluate(tuple(ALL.values()), flux, err, mjd, offsets), whole)


def test_the_default_is_what_rubin_names_and_every_declaration_says_what_it_is() -> None:
    names = "Ndata Mean MeanErr Sigma ErrMean Min Max Percentile05 Percentile25 Percentile50 Percentile75 Percentile95 MAD Skew"
    last = "Chi2 StetsonJ MaxSlope LinearSlope LinearIntercept"
    assert [statistic.name for statistic in DEFAULT] == f"{names} {last}".split()
    assert [name for name, statistic in ALL.items() if statistic.integer] == ["Ndata"]
    units = {statistic.unit for statistic in ALL.values()}
    assert units == {"", "value", "value**2", "value/d", "d"}
    for name, statistic in ALL.items():
        assert statistic.definition, name
        assert statistic.ucd, name
    definitions = [statistic.definition for statistic in ALL.values()]
    assert len(set(definitions)) == len(definitions)
    merging = {name for name, statistic in ALL.items() if statistic.combine}
    assert merging == {statistic.name for statistic in curve_sums.SUMS}


def test_declarations_of_other_code_are_other_statistics() -> None:
    def declared(power: int) -> Statistic:
        return Statistic("Own", "own", partial(raised, power))

    assert tokenize(declared(2)) == tokenize(declared(2)) != tokenize(declared(3))
    first = Statistic("Own", "own", lambda flux, err, mjd, offsets: flux[offsets[:-1]])
    other = Statistic("Own", "own", lambda flux, err, mjd, offsets: flux[offsets[1:] - 1])
    assert tokenize(first) != tokenize(other)

    def closing(power: int) -> Statistic:
        return Statistic("Own", "own", lambda flux, err, mjd, offsets: flux[offsets[:-1]] ** power)

    assert tokenize(closing(2)) == tokenize(closing(2)) != tokenize(closing(3))


def test_a_statistic_that_needs_what_no_point_has_is_refused() -> None:
    with pytest.raises(InputError, match="'Own' needs 'flx'; did you mean 'flux'"):
        Statistic("Own", "own", np.mean, needs=("flx",))


def test_a_statistic_that_uses_sums_of_the_whole_curve_does_not_merge() -> None:
    with pytest.raises(InputError, match="'Own' uses sums of the whole curve"):
        Statistic("Own", "own", np.mean, chunk=moments, combine=np.add, uses=moments)


def raised(power: int, flux: Float, err: Float, mjd: Float, offsets: NDArray[np.int64]) -> Float:
    return flux[offsets[:-1]] ** power
