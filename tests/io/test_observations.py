"""The observation index: epochs, file names, and paths that stay below the root."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scalable.errors import ColumnError, InputError, MissingInputError, SurveyError
from scalable.io.observations import read_observations, sources
from scalable.survey.description import Survey

HEADER = "Id,FieldID,Filter,MJD,Seeing\n"
TEMPLATE = {"path": "F{FieldID}-{Filter}-E{epoch:03d}.fits"}


def survey(root: Path, *templates: dict[str, object], **index: object) -> Survey:
    keys = {"index": "obs.csv", "id": "Id", "field": "FieldID", "band": "Filter", "mjd": "MJD"}
    return Survey.model_validate(
        {
            "survey": "Demo",
            "root": str(root),
            "observations": keys | index,
            "files": {"templates": templates or (TEMPLATE,), "hdu": 2},
            "bands": ["J", "H", "Ks"],
            "columns": {name: {"role": role} for name, role in (("S", "object_id"), ("Ra", "ra"), ("Dec", "dec"))},
        }
    )


@pytest.fixture
def index(tmp_path: Path):
    """Write the rows of an index and read it under a survey."""

    def read(rows: str, *templates: dict[str, object], header: str = HEADER, **keys: str) -> pa.Table:
        (tmp_path / "obs.csv").write_text(header + rows)
        return read_observations(survey(tmp_path, *templates, **keys))

    return read


def test_observations_come_sorted_by_id_with_epoch_and_path(index) -> None:
    found = index("12,1,J,55002.5,0.8\n10,1,J,55001,0.9\n11,1,H,55000,1.0\n")
    assert found.to_pydict() == {
        "observation_id": [10, 11, 12],
        "field": [1, 1, 1],
        "band": ["J", "H", "J"],
        "mjd": [55001.0, 55000.0, 55002.5],
        "Seeing": [0.9, 1.0, 0.8],
        "epoch": [1, 1, 2],
        "path": ["F1-J-E001.fits", "F1-H-E001.fits", "F1-J-E002.fits"],
    }
    assert [found.schema.field(name).type for name in ("observation_id", "mjd", "band")] == [
        pa.int64(),
        pa.float64(),
        pa.string(),
    ]


def test_a_band_of_the_index_may_have_another_name_in_the_survey(tmp_path: Path) -> None:
    (tmp_path / "obs.csv").write_text(HEADER + "1,1,J_VIRCAM,55001,0.8\n2,1,H,55002,0.8\n")
    known = survey(tmp_path, bands_as={"J_VIRCAM": "J"})
    assert read_observations(known).select(["band", "path"]).to_pylist() == [
        {"band": "J", "path": "F1-J-E001.fits"},
        {"band": "H", "path": "F1-H-E001.fits"},
    ]


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 2), st.sampled_from("JH"), st.sampled_from([1.0, 2.0, 2.5])), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_epochs_rank_in_time_within_field_and_band_and_ties_go_to_the_smaller_id(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, str, float]], random: Random
) -> None:
    root = tmp_path_factory.mktemp("root")
    lines = [f"{i},{field},{band},{mjd},0\n" for i, (field, band, mjd) in enumerate(rows)]
    (root / "obs.csv").write_text(HEADER + "".join(random.sample(lines, len(lines))))
    expected = [
        1 + sum(1 for j, (f, b, t) in enumerate(rows) if (f, b) == (field, band) and (t, j) < (mjd, i))
        for i, (field, band, mjd) in enumerate(rows)
    ]
    assert read_observations(survey(root))["epoch"].to_pylist() == expected


def test_a_survey_without_fields_ranks_within_the_band(index) -> None:
    found = index("1,x,J,2,0\n2,y,J,1,0\n", {"path": "{Filter}-{epoch}.fits"}, field="")
    assert found["path"].to_pylist() == ["J-2.fits", "J-1.fits"]
    assert "field" not in found.column_names
    assert found["FieldID"].to_pylist() == ["x", "y"]


def test_the_first_template_that_names_the_band_is_taken_and_else_the_one_for_all(index) -> None:
    rows = "1,1,J,1,0\n2,1,H,1,0\n3,1,Ks,1,0\n"
    templates = ({"path": "all/{Id}"}, {"path": "near/{Id}", "bands": ["H", "Ks"]}, {"path": "late/{Id}", "bands": ["Ks"]})
    assert index(rows, *templates)["path"].to_pylist() == ["all/1", "near/2", "near/3"]


def test_a_template_may_use_every_column_of_the_index_and_the_names_that_are_stored(index) -> None:
    found = index("1,7,J,55000.5,0.8\n", {"path": "{Id}/{observation_id}/{band}/{Filter}/{mjd:.0f}/{Seeing}/{field:02d}"})
    assert found["path"].to_pylist() == ["1/1/J/J/55000/0.8/07"]


def test_a_band_without_a_template_and_a_template_without_a_column_are_said(index) -> None:
    with pytest.raises(SurveyError, match="files.templates: no template for band 'J'; add one with a path and without bands"):
        index("1,1,J,1,0\n", {"path": "x", "bands": ["H"]})
    with pytest.raises(SurveyError, match=r"'{FieldId}' uses 'FieldId'; did you mean 'FieldID'\? choices: Id, FieldID"):
        index("1,1,J,1,0\n", {"path": "{FieldId}"})


def test_sources_carry_what_the_index_says(index, tmp_path: Path) -> None:
    found = index("5,3,Ks,55000.5,0.8\n")
    (source,) = sources(survey(tmp_path), found)
    said = {"hdu": 2, "observation_id": 5, "field": "3", "band": "Ks", "mjd": 55000.5, "epoch": 1}
    assert asdict(source).items() >= (said | {"path": str(tmp_path / "F3-Ks-E001.fits"), "table": ""}).items()
    inside = survey(tmp_path).model_dump(by_alias=True) | {"files": {"format": "hdf5", "table": "/a/b", "templates": (TEMPLATE,)}}
    assert sources(Survey.model_validate(inside), found)[0].table == "/a/b"


def test_a_file_outside_the_root_is_never_a_source(index, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "J.fits").write_text("secret")
    os.symlink(tmp_path / "J.fits", tmp_path / "root" / "J.fits")
    found = index("1,1,J,1,0\n", {"path": "{Filter}.fits"})
    for path in ("../J.fits", str(tmp_path / "J.fits"), "J.fits", "a/../../J.fits"):
        outside = found.set_column(found.column_names.index("path"), "path", [[path]])
        with pytest.raises(InputError, match=f"'{path}' lies outside the survey's root"):
            sources(survey(tmp_path / "root"), outside)


def test_an_index_outside_the_root_is_not_read(index, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "obs.csv").write_text(HEADER + "1,1,J,1,0\n")
    for path in ("../obs.csv", str(tmp_path / "obs.csv")):
        with pytest.raises(InputError, match="lies outside the survey's root"):
            read_observations(survey(tmp_path / "root", index=path))


def test_an_index_that_is_not_there_is_missing_input(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="obs.csv: the observation index is not there; set observations.index or root"):
        read_observations(survey(tmp_path))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("1,1,J,1,0\n1,1,H,1,0\n", "obs.csv: observation id 1 is given more than once; ids must be unique"),
        ("1.5,1,J,1,0\n", "obs.csv: column 'Id' must hold integer ids, not double"),
        ("1,1,,1,0\n", "obs.csv: 1 rows have no band"),
        ("1,1,J,,0\n2,1,J,nan,0\n3,1,J,3,0\n", "obs.csv: 2 rows have no mjd; every observation needs one"),
        (",1,J,1,0\n2,1,J,1,0\n", "obs.csv: 1 rows have no observation_id"),
        ("1,1,Js,1,0\n", r"obs.csv: band 'Js' is not among the survey's bands; did you mean 'J'\? choices: J, H, Ks"),
        ("1,1,J\n", "obs.csv: not a readable CSV table: .*Expected 5 columns"),
    ],
)
def test_a_faulty_row_of_the_index_is_said(index, rows: str, message: str) -> None:
    with pytest.raises((InputError, SurveyError), match=message):
        index(rows)


@pytest.mark.parametrize(("key", "column"), [("id", "Ids"), ("band", "Filters"), ("mjd", "Mjds"), ("airmass", "Seeings")])
def test_a_column_that_the_index_lacks_is_named_with_the_nearest(index, key: str, column: str) -> None:
    with pytest.raises(ColumnError, match=rf"obs.csv: observations.{key} names the column '{column}'; did you mean '\w+'\?"):
        index("1,1,J,1,0\n", **{key: column})


@pytest.mark.parametrize("name", ["band", "mjd", "observation_id", "field", "epoch", "path"])
def test_a_column_of_the_index_never_takes_the_place_of_a_stored_one(index, name: str) -> None:
    with pytest.raises(InputError, match=f"column '{name}' has the name of one that is stored; rename it in the index"):
        index("1,1,J,1,2\n", header=f"Id,FieldID,Filter,MJD,{name}\n")


@pytest.mark.parametrize("mjd", ["abc", "2020-01-01"])
def test_a_date_that_is_no_mjd_is_said(index, mjd: str) -> None:
    with pytest.raises(InputError, match="column 'MJD' must hold modified Julian dates, not"):
        index(f"1,1,J,{mjd},0\n")


def test_an_index_without_rows_is_said_to_list_nothing(index) -> None:
    with pytest.raises(InputError, match="the index lists no observation"):
        index("")


def test_a_template_whose_format_does_not_fit_is_said(index) -> None:
    with pytest.raises(SurveyError, match="'{Filter:03d}' does not fit"):
        index("1,1,J,1,0\n", {"path": "{Filter:03d}"})


def test_a_column_that_is_there_twice_is_said(index) -> None:
    with pytest.raises(InputError, match="column 'MJD' is there more than once"):
        index("1,1,J,1,0\n", header="Id,FieldID,Filter,MJD,MJD\n")
