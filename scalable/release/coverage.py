"""Where a release has something and how deep it goes: coverage of each modality, completeness by magnitude, depth."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.release.assemble import Arrays
from scalable.release.rows import Feature
from scalable.schema import State
from scalable.sky.healpix import to_pixels

FOOTPRINT_ORDER = 10
PER_MAGNITUDE = 2
"""Bins of a magnitude, in which completeness is counted."""
_SKY_SQUARE_DEGREES = 41252.96124941927


def magnitudes(released: Sequence[Feature]) -> list[Feature]:
    """Return the columns that hold magnitudes."""
    return [f for f in released if (f.column.role == "mag" or f.column.ucd.startswith("phot.mag")) and f.column.unit == "mag"]


def magnitude_counts(table: pa.Table, alive: NDArray[np.int64], released: Sequence[Feature]) -> dict[str, dict[str, list[int]]]:
    """Return by magnitude column and bin how many rows have a value there, and how many of those stay.

    Bins have no borders of their own: number n reaches from n to n + 1 halves of a magnitude, so that counts can be added.
    """
    found = {}
    for feature in magnitudes(released):
        values = pc.cast(table[feature.source], pa.float64()).fill_null(np.nan).to_numpy()
        bins = np.floor(np.clip(values, -1e6, 1e6) * PER_MAGNITUDE)
        before = Counter(bins[np.isfinite(bins)].astype(int).tolist())
        after = Counter(bins[alive][np.isfinite(bins[alive])].astype(int).tolist())
        found[feature.column.name] = {str(n): [count, after[n]] for n, count in sorted(before.items())}
    return found


def completeness(pieces: Iterable[Mapping[str, Mapping[str, Sequence[int]]]]) -> dict[str, list[list[float]]]:
    """Return by magnitude column the bins [mag, least value first], rows with a value there, and how many were released."""
    total: dict[str, dict[int, NDArray[np.int64]]] = {}
    for piece in pieces:
        for name, bins in piece.items():
            mine = total.setdefault(name, {})
            for number, counts in bins.items():
                mine[int(number)] = mine.get(int(number), np.zeros(2, np.int64)) + np.array(counts)
    return {name: [[n / PER_MAGNITUDE, *map(int, bins[n])] for n in sorted(bins)] for name, bins in total.items()}


def depths(complete: Mapping[str, Sequence[Sequence[float]]]) -> dict[str, str]:
    """Return by magnitude column where the counts of what was observed peak: beyond, more is missed than is seen."""
    found = {}
    for name, bins in complete.items():
        if bins:
            low = max(bins, key=lambda row: row[1])[0]
            found[name] = f"counts peak from {low:g} to {low + 1 / PER_MAGNITUDE:g} mag"
    return found


def seen_cells(
    rows: Arrays, released: Sequence[Feature], bands: Sequence[str], labels: Sequence[str], more: Mapping[str, Any]
) -> dict[str, list[int]]:
    """Return the pixels of order `FOOTPRINT_ORDER` of all rows, and of those with a band, a light curve, a label, an image."""
    cells = to_pixels(rows["ra"], rows["dec"], FOOTPRINT_ORDER)
    masks = {"rows": np.ones(len(cells), np.bool_)}
    for band in bands:
        if "band" in rows:
            masks[f"band {band}"] = rows["band"] == band
        else:
            names = [f.column.name for f in released if f.nullable and f.column.name.startswith(f"{band}_")]
            has = [rows[f"{name}_state"] == State.MEASURED for name in names]
            if has:
                masks[f"band {band}"] = np.any(has, axis=0)
    if "lc_count" in rows:
        masks["light curves"] = rows["lc_count"] > 0
    if more:
        masks["images"] = more["shown"]
    for name in labels:
        masks[f"label {name}"] = rows.get(f"{name}_state", np.zeros(len(cells), np.uint8)) == State.MEASURED
    return {name: np.unique(cells[mask]).tolist() for name, mask in masks.items()}


def coverage(pieces: Sequence[Mapping[str, Sequence[int]]]) -> dict[str, dict[str, Any]]:
    """Return the coverage of each modality as a MOC in JSON, and its area."""
    modalities = dict.fromkeys(name for piece in pieces for name in piece)
    return {
        name: moc_of(np.unique(np.concatenate([np.asarray(p.get(name, ()), np.int64) for p in pieces]))) for name in modalities
    }


def moc_of(cells: NDArray[np.int64]) -> dict[str, Any]:
    """Return pixels of order `FOOTPRINT_ORDER` as a MOC, merged upwards where all four children are there, and their area."""
    area = len(cells) * _SKY_SQUARE_DEGREES / (12 * 4**FOOTPRINT_ORDER)
    found: dict[str, list[int]] = {}
    for order in range(FOOTPRINT_ORDER, -1, -1):
        parents, counts = np.unique(cells >> 2, return_counts=True)
        whole = parents[counts == 4] if order else parents[:0]
        rest = cells[~np.isin(cells >> 2, whole)]
        if len(rest):
            found[str(order)] = rest.tolist()
        cells = whole
    return {"order": FOOTPRINT_ORDER, "square_degrees": area, "moc": json.dumps(found, sort_keys=True)}
