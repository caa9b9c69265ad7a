"""What is no number is null: logarithms and roots where they are not defined, as division by zero is by DuckDB's settings."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from sqlglot import exp

from scalable.catalog.dialect import DIALECT
from scalable.errors import QueryError

DEEPEST = 4
"""Logarithms, roots and powers inside each other: a guard repeats what it guards."""

Tree = TypeVar("Tree", bound=exp.Expression)


def undefined_is_null(tree: Tree) -> Tree:
    """Return the tree with a guard around every function that DuckDB fails on outside its domain.

    One negative flux would otherwise end the query over the whole sky.

    Raises
    ------
    QueryError
        If such functions stand inside each other too deeply.
    """
    for node in tree.walk():
        above, depth = node if _is_partial(node) else None, 0
        while above is not None:
            depth += _is_partial(above)
            above = above.parent
        if depth > DEEPEST:
            raise QueryError(
                f"{node.sql(dialect=DIALECT)[:80]}: at most {DEEPEST} logarithms, roots and powers inside each other"
            )
    return tree.transform(_guarded)


def _guarded(node: exp.Expression) -> exp.Expression:
    if not _is_partial(node):
        return node
    inner = node.copy()
    for name, value in list(inner.args.items()):
        if isinstance(value, exp.Expression):
            inner.set(name, value.transform(_guarded))
        elif isinstance(value, list):
            inner.set(name, [part.transform(_guarded) for part in value])
    return exp.Paren(this=exp.Case(ifs=[exp.If(this=_domain(inner), true=inner)]))


def _is_partial(node: exp.Expression) -> bool:
    """Return whether a function is undefined somewhere."""
    named = isinstance(node, exp.Anonymous) and node.name.lower() in ("log10", "log2")
    return named or isinstance(node, (exp.Ln, exp.Log, exp.Sqrt, exp.Asin, exp.Acos, exp.Pow))


def _domain(node: exp.Expression) -> exp.Expression:
    """Return the condition under which a function is defined."""
    first = node.expressions[0] if isinstance(node, exp.Anonymous) else node.this
    second = node.args.get("expression")
    if isinstance(node, exp.Pow):
        whole = exp.EQ(this=_of(second), expression=exp.Floor(this=_of(second)))
        at_zero = exp.and_(_compared(first, exp.EQ), _compared(second, exp.GTE))
        return exp.or_(_compared(first, exp.GT), at_zero, exp.and_(_compared(first, exp.LT), whole))
    if isinstance(node, exp.Sqrt):
        return _compared(first, exp.GTE)
    if isinstance(node, (exp.Asin, exp.Acos)):
        return exp.Between(this=_of(first), low=exp.Literal.number(-1), high=exp.Literal.number(1))
    if second is not None:
        return exp.and_(_compared(first, exp.GT), _compared(first, exp.NEQ, 1), _compared(second, exp.GT))
    return _compared(first, exp.GT)


def _compared(node: exp.Expression, relation: Callable[..., exp.Expression], value: int = 0) -> exp.Expression:
    return relation(this=_of(node), expression=exp.Literal.number(value))


def _of(node: exp.Expression) -> exp.Expression:
    return exp.Paren(this=node.copy())
