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
    Progress,
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
)
from scalable.catalog.ingest_commit import Carried, Run, commit_version
from scalable.catalog.ingest_forecast import bucket_count
from scalable.catalog.ingest_map import CELL_ORDER, RunInfo, Settings, make_batches, map_batch
from scalable.catalog.ingest_plan import count_cells, count_deep, cut_sky, density_table, row_limit
from scalable.catalog.ingest_reduce import WIDE, settle_wide
from scalable.cluster import run_tasks
from scalable.errors import InputError, StoreError
from scalable.io.reader import Source
from scalable.io.runs import flat, read_arrow
from scalable.sky.pixel import MAX_ORDER, Pixel
from scalable.survey import Survey


def append(survey: Survey, *, into: str | Path, resume: bool = True, progress: Progress | None = None) -> Collection:
    """Add the files that a survey lists now and did not when its store was made; computes, on the Dask scheduler in use.

    Only pixels that new rows touch are written, the others are hard links to the version before, whose readers are not
    disturbed. The catalogues equal, byte for byte, those of ingesting all files at once. Files that were set aside are tried
    again. Files that are stored already need not be there any more.

    Parameters
    ----------
    survey : Survey
        The description the store was made with; its index, or its folder, has more files.
    into : str or Path
        The store.
    resume : bool
        Take up finished tasks of an earlier, interrupted run on the same input.
    progress : callable, optional
        Called as tasks finish.

    Returns
    -------
    Collection
        The committed version; the one that is there if no file is new.

    Raises
    ------
    StoreError
        If there is no version yet, the rules have changed since, a stored file has changed, or another ingest is running.
    InputError
        If no new file could be used.
    """
    store = Path(into).absolute()
    with locked(store):
        before = open_collection(store)
        inputs = find_inputs(survey)
        new = new_sources(survey, inputs, before)
        if not new:
            return before
        state = "\n".join([before.manifest["run_id"], inputs.run_id])
        inputs = replace(inputs, run_id=hashlib.sha256(state.encode()).hexdigest())
        work = store / "work" / inputs.run_id[:16]
        done = find_version(store, inputs.run_id) if resume else None
        sweep(store, keep=work if resume and not done else None)
        return done or _run(survey, inputs, new, before, store, work, progress or silent)


def new_sources(survey: Survey, inputs: Inputs, before: Collection) -> list[Source]:
    """Return the files to add: those not in a version, and those that were set aside in it.

    Raises
    ------
    StoreError
        If what the version holds is not what the survey says now.
    """
    again = "; ingest everything anew with: scalable run, into another store"
    if before.manifest["survey_digest"] != survey.digest:
        raise StoreError(f"{before.path}: was made under other rules (columns, bands, files or store of the survey){again}")
    names = ["observation_id", "path", "band", "mjd", "status", "size_bytes"]
    rows = {row["observation_id"]: row for row in before.observations.select(names).to_pylist()}
    listed = {source.observation_id: source for source in inputs.sources}
    for number, row in rows.items():
        if number not in listed:
            raise StoreError(f"observation {number} ({row['path']}) is stored but no longer listed{again}")
        source = listed[number]
        changed = [
            f"{key} is {now}, was {row[key]}"
            for key, now in (("path", source.name), ("band", source.band), ("mjd", source.mjd))
            if now != row[key]
        ]
        path = Path(source.path)
        if row["status"] == "stored" and path.exists() and path.stat().st_size != row["size_bytes"]:
            changed.append(f"its file has {path.stat().st_size} bytes, had {row['size_bytes']}")
        if changed:
            raise StoreError(f"observation {number} ({row['path']}) has changed since it was stored: {', '.join(changed)}{again}")
    return [source for source in inputs.sources if rows.get(source.observation_id, {}).get("status") != "stored"]


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
    batches = list(make_batches(list(new), [rank_of[source.observation_id] for source in new], batch_bytes=BATCH_BYTES))
    size = sum(batch.size_bytes for batch in batches) + before.accounting["input_bytes"]
    schema = stored_columns(before, survey)
    settings = Settings(survey, schema, str(work), buckets=bucket_count(schema, size))
    run = Run(store, settings, inputs.observations, ranks, inputs.run_id, start(work, inputs.run_id))
    records = map_files(map_batch, batches, settings, progress)
    files = [entry for record in records for entry in record.files]
    if all(entry.reason for entry in files):
        raise InputError(f"none of the {len(files)} new files can be used; the first reason: {files[0].reason}")
    added = tuple(part for record in records for part in record.runs if part.rows)
    base = open_base(before)
    progress("plan", 0, 1, 0)
    touched = _plan(base, run, added)
    progress("plan", 1, 1, 0)
    reduced = reduce_sky(touched.write, plan_of(run, added + touched.opened.runs, touched.wide_rows), progress)
    known = known_leaves(before)
    carried = [(pixel, known[pixel]) for pixel in touched.carry if pixel in known]
    groups = [tuple(carried[i : i + 64]) for i in range(0, len(carried), 64)]
    reduced += [result for results in run_tasks(carry_pixels, groups, str(base.path), settings) for result in results]
    progress("commit", 0, 1, 0)
    collection = commit_version(
        run,
        records,
        reduced,
        wide=touched.wide,
        density=touched.density,
        carried=_carried(base, touched, rank_of),
    )
    progress("commit", 1, 1, 0)
    return collection


@dataclass(frozen=True)
class _Touched:
    """What new rows touch: the pixels to write, those to carry over, the leaves to do it from, and the tables of the whole."""

    write: list[tuple[Pixel, int]]
    carry: list[Pixel]
    opened: _Opened
    wide_rows: pa.Table
    wide: pa.Table
    density: pa.Table


def _plan(base: Base, run: Run, added: tuple[RunInfo, ...]) -> _Touched:
    """Find which pixels new rows touch, and open the leaves that these need."""
    settings, store = run.settings, run.settings.survey.store
    fresh_counts = count_cells(added, run.work)
    counts, limit = base.counts + fresh_counts, row_limit(store, settings.schema)
    crowded = counts.cells[counts.rows > limit]
    known = base.counts.cells[base.counts.rows > limit]
    first = np.setdiff1d(crowded, known)
    # Objects of new rows may lie anywhere: where ids are repeated far away, they become wide.
    parts = sorted(str(path) for path in (base.path / "objects" / "objects_id" / "dataset" / "index").glob("*.parquet"))
    needed = set().union(*run_tasks(pixels_of_ids, parts, settings, added))
    near = reach(np.union1d(fresh_counts.cells, first), store)
    needed |= {pixel for pixel in base.leaves if meets(near, pixel)}
    if len(first):
        needed |= {pixel for pixel in base.leaves if ((base.owners >= pixel.start) & (base.owners < pixel.stop)).any()}
    opened = _Opened(base, run, {}).more(sorted(needed))
    deep = base.deep + count_deep(np.intersect1d(crowded, known), added, settings)
    deep += count_deep(first, added + opened.runs, settings)

    changed = fresh_counts.cells
    suspects = np.union1d(find_suspects(added + opened.runs, settings), flat(base.wide, "object_id"))
    wide = _settle(suspects, settings, added + opened.runs, base.wide)
    if len(suspects):
        # Pixels that held rows of an object which is wide now, or owned it, change too.
        shift = 2 * (MAX_ORDER - CELL_ORDER)
        moved = _moved(base.wide, wide)
        rows = read_arrow(run.work / "wide.arrow")
        mine = np.isin(flat(rows, "object_id"), moved["object_id"].to_numpy())
        changed = np.unique(np.concatenate([changed, flat(rows, "_healpix_29")[mine] >> shift, flat(moved, "owner") >> shift]))
    owners = np.union1d(base.owners[~np.isin(flat(base.wide, "object_id"), flat(wide, "object_id"))], flat(wide, "owner"))
    cut = cut_sky(counts, deep, owners, store, limit=limit)
    before, near = base.cut(settings), reach(changed, store)
    write = [(pixel, rows) for pixel, rows in cut if pixel not in before or meets(near, pixel)]
    writing = {pixel for pixel, _ in write}
    around = around_all(writing, store)
    opened = opened.more([pixel for pixel in base.leaves if meets(around, pixel)])
    wide = _settle(suspects, settings, added + opened.runs, base.wide)
    others = base.wide.filter(pa.array(~np.isin(flat(base.wide, "object_id"), flat(wide, "object_id"))))
    everything = pa.concat_tables([wide, others.cast(WIDE)]).sort_by("object_id")
    carry = [pixel for pixel, _ in cut if pixel not in writing]
    return _Touched(write, carry, opened, wide, everything, density_table(counts, deep, store))


def _settle(suspects: NDArray[np.int64], settings: Settings, runs: tuple[RunInfo, ...], known: pa.Table) -> pa.Table:
    return run_tasks(settle_wide, [suspects], settings, runs, known)[0] if len(suspects) else WIDE.empty_table()


def _moved(before: pa.Table, now: pa.Table) -> pa.Table:
    """Return both entries of wide objects that are new or not what they were."""
    rows = pa.concat_tables([before.filter(pa.array(np.isin(flat(before, "object_id"), flat(now, "object_id")))).cast(WIDE), now])
    entries = list(zip(*(rows[name].to_pylist() for name in WIDE.names), strict=True))
    times = Counter(entries)
    return rows.filter(pa.array([times[entry] == 1 for entry in entries], pa.bool_()))


def _carried(base: Base, touched: _Touched, rank_of: dict[int, int]) -> Carried:
    """Return what the new version takes over; rows in leaves that are written anew count there."""
    linked = set(touched.carry)
    observations = base.collection.observations
    numbers, rows = observations["observation_id"].to_pylist(), observations["rows_stored"].to_pylist()
    stored = {rank_of[number]: count for number, count in zip(numbers, rows, strict=True)}
    for pixel, leaf in touched.opened.leaves.items():
        if pixel not in linked:
            for rank, count in leaf.stored.items():
                stored[rank] -= count
    manifest = base.collection.manifest
    return Carried(base.path.name, manifest["run_id"], base.files(), stored, base.collection.rejected)
