"""Which rows stay: predicates in order, bounds that no true value leaves, and the books of both."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.condition import Condition, parse_condition
from scalable.errors import ColumnError, nearest
from scalable.release.recipe import Recipe

REJECTED = pa.schema(
    [
        ("object_id", pa.int64()),
        ("source_id", pa.int64()),
        ("source_row", pa.int64()),
        ("stage", pa.string()),
        ("rule", pa.string()),
        ("column", pa.string()),
        ("value", pa.string()),
    ]
)
"""Rows that are not in the release: which they are, the rule that took them, and the value that it took them for."""
_ROW = "__row"


@dataclass(frozen=True)
class Rule:
    """One cut: its name, the condition that a row must fulfil to stay, and the stage that its rows are listed under."""

    name: str
    stage: str
    condition: Condition


@dataclass(frozen=True)
class Cuts:
    """All cuts in order, the conditions of the release's own flags, and that of simulated rows."""

    rules: tuple[Rule, ...]
    flags: tuple[tuple[str, Condition], ...]
    simulated: Condition | None = None


def parse_cuts(recipe: Recipe, schema: pa.Schema) -> Cuts:
    """Check every condition of a recipe against the columns; nothing is computed."""
    rules = [Rule(p.name, "select", parse_condition(p.where, schema)) for p in recipe.select]
    for error in recipe.outliers.erroneous:
        if error.column not in schema.names:
            raise ColumnError(f"outliers.erroneous: no column {error.column!r}; {nearest(error.column, schema.names)}")
        bounds = [f'"{error.column}" >= {error.at_least!r}'] if error.at_least is not None else []
        bounds += [f'"{error.column}" <= {error.at_most!r}'] if error.at_most is not None else []
        # A cell without a value is not erroneous.
        text = f'"{error.column}" IS NULL OR ({" AND ".join(bounds)})'
        rules.append(Rule(f"{error.column} in bounds", "erroneous", parse_condition(text, schema)))
    flags = tuple((flag.name, parse_condition(flag.where, schema)) for flag in recipe.flags)
    return Cuts(tuple(rules), flags, parse_condition(recipe.simulated, schema) if recipe.simulated else None)


def holds(table: pa.Table, condition: Condition) -> NDArray[np.int64]:
    """Return the rows, from 0, for which a condition is true."""
    rows = pa.array(np.arange(table.num_rows))
    return condition.apply(table.select(list(condition.columns)).append_column(_ROW, rows))[_ROW].to_numpy()


def cut(table: pa.Table, keys: Mapping[str, NDArray[np.int64]], cuts: Cuts) -> tuple[NDArray[np.int64], pa.Table, dict[str, int]]:
    """Return the rows that stay, those that go with rule and value, and how many each rule dropped.

    Parameters
    ----------
    table : pyarrow.Table
        Rows of one leaf.
    keys : mapping of ndarray
        ``object_id``, ``source_id`` and ``source_row`` of each.
    cuts : Cuts
        Applied in order: a row is listed under the first that it fails.
    """
    alive = np.arange(table.num_rows)
    pieces, dropped = [REJECTED.empty_table()], {}
    for rule in cuts.rules:
        here = table.take(alive) if len(alive) < table.num_rows else table
        stay = holds(here, rule.condition)
        gone = np.setdiff1d(np.arange(len(alive)), stay)
        dropped[rule.name] = len(gone)
        if len(gone):
            n, lost = len(gone), alive[gone]
            names = rule.condition.columns
            texts = [pc.cast(here[name].combine_chunks().take(pa.array(gone)), pa.string()).fill_null("null") for name in names]
            value = texts[0] if len(names) == 1 else _named(names, texts)
            columns = [pa.array(keys[name][lost]) for name in ("object_id", "source_id", "source_row")]
            words = (rule.stage, rule.name, ",".join(names))
            pieces.append(pa.table([*columns, *(pa.repeat(word, n) for word in words), value], schema=REJECTED))
        alive = alive[np.sort(stay)]
    return alive, pa.concat_tables(pieces), dropped


def _named(names: tuple[str, ...], texts: list[pa.Array]) -> pa.Array:
    cells = [pc.binary_join_element_wise(name, text, "=") for name, text in zip(names, texts, strict=True)]
    return pc.binary_join_element_wise(*cells, ", ")


def own_flags(table: pa.Table, cuts: Cuts, *, first_bit: int) -> NDArray[np.int32]:
    """Return the bits of the recipe's flags for every row."""
    bits = np.zeros(table.num_rows, dtype=np.int32)
    for number, (_, condition) in enumerate(cuts.flags):
        bits[holds(table, condition)] |= np.int32(1 << (first_bit + number))
    return bits
