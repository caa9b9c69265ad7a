"""What every part of a survey description is made of: units, states, and where a value of an observation stands."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from scalable.errors import nearest
from scalable.schema import State, parse_unit


def _known_unit(text: str) -> str:
    if parse_unit(text) is None:
        raise ValueError(f"{text!r} is not a unit; use VOUnit spelling, for example deg, rad, mag, adu, Jy, ct.s**-1")
    return text


def _state_name(state: str) -> str:
    names = [member.name.lower() for member in State if member not in (State.MEASURED, State.IMPUTED)]
    if state not in names:
        raise ValueError(f"{state!r} is not a state; {nearest(state, names)}")
    return state


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


def groups_of(pattern: str, keys: Sequence[str]) -> Collection[str]:
    """Return the named groups of a regular expression, which must be keys."""
    try:
        groups = re.compile(pattern).groupindex
    except re.error as error:
        raise ValueError(f"pattern: {pattern!r} is no regular expression: {error}") from None
    for name in groups:
        if name not in keys:
            raise ValueError(f"pattern: a group is called {name!r}; {nearest(name, keys)}")
    return groups


Key = Annotated[ObservationKey | None, BeforeValidator(_bare_column)]
Format = Literal["fits", "csv", "text", "ecsv", "votable", "parquet", "hdf5"]
