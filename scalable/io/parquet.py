"""Parquet leaves: how columns are encoded, and the VOParquet metadata that carries units."""

from __future__ import annotations

import base64
import hashlib
import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io.votable.exceptions import VOWarning
from astropy.io.votable.tree import Field, Resource, TableElement, VOTableFile

from scalable.errors import ColumnError, StoreError, nearest
from scalable.io.atomic import aside, write_bytes
from scalable.io.remote import Place, opened
from scalable.schema import Schema

ROW_GROUP_ROWS = 100_000
TEXT_WIDTH = "64"
"""Width that the metadata give text columns: astropy's reader of VOParquet cannot join a text without one."""
_REPEATING = ("object_ra", "object_dec", "mjd", "observation_id", "source_file")
"""Columns in which neighbouring rows share their value: a dictionary beats every other encoding there."""


@dataclass(frozen=True)
class Leaf:
    """What a written Parquet file is: its path below the catalogue, rows, size, digest and Parquet footer."""

    path: str
    rows: int
    size_bytes: int
    sha256: str
    footer: bytes

    def to_json(self) -> dict[str, Any]:
        """Return a form that the record of a finished task can hold."""
        return {**vars(self), "footer": base64.b64encode(self.footer).decode()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Leaf:
        """Read that form back."""
        return cls(**{**value, "footer": base64.b64decode(value["footer"])})


def write_leaf(table: pa.Table, folder: Path, relative: str) -> Leaf:
    """Write one leaf atomically; equal tables give equal bytes.

    The encoding was chosen by measurement: floats split by byte, sorted integers as differences, dictionaries only where
    neighbours repeat, lz4 (written in two thirds of the time of zstd level 1, and 3 % larger).
    """
    sink = pa.BufferOutputStream()
    with _writer(sink, table.schema) as writer:
        writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
    data = sink.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    write_bytes(folder / relative, memoryview(data))
    return Leaf(relative, table.num_rows, data.size, digest, _footer(pq.read_metadata(pa.BufferReader(data)), relative))


def write_stream(tables: Iterable[pa.Table], schema: pa.Schema, folder: Path, relative: str) -> Leaf:
    """Write tables of any size one after another as `write_leaf` would write them as one; holds a row group at a time."""
    path, rows = folder / relative, 0
    with aside(path) as temporary:
        with _writer(str(temporary), schema) as writer:
            for table in cut_blocks(tables, ROW_GROUP_ROWS):
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
                rows += table.num_rows
        with temporary.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Leaf(relative, rows, path.stat().st_size, digest, _footer(pq.read_metadata(path), relative))


def cut_blocks(tables: Iterable[pa.Table], rows: int) -> Iterator[pa.Table]:
    """Yield the same rows in tables of exactly ``rows``, the last one excepted; nothing where there is no row."""
    waiting: list[pa.Table] = []
    count = 0
    for table in tables:
        waiting.append(table)
        count += table.num_rows
        if count >= rows:
            whole = pa.concat_tables(waiting)
            del table, waiting
            for start in range(0, count - count % rows, rows):
                yield whole.slice(start, rows)
            waiting, count = [whole.slice(count - count % rows)], count % rows
    if count:
        yield pa.concat_tables(waiting)


def _writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    values = dict(_values(f.name, f.type) for f in schema)
    dictionary = [path for path, dtype in values.items() if path in _REPEATING or pa.types.is_string(dtype)]
    encoding = {path: _encoding(dtype) for path, dtype in values.items() if path not in dictionary and _encoding(dtype)}
    return pq.ParquetWriter(
        sink,
        schema,
        compression="lz4",
        use_dictionary=dictionary or False,
        column_encoding=encoding or None,
        write_page_checksum=True,
    )


def _footer(metadata: pq.FileMetaData, relative: str) -> bytes:
    """Return a leaf's footer as ``_metadata`` holds it: with the path of the leaf."""
    metadata.set_file_path(relative.removeprefix("dataset/"))
    sink = io.BytesIO()
    metadata.write_metadata_file(sink)
    return sink.getvalue()


def known_leaf(folder: Path, relative: str, *, size_bytes: int, sha256: str) -> tuple[Leaf, dict[str, int]]:
    """Return a leaf on disk, whose size and digest are known, as `write_leaf` did, and its nulls by column.

    Only the footer is read, and columns of lists, whose nulls it does not tell from those inside the lists.
    """
    path = folder / relative
    try:
        metadata = pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read ({error}); the store is damaged, run the ingest again") from error
    nulls: dict[str, int] = {}
    leaves = (metadata.schema.column(number) for number in range(len(metadata.schema)))
    lists = {column.path.split(".")[0] for column in leaves if column.max_repetition_level}
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        for column in (group.column(number) for number in range(group.num_columns)):
            name = column.path_in_schema.split(".")[0]
            nulls[name] = nulls.get(name, 0) + column.statistics.null_count
    nulls |= {name: read_leaf(path, [name])[name].null_count for name in lists}
    return Leaf(relative, metadata.num_rows, size_bytes, sha256, _footer(metadata, relative)), nulls


def _is_list(dtype: pa.DataType) -> bool:
    return pa.types.is_list(dtype) or pa.types.is_large_list(dtype) or pa.types.is_fixed_size_list(dtype)


def _values(path: str, dtype: pa.DataType) -> tuple[str, pa.DataType]:
    """Return where Parquet keeps the values of a column, which for lists are their items, and their type."""
    return _values(f"{path}.list.element", dtype.value_type) if _is_list(dtype) else (path, dtype)


def _encoding(dtype: pa.DataType) -> str:
    if pa.types.is_floating(dtype) and dtype.bit_width >= 32:
        return "BYTE_STREAM_SPLIT"
    if pa.types.is_integer(dtype) and dtype.bit_width >= 32:
        return "DELTA_BINARY_PACKED"
    return ""


def read_leaf(path: Place, columns: Sequence[str] | None = None, *, coded: Sequence[str] = ()) -> pa.Table:
    """Read a leaf, only the named columns, with page checksums verified.

    Text columns that are ``coded`` come as dictionaries with a number for each row, as they are stored: in a fifth of the time.

    Raises
    ------
    StoreError
        If the file is missing or damaged; names it.
    """
    pieces = [_read_file(file, columns, coded) for file in leaf_files(path)]
    return pieces[0] if len(pieces) == 1 else pa.concat_tables(pieces).unify_dictionaries()


def leaf_files(path: Place) -> list[Place]:
    """Return the files of a leaf: itself, or where it is a folder, those in it by name."""
    if isinstance(path, Path) and path.is_dir():
        return [*sorted(path.glob("*.parquet"))]
    return [path]


def _read_file(path: Place, columns: Sequence[str] | None, coded: Sequence[str]) -> pa.Table:
    try:
        with opened(path) as source:
            # One thread: the caller runs one task per core already. On a server, neighbouring parts come in one request.
            file = pq.ParquetFile(
                source, page_checksum_verification=True, pre_buffer=source is not path, read_dictionary=list(coded)
            )
            known = file.schema_arrow.names
            missing = [name for name in columns or () if name not in known]
            if missing:
                raise ColumnError(f"{path}: no column {missing[0]!r}; {nearest(missing[0], known)}")
            return file.read(columns=list(columns) if columns is not None else None, use_threads=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read ({error}); the store is damaged or incomplete, run the ingest again") from error


def read_groups(path: Place) -> Iterator[pa.Table]:
    """Read a leaf row group after row group.

    Raises
    ------
    StoreError
        If the file is missing or damaged; names it.
    """
    try:
        with opened(path) as source:
            file = pq.ParquetFile(source, page_checksum_verification=True, pre_buffer=source is not path)
            for number in range(file.num_row_groups):
                yield file.read_row_group(number, use_threads=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise StoreError(f"{path}: cannot be read ({error}); the store is damaged or incomplete, run the ingest again") from error


def write_footers(footers: Sequence[bytes], path: Path) -> None:
    """Write ``_metadata``: the row groups of all leaves in one file."""
    parts = [pq.read_metadata(pa.BufferReader(footer)) for footer in footers]
    merged = parts[0]
    for part in parts[1:]:
        merged.append_row_groups(part)
    sink = io.BytesIO()
    merged.write_metadata_file(sink)
    write_bytes(path, sink.getvalue())


def write_common_metadata(schema: pa.Schema, path: Path) -> None:
    """Write ``_common_metadata``: the Arrow schema, with units, UCDs and descriptions as VOParquet and as field metadata."""
    sink = io.BytesIO()
    pq.write_metadata(with_votable(schema), sink)
    write_bytes(path, sink.getvalue())


def read_schema(path: Place) -> pa.Schema:
    """Read back what `write_common_metadata` wrote."""
    with opened(path) as file:
        return pq.read_schema(file)


def with_votable(schema: pa.Schema) -> pa.Schema:
    """Return the schema with the VOParquet header among its metadata."""
    header = votable_header(Schema.from_arrow(schema))
    votable = {b"IVOA.VOTable-Parquet.version": b"1.0", b"IVOA.VOTable-Parquet.content": header}
    # astropy takes the width of a text column from here; without it, it measures rows, of which such a file may have none.
    widths = {f"table::len::{f.name}".encode(): TEXT_WIDTH.encode() for f in schema if pa.types.is_string(f.type)}
    return schema.with_metadata({**(schema.metadata or {}), **votable, **widths})


def votable_header(schema: Schema, types: Mapping[str, tuple[str, str | None]] | None = None) -> bytes:
    """Return the VOTable document without data that describes the columns, by default as Parquet stores them.

    Parameters
    ----------
    schema : Schema
        The columns.
    types : mapping, optional
        Datatype and arraysize by column, for another encoding.
    """
    document = VOTableFile(version="1.4")
    resource = Resource()
    document.resources.append(resource)
    table = TableElement(document)
    resource.tables.append(table)
    sink = io.BytesIO()
    with warnings.catch_warnings():
        # A unit or a name that the standard frowns upon is written all the same: losing it would be worse.
        warnings.simplefilter("ignore", VOWarning)
        for column in schema:
            if pa.types.is_struct(column.dtype):
                # VOTable has no word for a nested column.
                continue
            datatype, arraysize = types[column.name] if types else _parquet_type(column.dtype)
            field = Field(document, name=column.name, datatype=datatype, arraysize=arraysize, unit=column.unit or None)
            field.ucd = column.ucd or None
            field.description = column.description or None
            table.fields.append(field)
        document.to_xml(sink)
    return sink.getvalue()


def _parquet_type(dtype: pa.DataType) -> tuple[str, str | None]:
    """Return datatype and arraysize of a column as Parquet stores it."""
    datatype, sizes = _votable_type(dtype)
    # Only the last of several sizes may be open, and astropy knows no arrays of texts.
    open_size = "*" in sizes[:-1] or (datatype == "unicodeChar" and len(sizes) > 1)
    return datatype, "*" if open_size else "x".join(sizes) or None


def _votable_type(dtype: pa.DataType) -> tuple[str, list[str]]:
    """Return the VOTable type of a column, and the sizes of its arrays as they are stored, the one that runs fastest first.

    Images are stored flat: astropy reads no table whose VOTable gives a column another shape than Parquet.
    """
    if _is_list(dtype):
        datatype, sizes = _votable_type(dtype.value_type)
        return datatype, [*sizes, str(getattr(dtype, "list_size", "*"))]
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "unicodeChar", [TEXT_WIDTH]
    names = {
        pa.bool_(): "boolean",
        pa.uint8(): "unsignedByte",
        pa.int8(): "short",
        pa.int16(): "short",
        pa.uint16(): "int",
        pa.int32(): "int",
        pa.uint32(): "long",
        pa.int64(): "long",
        pa.uint64(): "long",
        pa.float32(): "float",
        pa.float64(): "double",
    }
    return names.get(dtype, "double"), []
