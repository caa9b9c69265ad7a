"""How a query is split: what runs on each leaf, what combines the results, which columns are read. No data, no Dask.

An object and all its detections lie in one leaf. So a query part is *local*, and the union of its results over leaves is its
result over the whole sky, if it never relates rows of different objects: joins, groups and windows by ``object_id``, plain rows,
observations (which every task has). On top of local parts one level of aggregates, DISTINCT, ORDER BY and LIMIT is combined.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp
from sqlglot.errors import OptimizeError
from sqlglot.optimizer.qualify import qualify
from sqlglot.optimizer.scope import Scope, traverse_scope

from scalable.catalog.dialect import DIALECT, parse_select, spell, unknown_column
from scalable.errors import ColumnError, QueryError, nearest

KEY = "object_id"
BROADCAST = "observations"
PARTIALS = "partials"


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
    partitioned : bool
        Whether leaves are read at all.
    """

    text: str
    map_sql: str
    combine_sql: str
    columns: dict[str, tuple[str, ...]]
    origins: dict[str, tuple[str, str]]
    partitioned: bool


@dataclass
class _Part:
    """What is known of a query part: does it read leaves, and which of its outputs are the object's id."""

    partitioned: bool
    keys: set[str] = field(default_factory=set)


def plan_sql(text: str, views: Mapping[str, Sequence[str]], file_views: Mapping[str, int] | None = None) -> SqlPlan:
    """Check and split a query.

    Parameters
    ----------
    text : str
        One SELECT statement.
    views : mapping
        Columns of each view; all but ``observations`` are partitioned by object.
    file_views : mapping, optional
        Names that stand for the detections of one file, and the id of its observation.

    Raises
    ------
    QueryError, ColumnError
        If something is unknown, not allowed, or would relate different objects; says what to do instead.
    """
    tree = _resolve(text, views, file_views or {})
    scopes = traverse_scope(tree)
    parts: dict[int, _Part] = {}
    for scope in scopes:
        parts[id(scope)] = _examine(scope, parts, root=scope is scopes[-1])
    root = scopes[-1]
    by_object = any(KEY in columns for view, columns in views.items() if view != BROADCAST)
    if not by_object and KEY in [name.lower() for name in tree.named_selects]:
        # Whoever finds a column of this name takes it that an object's rows lie together.
        raise QueryError(f"these rows are not kept by object: call the result column something else than {KEY}")
    columns = _columns_read(scopes, views)
    origins = {name: found for name in tree.named_selects if (found := _origin(root, name))}
    if not parts[id(root)].partitioned:
        return SqlPlan(text, tree.sql(dialect=DIALECT), "", columns, origins, False)
    if _aggregated(tree) and not _groups_by_key(root, parts):
        map_sql, combine_sql = _decompose(tree)
    else:
        map_sql, combine_sql = _finish_on_result(tree)
    return SqlPlan(text, map_sql, combine_sql, columns, origins, True)


# Names ---------------------------------------------------------------------------------------------------------------------


def _resolve(text: str, views: Mapping[str, Sequence[str]], file_views: Mapping[str, int]) -> exp.Select:
    """Parse, spell, name every output, replace file views, and attach every column to its view."""
    tree = parse_select(text)
    for projection in tree.expressions:
        if not isinstance(projection, (exp.Alias, exp.Column, exp.Star)):
            projection.replace(exp.alias_(projection.copy(), projection.sql(dialect=DIALECT).lower(), quoted=True))
    every = [name for columns in views.values() for name in columns]
    tree = spell(tree, [*views, *file_views, *every])
    named = {cte.alias for cte in tree.find_all(exp.CTE)}
    for table in list(tree.find_all(exp.Table)):
        if table.name in file_views:
            # Views of files exist for a collection, whose last partitioned view holds the rows of its files.
            source = exp.select("*").from_(exp.to_table([view for view in views if view != BROADCAST][-1], quoted=True))
            source = source.where(exp.column("observation_id", quoted=True).eq(file_views[table.name]))
            table.replace(source.subquery(table.alias_or_name))
        elif table.name not in views and table.name not in named:
            raise QueryError(f"no view {table.name!r}; {nearest(table.name, [*views, *file_views])}")
    schema = {f'"{view}"': {f'"{name}"': "UNKNOWN" for name in columns} for view, columns in views.items()}
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
    return tree


def _columns_read(scopes: Sequence[Scope], views: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
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
    return {view: tuple(names) or (views[view][0],) for view, names in read.items()}


def _origin(scope: Scope, name: str) -> tuple[str, str] | None:
    """Return the view and column that an output is, unchanged, or None for an expression."""
    for projection in scope.expression.expressions:
        column = projection.unalias()
        if projection.alias_or_name == name and isinstance(column, exp.Column):
            source = scope.sources.get(column.table)
            if isinstance(source, exp.Table):
                return source.name, column.name
            if isinstance(source, Scope) and isinstance(source.expression, exp.Select):
                return _origin(source, column.name)
    return None


# Locality ------------------------------------------------------------------------------------------------------------------


def _examine(scope: Scope, parts: Mapping[int, _Part], *, root: bool) -> _Part:
    """Return what is known of one SELECT, or refuse it because it would relate different objects."""
    select = scope.expression
    if not isinstance(select, exp.Select):
        raise QueryError(f"{select.key.upper()} is not supported; write one SELECT")
    sources = _sources(scope, parts)
    keys = {(name, key) for name, part in sources.items() if part.partitioned for key in part.keys}
    partitioned = bool(keys) or any(part.partitioned for part in sources.values())
    if partitioned:
        _check_joins(select, sources, keys)
        _check_subqueries(scope, parts, keys)
        for window in scope.find_all(exp.Window):
            if not any(_is_key(e, keys) for e in window.args.get("partition_by") or ()):
                raise QueryError(
                    f"a window over the whole sky ({window.sql(dialect=DIALECT)[:80]}) would relate different objects; "
                    f"add PARTITION BY {KEY}"
                )
        if not root:
            _check_inner(select, keys)
    elif any(parts[id(s)].partitioned for s in scope.subquery_scopes):
        raise QueryError("observations cannot be selected by detections; join them to the detections instead")
    outputs = {p.alias_or_name for p in select.expressions if _is_key(p.unalias(), keys)}
    return _Part(partitioned, outputs)


def _sources(scope: Scope, parts: Mapping[int, _Part]) -> dict[str, _Part]:
    found = {}
    for name, (_, source) in scope.selected_sources.items():
        if isinstance(source, Scope):
            found[name] = parts[id(source)]
        else:
            found[name] = _Part(False) if source.name == BROADCAST else _Part(True, {KEY})
    return found


def _is_key(node: exp.Expression, keys: set[tuple[str, str]]) -> bool:
    return isinstance(node, exp.Column) and (node.table, node.name) in keys


def _check_joins(select: exp.Select, sources: Mapping[str, _Part], keys: set[tuple[str, str]]) -> None:
    """Refuse joins of different objects, and outer joins that would repeat an observation in every leaf."""
    joins: list[exp.Join] = select.args.get("joins") or []
    conditions = [join.args.get("on") for join in joins] + [where.this for where in [select.args.get("where")] if where]
    group = {name: name for name, part in sources.items() if part.partitioned}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    for condition in conditions:
        for part in condition.flatten() if isinstance(condition, exp.And) else [condition]:
            part = part.unnest() if part is not None else None
            if isinstance(part, exp.EQ) and _is_key(part.left, keys) and _is_key(part.right, keys):
                group[root(part.left.table)] = root(part.right.table)
    if len({root(name) for name in group}) > 1:
        raise QueryError(
            f"this joins different objects; relate {' and '.join(sorted(group))} by {KEY} (a.{KEY} = b.{KEY}), "
            "or match catalogues by position with crossmatch"
        )
    left = sources[select.args["from_"].this.alias_or_name].partitioned
    for join in joins:
        right = sources[join.this.alias_or_name].partitioned
        side = str(join.side or join.kind).upper()
        if (side in ("LEFT", "SEMI", "ANTI") and right and not left) or (side == "RIGHT" and left and not right):
            raise QueryError("an outer join that keeps observations without detections cannot be split; turn its sides round")
        if side == "FULL" and left != right:
            raise QueryError("a full outer join with observations cannot be split; use LEFT JOIN observations")
        left = left or right


def _check_subqueries(scope: Scope, parts: Mapping[int, _Part], keys: set[tuple[str, str]]) -> None:
    for inner in scope.subquery_scopes:
        part = parts[id(inner)]
        if not part.partitioned:
            continue
        outer = inner.expression.find_ancestor(exp.In, exp.Exists, exp.Select)
        names = inner.expression.named_selects
        if not (isinstance(outer, exp.In) and _is_key(outer.this, keys) and names and names[0] in part.keys):
            raise QueryError(f"a subquery over detections or objects may only stand as: {KEY} IN (SELECT {KEY} FROM …)")


def _check_inner(select: exp.Select, keys: set[tuple[str, str]]) -> None:
    group = select.args.get("group")
    if _aggregated(select) and not any(_is_key(e, keys) for e in (group.expressions if group else ())):
        raise QueryError(f"an aggregate over different objects may only stand in the outermost SELECT; inside, GROUP BY {KEY}")
    if select.args.get("limit") or select.args.get("offset"):
        raise QueryError("LIMIT may only stand in the outermost SELECT")
    if select.args.get("distinct") and not any(_is_key(p.unalias(), keys) for p in select.expressions):
        raise QueryError(f"DISTINCT over different objects may only stand in the outermost SELECT; inside, select {KEY} too")


def _aggregated(select: exp.Select) -> bool:
    if select.args.get("group") or select.args.get("having"):
        return True
    return any(
        isinstance(node, exp.AggFunc) and not node.find_ancestor(exp.Window) and node.find_ancestor(exp.Select) is select
        for projection in select.expressions
        for node in projection.find_all(exp.AggFunc)
    )


def _groups_by_key(scope: Scope, parts: Mapping[int, _Part]) -> bool:
    sources = _sources(scope, parts)
    keys = {(name, key) for name, part in sources.items() if part.partitioned for key in part.keys}
    group = scope.expression.args.get("group")
    return any(_is_key(e, keys) for e in (group.expressions if group else ()))


# Splitting -----------------------------------------------------------------------------------------------------------------


def _column(name: str) -> exp.Column:
    return exp.column(name, quoted=True)


def _finish_on_result(tree: exp.Select) -> tuple[str, str]:
    """Split off DISTINCT, ORDER BY and LIMIT, which finish on the reduced result; the rest runs as written."""
    mapped = tree.copy()
    order, limit, offset = (mapped.args.pop(name, None) for name in ("order", "limit", "offset"))
    distinct = mapped.args.get("distinct")
    if not (order or limit or offset or distinct):
        return mapped.sql(dialect=DIALECT), ""
    final = exp.select(*[_column(name) for name in tree.named_selects]).from_(PARTIALS)
    if distinct:
        final = final.distinct()
    if order:
        outputs = {p.unalias().sql(dialect=DIALECT): p.alias_or_name for p in tree.expressions}
        for number, ordered in enumerate(order.expressions):
            known = outputs.get(ordered.this.sql(dialect=DIALECT)) or (
                ordered.this.name if ordered.this.name in tree.named_selects and not ordered.this.args.get("table") else None
            )
            if known is None:
                known = f"_order_{number}"
                mapped.select(exp.alias_(ordered.this.copy(), known, quoted=True), copy=False)
            ordered.set("this", _column(known))
        final.set("order", order)
    for name, value in (("limit", limit), ("offset", offset)):
        if value:
            final.set(name, value)
    return mapped.sql(dialect=DIALECT), final.sql(dialect=DIALECT)


def _decompose(tree: exp.Select) -> tuple[str, str]:
    """Split aggregates into partial ones per leaf and their combination (count, sum, min, max, avg)."""
    mapped = tree.copy()
    finishing = {name: mapped.args.pop(name, None) for name in ("having", "order", "limit", "offset", "distinct")}
    group = mapped.args.get("group")
    replaced: dict[str, exp.Expression] = {}
    partials: list[exp.Expression] = []
    for number, key in enumerate(group.expressions if group else ()):
        name = f"_group_{number}"
        partials.append(exp.alias_(key.copy(), name, quoted=True))
        replaced[key.sql(dialect=DIALECT)] = _column(name)

    def combine(node: exp.Expression) -> exp.Expression:
        text = node.sql(dialect=DIALECT)
        if text not in replaced and isinstance(node, (exp.AggFunc, exp.Filter)):
            replaced[text] = _partial(node, partials)
        if text in replaced:
            return replaced[text].copy()
        if isinstance(node, exp.Column) and node.table:
            raise QueryError(f"{node.name!r} is neither grouped by nor inside an aggregate; add it to GROUP BY")
        return node

    final = exp.select(*[p.copy().transform(combine) for p in tree.expressions]).from_(PARTIALS)
    if group:
        final = final.group_by(*[_column(f"_group_{n}") for n in range(len(group.expressions))])
    for name, clause in finishing.items():
        if clause:
            final.set(name, clause.transform(combine))
    mapped.set("expressions", partials or [exp.alias_(exp.Literal.number(1), "_one")])
    return mapped.sql(dialect=DIALECT), final.sql(dialect=DIALECT)


def _partial(node: exp.Expression, partials: list[exp.Expression]) -> exp.Expression:
    """Add the partial columns of one aggregate and return the expression that combines them."""
    aggregate = node.this if isinstance(node, exp.Filter) else node

    def column(function: exp.Expression) -> exp.Column:
        name = f"_partial_{len(partials)}"
        if isinstance(node, exp.Filter):
            function = exp.Filter(this=function, expression=node.expression.copy())
        partials.append(exp.alias_(function, name, quoted=True))
        return _column(name)

    argument = aggregate.this
    if isinstance(argument, exp.Distinct):
        inner = argument.expressions[0]
        if not (isinstance(aggregate, exp.Count) and len(argument.expressions) == 1 and inner.name == KEY):
            raise QueryError(f"DISTINCT inside an aggregate can be combined only as count(DISTINCT {KEY})")
    if isinstance(aggregate, exp.Count):
        return exp.func("coalesce", exp.Sum(this=column(aggregate.copy())), exp.Literal.number(0))
    if isinstance(aggregate, (exp.Sum, exp.Min, exp.Max)):
        return type(aggregate)(this=column(aggregate.copy()))
    if isinstance(aggregate, exp.Avg):
        total, rows = column(exp.Sum(this=argument.copy())), column(exp.Count(this=argument.copy()))
        return exp.Paren(this=exp.Div(this=exp.Sum(this=total), expression=exp.Sum(this=rows)))
    raise QueryError(
        f"{aggregate.sql_name().lower()} over different objects cannot be combined from partial results yet; "
        f"use count, sum, min, max or avg, or GROUP BY {KEY}"
    )
