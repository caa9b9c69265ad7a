"""Ingest, last stage, in the driver alone: balance the books, write the metadata, publish the version."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.collection import Collection, commit
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
from scalable.io.atomic import write_text
from scalable.io.layout import META_KEY, finish_catalog, finish_collection, finish_index
from scalable.io.parquet import Leaf, write_leaf
from scalable.io.runs import read_arrow, write_json
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
    parent : dict
        The one it adds to: version, run id, and rows stored.
    files : dict
        What became of its files, by observation id.
    stored : dict
        Rows by rank of observation in the leaves that were linked.
    rejected, duplicates : Table
        Its rejected rows, and those of them that were duplicates, without those that were judged anew.
    """

    parent: dict[str, Any]
    files: dict[int, FileRecord]
    stored: dict[int, int]
    rejected: pa.Table
    duplicates: pa.Table


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
    rejected = gather_rejected(
        [run.work / "map" / f"{part.name}.rejected.arrow" for record in records for part in record.runs]
        + [pixel_file(run.work, result.pixel, "rejected.arrow") for result in kept],
        [carried.rejected] if carried else [],
    )
    stored, duplicates, nulls = Counter[int](carried.stored if carried else {}), Counter[int](), Counter[str]()
    for result in reduced:
        stored.update(result.stored)
        duplicates.update(result.duplicates)
        nulls.update(result.nulls)
    books = balance(run, files, stored, duplicates, rejected.num_rows)
    digests = {(member_folder(Path(), name) / leaf.path).as_posix(): leaf for name in MEMBERS for leaf in _leaves(kept, name)}
    progress("commit", 1, COMMIT_STEPS, 0)
    _finish_catalogs(run, kept)
    again = [carried.duplicates] if carried else []
    again += [read_arrow(pixel_file(run.work, result.pixel, "duplicates.arrow")) for result in kept if result.duplicates]
    schema = duplicates_schema(run.settings.schema).to_arrow()
    dropped = by_row(pa.concat_tables([schema.empty_table(), *(table.cast(schema) for table in again)]))
    for name, table in (("wide_objects.parquet", wide), ("duplicates.parquet", dropped), (DENSITY_FILE, density)):
        digests[name] = write_leaf(table, run.version, name)
    accounting = total(files, books) | {"objects": sum(leaf.rows for leaf in _leaves(kept, "objects"))}
    accounting |= _reference_total(run, kept, accounting["stored"])
    more = {"margin_arcsec": run.settings.survey.store.margin_arcsec, "wide_objects": wide.num_rows}
    more |= {"accounting": accounting, "nulls": dict(nulls)}
    more |= {"reference_sha256": list(reference), "parent": carried.parent if carried else None}
    return publish_version(run, files, books, rejected, digests, more, progress)


def publish_version(
    run: Run,
    files: Mapping[int, FileRecord],
    books: Mapping[int, tuple[int, int]],
    rejected: pa.Table,
    digests: dict[str, Leaf],
    more: Mapping[str, Any],
    progress: Progress,
) -> Collection:
    """Write observations, rejected rows, the files set aside and the manifest with ``more`` in it; then publish the version.

    ``digests`` are the leaves written so far, by path below the version.
    """
    progress("commit", 2, COMMIT_STEPS, 0)
    for name, table in (("observations", _observations(run, files, books)), ("rejected", rejected)):
        digests[f"{name}.parquet"] = write_leaf(table, run.version, f"{name}.parquet")
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
    run: Run, files: Mapping[int, FileRecord], stored: Mapping[int, int], duplicates: Mapping[int, int], listed: int
) -> dict[int, tuple[int, int]]:
    """Return rows stored and rejected by observation id, once every row read is one or the other.

    ``stored`` and ``duplicates`` are counts by rank of the observation; duplicates are rejected beside what a file's record says.

    Raises
    ------
    AccountingError
        If a row is lost or doubled, or a rejected row is not listed.
    """
    books = {}
    for observation_id, rank in zip(run.observations["observation_id"].to_pylist(), run.ranks.tolist(), strict=True):
        entry = files[observation_id]
        kept, lost = stored.get(rank, 0), entry.rejected + duplicates.get(rank, 0)
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


def gather_rejected(paths: Sequence[Path], tables: Sequence[pa.Table] = ()) -> pa.Table:
    """Return the rejected rows of all tasks, and those of ``tables``, by observation and row."""
    return by_row(pa.concat_tables([*tables, *map(read_arrow, paths)]))


def by_row(rows: pa.Table) -> pa.Table:
    """Return rows by observation and row."""
    return rows.take(np.lexsort((rows["source_row"].to_numpy(), rows["observation_id"].to_numpy())))


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
                path.parent.mkdir(parents=True, exist_ok=True)
                os.link(run.version / "objects" / "objects_id" / part.path, path)
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
