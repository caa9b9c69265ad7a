"""The survey description: what is read, and what every mistake is answered with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from scalable.errors import ColumnError, InputError, SurveyError
from scalable.survey.description import Survey
from scalable.survey.part import ObservationKey, Part
from scalable.survey.read import field_names, model_at, open_survey
from scalable.survey.tables import KEYS, ColumnRule

GOOD = """\
survey: Demo
root: ${DEMO_ROOT:-data}
observations: {index: obs.csv, id: Id, field: FieldID, band: Filter, mjd: MJD}
files:
  templates:
    - path: F{FieldID}-{Filter}-E{epoch:03d}.fits
bands: [J, H]
columns:
  SourceID: {role: object_id}
  Ra: {role: ra, unit: RADIANS}
  Dec: {role: dec, unit: RADIANS}
  Flux: {role: flux, error: FluxErr, nulls: [-9.999, {value: -1, state: non_detection}]}
  FluxErr: {role: flux_err}
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Write a description that differs from the good one by replacements, or by text at its end."""
    monkeypatch.delenv("DEMO_ROOT", raising=False)

    def write(*changes: tuple[str, str], more: str = "") -> Path:
        text = GOOD + more
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new)
        path = tmp_path / "survey.yaml"
        path.write_text(text)
        return path

    return write


def test_a_good_description_says_what_it_said(write) -> None:
    survey = open_survey(write())
    assert survey.name == "Demo"
    assert survey.bands == ("J", "H")
    assert survey.column_of("flux") == "Flux"
    assert [(null.value, null.state) for null in survey.columns["Flux"].nulls] == [(-9.999, "sentinel"), (-1.0, "non_detection")]
    assert survey.store.margin_arcsec == 5.0


INDEX = "{index: obs.csv, id: Id, field: FieldID, band: Filter, mjd: MJD}"
TEMPLATES = "  templates:\n    - path: F{FieldID}-{Filter}-E{epoch:03d}.fits\n"


@pytest.fixture
def write_glob(write):
    """Write a description whose files a glob finds."""

    def write_glob(observations: str, glob: str = "*.fits") -> Path:
        return write((INDEX, observations), (TEMPLATES, f"  glob: '{glob}'\n"))

    return write_glob


def test_keys_of_files_that_a_glob_finds_stand_in_headers_names_or_the_description(write_glob) -> None:
    text = "{band: {keyword: FILTER}, field: {value: 3}, pattern: '(?P<id>[0-9]+)-(?P<mjd>[0-9.]+)', bands_as: {Ks: J}}"
    known = open_survey(write_glob(text)).observations
    assert known.given() == {"field": ObservationKey(value=3), "band": ObservationKey(keyword="FILTER")}
    assert [name for name in KEYS if known.knows(name)] == ["id", "field", "band", "mjd"]


def test_a_bare_name_of_a_column_and_a_column_key_are_one_rule(write) -> None:
    assert open_survey(write(("band: Filter", "band: {column: Filter}"))).digest == open_survey(write()).digest


GLOB_MISTAKES = {
    "neither band nor mjd": ("{}", "observations.band: this field is required and missing: a keyword of the header, a value"),
    "no mjd": ("{band: {value: J}}", "observations.mjd: this field is required and missing"),
    "a bare name": ("{band: FILTER, mjd: {value: 1}}", r"band: 'FILTER' names a column, .*write {keyword: FILTER}"),
    "an id in the header": ("{id: {keyword: EXPNUM}}", r"id: without an index, a group \(\?P<id>"),
    "two places": ("{band: {keyword: A, value: J}}", r"observations\.band: give exactly one of column .*, keyword .* and value"),
    "no place": ("{band: {}}", r"observations\.band: give exactly one of"),
    "an unknown place": ("{band: {keywrd: A}}", r"observations\.band\.keywrd: no such field; did you mean 'keyword'\?"),
    "no expression": ("{pattern: '(?P<band>'}", r"pattern: '\(\?P<band>' is no regular expression: missing \)"),
    "an unknown group": ("{pattern: '(?P<bands>x)'}", r"pattern: a group is called 'bands'; did you mean 'band'\?"),
    "no group": ("{pattern: x}", "pattern: 'x' has no named group such as"),
    "given twice": ("{pattern: '(?P<band>x)', band: {value: J}}", "band: is given here and by a group of pattern; keep one"),
    "an unknown band": (
        "{band: {value: J}, mjd: {value: 1}, bands_as: {x: K}}",
        r"observations\.bands_as: no band 'K'; choices: J, H",
    ),
    "an index too": (INDEX, "files.glob lists the files, but both are given"),
}


@pytest.mark.parametrize("case", GLOB_MISTAKES)
def test_a_mistake_in_the_keys_of_found_files_is_answered_with_line_field_and_choices(write_glob, case: str) -> None:
    text, message = GLOB_MISTAKES[case]
    path = write_glob(text)
    with pytest.raises(SurveyError, match=message) as caught:
        open_survey(path)
    assert str(caught.value).startswith(f"{path}:3: ")


@pytest.mark.parametrize(
    ("glob", "line", "message"),
    [
        ("/data/*.fits", 5, "glob: '/data/\\*.fits' must stay below root"),
        ("../*.fits", 5, "must stay below root: no leading / and no .."),
        ("a/../../*.fits", 5, "must stay below root"),
        ("a**/*.fits", 5, r"\*\* must stand between slashes"),
        ("", 4, "give either templates .with observations.index. or glob"),
    ],
)
def test_a_glob_that_leaves_the_root_or_means_nothing_is_refused(write_glob, glob: str, line: int, message: str) -> None:
    with pytest.raises(SurveyError, match=rf"survey.yaml:{line}: files: .*{message}"):
        open_survey(write_glob("{band: {value: J}, mjd: {value: 1}}", glob))


def test_templates_without_an_index_are_refused(write) -> None:
    with pytest.raises(SurveyError, match="files.glob lists the files, but neither is given"):
        open_survey(write((INDEX, "{band: {value: J}, mjd: {value: 1}}")))
    with pytest.raises(SurveyError, match=r"yaml:3: observations: band: with an index, name its column"):
        open_survey(write(("band: Filter", "band: {keyword: FILTER}")))
    with pytest.raises(SurveyError, match=r"yaml:3: observations: pattern: with an index, name its columns"):
        open_survey(write(("band: Filter", "band: Filter, pattern: '(?P<field>a)'")))


MISTAKES = {
    "unknown field": (
        ("bands:", "licence: CC0\nbands:"),
        7,
        r"licence: no such field; did you mean 'license'\? choices: accept, bands",
    ),
    "unknown field of a column": (("{role: ra,", "{roel: ra,"), 10, r"columns\.Ra\.roel: no such field; did you mean 'role'\?"),
    "unknown role": (
        ("{role: ra,", "{role: raa,"),
        10,
        r"columns\.Ra\.role: 'raa' is not a role; did you mean 'ra'\? choices: obj",
    ),
    "unknown unit": (("ra, unit: RADIANS", "ra, unit: radianz"), 10, r"columns\.Ra\.unit: 'radianz' is not a unit; use VOUnit"),
    "unknown state": (
        ("non_detection", "non_detectoin"),
        12,
        r"columns\.Flux\.nulls\.1\.state: .* did you mean 'non_detection'\?",
    ),
    "a state of no null": (("non_detection", "measured"), 12, r"columns\.Flux\.nulls\.1\.state: 'measured' is not a state"),
    "a rule without a bound": (
        ("{value: -1, ", "{"),
        12,
        r"columns\.Flux\.nulls\.1: give exactly one of value, at_most, below, at_least, above, not none",
    ),
    "a rule with two bounds": (("{value: -1, ", "{at_most: 0, above: 90, "), 12, r"nulls\.1: .* not at_most and above"),
    "a bound that is no number": (("{value: -1, ", "{above: .inf, "), 12, r"nulls\.1\.above: Input should be a finite number"),
    "missing field": (("id: Id, ", ""), 3, r"observations\.id: this field is required and missing"),
    "key twice": (("  FluxErr: {", "  Ra: {"), 13, r"'Ra' is given twice, first in line 10"),
    "key twice in a flow": (("{role: ra, ", "{role: ra, role: dec, "), 10, r"'role' is given twice, first in line 10"),
    "role twice": (("{role: flux_err}", "{role: ra}"), 8, r"exactly one column must have role ra, not \['Ra', 'FluxErr'\]"),
    "role missing": (("{role: dec, ", "{role: value, "), 8, r"exactly one column must have role dec, not none"),
    "unknown error column": (("error: FluxErr", "error: FlxErr"), 12, r"columns\.Flux\.error: no column 'FlxErr'; did you mean"),
    "attribute in a name": (("{FieldID}", "{FieldID.__class__}"), 6, r"only plain column names .* not 'FieldID.__class__'"),
    "item in a name": (("{FieldID}", "{FieldID[0]}"), 6, r"only plain column names .* not 'FieldID\[0\]'"),
    "conversion in a name": (("{FieldID}", "{FieldID!r}"), 6, r"only plain column names and epoch may stand in braces"),
    "number as a name": (("{FieldID}", "{0}"), 6, r"only plain column names .* not '0'"),
    "open brace": (("{FieldID}", "{{FieldID}"), 6, r"files\.templates\.0: Single '}' encountered in format string"),
    "case clash": (("  FluxErr: {", "  FLUX: {}\n  FluxErr: {"), 8, r"'FLUX' clashes with 'Flux' \(SQL ignores case\)"),
    "clash with what is stored": (
        ("  FluxErr: {", "  MJD: {}\n  FluxErr: {"),
        8,
        r"'MJD' clashes with 'mjd' \(SQL ignores case\)",
    ),
    "clash with a conversion": (
        ("RADIANS}\n  Dec", "rad, convert: {name: dec, unit: deg}}\n  Dec"),
        8,
        r"'dec' clashes with 'Dec'",
    ),
    "unset variable": (
        ("${DEMO_ROOT:-data}", "${DEMO_ROOT}/x"),
        2,
        r"root: the variable DEMO_ROOT is not set; run: export DEMO_ROOT=",
    ),
    "no bands": (("[J, H]", "[]"), 7, r"bands: a survey with positions needs at least one"),
    "table by path where there are none": (
        ("files:\n", "files:\n  table: /stars\n"),
        5,
        r"files: table: only HDF5 files hold tables by path, files\.format is 'fits'; use hdu",
    ),
    "format nobody reads": (("files:\n", "files:\n  format: fit\n"), 5, r"files\.format: Input should be 'fits'"),
    "a margin of nothing": (
        ("bands:", "store: {margin_arcsec: 0}\nbands:"),
        7,
        r"store\.margin_arcsec: Input should be greater than 0",
    ),
}


BY_REFERENCE = "by: reference, radius_arcsec: 1, reference: ref.csv, id: n, ra: ra, dec: dec"
GROUPINGS = {
    "nobody's grouping": ("by: name", r"grouping\.by: Input should be 'id', 'position' or 'reference'"),
    "no radius": ("by: position", r"grouping: grouping by position needs radius_arcsec too"),
    "no reference": ("by: reference, radius_arcsec: 1", r"grouping by reference needs reference, id, ra, dec too"),
    "a radius for ids": ("radius_arcsec: 1", r"grouping by id does not read radius_arcsec; remove it, or set grouping\.by"),
    "a reference for positions": (
        f"{BY_REFERENCE}, by: position".replace("by: reference, ", ""),
        r"does not read dec, id, ra, ref",
    ),
    "a radius beyond the margin": ("by: position, radius_arcsec: 5.1", r"radius_arcsec must not exceed store\.margin_arcsec"),
    "a radius of next to nothing": ("by: position, radius_arcsec: 0.0001", r"grouping\.radius_arcsec must be at least 0\.001"),
    "a unit of nothing": (f"{BY_REFERENCE}, unit: radianz", r"grouping\.unit: 'radianz' is not a unit"),
}


@pytest.mark.parametrize("case", GROUPINGS)
def test_a_grouping_that_cannot_be_is_refused(write, case: str) -> None:
    fields, message = GROUPINGS[case]
    with pytest.raises(SurveyError, match=message):
        open_survey(write(("{role: object_id}", "{}"), more=f"grouping: {{{fields}}}\n"))


@pytest.mark.parametrize("fields", ["by: position, radius_arcsec: 0.5", BY_REFERENCE, f"{BY_REFERENCE}, format: csv, unit: deg"])
def test_without_ids_objects_are_grouped_by_position_or_reference_and_an_id_is_a_plain_value(write, fields: str) -> None:
    more = f"grouping: {{{fields}}}\n"
    survey = open_survey(write(("{role: object_id}", "{}"), more=more))
    assert survey.columns["SourceID"].role == "value"
    with pytest.raises(SurveyError, match=r"columns\.SourceID: objects are grouped by .*; give it the role value"):
        open_survey(write(more=more))


def test_the_digest_changes_with_how_objects_are_grouped(write) -> None:
    fields = ["by: position, radius_arcsec: 0.5", "by: position, radius_arcsec: 0.6", BY_REFERENCE, f"{BY_REFERENCE}, hdu: 2"]
    ids = ("{role: object_id}", "{}")
    assert len({open_survey(write(ids, more=f"grouping: {{{text}}}\n")).digest for text in fields}) == 4
    assert open_survey(write(more="grouping: {by: id}\n")).digest == open_survey(write()).digest


@pytest.mark.parametrize("case", MISTAKES)
def test_a_mistake_is_answered_with_file_line_field_and_choices(write, case: str) -> None:
    change, line, message = MISTAKES[case]
    path = write(change)
    with pytest.raises(SurveyError, match=message) as caught:
        open_survey(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            "accept: [no-unitt]\n",
            r":14: accept\.0: 'no-unitt' is no contradiction; did you mean 'no-unit'\? choices: angle-range",
        ),
        ("products: {colours: [[J, Hs]]}\n", r"no band 'Hs'; did you mean 'H'\? choices: J, H"),
        ("products: {variability: {band: K}}\n", "no band 'K'; choices: J, H"),
        ("products: {bright: {bands: [K]}}\n", "no band 'K'; choices: J, H"),
        ("products: {flux: Flx}\n", r"products: no column 'Flx'; did you mean 'Flux'\?"),
        ("store: {leaf_mb: -1}\nstores: {}\n", r"(?s):14: store\.leaf_mb: .*:15: stores: no such field; did you mean 'store'\?"),
    ],
)
def test_a_mistake_in_an_optional_part_is_found_too(write, more: str, message: str) -> None:
    with pytest.raises(SurveyError, match=message):
        open_survey(write(more=more))


def test_a_band_of_a_template_must_be_one_of_the_survey(write) -> None:
    path = write(("E{epoch:03d}.fits", "E{epoch:03d}.fits\n      bands: [Ks]"))
    with pytest.raises(SurveyError, match="no band 'Ks'; choices: J, H"):
        open_survey(path)


@pytest.mark.parametrize("text", ["a: [1, 2", "a:\n\tb: 1", "a: b: c", "%x", "a: 1\n---\nb: 2\n"])
def test_what_is_not_yaml_is_said_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SurveyError, match="s.yaml: not valid YAML"):
        open_survey(tmp_path / "s.yaml")


@pytest.mark.parametrize("text", ["", "- a\n- b\n", "just words"])
def test_yaml_that_is_no_mapping_is_no_survey(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(SurveyError, match="a survey description is a YAML mapping that begins with `survey: NAME`"):
        open_survey(tmp_path / "s.yaml")


def test_a_description_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SurveyError, match="nowhere.yaml: cannot be read .*No such file"):
        open_survey(tmp_path / "nowhere.yaml")
    with pytest.raises(SurveyError, match="cannot be read .*directory"):
        open_survey(tmp_path)


def test_a_tag_that_would_run_code_runs_nothing_and_is_refused(write, tmp_path: Path) -> None:
    path = write(more=f"license: !!python/object/apply:os.mkdir ['{tmp_path}/owned']\n")
    with pytest.raises((SurveyError, yaml.YAMLError), match="python/object/apply"):
        open_survey(path)
    assert not (tmp_path / "owned").exists()


def test_the_root_is_relative_to_the_description_and_takes_its_default(write, tmp_path: Path) -> None:
    assert open_survey(write()).input_root == tmp_path.resolve() / "data"
    assert open_survey(write(("${DEMO_ROOT:-data}", "${DEMO_ROOT:-}"))).input_root == tmp_path.resolve()


def test_a_set_variable_goes_before_the_default(write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEMO_ROOT", "/survey")
    assert open_survey(write()).root == "/survey"
    assert open_survey(write(("${DEMO_ROOT:-data}", "${DEMO_ROOT}/a/${DEMO_ROOT}"))).root == "/survey/a/survey"


def test_only_what_lies_below_the_root_is_read(write, tmp_path: Path) -> None:
    survey = open_survey(write())
    root = tmp_path / "data"
    (root / "sub").mkdir(parents=True)
    (tmp_path / "secret").write_text("x")
    (root / "inside").write_text("x")
    os.symlink(tmp_path / "secret", root / "out")
    os.symlink(tmp_path, root / "folder")
    os.symlink(root / "inside", root / "sub" / "alias")
    for relative in ("inside", "sub/../inside", "sub/alias", "not-there-yet"):
        assert survey.confined(relative) == str(root.resolve() / relative)
    # A folder whose name merely begins like the root is outside too.
    for relative in ("../secret", "sub/../../secret", str(tmp_path / "secret"), "out", "folder/secret", "../data2/x", ".."):
        with pytest.raises(InputError, match="lies outside the survey's root .*; only files below root are read"):
            survey.confined(relative)


@pytest.mark.parametrize(
    "change",
    [
        ("role: flux,", "role: mag,"),
        ("-9.999", "-9.99"),
        ("ra, unit: RADIANS", "ra, unit: deg"),
        ("[J, H]", "[H, J]"),
        ("E{epoch:03d}", "E{epoch:02d}"),
        ("mjd: MJD", "mjd: MjdObs"),
        ("survey: Demo", "survey: Demo2"),
        ("bands:", "store: {margin_arcsec: 4}\nbands:"),
    ],
)
def test_the_digest_changes_with_what_decides_the_store(write, change: tuple[str, str]) -> None:
    before = open_survey(write()).digest
    assert len(before) == 64
    assert open_survey(write(change)).digest != before


@pytest.mark.parametrize(
    "more",
    [
        "questions: [{id: Q1, title: How many, sql: SELECT count(*) FROM objects}]\n",
        "products: {flux: Flux, colours: [[J, H]]}\n",
        "quality: {good: Flux > 0}\n",
        "accept: [no-unit]\n",
        "description: a text\nlicense: CC0\n",
        "motivation: {text: because}\n",
        "# a comment\n",
    ],
)
def test_the_digest_does_not_change_with_plots_questions_or_texts(write, more: str) -> None:
    before = open_survey(write()).digest
    assert open_survey(write(more=more)).digest == before


def test_the_digest_does_not_change_with_where_the_data_are(write) -> None:
    before = open_survey(write()).digest
    assert open_survey(write(("${DEMO_ROOT:-data}", "/elsewhere"))).digest == before


def test_a_role_nobody_plays_is_named(write) -> None:
    with pytest.raises(ColumnError, match="no column of survey 'Demo' has role 'fluxx'; did you mean 'flux'"):
        open_survey(write()).column_of("fluxx")


def parts_of(part: type[Part], location: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], type[Part]]:
    """Walk the models by their annotations and return each part by a location of it."""
    found = {location: part}
    for name, info in part.model_fields.items():
        for inner, steps in _inner(info.annotation):
            found |= parts_of(inner, (*location, info.alias or name, *steps))
    return found


def _inner(annotation: object) -> list[tuple[type[Part], tuple[str | int, ...]]]:
    if isinstance(annotation, type) and issubclass(annotation, Part):
        return [(annotation, ())]
    origin, arguments = getattr(annotation, "__origin__", None), getattr(annotation, "__args__", ())
    step: tuple[str | int, ...] = {dict: ("any",), tuple: (0,)}.get(origin, ())  # type: ignore[call-overload]
    return [(part, (*step, *steps)) for argument in arguments for part, steps in _inner(argument)]


def test_every_part_of_the_description_is_found_at_its_location() -> None:
    parts = parts_of(Survey)
    assert len(parts) == 32
    for location, part in parts.items():
        assert model_at(location) is part, location
        assert field_names(location) == sorted(info.alias or name for name, info in part.model_fields.items())


def test_no_part_stands_where_there_is_only_a_value() -> None:
    assert model_at(("bands", 0)) is None
    assert model_at(("columns",)) is None
    assert field_names(("quality", "good")) == []


def test_help_names_fields_as_they_are_written() -> None:
    assert "survey" in field_names(())
    assert "name" not in field_names(())
    assert field_names(("columns", "Ra")) == sorted(ColumnRule.model_fields)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ("license: !!python/object/apply:os.system ['true']\n", "could not determine a constructor"),
        ("license: !secret x\n", "could not determine a constructor"),
        ("license: 2024-13-45\n", "month must be in"),
        ("? [a, b]\n: c\n", "unhashable key"),
        ("questions: &q [*q]\n", "nested too deeply, or an alias of itself"),
    ],
)
def test_what_yaml_cannot_turn_into_values_is_a_survey_error(write, more: str, message: str) -> None:
    with pytest.raises(SurveyError, match=message):
        open_survey(write(more=more))


def test_a_root_in_double_braces_is_a_survey_error(write) -> None:
    with pytest.raises(SurveyError, match="unhashable key"):
        open_survey(write(("${DEMO_ROOT:-data}", "{{ data }}")))


def test_a_file_that_is_no_text_is_a_survey_error(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_bytes(b"survey: \xff\n")
    with pytest.raises(SurveyError, match="s.yaml: not valid YAML"):
        open_survey(tmp_path / "s.yaml")


@pytest.mark.parametrize("name", ["{epoch:{Filter.__class__}}", "{epoch:{0}}", "{epoch:>{FieldID}}"])
def test_a_format_within_a_format_is_refused(write, name: str) -> None:
    with pytest.raises(SurveyError, match="only plain column names and epoch may stand in braces"):
        open_survey(write(("F{FieldID}-{Filter}-E{epoch:03d}.fits", f"'{name}'")))


def test_two_conversions_to_one_name_clash_even_through_an_alias(write) -> None:
    path = write(
        ("Ra: {role: ra, unit: RADIANS}", "Ra: {role: ra, unit: rad, convert: &c {name: y, unit: deg}}"),
        ("Dec: {role: dec, unit: RADIANS}", "Dec: {role: dec, unit: rad, convert: *c}"),
    )
    with pytest.raises(SurveyError, match=r"'y' clashes with 'y' \(SQL ignores case\)"):
        open_survey(path)
