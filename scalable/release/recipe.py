"""The recipe: one validated YAML file that says what a release holds, which rows, which columns and why."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from scalable.errors import SurveyError, nearest
from scalable.schema import Column
from scalable.survey.description import Survey
from scalable.survey.part import Part, Unit
from scalable.survey.products import Motivation, Query

QUESTIONS = {
    "motivation_purpose": "For what purpose was the data set created?",
    "motivation_goal": "What is its first science goal, and what does that require?",
    "composition_instances": "What do the rows stand for, and how many are there?",
    "composition_missing": "Which values are missing, and why?",
    "composition_errors": "Which errors and outliers are known, and what was done with them?",
    "composition_labels": "Which labels are there, from which source and with which quality?",
    "composition_splits": "Which splits are recommended?",
    "composition_footprint": "Which part of the sky is in it, and which is not?",
    "composition_limits": "What limits the sample: telescope, detector, filters, dates?",
    "composition_people": "Does it tell anything about people?",
    "collection_source": "How were the data obtained?",
    "collection_selection": "How were the rows selected?",
    "preprocessing_steps": "What was done to the data?",
    "preprocessing_raw": "Are the raw data kept?",
    "uses_intended": "What is it meant to be used for?",
    "uses_unsuitable": "What should it not be used for?",
    "uses_biases": "Which biases are known?",
    "distribution_license": "Under which terms is it distributed?",
    "distribution_citation": "What is to be cited?",
    "maintenance_contact": "Who maintains it?",
    "maintenance_versions": "How are versions numbered, and what changed since the last?",
}
"""What a datasheet answers (Gebru et al. 2021), by the name under which a recipe declares an answer."""

COMPUTED = frozenset(
    ("motivation_purpose", "motivation_goal", "composition_instances", "composition_missing", "composition_errors",
     "composition_labels", "composition_splits", "composition_footprint", "composition_limits", "collection_source",
     "collection_selection", "preprocessing_steps", "preprocessing_raw", "distribution_license", "maintenance_versions")
)  # fmt: skip
"""Questions that the data and the survey answer; the others are for people."""


class Predicate(Part):
    """One cut; rows for which it is not true are dropped, and listed."""

    name: str = Field(pattern=r"^[A-Za-z]\w*$")
    where: str = Field(min_length=1, description="SQL condition on the columns of the release")
    reason: str = Field(min_length=1)
    serves: str = Field(min_length=1, description="name of the requirement, in motivation.requirements of the survey")


class Flag(Part):
    """One bit of the release's own mask; rows keep it, nothing is dropped."""

    name: str = Field(pattern=r"^[A-Za-z]\w*$")
    where: str = Field(min_length=1)
    description: str = Field(min_length=1)


class Erroneous(Part):
    """Bounds that no true value leaves; rows outside are dropped, and listed with the value."""

    column: str
    at_least: float | None = None
    at_most: float | None = None
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _bounded(self) -> Erroneous:
        if self.at_least is None and self.at_most is None:
            raise ValueError("give at_least, at_most or both")
        return self


class Far(Part):
    """True values far from the rest: kept, flagged and weighted down."""

    columns: tuple[str, ...] = Field(min_length=1)
    threshold: float = Field(5.0, gt=0, description="distance from the median, in half widths of the central 68 per cent")


class Outliers(Part):
    """Both kinds of outliers."""

    erroneous: tuple[Erroneous, ...] = ()
    far: Far | None = None


class Impute(Part):
    """Fill the cells of a column that hold no value; their state says so, and another column keeps what it was.

    What several entries say of one column is done in order: each fills what those before it left empty.
    """

    column: str
    method: Literal["median", "nearest", "regression"] = "median"
    using: tuple[str, ...] = Field((), description="columns that the value follows from; a row without one of them stays empty")
    neighbours: int = Field(5, ge=1, description="of nearest: rows whose mean is taken")
    reference: int = Field(2000, ge=10, le=20_000, description="of nearest: most rows among which they are sought")
    reason: str = Field(min_length=1)

    @model_validator(mode="after")
    def _follows(self) -> Impute:
        if (self.method == "median") == bool(self.using):
            raise ValueError(
                f"method: {self.method} " + ("takes no using" if self.using else "needs using: columns it follows from")
            )
        if self.column in self.using:
            raise ValueError(f"using: {self.column} cannot follow from itself")
        return self


class Simulate(Part):
    """Rows drawn from a mixture that join the release, beside those that were observed: their origin says so."""

    rows: int = Field(ge=1)
    seed: int = Field(0, ge=0)
    split: Literal["train", "validation", "test"] = "train"
    reason: str = Field(min_length=1)


class Label(Part):
    """A column that is to be predicted."""

    column: str
    source: str = Field(min_length=1)
    quality: str = Field(min_length=1)
    error: str = Field("", description="column with its error")


class Meaning(Part):
    """Why a column is in the release, and what the survey does not say of it."""

    reason: str = ""
    serves: str = ""
    unit: Unit | None = None
    ucd: str = ""
    description: str = ""
    obtained: str = ""


class Join(Part):
    """Values of all bands side by side, as `join_bands` gives them."""

    values: tuple[str, ...] = Field(min_length=1)
    pick: str = "weighted_mean"
    bands: tuple[str, ...] | None = None
    reason: str = "several detections of an object in a band are one measurement"


class Statistics(Part):
    """Statistics of light curves, as `variability` gives them."""

    values: tuple[str, ...] | None = None
    bands: tuple[str, ...] | None = None
    statistics: tuple[str, ...] | None = None
    reason: str = "a light curve of any length becomes a row of numbers"


class Split(Part):
    """Train, validation and test by whole pixels of the sky, so that neighbours stay together."""

    order: int = Field(8, ge=0, le=20, description="HEALPix order of the pixels that are dealt out")
    salt: str = "scalable"
    train: float = Field(0.8, gt=0)
    validation: float = Field(0.1, ge=0)
    test: float = Field(0.1, ge=0)
    guard_arcsec: float = Field(5.0, gt=0, description="rows nearer to pixels of another split than this are in none [arcsec]")
    folds: int = Field(5, ge=2, le=100)
    random: bool = Field(False, description="deal out single objects instead: neighbours leak; the count is printed")

    @model_validator(mode="after")
    def _whole(self) -> Split:
        if abs(self.train + self.validation + self.test - 1.0) > 1e-9:
            raise ValueError("train, validation and test must add up to 1")
        return self


class Recipe(Part):
    """What a release holds; see `open_recipe`."""

    release: str = Field(pattern=r"^[A-Za-z][\w-]*$", description="a short name")
    title: str = Field(min_length=1)
    rows: Literal["objects", "detections"] = "objects"
    keep: tuple[str, ...] = Field((), description="columns of detections to release; empty: all")
    join: Join | None = None
    statistics: Statistics | None = None
    light_curves: tuple[str, ...] = Field((), description="columns of detections for the light curves of objects")
    images: bool = Field(False, description="release the cutouts of a cube beside the objects")
    codec: Literal["deflate", "carry"] = Field(
        "deflate", description="of pixels: deflate, which every reader knows, or carry: as the cube has them, for hdf5plugin"
    )
    select: tuple[Predicate, ...] = ()
    flags: tuple[Flag, ...] = ()
    outliers: Outliers = Outliers()
    impute: tuple[Impute, ...] = ()
    labels: tuple[Label, ...] = ()
    simulated: str = Field("", description="SQL condition on rows that were simulated, not observed: their origin says so")
    simulate: Simulate | None = Field(None, description="rows drawn from a mixture, for a model given beside the recipe")
    columns: dict[str, Meaning] = Field(
        default_factory=dict, description="by name or pattern such as *_Mag1; the name itself, then the longest pattern"
    )
    split: Split = Split()
    datasheet: dict[str, str] = Field(default_factory=dict, description="answers; 'not applicable: …' with a reason")
    shard_mb: float = Field(
        1000,
        gt=0,
        description="most of a shard unpacked [MB], light curves and pixels counted; larger leaves are divided",
    )
    whole: bool = Field(False, description="release the source files too, so that FITS files come back bit for bit")

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        of_objects = self.join or self.statistics or self.light_curves or self.images
        if self.rows == "objects" and not of_objects:
            raise ValueError("rows: objects need something to release: give join, statistics, light_curves or images")
        if self.rows == "detections" and self.simulate:
            raise ValueError("simulate: a mixture draws objects; say rows: objects")
        if self.rows == "detections" and of_objects:
            raise ValueError("rows: detections have neither join, statistics, light_curves nor images")
        if self.codec == "carry" and not self.images:
            raise ValueError("codec: carry is for images; say images: true")
        if len(self.flags) > 30:
            raise ValueError("flags: the mask has room for 30")
        for part, names in (("select", [p.name for p in self.select]), ("flags", [f.name for f in self.flags])):
            if len(set(names)) < len(names):
                raise ValueError(f"{part}: a name is given twice")
        for name in self.datasheet:
            if name not in QUESTIONS:
                raise ValueError(f"datasheet: no question {name!r}; {nearest(name, QUESTIONS)}")
            if name in COMPUTED:
                raise ValueError(f"datasheet: {name} is answered from the data; leave it out")
        return self

    def meaning(self, name: str) -> Meaning:
        """Return what the recipe says of a column: each field from the longest pattern that fits and gives it."""
        found: dict[str, Any] = {}
        for pattern in sorted(self.columns, key=lambda text: ("*" in text or "?" in text, -len(text), text)):
            if fnmatchcase(name, pattern):
                given = self.columns[pattern].model_dump(exclude_defaults=True)
                found = given | found
        return Meaning(**found)


def open_recipe(path: str | Path) -> Recipe:
    """Read and validate a recipe; nothing else is touched.

    Raises
    ------
    SurveyError
        Naming file, field, value and choices.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SurveyError(f"{path}: no recipe can be read there ({error})") from error
    return parse_recipe(values, str(path))


def parse_recipe(values: Any, where: str) -> Recipe:
    """Validate what a recipe file holds; ``where`` names it in messages."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        lines = [f"{where}: {'.'.join(map(str, e['loc'])) or 'recipe'}: {e['msg']}" for e in error.errors()]
        raise SurveyError("\n".join(lines)) from error


def require_motives(survey: Survey, recipe: Recipe) -> tuple[Motivation, Query]:
    """Return the survey's motivation and query.

    Raises
    ------
    SurveyError
        With the lines to add, if the survey or the recipe does not say why the release exists, where it came from, what may be
        done with it, or whom to ask.
    """
    lines, motivation, query = list[str](), survey.motivation, survey.query
    if motivation is None:
        lines.append('motivation: {text: "why the data set exists", goal: "first science goal", requirements: {depth: "…"}}')
    elif not motivation.goal or not motivation.requirements:
        lines.append('motivation: {…, goal: "first science goal", requirements: {depth: "what the goal needs, as a number"}}')
    if query is None:
        lines.append('query: {text: "the archive query, word for word", endpoint: "…", data_release: "…", date: "…"}')
    if not survey.license:
        lines.append('license: "for example CC-BY-4.0"')
    if lines or motivation is None or query is None:
        raise SurveyError(f"{survey.name} cannot be released; add to its survey.yaml:\n  " + "\n  ".join(lines))
    missing = sorted(set(QUESTIONS) - COMPUTED - {name for name, text in recipe.datasheet.items() if text.strip()})
    if missing:
        asked = "\n".join(f'    {name}: "…"  # {QUESTIONS[name]}' for name in missing)
        raise SurveyError(f"{recipe.release} cannot be released; add to its recipe:\n  datasheet:\n{asked}")
    known = motivation.requirements
    served = [(f"select.{p.name}", p.serves) for p in recipe.select]
    served += [(f"columns.{name}", m.serves) for name, m in recipe.columns.items() if m.serves]
    for where, serves in served:
        if serves not in known:
            raise SurveyError(f"{where}.serves: no requirement {serves!r} in motivation.requirements; {nearest(serves, known)}")
    return motivation, query


def check_meanings(columns: list[tuple[Column, Meaning]]) -> None:
    """Refuse columns without unit, description, reason, or how they were obtained.

    Raises
    ------
    SurveyError
        With a line for each column that mends it.
    """
    lines = []
    for column, meaning in columns:
        missing = [name for name in ("unit", "description") if not getattr(column, name)]
        missing += [name for name in ("reason", "obtained") if not getattr(meaning, name)]
        missing += ["ucd"] if not column.ucd else []
        # What tells rows apart, or comes with something else, serves whatever that serves.
        missing += (
            ["serves"]
            if not (meaning.serves or column.role in ("band", "time", "quality") or column.name[:6] == "image_")
            else []
        )
        if missing:
            lines.append(f"  {column.name}: {{" + ", ".join(f'{name}: "…"' for name in missing) + "}")
    if lines:
        raise SurveyError(
            "columns are not described; add to columns: of the recipe (unit: '' for a pure number):\n" + "\n".join(lines)
        )
