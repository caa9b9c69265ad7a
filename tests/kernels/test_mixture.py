"""The sums of one step of expectation maximisation, against the formulas written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from scalable.errors import InputError
from scalable.kernels.mixture import Parameters, expect, free_parameters, log_density, maximise, merge, responsibilities


@pytest.fixture(scope="module")
def mixture() -> Parameters:
    rng = np.random.default_rng(2)
    factors = rng.normal(size=(3, 2, 2)) * 0.4 + np.eye(2)
    return Parameters(np.array([0.2, 0.5, 0.3]), rng.normal(size=(3, 2)) * 2, factors @ factors.transpose(0, 2, 1))


def densities(rows: np.ndarray, mixture: Parameters) -> np.ndarray:
    pairs = zip(mixture.weights, mixture.means, mixture.covariances, strict=True)
    return np.array([weight * multivariate_normal(mean, spread).pdf(rows) for weight, mean, spread in pairs])


def test_sums_are_those_of_the_formulas_and_pieces_add_up(mixture: Parameters) -> None:
    rows = np.random.default_rng(0).normal(size=(1000, 2)) * 3
    weights = np.random.default_rng(1).random(1000)
    each = densities(rows, mixture)
    shares = each / each.sum(axis=0) * weights
    found = merge(expect(rows[:333].T, mixture, weights[:333]), expect(rows[333:].T, mixture, weights[333:]))
    delta = rows[None] - mixture.means[:, None]
    np.testing.assert_allclose(found.log_likelihood, (weights * np.log(each.sum(axis=0))).sum(), rtol=1e-12)
    np.testing.assert_allclose(found.weight, weights.sum(), rtol=1e-13)
    np.testing.assert_allclose(found.responsibility, shares.sum(axis=1), rtol=1e-12)
    np.testing.assert_allclose(found.shift, np.einsum("kn,knd->kd", shares, delta), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(found.scatter, np.einsum("kn,knd,kne->kde", shares, delta, delta), rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(log_density(rows.T, mixture), np.log(each.sum(axis=0)), rtol=1e-12)
    np.testing.assert_allclose(responsibilities(rows.T, mixture), (each / each.sum(axis=0)).T, rtol=1e-10, atol=1e-14)


def test_a_row_far_from_every_component_has_a_finite_log_density(mixture: Parameters) -> None:
    found = expect(np.array([[1e4], [1e4]]), mixture)
    assert np.isfinite(found.log_likelihood)
    assert found.responsibility.sum() == pytest.approx(1.0)


def test_a_component_that_collapsed_is_named(mixture: Parameters) -> None:
    flat = mixture._replace(covariances=mixture.covariances * np.array([1, 0, 1])[:, None, None])
    with pytest.raises(InputError, match="component 1 of 3 has collapsed"):
        expect(np.zeros((2, 3)), flat)


def test_diagonal_and_tied_covariances_are_what_they_are_called(mixture: Parameters) -> None:
    rows = np.random.default_rng(0).normal(size=(500, 2))
    sums = expect(rows.T, mixture)
    diagonal = maximise(sums, mixture.means, kind="diag", floor=0.0).covariances
    full = maximise(sums, mixture.means, kind="full", floor=0.0).covariances
    tied = maximise(sums, mixture.means, kind="tied", floor=0.0).covariances
    assert np.array_equal(diagonal, full * np.eye(2))
    np.testing.assert_allclose(tied[0], np.average(full, axis=0, weights=sums.responsibility), rtol=1e-12)
    assert np.array_equal(tied[0], tied[2])
    assert [free_parameters(3, 2, kind) for kind in ("full", "diag", "tied")] == [17, 14, 11]
