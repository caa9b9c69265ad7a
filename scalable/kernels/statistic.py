"""What a light-curve statistic is: declared once, mergeable where its formula allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]
Offsets = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Statistic:
    """One number per light curve.

    A light curve is a slice of the flat arrays ``flux``, ``err`` and ``mjd``, from ``offsets[g]`` to ``offsets[g + 1]``, in order
    of time. Points with a missing or non-finite flux or error, or an error that is not positive, do not count.

    Attributes
    ----------
    name : str
        Ends the name of the output column.
    definition : str
        The exact formula, for the column's description.
    unit : str
        ``value`` for the unit of the flux, else a unit as such (empty: dimensionless).
    finalize : callable
        ``finalize(partial)`` where `chunk` is given, else ``finalize(flux, err, mjd, offsets)``; returns shape (groups,).
    chunk : callable or None
        ``chunk(flux, err, mjd, offsets)`` returns partial sums, shape (groups, k). None: the statistic needs the whole curve.
    combine : callable or None
        ``combine(a, b)`` merges the partial sums of two disjoint parts of the same curves.
    integer : bool
        Whether the result is a count.
    """

    name: str
    definition: str
    finalize: Callable[..., Float]
    unit: str = ""
    chunk: Callable[[Float, Float, Float, Offsets], Float] | None = None
    combine: Callable[[Float, Float], Float] | None = None
    integer: bool = False

    def __dask_tokenize__(self) -> Any:
        """Name the statistic by what it says it is."""
        return (self.name, self.definition, self.unit)


def evaluate(statistics: Sequence[Statistic], flux: Float, err: Float, mjd: Float, offsets: Offsets) -> dict[str, Float]:
    """Return every statistic of every light curve; partial sums that several share are made once.

    Parameters
    ----------
    flux, err, mjd : ndarray of float64, shape (n,)
        Points, sorted by light curve and time; NaN where missing.
    offsets : ndarray of int64, shape (groups + 1,)
        Where each light curve begins and ends.

    Returns
    -------
    dict
        Name to array of shape (groups,); NaN where too few points count.
    """
    partial: dict[Any, Float] = {}
    found = {}
    for statistic in statistics:
        if statistic.chunk is None:
            found[statistic.name] = statistic.finalize(flux, err, mjd, offsets)
            continue
        if statistic.chunk not in partial:
            partial[statistic.chunk] = statistic.chunk(flux, err, mjd, offsets)
        found[statistic.name] = statistic.finalize(partial[statistic.chunk])
    return found
