"""Faults of ingest that adversarial tests found; each stays found."""

from __future__ import annotations

import shutil
import time
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from surveys import Observation, check_store, detections, fingerprint, read_member, write_survey
from test_ingest_sky import Sky, check, corner, moved

from scalable.catalog import collection as collection_module
from scalable.catalog import ingest as stages
from scalable.catalog.ingest import ingest
from scalable.cluster import connect, run_tasks
from scalable.errors import InputError, ScalableError, StoreError


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with dask.config.set(scheduler="sync"):
        yield


def one(tmp_path, *tables, **options):
    files = [Observation(n, "J" if n % 2 else "Ks", float(n), t) for n, t in enumerate(tables, start=1)]
    return write_survey(tmp_path, files, **options)


def _same(item, a, runs):
    return (item, a, runs)


def test_cluster_run_tasks_twice_with_the_same_shared_values(tmp_path):
    runs = (("a", 1, 2), ("b", 3, 4))
    with connect(workers=2), dask.config.set(scheduler=None):
        for _ in range(5):
            assert run_tasks(_same, range(2), "s", runs) == [(0, "s", runs), (1, "s", runs)]


@pytest.mark.long
def test_a_local_cluster_gives_the_same_store_from_tasks_of_one_file(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "BATCH_BYTES", 1)
    survey = one(tmp_path, *[detections(range(40), np.arange(40) * 5.0, np.linspace(-80, 80, 40))] * 4, leaf_mb=0.001)
    ingest(survey, into=tmp_path / "here")
    with connect(workers=2) as client, dask.config.set(scheduler=None):
        ingest(survey, into=tmp_path / "there")
        assert len(client.scheduler_info()["workers"]) == 2
    assert fingerprint(tmp_path / "there") == fingerprint(tmp_path / "here")


def test_stale_work_of_a_run_killed_while_it_cleaned_up_gives_a_version_without_leaves(tmp_path, monkeypatch):
    survey = one(tmp_path, detections([5, 6], [10.0, 20.0], [0.0, 0.0]))
    other = survey.model_copy(update={"store": survey.store.model_copy(update={"margin_arcsec": 4.0})})
    with monkeypatch.context() as patch:

        def die(*_: Any, **__: Any):
            raise KeyboardInterrupt

        patch.setattr(collection_module.shutil, "rmtree", die)
        with pytest.raises(KeyboardInterrupt):
            ingest(survey, into=tmp_path / "store")
    ingest(other, into=tmp_path / "store")
    ingest(survey, into=tmp_path / "store")
    check_store(tmp_path / "store").objects.compute()


def test_half_removed_work_gives_a_version_without_leaves(tmp_path, monkeypatch):
    survey = one(tmp_path, detections([5, 6], [10.0, 20.0], [0.0, 0.0]))
    with monkeypatch.context() as patch:

        def die(*_: Any, **__: Any):
            raise KeyboardInterrupt

        patch.setattr(stages, "commit_version", die)
        with pytest.raises(KeyboardInterrupt):
            ingest(survey, into=tmp_path / "store")
    [version] = (tmp_path / "store" / "work").glob("*/version")
    shutil.rmtree(version)
    ingest(survey, into=tmp_path / "store")
    check_store(tmp_path / "store")


def test_wide_object_with_its_mean_far_from_all_detections(tmp_path):
    survey = one(tmp_path, detections([0, 1], [10.0, 50.0], [0.0, 0.0]), detections([0, 1], [200.0, 50.0], [70.0, 0.0]))
    assert ingest(survey, into=tmp_path / "store").accounting["stored"] == 4


@pytest.mark.parametrize("step", range(8))
def test_mean_in_an_empty_cell_of_a_crowded_place(tmp_path, step):
    place = corner(10, 12345678, 0)
    left, right = (moved(place, angle + 45 * step, 1.0) for angle in (0, 180))
    pair = [(7, file, *moved(at, 90 + 45 * step, 0.1)) for file, at in enumerate((left, right))]
    crowd = [(number, number % 2, *(left, right)[number % 2]) for number in (1000, 1001, 1002, 1003)]
    check(Sky((*pair, *crowd), 5.0, 1.0), tmp_path)


def test_ids_up_to_the_largest_are_in_the_index(tmp_path):
    ids = [-(2**63), -1, 5, 2**63 - 2, 2**63 - 1]
    found = ingest(one(tmp_path, detections(ids, [10.0, 20.0, 30.0, 40.0, 50.0], np.zeros(5))), into=tmp_path / "store")
    index = pq.ParquetFile(found.path / "objects/objects_id/dataset/index/part.0.parquet").read()
    assert index["object_id"].to_pylist() == ids


def test_a_sentinel_becomes_a_null_with_its_state(tmp_path):
    table = detections([1, 2, 3], np.arange(3.0), np.zeros(3), Flux=pa.array([1.5, -9.999, np.nan], pa.float32()))
    rule = {"role": "flux", "nulls": [{"value": -9.999, "state": "non_detection"}], "null_state": "not_observed"}
    found = ingest(one(tmp_path, table, columns={"Flux": rule}), into=tmp_path / "store")
    rows = pa.concat_tables(read_member(found, "detections").values()).sort_by("source_row")
    assert rows["Flux"].to_pylist() == [1.5, None, None]
    assert rows["Flux_state"].to_pylist() == [0, 1, 2]


@pytest.mark.parametrize("name", ["object_id", "band", "mjd", "source_row", "_work_ra", "_healpix_29", "MJD"])
def test_an_undeclared_column_that_clashes_with_ours_is_refused_by_name(tmp_path, name):
    table = detections([5, 6], [10.0, 20.0], [0.0, 0.0]).append_column(name, pa.array([100.0, 100.0]))
    with pytest.raises(ScalableError, match=f"1-J.fits.*{name}"):
        ingest(one(tmp_path, table), into=tmp_path / "store")


def test_files_with_another_unit_in_an_undeclared_unit_column_are_not_mixed(tmp_path):
    rad, deg = detections([5], [1.0], [0.5], unit="rad"), detections([5], [np.rad2deg(1.0)], [np.rad2deg(0.5)])
    found = ingest(one(tmp_path, rad, deg), into=tmp_path / "store")
    [table] = read_member(found, "detections").values()
    assert len(set(table["Ra"].to_pylist())) == 1


def test_one_odd_first_file_does_not_set_all_others_aside(tmp_path):
    normal = detections([5], [1.0], [0.5])
    odd = normal.append_column("Extra", pa.array([1.0]))
    assert ingest(one(tmp_path, odd, *[normal] * 6), into=tmp_path / "store").accounting["quarantined"] == 1


def test_two_observations_with_one_file_are_refused(tmp_path):
    survey = one(tmp_path, detections([5], [1.0], [0.5]), detections([5], [1.0], [0.5]))
    template = survey.files.templates[0].model_copy(update={"path": "tables/1-J.fits"})
    survey = survey.model_copy(update={"files": survey.files.model_copy(update={"templates": (template,)})})
    with pytest.raises(ScalableError, match="1-J.fits"):
        ingest(survey, into=tmp_path / "store")


def test_paths_in_rejected_are_of_one_kind_and_do_not_depend_on_where_the_survey_lies(tmp_path):
    table = detections([5, 5, 6], [1.0, 1.0, 2.0], [0.5, 0.5, 99.0])
    found = ingest(one(tmp_path, table), into=tmp_path / "store")
    assert set(found.rejected["path"].to_pylist()) == {"tables/1-J.fits"}


def test_a_row_without_id_is_not_listed_as_object_0(tmp_path):
    table = detections([1.0, np.nan], [1.0, 1.0], [0.5, 0.5], id_type=pa.float64())
    found = ingest(one(tmp_path, table), into=tmp_path / "store")
    assert found.rejected["object_id"].to_pylist() == [None]


def test_wide_counts_only_stored_detections(tmp_path):
    found = ingest(
        one(tmp_path, detections([5, 5], [1.0, 1.0], [0.5, 0.5]), detections([5], [1.0], [0.51])), into=tmp_path / "store"
    )
    assert pq.ParquetFile(found.path / "wide_objects.parquet").read()["detections"].to_pylist() == [2]


def test_poles_in_single_precision_radians_are_stored(tmp_path):
    table = detections([1, 2], [1.0, 2.0], [0.0, 0.0], unit="rad")
    half = pa.array([np.float32(np.pi / 2), np.float32(-np.pi / 2)], pa.float32())
    table = table.set_column(2, table.schema.field("Dec").with_type(pa.float32()), half)
    assert ingest(one(tmp_path, table), into=tmp_path / "store").accounting["stored"] == 2


@pytest.mark.parametrize("kind", ["vector", "text"])
def test_a_position_column_that_is_no_number_is_an_input_error_naming_file_and_column(tmp_path, kind):
    survey = one(tmp_path, None)
    ra = fits.Column("Ra", "2D", array=np.zeros((2, 2))) if kind == "vector" else fits.Column("Ra", "9A", array=["x", "y"])
    fits.BinTableHDU.from_columns(
        [
            fits.Column("StarID", "K", array=[1, 2]),
            ra,
            fits.Column("Dec", "D", array=[1.0, 2.0]),
            fits.Column("Flux", "E", array=[1.0, 2.0]),
        ]
    ).writeto(tmp_path / "tables/1-J.fits")
    with pytest.raises(InputError, match="1-J.fits.*Ra"):
        ingest(survey, into=tmp_path / "store")


@pytest.mark.parametrize("obstacle", ["work", "current"])
def test_an_obstacle_inside_the_store_is_a_store_error(tmp_path, obstacle):
    (tmp_path / "store").mkdir()
    if obstacle == "work":
        (tmp_path / "store/work").write_text("")
    else:
        (tmp_path / "store/current").mkdir()
    with pytest.raises(StoreError, match=obstacle):
        ingest(one(tmp_path, detections([5], [1.0], [0.5])), into=tmp_path / "store")


def test_tables_without_rows_are_not_called_rejected(tmp_path):
    with pytest.raises(InputError) as caught:
        ingest(one(tmp_path, detections([5], [1.0], [0.5]).slice(0, 0)), into=tmp_path / "store")
    assert "every row was rejected" not in str(caught.value)


def test_work_of_an_abandoned_run_is_removed_by_the_next_commit(tmp_path, monkeypatch):
    survey = one(tmp_path, detections([5], [1.0], [0.5]))
    with monkeypatch.context() as patch:

        def die(*_: Any, **__: Any):
            raise KeyboardInterrupt

        patch.setattr(stages, "commit_version", die)
        with pytest.raises(KeyboardInterrupt):
            ingest(survey, into=tmp_path / "store")
    other = survey.model_copy(update={"store": survey.store.model_copy(update={"margin_arcsec": 4.0})})
    ingest(other, into=tmp_path / "store")
    assert not (tmp_path / "store" / "work").exists()


def test_a_link_that_was_not_moved_into_place_is_removed_by_the_next_run(tmp_path, monkeypatch):
    survey = one(tmp_path, detections([5], [1.0], [0.5]))
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / ".tmp-0123456789ab-current").symlink_to("versions/0001")  # what SIGKILL inside point() leaves
    ingest(survey, into=tmp_path / "store")
    assert list((tmp_path / "store").glob(".tmp-*")) == []


def test_an_ingest_of_one_id_for_everything_does_not_take_quadratic_time(tmp_path):
    took = []
    for n in (20_000, 80_000):
        survey = one(tmp_path / str(n), detections(np.zeros(n, dtype=np.int64), np.linspace(10, 11, n), np.zeros(n)))
        start = time.monotonic()
        ingest(survey, into=tmp_path / str(n) / "store")
        took.append(time.monotonic() - start)
    assert took[1] < 8 * took[0]
