"""The header of an ECSV file: names, types, units and meaning of its columns, and how its cells with arrays are read.

=======================  =====================================================================================================
datatype                 Arrow type
=======================  =====================================================================================================
bool, (u)int8 … 64       the same
float16, float32, 64     float, float, double
string                   string
complex64, complex128    fixed_size_list[2] of float, double
string, subtype T[2,3]   fixed_size_list[6] of T, flat in C order; the column's ``shape`` is ``2,3``
string, subtype T[null]  list of T; of T[2,null] a fixed_size_list[2] of them
string, subtype json     string, as it stands in the file
=======================  =====================================================================================================
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from scalable.errors import nearest
from scalable.io.text_cells import convert
from scalable.schema import Column

_PLAIN = {
    "bool": pa.bool_(), "string": pa.string(), "str": pa.string(),
    "int8": pa.int8(), "int16": pa.int16(), "int32": pa.int32(), "int64": pa.int64(),
    "uint8": pa.uint8(), "uint16": pa.uint16(), "uint32": pa.uint32(), "uint64": pa.uint64(),
    "float16": pa.float32(), "float32": pa.float32(), "float64": pa.float64(),
}  # fmt: skip
_COMPLEX = {"complex64": pa.float32(), "complex128": pa.float64()}
_SUBTYPE = re.compile(r"\s*(\w+)\s*(\[[\w\s,]*\])?\s*$")
_LONGEST_CELL = 1 << 20  # items of a fixed array
_HEAVIEST = 1 << 22  # characters of a header with its aliases written out
_DEEPEST = 500
_DEEPER = {"[": 1, "{": 1, "]": -1, "}": -1}


@dataclass(frozen=True)
class EcsvColumn:
    """One column as the header declares it.

    Attributes
    ----------
    column : Column
        What it becomes.
    item : pyarrow.DataType
        Type of one number or text.
    dims : tuple of (int or None), optional
        Shape of a cell of a JSON array; None is any length. No shape: the cell is the value.
    """

    column: Column
    item: pa.DataType
    dims: tuple[int | None, ...] = ()

    def decode(self, text: pa.Array) -> pa.Array:
        """Make lists of JSON, or complex numbers of text; null where the cell is empty.

        Raises
        ------
        CellError
            Naming the first cell that is not as declared.
        """
        return convert(text, self._arrays if self.dims else self._complex)

    def _complex(self, text: pa.Array) -> pa.Array:
        pairs = []
        for cell in text.to_pylist():
            value = None if cell is None else complex(cell.replace(" ", ""))
            pairs.append(None if value is None else [value.real, value.imag])
        return pa.array(pairs, self.column.dtype, from_pandas=True)

    def _arrays(self, text: pa.Array) -> pa.Array:
        # One parse for all cells; nulls inside take part, and what is more or fewer than one value a cell does not fit.
        parts = ["null" if cell is None else cell.strip() for cell in text.to_pylist()]
        cells = json.loads("[" + ",".join(parts) + "]")
        if len(cells) != len(text) or not all(part == "null" or part[0] + part[-1] == "[]" for part in parts):
            raise ValueError("not one JSON array in each cell")
        kind = self.item
        for size in reversed(self.dims):
            kind = pa.list_(kind) if size is None else pa.list_(kind, size)
        nested = _nested(cells, kind, self.item)
        if None in self.dims or len(self.dims) == 1:
            return nested
        leaf = nested
        while pa.types.is_fixed_size_list(leaf.type):
            leaf = leaf.values
        return pa.FixedSizeListArray.from_arrays(leaf, math.prod(self.dims), mask=pc.is_null(nested))  # type: ignore[arg-type]


def _nested(cells: list[Any], kind: pa.DataType, item: pa.DataType) -> pa.Array:
    if pa.types.is_boolean(item):
        try:
            return pa.array(cells, kind)
        except pa.ArrowInvalid:
            # Gaia's tables have logicals as the texts "True" and "False", in quotes.
            return pc.cast(pa.array(cells, _with_item(kind, pa.string())), kind)
    return pa.array(cells, kind, from_pandas=True)  # NaN becomes null


def _with_item(kind: pa.DataType, item: pa.DataType) -> pa.DataType:
    """Return a nested type with other items."""
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_with_item(kind.value_type, item), kind.list_size)
    return pa.list_(_with_item(kind.value_type, item)) if pa.types.is_list(kind) else item


@dataclass(frozen=True)
class EcsvHeader:
    """What the lines that begin with # say."""

    columns: tuple[EcsvColumn, ...]
    delimiter: str
    meta: dict[str, object]


@lru_cache(maxsize=64)
def ecsv_header(lines: tuple[str, ...]) -> EcsvHeader:
    """Parse the header lines, which still begin with # but do not include ``# %ECSV``.

    Raises
    ------
    ValueError
        Saying what is wrong.
    """
    text = "\n".join(line[2:] if line.startswith("# ") else line[1:] for line in lines)
    try:
        found = _load(text)
    except (yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, RecursionError, OverflowError) as error:
        where = getattr(error, "problem_mark", None)
        place = f" in line {where.line + 2}" if where is not None else ""
        raise ValueError(f"the ECSV header is not valid YAML{place} ({getattr(error, 'problem', None) or error})") from error
    if not isinstance(found, dict) or not isinstance(found.get("datatype"), list) or not found["datatype"]:
        raise ValueError("the ECSV header has no `datatype:` list of columns")
    delimiter = found.get("delimiter", " ")
    if delimiter not in (" ", ","):
        raise ValueError(f"the ECSV header's delimiter is {delimiter!r}, ' ' or ',' is allowed")
    meta = _mapping(found.get("meta"))
    _refuse_masks(meta)
    return EcsvHeader(tuple(_column(entry) for entry in found["datatype"]), delimiter, meta)


def astropy_meanings(document: bytes) -> dict[str, Column]:
    """Return the columns, by name, of the header that astropy keeps in its Parquet and HDF5 files.

    Raises
    ------
    ValueError
        Saying what is wrong.
    """
    lines = document.decode("utf-8", "replace").splitlines()
    return {declared.column.name: declared.column for declared in ecsv_header(tuple(f"# {line}" for line in lines)).columns}


def _refuse_masks(meta: dict[str, object]) -> None:
    for name, how in _mapping(meta.get("__serialized_columns__")).items():
        if "mask" in _mapping(how):
            raise ValueError(
                f"column {name!r} keeps its mask in a column of its own, which would make masked values valid; "
                "fill them or write the table with serialize_method='null_value'"
            )


def _mapping(value: object) -> dict[str, object]:
    """Return a YAML mapping, ordered mapping or list of mappings as one mapping with text for keys."""
    if isinstance(value, dict):
        return {str(key): item for key, item in value.items()}
    if not isinstance(value, list):
        return {}
    pairs = [pair for item in value for pair in (item.items() if isinstance(item, dict) else [item])]
    return {str(pair[0]): pair[1] for pair in pairs if isinstance(pair, tuple) and len(pair) == 2}


def _column(entry: object) -> EcsvColumn:
    said = _mapping(entry)
    name = said.get("name")
    if not isinstance(name, str | int | float | bool) or not str(name):
        raise ValueError(f"a column of the ECSV header has no name: {entry!r:.80}")
    datatype, subtype = str(said.get("datatype", "")), said.get("subtype")
    unit = said.get("unit", "")
    unit = _mapping(unit).get("unit", "") if isinstance(unit, dict) else unit
    try:
        item, dtype, dims = _kind(datatype, None if subtype is None else str(subtype))
    except ValueError as error:
        raise ValueError(f"column {name!r}: {error}") from error
    column = Column(
        str(name),
        dtype,
        unit="" if unit is None else str(unit),
        source_unit="" if unit is None else str(unit),
        ucd=str(_mapping(said.get("meta")).get("ucd") or ""),
        description=" ".join(str(said.get("description") or "").split()),
        shape=",".join(map(str, dims)) if len(dims) > 1 and None not in dims else "",
    )
    return EcsvColumn(column, item, dims)


def _kind(datatype: str, subtype: str | None) -> tuple[pa.DataType, pa.DataType, tuple[int | None, ...]]:
    """Return the type of an item and of a cell, and the shape of a cell."""
    if datatype in _COMPLEX:
        return _COMPLEX[datatype], pa.list_(_COMPLEX[datatype], 2), ()
    if datatype not in _PLAIN:
        raise ValueError(f"datatype {datatype!r} is none that we read; {nearest(datatype, [*_PLAIN, *_COMPLEX])}")
    match = _SUBTYPE.match(subtype or "")
    if datatype != "string" or subtype is None or subtype.strip() == "json":
        return _PLAIN[datatype], _PLAIN[datatype], ()
    if match is None or match[1] not in _PLAIN:
        raise ValueError(f"subtype {subtype!r} is none that we read; write for example 'float64[null]' or 'float64[2,3]'")
    dims = tuple(None if size is None else int(size) for size in json.loads(match[2] or "[]"))
    if None in dims[:-1] or math.prod(size or 1 for size in dims) > _LONGEST_CELL or any(size == 0 for size in dims):
        raise ValueError(f"subtype {subtype!r}: only the last dimension may be null, none may be 0, all at most {_LONGEST_CELL}")
    kind = _PLAIN[match[1]]
    if None not in dims:
        return kind, (pa.list_(kind, math.prod(dims)) if dims else kind), dims  # type: ignore[arg-type]
    cell = pa.list_(kind)
    for size in reversed(dims[:-1]):
        cell = pa.list_(cell, size)
    return kind, cell, dims


class _Loader(yaml.SafeLoader):
    """YAML of plain values: what a tag names is not made."""


def _load(text: str) -> object:
    """Load YAML whose nesting and whose aliases stay within bounds.

    Raises
    ------
    ValueError, yaml.YAMLError
        If they do not, or if it is not valid.
    """
    if max(accumulate(_DEEPER.get(mark, 0) for mark in text), default=0) > _DEEPEST:
        raise ValueError("brackets within brackets without end")  # the parser takes the square of their number in time
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _weigh(node, {})
        return loader.construct_document(node)
    finally:
        loader.dispose()


def _weigh(node: yaml.Node, known: dict[int, int]) -> int:
    """Return how long a value is with all its aliases written out, and refuse what swells."""
    if id(node) not in known:
        known[id(node)] = _HEAVIEST + 1  # until it is known: an alias of what it stands in has no end
        if isinstance(node, yaml.MappingNode):
            weight = sum(_weigh(key, known) + _weigh(value, known) for key, value in node.value)
        elif isinstance(node, yaml.SequenceNode):
            weight = sum(_weigh(value, known) for value in node.value)
        else:
            weight = len(node.value)
        known[id(node)] = weight + 1
    if known[id(node)] > _HEAVIEST:
        raise ValueError("aliases within aliases without end")
    return known[id(node)]


def _untagged(loader: _Loader, _: str, node: yaml.Node) -> object:
    """Make the plain value under a tag that we do not know, such as ``!astropy.units.Unit``."""
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return loader.construct_scalar(node)  # type: ignore[arg-type]


_Loader.add_multi_constructor("", _untagged)
