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
from scalable.catalog.light_curves import KEYS, LightCurves, floats, light_curves, nullable
from scalable.errors import ColumnError, nearest
from scalable.kernels.bands import first_rows, last_rows, mean_errors, means, medians, smallest_rows
from scalable.schema import Column, Schema

PICKS = ("first", "last", "mean", "weighted_mean", "median", "brightest", "nearest_in_time(MJD)")
_NEAREST = re.compile(r"nearest_in_time\(\s*([-+.\deE]+)\s*\)")
_AVERAGES = ("mean", "weighted_mean", "median")


@dataclass(frozen=True)
class BandJoin:
    """One row per object: the picked epoch or the average of each value in each band."""

    name: ClassVar[str] = "join_bands"
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
                dtype = pa.float64() if self.pick in _AVERAGES else source.dtype
                error = f"{band}_{source.error}" if source.error in self.values else ""
                description = f"{source.description} in {band} ({self.pick})"
                columns.append(replace(source, name=f"{band}_{name}", dtype=dtype, error=error, description=description))
        return Schema(tuple(columns)).to_arrow().with_metadata(schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the keys, the values of which a column is wanted, and what picking them reads."""
        used = [index for index, name in enumerate(self.values) if any(f"{band}_{name}" in wanted for band in self.bands)]
        names = [*KEYS, "band", *(self.values[index] for index in used)]
        if self.pick == "weighted_mean":
            names += [self.errors[index] for index in used if not self.errors[index].startswith("=")]
        if self.pick == "brightest":
            names.append(self.brightness[0])
        return [*names, "mjd"] if self.pick.startswith("nearest") else names

    def apply(self, table: pa.Table) -> pa.Table:
        """Pick or average, and put bands side by side."""
        curves = light_curves(table, self.bands)
        columns = {name: curves.objects[name] for name in KEYS}
        rows = None if self.pick in _AVERAGES else self._rows(table, curves)
        for index, name in enumerate(self.values):
            if name not in table.column_names:
                continue
            average = self._average(table, name, self.errors[index], curves) if rows is None else None
            for number, band in enumerate(self.bands):
                if average is not None:
                    columns[f"{band}_{name}"] = nullable(curves.by_object(average, number), pa.float64())
                else:
                    where = curves.by_object(np.asarray(rows, dtype=np.float64), number)
                    columns[f"{band}_{name}"] = table[name].take(nullable(where, pa.int64()))
        joined = pa.table(columns)
        return joined.filter(pa.array(self._complete(curves))) if self.inner else joined

    def _rows(self, table: pa.Table, curves: LightCurves) -> NDArray[np.int64]:
        if self.pick == "first":
            return first_rows(curves.offsets)
        if self.pick == "last":
            return last_rows(curves.offsets)
        if self.pick == "brightest":
            name, sign = self.brightness
            return smallest_rows(floats(table, name) * sign, curves.offsets)
        match = _NEAREST.fullmatch(self.pick)
        wanted = float(match[1]) if match else 0.0
        return smallest_rows(np.abs(floats(table, "mjd") - wanted), curves.offsets)

    def _average(self, table: pa.Table, name: str, error: str, curves: LightCurves) -> NDArray[np.float64]:
        values = floats(table, name)
        if self.pick == "median":
            return medians(values, curves.offsets)
        if self.pick == "mean":
            return means(values, np.ones(len(values)), curves.offsets)
        if error.startswith("="):
            return mean_errors(values, curves.offsets)
        with np.errstate(divide="ignore"):
            return means(values, floats(table, error) ** -2.0, curves.offsets)

    def _complete(self, curves: LightCurves) -> NDArray[np.bool_]:
        wanted = curves.band_of >= 0
        found = np.bincount(curves.object_of[wanted], minlength=curves.objects.num_rows)
        return found == len(self.bands)

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
    wanted = tuple(bands) if bands is not None else catalog.bands
    for band in wanted:
        if band not in catalog.bands:
            raise ColumnError(f"no band {band!r} in {catalog.title}; {nearest(band, catalog.bands)}")
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
