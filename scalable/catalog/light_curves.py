"""A leaf of detections seen as light curves: which rows belong to which object and band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.io.layout import HEALPIX_COLUMN
from scalable.kernels.bands import band_curves

KEYS = (HEALPIX_COLUMN, "object_id", "object_ra", "object_dec")
"""Columns that every result per object begins with."""


@dataclass(frozen=True)
class LightCurves:
    """Light curves of one leaf, canonical order (object, band, time).

    Attributes
    ----------
    objects : pyarrow.Table
        One row per object: those of the `KEYS` that were read.
    points : pyarrow.Table
        The rows of the wanted bands.
    offsets : ndarray of int64, shape (curves + 1,)
        Where each light curve begins and ends in ``points``.
    curve_of : ndarray of int64, shape (bands, objects)
        The light curve of each object in each wanted band; -1 where it has none.
    """

    objects: pa.Table
    points: pa.Table
    offsets: NDArray[np.int64]
    curve_of: NDArray[np.int64]

    def by_object(self, values: NDArray[Any], band: int, empty: float = np.nan) -> NDArray[Any]:
        """Return one value per object from one value per light curve."""
        curves = self.curve_of[band]
        if not len(values):
            return np.full(len(curves), empty)
        found = np.take(values, curves)
        found[self._without[band]] = empty
        return found

    @cached_property
    def _without(self) -> list[NDArray[np.int64]]:
        """The objects without a light curve in each band."""
        return [np.flatnonzero(curves < 0) for curves in self.curve_of]


def light_curves(table: pa.Table, bands: Sequence[str], *, complete: bool = False) -> LightCurves:
    """Group a leaf of detections, as it is stored, into light curves.

    The table needs ``object_id`` and ``band``; of the other `KEYS` those are given back that it has. With ``complete`` only
    objects that have all bands are listed.
    """
    named, bands_of = _names(whole(table["band"]), bands)
    ids = whole(table["object_id"]).to_numpy()
    first_rows, offsets, curve_of = band_curves(ids, named, bands_of, len(bands), complete)
    objects = pa.table({name: rows_of(whole(table[name]), first_rows) for name in KEYS if name in table.column_names})
    points = table if offsets[-1] == table.num_rows else table.filter(pa.array(bands_of[named] >= 0))
    return LightCurves(objects, points, offsets, curve_of)


def _names(column: pa.Array, bands: Sequence[str]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Return the number of each row's name of a band, -1 where it is missing, and which of ``bands`` each name is, then -1."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    known = pc.index_in(column.dictionary, pa.array(bands, column.dictionary.type)).fill_null(-1).to_numpy()
    named = column.indices.fill_null(-1) if column.null_count else column.indices
    return named.to_numpy(), np.append(known, np.int32(-1))


def whole(column: pa.ChunkedArray) -> pa.Array:
    """Return a column in one piece; Arrow copies even a single chunk when it combines."""
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def rows_of(column: pa.Array, index: NDArray[np.int64]) -> pa.Array:
    """Return the values at some rows, null for -1; numbers without nulls through NumPy, which gathers several times faster."""
    mask = index < 0 if index.min(initial=0) < 0 else None
    number = pa.types.is_integer(column.type) or pa.types.is_floating(column.type)
    if number and column.null_count == 0 and len(column):
        return pa.array(np.take(column.to_numpy(), index), column.type, mask=mask)
    return column.take(pa.array(index, mask=mask))


def numbers(table: pa.Table, name: str) -> NDArray[Any]:
    """Return a column in single precision if it is stored so, else in double, with NaN for null."""
    if pa.types.is_float32(table[name].type):
        return whole(table[name]).to_numpy(zero_copy_only=False)
    return floats(table, name)


def floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a column as float64 with NaN for null."""
    return whole(pc.cast(table[name], pa.float64())).to_numpy(zero_copy_only=False)


def nullable(values: NDArray[np.float64], dtype: pa.DataType) -> pa.Array:
    """Return a column with NaN as null: a catalogue knows no NaN."""
    missing = np.isnan(values)
    found = pa.array(values, mask=missing if missing.any() else None)
    return found if found.type == dtype else found.cast(dtype)
