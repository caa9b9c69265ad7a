"""Batches from tables: which rows count, the features made of them, and what folds keep together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.light_curves import floats
from scalable.errors import ColumnError, InputError, nearest
from scalable.io.layout import HEALPIX_COLUMN
from scalable.io.rules import factor
from scalable.kernels.counter import Keys
from scalable.kernels.features import Features, units_of
from scalable.schema import Column, Schema, State, parse_unit
from scalable.sky.healpix import to_pixels
from scalable.sky.pixel import MAX_ORDER
from scalable.survey.tables import ColumnRule
from scalable.train.batches import BLOCK_ROWS, Batches, Block, Float
from scalable.train.rows import Origin, Rows, origin_of, rows_of

Data: TypeAlias = "Origin | Batches"


@dataclass(frozen=True)
class TablePart:
    """Rows of tables, turned into features."""

    rows: Rows
    features: Features
    target: str
    weight: str
    key: str
    sky: tuple[int, tuple[str, ...], float]
    columns: tuple[str, ...]
    null_states: tuple[tuple[str, str], ...]

    def blocks(self) -> Iterator[Block]:
        """Yield the rows that count."""
        for table in self.rows.tables(self.columns):
            for start in range(0, table.num_rows, BLOCK_ROWS):
                yield self._block(table.slice(start, BLOCK_ROWS))[0]

    def left_out(self) -> dict[str, int]:
        """Return how many rows do not count, by reason, and as ``used`` how many do."""
        total: dict[str, int] = {"used": 0}
        for table in self.rows.tables(self.columns):
            block, found = self._block(table)
            total["used"] += len(block)
            for reason, number in found.items():
                total[reason] = total.get(reason, 0) + number
        return total

    def _block(self, table: pa.Table) -> tuple[Block, dict[str, int]]:
        columns, kept, reasons = build(table, self.features, dict(self.null_states))
        # Most tables lack nothing, and a slice copies nothing.
        own: Any = slice(None) if columns.shape[1] == len(kept) else np.flatnonzero(kept)
        extra = [floats(table, name)[own] for name in (self.target, self.weight) if name]
        known = np.logical_and.reduce([np.isfinite(values) for values in extra]) if extra else np.True_
        if not known.all():
            reasons["no target or weight"] = int(np.count_nonzero(~known))
        if self.weight and (zero := _weightless(extra[-1], self.weight)).any():
            reasons["weight 0"] = int(np.count_nonzero(zero & known))
            known = known & ~zero
        if not known.all():
            own = np.flatnonzero(kept)[known]
            columns, extra = np.ascontiguousarray(columns[:, known]), [values[known] for values in extra]
        target = extra[0] if self.target else None
        weight = extra[-1] if self.weight else None
        keys = _id_keys(table[self.key])[own] if self.key else None
        groups = _pixels(table, *self.sky)[own] if self.sky[1] else None
        return Block(columns, target, weight, keys, groups), reasons


def build(table: pa.Table, features: Features, null_states: Mapping[str, str]) -> tuple[Float, NDArray[np.bool_], dict[str, int]]:
    """Return the features of the rows of a table that count, which these are, and how many are left out and why."""
    values = {name: floats(table, name) for name in features.columns}
    states = {}
    for name in features.values:
        if f"{name}_state" in table.column_names:
            states[name] = table[f"{name}_state"].combine_chunks().to_numpy(zero_copy_only=False).astype(np.uint8)
        elif null_states.get(name):
            code = State[null_states[name].upper()]
            states[name] = np.where(np.isfinite(values[name]), State.MEASURED, code).astype(np.uint8)
    return features.build(values, states)


def null_states_of(schema: Schema, features: Features) -> dict[str, str]:
    """Return what a null means in the columns of features, where the schema says so."""
    return {column.name: column.null_state for column in schema if column.name in features.values and column.null_state}


def columns_of(schema: Schema, features: Features) -> list[str]:
    """Return the columns to read for features, states included."""
    return [*features.columns, *(f"{name}_state" for name in features.values if f"{name}_state" in schema)]


def batches_of(
    data: Data,
    features: Features,
    *,
    target: str = "",
    weight: str = "",
    key: str = "",
    sky_order: int | None = None,
    rules: Mapping[str, ColumnRule] | None = None,
    split: str = "",
) -> Batches:
    """Return the rows of a catalogue, a release, files, a table or blocks as batches; headers are read, rows are not.

    Parameters
    ----------
    data : Catalog, release, pyarrow.Table, path, sequence of paths, or iterable of blocks
        Files may be FITS, VOTable, Parquet, HDF5, CSV, ECSV or text, and are streamed; all have the columns of the first. Blocks
        are tables of Arrow or mappings of names to arrays, from something that can be gone through again; the first is looked at.
    features : Features
        What is made of the columns.
    target, weight : str
        Columns with what is learnt and with row weights; rows without are left out, and so are those of weight 0.
    key : str
        Column that identifies a row, for folds and bootstrap; by default its values do.
    sky_order : int, optional
        HEALPix order of the pixels that folds keep together; needs positions (columns with the roles ``ra`` and ``dec``).
    rules : mapping of str to ColumnRule, optional
        Null rules and units for columns of files and blocks, as in a survey description.
    split : str, optional
        Of a release: ``train``, ``validation`` or ``test``; by default all rows.

    Raises
    ------
    ColumnError
        If a column is not there, or a colour would mix units.
    InputError
        Once the rows are read, if a weight is negative.
    """
    if isinstance(data, Batches):
        return data
    schema, rows = rows_of(data, rules, split=split)
    for name in filter(None, (*features.columns, target, weight, key)):
        schema[name]
    units = {column.name: column.unit for column in schema}
    _check_colours(features, units)
    sky = _sky_columns(schema, sky_order)
    read = tuple(dict.fromkeys(filter(None, (*columns_of(schema, features), target, weight, key, *sky[1]))))
    null_states = tuple(null_states_of(schema, features).items())
    parts = tuple(TablePart(part, features, target, weight, key, sky, read, null_states) for part in rows)
    own = tuple((name, units[name]) for name in features.columns)
    of_features = tuple(units_of(features, units))
    return Batches(parts, tuple(features.names), of_features, target, units.get(target, ""), own, origin_of(data))


def left_out(batches: Batches) -> dict[str, int]:
    """Count, in one pass over tables, the rows that do not count, by reason, and under ``used`` those that do."""
    total: dict[str, int] = {}
    for reasons in batches.each(TablePart.left_out):
        for reason, number in reasons.items():
            total[reason] = total.get(reason, 0) + number
    return total


def _check_colours(features: Features, units: Mapping[str, str]) -> None:
    known = [name for name in features.magnitudes if units[name]]
    for name in known[1:]:
        if parse_unit(units[name]) != parse_unit(units[known[0]]):
            said = f"{known[0]} [{units[known[0]]}] and {name} [{units[name]}]"
            raise ColumnError(f"no colour of {said}: convert one of them first, or give its true unit in a rule")


def _sky_columns(schema: Schema, order: int | None) -> tuple[int, tuple[str, ...], float]:
    """Return the order, the columns with positions, and what these are multiplied with to be degrees."""
    if order is None:
        return 0, (), 1.0
    if HEALPIX_COLUMN in schema:
        return order, (HEALPIX_COLUMN,), 1.0
    named: list[Column] = []
    for role in ("ra", "dec"):
        own = schema.by_role(role) or [column for column in schema if column.name.lower() == role]
        if not own:
            raise ColumnError(f"folds by sky need a column with role {role}; {nearest(role, schema.names)}")
        named.append(own[0])
    return order, (named[0].name, named[1].name), factor(named[0].unit or "deg", "deg", named[0].name)


def _pixels(table: pa.Table, order: int, columns: tuple[str, ...], degrees: float) -> Keys:
    if columns == (HEALPIX_COLUMN,):
        return table[HEALPIX_COLUMN].to_numpy().astype(np.uint64) >> np.uint64(2 * (MAX_ORDER - order))
    ra, dec = (floats(table, name) * degrees for name in columns)
    return to_pixels(ra, dec, order).astype(np.uint64)


def _weightless(weight: Float, name: str) -> NDArray[np.bool_]:
    """Return which rows have the weight 0, and refuse weights below."""
    if (below := weight[weight < 0]).size:
        raise InputError(f"{name} is {below[0]:g} in a row: a weight is 0, which leaves the row out, or more")
    return weight == 0


def _id_keys(column: pa.ChunkedArray) -> Keys:
    if pa.types.is_integer(column.type):
        # NumPy would take the numbers beside a null for floats, and large ones would become the same.
        return column.fill_null(0).to_numpy().astype(np.uint64)
    texts = column.cast(pa.string()).to_pylist()
    return np.array([int.from_bytes(hashlib.blake2b(str(t).encode(), digest_size=8).digest(), "big") for t in texts], np.uint64)
