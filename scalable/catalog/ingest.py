"""Ingest: a survey's tables become a partitioned collection, in four stages (map, plan, reduce, commit), resumable."""

from __future__ import annotations

import fcntl
import hashlib
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.collection import Collection, find_version, sweep
from scalable.catalog.ingest_commit import Run, commit_version
from scalable.catalog.ingest_map import CELL_ORDER, Batch, MapRecord, Settings, make_batches, map_batch
from scalable.catalog.ingest_reduce import (
    WIDE,
    Plan,
    Reduced,
    check_bucket,
    check_pixels,
    detections_schema,
    reduce_pixels,
    settle_wide,
)
from scalable.catalog.ingest_reference import index_reference, reference_sources
from scalable.cluster import run_tasks
from scalable.errors import InputError, ScalableError, StoreError
from scalable.io.drivers import reader_for
from scalable.io.observations import read_observations, sources
from scalable.io.reader import Source
from scalable.io.rules import stored_schema
from scalable.io.runs import read_arrow, read_json, write_json
from scalable.kernels.partition import split_pixels
from scalable.schema import Schema
from scalable.sky.healpix import neighbours, ring_order
from scalable.sky.pixel import MAX_ORDER, Pixel
from scalable.survey import Survey

BATCH_BYTES = 64 << 20
"""Input that one map task reads; its memory is about four times that."""
TASK_BYTES = 64 << 20
"""Decoded leaves that one reduce task writes, one after the other."""
VOTERS = 32
"""Headers that are read to find out which columns most files have."""
BUCKET_BYTES = 1 << 30
"""Input whose objects one task of the spread check compares."""

Progress = Callable[[str, int, int, int], None]
"""Called with stage, tasks done, tasks in all and input bytes done."""


@dataclass(frozen=True)
class Inputs:
    """What there is to read, before any table is opened; ``run_id`` is the digest of it and of the survey's rules."""

    observations: pa.Table
    sources: tuple[Source, ...]
    run_id: str


def ingest(survey: Survey, *, into: str | Path, resume: bool = True, progress: Progress | None = None) -> Collection:
    """Bring a survey's tables into a store; computes, on the Dask scheduler in use.

    Each file is read once. Rows are placed by their object's position (that of its reference, or else the mean of its
    detections), in canonical order (pixel of the object, id, band, MJD, observation, source row). A file that cannot be used is
    set aside with its reason, the others go on. A new version appears by one rename; a rerun after a crash does only what is
    missing and gives the same bytes.

    Parameters
    ----------
    survey : Survey
        From `open_survey`.
    into : str or Path
        The store; made if absent.
    resume : bool
        Take up finished tasks of an earlier, interrupted run on the same input.
    progress : callable, optional
        Called as tasks finish.

    Returns
    -------
    Collection
        The committed version. If the store already holds this very input, nothing is done.

    Raises
    ------
    StoreError
        If the store cannot be written, or another ingest into it is running.
    InputError
        If no file at all could be used.
    """
    store = Path(into).absolute()
    inputs = find_inputs(survey)
    with _locked(store):
        work = store / "work" / inputs.run_id[:16]
        done = find_version(store, inputs.run_id) if resume else None
        sweep(store, keep=work if resume and not done else None)
        return done or _run(survey, inputs, store, work, progress or silent)


def find_inputs(survey: Survey) -> Inputs:
    """Read the observation index and the sizes and times of the files; no table is opened."""
    observations = read_observations(survey)
    found = tuple(sources(survey, observations))
    state = [survey.digest]
    for source in (*found, *reference_sources(survey)):
        stat = Path(source.path).stat() if Path(source.path).exists() else None
        state.append(f"{source} {stat and (stat.st_size, stat.st_mtime_ns)}")
    return Inputs(observations, found, hashlib.sha256("\n".join(state).encode()).hexdigest())


def input_bytes(survey: Survey) -> int:
    """Return the size of all catalogue files that are there."""
    paths = [Path(source.path) for source in find_inputs(survey).sources]
    return sum(path.stat().st_size for path in paths if path.exists())


def reference_schema(survey: Survey, candidates: Sequence[Source]) -> Schema:
    """Return the columns that detections will have: those that most of the files have, by the headers of a few.

    Without this vote an odd first file would set all the others aside.
    """
    reader = reader_for(survey.files.format)
    reasons: list[str] = []
    votes: Counter[Schema] = Counter()
    few = list(candidates[:: max(1, len(candidates) // VOTERS)])
    for source in [*few, *candidates]:
        if votes and source is candidates[0]:
            break
        try:
            votes[stored_schema(reader.describe(source).schema, survey.columns, path=source.path)] += 1
        except (ScalableError, OSError) as error:
            reasons.append(str(error))
    if not votes:
        raise InputError(f"none of the {len(candidates)} files can be used; the first says: {reasons[0]}")
    return votes.most_common(1)[0][0]


def _run(survey: Survey, inputs: Inputs, store: Path, work: Path, progress: Progress) -> Collection:
    """Run the four stages in order."""
    ranks = canonical_ranks(inputs.observations)
    batches = list(make_batches(list(inputs.sources), ranks.tolist(), batch_bytes=BATCH_BYTES))
    size = sum(batch.size_bytes for batch in batches)
    settings = Settings(
        survey, reference_schema(survey, inputs.sources), str(work), buckets=max(1, math.ceil(size / BUCKET_BYTES))
    )
    run = Run(store, settings, inputs.observations, ranks, inputs.run_id, _start(work, inputs.run_id))
    run_tasks(index_reference, reference_sources(survey), settings)
    records = _map(batches, settings, progress)
    plan, pixels, wide = _plan(records, run, progress)
    reduced = _reduce(pixels, plan, progress)
    progress("commit", 0, 1, 0)
    collection = commit_version(run, records, reduced, wide)
    progress("commit", 1, 1, 0)
    return collection


def _map(batches: Sequence[Batch], settings: Settings, progress: Progress) -> list[MapRecord]:
    size = {batch.name: batch.size_bytes for batch in batches}
    done: list[int] = []

    def tell(record: MapRecord) -> None:
        done.append(size[record.name])
        progress("map", len(done), len(batches), sum(done))

    progress("map", 0, len(batches), 0)
    records = run_tasks(map_batch, batches, settings, on_done=tell)
    if not any(record.rows for record in records):
        reasons = [entry.reason for record in records for entry in record.files if entry.reason]
        rejected = any(entry.rejected for record in records for entry in record.files)
        reasons.append("every row was rejected" if rejected else "every table is empty")
        raise InputError(f"no row of any file can be stored; the first reason: {reasons[0]}")
    return records


def _plan(records: Sequence[MapRecord], run: Run, progress: Progress) -> tuple[Plan, list[tuple[Pixel, int]], pa.Table]:
    """Check the spread of every object, count, and cut the sky into pixels."""
    settings, store = run.settings, run.settings.survey.store
    runs = tuple((record.name, record.first, record.last) for record in records if record.rows)
    progress("plan", 0, settings.buckets, 0)
    canonical = run.observations.take(np.argsort(run.ranks)).select(["observation_id", "band", "mjd", "path"])
    # An object of a neighbour within the margin of a border reaches as far again with its detections.
    plan = Plan(settings, ring_order(2 * store.margin_arcsec), runs, canonical)
    counted = pa.concat_tables([read_arrow(run.work / "map" / f"{name}.cells.arrow") for name, _, _ in runs])
    suspects = _suspects(plan, counted)
    wide = WIDE.empty_table()
    if len(suspects):
        wide = run_tasks(settle_wide, [np.unique(suspects)], settings, runs)[0]
    # The mean of a wide object can lie far from all its detections.
    owners = wide["owner"].to_numpy() >> 2 * (MAX_ORDER - CELL_ORDER)
    cells = np.concatenate([counted["cell"].to_numpy(), owners])
    rows = np.concatenate([counted["rows"].to_numpy(), np.zeros(len(owners), dtype=np.int64)])
    progress("plan", settings.buckets, settings.buckets, 0)
    return replace(plan, wide=wide.num_rows > 0), _cut(plan, cells, rows), wide


def _suspects(plan: Plan, counted: pa.Table) -> NDArray[np.int64]:
    """Return the ids, or the keys of rows without one, of objects that may be wider than the margin."""
    settings = plan.settings
    if settings.survey.grouping.by == "id":
        return np.concatenate(run_tasks(check_bucket, range(settings.buckets), settings, plan.runs))
    pixels = _cut(plan, counted["cell"].to_numpy(), counted["rows"].to_numpy())
    return np.concatenate(run_tasks(check_pixels, bundle(pixels, detections_schema(settings.schema).row_bytes), plan))


def _cut(plan: Plan, cells: NDArray[np.int64], rows: NDArray[np.int64]) -> list[tuple[Pixel, int]]:
    """Cut the sky into pixels whose leaves are not too large; return the rows in each."""
    row_bytes = detections_schema(plan.settings.schema).row_bytes
    limit = max(1, int(plan.settings.survey.store.leaf_mb * 1e6 / row_bytes))
    cells, rows = cells_to_cut(cells, rows)
    cut = split_pixels(cells, rows, CELL_ORDER, limit=limit, max_order=min(CELL_ORDER, plan.ring_order))
    return [(Pixel(order, index), n) for order, index, n in cut]


def cells_to_cut(cells: NDArray[np.int64], rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the distinct cells to cut the sky by, and the rows in each.

    Empty neighbours of occupied cells belong to them: the mean of an object can lie in a cell that holds none of its detections.
    """
    every = neighbours(np.unique(cells), CELL_ORDER)
    counts = np.bincount(np.searchsorted(every, cells), weights=rows, minlength=len(every))
    return every, counts.astype(np.int64)


def _reduce(pixels: Sequence[tuple[Pixel, int]], plan: Plan, progress: Progress) -> list[Reduced]:
    groups = bundle(pixels, detections_schema(plan.settings.schema).row_bytes)
    done: list[int] = []

    def tell(results: list[Reduced]) -> None:
        done.append(len(results))
        progress("reduce", sum(done), len(pixels), 0)

    progress("reduce", 0, len(pixels), 0)
    return [result for results in run_tasks(reduce_pixels, groups, plan, on_done=tell) for result in results]


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


def canonical_ranks(observations: pa.Table) -> NDArray[np.int64]:
    """Return the place of each observation in canonical order (band, MJD, id)."""
    band, mjd, ids = (observations[name].to_numpy() for name in ("band", "mjd", "observation_id"))
    ranks = np.empty(len(ids), dtype=np.int64)
    ranks[np.lexsort((ids, mjd, band.astype(str)))] = np.arange(len(ids))
    return ranks


def _start(work: Path, run_id: str) -> str:
    """Return the date of this run: fixed when it first starts, so that its reruns write the same bytes."""
    path = work / "run.json"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{work.parent}: not a folder that can be written ({error}); remove it and run again") from error
    if not path.exists():
        # The convention of reproducible builds, https://reproducible-builds.org/specs/source-date-epoch/
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
        write_json(path, {"run_id": run_id, "date": now.strftime("%Y-%m-%dT%H:%M:%SZ")})
    return str(read_json(path)["date"])


@contextmanager
def _locked(store: Path) -> Iterator[None]:
    """Hold the store's lock; a killed process loses it by itself."""
    try:
        store.mkdir(parents=True, exist_ok=True)
        lock = (store / "lock").open("w")
    except OSError as error:
        raise StoreError(f"{store}: the store cannot be written ({error}); choose another folder with --into") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(f"{store}: another ingest into this store is running; wait for it, then run again") from None
        yield


def silent(stage: str, done: int, total: int, size: int) -> None:
    """Tell nobody."""
