"""Where the rows of a part come from: a catalogue, files, a table, a release, or blocks of any other origin."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.collection import open_collection
from scalable.errors import ColumnError, InputError
from scalable.io.drivers import format_of, reader_for
from scalable.io.reader import Source
from scalable.io.regular import open_regular
from scalable.io.rules import apply_rules, stored_schema
from scalable.release.manifest import MANIFEST
from scalable.release.read import open_release
from scalable.schema import Column, Schema, parse_unit
from scalable.survey.tables import ColumnRule
from scalable.train.batches import BLOCK_ROWS, PART_ROWS

PART_BYTES = 64 << 20
"""Small files are read by one task until they hold so much, and large ones by one task for about so much."""

Block: TypeAlias = "pa.Table | Mapping[str, NDArray[Any]]"


@runtime_checkable
class Published(Protocol):
    """What is asked of a release: what it says of itself, and its rows in shuffled blocks, shards dealt out to workers."""

    manifest: Mapping[str, Any]
    """``columns`` lists name, dtype, unit and role of each, and whether its states lie beside it; ``shards`` their rows."""

    def blocks(
        self, columns: Sequence[str], *, split: str | None = None, seed: int = 0, worker: int = 0, workers: int = 1
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield arrays by name; the same for the same arguments."""


Origin: TypeAlias = "Catalog | Published | pa.Table | str | Path | Sequence[str | Path] | Sequence[Path] | Iterable[Block]"


class Rows(Protocol):
    """Where the tables of a part come from; frozen, cheap on the wire."""

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield tables with the named columns."""


@dataclass(frozen=True)
class CatalogRows:
    """One partition of a catalogue, leaf by leaf where it reads leaves."""

    catalog: Catalog

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the leaves."""
        if self.catalog.leaves:
            for leaf in self.catalog.leaves:
                yield self.catalog.chain.load(leaf, columns)
        else:
            yield self.catalog.select(*columns).compute(scheduler="sync")


@dataclass(frozen=True)
class FileRows:
    """Files of one format, or a run of rows of one, block by block, under null rules; ``units`` are those of the first file."""

    format: str
    sources: tuple[Source, ...]
    rules: tuple[tuple[str, ColumnRule], ...]
    units: tuple[tuple[str, str], ...]

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the blocks of each file."""
        states, reader = {f"{name}_state" for name, _ in self.rules if name in columns}, reader_for(self.format)
        for source in self.sources:
            blocks = reader.scan(source, columns=[name for name in columns if name not in states])
            yield from _ruled(_same_units(blocks, self.units, source.path), columns, self.rules, source.path)


@dataclass(frozen=True)
class TableRows:
    """A table in memory."""

    table: pa.Table

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield it."""
        yield self.table.select(list(columns))


@dataclass(frozen=True)
class BlockRows:
    """Blocks from something that gives them again and again, under null rules; ``units`` are those of the first block."""

    source: Iterable[Block]
    rules: tuple[tuple[str, ColumnRule], ...]
    units: tuple[tuple[str, str], ...]

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield the blocks."""
        states = {f"{name}_state" for name, _ in self.rules if name in columns}
        wanted = [name for name in columns if name not in states]
        blocks = _same_units((as_table(block, wanted) for block in self.source), self.units, "a block")
        yield from _ruled(blocks, columns, self.rules, "blocks")


@dataclass(frozen=True)
class ReleaseRows:
    """The shards of a release that fall to one of several workers."""

    release: Published
    split: str
    worker: int
    workers: int

    def tables(self, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Yield its blocks, joined to as many rows as a learner likes to see at once."""
        waiting: list[pa.Table] = []
        for block in self.release.blocks(columns, split=self.split or None, worker=self.worker, workers=self.workers):
            waiting.append(as_table(block, columns))
            if sum(table.num_rows for table in waiting) >= BLOCK_ROWS:
                yield pa.concat_tables(waiting)
                waiting = []
        if waiting:
            yield pa.concat_tables(waiting)


def as_table(block: Block, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a block as a table, of some columns; arrays in whatever order of bytes.

    Raises
    ------
    InputError
        If it is neither a table nor a mapping, or lacks a column.
    """
    if isinstance(block, pa.RecordBatch):
        block = pa.Table.from_batches([block])
    if not isinstance(block, pa.Table | Mapping):
        raise InputError(f"a block is a {type(block).__name__}: give tables of Arrow, or mappings of names to arrays")
    names = block.column_names if isinstance(block, pa.Table) else list(block)
    missing = [name for name in columns or () if name not in names]
    if missing:
        raise InputError(f"a block has no column {missing[0]!r} that the first one had; it has {', '.join(names)}")
    wanted = list(names if columns is None else columns)
    return block.select(wanted) if isinstance(block, pa.Table) else pa.table({name: _native(block[name]) for name in wanted})


def _native(values: Any) -> Any:
    array = values if isinstance(values, np.ma.MaskedArray) else np.asarray(values)
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def open_rows(paths: Sequence[str | Path]) -> Origin:
    """Return what paths name: the objects of a store, a HATS catalogue, a release, or files of tables.

    Raises
    ------
    StoreError
        If a folder is none of them.
    """
    if len(paths) != 1 or not (folder := Path(paths[0])).is_dir():
        return list(paths)
    if (folder / "current").exists():
        return open_collection(folder).objects
    return open_release(folder) if (folder / MANIFEST).exists() else open_catalog(folder)


def rows_of(data: Any, rules: Mapping[str, ColumnRule] | None = None, *, split: str = "") -> tuple[Schema, list[Rows]]:
    """Return the columns of anything that rows can be taken from, and its rows, in runs that one task goes through."""
    if isinstance(data, Published):
        return _rows_of_release(data, split)
    if split:
        raise InputError(f"split={split!r}: only a release has splits, not a {type(data).__name__}")
    if isinstance(data, Catalog):
        return data.columns, [CatalogRows(replace(data, partitions=(partition,))) for partition in data.partitions]
    if isinstance(data, pa.Table):
        parts = max(1, -(-data.num_rows // PART_ROWS))
        step = max(1, -(-data.num_rows // parts))
        return Schema.from_arrow(data.schema), [TableRows(data.slice(n * step, step)) for n in range(parts)]
    if isinstance(data, str | Path) or (isinstance(data, Sequence) and all(isinstance(part, str | Path) for part in data)):
        return rows_of_files(data, rules)
    return _rows_of_blocks(data, rules or {})


def origin_of(data: Any) -> str:
    """Return what rows are taken from, in words: no path of this machine."""
    if isinstance(data, Published):
        about = data.manifest
        return f"release {about.get('name')} {about.get('version')}, content {about.get('content')}"
    if isinstance(data, Catalog):
        return f"catalogue {data.title}"
    if isinstance(data, pa.Table):
        return "a table in memory"
    if isinstance(data, str | Path):
        return Path(data).name
    if isinstance(data, Sequence) and all(isinstance(part, str | Path) for part in data):
        return Path(data[0]).name + (f" and {len(data) - 1} more files" if len(data) > 1 else "")
    return "blocks"


def rows_of_files(data: Any, rules: Mapping[str, ColumnRule] | None = None) -> tuple[Schema, list[Rows]]:
    """Return the columns of files, under null rules, and their rows: runs of small files, and parts of large ones."""
    paths = [Path(data)] if isinstance(data, str | Path) else [Path(path) for path in data]
    if not paths:
        raise InputError("no file to learn from")
    kind = _format(paths[0])
    reader = reader_for(kind)
    schema = reader.describe(Source(str(paths[0]))).schema
    stored, given = _stored(schema, rules or {}, str(paths[0]))
    runs: list[list[Source]] = []
    filled = 0
    for path in paths:
        size, source = path.stat().st_size, Source(str(path))
        if size > 2 * PART_BYTES:
            rows = reader.describe(source).rows
            runs += [[part] for part in reader.cut(source, max(BLOCK_ROWS, rows * PART_BYTES // size))]
            filled = PART_BYTES
            continue
        if not runs or filled + size > PART_BYTES:
            runs.append([])
            filled = 0
        runs[-1].append(source)
        filled += size
    return stored, [FileRows(kind, tuple(run), given, _units(schema, given)) for run in runs]


def _rows_of_blocks(data: Any, rules: Mapping[str, ColumnRule]) -> tuple[Schema, list[Rows]]:
    if not isinstance(data, Iterable):
        raise InputError(
            f"no rows in a {type(data).__name__}: give a catalogue, a release, a table, paths of files, or an iterable of blocks"
        )
    first = next(iter(data), None)
    if first is None:
        raise InputError("no block to learn from")
    if iter(data) is data:
        raise InputError(
            "an iterator gives its blocks once, and learning goes through them several times: give a list of blocks, or an "
            "object whose __iter__ begins anew"
        )
    schema = Schema.from_arrow(as_table(first).schema)
    stored, given = _stored(schema, rules, "blocks")
    # Blocks of a list are in memory, and each may go to another worker.
    pieces: list[Iterable[Block]] = [(block,) for block in data] if isinstance(data, Sequence) else [data]
    return stored, [BlockRows(piece, given, _units(schema, given)) for piece in pieces]


_BESIDE = (
    Column("object_id", pa.int64(), role="object_id"),
    Column("ra", pa.float64(), role="ra", unit="deg"),
    Column("dec", pa.float64(), role="dec", unit="deg"),
    *(Column(name, pa.float64(), role="value") for name in ("weight", "outlier_class", "fold")),
)
"""What stands in every release beside the columns that its manifest describes."""


def _rows_of_release(release: Published, split: str) -> tuple[Schema, list[Rows]]:
    about = [column for column in release.manifest["columns"] if column["in"] == "rows"]
    found = []
    for column in about:
        unit, text = str(column["unit"]), str(column["description"])
        found.append(Column(column["name"], pa.float64(), role=column["role"], unit=unit, description=text))
        if column["states"]:
            found.append(Column(f"{column['name']}_state", pa.uint8(), role="value"))
    names = {column.name for column in found}
    schema = Schema((*found, *(column for column in _BESIDE if column.name not in names)))
    shards = release.manifest["shards"]
    workers = min(len(shards), -(-sum(int(shard["rows"]) for shard in shards) // PART_ROWS)) or 1
    return schema, [ReleaseRows(release, split, worker, workers) for worker in range(workers)]


def _stored(schema: Schema, rules: Mapping[str, ColumnRule], path: str) -> tuple[Schema, tuple[tuple[str, ColumnRule], ...]]:
    """Return a schema under null rules, and the rules."""
    given = {name: rule for name, rule in rules.items() if schema[name]}
    return (stored_schema(schema, given, path=path) if given else schema), tuple(given.items())


def _units(schema: Schema, rules: tuple[tuple[str, ColumnRule], ...]) -> tuple[tuple[str, str], ...]:
    """Return the units that all files must share; what a rule declares holds for each of them, whatever its header says."""
    declared = {name for name, rule in rules if rule.unit is not None}
    return tuple((column.name, column.unit) for column in schema if column.name not in declared)


def _same_units(blocks: Iterable[pa.Table], units: tuple[tuple[str, str], ...], path: str) -> Iterator[pa.Table]:
    """Yield blocks as they are, which carry the units of their own header, unless these are others than the first had."""
    first = dict(units)
    for block in blocks:
        for column in Schema.from_arrow(block.schema):
            here, there = column.unit, first.get(column.name, column.unit)
            if here != there and (parse_unit(here) is None or parse_unit(here) != parse_unit(there)):
                said = [f"in {unit}" if unit else "without unit" for unit in (here, there)]
                raise ColumnError(
                    f"{path}: {column.name} is {said[0]}, but {said[1]} in the first: convert one of them, or, where a header is "
                    "wrong, give the unit in a rule of the column (survey description)"
                )
        yield block


def _ruled(
    blocks: Iterable[pa.Table], columns: Sequence[str], rules: tuple[tuple[str, ColumnRule], ...], path: str
) -> Iterator[pa.Table]:
    mine = {name: rule for name, rule in rules if name in columns}
    for block in blocks:
        schema = stored_schema(Schema.from_arrow(block.schema), mine, path=path) if mine else None
        yield block if schema is None else apply_rules(block, schema, mine)


def _format(path: Path) -> str:
    """Return the format that the first bytes of a file speak for."""
    with open(open_regular(str(path), "table"), "rb", buffering=0) as file:
        begin = file.read(4)
    return {b"PAR1": "parquet", b"\x89HDF": "hdf5"}.get(begin) or format_of(path)
