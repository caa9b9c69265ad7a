"""A feed-forward network: its steps in NumPy for learning, and a compiled pass that gives a row the same bits in any company."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float = NDArray[np.float64]

_TILE = 64


@njit(cache=True, nogil=True, error_model="numpy")
def _layer(inputs: Float, weights: Float, bias: Float, rectify: bool, out: Float) -> None:
    """Apply one layer to features of shape (inputs, rows), a tile of rows in vector registers at a time."""
    n = inputs.shape[1]
    sums = np.empty(_TILE)
    for start in range(0, n, _TILE):
        used = min(_TILE, n - start)
        for j in range(weights.shape[1]):
            for i in range(_TILE):
                sums[i] = bias[j]
            for k in range(weights.shape[0]):
                factor, row = weights[k, j], inputs[k, start : start + used]
                for i in range(used):
                    sums[i] += factor * row[i]
            own = out[j, start : start + used]
            for i in range(used):
                own[i] = max(sums[i], 0.0) if rectify else sums[i]


def forward(columns: Float, weights: Sequence[Float], biases: Sequence[Float]) -> Float:
    """Return the outputs, shape (outputs, rows), of features of shape (features, rows); hidden layers are rectified."""
    values = np.ascontiguousarray(columns)
    for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        out = np.empty((weight.shape[1], values.shape[1]))
        _layer(values, np.ascontiguousarray(weight), bias, n < len(weights) - 1, out)
        values = out
    return values


def softmax(logits: Float) -> Float:
    """Return probabilities over the first axis."""
    shares = np.exp(logits - logits.max(axis=0))
    return shares / shares.sum(axis=0)


def gradients(
    X: Float,
    target: Float,
    weights: Sequence[Float],
    biases: Sequence[Float],
    *,
    alpha: float,
    classes: bool,
    row_weights: Float | None = None,
) -> tuple[float, list[Float], list[Float]]:
    """Return the loss on a batch and its gradients by weights and biases.

    Parameters
    ----------
    X : ndarray, shape (rows, features)
    target : ndarray, shape (rows,)
        Values for half the mean squared error, or numbers of bins for the cross-entropy.
    alpha : float
        Penalty on the squares of the weights, divided by the rows, as in scikit-learn's ``MLPRegressor``.
    row_weights : ndarray, shape (rows,), optional
        In any scale.
    """
    values = [X]
    for n, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        out = values[-1] @ weight + bias
        values.append(out if n == len(weights) - 1 else np.maximum(out, 0.0))
    rows = len(X)
    if classes:
        shares = softmax(values[-1].T).T
        picked = target.astype(np.int64)
        losses = -np.log(np.maximum(shares[np.arange(rows), picked], 1e-300))
        delta = shares
        delta[np.arange(rows), picked] -= 1.0
    else:
        delta = values[-1] - target[:, None]
        losses = 0.5 * delta[:, 0] ** 2
    delta /= rows
    if row_weights is not None:
        row_weights = row_weights / max(row_weights.mean(), 1e-300)
        delta *= row_weights[:, None]
        losses *= row_weights
    by_weight: list[Float] = []
    by_bias: list[Float] = []
    for n in range(len(weights) - 1, -1, -1):
        by_weight.append(values[n].T @ delta + alpha / rows * weights[n])
        by_bias.append(delta.sum(axis=0))
        if n:
            delta = (delta @ weights[n].T) * (values[n] > 0)
    return float(losses.mean()), by_weight[::-1], by_bias[::-1]
