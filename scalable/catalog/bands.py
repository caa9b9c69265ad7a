"""`join_bands`: one row per object with a column for every band, as a lazy verb over detections."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.catalog import Catalog
from scalable.catalog.light_curves import KEYS, LightCurves, floats, light_curves, nullable, numbers, rows_of, whole
from scalable.catalog.variability import wanted_bands
from scalable.errors import ColumnError, nearest
from scalable.kernels.bands import AVERAGES, ERROR_OF_MEAN, average_of_one, first_rows, last_rows, smallest_rows
from scalable.kernels.statistic import evaluate
from scalable.schema import Column, Schema

PICKS = ("first", "last", "mean", "weighted_mean", "median", "brightest", "nearest_in_time(MJD)")
_NEAREST = re.compile(r"nearest_in_time\(\s*([-+.\deE]+)\s*\)")


@dataclass(frozen=True)
class BandJoin:
    """One row per object: the picked epoch or the average of each value in each band."""

    name: ClassVar[str] = "join_bands"
    coded: ClassVar[tuple[str, ...]] = ("band",)
    bands: tuple[str, ...]
    values: tuple[str, ...]
    pick: str
    inner: bool
    errors: tuple[str, ...]
    """For each value the column with its error, or the name of the value that it is the error of with ``=`` before it."""
    brightness: tuple[str, float]
    """Column that ``brightest`` compares, and the sign that makes the brightest smallest."""

    def parameters(self) -> dict[str, Any]:
        """Return bands, values, and how epochs and objects are picked."""
        return {"bands": self.bands, "values": self.values, "pick": self.pick, "how": "inner" if self.inner else "outer"}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the object's keys and ``{band}_{value}`` columns with the units of the values."""
        columns = [Column.from_field(schema.field(name)) for name in KEYS]
        for band in self.bands:
            for name in self.values:
                source = Column.from_field(schema.field(name))
                dtype = pa.float64() if self.pick in AVERAGES else source.dtype
                error = f"{band}_{source.error}" if source.error in self.values else ""
                description = f"{source.description} in {band} ({self.pick})"
                columns.append(replace(source, name=f"{band}_{name}", dtype=dtype, error=error, description=description))
        return Schema(tuple(columns)).to_arrow().with_metadata(schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the keys that are wanted, the values of which a column is wanted, and what picking them reads."""
        mine = self.narrowed(wanted)
        names = [*(name for name in KEYS if name in wanted), "object_id", "band", *mine.values]
        if self.pick == "weighted_mean":
            names += [error for error in mine.errors if not error.startswith("=")]
        if self.pick == "brightest":
            names.append(self.brightness[0])
        return [*names, "mjd"] if self.pick.startswith("nearest") else names

    def narrowed(self, wanted: Sequence[str]) -> BandJoin:
        """Return the join of no more values than are wanted; all bands stay, for an inner join asks for each."""
        used = [index for index, name in enumerate(self.values) if any(f"{band}_{name}" in wanted for band in self.bands)]
        values, errors = (tuple(names[index] for index in used) for names in (self.values, self.errors))
        return replace(self, values=values, errors=errors)

    def apply(self, table: pa.Table) -> pa.Table:
        """Pick or average, and put bands side by side."""
        curves = light_curves(table, self.bands, complete=self.inner)
        columns = {name: curves.objects[name] for name in curves.objects.column_names}
        picked = [] if self.pick in AVERAGES else self._picked(curves)
        for name, error in zip(self.values, self.errors, strict=True):
            average = None if picked else self._average(curves, name, error)
            column = whole(curves.points[name])
            for number, band in enumerate(self.bands):
                if average is None:
                    columns[f"{band}_{name}"] = rows_of(column, picked[number])
                else:
                    columns[f"{band}_{name}"] = nullable(curves.by_object(average, number), pa.float64())
        return pa.table(columns)

    def _picked(self, curves: LightCurves) -> list[NDArray[np.int64]]:
        """Return for each band the row of every object; -1 where it has none."""
        rows = self._rows(curves)
        return [curves.by_object(rows, number, -1) for number in range(len(self.bands))]

    def _rows(self, curves: LightCurves) -> NDArray[np.int64]:
        if self.pick == "first":
            return first_rows(curves.offsets)
        if self.pick == "last":
            return last_rows(curves.offsets)
        if self.pick == "brightest":
            name, sign = self.brightness
            return smallest_rows(floats(curves.points, name) * sign, curves.offsets)
        match = _NEAREST.fullmatch(self.pick)
        wanted = float(match[1]) if match else 0.0
        return smallest_rows(np.abs(floats(curves.points, "mjd") - wanted), curves.offsets)

    def _average(self, curves: LightCurves, name: str, error: str) -> NDArray[np.float64]:
        values = numbers(curves.points, name)
        # The error of a weighted mean follows from the errors alone.
        statistic = ERROR_OF_MEAN if error.startswith("=") else AVERAGES[self.pick]
        errors = numbers(curves.points, error) if error and not error.startswith("=") else values
        if len(values) == len(curves.offsets) - 1:
            return average_of_one(statistic, values, errors)
        return evaluate((statistic,), values, errors, None, curves.offsets)[statistic.name]

    def __str__(self) -> str:
        """Show what is pending."""
        how = "inner" if self.inner else "outer"
        return f"{how} join of {', '.join(self.bands)} on {', '.join(self.values)} ({self.pick})"


def join_bands(
    catalog: Catalog,
    bands: Sequence[str] | None = None,
    *,
    values: Sequence[str],
    pick: str = "weighted_mean",
    how: str = "outer",
) -> Catalog:
    """Return one row per object with columns ``{band}_{value}``; nothing is computed and no row is ever moved.

    Parameters
    ----------
    catalog : Catalog
        Detections, from ``collection.detections``.
    bands : sequence of str, optional
        By default all bands of the survey.
    values : sequence of str
        Columns to put side by side.
    pick : str
        What stands for several epochs: the row that is ``first``, ``last``, ``brightest`` or ``nearest_in_time(MJD)``, or the
        ``mean``, ``weighted_mean`` (by 1/err**2; for an error column the error of that mean) or ``median`` of each value.
    how : str
        ``outer`` keeps every object, missing bands null; ``inner`` keeps objects that have a detection in every band.

    Raises
    ------
    ColumnError, ValueError
        If a band or value does not exist, a value to be weighted has no error column, or ``pick`` or ``how`` is unknown.
    """
    catalog.need_positions("join_bands")
    wanted = wanted_bands(catalog, bands)
    for value in values:
        if value not in catalog.columns:
            raise ColumnError(f"no column {value!r} in {catalog.title}; {nearest(value, catalog.columns.names)}")
    if pick not in PICKS[:-1] and not _NEAREST.fullmatch(pick):
        raise ValueError(f"pick: {nearest(pick, PICKS)}")
    if how not in ("inner", "outer"):
        raise ValueError(f"how: {nearest(how, ('inner', 'outer'))}")
    errors = tuple(_error(catalog, value, pick) for value in values)
    return catalog.then(BandJoin(wanted, tuple(values), pick, how == "inner", errors, _brightness(catalog, values, pick)))


def _error(catalog: Catalog, value: str, pick: str) -> str:
    if pick != "weighted_mean":
        return ""
    error = catalog.columns[value].error
    of = next((column.name for column in catalog.columns if column.error == value), "")
    if not error and not of:
        raise ColumnError(f"column {value!r} has no error column to weight by; choose pick='first', 'last' or 'median' for it")
    return error or f"={of}"


def _brightness(catalog: Catalog, values: Sequence[str], pick: str) -> tuple[str, float]:
    if pick != "brightest":
        return "", 1.0
    for value in values:
        role = catalog.columns[value].role
        if role in ("flux", "mag"):
            return value, -1.0 if role == "flux" else 1.0
    raise ColumnError(f"pick='brightest' needs a flux or magnitude among the values, not only {', '.join(values)}")
