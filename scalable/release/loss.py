"""What a release lost on the way, computed: columns, bands, precision, ids, header cards; and what its labels favour."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.collection import Collection
from scalable.catalog.light_curves import KEYS
from scalable.io.layout import HEALPIX_COLUMN
from scalable.release.assemble import Arrays
from scalable.release.rows import LIGHT_CURVE_KEYS, Feature
from scalable.schema import State

FEW = 10
"""Bins with fewer rows than this say nothing of a ratio."""


def is_carried(feature: Feature) -> bool:
    """Return whether a column is the source's own, and no value computed from it."""
    return feature.meaning.obtained.startswith("column of the source files")


def error_of(table: pa.Table, arrays: Arrays, feature: Feature) -> tuple[float, float] | None:
    """Return the greatest difference of what is released from what the store holds, and the sum of squares; of numbers."""
    values = arrays[feature.column.name]
    if values.dtype.kind not in "fiu" or values.ndim > 1 or not is_carried(feature):
        return None
    before = pc.cast(table[feature.source], pa.float64()).fill_null(np.nan).to_numpy()
    apart = np.abs(values.astype(np.float64) - before)[np.isfinite(before)]
    return (float(apart.max(initial=0.0)), float((apart * apart).sum()))


def information(
    collection: Collection, released: Sequence[Feature], curves: Sequence[Feature], digested: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the report of what was lost between the source files and the release.

    ``columns`` counts those of the source, those that are in the release as they were, and names the others; ``narrowed`` names
    columns with fewer bits than in the source; ``errors`` are the greatest and the RMS difference of those carried.
    """
    own = {name for name in collection.detections.columns.names if not name.endswith("_state")}
    own -= {HEALPIX_COLUMN, *KEYS, *LIGHT_CURVE_KEYS}
    stored = collection.detections.schema
    carried = {f.source: f for f in (*released, *curves) if is_carried(f) and f.source in own}
    derived = {f.column.name: f.meaning.obtained for f in released if not is_carried(f)}
    errors = {}
    for feature in carried.values():
        name = feature.column.name
        found = [one["columns"][name] for one in digested if one["columns"][name].get("apart") is not None]
        n = sum(piece.get("n", 0) for piece in found)
        if found:
            squares = sum(piece["apart"][1] for piece in found)
            errors[name] = {"max": max(piece["apart"][0] for piece in found), "rms": float(np.sqrt(squares / max(n, 1)))}
    narrowed = [
        name for name, f in carried.items()
        if pa.types.is_primitive(f.column.dtype) and f.column.dtype.bit_width < stored.field(name).type.bit_width
    ]  # fmt: skip
    return {
        "columns": {"in": len(own), "released": len(carried), "left_out": sorted(own - set(carried))},
        "bands": {"in": len(collection.bands), "released": _bands(collection, released, curves)},
        "narrowed": narrowed,
        "errors": errors,
        "derived": derived,
    }


def _bands(collection: Collection, released: Sequence[Feature], curves: Sequence[Feature]) -> int:
    if curves or any(f.column.name == "band" for f in released):
        return len(collection.bands)
    return sum(any(f.column.name.startswith(f"{band}_") for f in released) for band in collection.bands)


def labelled_histogram(rows: Arrays, label: str, column: str, edges: NDArray[np.float64]) -> list[list[int]]:
    """Return how many rows have a value of a column in each bin, and how many of those have the label."""
    values = rows[column].astype(np.float64)
    good = (rows.get(f"{column}_state", np.zeros(len(values), np.uint8)) == State.MEASURED) & np.isfinite(values)
    known = good & (rows.get(f"{label}_state", np.zeros(len(values), np.uint8)) == State.MEASURED)
    return [np.histogram(values[mask], edges)[0].tolist() for mask in (good, known)]


def label_bias(pieces: Sequence[Sequence[Sequence[int]]], edges: NDArray[np.float64]) -> dict[str, Any]:
    """Return the density of labelled rows against that of all rows, bin by bin, null where there are fewer than `FEW` rows."""
    every, known = np.sum(pieces, axis=0)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = (known / known.sum()) / (every / every.sum())
    ratio = np.where(every >= FEW, ratio, np.nan)
    seen = ratio[np.isfinite(ratio)]
    return {
        "edges": edges.tolist(),
        "ratio": [float(value) if np.isfinite(value) else None for value in ratio],
        "rows": int(every.sum()),
        "labelled": int(known.sum()),
        "least": float(seen.min()) if len(seen) else None,
        "greatest": float(seen.max()) if len(seen) else None,
    }
