"""Ingest: a survey's tables become a partitioned collection, in four stages (map, plan, reduce, commit), resumable."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.collection import Collection, find_version, locked, sweep
from scalable.catalog.ingest_commit import Progress, Run, commit_version
from scalable.catalog.ingest_forecast import bucket_count
from scalable.catalog.ingest_map import Batch, MapRecord, RunInfo, Settings, TaskRecord, make_batches, map_batch
from scalable.catalog.ingest_plan import Counts, bundle, count_cells, count_deep, cut_sky, density_table, row_limit
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
from scalable.catalog.ingest_rows import commit_rows, map_rows
from scalable.catalog.published import published_store
from scalable.cluster import run_tasks
from scalable.errors import InputError, ScalableError, StoreError
from scalable.io.drivers import reader_for
from scalable.io.observations import read_observations, sources
from scalable.io.reader import Source
from scalable.io.remote import Place, place, states
from scalable.io.rules import stored_schema
from scalable.io.runs import read_json, write_json
from scalable.schema import Schema
from scalable.sky.pixel import Pixel
from scalable.survey.description import Survey

BATCH_BYTES = 64 << 20
"""Input that one map task reads; its memory is about four times that."""
VOTERS = 32
"""Headers that are read to find out which columns most files have."""

Record = TypeVar("Record", bound=TaskRecord)


@dataclass(frozen=True)
class Inputs:
    """What there is to read, before any table is opened; ``run_id`` is the digest of it and of the survey's rules.

    ``sizes`` are the bytes of the files that are there, by path.
    """

    observations: pa.Table
    sources: tuple[Source, ...]
    sizes: Mapping[str, int]
    run_id: str


def ingest(
    survey: Survey,
    *,
    into: str | Place,
    resume: bool = True,
    progress: Progress | None = None,
    work: str | Path | None = None,
) -> Collection:
    """Bring a survey's tables into a store; computes, on the Dask scheduler in use.

    Each file is read once. Rows are placed by their object's position (that of its reference, or else the mean of its
    detections), in canonical order (pixel of the object, id, band, MJD, observation, source row); those of tables without
    positions stay in the order of their files. A file that cannot be used is set aside with its reason, the others go on. A new
    version appears by one rename; a rerun after a crash does only what is missing and gives the same bytes.

    Parameters
    ----------
    survey : Survey
        From `open_survey`.
    into : str or Path
        The store; made if absent. At a URL such as ``s3://bucket/store``, the version is built on this machine and then sent.
    resume : bool
        Take up finished tasks of an earlier, interrupted run on the same input.
    progress : callable, optional
        Called as tasks finish.
    work : str or Path, optional
        Where versions for a URL are built; by default in the user's cache. All workers must see it.

    Returns
    -------
    Collection
        The committed version. If the store already holds this very input, nothing is done.

    Raises
    ------
    StoreError
        If the store cannot be written, or another ingest into it is running or, at a URL, was faster.
    InputError
        If no file at all could be used.
    """
    store = place(into)
    inputs = find_inputs(survey, store)
    if isinstance(store, Path):
        return _ingest(survey, inputs, store, resume, progress or silent)
    target = published_store(store, work)
    current = target.current
    if resume and current and current.manifest["run_id"] == inputs.run_id:
        return current
    built = _ingest(survey, inputs, target.stage, resume, progress or silent)
    return target.commit(built.folder, progress or silent)


def _ingest(survey: Survey, inputs: Inputs, store: Path, resume: bool, progress: Progress) -> Collection:
    """Make a version in a store on this machine, unless the newest one is of this very input."""
    with locked(store):
        work = store / "work" / inputs.run_id[:16]
        done = find_version(store, inputs.run_id) if resume else None
        sweep(store, keep=work if resume and not done else None)
        return done or _run(survey, inputs, store, work, progress)


def find_inputs(survey: Survey, store: Place | None = None) -> Inputs:
    """Read the observation index and the sizes and times of the files; headers only where keys of observations stand there.

    Raises
    ------
    InputError
        If a file lies in the ``store`` that it is to be read into.
    """
    observations = read_observations(survey)
    found = tuple(sources(survey, observations))
    if inside := [source.name for source in found if store and source.path.startswith(f"{store}/")]:
        raise InputError(f"{inside[0]} lies in the store {store}: narrow files.glob, or put the store elsewhere (--into)")
    every = (*found, *reference_sources(survey))
    there = states([source.path for source in every])
    state = [survey.digest, *(f"{source} {there.get(source.path)}" for source in every)]
    sizes = {path: size for path, (size, _) in there.items()}
    return Inputs(observations, found, sizes, hashlib.sha256("\n".join(state).encode()).hexdigest())


def input_bytes(survey: Survey) -> int:
    """Return the size of all catalogue files that are there."""
    return sum(find_inputs(survey).sizes.values())


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
    """Run the stages in order; without positions there is nothing to plan and to reduce."""
    ranks = canonical_ranks(inputs.observations)
    batches = list(make_batches(inputs.sources, ranks.tolist(), inputs.sizes, batch_bytes=BATCH_BYTES))
    size = sum(batch.size_bytes for batch in batches)
    schema = reference_schema(survey, inputs.sources)
    settings = Settings(survey, schema, str(work), buckets=bucket_count(schema, size))
    run = Run(store, settings, inputs.observations, ranks, inputs.run_id, start(work, inputs.run_id))
    if not survey.has_positions:
        stored = map_files(map_rows, batches, settings, progress)
        demand_rows(stored)
        return commit_rows(run, stored, progress=progress)
    reference = run_tasks(index_reference, reference_sources(survey), settings)
    records = map_files(map_batch, batches, settings, progress)
    demand_rows(records)
    plan, pixels, wide, density = _plan(records, run, progress)
    reduced = reduce_sky(pixels, plan, progress)
    return commit_version(run, records, reduced, wide=wide, density=density, reference=reference, progress=progress)


def map_files(
    task: Callable[[Batch, Settings], Record], batches: Sequence[Batch], settings: Settings, progress: Progress
) -> list[Record]:
    """Run the map stage."""
    size = {batch.name: batch.size_bytes for batch in batches}
    done: list[int] = []

    def tell(record: Record) -> None:
        done.append(size[record.name])
        progress("map", len(done), len(batches), sum(done))

    progress("map", 0, len(batches), 0)
    return run_tasks(task, batches, settings, on_done=tell)


def demand_rows(records: Sequence[TaskRecord]) -> None:
    """Raise `InputError` where no file gave a row to store."""
    if not any(record.rows for record in records):
        reasons = [entry.reason for record in records for entry in record.files if entry.reason]
        rejected = any(entry.rejected for record in records for entry in record.files)
        reasons.append("every row was rejected" if rejected else "every table is empty")
        raise InputError(f"no row of any file can be stored; the first reason: {reasons[0]}")


def _plan(records: Sequence[MapRecord], run: Run, progress: Progress) -> tuple[Plan, list[tuple[Pixel, int]], pa.Table, pa.Table]:
    """Check the spread of every object, count, and cut the sky into pixels; also returns the wide objects and the counts."""
    settings, store = run.settings, run.settings.survey.store
    runs = tuple(part for record in records for part in record.runs if part.rows)
    steps = settings.buckets + 2
    plan = plan_of(run, runs)
    suspects = find_suspects(plan, lambda done: progress("plan", done, steps, 0))
    wide = run_tasks(settle_wide, [suspects], settings, runs)[0] if len(suspects) else WIDE.empty_table()
    progress("plan", steps - 1, steps, 0)
    pixels, counts, deep = cut_runs(plan, wide["owner"].to_numpy())
    progress("plan", steps, steps, 0)
    return replace(plan, wide=wide.num_rows > 0), pixels, wide, density_table(counts, deep, store)


def cut_runs(plan: Plan, owners: NDArray[np.int64]) -> tuple[list[tuple[Pixel, int]], Counts, Counts]:
    """Count the rows of all runs and cut the sky by them; ``owners`` as in `cut_sky`."""
    settings, store = plan.settings, plan.settings.survey.store
    counts, limit = count_cells(plan.runs, Path(settings.work)), row_limit(store, settings.schema)
    deep = count_deep(counts.cells[counts.rows > limit], plan.runs, settings)
    return cut_sky(counts, deep, owners, store, limit=limit), counts, deep


def find_suspects(plan: Plan, on_done: Callable[[int], None]) -> NDArray[np.int64]:
    """Return the ids, sorted, of objects that may be wider than the margin; the keys of their rows where there are no ids.

    Says how many of the buckets of ids are done.
    """
    settings = plan.settings
    on_done(0)
    if settings.survey.grouping.by == "id":
        done: list[int] = []

        def tell(found: NDArray[np.int64]) -> None:
            done.append(len(found))
            on_done(len(done))

        return np.unique(np.concatenate(run_tasks(check_bucket, range(settings.buckets), settings, plan.runs, on_done=tell)))
    pixels, _, _ = cut_runs(plan, np.zeros(0, dtype=np.int64))
    groups = bundle(pixels, detections_schema(settings.schema).row_bytes)
    return np.unique(np.concatenate([np.zeros(0, dtype=np.int64), *run_tasks(check_pixels, groups, plan)]))


def plan_of(run: Run, runs: tuple[RunInfo, ...], *, wide: bool = False) -> Plan:
    """Return what the reduce stage works from."""
    canonical = run.observations.take(np.argsort(run.ranks)).select(["observation_id", "band", "mjd", "path"])
    return Plan(run.settings, runs, canonical, wide)


def reduce_sky(pixels: Sequence[tuple[Pixel, int]], plan: Plan, progress: Progress) -> list[Reduced]:
    """Run the reduce stage over some pixels with the rows expected in each."""
    row_bytes = detections_schema(plan.settings.schema).row_bytes
    groups = bundle(pixels, row_bytes)
    done: list[Reduced] = []

    def tell(results: list[Reduced]) -> None:
        done.extend(results)
        rows = sum(result.detections.rows for result in done if result.detections)
        progress("reduce", len(done), len(pixels), int(rows * row_bytes))

    progress("reduce", 0, len(pixels), 0)
    return [result for results in run_tasks(reduce_pixels, groups, plan, on_done=tell) for result in results]


def canonical_ranks(observations: pa.Table) -> NDArray[np.int64]:
    """Return the place of each observation in canonical order (band, MJD, id)."""
    band, mjd, ids = (observations[name].to_numpy() for name in ("band", "mjd", "observation_id"))
    ranks = np.empty(len(ids), dtype=np.int64)
    ranks[np.lexsort((ids, mjd, band.astype(str)))] = np.arange(len(ids))
    return ranks


def start(work: Path, run_id: str) -> str:
    """Return the date of this run: fixed when it first starts, so that its reruns write the same bytes."""
    path = work / "run.json"
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{work.parent}: not a folder that can be written ({error}); remove it and run again") from error
    if not path.exists():
        # The convention of reproducible builds, https://reproducible-builds.org/specs/source-date-epoch/
        epoch = os.environ.get("SOURCE_DATE_EPOCH")
        try:
            now = datetime.fromtimestamp(int(epoch), UTC) if epoch else datetime.now(UTC)
        except (ValueError, OverflowError, OSError) as error:
            raise InputError(f"SOURCE_DATE_EPOCH is {epoch!r}: whole seconds since 1970 are needed; unset it") from error
        write_json(path, {"run_id": run_id, "date": now.strftime("%Y-%m-%dT%H:%M:%SZ")})
    return str(read_json(path)["date"])


def silent(stage: str, done: int, total: int, size: int) -> None:
    """Tell nobody."""
