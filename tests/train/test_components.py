"""Standardisation and principal components against scikit-learn, for any chunking."""

from __future__ import annotations

from typing import Any

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import decomposition, preprocessing
from sklearn.utils.estimator_checks import check_estimator

from scalable.errors import InputError
from scalable.train.batches import arrays
from scalable.train.components import PCA, Standardizer


@settings(max_examples=5, deadline=None)
@given(st.integers(20, 500), st.integers(0, 2**32 - 1))
def test_any_chunking_gives_what_scikit_learn_gives_in_memory(part_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(400, 4)) @ rng.normal(size=(4, 4)) + 20
    batches = arrays(X, part_rows=part_rows)
    with dask.config.set(scheduler="sync"):
        ours, theirs = PCA(3, whiten=True).fit(batches), decomposition.PCA(3, whiten=True).fit(X)
        np.testing.assert_allclose(ours.components_, theirs.components_, rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(ours.explained_variance_, theirs.explained_variance_, rtol=1e-9)
        np.testing.assert_allclose(ours.transform(X), theirs.transform(X), rtol=1e-6, atol=1e-8)
        np.testing.assert_allclose(ours.inverse_transform(ours.transform(X)), theirs.inverse_transform(theirs.transform(X)))
        scaled = Standardizer().fit(batches).transform(X)
        np.testing.assert_allclose(scaled, preprocessing.StandardScaler().fit_transform(X), rtol=1e-9, atol=1e-11)
        robust = Standardizer(robust=True).fit(batches)
    # Order statistics are exact, and so are these, to the bit.
    assert np.array_equal(robust.centre_, np.median(X, axis=0))
    assert np.array_equal(robust.scale_, np.subtract(*np.quantile(X, (0.75, 0.25), axis=0)))


def test_robust_components_do_not_follow_outliers() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(2000, 2)) * [3.0, 1.0]
    spoiled = np.vstack([X, [[0.0, 1e6]] * 3])
    assert abs(PCA().fit(spoiled).components_[0, 1]) > 0.999
    assert np.abs(PCA(robust=True).fit(spoiled).mean_).max() > 1  # the mean still moves
    np.testing.assert_allclose(PCA(robust=True).fit(spoiled).scale_, PCA(robust=True).fit(X).scale_, rtol=0.01)


def test_too_many_components_are_refused() -> None:
    with pytest.raises(InputError, match="between 1 and"):
        PCA(3).fit(np.ones((10, 2)))


@pytest.mark.parametrize("estimator", [PCA(), Standardizer(robust=True)], ids=str)
def test_the_contract_of_scikit_learn_is_kept(estimator: Any) -> None:
    check_estimator(estimator, on_skip=None)
