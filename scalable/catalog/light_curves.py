"""A leaf of detections seen as light curves: which rows belong to which object and band."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.io.layout import HEALPIX_COLUMN
from scalable.kernels.partition import boundaries

KEYS = (HEALPIX_COLUMN, "object_id", "object_ra", "object_dec")
"""Columns that every result per object begins with."""


@dataclass(frozen=True)
class LightCurves:
    """Light curves of one leaf, canonical order (object, band, time).

    Attributes
    ----------
    objects : pyarrow.Table
        One row per object: the `KEYS`.
    offsets : ndarray of int64, shape (curves + 1,)
        Where each light curve begins and ends.
    object_of, band_of : ndarray of int64, shape (curves,)
        Row in ``objects`` and index in the wanted bands; -1 for a band that is not wanted.
    """

    objects: pa.Table
    offsets: NDArray[np.int64]
    object_of: NDArray[np.int64]
    band_of: NDArray[np.int64]

    def by_object(self, values: NDArray[np.float64], band: int, empty: float = np.nan) -> NDArray[np.float64]:
        """Return one value per object from one value per light curve."""
        out = np.full(self.objects.num_rows, empty)
        mine = self.band_of == band
        out[self.object_of[mine]] = values[mine]
        return out


def light_curves(table: pa.Table, bands: Sequence[str]) -> LightCurves:
    """Group a leaf of detections, as it is stored, into light curves."""
    pixel, ids = table[HEALPIX_COLUMN].to_numpy(), table["object_id"].to_numpy()
    code = pc.index_in(table["band"], pa.array(bands, pa.string())).fill_null(-1).to_numpy().astype(np.int64)
    objects = boundaries(pixel, ids)
    curves = boundaries(pixel, ids, code)
    object_of = np.searchsorted(objects, curves[:-1], side="right") - 1
    return LightCurves(table.select(list(KEYS)).take(objects[:-1]), curves, object_of, code[curves[:-1]])


def floats(table: pa.Table, name: str) -> NDArray[np.float64]:
    """Return a column as float64 with NaN for null."""
    return pc.cast(table[name], pa.float64()).combine_chunks().to_numpy(zero_copy_only=False)


def nullable(values: NDArray[np.float64], dtype: pa.DataType) -> pa.Array:
    """Return a column with NaN as null: a catalogue knows no NaN."""
    return pa.array(values, mask=np.isnan(values)).cast(dtype)
