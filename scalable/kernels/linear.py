"""Linear models from second moments alone: least squares, ridge, lasso, elastic net, to machine precision."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float = NDArray[np.float64]

_SWEEPS = 100_000


def least_squares(gram: Float, cross: Float, ridge: float = 0.0) -> Float:
    """Return the coefficients w that minimise w' gram w - 2 w' cross + ridge w' w; of least norm where they are not unique.

    Parameters
    ----------
    gram : ndarray, shape (d, d)
        Products of the features, centred where there is an intercept.
    cross : ndarray, shape (d,)
        Products of the features with the target.
    ridge : float
        Penalty, as in scikit-learn's ``Ridge``.
    """
    some = np.diag(gram) > 0
    if not some.all():
        w = np.zeros(len(cross))
        if some.any():
            w[some] = least_squares(gram[np.ix_(some, some)], cross[some], ridge)
        return w
    gram = gram + ridge * np.eye(len(cross))
    scale = np.sqrt(np.diag(gram))
    # Of unit diagonal, so that units do not decide what is singular.
    unit = gram / np.outer(scale, scale)
    values, vectors = np.linalg.eigh(unit)
    if values[0] > len(cross) * 1e-13 * values[-1]:
        w = vectors @ ((vectors.T @ (cross / scale)) / values)
        # One step of refinement wins back what the condition of the products took.
        w += vectors @ ((vectors.T @ (cross / scale - unit @ w)) / values)
        return w / scale
    values, vectors = np.linalg.eigh(gram)
    good = values > max(len(cross) * 1e-13 * values[-1], 0.0)
    return vectors[:, good] @ ((vectors[:, good].T @ cross) / values[good])


@njit(cache=True, nogil=True)
def _descend(gram: Float, cross: Float, l1: float, l2: float, w: Float) -> None:
    """Minimise w' gram w / 2 - w' cross + l1 |w| + l2 w'w / 2 by coordinate descent, until nothing moves."""
    d = len(w)
    gradient = cross - gram @ w
    for _ in range(_SWEEPS):
        largest = 0.0
        moved = 0.0
        for j in range(d):
            if gram[j, j] == 0.0:
                continue
            before = w[j]
            pull = gradient[j] + gram[j, j] * before
            w[j] = np.sign(pull) * max(abs(pull) - l1, 0.0) / (gram[j, j] + l2)
            step = w[j] - before
            if step != 0.0:
                for k in range(d):
                    gradient[k] -= gram[k, j] * step
            moved = max(moved, abs(step) * np.sqrt(gram[j, j]))
            largest = max(largest, abs(w[j]) * np.sqrt(gram[j, j]))
        if moved <= 1e-13 * largest:
            return


def elastic_net(gram: Float, cross: Float, rows: float, alpha: float, l1_ratio: float, start: Float | None = None) -> Float:
    """Return the coefficients that minimise |y - Xw|^2 / (2 rows) + alpha l1_ratio |w| + alpha (1 - l1_ratio) w'w / 2.

    Coordinate descent finds which coefficients are not zero; these then solve their linear equations exactly.

    Parameters
    ----------
    gram, cross : ndarray, shape (d, d) and (d,)
        As in `least_squares`.
    rows : float
        Number of rows, or the sum of their weights.
    alpha, l1_ratio : float
        Penalty, as in scikit-learn's ``ElasticNet``.
    start : ndarray, shape (d,), optional
        Where the descent begins.
    """
    l1, l2 = rows * alpha * l1_ratio, rows * alpha * (1.0 - l1_ratio)
    w = np.zeros(len(cross)) if start is None else start.copy()
    _descend(np.ascontiguousarray(gram), np.ascontiguousarray(cross), l1, l2, w)
    active = w != 0.0
    if not active.any():
        return w
    sign = np.sign(w[active])
    exact = least_squares(gram[np.ix_(active, active)], cross[active] - l1 * sign, l2)
    if (np.sign(exact) == sign).all():
        w[active] = exact
    return w


def heights(columns: Float, coef: Float, intercept: float) -> Float:
    """Return the plane at features of shape (features, rows), summed in their order: the same bits for a row in any company."""
    out = np.full(columns.shape[1], intercept)
    for value, column in zip(coef, columns, strict=True):
        out += value * column
    return out
