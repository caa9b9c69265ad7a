"""Moments and random numbers by counter: equal to NumPy's, whatever the pieces."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scalable.kernels.counter import below, normal, poisson, row_keys, uniform
from scalable.kernels.moments import covariance, empty, merge, moments


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 900), st.lists(st.integers(0, 900), max_size=4), st.sampled_from([0.0, 1e6]), st.integers(0, 2**32 - 1))
def test_pieces_merge_to_the_moments_of_the_whole_however_far_from_zero(
    rows: int, cuts: list[int], centre: float, seed: int
) -> None:
    columns = np.random.default_rng(seed).normal(centre, 1.0, (3, rows))
    total = empty(1, 3)
    edges = sorted({0, rows, *(cut for cut in cuts if cut < rows)})
    for start, stop in zip(edges, edges[1:], strict=False):
        total = merge(total, moments(columns[:, start:stop]))
    mean, spread = covariance(total, 0.0)
    assert total.rows[0] == rows
    np.testing.assert_allclose(mean, columns.mean(axis=1), rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(spread, np.atleast_2d(np.cov(columns, ddof=0)), rtol=1e-9, atol=1e-9)


def test_groups_and_weights_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    columns, group, weights = rng.normal(5, 1, (4, 2000)), rng.integers(0, 3, 2000), rng.random(2000)
    found = moments(columns, group, weights, groups=4)
    for g in range(3):
        mine = group == g
        mean, spread = covariance(found.of([g]), 0.0)
        np.testing.assert_allclose(mean, np.average(columns[:, mine], axis=1, weights=weights[mine]), rtol=1e-13)
        np.testing.assert_allclose(spread, np.cov(columns[:, mine], aweights=weights[mine], ddof=0), rtol=1e-11, atol=1e-13)
    assert found.rows.tolist() == [*np.bincount(group), 0]
    apart = moments(columns[:3], group, weights, groups=4, last=columns[3])
    assert all(np.array_equal(one, other) for one, other in zip(apart, found, strict=True))
    both = covariance(found.of([2, 0]), 0.0)[1]
    np.testing.assert_allclose(both, np.cov(columns[:, group != 1], aweights=weights[group != 1], ddof=0), rtol=1e-11, atol=1e-13)


def test_draws_by_counter_have_their_distributions_and_no_order() -> None:
    keys = np.arange(200_000, dtype=np.uint64)
    assert stats.kstest(uniform(keys, seed=1), "uniform").pvalue > 1e-3
    assert stats.kstest(normal(keys, seed=1, stream=2), "norm").pvalue > 1e-3
    assert abs(np.corrcoef(uniform(keys, seed=1), uniform(keys, seed=2))[0, 1]) < 0.01
    assert abs(np.corrcoef(uniform(keys, seed=1)[1:], uniform(keys, seed=1)[:-1])[0, 1]) < 0.01
    expected = stats.poisson(1).pmf(np.arange(5)) * len(keys)
    assert stats.chisquare(np.bincount(poisson(keys, seed=3))[:5], expected * 1.0, sum_check=False).pvalue > 1e-3
    assert stats.chisquare(np.bincount(below(keys, 7, seed=5))).pvalue > 1e-3
    shuffled = np.random.default_rng(0).permutation(keys)
    assert np.array_equal(normal(shuffled, seed=4), normal(keys, seed=4)[shuffled])


def test_rows_are_told_apart_by_every_value() -> None:
    columns = np.random.default_rng(0).normal(size=(3, 10_000))
    keys = row_keys(columns)
    assert len(np.unique(keys)) == 10_000
    assert np.array_equal(row_keys(columns[:2], columns[2]), keys)
    assert np.array_equal(row_keys(columns[:, ::-1]), keys[::-1])
    assert not np.isin(row_keys(columns[::-1]), keys).any()
