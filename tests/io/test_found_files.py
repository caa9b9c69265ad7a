"""Observations without an index: which files are found, what their headers and names say, and ids that stay."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scalable.errors import InputError, MissingInputError, SurveyError
from scalable.io import found_files
from scalable.io.observations import read_observations, sources
from scalable.survey.description import Survey
from scalable.synthetic.tables import write_fits

TABLE = pa.table({"S": pa.array([1]), "Ra": [10.0], "Dec": [1.0]})
KEYWORDS = {"band": {"keyword": "FILTER"}, "mjd": {"keyword": "MJD-OBS"}}
NAMES = {"pattern": r"(?P<id>\d+)_(?P<band>[A-Za-z]+)_(?P<mjd>[0-9.]+)\.fits$"}


def survey(root: Path, observations: dict[str, Any], glob: str = "**/*.fits", **files: Any) -> Survey:
    return Survey.model_validate(
        {
            "survey": "Demo",
            "root": str(root),
            "observations": observations,
            "files": {"glob": glob, **files},
            "bands": ["J", "H", "Ks"],
            "columns": {name: {"role": role} for name, role in (("S", "object_id"), ("Ra", "ra"), ("Dec", "dec"))},
        }
    )


def place(root: Path, *names: str, **header: Any) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_fits(TABLE, root / name, {key.replace("_", "-"): value for key, value in header.items()})


def test_keys_come_from_the_primary_header_as_most_archives_write_it(tmp_path: Path) -> None:
    place(tmp_path, "n1/a.fits", FILTER="J", MJD_OBS=55001.5, AIRMASS=1.2)
    place(tmp_path, "n2/deep/a.fits", FILTER="H", MJD_OBS=55000)
    known = KEYWORDS | {"airmass": {"keyword": "AIRMASS"}, "exposure_s": {"value": 4}, "field": {"value": 7}}
    found = read_observations(survey(tmp_path, known, "n?/**/*.fits"))
    rows = {row.pop("path"): row for row in found.to_pylist()}
    assert found["observation_id"].to_pylist() == sorted(row.pop("observation_id") for row in rows.values())
    assert rows == {
        "n1/a.fits": dict(band="J", mjd=55001.5, airmass=1.2, exposure_s=4.0, field="7", epoch=1, problem=None),
        "n2/deep/a.fits": dict(band="H", mjd=55000.0, airmass=None, exposure_s=4.0, field="7", epoch=1, problem=None),
    }


def test_keys_come_from_groups_of_the_path_and_no_file_is_opened(tmp_path: Path) -> None:
    for name in ("12_J_55002.5.fits", "3_J_55001.fits", "7_ks_55000.fits"):
        (tmp_path / name).write_bytes(b"no table at all")
    found = read_observations(survey(tmp_path, NAMES | {"bands_as": {"ks": "Ks"}}, "*.fits"))
    assert found.select(["observation_id", "band", "mjd", "epoch", "path"]).to_pylist() == [
        dict(observation_id=3, band="J", mjd=55001.0, epoch=1, path="3_J_55001.fits"),
        dict(observation_id=7, band="Ks", mjd=55000.0, epoch=1, path="7_ks_55000.fits"),
        dict(observation_id=12, band="J", mjd=55002.5, epoch=2, path="12_J_55002.5.fits"),
    ]


def test_a_long_filter_name_means_the_band_that_the_survey_says(tmp_path: Path) -> None:
    long = "H DECam SDSS c0002 6415.0 1480.0"
    place(tmp_path, "a.fits", FILTER=long, MJD_OBS=1.0)
    with pytest.raises(
        SurveyError, match=rf"observations.band: '{long}' \(1 files\) .*\(J, H, Ks\).*bands_as: {{\"{long}\": J}}"
    ):
        read_observations(survey(tmp_path, KEYWORDS))
    assert read_observations(survey(tmp_path, KEYWORDS | {"bands_as": {long: "H"}}))["band"].to_pylist() == ["H"]


@given(st.sets(st.text("abz/1", min_size=1, max_size=6).filter(lambda name: "//" not in name.strip()), min_size=2, max_size=8))
def test_the_id_of_a_file_depends_on_its_path_alone(names: set[str]) -> None:
    ids = {name: found_files._digest(name) for name in names}
    assert len(set(ids.values())) == len(names)
    assert all(0 <= value < 1 << 63 for value in ids.values())


def test_new_files_in_the_middle_change_no_id_of_the_old_ones(tmp_path: Path) -> None:
    constant = {"band": {"value": "J"}, "mjd": {"value": 1}}

    def ids() -> dict[str, int]:
        found = read_observations(survey(tmp_path, constant))
        return dict(zip(found["path"].to_pylist(), found["observation_id"].to_pylist(), strict=True))

    place(tmp_path, "b.fits", "d.fits")
    before = ids()
    place(tmp_path, "a.fits", "c.fits", "e/f.fits")
    assert {name: value for name, value in ids().items() if name in before} == before
    assert len(ids()) == 5


def test_two_files_with_one_id_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("n1/5_J_1.fits", "n2/5_J_2.fits"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    with pytest.raises(InputError, match=r"n1/5_J_1.fits and n2/5_J_2.fits have the one observation id 5; ids must be unique"):
        read_observations(survey(tmp_path, NAMES))
    monkeypatch.setattr(found_files, "_digest", lambda path: 1)
    with pytest.raises(InputError, match="have the one observation id 1"):
        read_observations(survey(tmp_path, {"band": {"value": "J"}, "mjd": {"value": 1}}))


def test_a_file_that_lacks_a_key_carries_the_reason_and_the_others_are_known(tmp_path: Path) -> None:
    place(tmp_path, "1.fits", FILTER="J", MJD_OBS=55001.0)
    place(tmp_path, "2.fits", FILTER="J")
    place(tmp_path, "3.fits", FILTER="J", MJD_OBS="yesterday")
    place(tmp_path, "4.fits", MJD_OBS=1.0)
    (tmp_path / "5.fits").write_bytes(b"")
    (tmp_path / "six.fits").symlink_to("nowhere.fits")
    known = survey(tmp_path, KEYWORDS | {"pattern": r"(?P<id>\d)\.fits"})
    found = {source.name: source for source in sources(known, read_observations(known))}
    assert {name: source.problem for name, source in found.items()} == {
        "1.fits": "",
        "2.fits": "2.fits: observations.mjd: there is no MJD-OBS in its header; every observation needs one",
        "3.fits": "3.fits: observations.mjd: 'yesterday' is no number",
        "4.fits": "4.fits: observations.band: there is no FILTER in its header; every observation needs one",
        "5.fits": "5.fits: HDU 0: not a FITS file: the file is empty",
        "six.fits": r"six.fits: does not fit observations.pattern '(?P<id>\\d)\\.fits'",
    }
    assert [found[f"{n}.fits"].observation_id for n in range(1, 6)] == [1, 2, 3, 4, 5]
    assert (found["1.fits"].band, found["1.fits"].mjd, found["1.fits"].epoch) == ("J", 55001.0, 1)
    assert found["2.fits"].band == ""


def test_where_no_file_shows_its_keys_up_to_ten_are_named(tmp_path: Path) -> None:
    place(tmp_path, *(f"{n:02d}.fits" for n in range(12)), FILTER="J")
    with pytest.raises(
        InputError, match=r"(?s)none of the 12 files .*00.fits: .*no MJD-OBS.*09.fits.*and 2 more; correct"
    ) as caught:
        read_observations(survey(tmp_path, KEYWORDS))
    assert "10.fits" not in str(caught.value)


def test_a_glob_that_finds_nothing_and_a_root_that_is_not_there_are_named(tmp_path: Path) -> None:
    place(tmp_path, ".hidden.fits", ".cache/a.fits")
    with pytest.raises(InputError, match=r"files.glob: '\*\*/\*.fits' finds no file below .*; correct the glob or root"):
        read_observations(survey(tmp_path, KEYWORDS))
    with pytest.raises(MissingInputError, match="gone: the survey's root is no folder that is there; set root"):
        read_observations(survey(tmp_path / "gone", KEYWORDS))


def test_links_out_of_the_root_are_refused_and_circles_are_not_walked(tmp_path: Path) -> None:
    root = tmp_path / "root"
    place(root, "a/x.fits", FILTER="J", MJD_OBS=1.0)
    os.symlink(root, root / "a" / "round")
    os.symlink(root / "a" / "x.fits", root / "a" / "alias.fits")
    assert sorted(read_observations(survey(root, KEYWORDS))["path"].to_pylist()) == ["a/alias.fits", "a/x.fits"]
    place(tmp_path, "secret.fits")
    os.symlink(tmp_path / "secret.fits", root / "out.fits")
    with pytest.raises(InputError, match="'out.fits' lies outside the survey's root"):
        read_observations(survey(root, KEYWORDS))


def test_keywords_stand_in_the_header_of_text_tables_too(tmp_path: Path) -> None:
    (tmp_path / "a.ecsv").write_text(
        "# %ECSV 1.0\n# ---\n# datatype: [{name: S, datatype: int64}]\n# meta: {FILTER: H, MJD-OBS: 55000.5}\nS\n1\n"
    )
    found = read_observations(survey(tmp_path, KEYWORDS, "*.ecsv", format="ecsv"))
    assert found.select(["band", "mjd"]).to_pylist() == [{"band": "H", "mjd": 55000.5}]
