"""How the outermost SELECT is split: a statement for each leaf, and one that combines their results.

One level of aggregates, DISTINCT, ORDER BY and LIMIT stands on top of what is local.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlglot import exp

from scalable.catalog.dialect import DIALECT
from scalable.catalog.sql_local import KEY, Keys, is_one_of
from scalable.errors import QueryError

PARTIALS = "partials"

_MOMENTS = (exp.Stddev, exp.StddevSamp, exp.StddevPop, exp.Variance, exp.VariancePop)


def finish_on_result(tree: exp.Select) -> tuple[str, str]:
    """Split off DISTINCT, ORDER BY and LIMIT, which finish on the reduced result; the rest runs as written.

    A leaf gives no more rows than the limit lets through, its first ones in the order asked for.
    """
    mapped = tree.copy()
    order, limit, offset = (mapped.args.pop(name, None) for name in ("order", "limit", "offset"))
    distinct = mapped.args.get("distinct")
    if not (order or limit or offset or distinct):
        return mapped.sql(dialect=DIALECT), ""
    final = exp.select(*[_column(name) for name in tree.named_selects]).from_(PARTIALS)
    if distinct:
        final = final.distinct()
    if order:
        _order_by_outputs(order, mapped, distinct=bool(distinct))
        final.set("order", order)
    for name, value in (("limit", limit), ("offset", offset)):
        if value:
            final.set(name, value)
    if limit:
        first = int(limit.expression.name) + (int(offset.expression.name) if offset else 0)
        mapped.set("order", order.copy() if order else None)
        mapped.set("limit", exp.Limit(expression=exp.Literal.number(first)))
    return mapped.sql(dialect=DIALECT), final.sql(dialect=DIALECT)


def _order_by_outputs(order: exp.Order, mapped: exp.Select, *, distinct: bool) -> None:
    """Make an ORDER BY ask for result columns alone; what is none of them is added to the mapped ones."""
    names = list(mapped.named_selects)
    outputs = {p.unalias().sql(dialect=DIALECT): p.alias_or_name for p in mapped.expressions}
    for number, ordered in enumerate(order.expressions):
        known = outputs.get(ordered.this.sql(dialect=DIALECT)) or (
            ordered.this.name if ordered.this.name in names and not ordered.this.args.get("table") else None
        )
        if known is None:
            if distinct:
                raise QueryError(f"with DISTINCT, ORDER BY takes selected columns, not {ordered.this.sql(dialect=DIALECT)[:60]}")
            known = f"_order_{number}"
            mapped.select(exp.alias_(ordered.this.copy(), known, quoted=True), copy=False)
        ordered.set("this", _column(known))


@dataclass
class _Partials:
    """Columns of the partial results, and the means about which spreads are combined."""

    keys: Keys
    groups: list[exp.Expression] = field(default_factory=list)
    columns: list[exp.Expression] = field(default_factory=list)
    moments: list[tuple[str, str, str]] = field(default_factory=list)
    """For each spread the names of its count and mean in the partial results, and of the mean of all."""

    def add(self, value: exp.Expression, node: exp.Expression) -> exp.Column:
        """Add a partial aggregate, with the filter of the whole one."""
        name = f"_partial_{len(self.columns)}"
        if isinstance(node, exp.Filter):
            value = exp.Filter(this=value, expression=node.expression.copy())
        self.columns.append(exp.alias_(value, name, quoted=True))
        return _column(name)

    def source(self) -> exp.Expression:
        """Return what is combined: the partial results, with the mean of all leaves beside the mean of each where it is needed.

        It is the mean about the smallest one: exact where all are the same.
        """
        table: exp.Expression = exp.to_table(PARTIALS)
        if not self.moments:
            return table
        by = ", ".join(f'"{name.name}"' for name in self.groups)
        window = f"OVER (PARTITION BY {by})" if by else "OVER ()"
        lowest = ", ".join(f'min("{mean}") {window} AS "{every}_0"' for _, mean, every in self.moments)
        means = ", ".join(
            f'"{every}_0" + sum("{n}" * ("{mean}" - "{every}_0")) {window} / sum("{n}") {window} AS "{every}"'
            for n, mean, every in self.moments
        )
        inner = f"SELECT *, {means} FROM (SELECT *, {lowest} FROM {PARTIALS})"
        return exp.maybe_parse(inner, dialect=DIALECT).subquery(PARTIALS)


def decompose(tree: exp.Select, keys: Keys) -> tuple[str, str]:
    """Split aggregates into partial ones for each leaf and their combination.

    Raises
    ------
    QueryError
        If one cannot be combined; names those that can.
    """
    mapped = tree.copy()
    finishing = {name: mapped.args.pop(name, None) for name in ("having", "order", "limit", "offset", "distinct")}
    group = mapped.args.get("group")
    replaced: dict[str, exp.Expression] = {}
    partials = _Partials(keys)
    for number, key in enumerate(group.expressions if group else ()):
        name = f"_group_{number}"
        partials.columns.append(exp.alias_(key.copy(), name, quoted=True))
        partials.groups.append(_column(name))
        replaced[key.sql(dialect=DIALECT)] = _column(name)

    def combine(node: exp.Expression) -> exp.Expression:
        text = node.sql(dialect=DIALECT)
        if text not in replaced and isinstance(node, (exp.AggFunc, exp.Filter)):
            replaced[text] = _combined(node, partials)
        if text in replaced:
            return replaced[text].copy()
        if isinstance(node, exp.Column) and node.table:
            raise QueryError(f"{node.name!r} is neither grouped by nor inside an aggregate; add it to GROUP BY")
        return node

    outputs = [p.copy().transform(combine) for p in tree.expressions]
    finish = {name: clause.transform(combine) for name, clause in finishing.items() if clause}
    final = exp.select(*outputs).from_(partials.source())
    if group:
        final = final.group_by(*partials.groups)
    for name, clause in finish.items():
        final.set(name, clause)
    mapped.set("expressions", partials.columns or [exp.alias_(exp.Literal.number(1), "_one")])
    return mapped.sql(dialect=DIALECT), final.sql(dialect=DIALECT)


def _combined(node: exp.Expression, partials: _Partials) -> exp.Expression:
    """Add the partial columns of one aggregate and return the expression that combines them."""
    aggregate = node.this if isinstance(node, exp.Filter) else node
    argument = aggregate.this
    if isinstance(argument, exp.Distinct):
        inner: Sequence[exp.Expression] = argument.expressions
        if not (isinstance(aggregate, exp.Count) and len(inner) == 1 and is_one_of(inner[0], partials.keys.all)):
            raise QueryError(
                f"DISTINCT inside an aggregate can be combined only as count(DISTINCT {KEY}); "
                "for others, GROUP BY the column and count the rows of the result"
            )
    if isinstance(aggregate, exp.Count):
        return exp.func("coalesce", exp.Sum(this=partials.add(aggregate.copy(), node)), exp.Literal.number(0))
    if isinstance(aggregate, (exp.Sum, exp.Min, exp.Max)):
        return type(aggregate)(this=partials.add(aggregate.copy(), node))
    if isinstance(aggregate, exp.Avg):
        total = partials.add(exp.Sum(this=argument.copy()), node)
        rows = partials.add(exp.Count(this=argument.copy()), node)
        return exp.Paren(this=exp.Div(this=exp.Sum(this=total), expression=exp.Sum(this=rows)))
    if isinstance(aggregate, _MOMENTS):
        return _spread(node, aggregate, partials)
    raise QueryError(
        f"{aggregate.sql_name().lower()} over different objects cannot be combined from partial results; "
        f"use count, sum, min, max, avg, stddev or variance, or GROUP BY {KEY}"
    )


def _spread(node: exp.Expression, aggregate: exp.Expression, partials: _Partials) -> exp.Expression:
    """Combine a variance from the counts, means and squared deviations of each leaf (Chan, Golub and LeVeque 1983)."""
    value = aggregate.this
    n = partials.add(exp.Count(this=value.copy()), node)
    mean = partials.add(exp.Avg(this=value.copy()), node)
    variance = partials.add(exp.VariancePop(this=value.copy()), node)
    low, high = (partials.add(extreme(this=value.copy()), node).name for extreme in (exp.Min, exp.Max))
    every = f"_mean_{len(partials.moments)}"
    partials.moments.append((n.name, mean.name, every))
    apart = f'"{mean.name}" - "{every}"'
    squares = f'sum("{n.name}" * ("{variance.name}" + ({apart}) * ({apart})))'
    ddof = 0 if isinstance(aggregate, (exp.StddevPop, exp.VariancePop)) else 1
    # Equal values have no spread, although the means of two leaves may differ in their last bit.
    divided = f'CASE WHEN min("{low}") = max("{high}") THEN 0.0 ELSE {squares} / (sum("{n.name}") - {ddof}) END'
    text = f'CASE WHEN sum("{n.name}") > {ddof} THEN {divided} END'
    if not isinstance(aggregate, (exp.Variance, exp.VariancePop)):
        text = f"sqrt({text})"
    return exp.Paren(this=exp.maybe_parse(text, dialect=DIALECT))


def _column(name: str) -> exp.Column:
    return exp.column(name, quoted=True)
