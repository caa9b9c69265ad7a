"""What is true of a synthetic sky on disk."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from astropy.io import fits
from astropy.table import Table

from scalable.errors import InputError, SurveyError
from scalable.synthetic.sky import DETECTIONS, Sky, SkySpec, detections, make_sky
from scalable.synthetic.tables import DAMAGE, damaged_files, survey_yaml, table_paths, write_fits, write_tables


@pytest.fixture(scope="module")
def sky() -> Sky:
    return make_sky(SkySpec(seed=5, fields=2, stars_per_field=300, epochs=3))


@pytest.fixture(scope="module")
def survey(sky: Sky, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tables(sky, tmp_path_factory.mktemp("survey") / "new" / "folder")


def checksums(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_the_folder_holds_the_files_that_are_promised(survey: Path) -> None:
    names = {str(path.relative_to(survey.parent)) for path in survey.parent.rglob("*") if path.is_file()}
    tables = {f"tables/Field-{field}-{band}.fits" for field in (1, 2) for band in "ZYJH"}
    tables |= {f"tables/Field-{field}-Ks-E00{epoch}.fits" for field in (1, 2) for epoch in (1, 2, 3)}
    assert names == {"survey.yaml", "observations.csv", "truth.parquet"} | tables


def test_writing_twice_gives_the_same_bytes(sky: Sky, survey: Path, tmp_path: Path) -> None:
    write_tables(make_sky(sky.spec), tmp_path)
    assert checksums(tmp_path) == checksums(survey.parent)


def test_astropy_reads_every_file_without_a_warning_and_finds_the_detections(sky: Sky, survey: Path) -> None:
    for number, relative in enumerate(table_paths(sky), start=1):
        expected = detections(sky, number)
        with fits.open(survey.parent / relative) as file:
            file.verify("exception")
            assert len(file) == 2
            for name in DETECTIONS.names:
                assert np.array_equal(file[1].data[name], expected[name].to_numpy(), equal_nan=True)


def test_the_files_have_the_declared_formats_and_units(sky: Sky, survey: Path) -> None:
    with fits.open(survey.parent / table_paths(sky)[0]) as file:
        columns = file[1].columns
    assert columns.names == DETECTIONS.names
    assert columns.formats == ["E"] * 9 + ["D", "D"] + ["E"] * 7 + ["K"]
    assert [unit or "" for unit in columns.units] == [column.unit for column in DETECTIONS]
    # Units that astropy knows: reading one of these tables warns of nothing.
    assert Table.read(survey.parent / table_paths(sky)[0])["Ra"].unit == "rad"


def test_ids_and_positions_in_the_files_agree_with_the_truth(sky: Sky, survey: Path) -> None:
    truth = pq.read_table(survey.parent / "truth.parquet")
    assert truth.equals(sky.stars)
    seen: Counter[int] = Counter()
    for relative in table_paths(sky):
        data = fits.getdata(survey.parent / relative)
        ids = data["StarID"].astype(int)
        seen.update(ids.tolist())
        assert np.array_equal(data["Class"], truth["class"].to_numpy()[ids])
        assert np.abs(np.rad2deg(data["Dec"]) - truth["dec_deg"].to_numpy()[ids]).max() * 3600 < 0.6
        assert np.array_equal(np.unique(truth["field"].to_numpy()[ids]), [int(relative.split("-")[1])])
    assert set(seen) == set(range(600))
    assert sum(seen.values()) == sum(len(detections(sky, number)) for number in range(1, 15))


def test_the_index_holds_the_observations_and_leads_to_the_files_by_rank_in_time(sky: Sky, survey: Path) -> None:
    with (survey.parent / "observations.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == sky.observations.column_names
    assert [float(row["MJD"]) for row in rows] == sky.observations["MJD"].to_pylist()
    assert not any((survey.parent / "tables" / row["Filename"]).exists() for row in rows)
    for row in rows:
        earlier = [other for other in rows if (other["FieldID"], other["Filter"]) == (row["FieldID"], row["Filter"])]
        rank = sorted(float(other["MJD"]) for other in earlier).index(float(row["MJD"])) + 1
        epoch = f"-E{rank:03d}" if row["Filter"] == "Ks" else ""
        header = fits.getheader(survey.parent / f"tables/Field-{row['FieldID']}-{row['Filter']}{epoch}.fits")
        assert header["FILTER"] == row["Filter"]
        assert header["MJD-OBS"] == float(row["MJD"])
        assert header["EXPTIME"] == float(row["Exptime"])
        assert header["TELESCOP"] == "SYNTHETIC"
        assert header["MAGZPT"] == sky.calibration["ZeroPoint"][int(row["ID"]) - 1].as_py()
        assert "DATE" not in header


def test_positions_in_four_bytes_stay_below_a_full_turn(tmp_path: Path) -> None:
    sky = make_sky(SkySpec(fields=1, stars_per_field=3000, centre=(0.0, 0.0), field_radius_deg=1e-4, jitter_arcsec=0.0))
    write_tables(sky, tmp_path, position_dtype="E")
    data = fits.getdata(tmp_path / table_paths(sky)[0])
    assert data["Ra"].dtype == np.dtype(">f4")
    exact = detections(sky, 1)["Ra"].to_numpy()
    assert np.any(exact.astype(np.float32).astype(float) >= 2 * np.pi), "the trap is not in these data"
    assert data["Ra"].astype(float).min() >= 0
    assert data["Ra"].astype(float).max() < 2 * np.pi
    # The nearest multiple of the step, a full turn off or not.
    assert np.abs((data["Ra"].astype(float) - exact + np.pi) % (2 * np.pi) - np.pi).max() < 3e-7


def test_the_description_says_what_was_written(sky: Sky, survey: Path) -> None:
    described = yaml.safe_load(survey.read_text())
    assert described["bands"] == list(sky.spec.bands)
    assert list(described["columns"]) == DETECTIONS.names
    assert described["columns"]["Flux1"] == {
        "role": "flux",
        "unit": "adu",
        "error": "dFlux1",
        "description": "Flux in aperture 1",
    }
    assert described["columns"]["Class"] == {"role": "class", "unit": "", "description": "-1 star, 1 galaxy"}
    assert described["files"]["templates"] == [
        {"bands": ["Ks"], "path": "tables/Field-{FieldID}-{Filter}-E{epoch:03d}.fits"},
        {"path": "tables/Field-{FieldID}-{Filter}.fits"},
    ]
    assert described["products"] == {
        "colours": [["J", "H"], ["Y", "J"]],
        "magnitude": "Mag1",
        "flux": "Flux1",
        "variability": {"band": "Ks", "threshold": 20},
        "bright": {"snr": 30, "bands": ["Z", "Y", "J", "H", "Ks"]},
    }
    assert {"survey", "description", "root", "observations", "store", "accept", "motivation", "query", "license"} <= set(
        described
    )


def test_the_description_offers_only_what_the_bands_allow() -> None:
    described = yaml.safe_load(survey_yaml(SkySpec(bands=("g", "r", "i"), epoch_bands=())))
    assert described["files"]["templates"] == [{"path": "tables/Field-{FieldID}-{Filter}.fits"}]
    assert described["products"]["colours"] == [["g", "r"]]
    assert "variability" not in described["products"]
    assert yaml.safe_load(survey_yaml(SkySpec(bands=("y",), epoch_bands=("y",))))["products"]["colours"] == []


def test_each_kind_of_damage_befalls_one_file_of_its_own_and_the_others_stay_whole(
    sky: Sky, survey: Path, tmp_path: Path
) -> None:
    write_tables(sky, tmp_path, bad=list(DAMAGE))
    files = damaged_files(sky, list(DAMAGE))
    assert len(set(files.values())) == len(DAMAGE)
    whole, now = checksums(survey.parent), checksums(tmp_path)
    assert {name for name in whole if now.get(name) != whole[name]} == set(files.values())
    for kind in DAMAGE:
        assert damaged_files(sky, [kind]) == {kind: files[kind]}


def damage(sky: Sky, folder: Path, kind: str) -> tuple[Path, pa.Table]:
    """Write a sky with one damaged file; return its path and what it should hold."""
    write_tables(sky, folder, bad=[kind])
    relative = damaged_files(sky, [kind])[kind]
    return folder / relative, detections(sky, table_paths(sky).index(relative) + 1)


def test_a_truncated_file_ends_in_the_middle_of_a_row(sky: Sky, survey: Path, tmp_path: Path) -> None:
    path, expected = damage(sky, tmp_path, "truncated")
    original = survey.parent / path.relative_to(tmp_path)
    assert original.read_bytes().startswith(path.read_bytes())
    with fits.open(original) as file:
        width, start = file[1].header["NAXIS1"], file[1].fileinfo()["datLoc"]
    assert width == 16 * 4 + 2 * 8 + 8
    assert divmod(path.stat().st_size - start, width) == (len(expected) // 2, width // 2)


def test_a_table_without_rows_can_be_written_and_truncated(tmp_path: Path) -> None:
    empty = make_sky(SkySpec(fields=1, stars_per_field=0))
    path, _ = damage(empty, tmp_path, "truncated")
    assert path.stat().st_size % 2880 == 1440
    others = [tmp_path / relative for relative in table_paths(empty) if tmp_path / relative != path]
    assert all(len(fits.getdata(other)) == 0 for other in others)


def test_a_missing_column_is_flux1_and_nothing_else(sky: Sky, tmp_path: Path) -> None:
    path, expected = damage(sky, tmp_path, "missing_column")
    data = fits.getdata(path)
    assert [name for name in DETECTIONS.names if name not in data.names] == ["Flux1"]
    assert np.array_equal(data["StarID"], expected["StarID"].to_numpy())


def test_an_absent_file_is_not_there_even_if_it_was_before(sky: Sky, tmp_path: Path) -> None:
    write_tables(sky, tmp_path)
    path, _ = damage(sky, tmp_path, "absent")
    assert path.parent.is_dir()
    assert not path.exists()
    assert len((tmp_path / "observations.csv").read_text().splitlines()) == 15


def test_duplicate_rows_are_exact_copies_at_the_end(sky: Sky, tmp_path: Path) -> None:
    path, expected = damage(sky, tmp_path, "duplicate")
    data = fits.getdata(path)
    assert len(data) == len(expected) + len(expected) // 100
    assert len(expected) // 100 >= 1
    rows = [data[i : i + 1].tobytes() for i in range(len(data))]
    assert rows[len(expected) :] == rows[: len(data) - len(expected)]
    assert len(set(data["StarID"].tolist())) == len(expected)


def test_an_unknown_damage_is_refused_with_the_nearest_choice(sky: Sky, tmp_path: Path) -> None:
    with pytest.raises(SurveyError, match="no such damage 'truncate'; did you mean 'truncated'"):
        write_tables(sky, tmp_path, bad=["truncate"])
    assert not list(tmp_path.iterdir())


def test_a_sky_with_too_few_files_to_be_damaged_is_refused(tmp_path: Path) -> None:
    sky = make_sky(SkySpec(fields=1, stars_per_field=1, bands=("J", "Ks"), epochs=2))
    with pytest.raises(SurveyError, match="3 tables is too small to be damaged; it needs at least 4"):
        write_tables(sky, tmp_path, bad=["absent"])


def test_write_fits_keeps_every_number_type_and_reads_back_equal(tmp_path: Path) -> None:
    types = [pa.uint8(), pa.int16(), pa.int32(), pa.int64(), pa.float32(), pa.float64()]
    table = pa.table({f"c{i}": pa.array([0, 1, 100], kind) for i, kind in enumerate(types)})
    write_fits(table, tmp_path / "a.fits", {"OBJECT": "x", "COUNT": 3, "GOOD": True, "SCALE": 0.5})
    with fits.open(tmp_path / "a.fits", checksum=True) as file:
        file.verify("exception")
        assert file[1].columns.formats == ["B", "I", "J", "K", "E", "D"]
        assert all(file[1].data[name].tolist() == [0, 1, 100] for name in table.column_names)
        assert [file[0].header[key] for key in ("OBJECT", "COUNT", "GOOD", "SCALE")] == ["x", 3, True, 0.5]


def test_write_fits_stores_a_null_float_as_nan(tmp_path: Path) -> None:
    write_fits(pa.table({"x": pa.array([1.0, None])}), tmp_path / "a.fits", {})
    assert np.array_equal(fits.getdata(tmp_path / "a.fits")["x"], [1.0, np.nan], equal_nan=True)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array(["a"]), "column 'x' is string; .*choices: uint8"),
        (pa.array([1, None]), r"column 'x' \(int64\) has 1 nulls; fill them first"),
    ],
)
def test_write_fits_names_the_column_that_it_cannot_write(tmp_path: Path, values: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        write_fits(pa.table({"x": values}), tmp_path / "a.fits", {})
    assert not (tmp_path / "a.fits").exists()
