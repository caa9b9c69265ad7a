"""Observations without an index: files found by a glob, known by their names and headers."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa

from scalable.errors import InputError, MissingInputError, ScalableError, SurveyError
from scalable.io.drivers import reader_for
from scalable.io.reader import Source
from scalable.io.remote import find_files
from scalable.survey.description import Survey
from scalable.survey.root import is_remote

_SHOWN = 10
_TYPES = {"field": pa.string(), "band": pa.string(), "mjd": pa.float64(), "exposure_s": pa.float64(), "airmass": pa.float64()}


def find_observations(survey: Survey) -> pa.Table:
    """Find the files, and read what their names and, where keywords are asked for, their headers say of them.

    Returns
    -------
    pyarrow.Table
        One row per file, sorted by path: ``observation_id``, the keys that the survey gives (`_TYPES`), ``path`` below root, and
        ``problem``, the reason why a file that lacks its id, band or MJD cannot be used, else null.

    Raises
    ------
    InputError
        If no file is found, none can be used, one is a link out of the root, or two have one id.
    SurveyError
        If a file's band is not one of the survey's.
    """
    paths = _find(survey)
    rows = [_read_keys(path, survey) for path in paths]
    problems = [row["problem"] for row in rows if row["problem"]]
    if len(problems) == len(rows):
        raise InputError(
            f"none of the {len(rows)} files that files.glob finds can be used:\n  "
            + "\n  ".join(problems[:_SHOWN])
            + f"\n{f'and {len(rows) - _SHOWN} more; ' if len(rows) > _SHOWN else ''}correct observations in the survey file"
        )
    _check_bands(rows, survey)
    _check_ids(rows)
    names = [name for name in _TYPES if name in ("band", "mjd") or survey.observations.knows(name)]
    types = {"observation_id": pa.int64(), **{n: _TYPES[n] for n in names}, "path": pa.string(), "problem": pa.string()}
    return pa.Table.from_pylist(rows, schema=pa.schema(list(types.items())))


def _find(survey: Survey) -> list[str]:
    """Return the paths below root of all files that fit the glob, sorted, hidden ones left out as a shell does."""
    root = survey.input_root
    if is_remote(survey.root):
        found = find_files(survey.root, survey.files.glob)
    elif root.is_dir():
        # Folders are not entered through links, so that none leads round in a circle.
        found = [path.relative_to(root).as_posix() for path in root.glob(survey.files.glob) if not path.is_dir()]
    else:
        raise MissingInputError(f"{root}: the survey's root is no folder that is there; set root")
    paths = sorted(path for path in found if not any(part.startswith(".") for part in PurePosixPath(path).parts))
    if not paths:
        raise InputError(f"files.glob: {survey.files.glob!r} finds no file below {survey.root}; correct the glob or root")
    for path in paths:
        survey.confined(path)
    return paths


def _read_keys(path: str, survey: Survey) -> dict[str, Any]:
    """Return what is known of one file: its id in any case; its keys, or the ``problem`` for which the file must be set aside."""
    row: dict[str, Any] = {"observation_id": _digest(path), "path": path}
    rule = survey.observations
    try:
        match = re.search(rule.pattern, path)
        if match is None:
            raise InputError(f"{path}: does not fit observations.pattern {rule.pattern!r}")
        groups: dict[str, object] = dict(match.groupdict())
        if "id" in groups:
            row["observation_id"] = _whole(groups.pop("id"), path)
        said = groups | _in_header(path, survey)
        keys = {name: _settled(name, value, path) for name, value in said.items()}
        for name in ("band", "mjd"):
            if name in keys and keys[name] is None:
                key = rule.given().get(name)
                place = f"no {key.keyword} in its header" if key else "nothing in its path"
                raise InputError(f"{path}: observations.{name}: there is {place}; every observation needs one")
    except (ScalableError, OSError) as error:
        return row | {"problem": str(error).replace(f"{survey.root}/", "")}
    return row | keys | {"band": rule.bands_as.get(str(keys.get("band")), keys.get("band")), "problem": None}


def _in_header(path: str, survey: Survey) -> dict[str, object]:
    """Return the keys that stand in the description or, if any does, in the file's header."""
    given = survey.observations.given()
    keywords: dict[str, object] = {}
    if any(key.keyword for key in given.values()):
        source = Source(survey.confined(path), hdu=survey.files.hdu, name=path)
        keywords = reader_for(survey.files.format).describe(source).keywords
    return {name: keywords.get(key.keyword) if key.keyword else key.value for name, key in given.items()}


def _settled(name: str, value: object, path: str) -> str | float | None:
    """Return a key as it is stored: text, or a number; null where it is empty."""
    text = "" if value is None else str(value).strip()
    if not text or _TYPES[name] == pa.string():
        return text or None
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise InputError(f"{path}: observations.{name}: {text!r} is no number")
    return number


def _whole(value: object, path: str) -> int:
    """Return the id that the path shows."""
    text = str(value)
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise InputError(f"{path}: observations.pattern: the group id is {text!r}; a whole number of at most 18 digits is needed")
    return int(text)


def _digest(path: str) -> int:
    """Return 63 bits that stand for a path, whatever other files there are: a rank would change with every file added."""
    return int.from_bytes(hashlib.sha256(path.encode()).digest()[:8], "big") >> 1


def _check_bands(rows: Sequence[dict[str, Any]], survey: Survey) -> None:
    if not survey.bands:
        return
    counts = Counter(row["band"] for row in rows if row.get("band"))
    unknown = [f"{band!r} ({count} files)" for band, count in counts.items() if band not in survey.bands]
    if unknown:
        more = f" and {len(unknown) - _SHOWN} more" if len(unknown) > _SHOWN else ""
        first = next(band for band in counts if band not in survey.bands)
        raise SurveyError(
            f"observations.band: {', '.join(unknown[:_SHOWN])}{more} are not among the survey's bands "
            f"({', '.join(survey.bands)}); add them there, or say what they mean: observations.bands_as: "
            f"{{{json.dumps(first)}: {survey.bands[0]}}}"
        )


def _check_ids(rows: Sequence[dict[str, Any]]) -> None:
    seen: dict[int, str] = {}
    for row in rows:
        other = seen.setdefault(row["observation_id"], row["path"])
        if other != row["path"]:
            raise InputError(
                f"{other} and {row['path']} have the one observation id {row['observation_id']}; ids must be unique: make the "
                "group id of observations.pattern tell them apart, or leave it out"
            )
