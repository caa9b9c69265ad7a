"""Ingest, last stage, in the driver alone: balance the books, write the metadata, publish the version."""

from __future__ import annotations

import csv
import hashlib
import heapq
import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.collection import DUPLICATES, REJECTED, REJECTED_FILE, Collection, commit
from scalable.catalog.grouping import REFERENCE
from scalable.catalog.ingest_map import FileRecord, MapRecord, Settings
from scalable.catalog.ingest_plan import DENSITY_FILE
from scalable.catalog.ingest_reduce import (
    MEMBERS,
    Reduced,
    detections_schema,
    duplicates_schema,
    member_folder,
    objects_schema,
    pixel_file,
    write_index_part,
)
from scalable.cluster import run_tasks
from scalable.errors import AccountingError, StoreError
from scalable.io.atomic import link, write_text
from scalable.io.layout import META_KEY, finish_catalog, finish_collection, finish_index
from scalable.io.parquet import Leaf, read_groups, write_common_metadata, write_leaf, write_stream
from scalable.io.runs import flat, read_arrow, write_json
from scalable.kernels.partition import boundaries
from scalable.schema import Schema
from scalable.sky.pixel import Pixel

INDEX_PART_ROWS = 5_000_000
COMMIT_STEPS = 4
"""Books, catalogues, manifest, and the publishing, which waits for the disk."""

Progress = Callable[[str, int, int, int], None]
"""Called with stage, tasks done, tasks in all and bytes done: of the input, or decoded."""

INDEX = Schema.from_arrow(
    pa.schema([("object_id", pa.int64()), ("Norder", pa.uint8()), ("Dir", pa.int64()), ("Npix", pa.int64())])
)


@dataclass(frozen=True)
class Run:
    """One ingest: where it writes, what it reads and since when.

    ``observations`` is the index sorted by id, ``ranks`` the place of each of its rows in canonical order (band, MJD, id).
    """

    store: Path
    settings: Settings
    observations: pa.Table
    ranks: NDArray[np.int64]
    run_id: str
    date: str

    @property
    def work(self) -> Path:
        """Folder of intermediate files."""
        return Path(self.settings.work)

    @property
    def version(self) -> Path:
        """Folder in which the new version grows, out of readers' sight."""
        return self.work / "version"


@dataclass(frozen=True)
class Carried:
    """What a version takes over from the one it adds to.

    Attributes
    ----------
    parent : Collection
        The one it adds to.
    files : dict
        What became of its files, by observation id; the duplicates that were judged anew count no more.
    stored : dict
        Rows by rank of observation in the leaves that were linked.
    """

    parent: Collection
    files: dict[int, FileRecord]
    stored: Mapping[int, int]


def commit_version(
    run: Run,
    records: Sequence[MapRecord],
    reduced: Sequence[Reduced],
    *,
    wide: pa.Table,
    density: pa.Table,
    reference: Sequence[str],
    progress: Progress,
    carried: Carried | None = None,
) -> Collection:
    """Write what a version holds beside its leaves, and publish it by one rename.

    Raises
    ------
    AccountingError
        If a single row is lost or doubled.
    """
    progress("commit", 0, COMMIT_STEPS, 0)
    files = carried.files if carried else {}
    files = files | {entry.observation_id: entry for record in records for entry in record.files}
    kept = [result for result in reduced if result.objects and result.detections]
    names = [part.name for record in records for part in record.runs]
    rejected = write_rejected(run, names, carried.parent if carried else None)
    stored, dropped, nulls = Counter[int](carried.stored if carried else {}), Counter[int](), Counter[str]()
    for result in reduced:
        stored.update(result.stored)
        dropped.update(result.dropped)
        nulls.update(result.nulls)
    books = balance(run, files, stored, dropped, rejected.rows + sum(leaf.rows for leaf in _leaves(kept, DUPLICATES)))
    members = (*MEMBERS, DUPLICATES)
    digests = {(member_folder(Path(), name) / leaf.path).as_posix(): leaf for name in members for leaf in _leaves(kept, name)}
    digests[rejected.path] = rejected
    progress("commit", 1, COMMIT_STEPS, 0)
    _finish_catalogs(run, kept)
    duplicates = run.version / DUPLICATES / "dataset" / "_common_metadata"
    write_common_metadata(duplicates_schema(run.settings.schema).to_arrow(), duplicates)
    for name, table in (("wide_objects.parquet", wide), (DENSITY_FILE, density)):
        digests[name] = write_leaf(table, run.version, name)
    accounting = total(files, books) | {"objects": sum(leaf.rows for leaf in _leaves(kept, "objects"))}
    accounting |= _reference_total(run, kept, accounting["stored"])
    more = {"margin_arcsec": run.settings.survey.store.margin_arcsec, "wide_objects": wide.num_rows}
    more |= {"accounting": accounting, "nulls": dict(nulls)}
    more |= {"reference_sha256": list(reference), "parent": parent_of(carried.parent) if carried else None}
    return publish_version(run, files, books, digests, more, progress)


def publish_version(
    run: Run,
    files: Mapping[int, FileRecord],
    books: Mapping[int, tuple[int, int]],
    digests: dict[str, Leaf],
    more: Mapping[str, Any],
    progress: Progress,
) -> Collection:
    """Write observations, the files set aside and the manifest with ``more`` in it; then publish the version.

    ``digests`` are the leaves written so far, by path below the version.
    """
    progress("commit", 2, COMMIT_STEPS, 0)
    digests["observations.parquet"] = write_leaf(_observations(run, files, books), run.version, "observations.parquet")
    _write_quarantine(run.version / "quarantine.csv", files)
    survey = run.settings.survey
    write_text(run.version / "survey.json", json.dumps(survey.model_dump(mode="json", by_alias=True), indent=1) + "\n")
    manifest = {
        "format": 1,
        "run_id": run.run_id,
        "date": run.date,
        "survey": survey.name,
        "survey_digest": survey.digest,
        "bands": list(survey.bands),
        "grouping": survey.grouping.model_dump(mode="json", exclude_defaults=True),
        "files": _files(run.version, digests),
        "modified_ns": {str(number): entry.modified_ns for number, entry in files.items()},
        **more,
    }
    write_json(run.version / "manifest.json", manifest)
    progress("commit", 3, COMMIT_STEPS, 0)
    collection = commit(run.store, run.version)
    progress("commit", COMMIT_STEPS, COMMIT_STEPS, 0)
    return collection


def balance(
    run: Run, files: Mapping[int, FileRecord], stored: Mapping[int, int], dropped: Mapping[int, int], listed: int
) -> dict[int, tuple[int, int]]:
    """Return rows stored and rejected by observation id, once every row read is one or the other.

    ``stored`` and ``dropped`` are counts by rank of the observation; the dropped are rejected beside what a file's record says.

    Raises
    ------
    AccountingError
        If a row is lost or doubled, or a rejected row is not listed.
    """
    books = {}
    for observation_id, rank in zip(run.observations["observation_id"].to_pylist(), run.ranks.tolist(), strict=True):
        entry = files[observation_id]
        kept, lost = stored.get(rank, 0), entry.rejected + dropped.get(rank, 0)
        if entry.rows != kept + lost:
            raise AccountingError(
                f"{entry.path}: {entry.rows} rows read, {kept} stored and {lost} rejected do not balance; "
                "nothing was committed. This is a fault of ours: please report it with the survey file"
            )
        books[observation_id] = (kept, lost)
    total_rejected = sum(lost for _, lost in books.values())
    if listed != total_rejected:
        raise AccountingError(f"{total_rejected} rows were rejected but {listed} are listed; nothing was committed")
    return books


def total(files: Mapping[int, FileRecord], books: Mapping[int, tuple[int, int]]) -> dict[str, int]:
    """Return rows and files of a whole ingest."""
    stored = sum(stored for stored, _ in books.values())
    return {
        "read": sum(entry.rows for entry in files.values()),
        "stored": stored,
        "rejected": sum(lost for _, lost in books.values()),
        "files": len(files),
        "quarantined": sum(bool(entry.reason) for entry in files.values()),
        "input_bytes": sum(entry.size_bytes for entry in files.values()),
    }


def _reference_total(run: Run, kept: Sequence[Reduced], stored: int) -> dict[str, int]:
    """Count rows of reference objects and others, and reference objects without any row, which are not stored."""
    if run.settings.survey.grouping.by != "reference":
        return {}
    seen, matched = (sum(counts) for counts in zip(*(result.matched for result in kept), strict=True))
    unseen = read_arrow(run.work / REFERENCE).num_rows - seen
    return {"matched": matched, "unmatched": stored - matched, "reference_unseen": unseen}


def _leaves(kept: Sequence[Reduced], member: str) -> list[Leaf]:
    return [leaf for leaf in (getattr(result, member) for result in kept) if leaf]


def write_rejected(run: Run, names: Sequence[str], before: Collection | None) -> Leaf:
    """Write the rows that map tasks rejected, by observation and row, with those of the version that is added to.

    ``names`` are those of the tasks' files, in the order of observations; one of them is in memory at a time.
    """
    new = (read_arrow(run.work / "map" / f"{name}.rejected.arrow") for name in names)
    old = read_groups(before.path / REJECTED_FILE) if before else ()
    merged = heapq.merge(_by_observation(new), _by_observation(old), key=lambda entry: entry[0])
    return write_stream((rows for _, rows in merged), REJECTED, run.version, REJECTED_FILE)


def _by_observation(tables: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    for table in tables:
        ids = flat(table, "observation_id")
        edges = boundaries(ids).tolist()
        yield from ((int(ids[a]), table.slice(a, b - a)) for a, b in itertools.pairwise(edges))


def parent_of(before: Collection) -> dict[str, Any]:
    """Return what a version says of the one that it adds to."""
    return {"version": before.path.name, "run_id": before.manifest["run_id"], "stored": before.accounting["stored"]}


def _finish_catalogs(run: Run, kept: Sequence[Reduced]) -> None:
    survey = run.settings.survey
    meta = {META_KEY: json.dumps({"bands": list(survey.bands), "survey": survey.name}).encode()}
    schemas = {"objects": objects_schema(survey.bands), "detections": detections_schema(run.settings.schema)}
    for member in MEMBERS:
        kind, _, margin = member.partition("_")
        leaves = _leaves(kept, member)
        if not leaves:
            continue
        finish_catalog(
            member_folder(run.version, member),
            leaves,
            schema=schemas[kind].to_arrow().with_metadata(meta),
            name=f"{survey.name}_{member}",
            product="margin" if margin else {"objects": "object", "detections": "source"}[kind],
            position=("object_ra", "object_dec"),
            date=run.date,
            margin=(kind, survey.store.margin_arcsec) if margin else None,
        )
    _write_indexes(run, tuple(result.pixel for result in kept))


def _write_indexes(run: Run, pixels: tuple[Pixel, ...]) -> None:
    """Write the index from id to pixel once and link it into both collections: their leaves correspond one to one."""
    ids = [read_arrow(pixel_file(run.work, pixel, "ids.arrow"))["object_id"].to_numpy() for pixel in pixels]
    edges = index_edges(ids)
    bounds = [(number, low, high) for number, (low, high) in enumerate(edges)]
    parts = [part for part in run_tasks(write_index_part, bounds, run.settings, pixels) if part]
    for member in ("objects", "detections"):
        collection, index = run.version / member, f"{member}_id"
        for part in parts:
            path = collection / index / part.path
            if not path.exists():
                link(run.version / "objects" / "objects_id" / part.path, path)
        name = f"{run.settings.survey.name}_{member}"
        finish_index(collection / index, parts, schema=INDEX.to_arrow(), name=name, primary=member, date=run.date)
        margin = f"{member}_margin" if (collection / f"{member}_margin").exists() else ""
        finish_collection(collection, name=name, primary=member, indexes={"object_id": index}, margin=margin)


def index_edges(ids: Sequence[NDArray[np.int64]]) -> list[tuple[int, int]]:
    """Return the first and the last id of ranges with about `INDEX_PART_ROWS` each, from evenly spaced samples of sorted ids."""
    samples = np.sort(np.concatenate([values[:: max(1, len(values) // 64)] for values in ids]))
    parts = math.ceil(sum(len(values) for values in ids) / INDEX_PART_ROWS)
    inner = {int(samples[len(samples) * part // parts]) for part in range(1, parts)}
    low, high = min(int(values[0]) for values in ids), max(int(values[-1]) for values in ids)
    starts = [low, *sorted(inner - {low})]
    return list(zip(starts, [*(start - 1 for start in starts[1:]), high], strict=True))


def _observations(run: Run, files: Mapping[int, FileRecord], books: Mapping[int, tuple[int, int]]) -> pa.Table:
    entries = [files[i] for i in run.observations["observation_id"].to_pylist()]
    columns = {
        "status": pa.array(["quarantined" if entry.reason else "stored" for entry in entries]),
        "rows": pa.array([entry.rows for entry in entries], pa.int64()),
        "rows_stored": pa.array([books[entry.observation_id][0] for entry in entries], pa.int64()),
        "rows_rejected": pa.array([books[entry.observation_id][1] for entry in entries], pa.int64()),
        "size_bytes": pa.array([entry.size_bytes for entry in entries], pa.int64()),
        "sha256": pa.array([entry.sha256 or None for entry in entries], pa.string()),
        "header_digest": pa.array([entry.header_digest or None for entry in entries], pa.string()),
        "zero_point": pa.nulls(len(entries), pa.float64()),
    }
    table = run.observations
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table


def _write_quarantine(path: Path, files: Mapping[int, FileRecord]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["observation_id", "path", "reason"])
    for _, entry in sorted(files.items()):
        if entry.reason:
            writer.writerow([entry.observation_id, entry.path, entry.reason])
    write_text(path, text.getvalue())


def _files(version: Path, known: Mapping[str, Leaf]) -> list[dict[str, Any]]:
    """Return every file of the version with bytes and digest, leaves with their rows; leaves are not read again."""
    gone = [name for name in known if not (version / name).exists()]
    if gone:
        raise StoreError(f"{version / gone[0]} was written and is not there any more; nothing was committed, run again")
    entries: list[dict[str, Any]] = []
    for path in sorted(path for path in version.rglob("*") if path.is_file()):
        name = path.relative_to(version).as_posix()
        if path.name.startswith(".tmp-"):
            # Left by a task that was killed while it wrote.
            path.unlink()
        elif name in known:
            leaf = known[name]
            entries.append({"path": name, "bytes": leaf.size_bytes, "sha256": leaf.sha256, "rows": leaf.rows})
        elif name != "manifest.json":
            data = path.read_bytes()
            entries.append({"path": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()})
    return entries
