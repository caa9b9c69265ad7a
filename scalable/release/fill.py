"""What empty cells of a column are filled with: rules learned from rows that hold a value, small enough to be kept whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from scalable.catalog.light_curves import floats
from scalable.errors import InputError
from scalable.kernels.counter import random_bits, row_keys
from scalable.kernels.linear import least_squares
from scalable.kernels.moments import moments
from scalable.release.recipe import Impute

Float = NDArray[np.float64]

PLANE_ROWS = 50_000
"""Most rows that a plane is fitted to: its height is known to half a per cent of the scatter about it."""
_SEED = 20_000


@dataclass(frozen=True)
class Filling:
    """A fitted rule: the values of one column where it is empty.

    Attributes
    ----------
    column, method : str
        As the recipe says them.
    using : tuple of str
        Columns that the value follows from; a cell whose row lacks one of them stays empty.
    rows : int
        Rows that it was fitted to.
    value : float
        The median, or the height of the plane where all of ``using`` are 0.
    slopes : tuple of float
        Of the plane, along each of ``using``.
    reference : tuple of tuple of float
        Of the nearest rows: ``using`` and the value.
    scale : tuple of float
        What distances along each of ``using`` are divided by: the deviation over the reference.
    neighbours : int
        How many rows the mean is taken of.
    """

    column: str
    method: str
    using: tuple[str, ...] = ()
    rows: int = 0
    value: float = 0.0
    slopes: tuple[float, ...] = ()
    reference: tuple[tuple[float, ...], ...] = ()
    scale: tuple[float, ...] = ()
    neighbours: int = 0

    def values(self, table: pa.Table, rows: NDArray[np.int64]) -> Float:
        """Return what the cell of each of these rows is filled with; NaN where the row lacks what that follows from."""
        if not self.using:
            return np.full(len(rows), self.value)
        points = np.column_stack([floats(table, name)[rows] for name in self.using])
        good = np.isfinite(points).all(axis=1)
        found = np.full(len(points), np.nan)
        if self.slopes:
            found[good] = self.value + sum(points[good, k] * slope for k, slope in enumerate(self.slopes))
        elif good.any():
            known = np.array(self.reference)
            tree = cKDTree(known[:, :-1] / self.scale)
            _, nearest = tree.query(points[good] / self.scale, k=np.arange(1, self.neighbours + 1))
            found[good] = known[nearest, -1].mean(axis=1)
        return found

    def text(self) -> str:
        """Return the rule in words."""
        if self.slopes:
            terms = "".join(f" {slope:+.6g} {name}" for slope, name in zip(self.slopes, self.using, strict=True))
            return f"{self.column} is {self.value:.6g}{terms} where it was imputed (least squares over {self.rows} rows)"
        if self.using:
            where = ", ".join(self.using)
            return (
                f"{self.column} is the mean of the {self.neighbours} nearest of {self.rows} rows in {where} where it was imputed"
            )
        return f"{self.column} is {self.value:g} where it was imputed"

    def to_json(self) -> dict[str, Any]:
        """Return the rule as the manifest keeps it, every bit of it."""
        return asdict(self)

    @classmethod
    def from_json(cls, kept: Mapping[str, Any]) -> Filling:
        """Return a rule that a manifest keeps."""
        rows = {"reference": tuple(map(tuple, kept["reference"]))}
        return cls(**{**kept, **{name: tuple(kept[name]) for name in ("using", "slopes", "scale")}, **rows})

    def is_of(self, asked: Impute) -> bool:
        """Return whether it is what a recipe asks for."""
        same = (self.column, self.method, self.using) == (asked.column, asked.method, asked.using)
        return same and (self.method != "nearest" or self.neighbours == min(asked.neighbours, len(self.reference)))


def fillings(manifest: Mapping[str, Any]) -> tuple[Filling, ...]:
    """Return the rules that a manifest keeps; the first ones kept medians alone, by column."""
    kept = manifest["imputed"]
    if isinstance(kept, Mapping):
        return tuple(Filling(name, "median", value=value) for name, value in kept.items())
    return tuple(map(Filling.from_json, kept))


def candidates(table: pa.Table, asked: Impute) -> Float:
    """Return rows that a rule may learn from, some more than it takes, shape (rows, 1 + using + 1): lot, ``using`` and value.

    The lot of a row depends on what the row is and on nothing else, so that any partition gives the same sample.
    """
    columns = [floats(table, name) for name in (*asked.using, asked.column)]
    keys = np.stack([table[name].to_numpy().astype(np.int64) for name in ("object_id", "__source_id", "__source_row")])
    # To 53 bits, which a float holds.
    lots = (random_bits(row_keys(keys.view(np.float64)), seed=_SEED) >> np.uint64(11)).astype(np.float64)
    rows = np.column_stack([lots, *columns])
    return first_lots(rows[np.isfinite(rows).all(axis=1)], _most(asked))


def first_lots(rows: Float, most: int) -> Float:
    """Return the rows of the smallest lots in their order; rows of one lot are told apart by what they hold."""
    return rows[np.lexsort(rows.T[::-1])[:most]]


def merge(pieces: Sequence[Float], asked: Impute) -> Float:
    """Return the sample of all rows from those of their parts."""
    return first_lots(np.concatenate(pieces), _most(asked))


def fit(sample: Float, asked: Impute) -> Filling:
    """Fit a plane, or keep the reference of the nearest rows.

    Raises
    ------
    InputError
        If there are too few rows to learn from.
    """
    d = len(asked.using)
    if len(sample) <= d:
        raise InputError(
            f"impute: {len(sample)} rows hold {', '.join((asked.column, *asked.using))} at once, too few to learn from; "
            "choose other columns with using, or method: median"
        )
    about = (asked.column, asked.method, asked.using, len(sample))
    known = moments(np.ascontiguousarray(sample[:, 1:].T))
    mean, scatter = known.mean[0], known.scatter[0]
    if asked.method == "regression":
        slopes = least_squares(scatter[:d, :d], scatter[:d, d])
        return Filling(*about, value=float(mean[d] - slopes @ mean[:d]), slopes=tuple(slopes.tolist()))
    deviation = np.sqrt(np.diag(scatter)[:d] / len(sample))
    scale = tuple(np.where(deviation > 0, deviation, 1.0).tolist())
    reference = tuple(map(tuple, sample[:, 1:].tolist()))
    return Filling(*about, reference=reference, scale=scale, neighbours=min(asked.neighbours, len(sample)))


def _most(asked: Impute) -> int:
    return PLANE_ROWS if asked.method == "regression" else asked.reference
