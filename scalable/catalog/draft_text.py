"""A first survey.yaml and a first observation index, as text, from what headers say and what was guessed from them."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from scalable.catalog.draft_guess import Guess, Observed, guess_unit, order_bands
from scalable.schema import Column, Schema

FILL = "# FILL:"
"""What stands before everything that nobody could guess and without which the survey cannot be read."""


def scalar(text: str) -> str:
    """Return a text as one line of YAML that reads back as this very text, as a key and as a value."""
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text) and yaml.safe_load(text) == text:
        return text
    return _dumped(text, default_style='"')


def comment(text: str) -> str:
    """Return a text as it can stand in a comment: one line, nothing that YAML refuses."""
    return " ".join("".join(character if character.isprintable() else " " for character in text).split())


def draft_yaml(
    *,
    name: str,
    root: str,
    index: str,
    format: str,
    hdu: int,
    schema: Schema,
    guesses: Mapping[str, Guess],
    observed: Sequence[Observed],
    remarks: Iterable[str] = (),
) -> str:
    """Return the commented description of a survey.

    Parameters
    ----------
    name, root, index : str
        Name of the survey, folder with its input, and the observation index below that folder.
    format, hdu : str, int
        Format of the files, and the extension with the table.
    schema : Schema
        The columns, as the headers describe them.
    guesses : mapping
        What each column seems to be.
    observed : sequence of Observed
        What is known of each file.
    remarks : iterable of str
        What else a person should know; comments at the top.
    """
    lines = [
        "# A first draft, made from the headers of the files. Every role, error and band is a guess: check them.",
        "# scalable help columns.NAME.role explains a field, scalable check tests it all.",
        *(f"# {comment(remark)}" for remark in remarks),
        f"survey: {scalar(name)}",
        'description: ""',
        f"root: {scalar(root)}  # the folder that holds all files, this one's index among them",
        "",
        "observations:  # one row per file",
        f"  index: {scalar(index)}",
        "  id: id",
        *([f"  field: field  # {_source('field')}"] if _known(observed, "field") else []),
        f"  band: band  # {_source('band')}",
        "  mjd: mjd  # from the headers, where they have it",
        *(f"  {key}: {key}" for key in ("exposure_s", "airmass") if _known(observed, key)),
        "",
        "files:",
        f"  format: {format}",
        f"  hdu: {hdu}",
        "  templates:",
        '    - path: "{file}"  # a column of the index; a pattern such as Field-{field}-{band}.fits does as well',
        "",
        *_band_lines(observed),
        "",
        "columns:",
        *_column_lines(schema, guesses),
        "",
        "store:",
        "  margin_arcsec: 5  # largest separation of two detections of one object",
        "",
        "quality: {}  # named cuts, as SQL conditions on detections, for example  star: Class = -1",
        *_product_lines(guesses),
        "",
        'license: ""  # for example CC-BY-4.0',
        "# motivation:",
        "#   text: Why does this data set exist?",
        "# query:",
        "#   text: The archive query that gave these files, verbatim.",
    ]
    return "\n".join(lines) + "\n"


def draft_index(observed: Sequence[Observed]) -> str:
    """Return the observation index as CSV; a cell is empty where neither header nor name says anything."""
    names = ["id", *(name for name in _CELLS if name in ("file", "band", "mjd") or _known(observed, name))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    for number, entry in enumerate(observed, start=1):
        writer.writerow([number, *("" if (value := getattr(entry, name)) is None else value for name in names[1:])])
    return text.getvalue()


def unfilled(text: str, observed: Sequence[Observed], *, path: str, index: str) -> list[str]:
    """Return, line by line, what a person must fill in before the survey can be read."""
    found = [
        f"{path}:{number}: {line.partition(FILL)[2].strip()}"
        for number, line in enumerate(text.splitlines(), start=1)
        if FILL in line
    ]
    for number, entry in enumerate(observed, start=2):
        empty = [name for name in ("band", "mjd") if getattr(entry, name) in ("", None)]
        if empty:
            found.append(f"{index}:{number}: {' and '.join(empty)} of {entry.file}")
    return found


_CELLS = ("file", "field", "band", "mjd", "exposure_s", "airmass")


def _source(name: str) -> str:
    return f"a guess, from {'FILTER' if name == 'band' else 'the header'} or the file name"


def _known(observed: Sequence[Observed], name: str) -> bool:
    return any(getattr(entry, name) not in ("", None) for entry in observed)


def _dumped(value: object, **style: Any) -> str:
    text = yaml.safe_dump(value, allow_unicode=True, width=1 << 30, sort_keys=False, **({"default_flow_style": True} | style))
    return str(text).removesuffix("...\n").rstrip("\n")


def _band_lines(observed: Sequence[Observed]) -> list[str]:
    bands = order_bands(entry.band for entry in observed)
    if not bands:
        return [f"bands: []  {FILL} every band of the survey, in order of wavelength"]
    return [f"bands: [{', '.join(map(scalar, bands))}]  # in order of wavelength; a guess"]


def _column_lines(schema: Schema, guesses: Mapping[str, Guess]) -> list[str]:
    lines = []
    taken: dict[str, str] = {}
    for role in ("object_id", "ra", "dec"):
        if role not in {guess.role for guess in guesses.values()}:
            lines.append(f"  {FILL} give one of these columns role: {role}; none looks like one")
    for column in schema:
        line = _column_line(column, guesses[column.name])
        if other := taken.get(column.name.lower()):
            line = f"  # {comment(line)}; {comment(other)} differs by case alone, which SQL does not see: rename it in the files"
        taken.setdefault(column.name.lower(), column.name)
        lines.append(line)
    return lines


def _column_line(column: Column, guess: Guess) -> str:
    unit, remark = guess_unit(column, guess.role)
    rule = {
        "role": guess.role,
        "unit": unit,
        "error": guess.error,
        "ucd": column.ucd,
        "description": column.description,
    }
    grounds = f"{guess.role or 'value'} is a guess, by {guess.grounds}" if guess.grounds else ""
    remarks = "; ".join(filter(None, (str(column.dtype), grounds, remark)))
    return f"  {scalar(column.name)}: {_dumped({key: value for key, value in rule.items() if value})}  # {comment(remarks)}"


def _product_lines(guesses: Mapping[str, Guess]) -> list[str]:
    """Return the products that the first magnitude and the first flux allow, to be taken up by a person."""
    first = {guess.role: name for name, guess in reversed(list(guesses.items()))}
    wanted = [(key, first[role]) for key, role in (("magnitude", "mag"), ("flux", "flux")) if role in first]
    lines = [f"#   {key}: {comment(scalar(name))}" for key, name in wanted]
    return ["", "# products:  # what a run computes and its page shows", *lines] if lines else []
