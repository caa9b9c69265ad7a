"""A first survey description as text: what it says reads back, whatever the columns are called, and guesses are marked."""

from __future__ import annotations

import csv

import pyarrow as pa
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from scalable.catalog.draft_guess import Guess, Observed, band_of, guess_columns, guess_unit, observe, order_bands
from scalable.catalog.draft_text import FILL, comment, draft_index, draft_yaml, scalar, unfilled
from scalable.schema import Column, Schema
from scalable.survey.description import Survey

KEYS = (Column("id", pa.int64()), Column("RA", pa.float64(), unit="deg"), Column("DEC", pa.float64(), unit="deg"))
SEEN = (Observed("a b-J.fits", "J", 57000.5), Observed("ü.fits", "Ks", 57001.25))


def columns(*names: str, dtype: pa.DataType | None = None) -> Schema:
    return Schema(tuple(Column(name, dtype or pa.float32()) for name in names))


def text_of(schema: Schema, observed: tuple[Observed, ...] = SEEN, **extra: object) -> str:
    values = {"name": "s", "root": ".", "index": "observations.csv", "format": "fits", "hdu": 1, "observed": observed} | extra
    return draft_yaml(schema=schema, guesses=guess_columns(schema), **values)  # type: ignore[arg-type]


def roles(schema: Schema) -> dict[str, str]:
    return {name: guess.role for name, guess in guess_columns(schema).items() if guess.role}


ODD = [
    "with space", "a: b", "# no comment", 'quo"te', "it's", "ünïcödé", "yes", "null", "1e3", "<<", "- x", "{a}", "[b", "&c", "*d",
    "!e", "%f", "@g", "`h", "a\tb", "a\nb", "x" * 200, "\x85", "\ud800", "", " ", "~", "=", "?", "2001-01-01", "\u2028",
]  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_odd_column_names_read_back_as_they_are(name: str) -> None:
    schema = Schema((*KEYS, Column(name, pa.float32(), unit="mag", description=f"about {name}")))
    found = yaml.safe_load(text_of(schema))["columns"]
    assert list(found) == [*(column.name for column in KEYS), name]
    assert found[name]["description"] == f"about {name}"


@given(st.text(st.characters()), st.text(st.characters()))
def test_any_text_is_a_key_and_a_value_on_one_line_and_any_comment_is_none(text: str, remark: str) -> None:
    line = f"{scalar(text)}: {scalar(text)}  # {comment(remark)}"
    assert len(line.splitlines()) == 1
    assert yaml.safe_load(line) == {text: text}


def test_a_draft_with_everything_guessed_is_a_survey() -> None:
    text = text_of(Schema((*KEYS, *columns("Mag1", "dMag1"))))
    survey = Survey.model_validate(yaml.safe_load(text))
    assert (survey.column_of("object_id"), survey.column_of("ra"), survey.column_of("dec")) == ("id", "RA", "DEC")
    assert survey.columns["Mag1"].error == "dMag1"
    assert survey.bands == ("J", "Ks")
    assert (survey.store.margin_arcsec, survey.quality, survey.motivation, survey.license) == (5.0, {}, None, "")
    assert FILL not in text
    assert unfilled(text, SEEN, path="s", index="i") == []
    for name in ("id", "RA", "DEC", "Mag1", "dMag1"):
        [line] = [line for line in text.splitlines() if line.startswith(f"  {name}: {{")]
        assert "is a guess" in line


def test_what_cannot_be_guessed_is_listed_with_its_line() -> None:
    seen = (Observed("a.fits", "", None), Observed("b.fits", "", 57000.0))
    text = text_of(columns("Alpha", "Beta"), seen)
    found = unfilled(text, seen, path="survey.yaml", index="observations.csv")
    lines = text.splitlines()
    for entry in found[:-2]:
        _, number, what = entry.split(":", 2)
        assert lines[int(number) - 1].endswith(what)
    assert [what.split(" ", 1)[1] for what in found if "role" in what] == [
        f"give one of these columns role: {role}; none looks like one" for role in ("object_id", "ra", "dec")
    ]
    assert found[-2:] == ["observations.csv:2: band and mjd of a.fits", "observations.csv:3: band of b.fits"]
    assert any("every band of the survey" in entry for entry in found)


def test_columns_that_differ_by_case_alone_are_not_both_declared() -> None:
    found = yaml.safe_load(text_of(Schema((*KEYS, *columns("Flux", "flux")))))["columns"]
    assert [name for name in found if name.lower() == "flux"] == ["Flux"]


def test_the_index_has_a_row_per_file_and_empty_cells_where_nothing_is_known() -> None:
    rows = list(
        csv.DictReader(draft_index((Observed("a, b.fits", "J", 57000.123456789), Observed("c.fits", "", None))).splitlines())
    )
    assert rows[0] == {"id": "1", "file": "a, b.fits", "band": "J", "mjd": "57000.123456789"}
    assert rows[1] == {"id": "2", "file": "c.fits", "band": "", "mjd": ""}


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("Flux1", "dFlux1", "Mag", "dMag"), {"Flux1": "flux", "dFlux1": "flux_err", "Mag": "mag", "dMag": "mag_err"}),
        (("FLUX_AUTO", "FLUXERR_AUTO"), {"FLUX_AUTO": "flux", "FLUXERR_AUTO": "flux_err"}),
        (("MAG_AUTO", "MAGERR_AUTO", "X_IMAGE"), {"MAG_AUTO": "mag", "MAGERR_AUTO": "mag_err"}),
        (("Jmag", "e_Jmag"), {"Jmag": "mag", "e_Jmag": "mag_err"}),
        (("psfFlux", "psfFluxErr"), {"psfFlux": "flux", "psfFluxErr": "flux_err"}),
        (("mag_g", "mag_err_g", "mag_r", "mag_err_r"),
         {"mag_g": "mag", "mag_err_g": "mag_err", "mag_r": "mag", "mag_err_r": "mag_err"}),
        (("phot_g_mean_flux", "phot_g_mean_flux_error"), {"phot_g_mean_flux": "flux", "phot_g_mean_flux_error": "flux_err"}),
        (("flux_radius", "FLAGS", "dust", "decay", "raw", "image"), {"FLAGS": "quality"}),
        (("ra", "RAJ2000", "decl", "DEJ2000"), {"ra": "ra", "DEJ2000": "dec"}),
    ],
)  # fmt: skip
def test_roles_are_guessed_from_names_as_surveys_give_them(names: tuple[str, ...], expected: dict[str, str]) -> None:
    assert roles(columns(*names)) == expected


def test_a_ucd_speaks_louder_than_a_name() -> None:
    schema = Schema(
        (
            Column("ra", pa.float64(), ucd="stat.mean"),
            Column("alpha", pa.float64(), ucd="pos.eq.ra;meta.main"),
            Column("delta", pa.float64(), ucd="pos.eq.dec;meta.main"),
            Column("name", pa.int64(), ucd="meta.id;meta.main"),
            Column("m", pa.float32(), ucd="phot.mag;em.IR.J"),
            Column("s", pa.float32(), unit="mag"),
            Column("flux", pa.string()),
        )
    )
    assert roles(schema) == {"alpha": "ra", "delta": "dec", "name": "object_id", "m": "mag", "s": "mag"}


def test_an_error_of_what_is_no_flux_keeps_its_column_and_no_role() -> None:
    found = guess_columns(columns("parallax", "parallax_error"))
    assert found["parallax"] == Guess("", "parallax_error", "name")
    assert found["parallax_error"].role == ""


@pytest.mark.parametrize(
    ("unit", "role", "written", "remark"),
    [
        ("RADIANS", "ra", "rad", "the standard writes rad"),
        ("deg", "ra", "deg", ""),
        ("", "ra", "deg", "deg is a guess"),
        ("blorps", "", "", "'blorps', which no standard knows"),
        ("ADU", "mag", "adu", "if these are magnitudes, unit: mag"),
        ("", "flux", "", "no unit in the header"),
    ],
)
def test_units_are_written_in_the_standard_s_spelling_and_doubts_are_said(
    unit: str, role: str, written: str, remark: str
) -> None:
    found, said = guess_unit(Column("c", pa.float32(), unit=unit), role)
    assert found == written
    assert remark in said
    assert bool(said) == bool(remark)


@pytest.mark.parametrize(
    ("keywords", "name", "expected"),
    [
        ({"FILTER": "g DECam SDSS c0001", "MJD-OBS": 57000}, "x.fits", ("g", 57000.0)),
        ({"DATE-OBS": "2000-01-01T12:00:00"}, "Field-1-Ks-E001.fits", ("Ks", 51544.5)),
        ({"DATE-OBS": "yesterday", "FILTER": ""}, "ngc-J-H.fits", ("", None)),
        ({"MJD-OBS": "nan"}, "hst_F606W.fits.gz", ("F606W", None)),
    ],
)
def test_band_and_time_come_from_keywords_then_from_the_name(
    keywords: dict[str, object], name: str, expected: tuple[str, float | None]
) -> None:
    found = observe(name, keywords)
    assert (found.band, found.mjd) == expected


def test_bands_stand_in_order_of_wavelength_unknown_ones_last() -> None:
    assert order_bands(["Ks", "odd", "J", "Z", "J", ""]) == ["Z", "J", "Ks", "odd"]
    assert order_bands(["F160W", "F606W", "F814W"]) == ["F606W", "F814W", "F160W"]
    assert band_of("J") == "J"
