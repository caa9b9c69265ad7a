"""Gaussian mixtures: the sums that one pass of expectation maximisation needs, mergeable and compiled."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scalable.errors import InputError
from scalable.kernels.counter import normal, uniform

Float = NDArray[np.float64]

_TILE = 256
_FACTORS = 16
"""Rows under one logarithm: even a billion components make a product below 1e144."""
_SUMS = {"reassoc", "contract", "nsz"}


class Parameters(NamedTuple):
    """A mixture of k Gaussians in d dimensions.

    Attributes
    ----------
    weights : ndarray, shape (k,)
    means : ndarray, shape (k, d)
        In the units of the features.
    covariances : ndarray, shape (k, d, d)
        Whatever their kind; of the kind ``diag`` only the diagonal is not zero, of ``tied`` all are equal.
    """

    weights: Float
    means: Float
    covariances: Float


class Expectation(NamedTuple):
    """Sums over rows at given parameters; those of disjoint sets of rows add up.

    Attributes
    ----------
    weight : float
        Sum of row weights.
    log_likelihood : float
        Sum of the rows' log densities.
    responsibility : ndarray, shape (k,)
        Sum of responsibilities.
    shift : ndarray, shape (k, d)
        Sum of responsibility times deviation from the component's mean: small near convergence, so that nothing cancels.
    scatter : ndarray, shape (k, d, d)
        Sum of responsibility times products of these deviations.
    """

    weight: float
    log_likelihood: float
    responsibility: Float
    shift: Float
    scatter: Float


def merge(a: Expectation, b: Expectation) -> Expectation:
    """Return the sums over two disjoint sets of rows."""
    sums: Any = (x + y for x, y in zip(a, b, strict=True))  # type: ignore[operator]
    return Expectation(*sums)


@njit(cache=True, nogil=True, fastmath=_SUMS, error_model="numpy")
def _exp_of(logs: Float, bits: NDArray[np.int64], used: int) -> float:
    """Replace logs, none above 0, by their exponentials, in vector registers (Cody and Waite reduction); return the sum."""
    total = 0.0
    for i in range(used):
        x = max(logs[i], -700.0)
        whole = np.floor(x * 1.4426950408889634 + 0.5)
        r = (x - whole * 6.93145751953125e-1) - whole * 1.42860682030941723212e-6
        p = 1.6059043836821613e-10
        p = p * r + 2.08767569878681e-09
        p = p * r + 2.505210838544172e-08
        p = p * r + 2.755731922398589e-07
        p = p * r + 2.7557319223985893e-06
        p = p * r + 2.48015873015873e-05
        p = p * r + 1.984126984126984e-04
        p = p * r + 1.3888888888888889e-03
        p = p * r + 8.333333333333333e-03
        p = p * r + 4.1666666666666664e-02
        p = p * r + 1.6666666666666666e-01
        p = p * r + 0.5
        p = p * r + 1.0
        logs[i] = p * r + 1.0
        bits[i] = (np.int64(whole) + 1023) << 52
    powers = bits.view(np.float64)
    for i in range(used):
        logs[i] *= powers[i]
        total += logs[i]
    return total


@njit(cache=True, nogil=True, fastmath=_SUMS, error_model="numpy")
def _expect(
    columns: Float,
    row_weights: Float,
    constant: Float,
    means: Float,
    precision: Float,
    diagonal: bool,
    stats: bool,
    density: Float,
) -> tuple[float, float, Float, Float, Float]:
    d, n = columns.shape
    k = len(constant)
    responsibility, shift, scatter = np.zeros(k), np.zeros((k, d)), np.zeros((k, d, d))
    delta, logs, bits = np.empty((k, d, _TILE)), np.empty((k, _TILE)), np.empty(_TILE, np.int64)
    largest, sums, y = np.empty(_TILE), np.empty(_TILE), np.empty(_TILE)
    weighted = len(row_weights) > 0
    weight = log_likelihood = 0.0
    for start in range(0, n, _TILE):
        used = min(n - start, _TILE)
        for i in range(used):
            largest[i] = -np.inf
            sums[i] = 0.0
        for c in range(k):
            log = logs[c]
            for i in range(used):
                log[i] = constant[c]
            for j in range(d):
                # A slice, for an index that might be negative would keep the loop from vector registers.
                column, part, mean = columns[j, start : start + used], delta[c, j], means[c, j]
                for i in range(used):
                    part[i] = column[i] - mean
            for j in range(d):
                for i in range(used):
                    y[i] = 0.0
                for m in range(j if diagonal else 0, j + 1):
                    factor, part = precision[c, m, j], delta[c, m]
                    for i in range(used):
                        y[i] += factor * part[i]
                for i in range(used):
                    log[i] -= 0.5 * y[i] * y[i]
            for i in range(used):
                largest[i] = max(largest[i], log[i])
        for c in range(k):
            log = logs[c]
            for i in range(used):
                log[i] -= largest[i]
            _exp_of(log, bits, used)
            for i in range(used):
                sums[i] += log[i]
        if weighted or len(density) > 0:
            for i in range(used):
                value = largest[i] + math.log(sums[i])
                w = row_weights[start + i] if weighted else 1.0
                log_likelihood += w * value
                weight += w
                sums[i] = w / sums[i]
                if len(density) > 0:
                    density[start + i] = value
        else:
            # A sum of logarithms is that of a product: each factor lies between 1 and the number of components.
            for first in range(0, used, _FACTORS):
                product = 1.0
                for i in range(first, min(first + _FACTORS, used)):
                    product *= sums[i]
                    log_likelihood += largest[i]
                    sums[i] = 1.0 / sums[i]
                log_likelihood += math.log(product)
            weight += used
        if not stats:
            continue
        for c in range(k):
            r = logs[c]
            total = 0.0
            for i in range(used):
                r[i] *= sums[i]
                total += r[i]
            responsibility[c] += total
            for j in range(d):
                first, total = delta[c, j], 0.0
                for i in range(used):
                    y[i] = r[i] * first[i]
                    total += y[i]
                shift[c, j] += total
                for m in range(j if diagonal else 0, j + 1):
                    second, total = delta[c, m], 0.0
                    for i in range(used):
                        total += y[i] * second[i]
                    scatter[c, j, m] += total
    for c in range(k):
        for j in range(d):
            for m in range(j):
                scatter[c, m, j] = scatter[c, j, m]
    return weight, log_likelihood, responsibility, shift, scatter


_NONE = np.empty(0)


def _prepared(parameters: Parameters) -> tuple[Float, Float, Float]:
    """Return each component's constant, mean and upper triangular factor P of its precision, P P' = inverse covariance."""
    k, d = parameters.means.shape
    precision = np.empty((k, d, d))
    for c in range(k):
        try:
            precision[c] = np.linalg.solve(np.linalg.cholesky(parameters.covariances[c]), np.eye(d)).T
        except np.linalg.LinAlgError as error:
            raise InputError(
                f"component {c} of {k} has collapsed: its covariance is not positive definite; take fewer components, a larger "
                "reg_covar (squared units of the features), or scale the features first"
            ) from error
    log_det = np.log(np.diagonal(precision, axis1=1, axis2=2)).sum(axis=1)
    with np.errstate(divide="ignore"):
        constant = np.log(parameters.weights) + log_det - 0.5 * d * math.log(2 * math.pi)
    return constant, np.ascontiguousarray(parameters.means), np.triu(precision)


def expect(columns: Float, parameters: Parameters, weights: Float | None = None, *, diagonal: bool = False) -> Expectation:
    """Return the sums of one expectation step.

    Parameters
    ----------
    columns : ndarray of float64, shape (d, n)
        Features without NaN, each column contiguous.
    parameters : Parameters
        Where the step is taken; covariances must be positive definite.
    weights : ndarray, shape (n,), optional
        Row weights.
    diagonal : bool
        Whether covariances are diagonal, so that only diagonals are summed.
    """
    columns = np.ascontiguousarray(columns, dtype=np.float64)
    return Expectation(*_expect(columns, _NONE if weights is None else weights, *_prepared(parameters), diagonal, True, _NONE))


def log_density(columns: Float, parameters: Parameters) -> Float:
    """Return the log density of each row, shape (n,)."""
    columns = np.ascontiguousarray(columns, dtype=np.float64)
    out = np.empty(columns.shape[1])
    _expect(columns, _NONE, *_prepared(parameters), False, False, out)
    return out


def responsibilities(columns: Float, parameters: Parameters) -> Float:
    """Return the probability of each component for each row, shape (n, k)."""
    logs = np.column_stack(
        [log_density(columns, Parameters(*(part[c : c + 1] for part in parameters))) for c in range(len(parameters.weights))]
    )
    logs -= logs.max(axis=1, keepdims=True)
    shares = np.exp(logs)
    return shares / shares.sum(axis=1, keepdims=True)


def maximise(sums: Expectation, means: Float, *, kind: str, floor: float) -> Parameters:
    """Return the parameters that maximise the likelihood at the given responsibilities.

    Parameters
    ----------
    sums : Expectation
        Over all rows.
    means : ndarray, shape (k, d)
        Where the sums were taken.
    kind : str
        ``full``, ``diag`` or ``tied`` covariances.
    floor : float
        Added to the diagonals, in squared units of the features.
    """
    d = means.shape[1]
    count = sums.responsibility + 10 * np.finfo(np.float64).eps
    step = sums.shift / count[:, None]
    scatter = sums.scatter - count[:, None, None] * step[:, :, None] * step[:, None, :]
    if kind == "tied":
        covariances = np.broadcast_to(scatter.sum(axis=0) / count.sum(), scatter.shape).copy()
    else:
        covariances = scatter / count[:, None, None]
    if kind == "diag":
        covariances *= np.eye(d)
    covariances[:, np.arange(d), np.arange(d)] += floor
    return Parameters(count / count.sum(), means + step, covariances)


def free_parameters(k: int, d: int, kind: str) -> int:
    """Return the number of free parameters of a mixture."""
    of_covariances = {"full": k * d * (d + 1) // 2, "diag": k * d, "tied": d * (d + 1) // 2}[kind]
    return of_covariances + k * d + k - 1


def draw_rows(mixture: Parameters, start: int, stop: int, seed: int) -> tuple[Float, NDArray[np.int64]]:
    """Return rows ``start`` to ``stop`` of a sample, shape (features, rows), and the component of each."""
    keys = np.arange(start, stop, dtype=np.uint64)
    edges = np.cumsum(mixture.weights)
    component = np.minimum(np.searchsorted(edges / edges[-1], uniform(keys, seed=seed), side="right"), len(edges) - 1)
    d = mixture.means.shape[1]
    deviates = np.array([normal(keys, seed=seed, stream=1 + j) for j in range(d)])
    factors = np.linalg.cholesky(mixture.covariances)
    out = mixture.means[component].T.copy()
    for j in range(d):
        for i in range(j + 1):
            out[j] += factors[component, j, i] * deviates[i]
    return out, component
