"""Zero points: flux ratios between epochs measured from the stars themselves, and the lazy verb that applies them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.catalog.history import kept_name
from scalable.catalog.light_curves import floats
from scalable.catalog.medians import exact_medians
from scalable.errors import ColumnError, nearest
from scalable.kernels.partition import boundaries


@dataclass(frozen=True)
class Ratios:
    """Flux ratios to the reference epoch, by observation.

    ``references`` maps an observation to its reference, as two equally long tuples.
    """

    value: str
    observations: tuple[int, ...]
    references: tuple[int, ...]

    @property
    def columns(self) -> list[str]:
        """The three columns that ratios are made of."""
        return ["object_id", "observation_id", self.value]

    def of(self, table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return, for each detection of an object that its reference epoch shows too, the observation's index and the ratio."""
        ids, flux = table["object_id"].to_numpy(), floats(table, self.value)
        place = pc.index_in(table["observation_id"], pa.array(self.observations)).fill_null(-1).to_numpy().astype(np.int64)
        order = np.lexsort((place, ids))
        order = order[place[order] >= 0]
        ids, place, flux = ids[order], place[order], flux[order]
        is_reference = np.array(self.observations)[place] == np.array(self.references)[place]
        reference_flux = np.full(len(ids), np.nan)
        offsets = boundaries(ids, np.array(self.references)[place])
        group = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        by_group = np.full(len(offsets) - 1, np.nan)
        by_group[group[is_reference]] = flux[is_reference]
        reference_flux = by_group[group]
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = flux / reference_flux
        good = np.isfinite(ratio)
        return place[good], ratio[good]


@dataclass(frozen=True)
class Calibration:
    """Divide values and their errors by the flux ratio of their observation, and keep them as they were."""

    name: ClassVar[str] = "calibrate"
    observations: tuple[int, ...]
    ratios: tuple[float, ...]
    values: tuple[str, ...]

    @property
    def kept(self) -> dict[str, str]:
        """Names under which the columns that change are kept."""
        return {name: kept_name(name, self.name) for name in self.values}

    def parameters(self) -> dict[str, Any]:
        """Return the flux ratio of each observation, and what is kept."""
        return {"observations": self.observations, "ratios": self.ratios, "kept": self.kept, "added": []}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the same columns, the calibrated ones in double precision, and the kept ones."""
        fields = [f.with_type(pa.float64()) if f.name in self.values else f for f in schema]
        kept = [schema.field(name).with_name(kept) for name, kept in self.kept.items()]
        return pa.schema([*fields, *kept], schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return what is wanted, for a kept column the one that it was, and the observation."""
        was = {kept: name for name, kept in self.kept.items()}
        return [*(was.get(name, name) for name in wanted), "observation_id"]

    def apply(self, table: pa.Table) -> pa.Table:
        """Divide; a detection of an observation without a ratio becomes null."""
        place = pc.index_in(table["observation_id"], pa.array(self.observations))
        ratio = pa.array(self.ratios, pa.float64()).take(place.combine_chunks())
        for name, kept in self.kept.items():
            if name in table.column_names:
                table = table.append_column(kept, table[name])
                column = pc.divide(pc.cast(table[name], pa.float64()), ratio)
                table = table.set_column(table.column_names.index(name), name, column)
        return table

    def __str__(self) -> str:
        """Show what is pending."""
        return f"{', '.join(self.values)} divided by the flux ratios of {len(self.observations)} observations"


def fit_zero_points(collection: Collection, *, band: str, value: str) -> pa.Table:
    """Measure the flux ratio of every epoch to the first one of its field; computes, in a few passes over three columns.

    The ratio is the exact median over all objects that both epochs show, so that variable and badly measured objects do not
    matter; it does not depend on the partitioning, and no pass holds more than counts.

    Parameters
    ----------
    collection : Collection
        The store.
    band : str
        Band with several epochs.
    value : str
        Flux column.

    Returns
    -------
    pyarrow.Table
        ``observation_id``, ``reference_id``, ``flux_ratio`` (1 for the reference; null without common objects) and ``objects``.
    """
    if band not in collection.bands:
        raise ColumnError(f"no band {band!r}; {nearest(band, collection.bands)}")
    epochs = [row for row in collection.observations.to_pylist() if row["band"] == band and row["status"] == "stored"]
    earliest: dict[object, dict[str, object]] = {}
    for row in sorted(epochs, key=lambda row: row["epoch"]):
        earliest.setdefault(row.get("field"), row)
    ids = tuple(int(row["observation_id"]) for row in epochs)
    references = tuple(int(str(earliest[row.get("field")]["observation_id"])) for row in epochs)
    mine = collection.detections.where(f"observation_id in ({', '.join(map(str, ids))})")
    medians, objects = exact_medians(mine, Ratios(value, ids, references), len(ids))
    ratio = pa.array(medians, mask=np.isnan(medians))
    return pa.table({"observation_id": ids, "reference_id": references, "flux_ratio": ratio, "objects": objects})


def calibrate(catalog: Catalog, zero_points: pa.Table, *, values: Sequence[str]) -> Catalog:
    """Return detections with fluxes of every epoch on the scale of the reference epoch; nothing is computed.

    The fluxes as they were are kept as ``{name}_before_calibrate``, so that ``undo(catalog, "calibrate")`` brings them back.

    Parameters
    ----------
    catalog : Catalog
        Detections.
    zero_points : pyarrow.Table
        ``observation_id`` and ``flux_ratio``, declared or from `fit_zero_points`. Observations that are not in it become null.
    values : sequence of str
        Flux columns; their error columns are scaled with them.
    """
    names = list(values) + [catalog.columns[name].error for name in values if catalog.columns[name].error]
    for name in names:
        if kept_name(name, Calibration.name) in catalog.columns:
            raise ColumnError(f"{name} is calibrated already; undo(catalog, 'calibrate') first")
    known = zero_points.filter(pc.is_valid(zero_points["flux_ratio"]))
    ids, ratios = (tuple(known[name].to_pylist()) for name in ("observation_id", "flux_ratio"))
    return catalog.then(Calibration(ids, ratios, tuple(names)))
