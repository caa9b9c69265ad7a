"""Detections as one row per object that holds its light curve in lists, as nested-pandas and LSDB work with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from scalable.catalog.light_curves import KEYS
from scalable.errors import ColumnError
from scalable.io.layout import HEALPIX_COLUMN
from scalable.kernels.partition import boundaries


@dataclass(frozen=True)
class Nest:
    """One row per object; everything else in lists of equal length, side by side in one column."""

    name: ClassVar[str] = "nest"
    column: str
    members: tuple[str, ...]

    def parameters(self) -> dict[str, Any]:
        """Return the new column and what it holds."""
        return {"column": self.column, "members": self.members}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the object's keys and the nested column, whose members keep their units."""
        inner = [schema.field(name) for name in self.members]
        lists = [pa.field(field.name, pa.list_(field.type), metadata=field.metadata) for field in inner]
        return pa.schema([*(schema.field(name) for name in KEYS), pa.field(self.column, pa.struct(lists))], schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the keys, and the members if they are wanted."""
        return [*KEYS, *(self.members if self.column in wanted else ())]

    def apply(self, table: pa.Table) -> pa.Table:
        """Cut each column where an object ends."""
        ends = boundaries(table[HEALPIX_COLUMN].to_numpy(), table["object_id"].to_numpy())
        objects = table.select(list(KEYS)).take(ends[:-1])
        if self.members[0] not in table.column_names:
            return objects
        offsets = pa.array(ends.astype(np.int32))
        lists = [pa.ListArray.from_arrays(offsets, table[name].combine_chunks()) for name in self.members]
        return objects.append_column(self.column, pa.StructArray.from_arrays(lists, list(self.members)))

    def __str__(self) -> str:
        """Show what is pending."""
        return f"nest {', '.join(self.members)} as {self.column}"


def nest_others(schema: pa.Schema, column: str) -> Nest:
    """Return the step that nests all columns but the keys of the object.

    Raises
    ------
    ColumnError
        If these are no detections, or nothing is left to be nested.
    """
    for name in KEYS:
        if name not in schema.names:
            raise ColumnError(f"nest needs {name}: take detections, and keep it in select()")
    members = tuple(name for name in schema.names if name not in KEYS)
    if not members or column in KEYS:
        raise ColumnError(f"nest: {column!r} would hold {len(members)} columns; select some beside {', '.join(KEYS)}")
    return Nest(column, members)
