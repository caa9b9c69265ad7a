"""The survey description: one YAML file, validated, that says where the files are and what their columns mean."""

from __future__ import annotations

import hashlib
import json
import os
import re
import string
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from scalable.errors import ColumnError, InputError, SurveyError, nearest
from scalable.schema import ROLES, State, parse_unit

STORED_NAMES = (
    "_healpix_29", "object_id", "object_ra", "object_dec", "observation_id", "band", "mjd", "source_row", "rejected_because",
)  # fmt: skip
"""Columns that ingest adds to every detection; a source column of the same name would be ambiguous."""


def _known_unit(text: str) -> str:
    if parse_unit(text) is None:
        raise ValueError(f"{text!r} is not a unit; use VOUnit spelling, for example deg, rad, mag, adu, Jy, ct.s**-1")
    return text


def _known_role(role: str) -> str:
    if role not in ROLES:
        raise ValueError(f"{role!r} is not a role; {nearest(role, ROLES)}")
    return role


def _state_name(state: str) -> str:
    names = [member.name.lower() for member in State if member not in (State.MEASURED, State.IMPUTED)]
    if state not in names:
        raise ValueError(f"{state!r} is not a state; {nearest(state, names)}")
    return state


def _bare_sentinel(value: Any) -> Any:
    return {"value": value} if isinstance(value, (int, float)) else value


BOUNDS = ("value", "at_most", "below", "at_least", "above")
"""How a null rule names the values that it takes."""

Unit = Annotated[str, AfterValidator(_known_unit)]
StateName = Annotated[str, AfterValidator(_state_name)]


class Part(BaseModel):
    """A part of the description: frozen, and no field that nobody reads."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _bare_column(value: Any) -> Any:
    return ({"column": value} if value else None) if isinstance(value, str) else value


class ObservationKey(Part):
    """Where one key of an observation stands: a column of the index, a keyword of the header, or here (one of the three)."""

    column: str = Field("", description="column of observations.index; a bare name means the same")
    keyword: str = Field("", description="keyword in the header of the file, for example FILTER or MJD-OBS")
    value: str | int | float | None = Field(None, description="the same value for all files")

    @model_validator(mode="after")
    def _one_place(self) -> ObservationKey:
        if bool(self.column) + bool(self.keyword) + (self.value is not None) != 1:
            raise ValueError("give exactly one of column (of the index), keyword (of the header) and value (for all files)")
        return self


Key = Annotated[ObservationKey | None, BeforeValidator(_bare_column)]
KEYS = ("id", "field", "band", "mjd", "exposure_s", "airmass")
"""What is known of an observation beside its file."""


class Observations(Part):
    """What is known of each file: an index with one row per file says it, or with files.glob its own header or name."""

    index: str = Field("", description="CSV file with one row per catalogue file, relative to root; without it, set files.glob")
    pattern: str = Field(
        "",
        description="with files.glob: a regular expression that is searched in the path below root, with groups called like the "
        "fields here, for example (?P<band>[a-z])_(?P<mjd>[0-9.]+)\\.csv; a group (?P<id>[0-9]+) gives the integer id, and "
        "without it the id is a digest of the path: both stay when files are added",
    )
    id: Key = Field(None, description="column with the observation's integer id")
    field: Key = Field(None, description="name or number of the field")
    band: Key = Field(None, description="filter")
    mjd: Key = Field(None, description="modified Julian date [d]")
    exposure_s: Key = Field(None, description="exposure time [s]")
    airmass: Key = Field(None, description="airmass")
    bands_as: dict[str, str] = Field(
        default_factory=dict, description='band that a FILTER text means, for example {"r DECam SDSS c0002 6415.0 1480.0": r}'
    )

    def given(self) -> dict[str, ObservationKey]:
        """Return the keys that stand under their own names here."""
        return {name: key for name in KEYS if (key := getattr(self, name))}

    def knows(self, name: str) -> bool:
        """Return whether a key is given here or by a group of the pattern."""
        return name in self.given() or name in re.compile(self.pattern).groupindex

    @model_validator(mode="after")
    def _consistent(self) -> Observations:
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r} is no regular expression: {error}") from None
        for name in groups:
            if name not in KEYS:
                raise ValueError(f"pattern: a group is called {name!r}; {nearest(name, KEYS)}")
        if self.pattern and not groups:
            raise ValueError(f"pattern: {self.pattern!r} has no named group such as (?P<band>[a-z]); choices: {', '.join(KEYS)}")
        if self.index and self.pattern:
            raise ValueError("pattern: with an index, name its columns; a pattern goes with files.glob")
        for name, key in self.given().items():
            if name in groups:
                raise ValueError(f"{name}: is given here and by a group of pattern; keep one")
            if self.index and not key.column:
                raise ValueError(f"{name}: with an index, name its column")
            if not self.index and name == "id":
                raise ValueError("id: without an index, a group (?P<id>[0-9]+) of pattern gives it, or else a digest of the path")
            if not self.index and key.column:
                raise ValueError(
                    f"{name}: {key.column!r} names a column, but there is no index; write {{keyword: {key.column}}} for a "
                    f"keyword of the header, or {{value: {key.column}}} for a constant"
                )
        return self


class Template(Part):
    """How a file is named: index columns and ``epoch`` in braces."""

    path: str = Field(description="path below root, for example Field-{FieldID}-{Filter}-E{epoch:03d}.fits")
    bands: tuple[str, ...] = Field((), description="bands this template holds for; empty: all that no other template names")

    @model_validator(mode="after")
    def _plain_fields(self) -> Template:
        for _, name, layout, conversion in string.Formatter().parse(self.path):
            if conversion or "{" in (layout or "") or (name is not None and not name.isidentifier()):
                raise ValueError(f"{self.path!r}: only plain column names and epoch may stand in braces, not {name!r}")
        return self


Format = Literal["fits", "csv", "text", "ecsv", "votable", "parquet", "hdf5"]


class Files(Part):
    """The format of the tables and where they lie."""

    format: Format = Field("fits", description="format of the tables")
    hdu: int = Field(1, ge=0, description="number of the extension that holds the table; of a VOTable, which table, from 1")
    table: str = Field("", description="path of the table inside an HDF5 file: a group or a compound dataset")
    templates: tuple[Template, ...] = Field(
        (), description="with observations.index: file names; the first whose bands fit is taken"
    )
    glob: str = Field(
        "",
        description="without an index: which files to read, relative to root, for example night*/**/*.fits; ** stands for any "
        "folders, hidden files are left out, links out of root are refused. Each file is one observation; its band and MJD stand "
        "in its header, observations: {band: {keyword: FILTER}, mjd: {keyword: MJD-OBS}}, or in its name, observations.pattern",
    )

    @model_validator(mode="after")
    def _one_way(self) -> Files:
        if bool(self.templates) == bool(self.glob):
            raise ValueError("give either templates (with observations.index) or glob (without it)")
        parts = PurePosixPath(self.glob).parts
        if self.glob.startswith("/") or ".." in parts:
            raise ValueError(f"glob: {self.glob!r} must stay below root: no leading / and no ..")
        if any("**" in part and part != "**" for part in parts):
            raise ValueError(f"glob: in {self.glob!r}, ** must stand between slashes: it means any folders")
        return self

    @model_validator(mode="after")
    def _table_is_in_hdf5(self) -> Files:
        if self.table and self.format != "hdf5":
            raise ValueError(f"table: only HDF5 files hold tables by path, files.format is {self.format!r}; use hdu, or neither")
        return self


class NullRule(Part):
    """A value, or an open or closed range of values, that is no measurement; the first rule of a column that fits decides."""

    value: float | None = Field(None, description="the sentinel as written in the source")
    at_most: float | None = Field(None, description="this and everything below it", allow_inf_nan=False)
    below: float | None = Field(None, description="everything below it", allow_inf_nan=False)
    at_least: float | None = Field(None, description="this and everything above it", allow_inf_nan=False)
    above: float | None = Field(None, description="everything above it", allow_inf_nan=False)
    state: StateName = Field("sentinel", description="what it means: non_detection, not_observed, sentinel, rejected")

    @model_validator(mode="after")
    def _one_bound(self) -> NullRule:
        given = [name for name in BOUNDS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(BOUNDS)}, not {' and '.join(given) or 'none'}")
        return self

    @property
    def bound(self) -> tuple[str, float]:
        """Which of `BOUNDS` the rule gives, and its number."""
        return next((name, number) for name in BOUNDS if (number := getattr(self, name)) is not None)


class Conversion(Part):
    """A further column with the same values in another unit; the source's own column stays."""

    name: str = Field(description="name of the added column")
    unit: Unit = Field(description="its unit")


class ColumnRule(Part):
    """What one column of the source means."""

    role: Annotated[str, AfterValidator(_known_role)] = Field("value", description="one of: " + ", ".join(ROLES))
    unit: Unit | None = Field(None, description="the true unit, in VOUnit spelling; it overrules the header ('' for none)")
    error: str = Field("", description="name of the column with this column's error")
    ucd: str = Field("", description="IVOA content descriptor")
    description: str = Field("", description="a sentence for people")
    nulls: tuple[Annotated[NullRule, BeforeValidator(_bare_sentinel)], ...] = Field(
        (), description="sentinels and ranges that are no measurements, besides NaN; the first that fits decides"
    )
    null_state: StateName = Field("sentinel", description="what a NaN or a null of the file format means")
    convert: Conversion | None = Field(None, description="add a column with the values in another unit")
    aperture_arcsec: float | None = Field(None, gt=0, description="aperture the value was measured in [arcsec]")


class Store(Part):
    """How the catalogue is cut and placed on disk."""

    margin_arcsec: float = Field(5.0, gt=0, le=60, description="largest spread of one object's detections [arcsec]")
    leaf_mb: float = Field(128.0, gt=0, description="largest size of one decoded leaf of detections [MB]")


class Grouping(Part):
    """What makes detections one object: an id they share, their position, or a reference object they are nearest to."""

    by: Literal["id", "position", "reference"] = Field("id", description="id (the column of that role), position or reference")
    radius_arcsec: float = Field(
        0.0, ge=0, description="linking length between detections, and largest distance from the reference [arcsec], from 0.001"
    )
    reference: str = Field("", description="table of reference objects, a path below root")
    format: Format = Field("fits", description="format of that table")
    hdu: int = Field(1, ge=0, description="number of its extension; of a VOTable, which table, from 1")
    id: str = Field("", description="its column of ids, whole numbers from 0")
    ra: str = Field("", description="its column of right ascensions")
    dec: str = Field("", description="its column of declinations")
    unit: Unit | None = Field(
        None, description="the true unit of its positions; it overrules the header (deg where there is none)"
    )

    @model_validator(mode="after")
    def _complete(self) -> Grouping:
        place = ("reference", "id", "ra", "dec")
        needed = {"id": (), "position": ("radius_arcsec",), "reference": ("radius_arcsec", *place)}[self.by]
        missing = [name for name in needed if not getattr(self, name)]
        if missing:
            raise ValueError(f"grouping by {self.by} needs {', '.join(missing)} too")
        if needed and self.radius_arcsec < 0.001:
            raise ValueError("grouping.radius_arcsec must be at least 0.001")
        read = {"by", *needed, *(("format", "hdu", "unit") if self.by == "reference" else ())}
        unread = sorted(set(self.model_dump(exclude_defaults=True)) - read)
        if unread:
            raise ValueError(f"grouping by {self.by} does not read {', '.join(unread)}; remove it, or set grouping.by")
        return self


class Variability(Part):
    """Which objects count as variable on the page."""

    band: str = Field(description="band with several epochs")
    threshold: float = Field(20.0, gt=0, description="largest deviation from the mean, in units of its error")


class Bright(Part):
    """The well measured stars shown on the page."""

    snr: float = Field(30.0, gt=0, description="least signal to noise in every band")
    bands: tuple[str, ...] = Field((), description="bands that must all reach it; empty: all")


class Cutouts(Part):
    """The cube of cutouts that a run makes around objects, from the survey's images."""

    size: int = Field(gt=0, description="rows and columns [pixel]")
    objects: int = Field(1000, gt=0, description="at most so many objects, spread evenly over those that the images show")
    combine: Literal["mean", "median", "ivar", "clipped"] | None = Field(None, description="without it, each exposure by itself")
    resampling: Literal["native", "interp", "adaptive", "exact"] = Field(
        "native", description="the images' own pixels, or how they are moved"
    )
    grid: float | str | None = Field(
        None, description="with resampling: side of a pixel [arcsec], or a band whose pixels are taken"
    )


class Mixture(Part):
    """The mixture of Gaussians that a run fits to the colours of objects, and the sample that it draws from it."""

    bands: tuple[str, ...] = Field(
        min_length=2, description="bands in order of wavelength: neighbours make the colours, from the first epochs of magnitude"
    )
    components: tuple[int, ...] = Field((1, 3, 5, 10, 20), description="numbers of components; that of the least BIC is taken")
    classes: tuple[float, ...] = Field((), description="classes that count, for example [-1]; empty: every object")
    rule: str = Field("any", description="who must say so: any, all or majority of the bands, or the name of one of them")
    rows: int = Field(100_000, gt=0, description="rows of the sample")


class PhotoZ(Part):
    """The redshifts that a run teaches a model from columns of the tables, and predicts for every row."""

    magnitudes: tuple[str, ...] = Field(min_length=2, description="columns in order of wavelength: neighbours make the colours")
    target: str = Field(description="column of the spectroscopic redshifts; rows without one teach nothing")
    reference: str = Field("", description="a magnitude that is itself a feature")
    estimator: Literal[
        "linear", "ridge", "lasso", "elastic_net", "boosting", "forest", "adaboost", "network", "neighbours", "kernel", "curve"
    ] = "boosting"
    held_out: float = Field(0.2, gt=0, le=0.5, description="share of the objects, by identity, that only judge")
    sky_order: int | None = Field(None, ge=0, le=29, description="HEALPix order of the pixels that are held out as a whole")


class Products(Part):
    """What a run computes and the page shows."""

    magnitude: str = Field("", description="magnitude column of the plots")
    flux: str = Field("", description="flux column of the statistics")
    statistics: tuple[str, ...] = Field(
        (), description="statistics of its light curves, for example [Mean, Chi2]; empty: the default"
    )
    colours: tuple[tuple[str, str], ...] = Field((), description="pairs of bands, for example [[J, H], [Y, J]]")
    variability: Variability | None = None
    bright: Bright | None = None
    cutouts: Cutouts | None = None
    mixture: Mixture | None = None
    photoz: PhotoZ | None = None
    release: str = Field("", description="recipe of a release, a file beside this one; see release.yaml in the README")


class Question(Part):
    """A question the team asks of the catalogue; its answer stands on the page."""

    id: str
    title: str
    sql: str
    note: str = Field("", description="which version this is, or what to beware of")


class Motivation(Part):
    """Why the data set exists."""

    text: str = Field(min_length=1)
    goal: str = ""
    requirements: dict[str, str] = Field(default_factory=dict)


class Query(Part):
    """How the input was obtained."""

    text: str = Field(min_length=1, description="verbatim archive query, or how the files were selected")
    endpoint: str = ""
    data_release: str = ""
    date: str = ""
    rows: int | None = None


IMAGE_KEYS = ("band", "mjd", "exposure_s", "psf_fwhm", "zero_point")
"""What is known of an image beside its pixels."""


class Sibling(Part):
    """Where the mask or the weight of an image is: in another file, in another HDU, or both."""

    replace: tuple[str, str] | None = Field(
        None, description="a text in the path of the image and what stands in its place in the sibling's, for example [ooi, ood]"
    )
    hdu: int | str | None = Field(None, description="number or name of its HDU; without it, the number of the image's own")

    @model_validator(mode="after")
    def _elsewhere(self) -> Sibling:
        if self.replace is None and self.hdu is None:
            raise ValueError("say where it is: replace: [TEXT, OTHER] for another file, hdu for another HDU, or both")
        return self


class Mask(Sibling):
    """The mask of an image: whole numbers, a pixel each."""

    bad_bits: tuple[int, ...] | None = Field(
        None, description="numbers of the bits, from 0, that make a pixel bad; without them, every value but 0 does"
    )


class Weight(Sibling):
    """The weight of an image, a pixel each."""

    kind: Literal["ivar", "variance", "sigma"] = Field(
        "ivar", description="what it holds; an inverse variance of 0 is a bad pixel"
    )


class Images(Part):
    """Where the images are, and what they show."""

    glob: str = Field("", description="which files to read, relative to root, for example night*/*_ooi_*.fits; or give index")
    index: str = Field("", description="CSV file with one row per image, relative to root")
    path: str = Field("", description="with index: path of an image below root, index columns in braces, for example {Filename}")
    pattern: str = Field(
        "", description="with glob: a regular expression with groups called like the keys below, as in observations"
    )
    hdu: tuple[int | str, ...] = Field((), description="numbers or names of the HDUs with images; empty: all that hold one")
    planes: tuple[str, ...] = Field((), description="bands of the planes, where an image has three axes")
    plane: str = Field("", description="column of the index with the number of the plane, from 0, that a row is about")
    band: Key = Field(None, description="filter")
    mjd: Key = Field(None, description="modified Julian date [d]")
    exposure_s: Key = Field(None, description="exposure time [s]")
    psf_fwhm: Key = Field(None, description="full width at half maximum of the point spread function, in psf_unit")
    psf_unit: Literal["pix", "arcsec"] = "arcsec"
    zero_point: Key = Field(None, description="magnitude of one unit of flux [mag]")
    bands_as: dict[str, str] = Field(default_factory=dict, description="band that a FILTER text means, as in observations")
    filter_keyword: str = Field(
        "FILTER", description="keyword of the header that names the filter; check holds the band against it"
    )
    unit: Unit | None = Field(None, description="the true unit of a pixel; it overrules BUNIT")
    pixel_holds: Literal["flux", "surface_brightness"] = Field(
        "flux", description="what a pixel holds, the flux that fell into it or a surface brightness: resampling must know"
    )
    wavelength_nm: dict[str, float] = Field(default_factory=dict, description="central wavelength of each band [nm]")
    mask: Mask | None = None
    weight: Weight | None = None

    def given(self) -> dict[str, ObservationKey]:
        """Return the keys that stand under their own names here."""
        return {name: key for name in IMAGE_KEYS if (key := getattr(self, name))}

    @model_validator(mode="after")
    def _consistent(self) -> Images:
        if bool(self.glob) == bool(self.index):
            raise ValueError("give either glob, or index with path")
        if bool(self.index) != bool(self.path):
            raise ValueError("path: goes with index, which goes with path")
        if self.pattern and not self.glob:
            raise ValueError("pattern: goes with glob; with an index, name its columns")
        if self.plane and (self.planes or not self.index):
            raise ValueError("plane: goes with index, and instead of planes")
        if self.glob.startswith("/") or ".." in PurePosixPath(self.glob).parts:
            raise ValueError(f"glob: {self.glob!r} must stay below root: no leading / and no ..")
        try:
            groups = re.compile(self.pattern).groupindex
        except re.error as error:
            raise ValueError(f"pattern: {self.pattern!r} is no regular expression: {error}") from None
        for name in groups:
            if name not in IMAGE_KEYS:
                raise ValueError(f"pattern: a group is called {name!r}; {nearest(name, IMAGE_KEYS)}")
        for name, key in self.given().items():
            if name in groups:
                raise ValueError(f"{name}: is given here and by a group of pattern; keep one")
            if key.column and not self.index:
                raise ValueError(f"{name}: {key.column!r} names a column, but there is no index; write {{keyword: {key.column}}}")
        if bool(self.planes) == bool(self.band or "band" in groups):
            raise ValueError("band: say it once: band, a group of pattern, or planes")
        return self


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


def is_remote(path: str | Path) -> bool:
    """Return whether a path is the URL of a file or folder on a server."""
    return "://" in str(path)


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
        root = _absolute(_expand(survey.root), path)
    except ValidationError as error:
        raise SurveyError("\n".join(_explain(detail, lines, path) for detail in error.errors())) from error
    except SurveyError as error:
        raise SurveyError(f"{path}:{lines.get(('root',), 1)}: root: {error}") from error
    recipe = survey.products.release
    products = survey.products.model_copy(update={"release": str(path.parent.resolve() / recipe) if recipe else ""})
    return survey.model_copy(update={"root": root, "products": products})


def _absolute(root: str, path: Path) -> str:
    """Return the root as it is used: a folder relative to the description made absolute, a URL checked."""
    if not is_remote(root):
        return str((path.parent.resolve() / root).resolve())
    url = urlsplit(root)
    if url.password is not None or url.query or url.fragment:
        raise SurveyError("the URL holds a password, ? or #; credentials stand in the environment (AWS_*, FSSPEC_*)")
    if url.scheme in ("file", "local") or "::" in root:
        raise SurveyError(f"{root!r}: write files of this machine as a plain path, and a URL without ::")
    return root.rstrip("/")


def _expand(text: str) -> str:
    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match["name"]) or match["default"]
        if found is None:
            raise SurveyError(f"the variable {match['name']} is not set; run: export {match['name']}=/path/to/data")
        return found

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", value, text)


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
