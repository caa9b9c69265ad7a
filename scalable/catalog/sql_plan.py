"""What a query reads and how it is split: names, columns, regions, the statement for a leaf and the combining one. No data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlglot import exp
from sqlglot.errors import OptimizeError
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, traverse_scope

from scalable.catalog.dialect import DIALECT, parse_select, spell, unknown_column
from scalable.catalog.null_rules import undefined_is_null
from scalable.catalog.sky_functions import region_number, take_regions
from scalable.catalog.sql_local import (
    KEY,
    View,
    examine,
    groups_by_key,
    is_aggregated,
    keys_of,
    relies_on_keys,
    sources_of,
)
from scalable.catalog.sql_split import decompose, finish_on_result
from scalable.errors import ColumnError, QueryError, nearest
from scalable.sky.region import Region

Origin = tuple[str, str]
"""A view and one of its columns."""

_SAME_UNIT = (
    exp.Paren, exp.Neg, exp.Abs, exp.Min, exp.Max, exp.Avg, exp.Sum, exp.Stddev, exp.StddevSamp, exp.StddevPop, exp.Median,
    exp.Window, exp.FirstValue, exp.LastValue, exp.Lag, exp.Lead, exp.Round, exp.Filter, exp.Add, exp.Sub,
)  # fmt: skip
"""What gives a value in the unit of the values it is made of."""


@dataclass(frozen=True)
class SqlPlan:
    """A query, split.

    Attributes
    ----------
    text : str
        As the user wrote it.
    map_sql : str
        Runs on each leaf, or once where only observations are read.
    combine_sql : str
        Runs once on ``partials``, the concatenated results of ``map_sql``; empty if there is nothing to combine.
    columns : dict
        Columns read of each view.
    origins : dict
        Output columns that are a view's column unchanged: name to (view, column).
    measured_in : dict
        Output columns that have the unit of view columns: name to these.
    partitioned : bool
        Whether leaves are read at all.
    keys : dict
        Of each view read, the column with the object's id, if the query relies on it to be there in every row.
    regions : tuple of Region
        Regions of the sky that it asks for.
    within : tuple of int
        Numbers of the regions in which the object of every result row must lie.
    """

    text: str
    map_sql: str
    combine_sql: str
    columns: dict[str, tuple[str, ...]]
    origins: dict[str, Origin]
    measured_in: dict[str, tuple[Origin, ...]]
    partitioned: bool
    keys: dict[str, str]
    regions: tuple[Region, ...]
    within: tuple[int, ...]


def plan_sql(text: str, views: Mapping[str, View], file_views: Mapping[str, int] | None = None) -> SqlPlan:
    """Check and split a query.

    Parameters
    ----------
    text : str
        One SELECT statement.
    views : mapping
        What can be read.
    file_views : mapping, optional
        Names that stand for the detections of one file, and the id of its observation.

    Raises
    ------
    QueryError, ColumnError
        If something is unknown, not allowed, or would relate different objects; says what to do instead.
    """
    try:
        return _plan(text, views, file_views or {})
    except RecursionError:
        raise QueryError("this query is nested too deeply") from None


def _plan(text: str, views: Mapping[str, View], file_views: Mapping[str, int]) -> SqlPlan:
    tree, regions = _resolve(text, views, file_views)
    scopes = traverse_scope(tree)
    root = scopes[-1]
    parts = examine(scopes, views)
    by_object = any(KEY in view.columns for view in views.values() if not view.whole)
    if not by_object and KEY in [name.lower() for name in tree.named_selects]:
        # Whoever finds a column of this name takes it that an object's rows lie together.
        raise QueryError(f"these rows are not kept by object: call the result column something else than {KEY}")
    columns = _columns_read(scopes, views)
    map_sql, combine_sql = tree.sql(dialect=DIALECT), ""
    if parts[id(root)].partitioned:
        keys = keys_of(tree, sources_of(root, parts, views))
        if is_aggregated(tree) and not groups_by_key(root, keys):
            map_sql, combine_sql = decompose(tree, keys)
        else:
            map_sql, combine_sql = finish_on_result(tree)
    by_key = relies_on_keys(scopes, parts, views)
    outputs = {projection.alias_or_name: projection.unalias() for projection in tree.expressions}
    return SqlPlan(
        text,
        map_sql,
        combine_sql,
        columns,
        {name: found for name, node in outputs.items() if (found := _origin(root, node))},
        {name: tuple(made_of) for name, node in outputs.items() if (made_of := _measured_in(root, node))},
        parts[id(root)].partitioned,
        {name: views[name].key for name, read in columns.items() if by_key and views[name].key in read},
        regions,
        tuple(sorted(_within(root, views))),
    )


# Names ---------------------------------------------------------------------------------------------------------------------


def _resolve(text: str, views: Mapping[str, View], file_views: Mapping[str, int]) -> tuple[exp.Select, tuple[Region, ...]]:
    """Parse, spell, name every output, replace file views, and attach every column to its view."""
    tree = parse_select(text)
    for projection in tree.expressions:
        if not isinstance(projection, (exp.Alias, exp.Column, exp.Star)):
            projection.replace(exp.alias_(projection.copy(), projection.sql(dialect=DIALECT).lower(), quoted=True))
    typed = {projection.alias.lower(): projection.alias for projection in tree.expressions if isinstance(projection, exp.Alias)}
    every = [name for view in views.values() for name in view.columns]
    tree = spell(tree, [*views, *file_views, *every])
    named = {cte.alias for cte in tree.find_all(exp.CTE)}
    for name in named & {*views, *file_views}:
        raise QueryError(f"{name!r} is a view already; call the WITH query something else")
    position = next((view.position for view in views.values() if view.position), ())
    tree, regions = take_regions(tree, position, [name for view in views.values() for name in view.radians])
    for table in list(tree.find_all(exp.Table)):
        if table.name in file_views:
            # Views of files exist for a collection, whose last partitioned view holds the rows of its files.
            source = exp.select("*").from_(
                exp.to_table([name for name, view in views.items() if not view.whole][-1], quoted=True)
            )
            source = source.where(exp.column("observation_id", quoted=True).eq(file_views[table.name]))
            table.replace(source.subquery(table.alias_or_name))
        elif table.name not in views and table.name not in named:
            raise QueryError(f"no view {table.name!r}; {nearest(table.name, [*views, *file_views])}")
    schema = {f'"{name}"': {f'"{column}"': "UNKNOWN" for column in view.columns} for name, view in views.items()}
    try:
        tree = qualify(tree, schema=schema, dialect=DIALECT, quote_identifiers=True)
    except OptimizeError as error:
        name = re.search(r"Column '?\"?([\w.]+)", str(error))
        if name:
            raise ColumnError(unknown_column(name[1], sorted(set(every)))) from error
        raise QueryError(f"this query cannot be resolved: {error}") from error
    repeated = {name for name in tree.named_selects if tree.named_selects.count(name) > 1}
    if repeated:
        raise QueryError(f"two result columns are called {repeated.pop()!r}; name them apart with AS")
    _name_as_typed(tree, typed)
    return undefined_is_null(tree), regions


def _name_as_typed(tree: exp.Select, typed: Mapping[str, str]) -> None:
    """Give results the names that the user typed, which were spelled like a column where they differ from it by case alone."""
    order = tree.args.get("order")
    names = [projection.args["alias"] for projection in tree.expressions if isinstance(projection, exp.Alias)]
    names += [column.this for column in (order.find_all(exp.Column) if order else ()) if not column.table]
    for name in names:
        name.set("this", typed.get(name.name.lower(), name.name))


def _columns_read(scopes: Sequence[Scope], views: Mapping[str, View]) -> dict[str, tuple[str, ...]]:
    read: dict[str, dict[str, None]] = {}
    for scope in scopes:
        for _, source in scope.selected_sources.values():
            if isinstance(source, exp.Table):
                read.setdefault(source.name, {})
        for column in scope.columns:
            source = scope.sources.get(column.table)
            if isinstance(source, exp.Table):
                read.setdefault(source.name, {})[column.name] = None
    # Rows can be counted only where some column is read.
    return {view: tuple(names) or (views[view].columns[0],) for view, names in read.items()}


def _origin(scope: Scope, node: exp.Expression) -> Origin | None:
    """Return the view and column that an expression in a SELECT is, unchanged, or None for anything else."""
    if not isinstance(node, exp.Column):
        return None
    source = scope.sources.get(node.table)
    if isinstance(source, exp.Table):
        return source.name, node.name
    if isinstance(source, Scope) and isinstance(source.expression, exp.Select):
        inner = (p.unalias() for p in source.expression.expressions if p.alias_or_name == node.name)
        return next((_origin(source, projection) for projection in inner), None)
    return None


def _measured_in(scope: Scope, node: exp.Expression) -> list[Origin]:
    """Return the columns of views in whose unit the values of an expression are, if they all have the same; else nothing."""
    if isinstance(node, exp.Column):
        origin = _origin(scope, node)
        return [origin] if origin else []
    if not isinstance(node, _SAME_UNIT):
        return []
    found = [_measured_in(scope, part) for part in ([node.left, node.right] if isinstance(node, exp.Binary) else [node.this])]
    return [origin for part in found for origin in part] if all(found) else []


# Regions -------------------------------------------------------------------------------------------------------------------


def _within(scope: Scope, views: Mapping[str, View]) -> set[int]:
    """Return the numbers of the regions in which the object of every row of a SELECT lies: other leaves give no row."""
    found: set[int] = set()
    where = scope.expression.args.get("where")
    for part in (where.this.flatten() if isinstance(where.this, exp.And) else [where.this]) if where else ():
        number = region_number(part.unnest())
        if number is not None:
            origins = [_origin(scope, argument) for argument in part.unnest().expressions]
            place = tuple(origin[1] for origin in origins if origin)
            view = views[origins[0][0]] if origins[0] else None
            if view and len({origin and origin[0] for origin in origins}) == 1 and place == view.position:
                found.add(number)
    outer = {join.this.alias_or_name for join in scope.expression.args.get("joins") or [] if join.side or join.kind == "ANTI"}
    right = any(str(join.side).upper() in ("RIGHT", "FULL") for join in scope.expression.args.get("joins") or [])
    for name, (_, source) in scope.selected_sources.items():
        if isinstance(source, Scope) and name not in outer and not right:
            found |= _within(source, views)
    return found
