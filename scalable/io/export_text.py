"""CSV, and ECSV, which is CSV after a header that keeps types, units and descriptions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import yaml

from scalable.io.layout import META_KEY
from scalable.schema import Column, Schema


def write_csv(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write plain CSV: nulls as nothing, empty texts as ``""``, lists as JSON; units have no place in it."""
    with path.open("wb") as file:
        _write_rows(tables, schema, file, booleans=("true", "false"))


def write_ecsv(tables: Iterable[pa.Table], schema: pa.Schema, path: Path) -> None:
    """Write ECSV as astropy reads it (Enhanced Character Separated Values 1.0, APE 6)."""
    header: dict[str, Any] = {"datatype": [_entry(column) for column in Schema.from_arrow(schema)], "delimiter": ","}
    about = (schema.metadata or {}).get(META_KEY)
    if about:
        header["meta"] = json.loads(about)
    text = yaml.safe_dump(header, allow_unicode=True, sort_keys=False, width=10**9)
    with path.open("wb") as file:
        file.write("".join(f"# {line}\n" for line in ("%ECSV 1.0", "---", *text.splitlines())).encode())
        _write_rows(tables, schema, file, booleans=("True", "False"))


def _write_rows(tables: Iterable[pa.Table], schema: pa.Schema, file: Any, *, booleans: tuple[str, str]) -> None:
    flat = pa.schema([pa.field(field.name, _as_text(field.type)) for field in schema])
    with pyarrow.csv.CSVWriter(file, flat) as writer:
        for table in tables:
            columns = [_text(values, booleans) if flat.field(n).type != values.type else values for n, values in enumerate(table)]
            writer.write_table(pa.table(columns, schema=flat))


def _as_text(dtype: pa.DataType) -> pa.DataType:
    """Return text for what CSV has no words for."""
    plain = pa.types.is_integer(dtype) or pa.types.is_floating(dtype) or pa.types.is_string(dtype)
    return dtype if plain and dtype != pa.float16() else pa.string()


def _text(values: pa.ChunkedArray, booleans: tuple[str, str]) -> pa.ChunkedArray:
    if pa.types.is_boolean(values.type):
        return pc.if_else(values, *(pa.scalar(word) for word in booleans))
    if pa.types.is_nested(values.type):
        return pa.chunked_array([[None if value is None else json.dumps(value) for value in values.to_pylist()]], pa.string())
    return values.cast(pa.string())


def _entry(column: Column) -> dict[str, Any]:
    """Return what the header says of a column."""
    entry: dict[str, Any] = {"name": column.name}
    if column.unit:
        entry["unit"] = column.unit
    if pa.types.is_nested(column.dtype):
        length = column.dtype.list_size if pa.types.is_fixed_size_list(column.dtype) else "null"
        entry |= {"datatype": "string", "subtype": f"{_datatype(column.dtype.value_type)}[{length}]"}
    else:
        entry["datatype"] = _datatype(column.dtype)
    if column.description:
        entry["description"] = column.description
    if column.ucd:
        entry["meta"] = {"ucd": column.ucd}
    return entry


def _datatype(dtype: pa.DataType) -> str:
    names = {pa.float16(): "float32", pa.float32(): "float32", pa.float64(): "float64", pa.bool_(): "bool"}
    return names.get(dtype) or (str(dtype) if pa.types.is_integer(dtype) else "string")
