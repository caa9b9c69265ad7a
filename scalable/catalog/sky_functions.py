"""Regions of the sky in SQL: ``in_cone``, ``in_box``, ``in_polygon``, ``in_moc``; ADQL's ``CONTAINS(POINT, CIRCLE) = 1``."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, NoReturn, TypeVar

import numpy as np
import pyarrow as pa
from sqlglot import exp

from scalable.catalog.dialect import DIALECT
from scalable.errors import InputError, QueryError
from scalable.io.moc import parse_moc
from scalable.sky.region import Box, Cone, Moc, Polygon, Region

FORMS = {
    "in_cone": "in_cone(ra, dec, centre_ra, centre_dec, radius_deg)",
    "in_box": "in_box(ra, dec, ra_from, ra_to, dec_from, dec_to)",
    "in_polygon": "in_polygon(ra, dec, ra1, dec1, ra2, dec2, ra3, dec3, …)",
    "in_moc": "in_moc(ra, dec, '4/30-33 38 …')",
}
"""How they are written, all in degrees; without the first two arguments they ask for the position of the object."""
_SHORT = {"in_cone": 3, "in_box": 4, "in_moc": 1}
_ADQL = {"circle": "in_cone", "polygon": "in_polygon", "point": ""}
_REGION = "_region_"

Tree = TypeVar("Tree", bound=exp.Expression)
Membership = Callable[[pa.ChunkedArray, pa.ChunkedArray], pa.Array]


def take_regions(tree: Tree, position: Sequence[str], radians: Collection[str] = ()) -> tuple[Tree, tuple[Region, ...]]:
    """Return the tree with a plain function of the position for every question about a region, and these regions.

    Parameters
    ----------
    tree : Expression
        Checked, not yet qualified.
    position : sequence of str
        Columns with the position of the object, for the short form; empty where there are none.
    radians : collection of str
        Columns that are in radians and so are none for these functions.

    Raises
    ------
    QueryError
        If the arguments are not what the function needs.
    """
    regions: list[Region] = []
    asked: list[tuple[type, dict[str, Any]]] = []

    def ask(place: Sequence[exp.Expression], region: Region) -> exp.Expression:
        # The same question has the same words, so that it can be grouped by.
        if (type(region), region.parameters()) not in asked:
            asked.append((type(region), region.parameters()))
            regions.append(region)
        number = asked.index((type(region), region.parameters()))
        for node in place:
            if isinstance(node, exp.Column) and node.name in radians:
                raise QueryError(f"{node.name} is in radians, regions are in degrees: write degrees({node.name})")
        return exp.Anonymous(this=f"{_REGION}{number}", expressions=list(place))

    def question(node: exp.Expression) -> exp.Expression:
        if isinstance(node, exp.Anonymous) and node.name.lower() in FORMS:
            name, arguments = node.name.lower(), node.expressions
            plain = bool(arguments) and isinstance(_bare(arguments[0]), exp.Literal)
            short = len(arguments) == _SHORT[name] if name in _SHORT else plain
            place = _own_position(node, position) if short else arguments[:2]
            return ask(place, _region(name, arguments if short else arguments[2:], node))
        if isinstance(node, exp.EQ) and any(isinstance(side, exp.Contains) for side in (node.left, node.right)):
            geometry, wanted = (node.left, node.right) if isinstance(node.left, exp.Contains) else (node.right, node.left)
            if wanted.sql() not in ("0", "1"):
                _refuse(node, "CONTAINS(…) = 1, or = 0")
            found = _adql(geometry, ask)
            return found if wanted.sql() == "1" else exp.Not(this=found)
        return node

    tree = tree.transform(question)
    left = next((node for node in tree.find_all(exp.Contains, exp.Anonymous) if _is_geometry(node)), None)
    if left is not None:
        _refuse(left, f"CONTAINS(POINT(ra, dec), CIRCLE(ra, dec, radius)) = 1, or {FORMS['in_cone']}")
    return tree, tuple(regions)


def region_number(node: exp.Expression) -> int | None:
    """Return the number of the region that a node asks for, or None for any other node."""
    if isinstance(node, exp.Anonymous) and node.name.startswith(_REGION):
        return int(node.name.removeprefix(_REGION))
    return None


def memberships(regions: Sequence[Region]) -> dict[str, Membership]:
    """Return the functions that a statement with regions calls, by name."""
    return {f"{_REGION}{number}": _membership(region) for number, region in enumerate(regions)}


def _membership(region: Region) -> Membership:
    def contains(ra: pa.ChunkedArray, dec: pa.ChunkedArray) -> pa.Array:
        return pa.array(region.contains(np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)))

    return contains


def _is_geometry(node: exp.Expression) -> bool:
    return isinstance(node, exp.Contains) or node.name.lower() in _ADQL


def _adql(node: exp.Contains, ask: Callable[[Sequence[exp.Expression], Region], exp.Expression]) -> exp.Expression:
    """Return the question that CONTAINS(POINT(…), CIRCLE(…)) asks."""
    place, shape = _shape(node.this), _shape(node.expression)
    if place is None or place[0] != "point" or len(place[1]) != 2 or shape is None or not _ADQL[shape[0]]:
        _refuse(node, "CONTAINS(POINT(ra, dec), CIRCLE(ra, dec, radius)) = 1; for boxes write in_box, for maps in_moc")
    return ask(place[1], _region(_ADQL[shape[0]], shape[1], node))


def _shape(node: exp.Expression) -> tuple[str, list[exp.Expression]] | None:
    """Return name and flat arguments of an ADQL geometry; the coordinate system may only be ICRS."""
    if not isinstance(node, exp.Anonymous) or node.name.lower() not in _ADQL:
        return None
    arguments = list(node.expressions)
    if arguments and arguments[0].is_string and arguments.pop(0).name.upper() not in ("ICRS", ""):
        _refuse(node, "ICRS: positions are in no other system")
    flat: list[exp.Expression] = []
    for argument in arguments:
        point = _shape(argument)
        flat += point[1] if point and point[0] == "point" else [argument]
    return node.name.lower(), flat


def _own_position(node: exp.Expression, position: Sequence[str]) -> list[exp.Expression]:
    """Return the position of the object in the first table of the SELECT that a question stands in."""
    if not position:
        _refuse(node, f"{FORMS[node.name.lower()]}: these rows have no position of their own")
    select = node.find_ancestor(exp.Select)
    source = select.args.get("from_") if select else None
    table = source.this.alias_or_name if source else None
    return [exp.column(name, table=table, quoted=True) for name in position]


def _region(name: str, arguments: Sequence[exp.Expression], node: exp.Expression) -> Region:
    try:
        if name == "in_moc":
            return _moc(arguments, node)
        numbers = [_number(argument, node) for argument in arguments]
        if name == "in_cone" and len(numbers) == 3:
            return Cone(numbers[0], numbers[1], numbers[2] * 3600)
        if name == "in_box" and len(numbers) == 4:
            return Box((numbers[0], numbers[1]), (numbers[2], numbers[3]))
        if name == "in_polygon" and len(numbers) % 2 == 0:
            return Polygon(tuple(zip(numbers[::2], numbers[1::2], strict=True)))
    except (ValueError, InputError) as error:
        if isinstance(error, QueryError):
            raise
        raise QueryError(f"{node.sql(dialect=DIALECT)[:120]}: {error}") from error
    _refuse(node, FORMS[name])


def _moc(arguments: Sequence[exp.Expression], node: exp.Expression) -> Moc:
    if len(arguments) != 1 or not (isinstance(arguments[0], exp.Literal) and arguments[0].is_string):
        _refuse(node, FORMS["in_moc"])
    return parse_moc(arguments[0].name)


def _bare(node: exp.Expression) -> exp.Expression:
    return node.this if isinstance(node, exp.Neg) else node


def _number(node: exp.Expression, whole: exp.Expression) -> float:
    bare = _bare(node)
    if not isinstance(bare, exp.Literal) or bare.is_string:
        _refuse(whole, "numbers for the region: which leaves it touches is settled before anything is read")
    return -float(bare.name) if bare is not node else float(bare.name)


def _refuse(node: exp.Expression, instead: str) -> NoReturn:
    raise QueryError(f"{node.sql(dialect=DIALECT)[:120]}: write {instead}")
