"""Ingest, first stage: read each file once, apply the survey's rules, sort along the sky, leave bounded runs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.collection import REJECTED
from scalable.catalog.grouping import claimed_by_reference, row_keys
from scalable.errors import InputError, ScalableError
from scalable.io.drivers import reader_for
from scalable.io.reader import Source
from scalable.io.remote import local_copy
from scalable.io.rules import WORK_PREFIX, apply_rules, column_of_floats, factor, stored_schema
from scalable.io.runs import flat, read_json, take_rows, write_arrow, write_json
from scalable.kernels.partition import boundaries, boxes, bucket_of, unit_vectors
from scalable.schema import Column, Schema
from scalable.sky.healpix import to_pixels
from scalable.sky.pixel import MAX_ORDER
from scalable.survey.description import Survey

CELL_ORDER = 10
"""Order at which rows are counted for the plan (206 arcsec)."""
BLOCK_BYTES = 32 << 20
"""Input that is decoded at a time."""
RUN_BYTES = 192 << 20
"""Decoded rows that a run holds at most; a larger file leaves several, so that memory does not grow with it."""

WORK_COLUMNS = ("_healpix_29", f"{WORK_PREFIX}ra", f"{WORK_PREFIX}dec", f"{WORK_PREFIX}observation", "object_id", "source_row")
"""What a run holds beside the stored columns: pixel and position [deg] of the detection, rank of its observation, id, row."""


@dataclass(frozen=True)
class Batch:
    """Files that one task reads; ``ranks`` are the places of their observations in canonical order (band, MJD, id)."""

    name: str
    sources: tuple[Source, ...]
    ranks: tuple[int, ...]
    size_bytes: int

    def __str__(self) -> str:
        """Name the files."""
        names = [source.name for source in self.sources]
        return f"{', '.join(names[:3])}{f' and {len(names) - 3} more files' if len(names) > 3 else ''} ({self.size_bytes} bytes)"


@dataclass(frozen=True)
class Settings:
    """What every task of one ingest needs to know."""

    survey: Survey
    schema: Schema
    work: str
    buckets: int


@dataclass
class FileRecord:
    """What became of one file: its rows, digests and when it was last written, or the reason why it is set aside."""

    observation_id: int
    path: str
    rows: int = 0
    size_bytes: int = 0
    sha256: str = ""
    header_digest: str = ""
    rejected: int = 0
    reason: str = ""
    modified_ns: int = 0


@dataclass(frozen=True)
class RunInfo:
    """One run: the stem of its files, and the first and last order-29 pixel in it."""

    name: str
    first: int
    last: int
    rows: int


@dataclass
class TaskRecord:
    """What became of the files of one batch, and how many of their rows are kept."""

    name: str
    files: list[FileRecord] = field(default_factory=list)
    rows: int = 0


@dataclass
class MapRecord(TaskRecord):
    """What one map task left for the reduce stage."""

    runs: list[RunInfo] = field(default_factory=list)


def map_batch(batch: Batch, settings: Settings) -> MapRecord:
    """Read the files of a batch and leave its runs, their counts by cell and boxes by object; skipped if done before."""
    folder = Path(settings.work) / "map"
    done = folder / f"{batch.name}.json"
    if done.exists():
        return load_record(done)
    record = MapRecord(batch.name)
    runs = _Runs(batch.name, settings)
    for source, rank in zip(batch.sources, batch.ranks, strict=True):
        entry = FileRecord(source.observation_id, source.name)
        runs.begin_file()
        blocks = _read_file(source, rank, settings, entry)
        while True:
            try:
                block = next(blocks, None)
            except (ScalableError, OSError) as error:
                entry = set_aside(source, error, settings.survey, entry)
                runs.drop_file()
                break
            if block is None:
                break
            # That a run cannot be written is no fault of the file, and ends the task.
            runs.add(*block)
        record.files.append(entry)
    record.runs = runs.finish()
    record.rows = sum(run.rows for run in record.runs)
    # The record is written last: it says that everything before it is whole.
    write_json(done, asdict(record))
    return record


class _Runs:
    """The runs that one map task writes: rows gather in memory up to `RUN_BYTES`, then go to disk, sorted along the sky.

    A file is stored whole or not at all: rows of the file being read never share a run with others that went to disk before
    it was read to its end.
    """

    def __init__(self, name: str, settings: Settings) -> None:
        self._name, self._settings = name, settings
        self._rows: list[pa.Table] = []
        self._rejected: list[pa.Table] = []
        self._written: list[RunInfo] = []
        self._mark = (0, 0, 0)
        self._bytes = self._bytes_before = 0

    def begin_file(self) -> None:
        """Remember where the next file begins."""
        self._mark = (len(self._rows), len(self._rejected), len(self._written))
        self._bytes_before = self._bytes

    def drop_file(self) -> None:
        """Forget the rows of the file that began last."""
        rows, rejected, written = self._mark
        del self._rows[rows:], self._rejected[rejected:], self._written[written:]
        self._bytes = self._bytes_before

    def add(self, rows: pa.Table, rejected: pa.Table) -> None:
        """Take the next rows of a file."""
        self._rows.append(rows)
        self._rejected.append(rejected)
        self._bytes += rows.nbytes + rejected.nbytes
        if self._bytes > RUN_BYTES:
            before, before_rejected, _ = self._mark
            if before or before_rejected:
                tail, tail_rejected = self._rows[before:], self._rejected[before_rejected:]
                self._rows, self._rejected = self._rows[:before], self._rejected[:before_rejected]
                mine = self._bytes - self._bytes_before
                self._write()
                self._rows, self._rejected, self._bytes = tail, tail_rejected, mine
                self._mark, self._bytes_before = (0, 0, len(self._written)), 0
            else:
                self._write()

    def finish(self) -> list[RunInfo]:
        """Write what is left and return the runs; a batch leaves at least one, which may be empty."""
        if self._rows or self._rejected or not self._written:
            self._write()
        return self._written

    def _write(self) -> None:
        folder, name = Path(self._settings.work) / "map", f"{self._name}.{len(self._written)}"
        rows = pa.concat_tables(self._rows) if self._rows else _empty(self._settings.schema)
        self._rows = []
        rows = take_rows(rows, np.argsort(flat(rows, "_healpix_29")), nulls=False)
        self._written.append(write_run(folder, name, rows, self._settings))
        write_arrow(pa.concat_tables([REJECTED.empty_table(), *self._rejected]), folder / f"{name}.rejected.arrow")
        self._rejected = []
        self._bytes = 0


def write_run(folder: Path, name: str, rows: pa.Table, settings: Settings) -> RunInfo:
    """Write a run sorted along the sky, its counts by cell and its boxes by object."""
    pixels = flat(rows, "_healpix_29")
    cells, counts = np.unique(pixels >> 2 * (MAX_ORDER - CELL_ORDER), return_counts=True)
    write_arrow(rows, folder / f"{name}.run.arrow")
    write_arrow(pa.table({"cell": cells, "rows": counts}), folder / f"{name}.cells.arrow")
    # Without ids of the survey every row is an object of its own here, and nobody asks for its box.
    boxed = rows if settings.survey.grouping.by == "id" else rows.slice(0, 0)
    write_arrow(_boxes(boxed, settings.buckets), folder / f"{name}.boxes.arrow")
    return RunInfo(name, int(pixels[0]), int(pixels[-1]), len(pixels)) if len(pixels) else RunInfo(name, 0, 0, 0)


def load_record(path: Path) -> MapRecord:
    """Read back what a finished task said."""
    value: dict[str, Any] = read_json(path)
    files, runs = [FileRecord(**entry) for entry in value["files"]], [RunInfo(**entry) for entry in value["runs"]]
    return MapRecord(value["name"], files, value["rows"], runs)


def _read_file(source: Source, rank: int, settings: Settings, entry: FileRecord) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yield the rows of one file to keep and those to reject, block by block."""
    for table in scan_file(source, settings, entry):
        good, bad = _locate(table, source, rank, settings.survey, first_row=entry.rows)
        if settings.survey.grouping.by == "reference":
            good = claimed_by_reference(good, settings.survey.grouping, Path(settings.work))
        entry.rejected += bad.num_rows
        yield good, bad


def scan_file(source: Source, settings: Settings, entry: FileRecord) -> Iterator[pa.Table]:
    """Yield a file's rows, block by block, under the survey's rules.

    ``entry.rows`` counts the rows of the blocks before the one in use; its digests are there when all are yielded.
    """
    if source.problem:
        raise InputError(source.problem)
    survey = settings.survey
    reader = reader_for(survey.files.format)
    # Before the first byte is read: what changes later is seen to have changed.
    entry.modified_ns = modified_ns(source)
    with local_copy(source.path, Path(settings.work) / "fetched") as path:
        before, here = _state(path), replace(source, path=path)
        info = reader.describe(here)
        found = stored_schema(info.schema, survey.columns, path=source.path)
        _same_columns(found, settings.schema, source)
        digest = hashlib.sha256()
        for block in reader.scan(here, columns=info.schema.names, block_bytes=BLOCK_BYTES, digest=digest):
            yield apply_rules(block, found, survey.columns).select(settings.schema.names)
            entry.rows += block.num_rows
        if before is None or _state(path) != before:
            raise InputError(f"{source.path}: was changed while it was read; run again when it is complete")
    entry.sha256 = digest.hexdigest()
    entry.header_digest = info.header_digest
    entry.size_bytes = before[0]


def _state(path: str) -> tuple[int, int, int] | None:
    """Return size, time of change and inode of a file: one that is written to or replaced keeps not all three."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def set_aside(source: Source, error: Exception, survey: Survey, entry: FileRecord | None = None) -> FileRecord:
    """Return the record of a file that cannot be used, with the reason; ``entry`` may know its time before it was read."""
    # Paths below the root, so that a store does not depend on where its input lay.
    reason = (str(error) or type(error).__name__).replace(f"{survey.root}/", "")
    return FileRecord(
        source.observation_id, source.name, reason=reason, modified_ns=(entry and entry.modified_ns) or modified_ns(source)
    )


def modified_ns(source: Source) -> int:
    """Return when a file was last written [ns since 1970], 0 where there is none."""
    path = Path(source.path)
    return path.stat().st_mtime_ns if path.exists() else 0


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
    ra, dec = positions(table, survey, source)
    reasons = np.full(len(rows), "", dtype=object)
    columns = np.full(len(rows), "", dtype=object)
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
    return located(table, ra, dec, np.full(len(rows), rank, dtype=np.int32), keys.astype(np.int64), rows), rejected


def located(
    table: pa.Table,
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    ranks: NDArray[np.int32],
    ids: NDArray[np.int64],
    rows: NDArray[np.int64],
) -> pa.Table:
    """Return stored columns with `WORK_COLUMNS` before them, as a run holds them."""
    pixels = to_pixels(ra, dec) if len(ra) else np.zeros(0, dtype=np.int64)
    work = dict(zip(WORK_COLUMNS, (pixels, ra, dec, ranks, ids, rows), strict=True))
    return pa.table({**work, **dict(zip(table.column_names, table.columns, strict=True))})


def positions(table: pa.Table, survey: Survey, source: Source) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return right ascension and declination of every row [deg], from the survey's columns; NaN where they are null."""
    ra, dec = (degrees(table, survey.column_of(role), source) for role in ("ra", "dec"))
    # The pole in single-precision radians is a hair beyond 90 degrees.
    return ra, np.where(np.abs(dec) <= 90.0 * (1 + 2.0**-23), np.clip(dec, -90.0, 90.0), dec)


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
    order = np.lexsort((ids, bucket_of(ids, buckets))) if buckets > 1 else np.argsort(ids)
    offsets = boundaries(ids[order])
    # Sorted by bucket before there are boxes: to sort these would hold them twice.
    box = boxes(unit_vectors(flat(rows, "_work_ra")[order], flat(rows, "_work_dec")[order]), offsets)
    ids = ids[order[offsets[:-1]]]
    names = ("x0", "y0", "z0", "x1", "y1", "z1")
    return pa.table({"bucket": bucket_of(ids, buckets), "object_id": ids} | {n: box[:, i] for i, n in enumerate(names)})


def _empty(schema: Schema) -> pa.Table:
    types = (pa.int64(), pa.float64(), pa.float64(), pa.int32(), pa.int64(), pa.int64())
    work = [pa.field(name, dtype) for name, dtype in zip(WORK_COLUMNS, types, strict=True)]
    return pa.schema([*work, *schema.to_arrow()]).empty_table()


def make_batches(
    sources: Sequence[Source], ranks: Sequence[int], sizes: Mapping[str, int], *, batch_bytes: int
) -> Iterator[Batch]:
    """Bundle neighbouring files, of ``sizes`` by path, up to ``batch_bytes``: one task per file would drown in overhead."""
    waiting: list[tuple[Source, int]] = []
    size = 0
    for source, rank in zip(sources, ranks, strict=True):
        bytes_here = sizes.get(source.path, 0)
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
