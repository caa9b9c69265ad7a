"""`plan_ingest`: what an ingest would read, cut, need and write, from headers and a sample of positions; nothing is written."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import psutil
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT
from numpy.typing import NDArray

from scalable.catalog.ingest import BATCH_BYTES, canonical_ranks, find_inputs
from scalable.catalog.ingest_forecast import ring_overhead, runs_bytes, version_bytes, worker_memory_bytes
from scalable.catalog.ingest_map import CELL_ORDER, make_batches, positions
from scalable.catalog.ingest_plan import Counts, bundle, cut_sky, deepest_order, row_limit
from scalable.catalog.ingest_reduce import detections_schema
from scalable.catalog.published import stage_folder
from scalable.errors import InputError, ScalableError
from scalable.io.drivers import reader_for
from scalable.io.reader import Source
from scalable.io.remote import Place, Url, place
from scalable.io.rules import apply_rules, stored_schema
from scalable.schema import Schema
from scalable.sky.healpix import to_pixels
from scalable.sky.pixel import MAX_ORDER, Pixel
from scalable.survey.description import Survey
from scalable.survey.tables import Store

SAMPLE_FILES = 20
SAMPLE_BYTES = 1 << 20
ROWS_IN_HEADER = ("fits",)
"""Formats whose headers state the number of rows; of the others one file is counted."""


@dataclass(frozen=True)
class Forecast:
    """What an ingest would do, and what it would need.

    Attributes
    ----------
    files, unusable : int
        Files listed, and those that would be set aside, as far as headers tell.
    rows, exact : int, bool
        Rows, and whether headers state them; else they are scaled from one counted file by size.
    input_bytes : int
        Bytes of all files that are there.
    sampled_files, sampled_rows : int
        What the tiling is scaled from.
    leaves : dict of int to int
        Leaves of detections by HEALPix order.
    batches, reduce_tasks : int
        Tasks of the two stages.
    worker_bytes, workers : int
        Memory that each worker needs, and the number of workers.
    runs_bytes, version_bytes : int
        Disk for intermediate files, which go at the end, and for the version.
    free_memory_bytes, free_disk_bytes : int
        What is free now on this machine, and on the file system of the store.
    warnings : tuple of str
        What will not work, or not as one may think.
    """

    files: int
    unusable: int
    rows: int
    exact: bool
    input_bytes: int
    sampled_files: int
    sampled_rows: int
    leaves: dict[int, int]
    batches: int
    reduce_tasks: int
    worker_bytes: int
    workers: int
    runs_bytes: int
    version_bytes: int
    free_memory_bytes: int
    free_disk_bytes: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class _Table:
    """A file that can be used and the rows it has."""

    source: Source
    rows: int


def plan_ingest(
    survey: Survey, *, into: str | Place, workers: int | None = None, on_file: Callable[[int, int], None] | None = None
) -> Forecast:
    """Predict what `ingest` would do; reads headers and the first positions of a few files, writes nothing.

    The tiling is that of the sample's counts, scaled to all rows. It is a guess where the first rows of a file cover another
    part of the sky than the rest of it.

    Parameters
    ----------
    survey : Survey
        From `open_survey`.
    into : str or Path
        The store; need not be there.
    workers : int, optional
        Workers on this machine; by default one a core.
    on_file : callable, optional
        Called with the number of headers read and of all.

    Raises
    ------
    InputError
        If no file can be used, or no row of the sample has a position.
    """
    inputs = find_inputs(survey)
    sizes = {source: inputs.sizes[source.path] for source in inputs.sources if source.path in inputs.sizes}
    exact = survey.files.format in ROWS_IN_HEADER
    if exact:
        tables, schema, reasons = _headers(survey, inputs.sources, on_file or (lambda done, total: None))
    else:
        tables, schema, reasons = _one_counted(survey, inputs.sources, sizes)
    rows = sum(table.rows for table in tables)
    sample = list(_sample(survey, tables, reasons))
    pixels = _tiling(sample, rows, survey.store, limit=row_limit(survey.store, schema))
    row_bytes = detections_schema(schema).row_bytes
    ranks = canonical_ranks(inputs.observations).tolist()
    batches = list(make_batches(inputs.sources, ranks, inputs.sizes, batch_bytes=BATCH_BYTES))
    worker = worker_memory_bytes(
        schema,
        rows=rows,
        batch_bytes=max(batch.size_bytes for batch in batches),
        leaf_rows=max(n for _, n in pixels),
        gathered_rows=max(n * ring_overhead(pixel.order, survey.store.margin_arcsec) for pixel, n in pixels),
    )
    workers = workers or CPU_COUNT
    memory, disk = min(psutil.virtual_memory().available, MEMORY_LIMIT), _free_disk(place(into))
    runs, version = runs_bytes(schema, rows, len(pixels)), version_bytes(schema, rows, len(pixels))
    warnings = [f"{len(reasons)} files will be set aside; the first: {reasons[0]}"] if reasons else []
    if runs + version > disk:
        warnings.append(f"needs {_mb(runs + version)} on disk, {_mb(disk)} are free at {into}: choose another place with --into")
    if worker * workers > memory:
        advice = f"use --workers {memory // worker}" if worker <= memory else "take a larger machine"
        warnings.append(f"{workers} workers need {_mb(worker * workers)} of memory, {_mb(memory)} are free: {advice}")
    return Forecast(
        files=len(inputs.sources),
        unusable=len(reasons),
        rows=rows,
        exact=exact,
        input_bytes=sum(sizes.values()),
        sampled_files=len(sample),
        sampled_rows=sum(len(placed) for _, placed in sample),
        leaves=dict(sorted(Counter(pixel.order for pixel, _ in pixels).items())),
        batches=len(batches),
        reduce_tasks=len(bundle(pixels, row_bytes)),
        worker_bytes=worker,
        workers=workers,
        runs_bytes=runs,
        version_bytes=version,
        free_memory_bytes=memory,
        free_disk_bytes=disk,
        warnings=tuple(warnings),
    )


def _headers(
    survey: Survey, sources: Sequence[Source], tell: Callable[[int, int], None]
) -> tuple[list[_Table], Schema, list[str]]:
    """Read all headers; return the files with the columns that most have, those columns, and why the others are unusable."""
    reader = reader_for(survey.files.format)
    reasons: list[str] = []
    found: dict[Schema, list[_Table]] = {}
    for number, source in enumerate(sources, start=1):
        try:
            info = reader.describe(source)
            found.setdefault(stored_schema(info.schema, survey.columns, path=source.path), []).append(_Table(source, info.rows))
        except (ScalableError, OSError) as error:
            reasons.append(str(error))
        tell(number, len(sources))
    if not found:
        raise InputError(f"none of the {len(sources)} files can be used; the first says: {reasons[0]}")
    schema = max(found, key=lambda schema: len(found[schema]))
    reasons += [f"{t.source.path}: has other columns than the rest" for s, tables in found.items() if s != schema for t in tables]
    return found[schema], schema, reasons


def _one_counted(
    survey: Survey, sources: Sequence[Source], sizes: Mapping[Source, int]
) -> tuple[list[_Table], Schema, list[str]]:
    """Count the rows of the smallest usable file, and scale the others by their sizes."""
    reader = reader_for(survey.files.format)
    left = dict(sizes)
    reasons = [f"{source.path}: no such file" for source in sources if source not in sizes]
    for source in sorted(sizes, key=lambda source: sizes[source]):
        try:
            info = reader.describe(source)
            schema = stored_schema(info.schema, survey.columns, path=source.path)
        except (ScalableError, OSError) as error:
            reasons.append(str(error))
            del left[source]
            continue
        if info.rows:
            return [_Table(other, round(info.rows * size / sizes[source])) for other, size in left.items()], schema, reasons
    raise InputError(f"none of the {len(sources)} files can be used; the first says: {[*reasons, 'it has no rows'][0]}")


def _sample(survey: Survey, tables: Sequence[_Table], reasons: list[str]) -> Iterator[tuple[_Table, NDArray[np.int64]]]:
    """Yield a few files and the order-29 pixels of their first positions; a file that cannot be read adds to ``reasons``."""
    reader = reader_for(survey.files.format)
    names = [survey.column_of(role) for role in ("ra", "dec")]
    rules = {name: survey.columns[name] for name in names}
    # By chance, the same every time: fields and bands often follow each other in a fixed turn.
    chosen = np.random.default_rng(0).permutation(len(tables))[:SAMPLE_FILES]
    for table in (tables[n] for n in np.sort(chosen)):
        try:
            block = next(iter(reader.scan(table.source, columns=names, block_bytes=SAMPLE_BYTES)))
            block = apply_rules(block, stored_schema(Schema.from_arrow(block.schema), rules, path=table.source.path), rules)
            ra, dec = positions(block, survey, table.source)
        except (ScalableError, OSError) as error:
            reasons.append(str(error))
            continue
        placed = np.isfinite(ra) & (np.abs(dec) <= 90.0)
        if placed.any():
            yield table, to_pixels(ra[placed], dec[placed])


def _tiling(
    sample: Sequence[tuple[_Table, NDArray[np.int64]]], rows: int, store: Store, *, limit: int
) -> list[tuple[Pixel, int]]:
    """Return the pixels that the sky would be cut into, with their rows, if a sample of pixels stands for ``rows`` rows."""
    if not sample:
        raise InputError("no row of the files looked at has a position; run: scalable check")
    share = rows / max(1, sum(table.rows for table, _ in sample))
    weights = np.concatenate([np.full(len(placed), share * table.rows / len(placed)) for table, placed in sample])
    order = deepest_order(store)
    fine = _sum(np.concatenate([placed for _, placed in sample]) >> 2 * (MAX_ORDER - order), weights)
    parents = fine.cells >> 2 * (order - CELL_ORDER)
    counts = _sum(parents, fine.rows)
    crowded = np.isin(parents, counts.cells[counts.rows > limit])
    cut = cut_sky(counts, Counts(fine.cells[crowded], fine.rows[crowded]), np.zeros(0, np.int64), store, limit=limit)
    return [(pixel, n) for pixel, n in cut if n]


def _sum(cells: NDArray[np.int64], weights: NDArray[Any]) -> Counts:
    distinct, where = np.unique(cells, return_inverse=True)
    return Counts(distinct, np.maximum(1, np.rint(np.bincount(where, weights=weights))).astype(np.int64))


def _free_disk(store: Place) -> int:
    """Return the free bytes of the file system that the store lies on, or would; of one at a URL, where it is built."""
    if isinstance(store, Url):
        store = stage_folder(store)
    return shutil.disk_usage(next(path for path in (store, *store.parents) if path.exists())).free


def _mb(size: float) -> str:
    return f"{math.ceil(size / 1e6):,} MB"
