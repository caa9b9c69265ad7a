"""Ingest, before its first stage: the reference catalogue that detections are matched with becomes one run along the sky."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.grouping import REFERENCE
from scalable.catalog.ingest_map import Settings, degrees, integer_ids
from scalable.errors import ColumnError, InputError, nearest
from scalable.io.drivers import reader_for
from scalable.io.layout import HEALPIX_COLUMN
from scalable.io.reader import Source
from scalable.io.runs import read_json, take_rows, write_arrow, write_json
from scalable.schema import Schema
from scalable.sky.healpix import to_pixels
from scalable.survey.description import Survey
from scalable.survey.tables import Grouping


def reference_sources(survey: Survey) -> tuple[Source, ...]:
    """Return the table of reference objects; none where objects are not grouped by a reference."""
    grouping = survey.grouping
    if grouping.by != "reference":
        return ()
    return (Source(str(survey.confined(grouping.reference)), hdu=grouping.hdu, name=grouping.reference),)


def index_reference(source: Source, settings: Settings) -> str:
    """Write id, position [deg] and pixel of the reference objects, sorted along the sky; skipped if done before.

    Returns the SHA-256 of the file.

    The task holds four numbers an object in memory, twice.

    Raises
    ------
    InputError
        If an object has no id from 0 on or no position, or an id is given twice: it would not be known which object is meant.
    """
    path = Path(settings.work) / REFERENCE
    done = path.with_suffix(".json")
    if not done.exists():
        table, sha256 = _read(source, settings.survey.grouping)
        write_arrow(take_rows(table, np.argsort(table[HEALPIX_COLUMN].to_numpy(), kind="stable")), path)
        write_json(done, {"sha256": sha256})
    return str(read_json(done)["sha256"])


def reference_columns(source: Source, grouping: Grouping) -> Schema:
    """Return the columns of id, right ascension and declination, by the header alone, with the units that hold."""
    info = reader_for(grouping.format).describe(source)
    names = (grouping.id, grouping.ra, grouping.dec)
    for name in names:
        if name not in info.schema:
            raise ColumnError(f"{source.path}: HDU {source.hdu} has no column {name!r}; {nearest(name, info.schema.names)}")
    columns = [info.schema[name] for name in names]
    if grouping.unit is not None:
        columns[1:] = [replace(column, unit=grouping.unit) for column in columns[1:]]
    return Schema(tuple(columns))


def _read(source: Source, grouping: Grouping) -> tuple[pa.Table, str]:
    schema = reference_columns(source, grouping)
    digest = hashlib.sha256()
    blocks = reader_for(grouping.format).scan(source, columns=schema.names, digest=digest)
    table = pa.concat_tables([pa.table(block.select(schema.names).columns, schema=schema.to_arrow()) for block in blocks])
    ids = integer_ids(table[grouping.id], source, grouping.id)
    ra, dec = (degrees(table, name, source) for name in (grouping.ra, grouping.dec))
    missing = ids.is_null().to_numpy(zero_copy_only=False)
    ids = ids.fill_null(0).to_numpy()
    _refuse(missing, source, grouping.id, "no id")
    _refuse(ids < 0, source, grouping.id, "an id below 0, where ids of objects without a reference are")
    _refuse(~(np.abs(ra) <= 720.0), source, grouping.ra, "no right ascension in 0 to 360 degrees")
    _refuse(~(np.abs(dec) <= 90.0), source, grouping.dec, "no declination in -90 to 90 degrees")
    again = np.ones(len(ids), dtype=bool)
    again[np.unique(ids, return_index=True)[1]] = False
    _refuse(again, source, grouping.id, "an id that was given before")
    ra = ra % 360.0
    # -1e-17 + 360 rounds to 360, which is the same meridian as 0.
    ra[ra >= 360.0] = 0.0
    pixels = to_pixels(ra, dec) if len(ra) else ids
    return pa.table({HEALPIX_COLUMN: pixels, "id": ids, "ra": ra, "dec": dec}), digest.hexdigest()


def _refuse(bad: NDArray[np.bool_], source: Source, column: str, reason: str) -> None:
    if bad.any():
        place = f"{source.path}: HDU {source.hdu} column {column!r}, row {np.argmax(bad)}"
        raise InputError(f"{place}: {reason} ({bad.sum()} such rows); remove them from the reference, or correct grouping.unit")
