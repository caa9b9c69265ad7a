"""What of SQL is understood: parsed with sqlglot, every node on a list of allowed ones, names spelled as in the tables."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

import sqlglot
from sqlglot import exp
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import ParseError, TokenError

from scalable.errors import QueryError, nearest

# Names keep the case that the tables give them; DuckDB itself ignores case.
DIALECT = Dialect.get_or_raise("duckdb, normalization_strategy=case_sensitive")

_STATEMENT = (
    exp.Select, exp.From, exp.Join, exp.Where, exp.Group, exp.Having, exp.Order, exp.Ordered, exp.Limit, exp.Offset, exp.Distinct,
    exp.Subquery, exp.With, exp.CTE, exp.Table, exp.TableAlias, exp.Alias, exp.Window, exp.WindowSpec, exp.Filter, exp.Exists,
)  # fmt: skip
_EXPRESSION = (
    exp.Identifier, exp.Column, exp.Star, exp.Literal, exp.Null, exp.Boolean, exp.Paren, exp.Tuple, exp.Binary, exp.Unary,
    exp.Between, exp.In, exp.Case, exp.If, exp.Cast, exp.TryCast, exp.DataType, exp.Var,
)  # fmt: skip
_FUNCTIONS = (
    exp.Abs, exp.Ceil, exp.Floor, exp.Round, exp.Sign, exp.Sqrt, exp.Exp, exp.Ln, exp.Log, exp.Pow, exp.Greatest, exp.Least,
    exp.Coalesce, exp.Nullif, exp.Count, exp.Sum, exp.Min, exp.Max, exp.Avg, exp.Stddev, exp.StddevSamp, exp.StddevPop,
    exp.Variance, exp.VariancePop, exp.Median, exp.RowNumber, exp.Rank, exp.DenseRank, exp.Lag, exp.Lead, exp.FirstValue,
    exp.LastValue, exp.Lower, exp.Upper, exp.Length, exp.Sin, exp.Cos, exp.Tan, exp.Asin, exp.Acos, exp.Atan, exp.Atan2,
    exp.Radians, exp.Degrees, exp.Pi, exp.IsNan, exp.IsInf, exp.Cbrt, exp.And, exp.Or, exp.Contains,
)  # fmt: skip
_NAMED = {"log10", "log2", "isfinite", "pi", "cot", "trunc", "list_median"}
_SKY = {"in_cone", "in_box", "in_polygon", "in_moc", "point", "circle", "polygon"}
_REFUSED_BINARY = (exp.Dot, exp.JSONExtract, exp.JSONExtractScalar, exp.PropertyEQ, exp.Collate)

Tree = TypeVar("Tree", bound=exp.Expression)

DEEPEST = 300
"""Expressions inside each other; sums and chains of AND count each term."""
LONGEST_TEXT = 1_000_000
"""Characters of the longest query: a coverage map may stand in it."""


def parse_select(text: str) -> exp.Select:
    """Parse one SELECT statement and refuse everything else.

    Raises
    ------
    QueryError
        Naming what was not understood or is not allowed.
    """
    tree = _parse_one(text)
    if not isinstance(tree, exp.Select):
        raise QueryError(f"only SELECT is allowed here, not {_word(tree)}: a query reads the catalogue and nothing else")
    _check(tree, (*_STATEMENT, *_EXPRESSION, *_FUNCTIONS))
    for node in tree.find_all(exp.With, exp.Join, exp.Group, exp.Distinct, exp.Order, exp.Limit, exp.Offset):
        _check_clause(node)
    return tree


def _check_clause(node: exp.Expression) -> None:
    """Refuse clauses whose meaning would change once only some columns and rows are looked at at a time."""
    args = node.args
    if isinstance(node, exp.With) and args.get("recursive"):
        raise QueryError("WITH RECURSIVE is not allowed in a query")
    if isinstance(node, exp.Join) and args.get("method"):
        raise QueryError(f"{args['method']} JOIN is not supported; name the columns: JOIN … ON a.object_id = b.object_id")
    if isinstance(node, exp.Group) and (args.get("all") or not node.expressions):
        raise QueryError("GROUP BY ALL is not supported; name the columns")
    if isinstance(node, exp.Distinct) and args.get("on"):
        raise QueryError("DISTINCT ON is not supported; use row_number() OVER (PARTITION BY object_id ORDER BY …) = 1")
    if isinstance(node, exp.Order) and any(isinstance(part.this, exp.Var) for part in node.expressions):
        raise QueryError("ORDER BY ALL is not supported; name the columns")
    if isinstance(node, (exp.Limit, exp.Offset)) and not (node.expression.is_int and not node.expression.is_string):
        raise QueryError(f"{node.key.upper()} takes a whole number, not {node.expression.sql(dialect=DIALECT)[:40]}")


def parse_expression(text: str) -> exp.Expression:
    """Parse one condition or row-wise expression; subqueries and aggregates are refused."""
    tree = _parse_one(f"SELECT {text}")
    clauses = [name for name, value in tree.args.items() if value and name != "expressions"]
    if not isinstance(tree, exp.Select) or len(tree.expressions) != 1 or clauses:
        raise QueryError(f"{text!r} is not one condition; write for example: Flux1 / dFlux1 > 5 and Class = -1")
    found = tree.expressions[0]
    _check(found, (*_EXPRESSION, *_FUNCTIONS))
    if found.find(exp.AggFunc, exp.Window, exp.Alias):
        raise QueryError(f"{text!r}: aggregates and windows need a whole query; use sql(collection, 'SELECT …')")
    return found


def _plain_logarithm(node: exp.Expression) -> exp.Expression:
    """Return log10 and log2 as they were written: with a base as argument, DuckDB divides and gives log(10, 1000) < 3."""
    if isinstance(node, exp.Log) and node.args.get("expression") and node.this.sql() in ("2", "10"):
        return exp.Anonymous(this=f"log{node.this.sql()}", expressions=[node.expression.transform(_plain_logarithm)])
    return node


def _parse_one(text: str) -> exp.Expression:
    if len(text) > LONGEST_TEXT:
        raise QueryError(f"a query has at most {LONGEST_TEXT:,} characters, not {len(text):,}")
    try:
        trees = sqlglot.parse(text, dialect=DIALECT)
    except (ParseError, TokenError) as error:
        raise QueryError(f"this is not SQL we understand: {str(error).splitlines()[0]}") from error
    except RecursionError:
        raise QueryError("this query is nested too deeply") from None
    if len(trees) != 1 or trees[0] is None:
        raise QueryError("give exactly one statement")
    return trees[0].transform(_plain_logarithm)


def _check(tree: exp.Expression, allowed: tuple[type[exp.Expression], ...]) -> None:
    depth = {id(tree.parent): 0}
    for node in tree.walk():
        depth[id(node)] = depth[id(node.parent)] + 1
        if depth[id(node)] > DEEPEST:
            raise QueryError(f"this query is nested too deeply: more than {DEEPEST} expressions inside each other")
        if isinstance(node, exp.Anonymous) and node.name.lower() in _NAMED | _SKY:
            continue
        if isinstance(node, (exp.Min, exp.Max)) and len([value for value in node.args.values() if value]) > 1:
            raise QueryError(f"{node.sql(dialect=DIALECT)[:60]}: min and max take one argument; use least or greatest, or LIMIT")
        if isinstance(node, _REFUSED_BINARY) or not isinstance(node, allowed):
            raise QueryError(f"{_word(node)} is not allowed in a query; see the list of functions and clauses in the README")
        if isinstance(node, exp.Table) and not isinstance(node.this, exp.Identifier):
            raise QueryError(f"{node.sql(dialect=DIALECT)[:60]}: only the views may stand after FROM, no function and no file")
        if isinstance(node, exp.Table) and (node.args.get("db") or node.args.get("catalog")):
            raise QueryError(f"{node.sql(dialect=DIALECT)}: only the plain name of a view may stand after FROM")


def _word(node: exp.Expression) -> str:
    if isinstance(node, exp.Anonymous):
        return f"the function {node.name}"
    if isinstance(node, exp.Func):
        return f"the function {node.sql_name().lower()}"
    return str(node.key).upper()


def spell(tree: Tree, names: Iterable[str]) -> Tree:
    """Return the tree with every identifier spelled as in ``names`` where it differs by case alone, and quoted."""
    exact = set(names)
    known = {name.lower(): name for name in sorted(exact, reverse=True)}
    for node in tree.find_all(exp.Identifier):
        if node.name not in exact:
            node.set("this", known.setdefault(node.name.lower(), node.name))
        node.set("quoted", True)
    return tree


def unknown_column(name: str, names: Iterable[str]) -> str:
    """Return the message for a column that is not there."""
    return f"no column {name!r}; {nearest(name, names)}"
