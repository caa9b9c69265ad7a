"""Statistics across bands, held to their papers' formulas, pair by pair."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.kernels.cross_band import CROSS_BAND, Pairing
from scalable.kernels.curve_series import stetson_means
from scalable.kernels.statistic import Float

Curve = tuple[Float, Float, Float]
"""Flux, error, time."""


def light_curve(seed: int, points: int, *, around: float = 50.0) -> Curve:
    """Return a curve whose times lie on a grid of hundredths of a day, so that other curves of the kind make pairs with it."""
    rng = np.random.default_rng(seed)
    mjd = 57000 + np.sort(rng.choice(400, points, replace=False)) / 100
    return rng.normal(around, 5.0, points) + 4 * np.sin(mjd), rng.uniform(1.0, 5.0, points), mjd


def across(bands: list[Curve], *, within_days: float = 0.02, magnitudes: bool = False) -> dict[str, float]:
    """Return every statistic across bands of one object."""
    flux, err, mjd = (np.concatenate([band[column] for band in bands]) for column in range(3))
    ends = np.cumsum([len(band[0]) for band in bands])
    offsets = np.concatenate([[0], ends, ends[-1:]])
    curves = np.arange(len(bands))[:, None]
    pairing = Pairing(within_days, magnitudes)
    return {name: float(s.finalize(s.chunk(flux, err, mjd, offsets, curves, pairing))[0]) for name, s in CROSS_BAND.items()}


def pairs_of(a: Curve, b: Curve, within: float) -> tuple[list[tuple[int, int]], list[int], list[int]]:
    """Return pairs and the single points of both, going through them in time, the earliest first."""
    left, right, pairs, alone = list(range(len(a[0]))), list(range(len(b[0]))), [], ([], [])
    while left and right:
        wait = b[2][right[0]] - a[2][left[0]]
        if abs(wait) <= within:
            pairs.append((left.pop(0), right.pop(0)))
        elif wait > 0:
            alone[0].append(left.pop(0))
        else:
            alone[1].append(right.pop(0))
    return pairs, alone[0] + left, alone[1] + right


def by_formula(a: Curve, b: Curve, within: float) -> dict[str, float]:
    means = [np.average(flux, weights=err**-2) for flux, err, _ in (a, b)]
    chi2 = sum((((flux - mean) / err) ** 2).sum() for (flux, err, _), mean in zip((a, b), means, strict=True))
    pairs, *alone = pairs_of(a, b, within)
    plain = [(flux - mean) / err for (flux, err, _), mean in zip((a, b), means, strict=True)]
    n = len(pairs)
    welch = math.sqrt(1 / (n * (n - 1))) * sum(plain[0][i] * plain[1][j] for i, j in pairs) if n > 1 else math.nan
    stetson = []
    for flux, err, _ in (a, b):
        centre = stetson_means(flux, err, np.array([0, len(flux)]))[0]
        stetson.append(math.sqrt(len(flux) / (len(flux) - 1)) * (flux - centre) / err)
    terms = [(1.0, stetson[0][i] * stetson[1][j]) for i, j in pairs]
    terms += [(0.5, stetson[band][i] ** 2 - 1) for band in (0, 1) for i in alone[band]]
    j = sum(w * math.copysign(math.sqrt(abs(p)), p) for w, p in terms) / sum(w for w, _ in terms)
    every = np.concatenate(stetson)
    k = np.abs(every).mean() / math.sqrt((every**2).mean())
    medians = [np.median(flux) for flux, _, _ in (a, b)]
    return {
        "MeanColour": -2.5 * math.log10(means[0] / means[1]),
        "MedianColour": -2.5 * math.log10(medians[0] / medians[1]),
        "SummedChi2": chi2,
        "SummedDof": len(a[0]) + len(b[0]) - 2,
        "WelchStetsonI": welch,
        "StetsonJ": j,
        "StetsonL": j * k / 0.798,
    }


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 2**31), st.integers(2, 40), st.integers(2, 40), st.sampled_from([0.0, 0.015, 0.5]))
def test_statistics_across_bands_are_what_their_formulas_say(seed: int, first: int, second: int, within: float) -> None:
    a, b = light_curve(seed, first), light_curve(seed + 1, second, around=30.0)
    assert across([a, b], within_days=within) == pytest.approx(by_formula(a, b, within), rel=1e-9, abs=1e-9, nan_ok=True)


def test_variations_in_step_have_a_large_i_and_j_and_noise_has_none() -> None:
    rng = np.random.default_rng(1)
    mjd, ones = np.arange(300.0), np.ones(300)
    wave = 10 * np.sin(mjd)
    together = across([(50 + wave + rng.normal(size=300), ones, mjd), (60 + wave + rng.normal(size=300), ones, mjd + 0.01)])
    noise = across([(50 + rng.normal(size=300), ones, mjd), (60 + rng.normal(size=300), ones, mjd + 0.01)])
    against = across([(50 + wave, ones, mjd), (60 - wave, ones, mjd + 0.01)])
    assert together["WelchStetsonI"] > 40
    assert together["StetsonJ"] > 5
    assert abs(noise["WelchStetsonI"]) < 3
    assert abs(noise["StetsonJ"]) < 0.2
    assert against["StetsonJ"] < -5


def test_colours_of_magnitudes_are_differences_and_fluxes_below_zero_have_none() -> None:
    a, b = light_curve(1, 5, around=17.0), light_curve(2, 9, around=15.0)
    found = across([a, b], magnitudes=True)
    assert found["MedianColour"] == pytest.approx(np.median(a[0]) - np.median(b[0]), rel=1e-12)
    negative = (-np.abs(b[0]), b[1], b[2])
    assert math.isnan(across([a, negative])["MeanColour"])
    assert math.isnan(across([negative, negative])["MeanColour"])


def test_a_band_without_points_leaves_what_the_others_say() -> None:
    none = np.zeros(0)
    a, empty = light_curve(1, 7), (none, none, none)
    found = across([a, empty])
    assert found["SummedDof"] == 6
    assert found["SummedChi2"] == pytest.approx(across([a, a])["SummedChi2"] / 2)
    assert [name for name, value in found.items() if math.isnan(value)] == [
        "MeanColour",
        "MedianColour",
        "WelchStetsonI",
        "StetsonJ",
        "StetsonL",
    ]
    nothing = across([empty, empty])
    assert nothing.pop("SummedDof") == 0
    assert all(math.isnan(value) for value in nothing.values())


def test_single_points_make_a_colour_and_no_index() -> None:
    one, other = (np.array([50.0]), np.array([1.0]), np.array([1.0])), (np.array([5.0]), np.array([1.0]), np.array([1.0]))
    found = across([one, other])
    assert found["MeanColour"] == pytest.approx(-2.5)
    assert (found["SummedChi2"], found["SummedDof"]) == (0, 0)
    assert all(math.isnan(found[name]) for name in ("WelchStetsonI", "StetsonJ", "StetsonL"))
