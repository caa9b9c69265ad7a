"""Simulated rows: drawn from a mixture by counter, marked in every cell, and drawn again by whoever has the release."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.errors import ColumnError, InputError, nearest
from scalable.io.arrays import read_arrays
from scalable.kernels.features import Features
from scalable.kernels.mixture import Parameters, draw_rows
from scalable.release.assemble import BEFORE, GUARD, Arrays, Robust, assemble
from scalable.release.observed import ABSENT
from scalable.release.recipe import Recipe, Simulate
from scalable.release.rows import Feature
from scalable.release.select import Cuts
from scalable.release.split import Part
from scalable.schema import State, parse_unit

PART_ROWS = 1 << 16
"""Rows of a shard of simulated rows."""
NO_SOURCE, NO_FOLD = -1, -1
SIMULATED = 2
"""The origin of a simulated row."""
_FIRST_ID = -(1 << 63) + 1
_FOLDER = "data/Simulated/"


@dataclass(frozen=True)
class Drawn:
    """A mixture that rows are drawn from; frozen, and cheap to send: its file is read where rows are drawn.

    Attributes
    ----------
    path, digest : str
        The model's file and its SHA-256.
    columns : tuple of str
        Columns of the catalogue that it gives.
    asked : Simulate
        How many rows, from which seed, for which split.
    """

    path: str
    digest: str
    columns: tuple[str, ...]
    asked: Simulate

    @property
    def parts(self) -> list[str]:
        """Names of the parts that the rows are drawn in."""
        return [f"simulated-{number}" for number in range(-(-self.asked.rows // PART_ROWS))]

    def span_of(self, path: str) -> tuple[int, int]:
        """Return what `span` gives for a shard, by its path."""
        return self.span(f"simulated-{path.removeprefix(f'{_FOLDER}Part=').removesuffix('.h5')}")

    def span(self, part: str) -> tuple[int, int]:
        """Return the first row of a part and the row behind its last."""
        first = int(part.split("-")[1]) * PART_ROWS
        return first, min(first + PART_ROWS, self.asked.rows)

    def values(self, start: int, stop: int) -> dict[str, NDArray[np.float64]]:
        """Return rows by column, as `sample_mixture` draws them."""
        features, parameters = _opened(self.path, self.digest)
        drawn, _ = draw_rows(parameters, start, stop, self.asked.seed)
        found = features.columns_of(drawn)
        return {name: found[name] for name in self.columns}

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest says of the rows."""
        return {"model": self.digest, "columns": list(self.columns), **self.asked.model_dump(mode="json")}


@lru_cache(maxsize=4)
def _opened(path: str, _: str) -> tuple[Features, Parameters]:
    arrays, said, _ = read_arrays(Path(path))
    estimator = said.get("estimator", {})
    if estimator.get("class") != "GaussianMixture" or said.get("transform") is not None:
        raise InputError(f"{path}: is no mixture of columns as they are; give a model that fit_mixture made without transform")
    return Features.from_dict(said["features"]), Parameters(*(arrays[f"estimator.{n}_"] for n in Parameters._fields))


def open_drawn(path: Path, asked: Simulate, released: Sequence[Feature]) -> Drawn:
    """Look at a model that rows are to be drawn from.

    Raises
    ------
    InputError, ColumnError
        If it is no mixture, gives nothing that is released, or in other units.
    """
    _, said, digest = read_arrays(path)
    features, _ = _opened(str(path), digest)
    known = {feature.source: feature for feature in released if feature.nullable and pa.types.is_floating(feature.column.dtype)}
    given = features.given
    columns = tuple(name for name in given if name in known)
    if not columns:
        raise ColumnError(
            f"{path}: gives {', '.join(given) or 'colours alone: fit it with a reference magnitude'}, none of which is released; "
            f"{nearest(given[0] if given else '', known)}"
        )
    for name in columns:
        here, there = known[name].column.unit, said["units"].get(name, "")
        if here != "1" and there and parse_unit(here) != parse_unit(there):
            raise ColumnError(f"{path}: was taught {name} in {there}, it is released in {here}: fit the model anew")
    return Drawn(str(path), digest, columns, asked)


def drawn_arrays(
    drawn: Drawn,
    span: tuple[int, int],
    schema: pa.Schema,
    released: Sequence[Feature],
    recipe: Recipe,
    cuts: Cuts,
    robust: Robust,
    bands: Sequence[str],
) -> Arrays:
    """Return every row-aligned array of simulated rows, in the order of the format.

    What the mixture does not give is empty, or imputed as in every other row. Nothing of them is measured: cells that the mixture
    gives are in the state of imputed ones, they have no position, no source, no fold, and are in the split that was asked for.
    """
    start, stop = span
    n, values = stop - start, drawn.values(start, stop)
    keys = {"object_id": _FIRST_ID + np.arange(start, stop), "source_id": np.full(n, NO_SOURCE),
            "source_row": np.arange(start, stop), "lc_count": np.zeros(n, np.int64)}  # fmt: skip
    given: dict[str, Any] = {"object_id": keys["object_id"], "object_ra": np.zeros(n), "object_dec": np.zeros(n), **values}
    given |= {f.state: np.zeros(n, np.uint8) for f in released if f.state and f.source in values}
    columns = [pa.array(given[f.name]).cast(f.type) if f.name in given else pa.nulls(n, f.type) for f in schema]
    table = pa.table(columns, schema=pa.schema([field.with_nullable(True) for field in schema]))
    for band in bands:
        table = table.append_column(f"{ABSENT}{band}", pa.array(np.full(n, State.NOT_OBSERVED, np.uint8)))
    arrays = assemble(table, keys, released, recipe, cuts, robust)
    for feature in released:
        states = arrays.get(f"{feature.column.name}_state")
        if states is not None:
            here = (states == State.MEASURED) if feature.source in values else np.zeros(n, np.bool_)
            arrays[f"{feature.column.name}_state"] = np.where(here, np.uint8(State.IMPUTED), states)
            if f"{feature.column.name}{BEFORE}" in arrays:
                before = arrays[f"{feature.column.name}{BEFORE}"]
                arrays[f"{feature.column.name}{BEFORE}"] = np.where(here, np.uint8(State.NOT_OBSERVED), before)
    nowhere = np.full(n, np.nan)
    part = np.full(n, Part[drawn.asked.split.upper()], np.int8)
    own = {"ra": nowhere, "dec": nowhere, "split": part, "fold": np.full(n, NO_FOLD, np.int8),
           "flags": arrays["flags"] & ~np.int32(1 << GUARD), "origin": np.full(n, SIMULATED, np.uint8)}  # fmt: skip
    return arrays | own


def drawn_path(index: str) -> str:
    """Return the path of a shard of simulated rows below the release."""
    return f"{_FOLDER}Part={index}.h5"


def are_drawn(index: pa.Table) -> NDArray[np.bool_]:
    """Return which rows of an index are simulated ones that joined the release."""
    found: NDArray[np.bool_] = pc.starts_with(index["shard"], _FOLDER).to_numpy()
    return found


def difference(there: Mapping[str, Any], made: Drawn) -> str:
    """Return how what a manifest says of simulated rows differs from model and recipe; nothing if it does not."""
    wrong = [f"{name} is {there.get(name)!r}, model and recipe give {value!r}" for name, value in made.to_json().items()
             if there.get(name) != value]  # fmt: skip
    return "; ".join(wrong)
