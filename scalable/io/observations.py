"""Observations: which files there are, when and in which band they were taken, and what each is called on disk."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pyarrow.csv

from scalable.errors import ColumnError, InputError, MissingInputError, SurveyError, nearest
from scalable.io.found_files import find_observations
from scalable.io.reader import Source
from scalable.io.remote import local_copy
from scalable.survey.description import Survey

_ADDED = ("epoch", "path")  # what this reader adds


def read_observations(survey: Survey) -> pa.Table:
    """Read what is known of every catalogue file and name it; files are opened only for keys that their headers must give.

    Returns
    -------
    pyarrow.Table
        One row per observation, sorted by ``observation_id``: ``observation_id, field, band, mjd, exposure_s, airmass``, all
        other columns of the index under their own names, ``epoch`` (rank of MJD within field and band, from 1; null where a file
        shows no MJD) and ``path`` below the survey's root. Of files that a glob found, ``problem`` is the reason why one lacks
        its keys and is to be set aside, else null.

    Raises
    ------
    MissingInputError, InputError, SurveyError
        Where the index is absent, lacks a column, repeats an id, or has a band that the survey does not list; or where no
        file is found.
    """
    if not survey.has_tables:
        raise SurveyError(f"survey {survey.name!r} describes images and no tables; add files and columns")
    if survey.files.glob:
        found = find_observations(survey).sort_by("observation_id")
        return found.add_column(found.column_names.index("path"), "epoch", _epochs(found))
    table = _read_index(survey)
    table = table.append_column("epoch", _epochs(table))
    paths = [_file_name(row, survey) for row in table.to_pylist()]
    shared = next((path for path in paths if paths.count(path) > 1), None) if len(set(paths)) < len(paths) else None
    if shared:
        raise SurveyError(
            f"files.templates: several observations have the one file {shared!r}; use {{epoch}} or the id in the path"
        )
    return table.append_column("path", pa.array(paths))


def read_index(path: str, absent: str) -> pa.Table:
    """Return the rows of an index as its CSV file has them.

    Raises
    ------
    MissingInputError
        Saying ``absent``, if it is not there.
    InputError
        If it is no CSV table.
    """
    try:
        with local_copy(path) as here:
            return pyarrow.csv.read_csv(here)
    except FileNotFoundError:
        raise MissingInputError(f"{path}: {absent}") from None
    except (pa.ArrowInvalid, OSError) as error:
        raise InputError(f"{path}: not a readable CSV table: {error}") from error


def _read_index(survey: Survey) -> pa.Table:
    """Return the rows of the index, checked and sorted by id, its columns under the names that are stored."""
    path = survey.confined(survey.observations.index)
    index = read_index(path, "the observation index is not there; set observations.index or root")
    columns: dict[str, pa.ChunkedArray] = {}
    names = _column_names(survey)
    for key, source in names.items():
        columns["observation_id" if key == "id" else key] = _column(index, source, path=path, key=key)
    for name, dtype in (("band", pa.string()), ("mjd", pa.float64())):
        columns.setdefault(name, pa.chunked_array([pa.nulls(index.num_rows, dtype)]))
    for name in index.column_names:
        if name in names.values():
            continue
        if name in columns or name in _ADDED:
            raise InputError(f"{path}: column {name!r} has the name of one that is stored; rename it in the index")
        columns[name] = index[name]
    table = pa.table(columns)
    if table.num_rows == 0:
        raise InputError(f"{path}: the index lists no observation")
    if not pa.types.is_integer(table["observation_id"].type):
        raise InputError(f"{path}: column {names['id']!r} must hold integer ids, not {table['observation_id'].type}")
    table = table.set_column(0, "observation_id", table["observation_id"].cast(pa.int64()))
    if not (pa.types.is_integer(table["mjd"].type) or pa.types.is_floating(table["mjd"].type)):
        raise InputError(f"{path}: column {names['mjd']!r} must hold modified Julian dates, not {table['mjd'].type}")
    table = table.set_column(table.column_names.index("mjd"), "mjd", table["mjd"].cast(pa.float64()))
    bands = [survey.observations.bands_as.get(band, band) for band in table["band"].cast(pa.string()).to_pylist()]
    table = table.set_column(table.column_names.index("band"), "band", pa.array(bands, pa.string()))
    table = table.sort_by("observation_id")
    _check(table, survey, path=path)
    return table


def _column_names(survey: Survey) -> dict[str, str]:
    """Return the column of the index for each key that the survey gives."""
    return {name: key.column for name, key in survey.observations.given().items()}


def sources(survey: Survey, observations: pa.Table) -> list[Source]:
    """Return one source per observation, in order of observation id."""
    return [
        Source(
            path=survey.confined(row["path"]),
            name=row["path"],
            hdu=survey.files.hdu,
            table=survey.files.table,
            observation_id=row["observation_id"],
            field=str(row.get("field") or ""),
            band=row["band"] or "",
            mjd=math.nan if row["mjd"] is None else row["mjd"],
            epoch=row["epoch"] or 1,
            problem=row.get("problem") or "",
        )
        for row in observations.to_pylist()
    ]


def _column(index: pa.Table, name: str, *, path: str, key: str) -> pa.ChunkedArray:
    if index.column_names.count(name) > 1:
        raise InputError(f"{path}: column {name!r} is there more than once; rename all but one")
    if name not in index.column_names:
        raise ColumnError(f"{path}: observations.{key} names the column {name!r}; {nearest(name, index.column_names)}")
    return index[name]


def _check(table: pa.Table, survey: Survey, *, path: str) -> None:
    for name in ("observation_id", "band", "mjd"):
        if table[name].null_count and survey.observations.knows(name.removeprefix("observation_")):
            raise InputError(f"{path}: {table[name].null_count} rows have no {name}; every observation needs one")
    ids = table["observation_id"].to_numpy()
    repeated = ids[1:][ids[1:] == ids[:-1]]
    if len(repeated):
        raise InputError(f"{path}: observation id {repeated[0]} is given more than once; ids must be unique")
    for band in table["band"].unique().to_pylist():
        if survey.bands and band and band not in survey.bands:
            raise SurveyError(f"{path}: band {band!r} is not among the survey's bands; {nearest(band, survey.bands)}")


def _epochs(table: pa.Table) -> pa.Array:
    """Return the rank in MJD within field and band, from 1; ties go to the smaller id. Null where there is no MJD."""
    group = np.array(
        [f"{field}\0{band}" for field, band in zip(_fields(table), table["band"].to_pylist(), strict=True)], dtype=object
    )
    epochs = np.zeros(table.num_rows, dtype=np.int64)
    order = np.lexsort((table["observation_id"].to_numpy(), table["mjd"].to_numpy()))
    seen: dict[str, int] = {}
    for row in order:
        seen[group[row]] = epochs[row] = seen.get(group[row], 0) + 1
    return pa.array(epochs, mask=table["mjd"].is_null().to_numpy())


def _fields(table: pa.Table) -> list[object]:
    return table["field"].to_pylist() if "field" in table.column_names else [""] * table.num_rows


def _file_name(row: dict[str, object], survey: Survey) -> str:
    stored = {"id": "observation_id"}
    names = {column: row[stored.get(key, key)] for key, column in _column_names(survey).items()} | row
    templates = survey.files.templates
    template = next((t for t in templates if row["band"] in t.bands), None) or next((t for t in templates if not t.bands), None)
    if template is None:
        raise SurveyError(f"files.templates: no template for band {row['band']!r}; add one with a path and without bands")
    try:
        return template.path.format_map(names)
    except ValueError as error:
        raise SurveyError(f"files.templates: {template.path!r} does not fit {row}: {error}") from None
    except KeyError as error:
        name = str(error.args[0])
        raise SurveyError(f"files.templates: {template.path!r} uses {name!r}; {nearest(name, map(str, names))}") from None
