"""The survey's rules on columns, settled once at the door: sentinels to nulls with a state, declared units, conversions."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.errors import ColumnError, InputError, nearest
from scalable.schema import Column, Schema, State, parse_unit, standard_unit
from scalable.survey.description import STORED_NAMES
from scalable.survey.tables import ColumnRule, NullRule

WORK_PREFIX = "_work_"
"""How the columns begin that ingest adds while it works; no column of a file may."""


_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "value": operator.eq,
    "at_most": operator.le,
    "below": operator.lt,
    "at_least": operator.ge,
    "above": operator.gt,
}


def stored_schema(source: Schema, rules: Mapping[str, ColumnRule], *, path: str) -> Schema:
    """Return the columns that a source table gives under the survey's rules: its own, then states, then conversions.

    Raises
    ------
    ColumnError
        If a column that the survey declares is not in the file.
    """
    reserved = {name.lower() for name in STORED_NAMES}
    for name in source.names:
        if name.lower() in reserved or name.startswith(WORK_PREFIX):
            raise InputError(
                f"{path}: the column {name!r} has a name that ingest gives to a column of its own; rename it in the file"
            )
    for name in rules:
        if name not in source:
            raise ColumnError(f"{path}: no column {name!r} although the survey declares it; {nearest(name, source.names)}")
    own, added = [], []
    for column in source:
        rule = rules.get(column.name)
        own.append(_described(column, rule or ColumnRule()))
        if rule and _needs_states(rule):
            added.append(state_column(column.name))
        if rule and rule.convert:
            text = f"{column.name} converted from {own[-1].unit or 'dimensionless'}"
            convert = rule.convert
            added.append(Column(convert.name, pa.float64(), role="value", unit=convert.unit, ucd=rule.ucd, description=text))
    taken = {column.name.lower() for column in own}
    for column in added:
        if column.name.lower() in taken:
            raise InputError(f"{path}: the added column {column.name!r} clashes with one of the file; choose another name")
        taken.add(column.name.lower())
    return Schema(tuple(own + added))


def state_column(name: str) -> Column:
    """Return the column that says of every cell of another whether it is measured, and if not, why."""
    text = f"Why {name} is null: " + ", ".join(f"{s.value} {s.name.lower()}" for s in State)
    return Column(f"{name}_state", pa.uint8(), role="quality", description=text)


def apply_rules(table: pa.Table, schema: Schema, rules: Mapping[str, ColumnRule]) -> pa.Table:
    """Return the columns of `stored_schema` for one block of a source table."""
    columns = dict(zip(table.column_names, table.columns, strict=True))
    for name, rule in rules.items():
        column = columns[name]
        if rule.nulls:
            columns[name], states = _without_sentinels(column, rule)
            if _needs_states(rule):
                columns[f"{name}_state"] = states
        if rule.convert:
            columns[rule.convert.name] = pc.multiply(
                column_of_floats(columns[name]), factor(schema[name].unit, rule.convert.unit, name)
            )
    return pa.table([columns[name] for name in schema.names], schema=schema.to_arrow())


def column_of_floats(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return the column as float64; nulls stay."""
    return pc.cast(column, pa.float64())


def factor(unit: str, target: str, name: str) -> float:
    """Return what a value in ``unit`` is multiplied with to be in ``target``."""
    given, wanted = parse_unit(unit), parse_unit(target)
    try:
        return float(given.to(wanted))  # type: ignore[union-attr]
    except Exception as error:
        raise InputError(f"columns.{name}: {unit or 'a dimensionless value'} cannot be converted to {target}") from error


def _described(column: Column, rule: ColumnRule) -> Column:
    """Return a source column under its rule: a declared unit overrules the header, whose text is kept beside it."""
    given = column.source_unit or column.unit
    unit = rule.unit if rule.unit is not None else standard_unit(given) or ""
    description = rule.description or column.description
    if rule.aperture_arcsec:
        description += f" (aperture {rule.aperture_arcsec:g} arcsec)"
    return replace(
        column,
        role=rule.role,
        unit=unit,
        source_unit="" if given == unit else given,
        ucd=rule.ucd or column.ucd,
        description=description,
        error=rule.error,
        null_state=rule.null_state,
    )


def _takes(values: NDArray[Any], rule: NullRule) -> NDArray[np.bool_]:
    """Return which numbers a null rule takes, compared in the column's own precision: -9.999 is another number as a float32."""
    name, bound = rule.bound
    if values.dtype.kind == "f":
        with np.errstate(over="ignore"):
            stored = values.dtype.type(bound)
        # A number beyond the range of the column is compared in double precision: only an infinity lies behind it.
        return _COMPARE[name](values, stored if np.isfinite(stored) == np.isfinite(bound) else np.float64(bound))
    if not np.isfinite(bound):
        return np.zeros(len(values), dtype=bool)
    # Python's integers are exact, and NumPy compares with those out of range as it should.
    if name == "value":
        return _COMPARE[name](values, int(bound)) if bound.is_integer() else np.zeros(len(values), dtype=bool)
    return _COMPARE[name](values, math.floor(bound) if name in ("at_most", "above") else math.ceil(bound))


def _needs_states(rule: ColumnRule) -> bool:
    """Return whether nulls of this column have more than one meaning, so that each cell needs its own state."""
    return any(null.state != rule.null_state for null in rule.nulls)


def _without_sentinels(column: pa.ChunkedArray, rule: ColumnRule) -> tuple[pa.ChunkedArray, pa.Array]:
    values = column.combine_chunks()
    if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise InputError(f"a column of {values.type} has no sentinel {rule.nulls[0].bound[1]:g}; only numbers have")
    numbers = values.fill_null(0).to_numpy(zero_copy_only=False)
    null = values.is_null().to_numpy(zero_copy_only=False)
    states = np.where(null, State[rule.null_state.upper()], State.MEASURED).astype(np.uint8)
    for sentinel in rule.nulls:
        # What an earlier rule took keeps its state.
        states[(states == State.MEASURED) & _takes(numbers, sentinel)] = State[sentinel.state.upper()]
    return pa.chunked_array([pc.if_else(pa.array(states == 0), values, pa.scalar(None, values.type))]), pa.array(states)
