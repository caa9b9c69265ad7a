"""Ingest, second stage: count rows along the sky, deeper where they crowd, and cut it into pixels bounded by bytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.ingest_map import CELL_ORDER, RunInfo, Settings
from scalable.catalog.ingest_reduce import detections_schema
from scalable.cluster import run_tasks
from scalable.io.layout import HEALPIX_COLUMN
from scalable.io.runs import flat, ranges_of, read_arrow
from scalable.kernels.partition import split_pixels
from scalable.schema import Schema
from scalable.sky.healpix import neighbours, ring_order
from scalable.sky.pixel import MAX_ORDER, Pixel
from scalable.survey.tables import Store

CELLS_PER_TASK = 256
"""Crowded cells that one task counts again."""
TASK_BYTES = 64 << 20
"""Decoded leaves that one reduce task writes, one after the other."""


@dataclass(frozen=True)
class Counts:
    """Rows by NESTED cell of one order, each at its own position; cells are distinct and sorted."""

    cells: NDArray[np.int64]
    rows: NDArray[np.int64]

    def __add__(self, other: Counts) -> Counts:
        """Return the counts of both."""
        cells, where = np.unique(np.concatenate([self.cells, other.cells]), return_inverse=True)
        rows = np.bincount(where, weights=np.concatenate([self.rows, other.rows]), minlength=len(cells))
        return Counts(cells, rows.astype(np.int64))


DENSITY_FILE = "density.parquet"
"""Member of a version: detections by cell of the sky, each at its own position."""

EMPTY = Counts(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def density_table(counts: Counts, deep: Counts, store: Store) -> pa.Table:
    """Return counts as a version keeps them: by cells of `CELL_ORDER`, and again by deeper ones where these are crowded."""
    orders = np.repeat([CELL_ORDER, deepest_order(store)], [len(counts.cells), len(deep.cells)]).astype(np.uint8)
    cells, rows = np.concatenate([counts.cells, deep.cells]), np.concatenate([counts.rows, deep.rows])
    return pa.table({"order": orders, "cell": cells, "rows": rows})


def counts_of(density: pa.Table) -> tuple[Counts, Counts]:
    """Return what `density_table` was made of."""
    crowded = flat(density, "order") != CELL_ORDER
    cells, rows = flat(density, "cell"), flat(density, "rows")
    return Counts(cells[~crowded], rows[~crowded]), Counts(cells[crowded], rows[crowded])


def deepest_order(store: Store) -> int:
    """Return the order beyond which cutting is no use: what lies within twice the margin would outweigh the pixel itself."""
    return max(CELL_ORDER + 1, min(MAX_ORDER, ring_order(2 * store.margin_arcsec) + 2))


def row_limit(store: Store, schema: Schema) -> int:
    """Return how many detections a leaf may hold."""
    return max(1, int(store.leaf_mb * 1e6 / detections_schema(schema).row_bytes))


def count_cells(runs: Iterable[RunInfo], work: Path) -> Counts:
    """Add up the rows of runs by cell of `CELL_ORDER`; what is held follows the area of the sky, not the number of rows."""
    total, waiting = EMPTY, EMPTY
    for run in runs:
        counted = read_arrow(work / "map" / f"{run.name}.cells.arrow")
        waiting += Counts(flat(counted, "cell"), flat(counted, "rows"))
        if len(waiting.cells) > len(total.cells):
            total, waiting = total + waiting, EMPTY
    return total + waiting


def count_deep(crowded: NDArray[np.int64], runs: Sequence[RunInfo], settings: Settings) -> Counts:
    """Count the rows in crowded cells of `CELL_ORDER` again, by cells of `deepest_order`; computes, a task for some cells."""
    chunks = [crowded[i : i + CELLS_PER_TASK] for i in range(0, len(crowded), CELLS_PER_TASK)]
    total = EMPTY
    for counts in run_tasks(count_inside, chunks, settings, tuple(runs)):
        total += counts
    return total


def count_inside(crowded: NDArray[np.int64], settings: Settings, runs: tuple[RunInfo, ...]) -> Counts:
    """Count the rows of runs inside a few cells by cells of `deepest_order`; only the pixels of the rows are read."""
    order = deepest_order(settings.survey.store)
    shift = 2 * (MAX_ORDER - CELL_ORDER)
    ranges = np.column_stack([crowded << shift, crowded + 1 << shift])
    total = EMPTY
    for run in runs:
        if ((ranges[:, 1] > run.first) & (ranges[:, 0] <= run.last)).any():
            pixels = read_arrow(Path(settings.work) / "map" / f"{run.name}.run.arrow").select([HEALPIX_COLUMN])
            inside = flat(ranges_of(pixels, HEALPIX_COLUMN, ranges), HEALPIX_COLUMN)
            cells, rows = np.unique(inside >> 2 * (MAX_ORDER - order), return_counts=True)
            total += Counts(cells, rows)
    return total


def cut_sky(counts: Counts, deep: Counts, owners: NDArray[np.int64], store: Store, *, limit: int) -> list[tuple[Pixel, int]]:
    """Cut the occupied sky into pixels of at most ``limit`` rows, as far as that can be, along the sky.

    Parameters
    ----------
    counts : Counts
        By cells of `CELL_ORDER`.
    deep : Counts
        By cells of `deepest_order`, in the crowded ones of these.
    owners : ndarray of int64
        Order-29 pixels that must belong to the sky too: the mean of a wide object can lie far from all its detections.
    """
    order = deepest_order(store)
    shift = 2 * (order - CELL_ORDER)
    # Empty neighbours of occupied cells belong to them: the mean of an object can lie in a cell that holds no detection.
    occupied = np.concatenate([counts.cells, owners >> 2 * (MAX_ORDER - CELL_ORDER)])
    every = neighbours(np.unique(occupied), CELL_ORDER)
    crowded = np.unique(deep.cells >> shift)
    plain = every[~np.isin(every, crowded)]
    inside = ((crowded << shift)[:, None] + np.arange(1 << shift)).ravel()
    total = Counts(counts.cells << shift, np.where(np.isin(counts.cells, crowded), 0, counts.rows)) + deep
    total += Counts(np.sort(np.concatenate([plain << shift, inside])), np.zeros(len(plain) + len(inside), dtype=np.int64))
    cut = split_pixels(total.cells, total.rows, order, limit=limit, max_order=order)
    return [(Pixel(o, i), n) for o, i, n in cut]


def bundle(pixels: Sequence[tuple[Pixel, int]], bytes_per_row: float) -> list[tuple[Pixel, ...]]:
    """Bundle neighbouring pixels into tasks that are worth their overhead, and at least into a few."""
    size = min(TASK_BYTES, max(1.0, sum(rows for _, rows in pixels) * bytes_per_row / 4))
    groups: list[list[Pixel]] = [[]]
    filled = 0.0
    for pixel, rows in pixels:
        if groups[-1] and filled + rows * bytes_per_row > size:
            groups.append([])
            filled = 0.0
        groups[-1].append(pixel)
        filled += rows * bytes_per_row
    return [tuple(group) for group in groups]
