"""A condition on rows, such as ``Flux1 / dFlux1 > 5 and Class = -1``, as a pending step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from sqlglot import exp

from scalable.catalog.dialect import DIALECT, parse_expression, spell, unknown_column
from scalable.catalog.duck import execute
from scalable.catalog.null_rules import undefined_is_null
from scalable.catalog.sky_functions import memberships, region_number, take_regions
from scalable.errors import ColumnError, QueryError
from scalable.schema import Schema
from scalable.sky.region import Region


@dataclass(frozen=True)
class Condition:
    """Keep the rows for which a condition is true; null is not true.

    ``regions`` are those that it asks for; all rows that it keeps lie in those numbered in ``within``.
    """

    name: ClassVar[str] = "where"
    text: str
    sql: str
    columns: tuple[str, ...]
    regions: tuple[Region, ...] = ()
    within: tuple[int, ...] = ()

    def parameters(self) -> dict[str, Any]:
        """Return the condition as it was given."""
        return {"condition": self.text}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the same schema."""
        return schema

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return what is wanted and what the condition reads."""
        return [*wanted, *self.columns]

    def apply(self, table: pa.Table) -> pa.Table:
        """Evaluate the condition in DuckDB on its own columns and filter."""
        rows = {"rows": table.select(list(self.columns))}
        keep = execute(f"SELECT ({self.sql}) AS keep FROM rows", rows, memberships(self.regions))
        return table.filter(pc.fill_null(keep["keep"].cast(pa.bool_()), False))

    def __str__(self) -> str:
        """Show what is pending."""
        return f"where {self.text}"


def parse_condition(text: str, schema: pa.Schema) -> Condition:
    """Check a condition against a schema; nothing is computed.

    Raises
    ------
    QueryError, ColumnError
        If it is not a plain condition, or names a column that is not there.
    """
    known = Schema.from_arrow(schema)
    position = tuple(columns[0].name for columns in map(known.by_role, ("ra", "dec")) if columns)
    radians = [column.name for column in known if column.unit == "rad"]
    try:
        tree, regions = take_regions(spell(parse_expression(text), schema.names), position, radians)
        tree = undefined_is_null(tree)
        statement = tree.sql(dialect=DIALECT)
    except RecursionError:
        raise QueryError("this condition is nested too deeply") from None
    columns = tuple(dict.fromkeys(column.name for column in tree.find_all(exp.Column)))
    for name in columns:
        if name not in schema.names:
            raise ColumnError(unknown_column(name, schema.names))
    if not columns:
        # A condition on no column would have no rows to be evaluated on.
        columns = (schema.names[0],)
    return Condition(text, statement, columns, regions, _within(tree, position))


def _within(tree: exp.Expression, position: tuple[str, ...]) -> tuple[int, ...]:
    """Return the numbers of the regions in which the position of the object must lie."""
    parts = tree.flatten() if isinstance(tree, exp.And) else [tree]
    asked = {region_number(part.unnest()): part.unnest() for part in parts}
    return tuple(n for n, part in asked.items() if n is not None and tuple(c.name for c in part.expressions) == position)
