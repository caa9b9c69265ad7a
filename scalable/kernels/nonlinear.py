"""Curves with parameters that are fitted by least squares: their values and derivatives, by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Curve = Callable[[Float, Float], tuple[Float, Float]]


def _linear(parameters: Float, columns: Float) -> Float:
    total = np.full(columns.shape[1], parameters[0])
    for value, column in zip(parameters[1:], columns, strict=True):
        total += value * column
    return total


def _with_constant(columns: Float) -> Float:
    return np.vstack([np.ones((1, columns.shape[1])), columns])


def exponential(parameters: Float, columns: Float) -> tuple[Float, Float]:
    """Return exp(a + b.x) and its derivatives, shape (1 + features, rows): positive everywhere."""
    value = np.exp(_linear(parameters, columns))
    return value, value * _with_constant(columns)


def softplus(parameters: Float, columns: Float) -> tuple[Float, Float]:
    """Return log(1 + exp(a + b.x)) and its derivatives: positive, and linear where it is large."""
    inner = _linear(parameters, columns)
    return np.logaddexp(0.0, inner), _with_constant(columns) / (1.0 + np.exp(-inner))


def quadratic(parameters: Float, columns: Float) -> tuple[Float, Float]:
    """Return a + b.x + x'Cx and its derivatives; C is given by its upper triangle, row by row."""
    pairs = [columns[i] * columns[j] for i in range(len(columns)) for j in range(i, len(columns))]
    basis = np.vstack([_with_constant(columns), *pairs])
    return _linear(parameters, basis[1:]), basis


CURVES: dict[str, Curve] = {"exponential": exponential, "softplus": softplus, "quadratic": quadratic}


def parameters_of(curve: str, features: int) -> int:
    """Return the number of parameters of a curve."""
    return 1 + features + (features * (features + 1) // 2 if curve == "quadratic" else 0)
