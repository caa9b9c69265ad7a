"""`plan_append`: which files an append would add, and which leaves it would write anew; nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from scalable.catalog.append import new_sources
from scalable.catalog.collection import open_collection
from scalable.catalog.ingest import find_inputs
from scalable.catalog.ingest_base import meets, reach, stored_columns
from scalable.catalog.ingest_map import CELL_ORDER, FileRecord, Settings, positions, scan_file, set_aside
from scalable.cluster import run_tasks
from scalable.errors import ScalableError
from scalable.io.reader import Source
from scalable.sky.healpix import to_pixels
from scalable.sky.pixel import MAX_ORDER, Pixel
from scalable.survey.description import Survey


@dataclass(frozen=True)
class Addition:
    """What an append would do.

    Attributes
    ----------
    files : dict of str to int
        Rows of each file that would be added.
    unusable : dict of str to str
        Why each of the others would be set aside.
    leaves : int
        Leaves of detections that the current version has; blocks, without positions.
    touched : tuple of Pixel
        Those that would at most be written anew, unless an id occurs far away from its object.
    """

    files: dict[str, int]
    unusable: dict[str, str]
    leaves: int
    touched: tuple[Pixel, ...]


def plan_append(survey: Survey, *, into: str | Path, on_file: Callable[[int, int], None] | None = None) -> Addition:
    """Predict what `append` would do; reads the new files, on the Dask scheduler in use, and writes nothing.

    Parameters
    ----------
    survey : Survey
        The description the store was made with.
    into : str or Path
        The store.
    on_file : callable, optional
        Called with the number of files read and of all.

    Raises
    ------
    AdditionError, StoreError
        As `append` does.
    """
    before = open_collection(into)
    new = new_sources(survey, find_inputs(survey, Path(into).absolute()), before)
    settings = Settings(survey, stored_columns(before, survey), "", buckets=1)
    done: list[FileRecord] = []

    def tell(result: tuple[FileRecord, NDArray[np.int64]]) -> None:
        done.append(result[0])
        if on_file:
            on_file(len(done), len(new))

    results = run_tasks(look_at, new, settings, on_done=tell)
    files = {entry.path: entry.rows for entry, _ in results if not entry.reason}
    unusable = {entry.path: entry.reason for entry, _ in results if entry.reason}
    if not survey.has_positions:
        return Addition(files, unusable, len(before.rows.leaves), ())
    near = reach(np.unique(np.concatenate([np.zeros(0, np.int64), *(cells for _, cells in results)])), survey.store)
    pixels = [leaf.pixel for leaf in before.detections.leaves]
    return Addition(files, unusable, len(pixels), tuple(pixel for pixel in pixels if meets(near, pixel)))


def look_at(source: Source, settings: Settings) -> tuple[FileRecord, NDArray[np.int64]]:
    """Read a file as ingest would; return what would become of it, and the cells of `CELL_ORDER` that its rows lie in."""
    entry = FileRecord(source.observation_id, source.name)
    cells = [np.zeros(0, dtype=np.int64)]
    try:
        for table in scan_file(source, settings, entry):
            if settings.survey.has_positions:
                ra, dec = positions(table, settings.survey, source)
                placed = np.isfinite(ra) & (np.abs(dec) <= 90.0)
                if placed.any():
                    cells.append(np.unique(to_pixels(ra[placed], dec[placed]) >> 2 * (MAX_ORDER - CELL_ORDER)))
    except (ScalableError, OSError) as error:
        return set_aside(source, error, settings.survey), cells[0]
    return entry, np.unique(np.concatenate(cells))
