"""`variability`: statistics of light curves as a lazy verb over detections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from scalable.catalog.catalog import Catalog
from scalable.catalog.light_curves import KEYS, light_curves, nullable, numbers
from scalable.errors import ColumnError, nearest
from scalable.kernels.cross_band import CrossBandStatistic
from scalable.kernels.statistic import Statistic, evaluate
from scalable.kernels.variability import ALL, DEFAULT
from scalable.schema import Column, Schema, standard_unit


@dataclass(frozen=True)
class LightCurveStatistics:
    """One row per object: statistics of each value in each band."""

    name: ClassVar[str] = "variability"
    coded: ClassVar[tuple[str, ...]] = ("band",)
    statistics: tuple[Statistic, ...]
    bands: tuple[str, ...]
    values: tuple[tuple[str, str], ...]

    def parameters(self) -> dict[str, Any]:
        """Return names of statistics, bands and values."""
        statistics, values = [s.name for s in self.statistics], [value for value, _ in self.values]
        return {"statistics": statistics, "bands": self.bands, "values": values}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the object's keys and ``{band}_{value}{Statistic}`` columns, each with unit and definition."""
        columns = [Column.from_field(schema.field(name)) for name in KEYS]
        for name, (band, (value, _), statistic) in self._columns():
            unit = unit_of(statistic.unit, Column.from_field(schema.field(value)).unit)
            text = f"{value} in {band}: {statistic.definition}"
            columns.append(Column(name, _dtype(statistic), role="value", unit=unit, ucd=statistic.ucd, description=text))
        return Schema(tuple(columns)).to_arrow().with_metadata(schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the keys that are wanted, and the values and times that the wanted statistics are made of."""
        mine = self.narrowed(wanted)
        timed = any("mjd" in statistic.needs for statistic in mine.statistics)
        names = [*(name for name in KEYS if name in wanted), "object_id", "band", *(["mjd"] if timed else [])]
        return [*names, *(name for pair in mine.values for name in pair)]

    def narrowed(self, wanted: Sequence[str]) -> LightCurveStatistics:
        """Return the statistics, bands and values of which any column is wanted."""
        names = set(wanted)
        used = {key for name, key in self._columns() if name in names}
        return LightCurveStatistics(
            tuple(s for s in self.statistics if any(s is statistic for _, _, statistic in used)),
            tuple(band for band in self.bands if any(band == b for b, _, _ in used)),
            tuple(pair for pair in self.values if any(pair == p for _, p, _ in used)),
        )

    def apply(self, table: pa.Table) -> pa.Table:
        """Compute the statistics."""
        curves = light_curves(table, self.bands)
        points = curves.points
        columns = {name: curves.objects[name] for name in curves.objects.column_names}
        mjd = numbers(points, "mjd") if "mjd" in points.column_names else None
        for value, error in self.values:
            found = evaluate(self.statistics, numbers(points, value), numbers(points, error), mjd, curves.offsets)
            for index, band in enumerate(self.bands):
                for statistic in self.statistics:
                    empty = 0.0 if statistic.integer else np.nan
                    by_object = curves.by_object(found[statistic.name], index, empty)
                    columns[f"{band}_{value}{statistic.name}"] = nullable(by_object, _dtype(statistic))
        return pa.table(columns)

    def _columns(self) -> Iterator[tuple[str, tuple[str, tuple[str, str], Statistic]]]:
        for band, pair, statistic in product(self.bands, self.values, self.statistics):
            yield f"{band}_{pair[0]}{statistic.name}", (band, pair, statistic)

    def __str__(self) -> str:
        """Show what is pending."""
        values = ", ".join(value for value, _ in self.values)
        return f"{', '.join(s.name for s in self.statistics)} of {values} in {', '.join(self.bands)}"


def variability(
    catalog: Catalog,
    statistics: Sequence[Statistic | str] = DEFAULT,
    *,
    bands: Sequence[str] | None = None,
    values: Sequence[str] | None = None,
) -> Catalog:
    """Return statistics of every object's light curves; nothing is computed.

    Parameters
    ----------
    catalog : Catalog
        Detections, from ``collection.detections``.
    statistics : sequence of Statistic or str
        What to compute; names are those of `scalable.kernels.variability.ALL`.
    bands : sequence of str, optional
        By default all bands of the survey.
    values : sequence of str, optional
        Flux or magnitude columns that have an error column; by default the first flux.

    Returns
    -------
    Catalog
        One row per object with columns ``{band}_{value}{Statistic}``, for example ``Ks_Flux1Chi2``. Null where there are too few
        points; ``Ndata`` is 0 where there are none.

    Raises
    ------
    ColumnError
        If a band, value or statistic does not exist, two statistics have one name, or a value has no error column.
    """
    catalog.need_positions("variability")
    chosen = tuple(statistic if isinstance(statistic, Statistic) else statistic_named(statistic) for statistic in statistics)
    need_different_names(chosen)
    wanted = wanted_bands(catalog, bands)
    if values is None:
        values = [column.name for column in catalog.columns.by_role("flux")[:1]]
    pairs = tuple((value, error_of(catalog, value)) for value in values)
    if not pairs:
        raise ColumnError(f"{catalog.title} has no column with role flux; name the values")
    return catalog.then(LightCurveStatistics(chosen, wanted, pairs))


def error_of(catalog: Catalog, value: str) -> str:
    """Return the name of the column that holds the errors of ``value``."""
    error = catalog.columns[value].error
    if not error:
        raise ColumnError(f"column {value!r} names no error column; add `error: NAME` to columns.{value} in the survey file")
    return error


def need_different_names(statistics: Sequence[Statistic | CrossBandStatistic]) -> None:
    """Raise where two statistics would give columns of one name.

    Raises
    ------
    ColumnError
        Naming it.
    """
    names = [statistic.name for statistic in statistics]
    for name in names:
        if names.count(name) > 1:
            raise ColumnError(f"{names.count(name)} statistics are called {name!r}; give each a name of its own")


def wanted_bands(catalog: Catalog, bands: Sequence[str] | None) -> tuple[str, ...]:
    """Return the bands that were asked for, by default all of the survey.

    Raises
    ------
    ColumnError
        If the survey has no such band.
    """
    wanted = tuple(bands) if bands is not None else catalog.bands
    for band in wanted:
        if band not in catalog.bands:
            raise ColumnError(f"no band {band!r} in {catalog.title}; {nearest(band, catalog.bands)}")
    return wanted


def statistic_named(name: str) -> Statistic:
    """Return the statistic of that name.

    Raises
    ------
    ColumnError
        If there is none; names the nearest.
    """
    if name not in ALL:
        raise ColumnError(f"no statistic {name!r}; {nearest(name, ALL)}")
    return ALL[name]


def _dtype(statistic: Statistic) -> pa.DataType:
    return pa.int64() if statistic.integer else pa.float64()


def unit_of(text: str, unit: str) -> str:
    """Return the unit that ``text`` means where ``value`` stands in it for ``unit``, in VOUnit spelling where that can be."""
    if text == "value" or "value" not in text:
        return unit if text == "value" else text
    spelled = unit or "1"
    whole = text.replace("value", spelled if spelled.isalnum() else f"({spelled})")
    return standard_unit(whole) or whole
