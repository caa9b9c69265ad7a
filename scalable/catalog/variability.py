"""`variability`: statistics of light curves as a lazy verb over detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from scalable.catalog.catalog import Catalog
from scalable.catalog.light_curves import KEYS, floats, light_curves, nullable
from scalable.errors import ColumnError, nearest
from scalable.kernels.statistic import Statistic, evaluate
from scalable.kernels.variability import ALL, DEFAULT
from scalable.schema import Column, Schema


@dataclass(frozen=True)
class LightCurveStatistics:
    """One row per object: statistics of each value in each band."""

    name: ClassVar[str] = "variability"
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
        for band in self.bands:
            for value, _ in self.values:
                unit = Column.from_field(schema.field(value)).unit
                columns += [_column(band, value, statistic, unit) for statistic in self.statistics]
        return Schema(tuple(columns)).to_arrow().with_metadata(schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the keys, band and time, and the values of which a statistic is wanted."""
        names = {pair: [f"{band}_{pair[0]}{s.name}" for band in self.bands for s in self.statistics] for pair in self.values}
        used = [pair for pair, columns in names.items() if not set(columns).isdisjoint(wanted)]
        return [*KEYS, "band", "mjd", *(name for pair in used for name in pair)]

    def apply(self, table: pa.Table) -> pa.Table:
        """Compute the statistics of the values that were read."""
        curves = light_curves(table, self.bands)
        columns = {name: curves.objects[name] for name in KEYS}
        mjd = floats(table, "mjd")
        for value, error in self.values:
            if value not in table.column_names:
                continue
            found = evaluate(self.statistics, floats(table, value), floats(table, error), mjd, curves.offsets)
            for index, band in enumerate(self.bands):
                for statistic in self.statistics:
                    empty = 0.0 if statistic.integer else float("nan")
                    numbers = curves.by_object(found[statistic.name], index, empty)
                    columns[f"{band}_{value}{statistic.name}"] = nullable(numbers, _dtype(statistic))
        return pa.table(columns)

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
        If a band, value or statistic does not exist, or a value has no error column.
    """
    catalog.need_positions("variability")
    chosen = tuple(_statistic(statistic) for statistic in statistics)
    wanted = tuple(bands) if bands is not None else catalog.bands
    for band in wanted:
        if band not in catalog.bands:
            raise ColumnError(f"no band {band!r} in {catalog.title}; {nearest(band, catalog.bands)}")
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


def _statistic(statistic: Statistic | str) -> Statistic:
    if isinstance(statistic, Statistic):
        return statistic
    if statistic not in ALL:
        raise ColumnError(f"no statistic {statistic!r}; {nearest(statistic, ALL)}")
    return ALL[statistic]


def _dtype(statistic: Statistic) -> pa.DataType:
    return pa.int64() if statistic.integer else pa.float64()


def _column(band: str, value: str, statistic: Statistic, unit: str) -> Column:
    return Column(
        f"{band}_{value}{statistic.name}",
        _dtype(statistic),
        role="value",
        unit=unit if statistic.unit == "value" else statistic.unit,
        description=f"{value} in {band}: {statistic.definition}",
    )
