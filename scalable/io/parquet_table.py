"""Parquet tables of others, from the footer to Arrow columns of plain types, row group by row group in bounded blocks.

What a column becomes:

======================================  ==========================================================================
in the file                             here
======================================  ==========================================================================
dictionary                              its values
large or viewed text and bytes          string, binary
half float                              float
an extension type                       what it is stored as
list views; lists, structs, maps        lists; themselves, with their items made plain alike
float, double                           themselves, NaN as null, also in lists and structs, though not in maps
everything else                         itself
======================================  ==========================================================================

The index that pandas stored is a column like others. Units, UCDs and descriptions come from the VOTable header (VOParquet);
where that says nothing, from astropy's header, and then from the metadata of the Arrow fields.

A file is never trusted with memory: a block has at most as many rows as fit ``block_bytes`` once decoded, also where the footer
declares little, as for a constant of a million rows. Texts of a dictionary are counted before they are written out. What cannot
be cut into blocks, a page, or the lists of a row, is bounded by its column chunk, and that is refused where the footer says that
it expands beyond `limits.most_expanded`.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scalable.errors import ColumnError, InputError, ScalableError, nearest
from scalable.io.ecsv_header import astropy_meanings
from scalable.io.limits import most_expanded
from scalable.io.parquet_footer import Group, read_footer, row_groups
from scalable.io.reader import Hash, Source, TableInfo
from scalable.io.regular import feed, open_regular
from scalable.io.voparquet import VOTABLE_KEY, votable_fields
from scalable.schema import Column, Schema

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 16}
"""Bytes of a decoded value; that of a text is a guess, the footer does not say how many there are."""
_BUFFER = 1 << 20
_ASTROPY_KEY = b"table_meta_yaml"
_NOT_KEYWORDS = (VOTABLE_KEY, _ASTROPY_KEY, b"ARROW:schema", b"pandas")


@dataclass(frozen=True)
class ParquetTable:
    """Reads Parquet files (`TableReader`)."""

    def describe(self, source: Source) -> TableInfo:
        """Read the footer only; ``bytes`` are those of the columns' pages once decompressed."""
        with _open(source.path) as file:
            meta = file.parquet.metadata
            keywords: dict[str, object] = {
                _text(key): _text(value) for key, value in (meta.metadata or {}).items() if key not in _NOT_KEYWORDS
            }
            size = sum(group.bytes for group in file.groups)
            return TableInfo(file.schema, meta.num_rows, size, file.footer_digest, keywords)

    def cut(self, source: Source, rows: int) -> list[Source]:
        """Return sources of whole row groups, of at least ``rows`` rows each but for the last."""
        with _open(source.path) as file:
            ends = list(accumulate(group.rows for group in file.groups))
        found, first = [], 0
        for end in ends:
            if end - first >= rows or end == ends[-1]:
                found.append(replace(source, rows=(first, end)))
                first = end
        return found or [source]

    def scan(
        self, source: Source, *, columns: Sequence[str] | None = None, block_bytes: int = 1 << 26, digest: Hash | None = None
    ) -> Iterator[pa.Table]:
        """Yield the rows in file order, of ``columns`` in the order given, in blocks of at most about ``block_bytes`` decoded.

        With ``digest``, every byte of the file has been fed to it once the iterator is exhausted; that reads the file once more,
        right behind the rows. A table without rows yields one empty block.

        Raises
        ------
        InputError
            If the file is missing, cut, corrupt, or expands beyond all measure.
        ColumnError
            If a column does not exist.
        """
        with _open(source.path) as file:
            names = file.schema.names if columns is None else list(columns)
            for name in names:
                if name not in file.schema:
                    raise ColumnError(f"{file.path}: no column {name!r}; {nearest(name, file.schema.names)}")
            schema = pa.schema([file.schema[name].to_field() for name in names])
            reader = file.with_dictionaries(names)
            rows = fed = first = 0
            begin, end = source.rows or (0, reader.metadata.num_rows)
            for number, group in enumerate(file.groups):
                first, before = first + group.rows, first
                if source.rows and (before < begin or first > end):
                    continue
                for block in _blocks(file, reader, number, schema, block_bytes):
                    rows += block.num_rows
                    yield block
                upto = min(group.end, file.size)
                feed(digest, file.path, file.descriptor, fed, upto)
                fed = max(fed, upto)
            if rows != end - begin:
                raise InputError(f"{file.path}: its footer counts {end - begin} rows, {rows} are there: corrupt, fetch it again")
            if not rows:
                yield schema.empty_table()
            feed(digest, file.path, file.descriptor, fed, file.size)


@dataclass(frozen=True)
class _File:
    """An open Parquet file; ``leaves`` holds the indices of each column's chunks in a row group."""

    path: str
    descriptor: int
    size: int
    handle: pa.NativeFile
    parquet: pq.ParquetFile
    schema: Schema
    leaves: dict[str, list[int]]
    groups: list[Group]
    footer_digest: str

    def with_dictionaries(self, names: list[str]) -> pq.ParquetFile:
        """Return a reader that leaves texts as dictionaries where the file has them so."""
        arrow = self.parquet.schema_arrow
        wanted = []
        for name in names:
            kind = arrow.field(name).type
            texts = pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_binary(kind)
            if texts and any(group.chunks[self.leaves[name][0]].coded for group in self.groups):
                wanted.append(name)
        return _parquet(self.handle, metadata=self.parquet.metadata, read_dictionary=wanted)


def _parquet(handle: pa.NativeFile, **options: Any) -> pq.ParquetFile:
    return pq.ParquetFile(handle, buffer_size=_BUFFER, pre_buffer=False, page_checksum_verification=True, **options)


@contextmanager
def _open(path: str) -> Iterator[_File]:
    """Open a file; whatever Arrow raises inside the block names the file."""
    # Arrow reads by itself, without Python's lock and copies; a path would be looked up a second time.
    with open(open_regular(path, "Parquet file"), "rb") as raw, pa.OSFile(f"/dev/fd/{raw.fileno()}") as handle:
        try:
            descriptor, size = raw.fileno(), os.fstat(raw.fileno()).st_size
            parquet = _parquet(handle)
            arrow = parquet.schema_arrow
            for name, times in Counter(arrow.names).items():
                if times > 1:
                    raise InputError(f"{path}: column {name!r} is there {times} times: rename all but one")
            leaves = _leaves(parquet)
            if list(leaves) != arrow.names:
                raise InputError(f"{path}: its Arrow schema names other columns than its Parquet schema: corrupt; fetch it again")
            footer = read_footer(descriptor, size)
            groups = row_groups(footer, len(parquet.schema.names))
            digest = hashlib.sha256(footer).hexdigest()
            yield _File(path, descriptor, size, handle, parquet, _schema(path, parquet), leaves, groups, digest)
        except ScalableError:
            raise
        except (OSError, ValueError, NotImplementedError, MemoryError, pa.ArrowException) as error:
            what = " ".join(str(error).split())
            raise InputError(f"{path}: cannot be read as Parquet ({what}): damaged or cut; fetch it again") from error


def _schema(path: str, parquet: pq.ParquetFile) -> Schema:
    votable = _said(path, parquet, VOTABLE_KEY, votable_fields)
    astropy = _said(path, parquet, _ASTROPY_KEY, astropy_meanings)
    columns = []
    for field in parquet.schema_arrow:
        arrow = {_text(key).lower(): _text(value) for key, value in (field.metadata or {}).items()}
        found = {key: arrow.get(key, "") for key in ("unit", "ucd", "description")}
        for said in (astropy.get(field.name), votable.get(field.name)):
            found = {key: getattr(said, key, "") or text for key, text in found.items()}
        dtype, shape = _plain(field.type), ""
        if pa.types.is_fixed_size_list(dtype) and field.name in astropy:
            shape = astropy[field.name].shape
        columns.append(Column(field.name, dtype, source_unit=found["unit"], shape=shape, **found))
    return Schema(tuple(columns))


def _said(path: str, parquet: pq.ParquetFile, key: bytes, parse: Callable[[bytes], dict[str, Any]]) -> dict[str, Any]:
    """Return what the document under a key of the metadata says of the columns."""
    document = (parquet.metadata.metadata or {}).get(key)
    try:
        return parse(document) if document else {}
    except ValueError as error:
        raise InputError(f"{path}: its metadata {key.decode()}: {error}; write the file without it") from error


def _leaves(parquet: pq.ParquetFile) -> dict[str, list[int]]:
    """Return the indices of the leaves below each top column, in order: a leaf's path begins with the names above it."""
    # Names may hold dots, so paths are not split: a leaf belongs to the column of which it has the whole name.
    found: dict[str, list[int]] = {}
    names, at = parquet.schema_arrow.names, 0
    for name in names:
        found[name] = []
        while at < len(parquet.schema.names) and _below(parquet.schema.column(at).path, name):
            found[name].append(at)
            at += 1
            if parquet.schema.column(at - 1).path == name:
                break
    return found if at == len(parquet.schema.names) and all(found.values()) else {}


def _below(path: str, name: str) -> bool:
    return path == name or path.startswith(f"{name}.")


def _blocks(file: _File, reader: pq.ParquetFile, group: int, schema: pa.Schema, block_bytes: int) -> Iterator[pa.Table]:
    """Yield the rows of a row group."""
    rows = file.groups[group].rows
    row_bytes = sum(_decoded(file, group, name) for name in schema.names) / max(rows, 1)
    step = max(1, int(block_bytes / max(row_bytes, 1)))
    for batch in reader.iter_batches(step, row_groups=[group], columns=schema.names, use_threads=False):
        for part in _parts(batch, block_bytes):
            yield pa.Table.from_arrays([_checked(file, part, group, field) for field in schema], schema=schema)


def _decoded(file: _File, group: int, name: str) -> int:
    """Return the bytes of a column of a row group once decoded; refuse one that cannot be decoded piece by piece."""
    total, rows = 0, file.groups[group].rows
    for n in file.leaves[name]:
        chunk, leaf = file.groups[group].chunks[n], file.parquet.schema.column(n)
        width = _WIDTHS.get(leaf.physical_type, max(leaf.length, 1))
        decoded = max(chunk.values * width, chunk.uncompressed)
        whole = decoded if leaf.max_repetition_level else chunk.uncompressed
        if whole > (limit := most_expanded(min(chunk.compressed, file.size))):
            raise InputError(
                f"{file.path}: row group {group}, column {name!r}: {chunk.compressed} bytes expand to {whole}, at "
                f"most {limit} are read: refused as a decompression bomb; if it is none, write it with smaller row groups"
            )
        total += max(decoded, rows * width)
    return total


def _parts(batch: pa.RecordBatch, most: int) -> Iterator[pa.RecordBatch]:
    """Cut a batch where its dictionaries, written out, would be too large."""
    coded = [column for column in batch.columns if pa.types.is_dictionary(column.type)]
    if not coded:
        yield batch
        return
    sizes = sum(_lengths(column) for column in coded)
    ends = np.cumsum(sizes)
    start = 0
    while start < batch.num_rows:
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + most, side="right")))
        yield batch.slice(start, stop - start)
        start = stop


def _lengths(column: pa.DictionaryArray) -> Any:
    """Return the bytes of each row's text; nought for null."""
    if not len(column.dictionary) or not (
        pa.types.is_string(column.type.value_type) or pa.types.is_binary(column.type.value_type)
    ):
        return np.zeros(len(column), np.int64)
    lengths = pc.binary_length(column.dictionary).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    codes = column.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    return np.append(lengths, 0)[codes]


def _checked(file: _File, batch: pa.RecordBatch, group: int, field: pa.Field) -> pa.Array:
    """Return a column of a batch; Arrow does not look whether texts of a file are UTF-8 and lists in order."""
    array = _values(batch.column(field.name), field.type)
    if not pa.types.is_primitive(field.type):
        try:
            array.validate(full=True)
        except pa.ArrowInvalid as error:
            raise InputError(
                f"{file.path}: row group {group}, column {field.name!r}: {error}: damaged; fetch it again"
            ) from error
    return array


def _values(array: pa.Array, dtype: pa.DataType) -> pa.Array:
    """Return an array as its plain type, without NaN."""
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if isinstance(array, pa.DictionaryArray):
        array = array.dictionary_decode()
    return _without_nan(array if array.type == dtype else array.cast(dtype))


def _without_nan(array: pa.Array) -> pa.Array:
    """Put null in the place of NaN, also of items of lists and structs, though not of maps."""
    dtype = array.type
    if pa.types.is_floating(dtype):
        # The least value is NaN where any is; NumPy finds it in a tenth of the time that Arrow takes to mark them all.
        if len(array) and not array.null_count and not np.isnan(array.to_numpy().min()):
            return array
        return pc.if_else(nan, pa.scalar(None, dtype), array) if pc.any(nan := pc.is_nan(array)).as_py() else array
    if pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype):
        values = array.values
        if (items := _without_nan(values)) is values:
            return array
        own = array.buffers()[: 1 if pa.types.is_fixed_size_list(dtype) else 2]
        return pa.Array.from_buffers(dtype, len(array), own, array.null_count, array.offset, [items])
    if pa.types.is_struct(dtype):
        parts = [_without_nan(array.field(n)) for n in range(dtype.num_fields)]
        return pa.StructArray.from_arrays(parts, fields=list(dtype), mask=array.is_null())
    return array


def _plain(dtype: pa.DataType) -> pa.DataType:
    """Return the plain type that stands for one of a file."""
    if isinstance(dtype, pa.BaseExtensionType):
        return _plain(dtype.storage_type)
    if pa.types.is_dictionary(dtype):
        return _plain(dtype.value_type)
    if pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype):
        return pa.string()
    if pa.types.is_large_binary(dtype) or pa.types.is_binary_view(dtype):
        return pa.binary()
    if pa.types.is_float16(dtype):
        return pa.float32()
    if pa.types.is_list(dtype) or pa.types.is_list_view(dtype):
        return pa.list_(_plain_field(dtype.value_field))
    if pa.types.is_large_list(dtype) or pa.types.is_large_list_view(dtype):
        return pa.large_list(_plain_field(dtype.value_field))
    if pa.types.is_fixed_size_list(dtype):
        return pa.list_(_plain_field(dtype.value_field), dtype.list_size)
    if pa.types.is_struct(dtype):
        return pa.struct([_plain_field(field) for field in dtype.fields])
    if pa.types.is_map(dtype):
        return pa.map_(_plain_field(dtype.key_field), _plain_field(dtype.item_field), dtype.keys_sorted)
    return dtype


def _plain_field(field: pa.Field) -> pa.Field:
    """Return a field within a nested type, which carries no metadata of the file's own."""
    return field.with_type(_plain(field.type)).remove_metadata()


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
