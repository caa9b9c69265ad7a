"""Mixtures: scikit-learn's from the same start, for any chunking, any workers, and after a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import mixture as peers
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.estimator_checks import check_estimator

from scalable.errors import InputError, StoreError
from scalable.train.batches import Batches, arrays
from scalable.train.mixture import GaussianMixture


@pytest.fixture(scope="module")
def blobs() -> np.ndarray:
    rng = np.random.default_rng(3)
    rows = [rng.normal(size=(n, 2)) @ rng.normal(size=(2, 2)) + centre for n, centre in ((700, 0), (500, 3), (300, -4))]
    return rng.permutation(np.concatenate(rows))


def start(X: np.ndarray, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The same start for ours and for scikit-learn."""
    means, weights = X[:3], np.array([0.3, 0.3, 0.4])
    common: dict[str, Any] = {"covariance_type": kind, "tol": 1e-7, "max_iter": 60, "means_init": means, "weights_init": weights}
    precision = {"full": np.array([np.eye(2)] * 3), "diag": np.ones((3, 2)), "tied": np.eye(2)}[kind]
    return {**common, "covariances_init": np.array([np.eye(2)] * 3)}, {**common, "precisions_init": precision}


@pytest.mark.filterwarnings("ignore", category=ConvergenceWarning)
@settings(max_examples=4, deadline=None)
@given(st.sampled_from(["full", "diag", "tied"]), st.integers(100, 800))
def test_any_chunking_gives_the_mixture_of_scikit_learn_from_the_same_start(kind: str, part_rows: int) -> None:
    rng = np.random.default_rng(3)
    X = np.concatenate([rng.normal(size=(n, 2)) @ rng.normal(size=(2, 2)) + c for n, c in ((300, 0), (200, 3), (100, -4))])
    mine, theirs = start(X, kind)
    with dask.config.set(scheduler="sync"):
        ours = GaussianMixture(3, **mine).fit(arrays(X, part_rows=part_rows))
    peer = peers.GaussianMixture(3, **theirs).fit(X)
    assert ours.n_iter_ == peer.n_iter_
    np.testing.assert_allclose(ours.means_, peer.means_, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(ours.weights_, peer.weights_, rtol=1e-8)
    full = {"full": lambda c: c, "diag": lambda c: c[:, :, None] * np.eye(2), "tied": lambda c: np.array([c] * 3)}[kind]
    np.testing.assert_allclose(ours.covariances_, full(peer.covariances_), rtol=1e-8, atol=1e-8)
    assert ours.lower_bound_ == pytest.approx(peer.lower_bound_, abs=1e-9)
    assert ours.bic(X) == pytest.approx(peer.bic(X), rel=1e-9)
    assert ours.aic(arrays(X)) == pytest.approx(peer.aic(X), rel=1e-9)


class _Killed(Exception):
    pass


def test_a_killed_fit_goes_on_to_the_same_bits(blobs: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = arrays(blobs, part_rows=200)
    settings: dict[str, Any] = {"n_components": 4, "n_init": 2, "tol": 1e-9, "max_iter": 25, "seed": 5}
    whole = GaussianMixture(**settings).fit(batches)
    path = tmp_path / "state.h5"
    passes = 0
    over = Batches.over

    def killed(self: Batches, *arguments: Any) -> Any:
        nonlocal passes
        passes += 1
        if passes == 9:
            raise _Killed
        return over(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Batches, "over", killed)
        with pytest.raises(_Killed):
            GaussianMixture(**settings, checkpoint=path).fit(batches)
    again = GaussianMixture(**settings, checkpoint=path).fit(batches)
    for name in ("weights_", "means_", "covariances_"):
        assert np.array_equal(getattr(again, name), getattr(whole, name))
    assert again.n_iter_ == whole.n_iter_ == 25
    with pytest.raises(StoreError, match="another fit"):
        GaussianMixture(**{**settings, "seed": 6}, checkpoint=path).fit(batches)


def test_starts_do_not_depend_on_chunking_or_order(blobs: np.ndarray) -> None:
    found = [
        GaussianMixture(3, max_iter=1).fit(arrays(rows, part_rows=part_rows)).means_
        for rows, part_rows in ((blobs, 10_000), (blobs, 77), (blobs[::-1], 300))
    ]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-10)
    np.testing.assert_allclose(found[2], found[0], rtol=1e-10)


def test_mixtures_of_several_sizes_fitted_together_are_those_fitted_alone(blobs: np.ndarray) -> None:
    together = GaussianMixture(tol=1e-6).fit_counts(arrays(blobs), [1, 3])
    assert [fit.n_components for fit in together] == [1, 3]
    for fit in together:
        assert np.array_equal(GaussianMixture(fit.n_components, tol=1e-6).fit(blobs).means_, fit.means_)
    np.testing.assert_allclose(together[0].means_[0], blobs.mean(axis=0), rtol=1e-12)


def test_too_few_rows_and_unknown_kinds_are_refused(blobs: np.ndarray) -> None:
    with pytest.raises(InputError, match="too few for 9 components"):
        GaussianMixture(9).fit(blobs[:5])
    with pytest.raises(InputError, match="did you mean 'tied'"):
        GaussianMixture(covariance_type="tie").fit(blobs)


@pytest.mark.long
def test_the_contract_of_scikit_learn_is_kept() -> None:
    check_estimator(GaussianMixture(2), on_skip=None)
