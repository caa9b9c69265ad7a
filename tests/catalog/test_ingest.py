"""What ingest stores, held against the FITS files as astropy reads them: rows, order, positions, books, digests, versions."""

from __future__ import annotations

import csv
import hashlib
import json
import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import surveys
from numpy.typing import NDArray
from surveys import Observation, detections, fingerprint, nested_pixels, read_member, write_survey

from scalable.catalog import ingest as stages
from scalable.catalog import ingest_commit, ingest_forecast, ingest_map, ingest_plan
from scalable.catalog.collection import Collection, open_collection
from scalable.catalog.ingest import ingest
from scalable.cluster import connect
from scalable.survey.description import Survey
from scalable.survey.read import open_survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables

EPOCH = "1700000000"
SPEC = SkySpec(seed=11, fields=2, stars_per_field=150, bands=("J", "H", "Ks"), epochs=3, null_fraction=0.05)
KEYS = ("_healpix_29", "object_id", "object_ra", "object_dec", "observation_id", "band", "mjd", "source_row")


@pytest.fixture(autouse=True)
def _here_and_at_a_fixed_date(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", EPOCH)
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture(scope="module")
def survey(tmp_path_factory: pytest.TempPathFactory) -> Survey:
    """Two fields of 150 objects in J, H and three epochs of Ks; one file repeats some of its rows."""
    return open_survey(write_tables(make_sky(SPEC), tmp_path_factory.mktemp("survey"), bad=["duplicate"]))


@pytest.fixture(scope="module")
def files(survey: Survey) -> dict[int, tuple[dict[str, Any], Path, dict[str, NDArray[Any]]]]:
    """By observation id: the row of the index, the file, and its columns as astropy reads them."""
    root, seen, found = survey.input_root, {}, {}
    with (root / "observations.csv").open(newline="") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["MJD"]))
    for row in rows:
        group = row["FieldID"], row["Filter"]
        seen[group] = seen.get(group, 0) + 1
        epoch = f"-E{seen[group]:03d}" if row["Filter"] == "Ks" else ""
        path = root / f"tables/Field-{row['FieldID']}-{row['Filter']}{epoch}.fits"
        found[int(row["ID"])] = (row, path, surveys.read_by_astropy(path))
    return dict(sorted(found.items()))


@pytest.fixture(scope="module")
def store(survey: Survey, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed ingest on the synchronous scheduler; tests only read it."""
    folder = tmp_path_factory.mktemp("undisturbed") / "store"
    with pytest.MonkeyPatch.context() as patch, dask.config.set(scheduler="sync"):
        patch.setenv("SOURCE_DATE_EPOCH", EPOCH)
        ingest(survey, into=folder)
    return folder


@pytest.fixture
def collection(store: Path) -> Collection:
    return open_collection(store)


def second_rows(files: dict[int, Any]) -> set[tuple[int, int]]:
    """Return (observation, source row) of every row whose object occurred before in the same file."""
    found = set()
    for observation, (_, _, columns) in files.items():
        _, first = np.unique(columns["StarID"], return_index=True)
        found |= {(observation, int(row)) for row in set(range(len(columns["StarID"]))) - set(first.tolist())}
    return found


def test_every_row_comes_back_bit_for_bit_as_astropy_reads_it_keyed_by_observation_and_row(
    files: dict[int, Any], collection: Collection
) -> None:
    stored = pa.concat_tables(read_member(collection, "detections").values()).sort_by(
        [("observation_id", "ascending"), ("source_row", "ascending")]
    )
    repeated = second_rows(files)
    assert repeated
    keys = [(o, row) for o, (_, _, columns) in files.items() for row in range(len(columns["Ra"])) if (o, row) not in repeated]
    assert list(zip(stored["observation_id"].to_pylist(), stored["source_row"].to_pylist(), strict=True)) == keys
    nulls = 0
    for name in files[1][2]:
        keep = [(o, row) not in repeated for o, (_, _, columns) in files.items() for row in range(len(columns["Ra"]))]
        expected = np.concatenate([columns[name] for _, _, columns in files.values()])[keep]
        column = stored[name].combine_chunks()
        missing = np.isnan(expected) if expected.dtype.kind == "f" else np.zeros(len(expected), dtype=bool)
        nulls += missing.sum()
        assert (column.is_null().to_numpy(zero_copy_only=False) == missing).all(), name
        values = column.drop_null().to_numpy()
        assert values.dtype == expected.dtype
        assert values.tobytes() == expected[~missing].tobytes(), name
    assert nulls > 0
    assert sum(collection.manifest["nulls"].values()) == nulls


def test_columns_are_the_keys_and_then_everything_the_files_have(files: dict[int, Any], collection: Collection) -> None:
    for table in read_member(collection, "detections").values():
        assert table.column_names == [*KEYS, *files[1][2]]


def test_band_and_time_of_a_row_are_those_of_its_observation(files: dict[int, Any], collection: Collection) -> None:
    for table in read_member(collection, "detections").values():
        for observation, band, mjd in zip(*(table[name].to_pylist() for name in ("observation_id", "band", "mjd")), strict=True):
            assert (band, mjd) == (files[observation][0]["Filter"], float(files[observation][0]["MJD"]))


def test_rows_of_every_leaf_are_in_canonical_order_along_the_sky(collection: Collection) -> None:
    leaves = read_member(collection, "detections")
    assert len(leaves) > 1
    for table in leaves.values():
        names = ("_healpix_29", "object_id", "band", "mjd", "observation_id", "source_row")
        keys = list(zip(*(table[name].to_pylist() for name in names), strict=True))
        assert keys == sorted(keys)
        assert len(set(keys)) == len(keys)
    for table in read_member(collection, "objects").values():
        keys = list(zip(table["_healpix_29"].to_pylist(), table["object_id"].to_pylist(), strict=True))
        assert keys == sorted(keys)


def test_position_of_an_object_is_the_normalised_vector_mean_of_its_detections(collection: Collection) -> None:
    rows = pa.concat_tables(read_member(collection, "detections").values())
    at = surveys.vectors(np.rad2deg(rows["Ra"].to_numpy()), np.rad2deg(rows["Dec"].to_numpy()))
    ids = rows["object_id"].to_numpy()
    assert (ids == rows["StarID"].to_numpy()).all()
    given = surveys.vectors(rows["object_ra"].to_numpy(), rows["object_dec"].to_numpy())
    for object_id in np.unique(ids):
        mean = at[ids == object_id].sum(axis=0)
        off = surveys.separation_arcsec(given[ids == object_id], mean / np.linalg.norm(mean))
        assert off.max() < 1e-8
    for column, low, high in (("object_ra", 0, 360), ("object_dec", -90, 90)):
        values = rows[column].to_numpy()
        assert values.min() >= low
        assert values.max() <= high


@pytest.mark.parametrize("kind", ["objects", "detections"])
def test_healpix_column_is_the_pixel_of_the_object_and_lies_in_the_pixel_of_the_leaf(collection: Collection, kind: str) -> None:
    for name, table in read_member(collection, kind).items():
        pixels = table["_healpix_29"].to_numpy()
        assert (pixels == nested_pixels(table["object_ra"].to_numpy(), table["object_dec"].to_numpy(), 29)).all()
        order, index = (int(part.split("=")[1].removesuffix(".parquet")) for part in (name.split("/")[1], name.split("/")[3]))
        assert set((pixels >> 2 * (29 - order)).tolist()) == {index}
        assert f"Dir={index // 10000 * 10000}/" in name


def test_objects_and_detections_have_the_same_leaves_and_each_object_is_one_slice_of_its_sibling(collection: Collection) -> None:
    objects, rows = read_member(collection, "objects"), read_member(collection, "detections")
    assert list(objects) == list(rows)
    for name, table in objects.items():
        sibling, next_row = rows[name], 0
        for entry in table.to_pylist():
            assert entry["detection_offset"] == next_row
            piece = sibling.slice(next_row, entry["detection_count"])
            for key in ("_healpix_29", "object_id", "object_ra", "object_dec"):
                assert set(piece[key].to_pylist()) == {entry[key]}
            bands = piece["band"].to_pylist()
            assert {band: entry[f"n_{band}"] for band in SPEC.bands} == {band: bands.count(band) for band in SPEC.bands}
            next_row += entry["detection_count"]
        assert next_row == sibling.num_rows


def test_every_object_of_the_files_is_in_exactly_one_leaf(files: dict[int, Any], collection: Collection) -> None:
    ids = np.concatenate([table["object_id"].to_numpy() for table in read_member(collection, "objects").values()])
    truth = np.unique(np.concatenate([columns["StarID"] for _, _, columns in files.values()]))
    assert sorted(ids.tolist()) == truth.tolist()
    assert collection.accounting["objects"] == len(truth)


def test_index_leads_from_every_id_to_its_leaf(collection: Collection) -> None:
    expected = {}
    for name, table in read_member(collection, "objects").items():
        _, order, folder, pixel = name.split("/")
        place = int(order[7:]), int(folder[4:]), int(pixel[5:-8])
        expected |= dict.fromkeys(table["object_id"].to_pylist(), place)
    for member in ("objects", "detections"):
        index = pq.ParquetFile(collection.path / member / f"{member}_id/dataset/index/part.0.parquet").read()
        ids = index["object_id"].to_pylist()
        assert ids == sorted(expected)
        places = zip(*(index[name].to_pylist() for name in ("Norder", "Dir", "Npix")), strict=True)
        assert dict(zip(ids, places, strict=True)) == expected


def test_index_in_several_parts_still_holds_every_id_once(
    survey: Survey, collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_commit, "INDEX_PART_ROWS", 70)
    found = ingest(survey, into=tmp_path / "store")
    parts = sorted((found.path / "objects/objects_id/dataset/index").iterdir())
    assert len(parts) == -(-collection.accounting["objects"] // 70)
    ids = [pq.ParquetFile(part).read()["object_id"].to_pylist() for part in parts]
    for earlier, later in pairwise(ids):
        assert earlier[-1] < later[0]
    together = np.concatenate([table["object_id"].to_numpy() for table in read_member(found, "objects").values()])
    assert sum(ids, []) == sorted(together.tolist())


def test_books_balance_and_are_kept(files: dict[int, Any], collection: Collection) -> None:
    rows = sum(len(columns["Ra"]) for _, _, columns in files.values())
    repeated = second_rows(files)
    assert collection.accounting == {
        "read": rows,
        "stored": rows - len(repeated),
        "rejected": len(repeated),
        "files": len(files),
        "quarantined": 0,
        "input_bytes": sum(path.stat().st_size for _, path, _ in files.values()),
        "objects": len(np.unique(np.concatenate([columns["StarID"] for _, _, columns in files.values()]))),
    }
    listed = collection.rejected
    pairs = list(zip(listed["observation_id"].to_pylist(), listed["source_row"].to_pylist(), strict=True))
    assert pairs == sorted(repeated)


def test_observations_say_for_every_file_what_it_is_and_what_became_of_it(files: dict[int, Any], collection: Collection) -> None:
    repeated = [observation for observation, _ in second_rows(files)]
    table = collection.observations
    assert table["observation_id"].to_pylist() == list(files)
    for entry in table.to_pylist():
        row, path, columns = files[entry["observation_id"]]
        lost = repeated.count(entry["observation_id"])
        assert entry["path"] == path.relative_to(path.parents[1]).as_posix()
        assert entry["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert entry["size_bytes"] == path.stat().st_size
        assert (entry["band"], entry["mjd"]) == (row["Filter"], float(row["MJD"]))
        assert (entry["exposure_s"], entry["airmass"]) == (float(row["Exptime"]), float(row["Airmass"]))
        counts = len(columns["Ra"]), len(columns["Ra"]) - lost, lost
        assert (entry["rows"], entry["rows_stored"], entry["rows_rejected"]) == counts
        assert entry["status"] == "stored"


def test_manifest_lists_every_file_with_its_bytes_digest_and_rows(survey: Survey, collection: Collection) -> None:
    manifest = surveys.check_version(collection.path)
    rows = {entry["path"]: entry.get("rows") for entry in manifest["files"]}
    assert rows["observations.parquet"] == 10
    assert manifest == collection.manifest
    assert (manifest["survey"], manifest["bands"]) == ("synthetic", ["J", "H", "Ks"])
    assert (manifest["survey_digest"], manifest["date"]) == (survey.digest, "2023-11-14T22:13:20Z")


def test_a_second_ingest_of_the_same_input_touches_nothing(survey: Survey, tmp_path: Path) -> None:
    first = ingest(survey, into=tmp_path / "store")
    before = surveys.state_on_disk(tmp_path / "store" / "versions"), (tmp_path / "store" / "current").lstat()
    told: list[str] = []
    second = ingest(survey, into=tmp_path / "store", progress=lambda stage, *_: told.append(stage))
    assert second == first
    assert told == []
    assert (surveys.state_on_disk(tmp_path / "store" / "versions"), (tmp_path / "store" / "current").lstat()) == before


def test_another_rule_makes_a_new_version_and_the_old_one_stays_readable(survey: Survey, tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = ingest(survey, into=store)
    before = fingerprint(first.path)
    rows = first.detections.rows
    rules = survey.store.model_copy(update={"leaf_mb": 0.02})
    second = ingest(survey.model_copy(update={"store": rules}), into=store)
    assert (first.path.name, second.path.name) == ("0001", "0002")
    assert (store / "current").readlink() == Path("versions/0002")
    assert open_collection(store) == second
    assert len(surveys.leaf_paths(second.path / "objects/objects")) > len(surveys.leaf_paths(first.path / "objects/objects"))
    assert fingerprint(first.path) == before
    assert open_collection(store / "versions/0001") == first
    assert first.detections.compute().num_rows == rows
    surveys.check_version(second.path)


def test_texts_and_questions_are_no_reason_for_a_new_version(survey: Survey, tmp_path: Path) -> None:
    first = ingest(survey, into=tmp_path / "store")
    assert ingest(survey.model_copy(update={"description": "something else"}), into=tmp_path / "store") == first


def test_a_file_with_another_content_makes_a_new_version(tmp_path: Path) -> None:
    files = [Observation(1, "J", 1.0, detections([1], [10.0], [0.0])), Observation(2, "Ks", 2.0, detections([1], [10.0], [0.0]))]
    store = tmp_path / "store"
    assert ingest(write_survey(tmp_path / "s", files), into=store).accounting["stored"] == 2
    files[1] = Observation(2, "Ks", 2.0, detections([1, 2], [10.0, 11.0], [0.0, 0.0]))
    found = ingest(write_survey(tmp_path / "s", files), into=store)
    assert (found.path.name, found.accounting["stored"]) == ("0002", 3)


def test_without_resume_a_finished_ingest_is_made_again_with_the_same_leaves(survey: Survey, store: Path, tmp_path: Path) -> None:
    ingest(survey, into=tmp_path / "store")
    again = ingest(survey, into=tmp_path / "store", resume=False)
    assert again.path.name == "0002"
    assert fingerprint(again.path) == fingerprint(open_collection(store).path)


def test_progress_ends_with_all_that_there_is_to_do(survey: Survey, files: dict[int, Any], tmp_path: Path) -> None:
    last: dict[str, tuple[int, int, int]] = {}
    ingest(survey, into=tmp_path / "store", progress=lambda stage, *counts: last.update({stage: counts}))
    assert list(last) == ["map", "plan", "reduce", "commit"]
    assert all(done == total for done, total, _ in last.values())
    assert last["map"][2] == sum(path.stat().st_size for _, path, _ in files.values())


LIMITS = {
    "BATCH_BYTES": stages,
    "CHECK_BYTES": ingest_forecast,
    "RUN_BYTES": ingest_map,
    "BLOCK_BYTES": ingest_map,
    "TASK_BYTES": ingest_plan,
}


@pytest.mark.parametrize("limit", LIMITS)
def test_the_size_of_tasks_and_runs_changes_no_byte_of_the_store(
    survey: Survey, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(LIMITS[limit], limit, 30_000)
    with dask.config.set(scheduler="threads"):
        ingest(survey, into=tmp_path / "store")
    assert fingerprint(tmp_path / "store") == fingerprint(store)


def test_one_task_a_file_and_a_leaf_gives_the_same_store_in_threads(
    survey: Survey, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit, module in LIMITS.items():
        monkeypatch.setattr(module, limit, {"CHECK_BYTES": 100_000, "BLOCK_BYTES": 5_000}.get(limit, 1))
    with dask.config.set(scheduler="threads", num_workers=4):
        ingest(survey, into=tmp_path / "store")
    assert fingerprint(tmp_path / "store") == fingerprint(store)


def test_threads_and_processes_give_the_store_that_one_thread_gives(
    survey: Survey, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "BATCH_BYTES", 60_000)
    with dask.config.set(scheduler="threads"):
        ingest(survey, into=tmp_path / "threads")
    with (
        ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool,
        dask.config.set(scheduler="processes", pool=pool),
    ):
        ingest(survey, into=tmp_path / "processes")
    assert fingerprint(tmp_path / "threads") == fingerprint(store)
    assert fingerprint(tmp_path / "processes") == fingerprint(store)


@pytest.mark.long
def test_a_local_cluster_of_two_workers_gives_the_same_store(
    survey: Survey, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "BATCH_BYTES", 60_000)
    counts: list[tuple[str, int, int]] = []
    with connect(workers=2) as client, dask.config.set(scheduler=None):
        ingest(survey, into=tmp_path / "store", progress=lambda stage, done, total, _: counts.append((stage, done, total)))
        assert len(client.scheduler_info()["workers"]) == 2
    assert fingerprint(tmp_path / "store") == fingerprint(store)
    pixels = max(total for stage, _, total in counts if stage == "reduce")
    assert {("reduce", 0, pixels), ("reduce", pixels, pixels)} <= set(counts)


def test_a_declared_conversion_adds_a_column_and_leaves_the_source_alone(tmp_path: Path) -> None:
    table = detections([1, 2], [0.1, 0.2], [-0.5, 0.5], unit="rad")
    rule = {"role": "ra", "convert": {"name": "ra_deg", "unit": "deg"}}
    survey = write_survey(tmp_path, [Observation(1, "J", 1.0, table)], columns={"Ra": rule})
    rows = pa.concat_tables(read_member(ingest(survey, into=tmp_path / "store"), "detections").values()).sort_by("source_row")
    assert rows["Ra"].to_pylist() == [0.1, 0.2]
    np.testing.assert_allclose(rows["ra_deg"].to_numpy(), np.rad2deg([0.1, 0.2]), rtol=1e-15)
    np.testing.assert_allclose(rows["object_dec"].to_numpy(), np.rad2deg([-0.5, 0.5]), rtol=1e-14)


def test_right_ascension_may_be_negative_or_beyond_a_turn(tmp_path: Path) -> None:
    table = detections([1, 2, 3], [-10.0, 370.0, 360.0], [0.0, 45.0, -45.0])
    rows = pa.concat_tables(
        read_member(
            ingest(write_survey(tmp_path, [Observation(1, "J", 1.0, table)]), into=tmp_path / "store"), "objects"
        ).values()
    ).sort_by("object_id")
    np.testing.assert_allclose(rows["object_ra"].to_numpy(), [350.0, 10.0, 0.0], atol=1e-12)
    assert rows["object_ra"].to_numpy().max() < 360.0


@pytest.mark.parametrize("id_type", [pa.int16(), pa.int32(), pa.float32(), pa.float64(), pa.uint8()], ids=str)
def test_ids_of_every_numeric_type_become_64_bit_integers(tmp_path: Path, id_type: pa.DataType) -> None:
    table = detections([7, 3, 101], [10.0, 20.0, 30.0], [0.0, 0.0, 0.0], id_type=id_type)
    found = ingest(write_survey(tmp_path, [Observation(1, "J", 1.0, table)]), into=tmp_path / "store")
    rows = pa.concat_tables(read_member(found, "detections").values())
    assert rows.schema.field("object_id").type == pa.int64()
    assert rows.schema.field("StarID").type == id_type
    assert sorted(rows["object_id"].to_pylist()) == [3, 7, 101]


def test_negative_and_large_ids_are_kept_exactly(tmp_path: Path) -> None:
    ids = [-(2**63), -1, 0, 2**53 + 1, 2**62 + 1]
    table = detections(ids, [10.0, 20.0, 30.0, 40.0, 50.0], np.zeros(5))
    found = ingest(write_survey(tmp_path, [Observation(1, "J", 1.0, table)]), into=tmp_path / "store")
    rows = pa.concat_tables(read_member(found, "objects").values())
    assert sorted(rows["object_id"].to_pylist()) == ids
    index = pq.ParquetFile(found.path / "objects/objects_id/dataset/index/part.0.parquet").read()
    assert index["object_id"].to_pylist() == ids


def test_observations_of_one_band_and_time_are_told_apart_by_their_id(tmp_path: Path) -> None:
    table = detections([1], [10.0], [0.0])
    files = [Observation(i, "J", 5.0, table) for i in (10, 9, 2)]
    rows = read_member(ingest(write_survey(tmp_path, files), into=tmp_path / "store"), "detections")
    assert [table["observation_id"].to_pylist() for table in rows.values()] == [[2, 9, 10]]


def test_what_a_store_says_about_itself_can_be_read_without_it(store: Path) -> None:
    manifest = json.loads((store / "current" / "manifest.json").read_text())
    described = json.loads((store / "current" / "survey.json").read_text())
    assert Survey.model_validate(described).digest == manifest["survey_digest"]
    assert (store / "work").exists() is False or list((store / "work").iterdir()) == []
