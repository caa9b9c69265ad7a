"""The arrays of one shard: what every row is, in the order and the types in which it is released."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.errors import InputError
from scalable.kernels.partition import boundaries
from scalable.release.fill import Filling
from scalable.release.observed import ABSENT
from scalable.release.recipe import Recipe
from scalable.release.rows import Feature
from scalable.release.select import Cuts, holds, own_flags
from scalable.release.split import Part, split_rows
from scalable.schema import State

Arrays = dict[str, NDArray[Any]]
OUTLIER, GUARD = 0, 1
BEFORE = "_state_in_source"
"""Behind the name of an imputed column: the states that its cells had."""
OWN_BITS = {"outlier": "far from the rest, see outlier_distance", "guard": "within the guard band of another split"}
ORIGINS = {"0": "measured", "1": "holds imputed values", "2": "simulated"}


@dataclass(frozen=True)
class Robust:
    """Middle and half width of the central 68 per cent of each column that outliers are looked for in; frozen once fitted."""

    columns: tuple[str, ...] = ()
    middle: tuple[float, ...] = ()
    half_width: tuple[float, ...] = ()
    fitted_by: str = ""
    """Version whose rows it was fitted to."""
    fills: tuple[Filling, ...] = ()
    """What empty cells are filled with, in order."""


def numbers(values: pa.ChunkedArray) -> tuple[NDArray[Any], NDArray[np.bool_], str]:
    """Return a column as it is released, where it is null, and what stands there for null, as text.

    Precision is kept; a null is NaN, or the least number of a signed and the greatest of an unsigned type.
    """
    array = values.combine_chunks()
    null = array.is_null().to_numpy(zero_copy_only=False)
    dtype = array.type
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return array.fill_null("").to_numpy(zero_copy_only=False).astype(object), null, ""
    if pa.types.is_boolean(dtype):
        return pc.if_else(array, 1, 0).cast(pa.uint8()).fill_null(255).to_numpy(zero_copy_only=False), null, "255"
    if pa.types.is_fixed_size_list(dtype):
        flat, _, fill = numbers(pa.chunked_array([array.flatten()]))
        out = np.full((len(array), dtype.list_size), flat.dtype.type(fill), dtype=flat.dtype)
        out[~null] = flat.reshape(-1, dtype.list_size)
        return out, null, fill
    if pa.types.is_floating(dtype):
        return array.to_numpy(zero_copy_only=False).astype(dtype.to_pandas_dtype(), copy=False), null, "nan"
    if pa.types.is_integer(dtype):
        limits = np.iinfo(dtype.to_pandas_dtype())
        least = int(limits.min if limits.min else limits.max)
        return array.fill_null(least).to_numpy(zero_copy_only=False), null, str(least)
    raise InputError(f"a column of type {dtype} has no place in a release; leave it out with keep")


def states_of(table: pa.Table, feature: Feature, null: NDArray[np.bool_], values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the `State` of each cell."""
    if values.dtype.kind == "f" and values.ndim == 1:
        null = null | np.isnan(values)
    states = np.where(null, np.uint8(feature.null_state), np.uint8(State.MEASURED)).astype(np.uint8)
    if feature.state:
        given = table[feature.state].combine_chunks().fill_null(int(feature.null_state)).to_numpy()
        # What is null and said to be measured is null for another reason than that column knows.
        states = np.where(null & (given == State.MEASURED), states, given).astype(np.uint8)
    if feature.band and not feature.state:
        absent = table[f"{ABSENT}{feature.band}"].to_numpy()
        states = np.where(null & (absent > 0), absent, states).astype(np.uint8)
    return states


def assemble(
    table: pa.Table,
    keys: Mapping[str, NDArray[np.int64]],
    released: Sequence[Feature],
    recipe: Recipe,
    cuts: Cuts,
    robust: Robust,
) -> Arrays:
    """Return every row-aligned array of a shard by name, in the order of the format.

    Parameters
    ----------
    table : pyarrow.Table
        The rows that stay, with the columns of the catalogue.
    keys : mapping of ndarray
        ``source_id`` and ``source_row`` of each row; of objects also ``lc_count``.
    released : sequence of Feature
        What is released of the table.
    recipe, cuts, robust
        How rows are split and flagged.
    """
    n = table.num_rows
    ids, ra, dec = (table[name].to_numpy() for name in ("object_id", "object_ra", "object_dec"))
    parts, folds = split_rows(recipe.split, ids, ra, dec)
    distance, worst = _distances(table, robust)
    threshold = recipe.outliers.far.threshold if recipe.outliers.far else np.inf
    far = distance > threshold
    flags = own_flags(table, cuts, first_bit=len(OWN_BITS))
    flags |= (far.astype(np.int32) << OUTLIER) | ((parts == Part.GUARD).astype(np.int32) << GUARD)
    with np.errstate(divide="ignore"):
        weight = np.minimum(1.0, threshold / distance) if recipe.outliers.far else np.ones(n)
    arrays: Arrays = {"object_id": ids, "ra": ra, "dec": dec, "split": parts, "fold": folds, "weight": weight, "flags": flags}
    arrays["origin"] = np.zeros(n, dtype=np.uint8)
    for feature in released:
        values, null, _ = numbers(table[feature.source])
        arrays[feature.column.name] = values
        if feature.nullable:
            states = states_of(table, feature, null, values)
            fills = [filling for filling in robust.fills if filling.column == feature.source]
            if fills:
                arrays[f"{feature.column.name}{BEFORE}"] = states.copy()
                arrays[feature.column.name] = values = values.copy()
            for filling in fills:
                empty = np.flatnonzero((states != State.MEASURED) & (states != State.IMPUTED))
                found = filling.values(table, empty)
                known = np.isfinite(found)
                values[empty[known]] = found[known]
                states[empty[known]] = State.IMPUTED
            arrays[f"{feature.column.name}_state"] = states
            arrays["origin"][states == State.IMPUTED] = 1
    if cuts.simulated is not None:
        arrays["origin"][holds(table, cuts.simulated)] = 2
    arrays |= {"outlier_distance": distance, "outlier_class": np.where(far, worst + 1, 0).astype(np.uint8)}
    arrays |= {name: keys[name] for name in ("source_id", "source_row")}
    if "lc_count" in keys:
        counts = keys["lc_count"]
        arrays |= {"lc_offset": np.cumsum(counts) - counts, "lc_count": counts}
    return arrays


def _distances(table: pa.Table, robust: Robust) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the largest distance of each row from the middle of a column, in half widths, and which column's it is."""
    apart = np.zeros((max(1, len(robust.columns)), table.num_rows))
    for number, (name, middle, width) in enumerate(zip(robust.columns, robust.middle, robust.half_width, strict=True)):
        values = pc.cast(table[name], pa.float64()).combine_chunks().to_numpy(zero_copy_only=False)
        if width > 0:
            apart[number] = np.nan_to_num(np.abs(values - middle) / width, nan=0.0, posinf=np.inf)
    return apart.max(axis=0), apart.argmax(axis=0)


POSITIONAL = ("lc_offset",)
"""What says where something stands in a file, and nothing of the row."""


def row_digests(arrays: Mapping[str, NDArray[Any]], more: Sequence[NDArray[np.uint8]] = ()) -> NDArray[np.uint8]:
    """Return the SHA-256 of every row, shape (n, 32): of names and types once, then of each cell's bytes, big end first.

    ``more`` are digests, shape (n, 32), of what belongs to a row and lies elsewhere, such as its light curve.
    """
    used = {name: values for name, values in arrays.items() if name not in POSITIONAL}
    n = len(next(iter(used.values())))
    about = "\n".join(f"{name} {'text' if v.dtype.kind == 'O' else v.dtype.str[1:]} {v.shape[1:]}" for name, v in used.items())
    parts = [np.ascontiguousarray(_cells(values)).reshape(n, -1) for values in used.values() if n]
    rows = np.hstack([*parts, *more]) if n else np.zeros((0, 0), np.uint8)
    head = hashlib.sha256(about.encode())
    view, width = memoryview(rows.tobytes()), rows.shape[1]
    out = bytearray()
    for row in range(n):  # a compiled SHA-256 of all rows at once was no faster than this
        one = head.copy()
        one.update(view[row * width : (row + 1) * width])
        out += one.digest()
    return np.frombuffer(bytes(out), np.uint8).reshape(n, 32)


def _cells(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes of each row's cell, shape (n, bytes)."""
    n = len(values)
    if values.dtype.kind == "O":
        unique, where = np.unique(values.astype(str), return_inverse=True)
        found = [hashlib.sha256(text.encode()).digest() for text in unique.tolist()]
        return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)[where]
    big = values.astype(values.dtype.newbyteorder(">"), copy=False)
    if values.ndim > 2:
        # Of images and the like the digest stands for the pixels: rows of a matrix would hold them twice.
        found = [hashlib.sha256(one.tobytes()).digest() for one in big]
        return np.frombuffer(b"".join(found), np.uint8).reshape(n, 32)
    return np.ascontiguousarray(big).reshape(n, -1).view(np.uint8).reshape(n, -1)


def group_digests(rows: NDArray[np.uint8], counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Return one digest for each run of ``counts`` digests: that of a light curve from those of its detections."""
    edges = np.concatenate([[0], np.cumsum(counts)]).tolist()
    view = memoryview(rows.tobytes())
    found = [hashlib.sha256(view[32 * a : 32 * b]).digest() for a, b in zip(edges[:-1], edges[1:], strict=True)]
    return np.frombuffer(b"".join(found), np.uint8).reshape(-1, 32)


def light_curve_arrays(table: pa.Table, released: Sequence[Feature]) -> Arrays:
    """Return the arrays of the ragged file of detections beside a shard of objects."""
    arrays: Arrays = {name: table[name].to_numpy() for name in ("object_id",)}
    arrays |= {"source_id": table["observation_id"].to_numpy(), "source_row": table["source_row"].to_numpy()}
    for feature in released:
        values, null, _ = numbers(table[feature.source])
        arrays[feature.column.name] = values
        if feature.nullable:
            arrays[f"{feature.column.name}_state"] = states_of(table, feature, null, values)
    return arrays


def objects_in(table: pa.Table, pixel_column: str) -> NDArray[np.int64]:
    """Return where each object of a leaf of detections begins and ends."""
    return boundaries(table[pixel_column].to_numpy(), table["object_id"].to_numpy())
