"""Reading a survey description from YAML: errors name file, line, field, value and the choices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from scalable.errors import SurveyError, nearest
from scalable.survey.description import Survey
from scalable.survey.images import IMAGE_KEYS, Images, Mask, Weight
from scalable.survey.part import ObservationKey, Part
from scalable.survey.products import Bright, Cutouts, Mixture, Motivation, PhotoZ, Products, Query, Question, Variability
from scalable.survey.root import absolute, expand
from scalable.survey.tables import KEYS, ColumnRule, Conversion, Files, Grouping, NullRule, Observations, Store, Template


def open_survey(path: str | Path) -> Survey:
    """Read and validate a survey description; no input file is touched.

    Parameters
    ----------
    path : str or Path
        The YAML file.

    Returns
    -------
    Survey
        With ``root`` made absolute.

    Raises
    ------
    SurveyError
        Naming file, line, field, the value and the choices.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise SurveyError(f"{path}: not valid YAML: not UTF-8 ({error})") from error
    except OSError as error:
        raise SurveyError(f"{path}: cannot be read ({error.strerror}); give the path of a survey.yaml") from error
    try:
        # Values first: they refuse tags and keys that are no text.
        values = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SurveyError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(node, yaml.MappingNode):
        raise SurveyError(f"{path}: a survey description is a YAML mapping that begins with `survey: NAME`")
    lines = _line_numbers(node, path)
    try:
        survey = Survey.model_validate(values)
        root = absolute(expand(survey.root), path)
    except ValidationError as error:
        raise SurveyError("\n".join(_explain(detail, lines, path) for detail in error.errors())) from error
    except SurveyError as error:
        raise SurveyError(f"{path}:{lines.get(('root',), 1)}: root: {error}") from error
    recipe = survey.products.release
    products = survey.products.model_copy(update={"release": str(path.parent.resolve() / recipe) if recipe else ""})
    return survey.model_copy(update={"root": root, "products": products})


def _line_numbers(node: yaml.Node, path: Path) -> dict[tuple[str | int, ...], int]:
    """Map the location of every value to its line, and refuse keys given twice (YAML would keep the last one silently)."""
    lines: dict[tuple[str | int, ...], int] = {}

    def walk(node: yaml.Node, location: tuple[str | int, ...]) -> None:
        lines[location] = node.start_mark.line + 1
        if len(location) > 16:
            raise SurveyError(f"{path}:{node.start_mark.line + 1}: nested too deeply, or an alias of itself")
        if isinstance(node, yaml.MappingNode):
            for key, child in node.value:
                here = (*location, key.value)
                if here in lines:
                    raise SurveyError(
                        f"{path}:{key.start_mark.line + 1}: {key.value!r} is given twice, first in line {lines[here]}"
                    )
                walk(child, here)
                lines[here] = key.start_mark.line + 1
        elif isinstance(node, yaml.SequenceNode):
            for index, child in enumerate(node.value):
                walk(child, (*location, index))

    walk(node, ())
    return lines


def _explain(detail: Any, lines: dict[tuple[str | int, ...], int], path: Path) -> str:
    location = tuple(detail["loc"])
    message = str(detail["msg"]).removeprefix("Value error, ")
    # What a check of several fields says begins with the field at fault.
    known = location + tuple(message.partition(": ")[0].split("."))
    while known not in lines and known:
        known = known[:-1]
    where = ".".join(str(part) for part in location)
    if detail["type"] == "extra_forbidden":
        choices = field_names(location[:-1])
        message = f"no such field; {nearest(str(location[-1]), choices)}"
    elif detail["type"] == "missing":
        message = "this field is required and missing"
    return f"{path}:{lines.get(known, 1)}: {where + ': ' if where else ''}{message}"


def field_names(location: tuple[str | int, ...]) -> list[str]:
    """Return the names that may stand at a location of the description, for messages and for `scalable help`."""
    return sorted(info.alias or name for name, info in (model_at(location) or Part).model_fields.items())


def model_at(location: tuple[str | int, ...]) -> type[Part] | None:
    """Return the part of the description that stands at a location such as ``("columns", "Ra")``, or None."""
    parts: dict[tuple[str, ...], type[Part]] = {
        (): Survey,
        ("observations",): Observations,
        **{("observations", name): ObservationKey for name in KEYS},
        ("files",): Files,
        ("images",): Images,
        **{("images", name): ObservationKey for name in IMAGE_KEYS},
        ("images", "mask"): Mask,
        ("images", "weight"): Weight,
        ("files", "templates", "*"): Template,
        ("columns", "*"): ColumnRule,
        ("columns", "*", "nulls", "*"): NullRule,
        ("columns", "*", "convert"): Conversion,
        ("store",): Store,
        ("grouping",): Grouping,
        ("products",): Products,
        ("products", "variability"): Variability,
        ("products", "bright"): Bright,
        ("products", "cutouts"): Cutouts,
        ("products", "mixture"): Mixture,
        ("products", "photoz"): PhotoZ,
        ("questions", "*"): Question,
        ("motivation",): Motivation,
        ("query",): Query,
    }
    for pattern, part in parts.items():
        if len(pattern) == len(location) and all(p in ("*", str(here)) for p, here in zip(pattern, location, strict=True)):
            return part
    return None
