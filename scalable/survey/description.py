"""The survey description: one model, validated, that says where the files are and what their columns mean."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import AfterValidator, Field, model_validator

from scalable.errors import ColumnError, InputError, nearest
from scalable.schema import ROLES
from scalable.survey.images import Images
from scalable.survey.part import Part
from scalable.survey.products import Motivation, Products, Query, Question
from scalable.survey.root import is_remote
from scalable.survey.tables import ColumnRule, Files, Grouping, Observations, Store

STORED_NAMES = (
    "_healpix_29", "object_id", "object_ra", "object_dec", "observation_id", "band", "mjd", "source_row", "rejected_because",
)  # fmt: skip
"""Columns that ingest adds to every detection; a source column of the same name would be ambiguous."""

CONTRADICTIONS = {
    "angle-range": "a coordinate's values fit another unit than the one that holds",
    "class-between-bands": "the class of the same object differs between bands",
    "different-columns": "some files have other columns than the rest",
    "duplicate-detection": "an object occurs more than once in one observation",
    "filter-header": "the FILTER keyword of a file is not the band of the index",
    "filter-image": "the filter keyword of an image is not the band that its name, its index or the description gives",
    "float-counter": "whole numbers are stored as floats",
    "float-id": "object ids are stored as floats too large to be exact",
    "float32-coordinates": "coordinates are stored in single precision",
    "index-file-name": "a column of the index gives other file names than the templates",
    "magnitude-unit": "a magnitude carries the unit of a flux, or none",
    "missing-file": "a file that the index lists is not there",
    "missing-images": "the survey describes images and none is there; accepted, a run makes what needs none",
    "negative-error": "an error is zero or negative",
    "nested-column": "a column holds an array in every row",
    "no-unit": "a flux or a position has no unit",
    "null-meaning": "a flux or magnitude is NaN or null, and its rule does not say why",
    "path-in-header": "the name of a table is a path on somebody's disk",
    "sentinel": "a value that looks like a sentinel is not declared as one",
    "unit-spelling": "a unit in the header is read although no standard spells it so",
    "unknown-unit": "a unit in the header is in no standard",
    "unreadable-file": "the header of a file cannot be read",
    "unreadable-image": "an image cannot be read, or does not say where on the sky it is",
}
"""What `scalable check` can find, by the name that ``accept`` takes."""


def _known_contradiction(name: str) -> str:
    if name not in CONTRADICTIONS:
        raise ValueError(f"{name!r} is no contradiction; {nearest(name, CONTRADICTIONS)}")
    return name


class Survey(Part):
    """The validated description of a survey; see `open_survey`."""

    name: str = Field(alias="survey", pattern=r"^[A-Za-z][\w.-]*$", description="a short name; it names the catalogues")
    description: str = ""
    root: str = Field(
        description="folder with the input, absolute or relative to this file, or a URL such as s3://bucket/prefix, whose "
        "credentials stand in the environment (AWS_*, FSSPEC_*); ${NAME:-default} is expanded"
    )
    observations: Observations = Observations()
    files: Files = Field(default_factory=Files.model_construct, description="the tables; a survey of images alone has none")
    images: Images | None = Field(None, description="the images, if there are any")
    bands: tuple[str, ...] = Field(
        (), description="every band of the survey, in order of wavelength; needed where columns have the roles ra and dec"
    )
    columns: dict[str, ColumnRule] = Field(
        default_factory=dict,
        description="what columns of the tables mean; with the roles object_id, ra and dec, or, for tables without positions, "
        "with neither ra nor dec",
    )
    quality: dict[str, str] = Field(default_factory=dict, description="named cuts, as SQL conditions on detections")
    store: Store = Store()
    grouping: Grouping = Grouping()
    products: Products = Products()
    questions: tuple[Question, ...] = ()
    accept: tuple[Annotated[str, AfterValidator(_known_contradiction)], ...] = Field(
        (), description="contradictions that are known and not to be reported: " + ", ".join(CONTRADICTIONS)
    )
    motivation: Motivation | None = None
    query: Query | None = None
    license: str = ""

    @model_validator(mode="after")
    def _consistent(self) -> Survey:
        for name in ("files", "columns"):
            if name not in self.model_fields_set and (self.images is None or self.has_tables):
                raise ValueError(f"{name}: this field is required and missing")
        self._check_roles()
        for name, rule in self.columns.items():
            if rule.error and rule.error not in self.columns:
                raise ValueError(f"columns.{name}.error: no column {rule.error!r}; {nearest(rule.error, self.columns)}")
        for name in (self.products.magnitude, self.products.flux):
            if name and name not in self.columns:
                raise ValueError(f"products: no column {name!r}; {nearest(name, self.columns)}")
        if self.has_tables:
            self._check_observations()
        if self.grouping.radius_arcsec > self.store.margin_arcsec:
            raise ValueError("grouping.radius_arcsec must not exceed store.margin_arcsec: tasks see no further across borders")
        self._check_bands()
        self._check_models()
        self._check_names()
        return self

    def _check_roles(self) -> None:
        for role in ("object_id", "ra", "dec"):
            names = [name for name, rule in self.columns.items() if rule.role == role]
            if role == "object_id" and self.grouping.by != "id":
                if names:
                    raise ValueError(f"columns.{names[0]}: objects are grouped by {self.grouping.by}; give it the role value")
            elif len(names) > 1 or (self.has_positions and not names):
                raise ValueError(f"columns: exactly one column must have role {role}, not {names or 'none'}")
        if self.has_positions and not self.bands:
            raise ValueError("bands: a survey with positions needs at least one")
        if not self.has_positions and self.grouping != Grouping():
            raise ValueError("grouping: objects are found by position, and no column has the roles ra and dec")
        if not self.has_positions and self.products.model_copy(update={"photoz": None}) != Products():
            raise ValueError("products: a table without positions has none but photoz; give columns the roles ra and dec")

    def _check_observations(self) -> None:
        known = self.observations
        if bool(known.index) == bool(self.files.glob):
            which = "both are" if known.index else "neither is"
            raise ValueError(f"observations.index, with files.templates, or files.glob lists the files, but {which} given")
        needed = {"id": bool(known.index), "band": self.has_positions, "mjd": self.has_positions}
        for name in needed:
            if needed[name] and not known.knows(name):
                more = "" if known.index else ": a keyword of the header, a value, or a group of observations.pattern"
                raise ValueError(f"observations.{name}: this field is required and missing{more}")

    def _check_bands(self) -> None:
        named = {
            "files.templates": [band for template in self.files.templates for band in template.bands],
            "observations.bands_as": self.observations.bands_as.values(),
            "products.colours": [band for pair in self.products.colours for band in pair],
            "products.variability.band": [self.products.variability.band] if self.products.variability else [],
            "products.bright.bands": self.products.bright.bands if self.products.bright else [],
            "products.mixture.bands": self.products.mixture.bands if self.products.mixture else [],
        }
        if self.products.cutouts and not self.images:
            raise ValueError("products.cutouts: there are no images; add a block images with glob and band")
        if self.images:
            if not self.bands:
                raise ValueError("bands: images have bands; name every one, in order of wavelength")
            named["images.planes"] = self.images.planes
            named["images.bands_as"] = self.images.bands_as.values()
            named["images.wavelength_nm"] = self.images.wavelength_nm
        for where, bands in named.items():
            for band in bands:
                if band not in self.bands:
                    raise ValueError(f"{where}: no band {band!r}; {nearest(band, self.bands)}")

    def _check_models(self) -> None:
        mixture, photoz = self.products.mixture, self.products.photoz
        if mixture:
            if not self.products.magnitude:
                raise ValueError("products.mixture: the colours are those of products.magnitude; name that column")
            if mixture.classes and not any(rule.role == "class" for rule in self.columns.values()):
                raise ValueError("products.mixture.classes: no column has the role class")
            rules = ("any", "all", "majority", *mixture.bands)
            if mixture.rule not in rules:
                raise ValueError(f"products.mixture.rule: no rule {mixture.rule!r}; {nearest(mixture.rule, rules)}")
        if photoz:
            for name in (*photoz.magnitudes, photoz.target):
                if name not in self.columns:
                    raise ValueError(f"products.photoz: no column {name!r}; {nearest(name, self.columns)}")
            if photoz.sky_order is not None and not self.has_positions:
                raise ValueError("products.photoz.sky_order: no column has the roles ra and dec; leave it out")
            if photoz.reference and photoz.reference not in photoz.magnitudes:
                choices = nearest(photoz.reference, photoz.magnitudes)
                raise ValueError(f"products.photoz.reference: {photoz.reference!r} is none of the magnitudes; {choices}")

    def _check_names(self) -> None:
        # SQL does not tell upper from lower case, so two names may not differ by case alone.
        added = [rule.convert.name for rule in self.columns.values() if rule.convert]
        seen: dict[str, str] = {name.lower(): name for name in STORED_NAMES}
        for name in (*self.columns, *added):
            if name.lower() in seen:
                raise ValueError(f"columns: {name!r} clashes with {seen[name.lower()]!r} (SQL ignores case)")
            seen[name.lower()] = name

    @property
    def has_positions(self) -> bool:
        """Whether the tables hold positions; if not, they are stored as plain rows."""
        return any(rule.role in ("ra", "dec") for rule in self.columns.values())

    @property
    def has_tables(self) -> bool:
        """Whether it describes tables; if not, it is a survey of images alone."""
        return bool(self.files.templates or self.files.glob)

    @property
    def input_root(self) -> Path:
        """Absolute folder that every input path must lie in."""
        return Path(self.root)

    def confined(self, relative: str) -> str:
        """Return the path or URL of an input file, or raise `InputError` where it leaves the root (by ``..`` or by a link)."""
        if is_remote(self.root):
            # A server may decode what it is asked for, and fsspec takes what follows :: for another address.
            inside = not {"..", ""} & set(unquote(relative).split("/")) and "::" not in relative
            path = f"{self.root}/{relative}"
        else:
            path = str(self.input_root / relative)
            inside = Path(path).resolve().is_relative_to(self.input_root.resolve())
        if not inside:
            raise InputError(f"{relative!r} lies outside the survey's root {self.root}; only files below root are read")
        return path

    def column_of(self, role: str) -> str:
        """Return the name of the first column with ``role``."""
        for name, rule in self.columns.items():
            if rule.role == role:
                return name
        raise ColumnError(f"no column of survey {self.name!r} has role {role!r}; {nearest(role, ROLES)}")

    @property
    def digest(self) -> str:
        """SHA-256 of everything that decides what the store holds; not of plots, questions or texts."""
        parts = self.model_dump(mode="json", include={"name", "observations", "files", "bands", "columns", "store", "grouping"})
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
