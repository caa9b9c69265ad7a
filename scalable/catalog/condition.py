"""A condition on rows, such as ``Flux1 / dFlux1 > 5 and Class = -1``, as a pending step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
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

    ``regions`` are those that it asks for; all rows that it keeps lie in those numbered in ``within``. ``known`` are its columns
    if it asks no more than that none of them is null.
    """

    name: ClassVar[str] = "where"
    text: str
    sql: str
    columns: tuple[str, ...]
    regions: tuple[Region, ...] = ()
    within: tuple[int, ...] = ()
    known: tuple[str, ...] = ()

    def parameters(self) -> dict[str, Any]:
        """Return the condition as it was given."""
        return {"condition": self.text}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the same schema."""
        return schema

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return what is wanted and what the condition reads."""
        return [*wanted, *self.columns]

    @property
    def looks_at(self) -> tuple[str, ...]:
        """The columns of the condition."""
        return self.columns

    def apply(self, table: pa.Table) -> pa.Table:
        """Evaluate the condition on its own columns and filter."""
        keep = self._keep(table).combine_chunks()
        # Column by column: a third faster than the table at once.
        return pa.Table.from_arrays([column.filter(keep) for column in table.columns], schema=table.schema)

    def _keep(self, table: pa.Table) -> pa.ChunkedArray:
        if self.known:  # seven times faster than through DuckDB
            return reduce(pc.and_, (pc.invert(pc.is_null(table[name], nan_is_null=True)) for name in self.known))
        rows = {"rows": table.select(list(self.columns))}
        found = execute(f"SELECT ({self.sql}) AS keep FROM rows", rows, memberships(self.regions))
        return pc.fill_null(found["keep"].cast(pa.bool_()), False)

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
    return Condition(text, statement, columns, regions, _within(tree, position), _known(tree))


def _parts(tree: exp.Expression) -> list[exp.Expression]:
    """Return what must all hold."""
    return [part.unnest() for part in (tree.flatten() if isinstance(tree, exp.And) else [tree])]


def _known(tree: exp.Expression) -> tuple[str, ...]:
    """Return the columns that must not be null, or none if anything else is asked."""
    asked = [part.this.unnest() if isinstance(part, exp.Not) else exp.Null() for part in _parts(tree)]
    if not all(
        isinstance(part, exp.Is) and part.expression == exp.Null() and isinstance(part.this, exp.Column) for part in asked
    ):
        return ()
    return tuple(dict.fromkeys(part.this.name for part in asked))


def _within(tree: exp.Expression, position: tuple[str, ...]) -> tuple[int, ...]:
    """Return the numbers of the regions in which the position of the object must lie."""
    asked = {region_number(part): part for part in _parts(tree)}
    return tuple(n for n, part in asked.items() if n is not None and tuple(c.name for c in part.expressions) == position)
