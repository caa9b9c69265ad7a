"""Whether a sample looks like the data: two-sample tests per axis and for all axes together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist
from scipy.stats import ks_2samp

from scalable.errors import InputError
from scalable.kernels.mixture import draw_rows
from scalable.train.model import Model
from scalable.train.photoz import batches_for
from scalable.train.sample import draw
from scalable.train.tables import Data

Float = NDArray[np.float64]

PAIR_ROWS = 2000
"""Rows of each side whose distances are taken at once."""


def energy_distance(a: Float, b: Float) -> float:
    """Return 2 E|a - b| - E|a - a'| - E|b - b'| over all pairs (Szekely and Rizzo 2013): 0 for equal distributions.

    Parameters
    ----------
    a, b : ndarray, shape (rows, features)
        In comparable units.
    """
    return 2 * _mean_distance(a, b) - _mean_distance(a, a) - _mean_distance(b, b)


def _mean_distance(a: Float, b: Float) -> float:
    total = sum(cdist(a[start : start + PAIR_ROWS], b).sum() for start in range(0, len(a), PAIR_ROWS))
    return float(total / (len(a) * len(b)))


def sample_tests(
    model: Model, data: Data, *, rows: int = 10_000, held_out: float = 0.2, seed: int = 0, **table: Any
) -> dict[str, Any]:
    """Compare rows drawn from a mixture with rows of a table that it was not fitted to; computes.

    Parameters
    ----------
    model : Model
        From `fit_mixture`.
    data : Catalog, Batches, pyarrow.Table, path or sequence of paths
    rows : int
        Most rows of each side.
    held_out : float
        As given to `fit_mixture`: the rows compared with are those it left out; 0 for a table that it has not seen at all.
    seed : int
        As given to `fit_mixture`.

    Returns
    -------
    dict
        For each feature ``ks`` (statistic, p-value); ``energy`` in units of the features' deviations, and ``energy_of_data``,
        that between two halves of the data: what chance alone gives.
    """
    batches = batches_for(model, data, **table)
    if held_out > 0:
        batches = batches.fold([0], max(2, round(1 / held_out)), seed=seed)
    real = draw(batches, rows, seed=seed + 1).columns
    if real.shape[1] < 4:
        raise InputError(f"{real.shape[1]} rows are too few to compare with")
    if model.transform is not None:
        raise InputError("a mixture of transformed features is not compared; fit one to the features")
    drawn, _ = draw_rows(model.estimator.parameters, 0, real.shape[1], seed)
    tests = {name: ks_2samp(x, y) for name, x, y in zip(model.features.names, drawn, real, strict=True)}
    scale = np.where(real.std(axis=1) > 0, real.std(axis=1), 1.0)
    a, b = drawn.T / scale, real.T / scale
    half = len(b) // 2
    return {
        "rows": len(b),
        "ks": {name: {"statistic": float(test.statistic), "pvalue": float(test.pvalue)} for name, test in tests.items()},
        "energy": energy_distance(a[:half], b[:half]),
        "energy_of_data": energy_distance(b[:half], b[half : 2 * half]),
    }
