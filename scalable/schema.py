"""What a column means: role, type, unit, null rule, UCD and description, carried as Arrow field metadata."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields
from enum import IntEnum
from functools import lru_cache

import pyarrow as pa
from astropy import units as u

from scalable.errors import ColumnError, nearest

ROLES = (
    "object_id",
    "ra",
    "dec",
    "band",
    "time",
    "observation_id",
    "flux",
    "flux_err",
    "mag",
    "mag_err",
    "class",
    "quality",
    "value",
)


class State(IntEnum):
    """Why a cell holds no measured value; the codes are part of the release format."""

    MEASURED = 0
    NON_DETECTION = 1
    NOT_OBSERVED = 2
    SENTINEL = 3
    REJECTED = 4
    IMPUTED = 5


@dataclass(frozen=True)
class Column:
    """One column and its meaning.

    Attributes
    ----------
    name, dtype : str, pyarrow.DataType
        Stored name and Arrow type.
    role : str
        One of `ROLES`, or empty.
    unit, source_unit : str
        The unit that holds, and the text that the source gave for it where that differs.
    ucd, description : str
        IVOA content descriptor and a sentence for people.
    error : str
        Name of the column that holds this column's error.
    null_state : str
        Name of the `State` that every null of this column stands for.
    shape : str
        FITS ``TDIM``-like shape of a vector column, in C order, for example ``"5,5"``.
    """

    name: str
    dtype: pa.DataType
    role: str = ""
    unit: str = ""
    source_unit: str = ""
    ucd: str = ""
    description: str = ""
    error: str = ""
    null_state: str = ""
    shape: str = ""

    def to_field(self) -> pa.Field:
        """Return the Arrow field that carries this meaning as metadata."""
        meta = {key: getattr(self, key) for key in _KEYS if getattr(self, key)}
        return pa.field(self.name, self.dtype, metadata=meta or None)

    @classmethod
    def from_field(cls, field: pa.Field) -> Column:
        """Read the meaning back from an Arrow field."""
        meta = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        return cls(field.name, field.type, **{key: meta[key] for key in _KEYS if key in meta})


_KEYS = tuple(field.name for field in fields(Column) if field.name not in ("name", "dtype"))


@dataclass(frozen=True)
class Schema:
    """An ordered, immutable set of columns, found by name or by role."""

    columns: tuple[Column, ...]

    def __iter__(self) -> Iterator[Column]:  # noqa: D105
        return iter(self.columns)

    def __len__(self) -> int:  # noqa: D105
        return len(self.columns)

    def __contains__(self, name: object) -> bool:  # noqa: D105
        return any(column.name == name for column in self.columns)

    def __getitem__(self, name: str) -> Column:
        """Return the column called ``name``, or raise `ColumnError` naming the nearest one."""
        for column in self.columns:
            if column.name == name:
                return column
        raise ColumnError(f"no column {name!r}; {nearest(name, self.names)}")

    @property
    def names(self) -> list[str]:
        """Column names in order."""
        return [column.name for column in self.columns]

    @property
    def row_bytes(self) -> float:
        """Decoded bytes of one row; a text or a list of any length counts as 64."""
        return sum(_cell_bytes(column.dtype) for column in self.columns)

    def by_role(self, role: str) -> list[Column]:
        """Return all columns that play ``role``, in order."""
        return [column for column in self.columns if column.role == role]

    def to_arrow(self) -> pa.Schema:
        """Return the Arrow schema with every column's meaning as field metadata."""
        return pa.schema([column.to_field() for column in self.columns])

    @classmethod
    def from_arrow(cls, schema: pa.Schema) -> Schema:
        """Read columns and meanings from an Arrow schema."""
        return cls(tuple(Column.from_field(field) for field in schema))


def _cell_bytes(dtype: pa.DataType) -> float:
    if pa.types.is_fixed_size_list(dtype):
        return dtype.list_size * _cell_bytes(dtype.value_type)
    return dtype.bit_width / 8 if pa.types.is_primitive(dtype) else 64


_KNOWN_UNITS = {"RADIANS": "rad", "DEGREES": "deg", "NUMBER": "", "PIXELS": "pix", "FLAG": "", "ADU": "adu"}


_STANDARDS = ("vounit", "fits", "cds")


_QUOTED = re.compile(r"'([A-Za-z]+)'")
"""How VOUnit spells a name that it does not know; astropy may know it, and reads the quotes only until it met the bare name."""


def is_local_spelling(text: str) -> bool:
    """Return whether ``text`` is a unit that we read although no standard spells it so."""
    # VOUnit lets any name stand in quotes.
    return not _QUOTED.search(text) and not _read(text.strip(), _STANDARDS) and parse_unit(text) is not None


def parse_unit(text: str) -> u.UnitBase | None:
    """Return the astropy unit that ``text`` means, or None if neither a standard nor astropy reads it."""
    spelled, formats = _KNOWN_UNITS.get(text.strip().upper(), text.strip()), (*_STANDARDS, None)
    return _read(_QUOTED.sub(r"\1", spelled), formats) or _read(spelled, formats)


@lru_cache(maxsize=4096)  # A text that no standard reads takes astropy milliseconds, and every file repeats it.
def _read(spelled: str, formats: tuple[str | None, ...]) -> u.UnitBase | None:
    with warnings.catch_warnings():
        # A deprecated spelling is still a unit.
        warnings.simplefilter("ignore", u.UnitsWarning)
        for unit_format in formats:
            try:
                return u.Unit(spelled, format=unit_format, parse_strict="raise")
            except (ValueError, TypeError):
                continue
    return None


@lru_cache(maxsize=4096)  # Every file repeats its units, and one that VOUnit has not takes astropy 20 ms to spell.
def standard_unit(text: str) -> str | None:
    """Return a unit of a header in VOUnit spelling, in astropy's own if VOUnit lacks it, or None if nobody can read it."""
    unit = parse_unit(text)
    if unit is None:
        return None
    with warnings.catch_warnings():
        # A deprecated spelling is still a unit.
        warnings.simplefilter("ignore", u.UnitsWarning)
        try:
            spelled = str(unit.to_string("vounit"))
        except ValueError:
            return str(unit)
    # astropy takes any name for a unit of VOUnit once it met it in a VOTable; what is stored may not depend on that.
    return str(unit) if _read(spelled, ("vounit",)) is None else spelled
