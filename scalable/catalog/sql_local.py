"""What of a query is local: it never relates rows of different objects, so that each leaf can answer for itself.

An object and all its detections lie in one leaf. So joins, groups and windows by the object's id, plain rows, and observations
(which every task has) are local, and the union of their results over leaves is their result over the whole sky.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlglot import exp
from sqlglot.optimizer.scope import Scope

from scalable.catalog.dialect import DIALECT
from scalable.errors import QueryError

KEY = "object_id"

Name = tuple[str, str]
"""A column: the table's name in its SELECT, and its own."""


@dataclass(frozen=True)
class View:
    """What a query can read: its columns, the one with the object's id and those with its position, where rows lie by object.

    Every task sees all rows of one that is ``whole``. ``radians`` names columns in that unit.
    """

    columns: Sequence[str]
    key: str = ""
    position: tuple[str, ...] = ()
    whole: bool = False
    radians: tuple[str, ...] = ()


@dataclass
class Part:
    """What is known of a query part: does it read leaves, and which of its outputs are the object's id.

    ``grouping`` are those ids that are never null: groups of null span the sky, although null joins with nothing.
    """

    partitioned: bool
    keys: set[str] = field(default_factory=set)
    grouping: set[str] = field(default_factory=set)


@dataclass
class Keys:
    """The columns of one SELECT's sources that are the object's id."""

    all: set[Name]
    grouping: set[Name]


def examine(scopes: Sequence[Scope], views: Mapping[str, View]) -> dict[int, Part]:
    """Return what is known of each SELECT, the outermost last, by the identity of its scope.

    Raises
    ------
    QueryError
        If one relates different objects; says what to do instead.
    """
    parts: dict[int, Part] = {}
    for scope in scopes:
        parts[id(scope)] = _examine(scope, parts, views, root=scope is scopes[-1])
    return parts


def _examine(scope: Scope, parts: Mapping[int, Part], views: Mapping[str, View], *, root: bool) -> Part:
    select = scope.expression
    if not isinstance(select, exp.Select):
        raise QueryError(f"{select.key.upper()} is not supported; write one SELECT")
    sources = sources_of(scope, parts, views)
    keys = keys_of(select, sources)
    partitioned = any(part.partitioned for part in sources.values())
    if partitioned:
        _check_joins(select, sources, keys)
        _check_subqueries(scope, parts, keys)
        for window in scope.find_all(exp.Window):
            if not any(is_one_of(e, keys.grouping) for e in window.args.get("partition_by") or ()):
                raise QueryError(
                    f"a window over the whole sky ({window.sql(dialect=DIALECT)[:80]}) would relate different objects; "
                    f"add PARTITION BY {KEY}"
                )
        if not root:
            _check_inner(select, keys)
    elif any(parts[id(s)].partitioned for s in scope.subquery_scopes):
        raise QueryError("observations cannot be selected by detections; join them to the detections instead")

    def outputs(known: set[Name]) -> set[str]:
        return {p.alias_or_name for p in select.expressions if is_one_of(p.unalias(), known)}

    return Part(partitioned, outputs(keys.all), outputs(keys.grouping))


def sources_of(scope: Scope, parts: Mapping[int, Part], views: Mapping[str, View]) -> dict[str, Part]:
    """Return what is known of the tables and subqueries that a SELECT reads, by their names in it."""
    found = {}
    for name, (_, source) in scope.selected_sources.items():
        if isinstance(source, Scope):
            found[name] = parts[id(source)]
        else:
            view = views[source.name]
            key = {view.key} if view.key else set()
            found[name] = Part(not view.whole, key, set(key))
    return found


def keys_of(select: exp.Select, sources: Mapping[str, Part]) -> Keys:
    """Return the id columns of the sources of a SELECT; those on the side that an outer join fills with nulls may be null."""
    filled: set[str] = set()
    seen = [select.args["from_"].this.alias_or_name] if select.args.get("from_") else []
    for join in select.args.get("joins") or []:
        side, name = str(join.side).upper(), join.this.alias_or_name
        filled |= {name} if side in ("LEFT", "FULL") else set()
        filled |= set(seen) if side in ("RIGHT", "FULL") else set()
        seen.append(name)
    return Keys(
        {(name, key) for name, part in sources.items() if part.partitioned for key in part.keys},
        {(name, key) for name, part in sources.items() if part.partitioned and name not in filled for key in part.grouping},
    )


def is_one_of(node: exp.Expression | None, columns: set[Name]) -> bool:
    """Return whether an expression is one of some columns."""
    return isinstance(node, exp.Column) and (node.table, node.name) in columns


def groups_by_key(scope: Scope, keys: Keys) -> bool:
    """Return whether every group of a SELECT belongs to one object."""
    group = scope.expression.args.get("group")
    return any(is_one_of(e, keys.grouping) for e in (group.expressions if group else ()))


def relies_on_keys(scopes: Sequence[Scope], parts: Mapping[int, Part], views: Mapping[str, View]) -> bool:
    """Return whether rows are taken for those of one object because their id is the same: none may be null then."""
    for scope in scopes:
        keys = keys_of(scope.expression, sources_of(scope, parts, views)).grouping
        group, distinct = scope.expression.args.get("group"), scope.expression.args.get("distinct")
        asked = [*(group.expressions if group else ())]
        asked += [part for window in scope.find_all(exp.Window) for part in window.args.get("partition_by") or ()]
        asked += [projection.unalias() for projection in scope.expression.expressions if distinct]
        asked += [found.this for found in scope.find_all(exp.In) if found.args.get("query")]
        if any(is_one_of(part, keys) for part in asked):
            return True
    return False


def is_aggregated(select: exp.Select) -> bool:
    """Return whether a SELECT gives one row for many."""
    if select.args.get("group") or select.args.get("having"):
        return True
    return any(
        isinstance(node, exp.AggFunc) and not node.find_ancestor(exp.Window) and node.find_ancestor(exp.Select) is select
        for part in [*select.expressions, *filter(None, [select.args.get("order")])]
        for node in part.find_all(exp.AggFunc)
    )


def _check_joins(select: exp.Select, sources: Mapping[str, Part], keys: Keys) -> None:
    """Refuse joins of different objects, and outer joins that would repeat an observation in every leaf."""
    joins: list[exp.Join] = select.args.get("joins") or []
    group = {name: name for name, part in sources.items() if part.partitioned}

    def root(name: str) -> str:
        while group[name] != name:
            name = group[name]
        return name

    conditions = [(join.args.get("on"), join.this.alias_or_name if join.side or join.kind else "") for join in joins]
    where = select.args.get("where")
    for condition, only in [*conditions, (where.this if where else None, "")]:
        for part in condition.flatten() if isinstance(condition, exp.And) else [condition]:
            part = part.unnest() if part is not None else None
            if not (isinstance(part, exp.EQ) and is_one_of(part.left, keys.all) and is_one_of(part.right, keys.all)):
                continue
            # What an outer join asks decides about its own table alone: other pairs stay whatever it says.
            if only in ("", part.left.table, part.right.table):
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


def _check_subqueries(scope: Scope, parts: Mapping[int, Part], keys: Keys) -> None:
    for inner in scope.subquery_scopes:
        part = parts[id(inner)]
        if not part.partitioned:
            continue
        outer = inner.expression.find_ancestor(exp.In, exp.Exists, exp.Select)
        names = inner.expression.named_selects
        if not (isinstance(outer, exp.In) and is_one_of(outer.this, keys.grouping) and names and names[0] in part.grouping):
            raise QueryError(f"a subquery over detections or objects may only stand as: {KEY} IN (SELECT {KEY} FROM …)")


def _check_inner(select: exp.Select, keys: Keys) -> None:
    group = select.args.get("group")
    if is_aggregated(select) and not any(is_one_of(e, keys.grouping) for e in (group.expressions if group else ())):
        raise QueryError(f"an aggregate over different objects may only stand in the outermost SELECT; inside, GROUP BY {KEY}")
    if select.args.get("limit") or select.args.get("offset"):
        raise QueryError("LIMIT may only stand in the outermost SELECT")
    if select.args.get("distinct") and not any(is_one_of(p.unalias(), keys.grouping) for p in select.expressions):
        raise QueryError(f"DISTINCT over different objects may only stand in the outermost SELECT; inside, select {KEY} too")
