"""What a light-curve statistic is: declared once, mergeable where its formula allows; and how many are computed at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from scalable.errors import InputError, nearest

Float = NDArray[np.float64]
Offsets = NDArray[np.int64]

ROLES = ("flux", "err", "mjd")
"""What a point of a light curve may have."""
BLOCK_POINTS = 32_768
"""Points that one round of passes works on: three columns of them stay in the cache of one core from pass to pass."""

VECTOR = {"reassoc", "contract"}
"""Freedom to add in another order, so that the compiler sums several points at once; NaN and infinity stay what they are."""
FINITE = {*VECTOR, "nnan", "nsz"}
"""The same where neither input nor result can be NaN, so that the largest of several is found at once too."""


@dataclass(frozen=True, eq=False)
class Statistic:
    """One number per light curve.

    A light curve is a slice of the flat arrays ``flux``, ``err`` and ``mjd``, from ``offsets[g]`` to ``offsets[g + 1]``, in order
    of time. Functions see only points that count: where every array in `needs` is finite and the error is positive; a curve may
    have no point left. An array that is not needed may hold NaN.

    Attributes
    ----------
    name : str
        Ends the name of the output column.
    definition : str
        The exact formula, for the column's description.
    unit : str
        A unit in which ``value`` stands for the unit of the flux, for example ``value/d``; empty: dimensionless.
    finalize : callable
        ``finalize(partial)`` where `chunk` is given, else ``finalize(flux, err, mjd, offsets)``; returns shape (groups,), NaN
        where too few points count.
    chunk : callable or None
        ``chunk(flux, err, mjd, offsets)`` returns what is needed of each curve, shape (groups, k). It runs once for all
        statistics that name the same function.
    combine : callable or None
        ``combine(a, b)`` merges what `chunk` returned for two disjoint parts of the same curves. None: the statistic needs the
        whole light curve at once.
    integer : bool
        Whether the result is a count.
    needs : tuple of str
        Which of ``flux``, ``err`` and ``mjd`` a point must have to count.
    ucd : str
        IVOA content descriptor of the output column.
    uses : callable or None
        A chunk of another statistic: what it returns for the same points is a fifth argument of this one's function.

    Examples
    --------
    A statistic of one's own is a kernel and a declaration; `scalable.testing.check_statistic` holds it to this contract.

    >>> import numpy as np
    >>> import scalable
    >>> def power_sums(flux, err, mjd, offsets):
    ...     total = np.add.reduceat(np.append(flux**2, 0.0), offsets[:-1]) * (np.diff(offsets) > 0)
    ...     return np.column_stack([np.diff(offsets), total])
    >>> def root_mean_square(sums):
    ...     return np.sqrt(np.divide(sums[:, 1], sums[:, 0], out=np.full(len(sums), np.nan), where=sums[:, 0] > 0))
    >>> rms = scalable.Statistic(
    ...     "Rms", "root of the mean square", root_mean_square, "value", chunk=power_sums, combine=np.add, ucd="stat.value"
    ... )
    >>> from scalable.testing import check_statistic
    >>> check_statistic(rms)

    ``scalable.variability(detections, ["Mean", rms])`` then gives columns such as ``Ks_Flux1Rms``, lazily, with unit and
    definition.
    """

    name: str
    definition: str
    finalize: Callable[..., Float]
    unit: str = ""
    chunk: Callable[..., Float] | None = None
    combine: Callable[[Float, Float], Float] | None = None
    integer: bool = False
    needs: tuple[str, ...] = ("flux", "err")
    ucd: str = ""
    uses: Callable[[Float, Float, Float, Offsets], Float] | None = None

    def __post_init__(self) -> None:
        """Check what a point must have, and that only what stands by itself is merged."""
        for role in self.needs:
            if role not in ROLES:
                raise InputError(f"statistic {self.name!r} needs {role!r}; {nearest(role, ROLES)}")
        if self.uses and self.combine:
            raise InputError(
                f"statistic {self.name!r} uses sums of the whole curve: its parts cannot be merged; leave out combine"
            )

    def __dask_tokenize__(self) -> Any:
        """Name the statistic by what it says it is and by the code that computes it."""
        code = tuple(told(function) for function in (self.finalize, self.chunk, self.combine, self.uses))
        return (self.name, self.definition, self.unit, self.integer, self.needs, self.ucd, code)


def told(function: Any) -> Any:
    """Return a name for a function that changes with its code and with what it closes over, also if compiled or partial."""
    if isinstance(function, partial):
        return (told(function.func), function.args, tuple(sorted(function.keywords.items())))
    plain = getattr(function, "py_func", function)
    code = getattr(plain, "__code__", None)
    name = (getattr(plain, "__module__", ""), getattr(plain, "__qualname__", repr(plain)))
    if code is None:
        return name
    values = [value for value in code.co_consts if isinstance(value, (int, float, str))]
    closed = [cell.cell_contents for cell in plain.__closure__ or ()]
    return (*name, code.co_code, code.co_names, values, closed, plain.__defaults__)


def evaluate(
    statistics: Sequence[Statistic], flux: NDArray[Any], err: NDArray[Any], mjd: NDArray[Any] | None, offsets: Offsets
) -> dict[str, Float]:
    """Return every statistic of every light curve; what several share is made once.

    Parameters
    ----------
    flux, err, mjd : ndarray of float32 or float64, shape (n,)
        Points, sorted by light curve and time; NaN where missing. ``mjd`` may be None where no statistic needs it.
    offsets : ndarray of int64, shape (groups + 1,)
        Where each light curve begins and ends.

    Returns
    -------
    dict
        Name to array of shape (groups,); NaN where too few points count.
    """
    groups = len(offsets) - 1
    made: dict[Any, Float] = {}
    needed = {name for statistic in statistics for name in statistic.needs}
    given = zip(ROLES, (flux, err, mjd), strict=True)
    columns = {name: values for name, values in given if name in needed and values is not None}
    works = list(dict.fromkeys((s.chunk or s.finalize, s.needs, s.uses) for s in statistics))
    for block, points, curves, gaps in _blocks(columns, offsets):
        counted: dict[frozenset[str], _Counted] = {}
        for work, needs, uses in works:
            lacking = gaps.intersection(needs)
            if lacking not in counted:
                counted[lacking] = _Counted(points_that_count(*points, curves, lacking) if lacking else (*points, curves))
            part = counted[lacking].part(work, uses)
            if len(part) != len(curves) - 1:
                names = [s.name for s in statistics if work in (s.chunk, s.finalize)]
                raise InputError(
                    f"statistic {names[0]!r} gave an array of shape {part.shape} for {len(curves) - 1} light curves; "
                    "give one number for each, or from chunk one row"
                )
            if (work, needs, uses) not in made:
                # Column by column: what follows takes columns.
                made[work, needs, uses] = np.empty((groups, *part.shape[1:]), order="F")
            made[work, needs, uses][block] = part
    found = {}
    for statistic in statistics:
        whole = made.get((statistic.chunk or statistic.finalize, statistic.needs, statistic.uses))
        if whole is None:  # There is no light curve at all.
            found[statistic.name] = np.empty(0)
        else:
            found[statistic.name] = whole if statistic.chunk is None else statistic.finalize(whole)
    return found


class _Counted:
    """The points of some curves that count for some statistics, and what was made of them."""

    def __init__(self, points: tuple[Float, Float, Float, Offsets]) -> None:
        self.points = points
        self.made: dict[tuple[Callable[..., Float], Callable[..., Float] | None], Float] = {}

    def part(self, work: Callable[..., Float], uses: Callable[..., Float] | None = None) -> Float:
        """Return what a function makes of the points, once."""
        if (work, uses) not in self.made:
            self.made[work, uses] = work(*self.points, *([self.part(uses)] if uses else []))
        return self.made[work, uses]


def _blocks(
    columns: Mapping[str, NDArray[Any]], offsets: Offsets
) -> Iterator[tuple[slice, tuple[Float, Float, Float], Offsets, frozenset[str]]]:
    """Yield runs of whole curves, at least one: which, their points in double precision, offsets, and columns with gaps.

    The points stand in the same three buffers again and again.
    """
    largest = int(np.diff(offsets).max(initial=0))
    buffers = {name: np.full(BLOCK_POINTS + largest, np.nan) for name in ROLES}
    first, groups = 0, len(offsets) - 1
    while first < groups:
        start = offsets[first]
        last = max(first + 1, int(np.searchsorted(offsets, start + BLOCK_POINTS, side="right")) - 1)
        # Curves without points take room in the answer too.
        last = min(last, first + BLOCK_POINTS)
        stop = offsets[last]
        gaps = set()
        for name, values in columns.items():
            if _settled(values[start:stop], buffers[name], 0.0 if name == "err" else -np.inf):
                gaps.add(name)
        flux, err, mjd = (buffers[name][: stop - start] for name in ROLES)
        yield slice(first, last), (flux, err, mjd), offsets[first : last + 1] - start, frozenset(gaps)
        first = last


@njit(cache=True, nogil=True)
def _settled(values: NDArray[Any], out: Float, above: float) -> bool:
    """Copy values to double precision, and say whether any is not finite or not above the least."""
    gap = False
    for i in range(len(values)):
        value = np.float64(values[i])
        out[i] = value
        # Every value is looked at: without a way out, the compiler takes several at once.
        gap |= not ((value > above) & (value < np.inf))
    return gap


def points_that_count(
    flux: Float, err: Float, mjd: Float, offsets: Offsets, needs: Collection[str]
) -> tuple[Float, Float, Float, Offsets]:
    """Return the points at which everything in ``needs`` is finite, and errors positive."""
    good = np.ones(len(flux), dtype=np.bool_)
    for name, values in zip(ROLES, (flux, err, mjd), strict=True):
        if name in needs:
            good &= (values > (0.0 if name == "err" else -np.inf)) & (values < np.inf)
    ends = np.concatenate([[0], np.cumsum(good)])[offsets]
    return flux[good], err[good], mjd[good], ends
