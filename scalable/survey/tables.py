"""The parts of a survey description that say where the tables are, what their columns mean, and how they are stored."""

from __future__ import annotations

import re
import string
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from scalable.errors import nearest
from scalable.schema import ROLES
from scalable.survey.part import Format, Key, ObservationKey, Part, StateName, Unit, groups_of


def _known_role(role: str) -> str:
    if role not in ROLES:
        raise ValueError(f"{role!r} is not a role; {nearest(role, ROLES)}")
    return role


def _bare_sentinel(value: Any) -> Any:
    return {"value": value} if isinstance(value, (int, float)) else value


BOUNDS = ("value", "at_most", "below", "at_least", "above")
"""How a null rule names the values that it takes."""


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
        groups = groups_of(self.pattern, KEYS)
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
