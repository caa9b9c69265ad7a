"""The structure function, pair by pair."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.kernels.statistic import Float, evaluate
from scalable.kernels.structure import structure_function
from scalable.testing import check_statistic

EDGES = (0.0, 1.0, 5.0, 40.0)


def of(flux: Float, err: Float, mjd: Float) -> list[float]:
    found = evaluate(structure_function(EDGES), flux, err, mjd, np.array([0, len(flux)]))
    return [float(values[0]) for values in found.values()]


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**31), st.integers(0, 30))
def test_it_is_the_root_mean_square_of_differences_less_the_errors_by_lag(seed: int, points: int) -> None:
    rng = np.random.default_rng(seed)
    flux, err, mjd = rng.normal(0, 3, points), rng.uniform(0.1, 2, points), np.sort(rng.integers(0, 100, points) / 2)
    for found, low, high in zip(of(flux, err, mjd), EDGES[:-1], EDGES[1:], strict=True):
        pairs = [(i, j) for i, j in combinations(range(points), 2) if low <= mjd[j] - mjd[i] < high]
        total = sum((flux[i] - flux[j]) ** 2 - err[i] ** 2 - err[j] ** 2 for i, j in pairs)
        expected = math.sqrt(total / len(pairs)) if pairs and total >= 0 else math.nan
        assert found == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_a_random_walk_grows_with_the_root_of_the_lag() -> None:
    rng = np.random.default_rng(2)
    flux, mjd = np.cumsum(rng.normal(size=4000)), np.arange(4000.0)
    found = evaluate(structure_function([4.5, 5.5, 19.5, 20.5]), flux, np.full(4000, 1e-3), mjd, np.array([0, 4000]))
    five, _, twenty = (float(values[0]) for values in found.values())
    assert twenty / five == pytest.approx(2, rel=0.1)


def test_it_keeps_the_contract_of_statistics_and_says_which_lags() -> None:
    for statistic in structure_function([0, 4, 30]):
        check_statistic(statistic)
    assert "4 to 30 d" in structure_function([0, 4, 30])[1].definition


@pytest.mark.parametrize("edges", [[1], [2, 1], [-1, 3], [0, math.nan]])
def test_lags_that_do_not_rise_are_refused(edges: list[float]) -> None:
    with pytest.raises(ValueError, match="two or more rising times"):
        structure_function(edges)
