"""Random numbers by counter: a pure function of seed, row and stream, so that no draw depends on the chunking or on order."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from scipy.special import ndtri

Float = NDArray[np.float64]
Keys = NDArray[np.uint64]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_TWO_M53 = 2.0**-53


@njit(cache=True, nogil=True, inline="always")
def _mix(x: Any) -> Any:
    """Mix 64 bits (the finaliser of SplitMix64, Steele, Lea and Flood 2014)."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= x >> np.uint64(27)
    x *= np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(cache=True, nogil=True)
def _bits(keys: Keys, seed: np.uint64, stream: np.uint64, limit: np.uint64, out: Any) -> Any:
    start = _mix(_mix(seed + _GOLDEN) + (stream + np.uint64(1)) * _GOLDEN)
    for i in range(len(keys)):
        bits = _mix(_mix(keys[i] + start) + _GOLDEN)
        out[i] = bits % limit if limit else bits
    return out


def random_bits(keys: Keys, *, seed: int, stream: int = 0) -> Keys:
    """Return 64 random bits for each key."""
    return _bits(keys, np.uint64(seed), np.uint64(stream), np.uint64(0), np.empty_like(keys))


def below(keys: Keys, limit: int, *, seed: int, stream: int = 0) -> NDArray[np.int64]:
    """Return a number in [0, limit) for each key: its random bits modulo the limit."""
    return _bits(keys, np.uint64(seed), np.uint64(stream), np.uint64(limit), np.empty(len(keys), np.int64))


def uniform(keys: Keys, *, seed: int, stream: int = 0) -> Float:
    """Return a number in (0, 1) for each key."""
    return ((random_bits(keys, seed=seed, stream=stream) >> np.uint64(11)).astype(np.float64) + 0.5) * _TWO_M53


def normal(keys: Keys, *, seed: int, stream: int = 0) -> Float:
    """Return a standard normal deviate for each key, by inversion."""
    return ndtri(uniform(keys, seed=seed, stream=stream))


_POISSON = np.cumsum([math.exp(-1.0) / math.factorial(n) for n in range(20)])


def poisson(keys: Keys, *, seed: int, stream: int = 0) -> NDArray[np.int64]:
    """Return a Poisson deviate of mean 1 for each key: how often a row is in a bootstrap sample of a table of any length."""
    return np.searchsorted(_POISSON, uniform(keys, seed=seed, stream=stream)).astype(np.int64)


@njit(cache=True, nogil=True)
def _row_keys(columns: Float, last: Float) -> Keys:
    out = np.zeros(columns.shape[1], dtype=np.uint64)
    for j in range(columns.shape[0] + (len(last) > 0)):
        bits = (columns[j] if j < columns.shape[0] else last).view(np.uint64)
        for i in range(len(out)):
            out[i] = _mix(out[i] + (bits[i] + np.uint64(1)) * _GOLDEN)
    return out


_NONE = np.empty(0)


def row_keys(columns: Float, last: Float | None = None) -> Keys:
    """Return a key for each row from its values alone, shape (rows,); rows that are equal to the bit share one.

    Parameters
    ----------
    columns : ndarray of float64, shape (columns, rows)
        Values in any unit.
    last : ndarray of float64, shape (rows,), optional
        One more column behind them, such as a target, so that nobody copies all to append it.
    """
    return _row_keys(np.ascontiguousarray(columns), _NONE if last is None else np.ascontiguousarray(last))
