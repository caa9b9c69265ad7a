"""What a release holds is what the store holds, row by row; its books balance, and its bytes follow from its input."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from pathlib import Path

import dask
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.table import Table
from release.conftest import of_detections, of_objects

from scalable.catalog.bands import join_bands
from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest
from scalable.errors import StoreError, SurveyError
from scalable.io.runs import read_json
from scalable.release.datasheet import datasheet
from scalable.release.observed import observed
from scalable.release.read import open_release
from scalable.release.recipe import COMPUTED, QUESTIONS
from scalable.release.verify import verify_release
from scalable.release.write import write_release
from scalable.survey.read import open_survey


def digest(folder: Path) -> dict[str, str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def rejected(folder: Path) -> dict[str, np.ndarray]:
    with h5py.File(folder / "provenance.h5") as file:
        texts = ("stage", "rule", "column", "value")
        return {n: d.asstr()[()] if n in texts else d[()] for n, d in file["rejected"].items()}


def test_every_object_is_released_or_listed_with_rule_and_value(collection: Collection, released: Path) -> None:
    lost, kept = rejected(released), open_release(released).numpy(["object_id"])["object_id"]
    stored = collection.objects.compute()["object_id"].to_numpy()
    assert len(lost["object_id"]) > 0
    np.testing.assert_array_equal(np.sort(np.concatenate([kept, lost["object_id"]])), np.sort(stored))
    assert np.all(lost["rule"] != "")
    # What the rule compared is what the object has.
    epochs = collection.detections.where("band = 'Ks'").compute()["object_id"].to_numpy()
    for number, rule, value in zip(lost["object_id"], lost["rule"], lost["value"], strict=True):
        assert (rule, int(value)) == ("seen_twice", np.count_nonzero(epochs == number))


def test_every_row_read_is_a_released_or_a_rejected_detection(collection: Collection, released_detections: Path) -> None:
    lost = rejected(released_detections)
    kept = open_release(released_detections).numpy(["source_id", "source_row", "Mag1"])
    pairs = np.concatenate([np.column_stack([part["source_id"], part["source_row"]]) for part in (kept, lost)])
    observed = collection.observations
    read = sum(observed["rows"].to_pylist())
    assert len(np.unique(pairs, axis=0)) == len(pairs) == read
    faint = lost["rule"] == "Mag1 in bounds"
    assert 0 < np.count_nonzero(faint) < len(faint)
    assert np.all(lost["value"][faint].astype(float) > 18.5)
    assert not np.any(kept["Mag1"] > 18.5)


def test_values_are_those_of_the_catalogue_and_nulls_have_a_state(collection: Collection, released: Path) -> None:
    expected = join_bands(collection.detections, values=["Mag1", "dMag1"]).compute().sort_by("object_id")
    found = open_release(released).numpy()
    by_id = np.argsort(found["object_id"])
    rows = np.searchsorted(expected["object_id"].to_numpy(), found["object_id"][by_id])
    missing = 0
    for band in collection.bands:
        values = expected[f"{band}_Mag1"].to_numpy(zero_copy_only=False)[rows]
        np.testing.assert_array_equal(found[f"{band}_Mag1"][by_id], values)
        np.testing.assert_array_equal(found[f"{band}_Mag1_state"][by_id] != 0, np.isnan(values))
        missing += np.count_nonzero(np.isnan(values))
    assert missing > 0


def test_a_band_without_a_detection_was_looked_at_or_not(collection: Collection, released: Path) -> None:
    found, table = open_release(released).numpy(), collection.detections.compute()
    observations = {row["observation_id"]: row for row in collection.observations.to_pylist()}
    looked = {(row["field"], row["band"]) for row in observations.values()}
    ids, bands, numbers = (table[name].to_pylist() for name in ("object_id", "band", "observation_id"))
    seen = set(zip(ids, bands, strict=True))
    fields = {}
    for thing, number in zip(ids, numbers, strict=True):
        fields.setdefault(thing, set()).add(observations[number]["field"])
    unseen = 0
    for thing, state in zip(found["object_id"].tolist(), found["J_Mag1_state"].tolist(), strict=True):
        if (thing, "J") not in seen:
            assert state == (1 if any((field, "J") in looked for field in fields[thing]) else 2)
            unseen += 1
        else:
            assert state in (0, 3)
    assert unseen > 0


def test_where_nobody_looked_nothing_was_not_detected() -> None:
    # Field a was observed in g and r, field b in g alone; object 1 lies in a, object 2 in b, object 3 in both.
    known = observed([(5, "a", "g"), (6, "a", "r"), (7, "b", "g")], ("g", "r"))
    table = pa.table({"band": ["g", "g", "g", "g"], "observation_id": [5, 7, 5, 7]})
    absent = known.absent(table, np.array([0, 1, 2, 4]))
    assert absent["__absent_g"].to_pylist() == [0, 0, 0]
    assert absent["__absent_r"].to_pylist() == [1, 2, 1]
    nameless = observed([(5, "", "g"), (6, "", "r")], ("g", "r"))
    assert nameless.absent(table.slice(0, 1), np.array([0, 1]))["__absent_r"].to_pylist() == [2]


def test_light_curves_beside_a_shard_are_those_of_its_objects(collection: Collection, released: Path) -> None:
    release = open_release(released)
    detections = collection.detections.compute()
    for number in release.numpy(["object_id"])["object_id"][:20].tolist():
        mine = detections.filter(np.asarray(detections["object_id"]) == number)
        curve = release.light_curve(number)
        for name, source in (("Flux1", "Flux1"), ("mjd", "mjd"), ("source_id", "observation_id")):
            np.testing.assert_array_equal(curve[name], mine[source].to_numpy())


def test_outliers_are_kept_flagged_and_weighted_by_what_the_release_says(released: Path) -> None:
    manifest, found = read_json(released / "release.json"), open_release(released).numpy()
    rule = manifest["outliers"]
    apart = []
    for name, middle, width in zip(rule["columns"], rule["middle"], rule["half_width"], strict=True):
        good = np.sort(found[name][~np.isnan(found[name])].astype(np.float64))
        ranks = [int(q * (len(good) - 1)) for q in (0.16, 0.5, 0.84)]
        assert (middle, width) == (good[ranks[1]], (good[ranks[2]] - good[ranks[0]]) / 2)
        apart.append(np.nan_to_num(np.abs(found[name].astype(np.float64) - middle) / width))
    distance = np.max(apart, axis=0)
    np.testing.assert_array_equal(found["outlier_distance"], distance)
    far = distance > 4
    assert 0 < np.count_nonzero(far) < len(far)
    np.testing.assert_array_equal(found["flags"] & 1, far)
    np.testing.assert_array_equal(found["outlier_class"], np.where(far, np.argmax(apart, axis=0) + 1, 0))
    np.testing.assert_allclose(found["weight"], np.where(far, 4 / np.maximum(distance, 1), 1.0))


def test_every_dataset_says_unit_meaning_and_reason(released: Path) -> None:
    shard = read_json(released / "release.json")["shards"][0]
    seen = 0
    for path in (shard["path"], shard["light_curves"]):
        with h5py.File(released / path) as file:
            for name, dataset in file.items():
                about = dict(dataset.attrs)
                assert all(about[key] for key in ("unit", "ucd", "description", "reason")), name
                assert u.Unit("" if about["unit"] == "1" else about["unit"], format="vounit") is not None
                seen += 1
    assert seen > 30


def test_a_column_without_a_reason_is_refused_with_the_line_to_add(collection: Collection, tmp_path: Path) -> None:
    recipe = of_objects()
    columns = {name: meaning for name, meaning in recipe.columns.items() if name != "*_dMag1"}
    with pytest.raises(SurveyError, match=r'J_dMag1: \{reason: "…", ucd: "…", serves: "…"\}'):
        write_release(collection, recipe.model_copy(update={"columns": columns}), into=tmp_path / "r")
    assert not list(tmp_path.iterdir())


def test_a_survey_without_motives_is_refused_with_the_lines_to_add(collection: Collection, tmp_path: Path) -> None:
    version = Path(shutil.copytree(collection.path, tmp_path / "version"))
    survey = read_json(version / "survey.json") | {"motivation": None, "license": ""}
    (version / "survey.json").write_text(json.dumps(survey))
    with pytest.raises(SurveyError, match=r"(?s)add to its survey.yaml:.*motivation: .*license: "):
        write_release(Collection(version, collection.manifest), of_objects(), into=tmp_path / "r")
    with pytest.raises(SurveyError, match="uses_biases"):
        write_release(collection, of_objects(datasheet={}), into=tmp_path / "r")


def test_the_datasheet_answers_every_question_and_computes_what_can_be(released: Path) -> None:
    manifest = read_json(released / "release.json")
    sheet = read_json(released / "datasheet.json")
    assert sheet == datasheet(manifest)
    assert set(sheet) == set(QUESTIONS)
    assert all(entry["answer"] for entry in sheet.values())
    kinds = {name: entry["kind"] for name, entry in sheet.items()}
    assert kinds["composition_people"] == "not_applicable"
    assert {name for name, kind in kinds.items() if kind == "computed"} <= COMPUTED
    assert f"{manifest['accounting']['released']} objects" in sheet["composition_instances"]["answer"]


def test_headers_of_all_sources_are_kept_byte_for_byte(released: Path, sources: Path) -> None:
    with h5py.File(released / "provenance.h5") as file:
        group, names = file["headers"], file["sources"]["uri"].asstr()[()]
        ids = file["sources"]["source_id"][()].tolist()
        starts = np.cumsum(group["length"][()]) - group["length"][()]
        for number, first, start, length in zip(
            group["source_id"][()].tolist(), starts, group["start"][()], group["length"][()], strict=True
        ):
            source = (sources / names[ids.index(number)]).read_bytes()
            assert group["blocks"][first : first + length].tobytes() == source[start : start + length]
        assert len(starts) == 2 * len(ids)


def test_equal_input_gives_equal_bytes_on_any_scheduler(collection: Collection, released: Path, tmp_path: Path) -> None:
    time.sleep(1.1)  # so that a stored time would differ
    with dask.config.set(scheduler="synchronous"):
        write_release(collection, of_objects(), into=tmp_path / "again")
    assert digest(tmp_path / "again") == digest(released)


def test_nothing_is_written_over(collection: Collection, released: Path) -> None:
    with pytest.raises(StoreError, match="is there already"):
        write_release(collection, of_objects(), into=released)


def test_imputed_cells_say_so_and_what_they_were(collection: Collection, released: Path, sources: Path, tmp_path: Path) -> None:
    recipe = of_objects(impute=[{"column": "J_Mag1", "reason": "a learner that takes no null"}])
    with dask.config.set(scheduler="threads"):
        write_release(collection, recipe, into=tmp_path / "r")
        checked = verify_release(tmp_path / "r", level=3, sources=sources, samples=1000)
    assert checked.passed, checked
    before, after = open_release(released).numpy(), open_release(tmp_path / "r").numpy()
    measured = before["J_Mag1_state"] == 0
    assert 0 < np.count_nonzero(~measured) < len(measured)
    values = np.sort(before["J_Mag1"][measured])
    middle = values[int(0.5 * (len(values) - 1))]
    np.testing.assert_array_equal(after["J_Mag1"], np.where(measured, before["J_Mag1"], middle))
    np.testing.assert_array_equal(after["J_Mag1_state"], np.where(measured, 0, 5))
    np.testing.assert_array_equal(after["J_Mag1_state_in_source"], before["J_Mag1_state"])
    # Undone, it is what it was.
    undone = np.where(after["J_Mag1_state"] == after["J_Mag1_state_in_source"], after["J_Mag1"], np.float32(np.nan))
    np.testing.assert_array_equal(undone, before["J_Mag1"])
    np.testing.assert_array_equal(after["outlier_distance"], before["outlier_distance"])
    np.testing.assert_array_equal(after["H_Mag1"], before["H_Mag1"])


def test_a_release_of_a_release_says_what_changed(collection: Collection, released: Path, tmp_path: Path) -> None:
    with dask.config.set(scheduler="threads"):
        write_release(collection, of_objects(), into=tmp_path / "same", parent=released)
        other = of_objects(select=[])
        write_release(collection, other, into=tmp_path / "more", parent=released)
        fewer = of_objects(select=[{"name": "red", "where": "J_Mag1 - H_Mag1 > 1", "reason": "red", "serves": "colour"}])
        write_release(collection, fewer, into=tmp_path / "fewer", parent=tmp_path / "more")
    manifests = {name: read_json(tmp_path / name / "release.json") for name in ("same", "more", "fewer")}
    assert [m["version"] for m in manifests.values()] == ["1.0.1", "1.1.0", "2.0.0"]
    # The rule that outliers are found by is that of the first, or every row would differ.
    before = read_json(released / "release.json")
    assert manifests["more"]["outliers"] == before["outliers"]
    added = read_json(tmp_path / "more" / "DIFF-1.0.0.json")
    dropped = before["accounting"]["rejected"]
    assert (added["added"], added["changed"], added["removed"]) == (dropped, 0, 0)
    assert sorted(row["object_id"] for row in added["rows"]["added"]) == sorted(rejected(released)["object_id"].tolist())


def test_the_index_leads_to_every_row(released_detections: Path) -> None:
    index = pq.read_table(released_detections / "index.parquet")
    assert {"Class", "row_digest"} < set(index.column_names)
    for shard in set(index["shard"].to_pylist()):
        mine = index.filter(np.asarray(index["shard"].to_pylist()) == shard)
        with h5py.File(released_detections / shard) as file:
            for name in ("object_id", "ra", "split", "source_row", "Class"):
                np.testing.assert_array_equal(file[name][()][mine["row"].to_numpy()], mine[name].to_numpy())


def test_conditions_of_a_recipe_are_checked_before_anything_is_computed(collection: Collection, tmp_path: Path) -> None:
    bad = of_detections(select=[{"name": "bad", "where": "Flux9 > 1", "reason": "none", "serves": "epochs"}])
    with pytest.raises(KeyError, match="Flux9"):
        write_release(collection, bad, into=tmp_path / "r")
    assert not list(tmp_path.iterdir())


THIRTY = """
survey: thirty
root: .
bands: [{bands}]
observations: {{index: observations.csv, id: id, band: band, mjd: mjd}}
files: {{format: fits, templates: [{{path: "{{band}}.fits"}}]}}
columns:
  ID: {{role: object_id, unit: "", description: Number of the object}}
  RA: {{role: ra, unit: deg, description: Right ascension}}
  DEC: {{role: dec, unit: deg, description: Declination}}
  M: {{role: mag, unit: mag, description: Magnitude}}
motivation: {{text: Thirty narrow bands., goal: Spectra., requirements: {{colour: every band}}}}
query: {{text: drawn by lot}}
license: CC0-1.0
"""


@pytest.mark.long
def test_thirty_bands_are_thirty_columns_in_their_own_precision(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    bands = [f"b{number:02d}" for number in range(30)]
    n = 40
    place = {"ID": np.arange(n), "RA": rng.uniform(10, 11, n), "DEC": rng.uniform(-1, 0, n)}
    magnitudes = {band: rng.normal(20, 1, n).astype(np.float32) for band in bands}
    for band, values in magnitudes.items():
        Table(place | {"M": values}).write(tmp_path / f"{band}.fits")
    (tmp_path / "observations.csv").write_text("id,band,mjd\n" + "".join(f"{i + 1},{b},57000\n" for i, b in enumerate(bands)))
    (tmp_path / "survey.yaml").write_text(THIRTY.format(bands=", ".join(bands)))
    columns = {"*_M": {"reason": "colours", "serves": "colour", "ucd": "phot.mag"}}
    recipe = of_objects(
        join={"values": ["M"], "pick": "first"},
        statistics=None,
        light_curves=[],
        select=[],
        flags=[],
        outliers={},
        columns=columns,
    )
    with dask.config.set(scheduler="threads"):
        collection = ingest(open_survey(tmp_path / "survey.yaml"), into=tmp_path / "store")
        release = open_release(write_release(collection, recipe, into=tmp_path / "r"))
    assert [name for name in release.columns if name.endswith("_M")] == [f"{band}_M" for band in bands]
    assert release.manifest["information"]["bands"] == {"in": 30, "released": 30}
    found = release.numpy()
    for band in bands:
        assert found[f"{band}_M"].dtype == np.float32
        np.testing.assert_array_equal(found[f"{band}_M"], magnitudes[band][found["object_id"]])
