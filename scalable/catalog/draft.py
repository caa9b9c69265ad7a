"""`draft_survey`: a first survey.yaml and observation index from the headers of a survey's files."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scalable.catalog.draft_guess import guess_columns, observe
from scalable.catalog.draft_text import draft_index, draft_yaml, unfilled
from scalable.errors import InputError, ScalableError, SurveyError
from scalable.io.atomic import write_text
from scalable.io.drivers import format_of, reader_for
from scalable.io.fits_header import open_fits, parse_header
from scalable.io.observations import read_observations
from scalable.io.reader import Source, TableInfo
from scalable.io.rules import stored_schema
from scalable.schema import Schema
from scalable.survey.read import open_survey

INDEX = "observations.csv"
LAST_HDU = 16
"""Extensions of a FITS file that are searched for a table."""


@dataclass(frozen=True)
class Draft:
    """What was written, and what a person must still fill in: ``file:line: what``, or nothing."""

    path: Path
    index: Path
    files: int
    columns: int
    to_fill: tuple[str, ...]


def draft_survey(files: Sequence[str | Path], *, into: str | Path = "survey.yaml", force: bool = False) -> Draft:
    """Write a commented first survey description, and an observation index beside it, from the headers of ``files``.

    Roles, errors, bands and times are guessed and marked as guesses. What cannot be guessed is left out and listed.

    Parameters
    ----------
    files : sequence of str or Path
        The tables, all of one format.
    into : str or Path
        The description; ``observations.csv`` is written beside it.
    force : bool
        Overwrite files that are there.

    Raises
    ------
    SurveyError
        If there is a description or an index already.
    InputError
        If the files are of several formats, or none can be read.
    """
    path = Path(into).absolute()
    index = path.with_name(INDEX)
    for target in (path, index):
        if target.exists() and not force:
            raise SurveyError(f"{target}: is there already; give --force to overwrite it, or another folder with --into")
    tables = list(dict.fromkeys(Path(file).resolve() for file in files))
    if not tables:
        raise InputError("no file was given; name the tables of the survey")
    home = path.parent.resolve()
    below = os.path.commonpath([table.parent for table in tables])
    root = Path(os.path.commonpath([home, below]))
    form = _one_format(tables)
    hdu = _table_hdu(tables, form)
    votes: Counter[Schema] = Counter()
    observed, reasons = [], []
    for table in tables:
        keywords: dict[str, object] = {}
        try:
            info = reader_for(form).describe(Source(str(table), hdu))
            votes[info.schema] += 1
            keywords = _keywords(table, form, info)
        except (ScalableError, OSError) as error:
            reasons.append(str(error))
        observed.append(observe(os.path.relpath(table, root), keywords))
    if not votes:
        raise InputError(f"none of the {len(tables)} files can be read; the first says: {reasons[0]}")
    schema, most = votes.most_common(1)[0]
    if most < sum(votes.values()):
        reasons.append(f"{sum(votes.values()) - most} files with other columns than most")
    text = draft_yaml(
        name=_survey_name(Path(below).name),
        root="." if root == home else str(root),
        index=os.path.relpath(home / INDEX, root),
        format=form,
        hdu=hdu,
        schema=schema,
        guesses=guess_columns(schema),
        observed=observed,
        remarks=[f"ingest will set aside: {reason}" for reason in reasons],
    )
    write_text(index, draft_index(observed))
    write_text(path, text)
    to_fill = unfilled(text, observed, path=str(path), index=str(index))
    to_fill += _refused(path, schema, complete=not to_fill)
    return Draft(path, index, len(tables), len(schema), tuple(to_fill))


def _refused(path: Path, schema: Schema, *, complete: bool) -> Iterator[str]:
    """Yield what ingest would refuse in the columns and, of a description that leaves nothing open, in the rest."""
    try:
        stored_schema(schema, {}, path=str(path))
        if complete:
            read_observations(open_survey(path))
    except ScalableError as error:
        yield str(error)


def _one_format(tables: Sequence[Path]) -> str:
    first: dict[str, Path] = {}
    for table in tables:
        first.setdefault(format_of(table), table)
    if len(first) > 1:
        several = ", ".join(f"{name} ({table})" for name, table in first.items())
        raise InputError(f"a survey has files of one format, these have several: {several}; draft one survey for each")
    return next(iter(first))


def _table_hdu(tables: Sequence[Path], form: str) -> int:
    """Return the first extension that is a table, in the first file that has one."""
    for table in tables if form == "fits" else ():
        for hdu in range(1, LAST_HDU + 1):
            try:
                reader_for(form).describe(Source(str(table), hdu))
            except (ScalableError, OSError):
                continue
            return hdu
    return 1


def _keywords(table: Path, form: str, info: TableInfo) -> dict[str, object]:
    """Return the keywords of the table, and of a FITS file also the primary's, where observatories write the filter."""
    if form != "fits":
        return info.keywords
    with open_fits(str(table)) as file:
        primary = parse_header(file.read_header(0, 0))
    return {**primary.values, **info.keywords}


def _survey_name(folder: str) -> str:
    name = re.sub(r"[^\w.-]", "_", folder, flags=re.ASCII)
    return name if re.match(r"[A-Za-z]", name) else "survey"
