"""`compare_bands`: statistics of objects across bands as a lazy verb over detections."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise, product
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from scalable.catalog.catalog import Catalog
from scalable.catalog.light_curves import KEYS, floats, light_curves, nullable
from scalable.catalog.variability import error_of, need_different_names, unit_of, wanted_bands
from scalable.errors import ColumnError, nearest
from scalable.kernels.cross_band import CROSS_BAND, CrossBandStatistic, Pairing
from scalable.kernels.statistic import points_that_count
from scalable.schema import Column, Schema


@dataclass(frozen=True)
class BandComparison:
    """One row per object: statistics of each value across bands."""

    name: ClassVar[str] = "compare_bands"
    coded: ClassVar[tuple[str, ...]] = ("band",)
    statistics: tuple[CrossBandStatistic, ...]
    bands: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    values: tuple[tuple[str, str, bool], ...]
    """Value, its error, and whether it is a magnitude."""
    within_days: float

    def parameters(self) -> dict[str, Any]:
        """Return names of statistics, bands, pairs and values, and how close pairs are."""
        return {
            "statistics": [statistic.name for statistic in self.statistics],
            "bands": self.bands,
            "pairs": self.pairs,
            "values": [value for value, _, _ in self.values],
            "within_days": self.within_days,
        }

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the object's keys and a column for each statistic, value and pair of bands, with unit and definition."""
        columns = [Column.from_field(schema.field(name)) for name in KEYS]
        for name, (statistic, (value, _, _), bands) in self._columns():
            unit = unit_of(statistic.unit, Column.from_field(schema.field(value)).unit)
            text = f"{value} in {', '.join(bands)}: {statistic.definition}"
            if statistic.of_pairs:
                text = text.replace("the given time", f"{self.within_days:g} d")
            columns.append(Column(name, _dtype(statistic), role="value", unit=unit, ucd=statistic.ucd, description=text))
        return Schema(tuple(columns)).to_arrow().with_metadata(schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the keys that are wanted, times, and the values of which a statistic is wanted."""
        names = [*(name for name in KEYS if name in wanted), "object_id", "band", "mjd"]
        return [*names, *(name for value, error, _ in self.narrowed(wanted).values for name in (value, error))]

    def narrowed(self, wanted: Sequence[str]) -> BandComparison:
        """Return the statistics and values of which any column is wanted."""
        names = set(wanted)
        used = [key for name, key in self._columns() if name in names]
        return replace(
            self,
            statistics=tuple(s for s in self.statistics if any(s is statistic for statistic, _, _ in used)),
            values=tuple(v for v in self.values if any(v == value for _, value, _ in used)),
        )

    def apply(self, table: pa.Table) -> pa.Table:
        """Compute the statistics."""
        curves = light_curves(table, self.bands)
        columns = {name: curves.objects[name] for name in curves.objects.column_names}
        for value in self.values:
            flux, err, mjd = (floats(curves.points, name) for name in (*value[:2], "mjd"))
            flux, err, mjd, offsets = points_that_count(flux, err, mjd, curves.offsets, ("flux", "err", "mjd"))
            # One more curve, without points, stands where an object has none.
            offsets, none = np.append(offsets, offsets[-1]), len(offsets) - 1
            made: dict[Any, Any] = {}
            for statistic in self.statistics:
                sets = self._sets(statistic)
                if not sets:
                    continue
                if statistic.chunk not in made:
                    # All pairs at once, one after the other, so that what a pass makes of each band serves all of them.
                    rows = np.hstack([curves.curve_of[[self.bands.index(band) for band in bands]] for bands in sets])
                    rows[rows < 0] = none
                    made[statistic.chunk] = statistic.chunk(flux, err, mjd, offsets, rows, Pairing(self.within_days, value[2]))
                for bands, found in zip(sets, np.split(statistic.finalize(made[statistic.chunk]), len(sets)), strict=True):
                    columns[_name(bands, value[0], statistic)] = nullable(found, _dtype(statistic))
        return pa.table(columns)

    def _sets(self, statistic: CrossBandStatistic) -> tuple[tuple[str, ...], ...]:
        return self.pairs if statistic.of_pairs else (self.bands,)

    def _columns(self) -> Iterator[tuple[str, tuple[CrossBandStatistic, tuple[str, str, bool], tuple[str, ...]]]]:
        for value, statistic in product(self.values, self.statistics):
            for bands in self._sets(statistic):
                yield _name(bands, value[0], statistic), (statistic, value, bands)

    def __str__(self) -> str:
        """Show what is pending."""
        names, values = ", ".join(s.name for s in self.statistics), ", ".join(value for value, _, _ in self.values)
        return f"{names} of {values} across {', '.join(self.bands)}"


def compare_bands(
    catalog: Catalog,
    statistics: Sequence[CrossBandStatistic | str] = tuple(CROSS_BAND),
    *,
    bands: Sequence[str] | None = None,
    pairs: Sequence[tuple[str, str]] | None = None,
    values: Sequence[str] | None = None,
    within_days: float = 0.02,
) -> Catalog:
    """Return statistics of every object across bands; nothing is computed.

    Parameters
    ----------
    catalog : Catalog
        Detections, from ``collection.detections``.
    statistics : sequence of CrossBandStatistic or str
        What to compute; names are those of `scalable.kernels.cross_band.CROSS_BAND`.
    bands : sequence of str, optional
        By default all bands of the survey.
    pairs : sequence of (str, str), optional
        Pairs of bands; by default those that follow each other in ``bands``.
    values : sequence of str, optional
        Flux or magnitude columns that have an error column; by default the first flux.
    within_days : float
        Detections of two bands at most so far apart in time make a pair [d].

    Returns
    -------
    Catalog
        One row per object with columns ``{band}_{band}_{value}{Statistic}`` for pairs of bands, for example
        ``J_Ks_Mag1MeanColour``, and ``{value}{Statistic}`` for all bands. Null where there are too few points.

    Raises
    ------
    ColumnError, ValueError
        If a band, value or statistic does not exist, a value has no error column, or the time is negative.
    """
    catalog.need_positions("compare_bands")
    if not 0 <= within_days < np.inf:
        raise ValueError(f"within_days={within_days}: give a time of 0 d or more")
    chosen = tuple(_statistic(statistic) for statistic in statistics)
    need_different_names(chosen)
    wanted = wanted_bands(catalog, bands)
    both = tuple((first, second) for first, second in (pairwise(wanted) if pairs is None else pairs))
    for band in (band for pair in both for band in pair if band not in wanted):
        raise ColumnError(f"no band {band!r} among those compared; {nearest(band, wanted)}")
    if values is None:
        values = [column.name for column in catalog.columns.by_role("flux")[:1]]
    if not values:
        raise ColumnError(f"{catalog.title} has no column with role flux; name the values")
    of = tuple((value, error_of(catalog, value), catalog.columns[value].role == "mag") for value in values)
    return catalog.then(BandComparison(chosen, wanted, both, of, within_days))


def _statistic(statistic: CrossBandStatistic | str) -> CrossBandStatistic:
    if isinstance(statistic, CrossBandStatistic):
        return statistic
    if statistic not in CROSS_BAND:
        raise ColumnError(f"no statistic {statistic!r} across bands; {nearest(statistic, CROSS_BAND)}")
    return CROSS_BAND[statistic]


def _name(bands: tuple[str, ...], value: str, statistic: CrossBandStatistic) -> str:
    return f"{'_'.join(bands)}_{value}{statistic.name}" if statistic.of_pairs else f"{value}{statistic.name}"


def _dtype(statistic: CrossBandStatistic) -> pa.DataType:
    return pa.int64() if statistic.integer else pa.float64()
