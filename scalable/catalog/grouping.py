"""Ingest: what makes rows one object where the survey has no ids: their position, or the reference object they are nearest to.

Each row starts with a key of its own, ``observation_id * 2**33 + source_row``, in the place of an id. An object that friends of
friends find takes the smallest key of its rows, that is the key of its first row: unique, independent of tiling, and the same
after a later night, with larger observation ids, was added (unless a row of it joins two objects). Rows that a reference object
claims take its id and stand at its position from then on, so that for the rest of ingest they are rows with an id and without
spread; the others have the key ``~key = -key - 1``, below 0 where the ids of references are not, and are grouped among
themselves. Reference objects without a row are counted, not stored.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.errors import InputError
from scalable.io.layout import HEALPIX_COLUMN
from scalable.io.reader import Source
from scalable.io.runs import flat, read_arrow, take_rows
from scalable.kernels.grouping import friends_of_friends, nearest_reference
from scalable.kernels.partition import unit_vectors
from scalable.sky.healpix import neighbours, ring_order
from scalable.sky.pixel import MAX_ORDER
from scalable.survey.tables import Grouping

REFERENCE = "reference.arrow"
"""Name of the run of reference objects in the work folder."""

APART = "_work_apart"
"""Column of a run of matched rows: distance of the detection from the reference object [arcsec]; 0 where there is none."""

LOOKUP_ORDER = 12
"""Order of the cells (51 arcsec) whose reference objects are read to match a row in them, if the radius allows."""

_ROW_BITS = 33


def row_keys(source: Source, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the key of each row of one observation: ``observation_id * 2**33 + source_row``.

    Raises
    ------
    InputError
        If a key would not fit in 64 bits.
    """
    if not 0 <= source.observation_id < 1 << 63 - _ROW_BITS:
        raise InputError(
            f"{source.path}: observation id {source.observation_id}: where the survey has no object ids they are made of it, and "
            f"then it must lie in 0 to 2**{63 - _ROW_BITS} - 1; number the observations anew in the index"
        )
    if len(rows) and rows[-1] >= 1 << _ROW_BITS:
        raise InputError(f"{source.path}: row {rows[-1]}: a file can have 2**{_ROW_BITS} rows at most; split it")
    return key_of(np.int64(source.observation_id), rows)


def key_of(observations: NDArray[np.int64] | np.int64, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the keys of rows of observations whose ids were found to be small enough."""
    return observations << _ROW_BITS | rows


def claimed_by_reference(rows: pa.Table, grouping: Grouping, work: Path) -> pa.Table:
    """Return located rows with id, position and pixel of the nearest reference object within the radius, where there is one.

    Of two that are equally near the lower id counts. The others keep their position and turn their key negative. The source's own
    columns stay as they are.
    """
    if rows.num_rows == 0:
        return rows.append_column(APART, pa.array([], pa.float64()))
    near = _references_near(flat(rows, HEALPIX_COLUMN), grouping, work)
    vectors = unit_vectors(flat(rows, "_work_ra"), flat(rows, "_work_dec"))
    index, apart = nearest_reference(vectors, unit_vectors(flat(near, "ra"), flat(near, "dec")), grouping.radius_arcsec)
    found = index >= 0
    rows = rows.set_column(rows.column_names.index("object_id"), "object_id", pa.array(~flat(rows, "object_id")))
    for name, reference_name in (("object_id", "id"), (HEALPIX_COLUMN, HEALPIX_COLUMN), ("_work_ra", "ra"), ("_work_dec", "dec")):
        values = flat(rows, name).copy()
        values[found] = flat(near, reference_name)[index[found]]
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    return rows.append_column(APART, pa.array(np.where(found, apart, 0.0)))


def _references_near(pixels: NDArray[np.int64], grouping: Grouping, work: Path) -> pa.Table:
    """Return the reference objects in the cells of some pixels and in those around them, sorted by id."""
    reference = read_arrow(work / REFERENCE)
    order = min(LOOKUP_ORDER, ring_order(grouping.radius_arcsec))
    shift = 2 * (MAX_ORDER - order)
    cells = neighbours(np.unique(pixels >> shift), order)
    keys = flat(reference, HEALPIX_COLUMN)
    first, last = np.searchsorted(keys, cells << shift), np.searchsorted(keys, (cells + 1) << shift)
    counts = last - first
    near = take_rows(reference, np.repeat(first - (np.cumsum(counts) - counts), counts) + np.arange(counts.sum()))
    return take_rows(near, np.argsort(flat(near, "id")))


def with_object_ids(rows: pa.Table, grouping: Grouping) -> pa.Table:
    """Return rows whose ``object_id`` is that of their object, found among these rows: by id nothing changes."""
    if grouping.by == "id" or rows.num_rows == 0:
        return rows
    ids = flat(rows, "object_id").copy()
    alone = np.flatnonzero(ids < 0) if grouping.by == "reference" else np.arange(len(ids))
    keys = ~ids[alone] if grouping.by == "reference" else ids[alone]
    # By key: then the first row of a component is the one with the smallest.
    by_key = np.argsort(keys)
    alone = alone[by_key]
    vectors = unit_vectors(flat(rows, "_work_ra")[alone], flat(rows, "_work_dec")[alone])
    ids[alone] = ids[alone][friends_of_friends(vectors, grouping.radius_arcsec)]
    return rows.set_column(rows.column_names.index("object_id"), "object_id", pa.array(ids))
