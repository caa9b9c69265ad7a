"""A survey without an index: files found by a glob give the catalogue that an index of them gives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import dask
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner
from surveys import Observation, check_store, detections, write_survey

from scalable.catalog.check import check
from scalable.catalog.ingest import ingest
from scalable.cli.main import main
from scalable.errors import InputError
from scalable.survey.description import Survey
from scalable.survey.read import open_survey
from scalable.synthetic.tables import write_fits

FILES = [
    Observation(1, "J", 55000.0, detections([1, 2], [10.0, 10.1], [5.0, 5.0])),
    Observation(5, "Ks", 55001.0, detections([2, 1], [10.1, 10.0], [5.0, 5.0])),
    Observation(9, "J", 55002.5, detections([1], [10.0], [5.0])),
]


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


def by_glob(folder: Path, observations: dict[str, object], glob: str = "tables/*.fits") -> Survey:
    """Rewrite a hand-made description so that a glob finds its files."""
    path = folder / "survey.yaml"
    described = json.loads(path.read_text()) | {"observations": observations, "files": {"glob": glob}}
    path.write_text(json.dumps(described))
    return open_survey(path)


def with_time(folder: Path, observation: Observation, band: str = "") -> None:
    assert observation.table is not None
    header = {"FILTER": band or observation.band, "MJD-OBS": observation.mjd}
    write_fits(observation.table, folder / observation.path, header)


KEYS = {"pattern": r"(?P<id>\d+)-", "band": {"keyword": "FILTER"}, "mjd": {"keyword": "MJD-OBS"}}


def test_found_files_give_the_catalogue_that_an_index_gives(tmp_path: Path) -> None:
    indexed = ingest(write_survey(tmp_path, FILES), into=tmp_path / "indexed")
    for file in FILES:
        with_time(tmp_path, file)
    found = ingest(by_glob(tmp_path, KEYS), into=tmp_path / "found")
    for member in ("objects", "detections"):
        mine, theirs = (getattr(collection, member).compute() for collection in (found, indexed))
        assert mine.equals(theirs)
    names = ["observation_id", "band", "mjd", "epoch", "path", "status", "rows_stored"]
    assert found.observations.select(names).equals(indexed.observations.select(names))
    check_store(tmp_path / "found")


def test_a_file_whose_header_lacks_a_key_is_set_aside_and_comes_in_under_its_id_once_it_has_it(tmp_path: Path) -> None:
    write_survey(tmp_path, FILES)
    with_time(tmp_path, FILES[0])
    with_time(tmp_path, FILES[2])
    survey = by_glob(tmp_path, KEYS)
    assert [finding.name for finding in check(survey).findings if "MJD-OBS" in finding.message] == ["unreadable-file"]
    first = ingest(survey, into=tmp_path / "store")
    assert (first.path / "quarantine.csv").read_text().splitlines()[1:] == [
        "5,tables/5-Ks.fits,tables/5-Ks.fits: observations.mjd: there is no MJD-OBS in its header; every observation needs one"
    ]
    assert (first.accounting["stored"], first.accounting["quarantined"]) == (3, 1)
    assert first.observations["band"].to_pylist() == ["J", None, "J"]
    check_store(tmp_path / "store")
    with_time(tmp_path, FILES[1])
    second = ingest(survey, into=tmp_path / "store")
    assert (second.accounting["stored"], second.accounting["quarantined"]) == (5, 0)
    assert second.observations["observation_id"].equals(first.observations["observation_id"])


def test_a_filter_text_that_the_survey_explains_is_no_contradiction(tmp_path: Path) -> None:
    write_survey(tmp_path, FILES)
    for file in FILES:
        with_time(tmp_path, file, band={"J": "J", "Ks": "2.2 micron"}[file.band])
    found = check(by_glob(tmp_path, KEYS | {"bands_as": {"2.2 micron": "Ks"}})).findings
    assert "filter-header" not in [finding.name for finding in found]
    wrong = {"band": {"value": "J"}, "mjd": {"value": 1}}
    assert "filter-header" in [finding.name for finding in check(by_glob(tmp_path, wrong)).findings]


def test_a_night_added_later_changes_no_row_of_the_nights_before(tmp_path: Path) -> None:
    write_survey(tmp_path, FILES)
    for file in FILES:
        with_time(tmp_path, file)
    (tmp_path / FILES[1].path).rename(tmp_path / "later.fits")
    survey = by_glob(tmp_path, {"band": {"keyword": "FILTER"}, "mjd": {"keyword": "MJD-OBS"}})
    before = ingest(survey, into=tmp_path / "store").detections.compute()
    (tmp_path / "later.fits").rename(tmp_path / FILES[1].path)
    after = ingest(survey, into=tmp_path / "store").detections.compute()
    old = after.filter(pc.not_equal(after["band"], "Ks"))
    # The mean position of an object moves by rounding when a detection comes in; nothing else does.
    names = [name for name in before.column_names if name not in ("_healpix_29", "object_ra", "object_dec")]
    assert (before.num_rows, after.num_rows) == (3, 5)
    assert old.select(names).equals(before.select(names))


def test_a_glob_that_reaches_into_the_store_is_refused(tmp_path: Path) -> None:
    write_survey(tmp_path, FILES)
    for file in FILES:
        with_time(tmp_path, file)
    (tmp_path / "tables/out").mkdir()
    (tmp_path / "tables/out/3-x.fits").touch()
    survey = by_glob(tmp_path, {"band": {"value": "J"}, "mjd": {"value": 1}}, "**/*.fits")
    with pytest.raises(InputError, match=r"tables/out/3-x.fits lies in the store .*out: narrow files.glob, or put the st"):
        ingest(survey, into=tmp_path / "tables/out")


def test_the_command_runs_such_a_survey_and_explains_the_field(tmp_path: Path) -> None:
    write_survey(tmp_path, FILES)
    for file in FILES:
        with_time(tmp_path, file)
    by_glob(tmp_path, KEYS)
    arguments = ["run", str(tmp_path / "survey.yaml"), "--into", str(tmp_path / "out"), "--scheduler", "sync"]
    ran = CliRunner().invoke(main, arguments)
    assert ran.exit_code == 0, ran.output
    assert "5 rows read = 5 stored + 0 rejected; 3 of 3 files" in ran.output
    assert "night*/**/*.fits" in CliRunner().invoke(main, ["help", "files.glob"]).output.replace("\n", " ")
