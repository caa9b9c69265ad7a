"""Ingest, first stage: read each file once, apply the survey's rules, sort along the sky, leave one run a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.grouping import claimed_by_reference, row_keys
from scalable.errors import InputError, ScalableError
from scalable.io.drivers import reader_for
from scalable.io.reader import Source
from scalable.io.rules import WORK_PREFIX, apply_rules, column_of_floats, factor, stored_schema
from scalable.io.runs import flat, read_json, take_rows, write_arrow, write_json
from scalable.kernels.partition import boundaries, boxes, bucket_of, unit_vectors
from scalable.schema import Column, Schema
from scalable.sky.healpix import to_pixels
from scalable.sky.pixel import MAX_ORDER
from scalable.survey import Survey

CELL_ORDER = 10
"""Order at which rows are counted for the plan (206 arcsec)."""

WORK_COLUMNS = ("_healpix_29", f"{WORK_PREFIX}ra", f"{WORK_PREFIX}dec", f"{WORK_PREFIX}observation", "object_id", "source_row")
"""What a run holds beside the stored columns: pixel and position [deg] of the detection, rank of its observation, id, row."""

REJECTED = pa.schema(
    [
        ("path", pa.string()),
        ("observation_id", pa.int64()),
        ("source_row", pa.int64()),
        ("object_id", pa.int64()),
        ("reason", pa.string()),
        ("column", pa.string()),
        ("value", pa.string()),
    ]
)


@dataclass(frozen=True)
class Batch:
    """Files that one task reads; ``ranks`` are the places of their observations in canonical order (band, MJD, id)."""

    name: str
    sources: tuple[Source, ...]
    ranks: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Settings:
    """What every task of one ingest needs to know."""

    survey: Survey
    schema: Schema
    work: str
    buckets: int


@dataclass
class FileRecord:
    """What became of one file: its rows and digests, or the reason why it is set aside."""

    observation_id: int
    path: str
    rows: int = 0
    size_bytes: int = 0
    sha256: str = ""
    header_digest: str = ""
    rejected: int = 0
    reason: str = ""


@dataclass
class MapRecord:
    """What one map task did."""

    name: str
    files: list[FileRecord] = field(default_factory=list)
    first: int = 0
    last: int = 0
    rows: int = 0


def map_batch(batch: Batch, settings: Settings) -> MapRecord:
    """Read the files of a batch and write its run, its counts by cell and its boxes by object; skipped if done before."""
    folder = Path(settings.work) / "map"
    done = folder / f"{batch.name}.json"
    if done.exists():
        return load_record(done)
    record = MapRecord(batch.name)
    kept: list[pa.Table] = []
    rejected: list[pa.Table] = []
    for source, rank in zip(batch.sources, batch.ranks, strict=True):
        entry = FileRecord(source.observation_id, source.name)
        try:
            good, bad = _read_file(source, rank, settings, entry)
        except (ScalableError, OSError) as error:
            # Paths below the root, so that a store does not depend on where its input lay.
            reason = (str(error) or type(error).__name__).replace(f"{settings.survey.root}/", "")
            entry = FileRecord(source.observation_id, source.name, reason=reason)
        else:
            kept += good
            rejected += bad
        record.files.append(entry)
    rows = pa.concat_tables(kept) if kept else _empty(settings.schema)
    rows = take_rows(rows, np.argsort(flat(rows, "_healpix_29")))
    pixels = flat(rows, "_healpix_29")
    record.rows = len(pixels)
    if record.rows:
        record.first, record.last = int(pixels[0]), int(pixels[-1])
    cells, counts = np.unique(pixels >> 2 * (MAX_ORDER - CELL_ORDER), return_counts=True)
    write_arrow(rows, folder / f"{batch.name}.run.arrow")
    write_arrow(pa.table({"cell": cells, "rows": counts}), folder / f"{batch.name}.cells.arrow")
    # Without ids of the survey every row is an object of its own here, and nobody asks for its box.
    boxed = rows if settings.survey.grouping.by == "id" else rows.slice(0, 0)
    write_arrow(_boxes(boxed, settings.buckets), folder / f"{batch.name}.boxes.arrow")
    write_arrow(pa.concat_tables([REJECTED.empty_table(), *rejected]), folder / f"{batch.name}.rejected.arrow")
    # The record is written last: it says that everything before it is whole.
    write_json(done, asdict(record))
    return record


def load_record(path: Path) -> MapRecord:
    """Read back what a finished task said."""
    value: dict[str, Any] = read_json(path)
    return MapRecord(**{**value, "files": [FileRecord(**entry) for entry in value["files"]]})


def _read_file(source: Source, rank: int, settings: Settings, entry: FileRecord) -> tuple[list[pa.Table], list[pa.Table]]:
    """Read one file to the end before anything of it counts: a file is stored whole or not at all."""
    survey = settings.survey
    reader = reader_for(survey.files.format)
    info = reader.describe(source)
    found = stored_schema(info.schema, survey.columns, path=source.path)
    _same_columns(found, settings.schema, source)
    digest = hashlib.sha256()
    kept, rejected = [], []
    for block in reader.scan(source, columns=info.schema.names, digest=digest):
        table = apply_rules(block, found, survey.columns).select(settings.schema.names)
        good, bad = _locate(table, source, rank, survey, first_row=entry.rows)
        if survey.grouping.by == "reference":
            good = claimed_by_reference(good, survey.grouping, Path(settings.work))
        kept.append(good)
        rejected.append(bad)
        entry.rows += block.num_rows
        entry.rejected += bad.num_rows
    entry.sha256 = digest.hexdigest()
    entry.header_digest = info.header_digest
    entry.size_bytes = Path(source.path).stat().st_size
    return kept, rejected


def _same_columns(found: Schema, wanted: Schema, source: Source) -> None:
    """Refuse a file whose columns differ from the survey's others: neither may be lost silently."""
    types = {column.name: (column.dtype, column.unit) for column in wanted}
    for column in found:
        if column.name not in types:
            raise InputError(f"{source.path}: HDU {source.hdu} has a column {column.name!r} that the other files have not")
        if (column.dtype, column.unit) != types[column.name]:
            here, elsewhere = (
                f"{dtype} [{unit}]".replace(" []", "") for dtype, unit in ((column.dtype, column.unit), types[column.name])
            )
            raise InputError(f"{source.path}: HDU {source.hdu} column {column.name!r} is {here}, elsewhere {elsewhere}")
    for name in wanted.names:
        if name not in found:
            raise InputError(f"{source.path}: HDU {source.hdu} has no column {name!r}, which the other files have")


def _locate(table: pa.Table, source: Source, rank: int, survey: Survey, *, first_row: int) -> tuple[pa.Table, pa.Table]:
    """Add id, row number, position and pixel to a block; rows without an id or a position are rejected, with the reason."""
    rows = np.arange(first_row, first_row + table.num_rows, dtype=np.int64)
    ra_column, dec_column = (survey.column_of(role) for role in ("ra", "dec"))
    id_column = survey.column_of("object_id") if survey.grouping.by == "id" else ""
    ids = integer_ids(table[id_column], source, id_column) if id_column else pa.array(row_keys(source, rows))
    ra = degrees(table, ra_column, source)
    dec = degrees(table, dec_column, source)
    reasons = np.full(len(rows), "", dtype=object)
    columns = np.full(len(rows), "", dtype=object)
    # The pole in single-precision radians is a hair beyond 90 degrees.
    dec = np.where(np.abs(dec) <= 90.0 * (1 + 2.0**-23), np.clip(dec, -90.0, 90.0), dec)
    problems = (
        (dec_column, "declination outside -90 to 90 degrees", ~(np.abs(dec) <= 90.0)),
        (ra_column, "right ascension is no number or far outside 0 to 360 degrees", ~(np.abs(ra) <= 720.0)),
        (dec_column, "no declination", np.isnan(dec)),
        (ra_column, "no right ascension", np.isnan(ra)),
        (id_column, "no object id", ids.is_null().to_numpy(zero_copy_only=False)),
    )
    for column, reason, where in problems:
        reasons[where], columns[where] = reason, column
    bad = reasons != ""
    keys = ids.fill_null(0).to_numpy(zero_copy_only=False)
    rejected = REJECTED.empty_table()
    if bad.any():
        values = [str(table[column][int(row)].as_py()) for row, column in zip(np.flatnonzero(bad), columns[bad], strict=True)]
        lost = ids.filter(pa.array(bad)) if id_column else pa.nulls(int(bad.sum()), pa.int64())
        rejected = rejection(source, rows[bad], lost, reasons[bad], columns[bad], values)
        good = np.flatnonzero(~bad)
        table, rows, keys, ra, dec = take_rows(table, good), rows[good], keys[good], ra[good], dec[good]
    pixels = to_pixels(ra, dec) if len(ra) else np.zeros(0, dtype=np.int64)
    ranks = np.full(len(rows), rank, dtype=np.int32)
    work = dict(zip(WORK_COLUMNS, (pixels, ra, dec, ranks, keys.astype(np.int64), rows), strict=True))
    located = pa.table({**work, **dict(zip(table.column_names, table.columns, strict=True))})
    return located, rejected


def rejection(source: Source, rows: Any, ids: Any, reasons: Any, columns: Any, values: Any) -> pa.Table:
    """Return rejected rows of one file in the form that accounting keeps."""
    n = len(rows)
    columns = [[source.name] * n, [source.observation_id] * n, rows, ids, list(reasons), list(columns), list(values)]
    return pa.table(columns, schema=REJECTED)


def integer_ids(column: pa.ChunkedArray, source: Source, name: str) -> pa.Array:
    """Return a column of object ids as 64-bit integers; nulls stay."""
    try:
        return pc.cast(column.combine_chunks(), pa.int64())
    except pa.ArrowException as error:
        raise InputError(
            f"{source.path}: HDU {source.hdu} column {name!r}: object ids must be whole numbers that fit 64 bits ({error})"
        ) from error


def degrees(table: pa.Table, name: str, source: Source) -> NDArray[np.float64]:
    """Return an angle column in degrees, float64, NaN where it is null; degrees are assumed where it has no unit."""
    unit = Column.from_field(table.schema.field(name)).unit
    try:
        values = column_of_floats(table[name]).combine_chunks().to_numpy(zero_copy_only=False)
    except pa.ArrowException as error:
        place = f"{source.path}: HDU {source.hdu} column {name!r}"
        raise InputError(f"{place} is {table[name].type}; a position must be one number per row") from error
    return values * factor(unit or "deg", "deg", name)


def _boxes(rows: pa.Table, buckets: int) -> pa.Table:
    """Return the Cartesian box of every object in this run, sorted by bucket and id: what the spread check needs."""
    ids = flat(rows, "object_id")
    by_id = np.argsort(ids)
    offsets = boundaries(ids[by_id])
    vectors = unit_vectors(flat(rows, "_work_ra")[by_id], flat(rows, "_work_dec")[by_id])
    box = boxes(vectors, offsets)
    ids = ids[by_id][offsets[:-1]]
    bucket = bucket_of(ids, buckets)
    order = np.argsort(bucket, kind="stable")
    names = ("x0", "y0", "z0", "x1", "y1", "z1")
    return pa.table({"bucket": bucket[order], "object_id": ids[order]} | {n: box[order, i] for i, n in enumerate(names)})


def _empty(schema: Schema) -> pa.Table:
    types = (pa.int64(), pa.float64(), pa.float64(), pa.int32(), pa.int64(), pa.int64())
    work = [pa.field(name, dtype) for name, dtype in zip(WORK_COLUMNS, types, strict=True)]
    return pa.schema([*work, *schema.to_arrow()]).empty_table()


def make_batches(sources: list[Source], ranks: list[int], *, batch_bytes: int) -> Iterator[Batch]:
    """Bundle neighbouring files up to ``batch_bytes``: one task per file would drown in overhead."""
    waiting: list[tuple[Source, int]] = []
    size = 0
    for source, rank in zip(sources, ranks, strict=True):
        path = Path(source.path)
        bytes_here = path.stat().st_size if path.exists() else 0
        if waiting and size + bytes_here > batch_bytes:
            yield _batch(waiting, size)
            waiting, size = [], 0
        waiting.append((source, rank))
        size += bytes_here
    if waiting:
        yield _batch(waiting, size)


def _batch(members: list[tuple[Source, int]], size: int) -> Batch:
    name = f"{members[0][0].observation_id}-{members[-1][0].observation_id}"
    return Batch(name, tuple(source for source, _ in members), tuple(rank for _, rank in members), size)
