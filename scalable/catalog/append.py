"""`append`: new files join a store; only pixels that they touch are written, the result is that of ingesting everything."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.collection import Collection, find_version, locked, open_collection, sweep
from scalable.catalog.ingest import (
    BATCH_BYTES,
    Inputs,
    canonical_ranks,
    find_inputs,
    find_suspects,
    map_files,
    plan_of,
    reduce_sky,
    silent,
    start,
)
from scalable.catalog.ingest_base import (
    Base,
    Reopened,
    around_all,
    carry_pixels,
    known_leaves,
    meets,
    open_base,
    pixels_of_ids,
    reach,
    reopen_leaf,
    stored_columns,
    stored_files,
)
from scalable.catalog.ingest_commit import Carried, Progress, Run, commit_version
from scalable.catalog.ingest_forecast import bucket_count
from scalable.catalog.ingest_map import CELL_ORDER, RunInfo, Settings, TaskRecord, make_batches, map_batch, modified_ns
from scalable.catalog.ingest_plan import count_cells, count_deep, cut_sky, density_table, row_limit
from scalable.catalog.ingest_reduce import WIDE, Reduced, settle_wide
from scalable.catalog.ingest_reference import index_reference, reference_sources
from scalable.catalog.ingest_rows import commit_rows, map_rows
from scalable.catalog.published import published_store
from scalable.cluster import run_tasks
from scalable.errors import AdditionError, InputError
from scalable.io.reader import Source
from scalable.io.remote import Place, local_copy, place
from scalable.io.runs import flat, read_arrow
from scalable.sky.pixel import MAX_ORDER, Pixel
from scalable.survey.description import Survey


def append(
    survey: Survey,
    *,
    into: str | Place,
    resume: bool = True,
    progress: Progress | None = None,
    work: str | Path | None = None,
) -> Collection:
    """Add the files that a survey lists now and did not when its store was made; computes, on the Dask scheduler in use.

    Only pixels that new rows touch are written, the others are hard links to the version before, whose readers are not
    disturbed. The catalogues equal, byte for byte, those of ingesting all files at once. Files that were set aside are tried
    again if they have changed since, or other files are new. Files that are stored already need not be there any more.

    Parameters
    ----------
    survey : Survey
        The description the store was made with; its index, or its folder, has more files.
    into : str or Path
        The store. Of one at a URL, the current version is fetched where it was not made on this machine.
    resume : bool
        Take up finished tasks of an earlier, interrupted run on the same input.
    progress : callable, optional
        Called as tasks finish.
    work : str or Path, optional
        Where versions for a URL are built; by default in the user's cache. All workers must see it.

    Returns
    -------
    Collection
        The committed version; the one that is there if no file is new.

    Raises
    ------
    AdditionError
        If the rules have changed since, or a stored file has.
    StoreError
        If there is no version yet, or another ingest is running or, at a URL, was faster.
    InputError
        If no new file could be used.
    """
    store = place(into)
    if isinstance(store, Path):
        return _append(survey, store, resume, progress or silent)
    target = published_store(store, work)
    target.mirror()
    built = _append(survey, target.stage, resume, progress or silent)
    current = target.current
    if current and current.manifest["run_id"] == built.manifest["run_id"]:
        return current
    return target.commit(built.folder, progress or silent)


def _append(survey: Survey, store: Path, resume: bool, progress: Progress) -> Collection:
    """Add new files to a store on this machine."""
    with locked(store):
        before = open_collection(store)
        inputs = find_inputs(survey, store)
        new = new_sources(survey, inputs, before)
        if not new:
            return before
        state = "\n".join([before.manifest["run_id"], inputs.run_id])
        inputs = replace(inputs, run_id=hashlib.sha256(state.encode()).hexdigest())
        work = store / "work" / inputs.run_id[:16]
        done = find_version(store, inputs.run_id) if resume else None
        sweep(store, keep=work if resume and not done else None)
        return done or _run(survey, inputs, new, before, store, work, progress)


def new_sources(survey: Survey, inputs: Inputs, before: Collection) -> list[Source]:
    """Return the files to add: those not in a version, and with any of them those that were set aside in it.

    A stored file that was written to since is read again, to compare its digest.

    Raises
    ------
    AdditionError
        If what the version holds is not what the survey says now.
    """
    if before.manifest["survey_digest"] != survey.digest:
        raise _refusal(f"{before.path} was made under other rules (columns, bands, files or store of the survey)")
    keys = ["observation_id", "path", "band", "mjd"]
    entries = {row["observation_id"]: row for row in inputs.observations.select(keys).to_pylist()}
    rows = {row["observation_id"]: row for row in before.observations.to_pylist()}
    modified = before.manifest.get("modified_ns", {})
    listed = {source.observation_id: source for source in inputs.sources}
    doubtful: list[tuple[Source, str]] = []
    news = len(listed) > len(rows)
    for number, row in rows.items():
        if number not in listed:
            raise _refusal(f"observation {number} ({row['path']}) is stored but no longer listed")
        source, now = listed[number], modified_ns(listed[number])
        changed = [f"{key} is {entries[number][key]}, was {row[key]}" for key in keys if entries[number][key] != row[key]]
        if row["status"] != "stored":
            news |= bool(changed) or now != modified.get(str(number))
            continue
        size = inputs.sizes.get(source.path)
        if size is not None and size != row["size_bytes"]:
            changed.append(f"its file has {size} bytes, had {row['size_bytes']}")
        if changed:
            raise _changed(source, ", ".join(changed))
        if now and now != modified.get(str(number)):
            doubtful.append((source, row["sha256"]))
    for (source, _), same in zip(doubtful, run_tasks(is_same, doubtful), strict=True):
        if not same:
            raise _changed(source, "its file has as many bytes but other ones")
    return [source for source in inputs.sources if rows.get(source.observation_id, {}).get("status") != "stored"] if news else []


def is_same(file: tuple[Source, str]) -> bool:
    """Return whether a file still has the digest that it had when it was stored."""
    source, sha256 = file
    with local_copy(source.path) as path, Path(path).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest() == sha256


def _refusal(reason: str) -> AdditionError:
    return AdditionError(f"{reason}; ingest everything anew with: scalable run")


def _changed(source: Source, how: str) -> AdditionError:
    return _refusal(f"observation {source.observation_id} ({source.name}) has changed since it was stored: {how}")


@dataclass(frozen=True)
class _Opened:
    """Leaves of the version before, opened again as runs."""

    base: Base
    run: Run
    leaves: dict[Pixel, Reopened]

    def more(self, pixels: Sequence[Pixel]) -> _Opened:
        """Return these and further leaves; computes, a task for each."""
        missing = sorted(set(pixels) - set(self.leaves))
        ids = flat(self.run.observations, "observation_id")
        found = run_tasks(reopen_leaf, missing, str(self.base.path), self.run.settings, (ids, self.run.ranks))
        return replace(self, leaves=self.leaves | {leaf.pixel: leaf for leaf in found})

    @property
    def runs(self) -> tuple[RunInfo, ...]:
        return tuple(leaf.run for _, leaf in sorted(self.leaves.items()))


def _run(
    survey: Survey, inputs: Inputs, new: Sequence[Source], before: Collection, store: Path, work: Path, progress: Progress
) -> Collection:
    ranks = canonical_ranks(inputs.observations)
    rank_of = dict(zip(inputs.observations["observation_id"].to_pylist(), ranks.tolist(), strict=True))
    new_ranks = [rank_of[source.observation_id] for source in new]
    batches = list(make_batches(new, new_ranks, inputs.sizes, batch_bytes=BATCH_BYTES))
    size = sum(batch.size_bytes for batch in batches) + before.accounting["input_bytes"]
    schema = stored_columns(before, survey)
    settings = Settings(survey, schema, str(work), buckets=bucket_count(schema, size))
    run = Run(store, settings, inputs.observations, ranks, inputs.run_id, start(work, inputs.run_id))
    reference = run_tasks(index_reference, reference_sources(survey), settings)
    if reference != before.manifest.get("reference_sha256", []):
        raise _refusal(f"{survey.grouping.reference}: the reference has changed since {before.path} was made")
    if not survey.has_positions:
        stored = map_files(map_rows, batches, settings, progress)
        _demand_files(stored)
        return commit_rows(run, stored, before=before, progress=progress)
    records = map_files(map_batch, batches, settings, progress)
    _demand_files(records)
    added = tuple(part for record in records for part in record.runs if part.rows)
    base = open_base(before)
    touched = _plan(base, run, added, progress)
    reduced = reduce_sky(touched.write, plan_of(run, added + touched.opened.runs, wide=touched.wide_rows.num_rows > 0), progress)
    known = known_leaves(before)
    carried = [(pixel, known[pixel]) for pixel in touched.carry if pixel in known]
    groups = [tuple(carried[i : i + 64]) for i in range(0, len(carried), 64)]
    linked: list[int] = []

    def tell(results: list[Reduced]) -> None:
        linked.append(len(results))
        progress("link", sum(linked), len(carried), 0)

    progress("link", 0, len(carried), 0)
    reduced += [r for results in run_tasks(carry_pixels, groups, str(base.path), settings, on_done=tell) for r in results]
    return commit_version(
        run,
        records,
        reduced,
        wide=touched.wide,
        density=touched.density,
        reference=reference,
        carried=_carried(base, touched, rank_of),
        progress=progress,
    )


def _demand_files(records: Sequence[TaskRecord]) -> None:
    files = [entry for record in records for entry in record.files]
    if all(entry.reason for entry in files):
        raise InputError(f"none of the {len(files)} new files can be used; the first reason: {files[0].reason}")


@dataclass(frozen=True)
class _Touched:
    """What new rows touch: the pixels to write, those to carry over, the leaves to do it from, and the tables of the whole."""

    write: list[tuple[Pixel, int]]
    carry: list[Pixel]
    opened: _Opened
    wide_rows: pa.Table
    wide: pa.Table
    density: pa.Table


def _plan(base: Base, run: Run, added: tuple[RunInfo, ...], progress: Progress) -> _Touched:
    """Find which pixels new rows touch, and open the leaves that these need."""
    steps = run.settings.buckets + 4
    progress("plan", 0, steps, 0)
    settings, store = run.settings, run.settings.survey.store
    fresh_counts = count_cells(added, run.work)
    counts, limit = base.counts + fresh_counts, row_limit(store, settings.schema)
    crowded = counts.cells[counts.rows > limit]
    known = base.counts.cells[base.counts.rows > limit]
    first = np.setdiff1d(crowded, known)
    near = reach(np.union1d(fresh_counts.cells, first), store)
    needed = {pixel for pixel in base.leaves if meets(near, pixel)}
    by_id = settings.survey.grouping.by == "id"
    if by_id:
        # Objects of new rows may lie anywhere: where ids are repeated far away, they become wide.
        parts = sorted(str(path) for path in (base.path / "objects" / "objects_id" / "dataset" / "index").glob("*.parquet"))
        needed |= set().union(*run_tasks(pixels_of_ids, parts, settings, added))
    if len(first) or not by_id:
        # Rows of wide objects may lie anywhere; they are counted, or new rows join them.
        needed |= {pixel for pixel in base.leaves if ((base.owners >= pixel.start) & (base.owners < pixel.stop)).any()}
    progress("plan", 1, steps, 0)
    opened = _Opened(base, run, {}).more(sorted(needed))
    progress("plan", 2, steps, 0)
    deep = base.deep + count_deep(np.intersect1d(crowded, known), added, settings)
    deep += count_deep(first, added + opened.runs, settings)

    changed = fresh_counts.cells
    suspects = find_suspects(plan_of(run, added + opened.runs), lambda done: progress("plan", 2 + done, steps, 0))
    if by_id and added + opened.runs:
        suspects = np.union1d(suspects, flat(base.wide, "object_id"))
    wide = _settle(suspects, settings, added + opened.runs)
    if len(suspects):
        # Pixels that held rows of an object which is wide now, or owned it, change too.
        shift = 2 * (MAX_ORDER - CELL_ORDER)
        moved = _moved(base.wide, wide)
        rows = read_arrow(run.work / "wide.arrow")
        mine = np.isin(flat(rows, "object_id"), moved["object_id"].to_numpy()) if by_id else np.ones(rows.num_rows, dtype=bool)
        changed = np.unique(np.concatenate([changed, flat(rows, "_healpix_29")[mine] >> shift, flat(moved, "owner") >> shift]))
    settled = np.isin(flat(base.wide, "object_id"), flat(wide, "object_id")) | (not by_id)
    owners = np.union1d(base.owners[~settled], flat(wide, "owner"))
    cut = cut_sky(counts, deep, owners, store, limit=limit)
    before, near = base.cut(settings), reach(changed, store)
    write = [(pixel, rows) for pixel, rows in cut if pixel not in before or meets(near, pixel)]
    writing = {pixel for pixel, _ in write}
    around = around_all(writing, store)
    progress("plan", steps - 1, steps, 0)
    opened = opened.more([pixel for pixel in base.leaves if meets(around, pixel)])
    wide = _settle(suspects, settings, added + opened.runs)
    others = base.wide.filter(pa.array(~(np.isin(flat(base.wide, "object_id"), flat(wide, "object_id")) | (not by_id))))
    everything = pa.concat_tables([wide, others.cast(WIDE)]).sort_by("object_id")
    carry = [pixel for pixel, _ in cut if pixel not in writing]
    progress("plan", steps, steps, 0)
    return _Touched(write, carry, opened, wide, everything, density_table(counts, deep, store))


def _settle(suspects: NDArray[np.int64], settings: Settings, runs: tuple[RunInfo, ...]) -> pa.Table:
    return run_tasks(settle_wide, [suspects], settings, runs)[0] if len(suspects) else WIDE.empty_table()


def _moved(before: pa.Table, now: pa.Table) -> pa.Table:
    """Return both entries of wide objects that are new or not what they were."""
    rows = pa.concat_tables([before.filter(pa.array(np.isin(flat(before, "object_id"), flat(now, "object_id")))).cast(WIDE), now])
    entries = list(zip(*(rows[name].to_pylist() for name in WIDE.names), strict=True))
    times = Counter(entries)
    return rows.filter(pa.array([times[entry] == 1 for entry in entries], pa.bool_()))


def _carried(base: Base, touched: _Touched, rank_of: dict[int, int]) -> Carried:
    """Return what the new version takes over; rows of leaves that are written anew, and duplicates among them, count there."""
    linked = set(touched.carry)
    observations = base.collection.observations
    numbers, rows = observations["observation_id"].to_pylist(), observations["rows_stored"].to_pylist()
    stored = Counter({rank_of[number]: count for number, count in zip(numbers, rows, strict=True)})
    again = Counter[int]()
    for pixel, leaf in touched.opened.leaves.items():
        if pixel not in linked:
            stored.subtract(leaf.stored)
            again.update(leaf.dropped)
    files = {n: replace(entry, rejected=entry.rejected - again[rank_of[n]]) for n, entry in stored_files(base.collection).items()}
    return Carried(base.collection, files, stored)
