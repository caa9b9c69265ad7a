"""`init`: a survey description from the headers of files, good enough to be checked, or a list of the lines to fill in."""

from __future__ import annotations

import gzip
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner, Result

import scalable
from scalable.cli.console import FAULT, USAGE
from scalable.cli.main import main
from scalable.errors import InputError, MissingInputError, SurveyError
from scalable.io.drivers import format_of
from scalable.io.observations import read_observations
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_fits, write_tables

SKY = make_sky(SkySpec(seed=7, fields=2, stars_per_field=40, bands=("J", "Ks"), epochs=2))


def command(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tables(SKY, tmp_path)
    return tmp_path


def test_a_draft_of_a_synthetic_survey_passes_the_check_as_it_is(folder: Path) -> None:
    tables = sorted((folder / "tables").iterdir())
    found = command("init", *tables, "--into", folder / "draft" / "survey.yaml")
    assert found.exit_code == 0, found.output
    assert "fill in" not in found.output
    checked = command("check", folder / "draft" / "survey.yaml")
    assert checked.exit_code == 0, checked.output
    drafted, true = (scalable.open_survey(path / "survey.yaml") for path in (folder / "draft", folder))
    assert {name: (rule.role, rule.error) for name, rule in drafted.columns.items() if rule.role != "value"} == {
        name: (rule.role, rule.error) for name, rule in true.columns.items() if rule.role != "value"
    }
    assert drafted.bands == true.bands
    times = [dict(zip(t["path"].to_pylist(), t["mjd"].to_pylist(), strict=True)) for t in map(read_observations, (drafted, true))]
    assert times[0] == times[1]
    assert scalable.check(drafted).rows == scalable.check(true).rows


def test_a_draft_is_never_written_over_what_is_there(folder: Path) -> None:
    [table, *_] = sorted((folder / "tables").iterdir())
    before = (folder / "survey.yaml").read_bytes(), (folder / "observations.csv").read_bytes()
    found = command("init", table, "--into", folder / "other.yaml")
    assert found.exit_code == USAGE
    assert "observations.csv: is there already; give --force" in " ".join(found.output.split())
    with pytest.raises(SurveyError, match=r"survey.yaml: is there already"):
        scalable.draft_survey([table], into=folder / "survey.yaml")
    assert ((folder / "survey.yaml").read_bytes(), (folder / "observations.csv").read_bytes()) == before
    assert not (folder / "other.yaml").exists()
    assert scalable.draft_survey([table], into=folder / "survey.yaml", force=True).files == 1
    assert yaml.safe_load((folder / "survey.yaml").read_text())["root"] == "."


def test_the_real_sample_needs_its_times_and_nothing_else(data: Path, tmp_path: Path) -> None:
    tables = sorted((data / "vvv").glob("*.fits"))
    draft = scalable.draft_survey(tables, into=tmp_path / "survey.yaml")
    assert len(draft.to_fill) == len(tables) == draft.files
    for number, (line, table) in enumerate(zip(draft.to_fill, tables, strict=True), start=2):
        assert line.startswith(f"{tmp_path / 'observations.csv'}:{number}: mjd of ")
        assert line.endswith(table.name)
    survey = scalable.open_survey(draft.path)
    assert (survey.name, survey.bands) == ("vvv", ("Z", "Y", "J", "H", "Ks"))
    assert {role: survey.column_of(role) for role in ("object_id", "ra", "dec", "flux", "mag", "class")} == {
        "object_id": "StarID", "ra": "Ra", "dec": "Dec", "flux": "Flux1", "mag": "Mag1", "class": "Class"
    }  # fmt: skip
    assert survey.columns["Ra"].unit == "rad"
    filled = draft.index.read_text().splitlines()
    draft.index.write_text("\n".join([filled[0], *(f"{line}{57000 + n}" for n, line in enumerate(filled[1:]))]))
    assert scalable.check(survey).rows == 180_000


def test_a_column_with_the_name_of_a_stored_one_is_told(tmp_path: Path) -> None:
    table = pa.table({"id": [1], "ra": [2.0], "dec": [3.0], "band": [4]})
    write_fits(table, tmp_path / "t-J.fits", {"MJD-OBS": 57000.5})
    [line] = scalable.draft_survey([tmp_path / "t-J.fits"], into=tmp_path / "survey.yaml").to_fill
    assert "the column 'band' has a name that ingest gives to a column of its own; rename it in the file" in line
    assert (tmp_path / "observations.csv").read_text() == "id,file,band,mjd\n1,t-J.fits,J,57000.5\n"


def test_files_that_cannot_be_read_are_listed_and_the_others_drafted(folder: Path) -> None:
    tables = sorted((folder / "tables").iterdir())
    tables[0].write_bytes(tables[0].read_bytes()[:5000])
    draft = scalable.draft_survey(tables, into=folder / "draft" / "survey.yaml")
    assert "# ingest will set aside: " in draft.path.read_text()
    assert any(tables[0].name in line for line in draft.to_fill)
    for table in tables:
        table.write_bytes(b"SIMPLE  =")
    with pytest.raises(InputError, match=rf"none of the {len(tables)} files can be read; the first says: .*{tables[0].name}"):
        scalable.draft_survey(tables, into=folder / "none" / "survey.yaml")
    assert not (folder / "none").exists()


def test_a_file_with_other_columns_than_most_is_told_and_listed_all_the_same(tmp_path: Path) -> None:
    write_tables(SKY, tmp_path, bad=["missing_column"])
    draft = scalable.draft_survey(sorted((tmp_path / "tables").iterdir()), into=tmp_path / "draft" / "survey.yaml")
    assert "# ingest will set aside: 1 files with other columns than most" in draft.path.read_text()
    survey = scalable.open_survey(draft.path)
    assert "Flux1" in survey.columns
    assert len(read_observations(survey)) == draft.files == SKY.observations.num_rows


def test_no_file_an_absent_file_and_several_formats_are_refused(folder: Path) -> None:
    [table, *_] = sorted((folder / "tables").iterdir())
    with pytest.raises(InputError, match="no file was given"):
        scalable.draft_survey([], into=folder / "d" / "survey.yaml")
    with pytest.raises(MissingInputError, match="nowhere.fits: no such file"):
        scalable.draft_survey([folder / "nowhere.fits"], into=folder / "d" / "survey.yaml")
    with pytest.raises(InputError, match=r"several: fits \(.*\), csv \(.*observations.csv\)"):
        scalable.draft_survey([table, folder / "observations.csv"], into=folder / "d" / "survey.yaml")
    found = command("init", folder / "truth.parquet", "--into", folder / "d" / "survey.yaml")
    assert found.exit_code == FAULT
    assert "is Parquet, which is not read yet" in " ".join(found.output.split())
    assert "Traceback" not in found.output


@pytest.mark.parametrize(
    ("name", "begin", "expected"),
    [
        ("a", b"SIMPLE  =                    T", "fits"),
        ("a", b'<?xml version="1.0"?>\n<VOTABLE>', "votable"),
        ("a", b"\xef\xbb\xbf<VOTABLE>", "votable"),
        ("a", b"# %ECSV 1.0\n", "ecsv"),
        ("a.csv", b"a\n1\n", "csv"),
        ("a.dat", b"# c\na,b\n1,2\n", "csv"),
        ("a.txt", b"# a, b\na b\n1 2\n", "text"),
    ],
)
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_the_format_is_told_by_first_bytes_then_by_name(
    tmp_path: Path, name: str, begin: bytes, expected: str, packed: bool
) -> None:
    path = tmp_path / f"{name}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(begin) if packed else begin)
    assert format_of(path) == expected


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    for name, data, reason in (
        ("a.gz", gzip.compress(b"a,b")[:12], "its gzip compression is damaged"),
        ("a.bin", b"\0\1\2", "is no table that we know"),
        ("a.h5", b"\x89HDF\r\n", "is HDF5, which is not read yet"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match=f"{name}: {reason}"):
            format_of(tmp_path / name)
    with pytest.raises(InputError, match="it is not a regular file"):
        format_of(tmp_path)
