"""Columns and their meaning: to Arrow and back, by name and by role."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields

import pyarrow as pa
import pytest
from astropy import units as u
from hypothesis import given
from hypothesis import strategies as st

from scalable.errors import ColumnError
from scalable.schema import ROLES, Column, Schema, State, _read, is_local_spelling, parse_unit, standard_unit

TYPES = [pa.int64(), pa.float32(), pa.string(), pa.bool_(), pa.list_(pa.float64()), pa.list_(pa.int16(), 3)]
texts = st.text(st.characters(codec="utf-8"), max_size=20)
columns = st.builds(
    Column,
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=8),
    st.sampled_from(TYPES),
    role=st.sampled_from(["", *ROLES]),
    unit=texts,
    source_unit=texts,
    ucd=texts,
    description=texts,
    error=texts,
    null_state=st.sampled_from(["", *(state.name.lower() for state in State)]),
    shape=texts,
)

MAIN = Schema(
    (
        Column("SourceID", pa.int64(), "object_id"),
        Column("Flux1", pa.float32(), "flux", unit="adu", error="Flux1Err"),
        Column("Flux2", pa.float32(), "flux", unit="adu"),
    )
)


@given(st.lists(columns, max_size=5, unique_by=lambda column: column.name).map(tuple))
def test_a_schema_comes_back_from_arrow_as_it_was(some: tuple[Column, ...]) -> None:
    schema = Schema(some)
    assert Schema.from_arrow(schema.to_arrow()) == schema
    # And from a file, where field metadata travel as bytes.
    assert Schema.from_arrow(pa.ipc.read_schema(schema.to_arrow().serialize())) == schema


def test_a_column_without_meaning_has_no_metadata() -> None:
    assert Column("x", pa.int8()).to_field().metadata is None


def test_metadata_of_others_do_not_disturb() -> None:
    field = pa.field("x", pa.int8(), metadata={"PARQUET:field_id": "3", "unit": "deg", "name": "y"})
    assert Column.from_field(field) == Column("x", pa.int8(), unit="deg")


def test_columns_are_found_by_name_and_by_role() -> None:
    assert MAIN["Flux1"].unit == "adu"
    assert MAIN.names == ["SourceID", "Flux1", "Flux2"]
    assert [column.name for column in MAIN.by_role("flux")] == ["Flux1", "Flux2"]
    assert MAIN.by_role("mag") == []
    assert "Flux1" in MAIN
    assert "flux1" not in MAIN
    assert len(MAIN) == len(list(MAIN)) == 3


def test_a_name_that_is_not_there_brings_the_nearest_one() -> None:
    with pytest.raises(ColumnError, match="no column 'Flux3'; did you mean 'Flux[12]'") as caught:
        MAIN["Flux3"]
    assert isinstance(caught.value, KeyError)


def test_columns_and_schemas_are_frozen() -> None:
    for thing in (MAIN, MAIN["Flux1"]):
        name = fields(thing)[0].name
        with pytest.raises(FrozenInstanceError):
            setattr(thing, name, None)


def test_codes_of_states_are_those_of_the_release_format() -> None:
    assert {state.name: int(state) for state in State} == {
        "MEASURED": 0,
        "NON_DETECTION": 1,
        "NOT_OBSERVED": 2,
        "SENTINEL": 3,
        "REJECTED": 4,
        "IMPUTED": 5,
    }


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("deg", u.deg),
        ("RADIANS", u.rad),
        ("ct.s**-1", u.ct / u.s),
        ("ADU", u.adu),
        ("", u.dimensionless_unscaled),
        (" mag ", u.mag),
    ],
)
def test_units_are_read_in_the_spellings_that_archives_use(text: str, unit: u.UnitBase) -> None:
    assert parse_unit(text) == unit


def test_standard_units_are_vounits_and_unknown_ones_none() -> None:
    assert standard_unit("RADIANS") == "rad"
    assert standard_unit("mJy/arcsec2") == "mJy.arcsec**-2"
    assert parse_unit("radianz") is standard_unit("radianz") is None


@pytest.mark.parametrize(
    ("text", "bare", "unit"), [("nanomaggy^-2", "nmgy", u.nmgy**-2), ("'electron'.s**-1", "electron", u.electron / u.s)]
)
def test_how_a_unit_is_read_does_not_depend_on_what_astropy_met_before(text: str, bare: str, unit: u.UnitBase) -> None:
    first = standard_unit(text)
    assert parse_unit(str(first)) == parse_unit(text) == unit
    # Such a text, in a VOTable, makes a custom unit known for the rest of the process.
    u.Unit(bare, format="vounit", parse_strict="silent")
    standard_unit.cache_clear()
    _read.cache_clear()
    assert standard_unit(text) == first
    assert parse_unit(str(first)) == parse_unit(text) == unit


def test_a_quoted_name_that_astropy_does_not_know_is_a_unit_of_its_own() -> None:
    assert standard_unit("'brightness'.s**-1") == "'brightness'.s**-1"


def test_a_row_is_as_large_as_its_cells() -> None:
    cells = {
        pa.int64(): 1,
        pa.list_(pa.float32(), 25): [0.5] * 25,
        pa.list_(pa.list_(pa.float64(), 2), 3): [[1.0, 2.0]] * 3,
    }
    table = pa.table({str(dtype): pa.array([cell] * 1000, dtype) for dtype, cell in cells.items()})
    assert Schema.from_arrow(table.schema).row_bytes == table.nbytes / 1000
    assert Schema((Column("a", pa.string()), Column("b", pa.list_(pa.int8())))).row_bytes == 2 * 64


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("RADIANS", True),
        ("ADU", True),
        ("Number", True),
        ("nanomaggy", True),
        ("adu", False),
        ("mas yr-1", False),
        ("e-/s", False),
    ],
)
def test_a_spelling_that_no_standard_knows_is_told_from_one_that_is_read_by_all(text: str, local: bool) -> None:
    assert is_local_spelling(text) is local
