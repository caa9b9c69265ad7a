"""Ingest of tables without positions: each file is streamed once into blocks of rows; the same books, the same commit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scalable.catalog.collection import REJECTED, Collection
from scalable.catalog.ingest_base import stored_files
from scalable.catalog.ingest_commit import (
    COMMIT_STEPS,
    Progress,
    Run,
    balance,
    parent_of,
    publish_version,
    total,
    write_rejected,
)
from scalable.catalog.ingest_map import Batch, FileRecord, Settings, TaskRecord, rejection, scan_file, set_aside
from scalable.cluster import run_tasks
from scalable.errors import ScalableError
from scalable.io.atomic import link
from scalable.io.blocks import finish_blocks
from scalable.io.layout import META_KEY
from scalable.io.parquet import Leaf, cut_blocks, known_leaf, write_leaf
from scalable.io.reader import Source
from scalable.io.runs import read_json, write_arrow, write_json
from scalable.schema import Column, Schema


@dataclass
class RowsRecord(TaskRecord):
    """What one map task did, with the blocks of each file by observation id, in the order of its rows."""

    blocks: dict[int, list[Leaf]] = field(default_factory=dict)
    nulls: dict[str, int] = field(default_factory=dict)


def rows_schema(source: Schema) -> Schema:
    """Return the columns of a block: where the row comes from, then everything the source gave."""
    keys = (
        Column("observation_id", pa.int64(), role="observation_id", ucd="obs.image", description="Row of the observations"),
        Column("source_row", pa.int64(), ucd="meta.record", description="Row in the source file, from 0"),
    )
    return Schema(keys + tuple(replace(c, role="value") if c.role == "observation_id" else c for c in source))


def map_rows(batch: Batch, settings: Settings) -> RowsRecord:
    """Stream the files of a batch into blocks; skipped if done before. Never holds more than one block and what fills it."""
    folder, rows = Path(settings.work) / "map", Path(settings.work) / "version" / "rows"
    done = folder / f"{batch.name}.json"
    if done.exists() and _whole(record := _load(done), rows):
        return record
    record, nulls = RowsRecord(batch.name), Counter[str]()
    rejected = [REJECTED.empty_table()]
    for source in batch.sources:
        entry, bad = FileRecord(source.observation_id, source.name), list[pa.Table]()
        # A killed task may have left blocks that this one does not write.
        _remove(rows, source)
        blocks, empty = list[Leaf](), Counter[str]()
        tables = cut_blocks(_stored_rows(source, settings, entry, bad), block_rows(settings))
        while True:
            try:
                table = next(tables, None)
            except (ScalableError, OSError) as error:
                # A file is stored whole or not at all. That a block cannot be written is no fault of the file, and ends the run.
                _remove(rows, source)
                entry, blocks, bad = set_aside(source, error, settings.survey, entry), [], []
                empty.clear()
                break
            if table is None:
                break
            empty.update({name: table[name].null_count for name in settings.schema.names if table[name].null_count})
            blocks.append(write_leaf(table, rows, f"{source.observation_id}-{len(blocks):05d}.parquet"))
        record.files.append(entry)
        record.blocks[source.observation_id] = blocks
        record.rows += sum(block.rows for block in blocks)
        nulls.update(empty)
        rejected += bad
    record.nulls = dict(nulls)
    write_arrow(pa.concat_tables(rejected), folder / f"{batch.name}.rejected.arrow")
    # The record is written last: it says that everything before it is whole.
    _save(done, record)
    return record


def block_rows(settings: Settings) -> int:
    """Return how many rows a full block holds: as many as fit the size of a leaf, whatever blocks the reader gives."""
    return max(1, int(settings.survey.store.leaf_mb * 1e6 / rows_schema(settings.schema).row_bytes))


def link_rows(before: Collection, run: Run) -> RowsRecord:
    """Link the blocks of a version into the new one; returns the record of a task that would have written them."""
    files = stored_files(before)
    record = RowsRecord("", files=list(files.values()), blocks={number: [] for number in files})
    entries = [entry for entry in before.manifest["files"] if entry["path"].startswith("rows/") and "rows" in entry]
    groups = [entries[i : i + 64] for i in range(0, len(entries), 64)]
    nulls = Counter[str]()
    for blocks in run_tasks(link_blocks, groups, str(before.path), str(run.version)):
        for block, empty in blocks:
            record.blocks[int(block.path.split("-")[0])].append(block)
            nulls.update({name: empty[name] for name in run.settings.schema.names if empty[name]})
    record.nulls = dict(nulls)
    return record


def link_blocks(entries: Sequence[dict[str, Any]], before: str, version: str) -> list[tuple[Leaf, dict[str, int]]]:
    """Link blocks of one version into another; nothing of them is read but footers."""
    found = []
    for entry in entries:
        new = Path(version) / entry["path"]
        new.unlink(missing_ok=True)
        link(Path(before) / entry["path"], new)
        name = entry["path"].removeprefix("rows/")
        found.append(known_leaf(new.parent, name, size_bytes=entry["bytes"], sha256=entry["sha256"]))
    return found


def commit_rows(run: Run, records: Sequence[RowsRecord], *, progress: Progress, before: Collection | None = None) -> Collection:
    """Balance the books, write the metadata of the blocks, and publish the version by one rename.

    Parameters
    ----------
    run : Run
        The ingest.
    records : sequence of RowsRecord
        What its tasks wrote.
    progress : callable
        Called as steps are done.
    before : Collection, optional
        The version that is added to: its blocks are linked.

    Raises
    ------
    AccountingError
        If a single row is lost or doubled.
    """
    progress("commit", 0, COMMIT_STEPS, 0)
    survey = run.settings.survey
    rejected = write_rejected(run, [record.name for record in records], before)
    records = [*([link_rows(before, run)] if before else []), *records]
    files = {entry.observation_id: entry for record in records for entry in record.files}
    of_file = {observation: blocks for record in records for observation, blocks in record.blocks.items()}
    ids = run.observations["observation_id"].to_pylist()
    stored = {rank: sum(b.rows for b in of_file[i]) for i, rank in zip(ids, run.ranks.tolist(), strict=True)}
    books = balance(run, files, stored, {}, rejected.rows)
    blocks = [block for observation in ids for block in of_file[observation]]
    meta = {META_KEY: json.dumps({"bands": list(survey.bands), "survey": survey.name}).encode()}
    schema = rows_schema(run.settings.schema).to_arrow().with_metadata(meta)
    finish_blocks(run.version / "rows", blocks, schema=schema)
    nulls = Counter[str]()
    for record in records:
        nulls.update(record.nulls)
    more = {"accounting": total(files, books), "nulls": dict(nulls), "parent": parent_of(before) if before else None}
    digests = {f"rows/{block.path}": block for block in blocks} | {rejected.path: rejected}
    return publish_version(run, files, books, digests, more, progress)


def _stored_rows(source: Source, settings: Settings, entry: FileRecord, rejected: list[pa.Table]) -> Iterator[pa.Table]:
    """Yield the rows of a file as they are stored; those without the id that they should have go to ``rejected``."""
    schema = rows_schema(settings.schema)
    ids = [name for name, rule in settings.survey.columns.items() if rule.role == "object_id"]
    for table in scan_file(source, settings, entry):
        numbers = np.arange(entry.rows, entry.rows + table.num_rows, dtype=np.int64)
        for name in ids:
            bad = table[name].is_null().to_numpy()
            if n := int(np.count_nonzero(bad)):
                reasons, nobody = ["no object id"] * n, pa.nulls(n, pa.int64())
                rejected.append(rejection(source, numbers[bad], nobody, reasons, [name] * n, ["None"] * n))
                entry.rejected += n
                table, numbers = table.filter(pa.array(~bad)), numbers[~bad]
        origin = [np.full(len(numbers), source.observation_id, dtype=np.int64), numbers]
        yield pa.table([*origin, *table.columns], schema=schema.to_arrow())


def _remove(rows: Path, source: Source) -> None:
    for path in rows.glob(f"{source.observation_id}-*.parquet"):
        path.unlink()


def _whole(record: RowsRecord, rows: Path) -> bool:
    """Return whether the blocks of a finished task are still there: a killed clean-up may have taken them."""
    paths = [(rows / block.path, block.size_bytes) for blocks in record.blocks.values() for block in blocks]
    return all(path.exists() and path.stat().st_size == size for path, size in paths)


def _save(path: Path, record: RowsRecord) -> None:
    blocks = {str(observation): [block.to_json() for block in blocks] for observation, blocks in record.blocks.items()}
    write_json(path, {**asdict(replace(record, blocks={})), "blocks": blocks})


def _load(path: Path) -> RowsRecord:
    value = read_json(path)
    blocks = {int(observation): [Leaf.from_json(block) for block in found] for observation, found in value["blocks"].items()}
    return RowsRecord(**{**value, "blocks": blocks, "files": [FileRecord(**entry) for entry in value["files"]]})
