"""What a release's rows are: which columns, from which steps on a leaf of detections, and what each of them means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pyarrow as pa

from scalable.catalog.bands import join_bands
from scalable.catalog.catalog import Catalog
from scalable.catalog.light_curves import KEYS
from scalable.catalog.steps import Step
from scalable.catalog.variability import variability
from scalable.errors import ColumnError, nearest
from scalable.io.layout import HEALPIX_COLUMN
from scalable.kernels.partition import boundaries
from scalable.kernels.variability import DEFAULT
from scalable.release.recipe import Meaning, Recipe
from scalable.schema import Column, Schema, State
from scalable.survey.description import Survey

OWN = ("object_id", "ra", "dec", "split", "fold", "weight", "flags", "origin", "outlier_distance", "outlier_class", "source_id",
       "source_row", "lc_offset", "lc_count", "row_digest")  # fmt: skip
"""Datasets that every release has, or that nothing else may be called."""
LIGHT_CURVE_KEYS = ("observation_id", "source_row", "band", "mjd")
_KEY_ROLES = ("object_id", "ra", "dec", "band", "time", "observation_id", "quality")


@dataclass(frozen=True)
class Together:
    """Several steps on the same leaf, each of which gives one row per object, side by side."""

    name: ClassVar[str] = "together"
    steps: tuple[Step, ...]

    def parameters(self) -> dict[str, Any]:
        """Return the parameters of every step under its name."""
        return {step.name: step.parameters() for step in self.steps}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns of all steps, those of the same name once."""
        fields = {field.name: field for step in self.steps for field in step.output(schema)}
        return pa.schema(list(fields.values()), schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return what any of the steps needs."""
        return list(dict.fromkeys(name for step in self.steps for name in step.needs(wanted)))

    def apply(self, table: pa.Table) -> pa.Table:
        """Apply every step to the same rows."""
        columns: dict[str, Any] = {}
        for step in self.steps:
            found = step.apply(table)
            columns |= dict(zip(found.column_names, found.columns, strict=True))
        return pa.table(columns)


@dataclass(frozen=True)
class Keys:
    """Give one row an object, its keys and position alone."""

    name: ClassVar[str] = "objects"

    def parameters(self) -> dict[str, Any]:
        """Return nothing: there is nothing to choose."""
        return {}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the keys."""
        return pa.schema([schema.field(name) for name in KEYS], schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the keys."""
        return list(KEYS)

    def apply(self, table: pa.Table) -> pa.Table:
        """Take the first row of every object."""
        edges = boundaries(table[HEALPIX_COLUMN].to_numpy(), table["object_id"].to_numpy())
        return table.select(list(KEYS)).take(pa.array(edges[:-1]))


def catalog_of(detections: Catalog, recipe: Recipe) -> Catalog:
    """Return the rows of the release before anything is dropped, with keys and position; nothing is computed."""
    if recipe.rows == "detections":
        for name in recipe.keep:
            if name not in detections.columns:
                raise ColumnError(f"keep: no column {name!r} in the detections; {nearest(name, detections.columns.names)}")
        if not recipe.keep:
            return detections
        keys = (*KEYS, *LIGHT_CURVE_KEYS)
        return detections.select(*dict.fromkeys([*keys, *recipe.keep]))
    steps: list[Step] = [Keys()]
    if recipe.join:
        join = recipe.join
        steps += join_bands(detections, join.bands, values=join.values, pick=join.pick).chain.steps[-1:]
    if recipe.statistics:
        asked = recipe.statistics
        names = asked.statistics or DEFAULT
        steps += variability(detections, names, bands=asked.bands, values=asked.values).chain.steps[-1:]
    for name in recipe.light_curves:
        if name not in detections.columns:
            raise ColumnError(f"light_curves: no column {name!r} in the detections; {nearest(name, detections.columns.names)}")
    return detections.then(Together(tuple(steps)))


def curve_schema(detections: Catalog, recipe: Recipe) -> pa.Schema:
    """Return the columns of the detections that lie beside objects: keys, what the recipe asks for, and its states."""
    stored = detections.columns.names
    states = [f"{name}_state" for name in recipe.light_curves if f"{name}_state" in stored]
    chosen = dict.fromkeys(["object_id", *LIGHT_CURVE_KEYS, *recipe.light_curves, *states])
    return pa.schema([detections.schema.field(name) for name in chosen], detections.schema.metadata)


@dataclass(frozen=True)
class Feature:
    """One released column: its name in the catalogue, what it means, and the state of its nulls."""

    source: str
    column: Column
    meaning: Meaning
    state: str = ""
    """Column of the catalogue that holds the state of each cell, if there is one."""
    band: str = ""
    """Band of whose detections it was computed, if it was."""

    @property
    def nullable(self) -> bool:
        """Whether each cell has a state."""
        return self.column.role not in _KEY_ROLES and not pa.types.is_string(self.column.dtype)

    @property
    def null_state(self) -> State:
        """What a null means where no column says so."""
        return State[(self.column.null_state or "not_observed").upper()]


def features(schema: pa.Schema, survey: Survey, recipe: Recipe) -> tuple[Feature, ...]:
    """Return the released columns of a catalogue, or of its light curves, with what survey and recipe say of them."""
    known = Schema.from_arrow(schema)
    skipped = {HEALPIX_COLUMN, "object_id", "object_ra", "object_dec", "observation_id", "source_row"}
    states = {f"{name}_state" for name in known.names} & set(known.names)
    found = []
    for column in known:
        if column.name in skipped | states:
            continue
        meaning = recipe.meaning(column.name)
        name = column.name if column.name not in OWN else f"{column.name}_in_source"
        error = column.error if column.error in known.names else ""
        described = replace(
            column, name=name, error=error, unit=column.unit or _number(column, survey, meaning),
            description=meaning.description or column.description, ucd=meaning.ucd or column.ucd,
        )  # fmt: skip
        if meaning.unit:
            described = replace(described, unit=meaning.unit)
        default = Meaning(obtained=_obtained(column.name, survey, recipe), reason=_reason(column))
        given = {key: value for key, value in meaning.model_dump().items() if value}
        state = f"{column.name}_state" if f"{column.name}_state" in states else ""
        of_band = "" if default.obtained.startswith("column of") else _band_of(column.name, survey.bands)
        found.append(Feature(column.name, described, default.model_copy(update=given), state, of_band))
    return tuple(found)


def _band_of(name: str, bands: Sequence[str]) -> str:
    return next((band for band in sorted(bands, key=len, reverse=True) if name.startswith(f"{band}_")), "")


def _number(column: Column, survey: Survey, meaning: Meaning) -> str:
    """Return ``1`` for a column that is known to be a pure number, a text or a code, else nothing."""
    rules = [rule for name, rule in survey.columns.items() if column.name == name or column.name.endswith(f"_{name}")]
    declared = any(rule.unit == "" for rule in rules) or meaning.unit == ""
    plain = column.role in _KEY_ROLES or not pa.types.is_floating(column.dtype) or bool(column.source_unit)
    return "1" if declared or plain or column.name[:2] == "n_" else ""


def _reason(column: Column) -> str:
    reasons = {
        "band": "Tells the filters apart",
        "time": "Orders the epochs",
        "quality": "Kept untouched, for cuts of the reader",
    }
    return reasons.get(column.role, "")


def _obtained(name: str, survey: Survey, recipe: Recipe) -> str:
    rule = survey.columns.get(name)
    if rule or recipe.rows == "detections" or name in recipe.light_curves:
        overruled = rule is not None and rule.unit is not None
        return "column of the source files" + ("; unit as the survey declares it" if overruled else "")
    pick = recipe.join.pick if recipe.join else ""
    joined = recipe.join is not None and any(name.endswith(f"_{value}") for value in recipe.join.values)
    return f"join_bands over the detections of an object (pick: {pick})" if joined else "variability: statistic of a light curve"
