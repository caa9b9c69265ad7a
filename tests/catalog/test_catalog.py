"""The lazy table: nothing computes when a verb is called, and the partitioning never shows in an answer."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pytest
from dask.base import is_dask_collection

from scalable.catalog.bands import join_bands
from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.collection import Collection
from scalable.catalog.impute import impute
from scalable.catalog.light_curves import KEYS
from scalable.catalog.search import cone_search, id_search, polygon_search
from scalable.catalog.sql import sql
from scalable.catalog.steps import columns_needed
from scalable.catalog.undo import undo
from scalable.catalog.variability import variability
from scalable.catalog.write import write_catalog
from scalable.catalog.zero_points import calibrate
from scalable.cluster import connect
from scalable.errors import ColumnError, QueryError, StoreError
from scalable.io.parquet import read_leaf
from scalable.testing import Computed, no_compute

ZERO_POINTS = pa.table({"observation_id": range(1, 20), "flux_ratio": np.linspace(0.5, 2, 19)})

VERBS: dict[str, Callable[[Catalog], Catalog]] = {
    "where": lambda d: d.where("Flux1 / dFlux1 > 20 and Class = -1"),
    "select": lambda d: d.select("object_id", "Mag1"),
    "join_bands": lambda d: join_bands(d, values=["Mag1", "dMag1"]),
    "variability": lambda d: variability(d, bands=["Ks"]),
    "calibrate": lambda d: variability(calibrate(d, ZERO_POINTS, values=["Flux1"]), bands=["Ks"]),
    "impute": lambda d: impute(d, "Mag1", pa.table({"band": ["J", "Ks"], "fill_value": [15.5, 14.0]})),
    "undo": lambda d: undo(calibrate(d, ZERO_POINTS, values=["Flux1"]).where("Flux1 > 100"), "calibrate"),
    "cone_search": lambda d: cone_search(d, ra_deg=269.5, dec_deg=-30.0, radius_arcsec=600),
    "polygon_search": lambda d: polygon_search(d, vertices_deg=[(268.6, -30.1), (269.2, -30.0), (268.8, -29.7)]),
    "nest": lambda d: d.select(*KEYS, "band", "Mag1").nest(),
    "sql spread": lambda d: sql(d, "SELECT stddev(Mag1) AS s, variance(mjd) AS v, max(Mag1) AS m FROM catalog WHERE Class = -1"),
    "sql rows": lambda d: sql(d, "SELECT object_id, Mag1 - Mag2 AS growth FROM catalog WHERE Mag1 < 16"),
    "sql sums": lambda d: sql(d, "SELECT band, count(*) AS n, avg(Mag1) AS mean, sum(Flux1) AS total FROM catalog GROUP BY band"),
    "where after join": lambda d: join_bands(d, values=["Mag1"], pick="first", how="inner").where("J_Mag1 - H_Mag1 > 0.5"),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_verb_computes_nothing_until_it_is_asked_to(synthetic: Collection, verb: Callable[[Catalog], Catalog]) -> None:
    with no_compute():
        lazy = verb(synthetic.detections.repartition(3))
        repr(lazy), lazy._repr_html_(), lazy.npartitions, lazy.columns
        with pytest.raises(Computed):
            lazy.compute()
    assert lazy.compute().num_rows > 0


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_one_three_and_twelve_partitions_give_the_same_answer(synthetic: Collection, verb: Callable[[Catalog], Catalog]) -> None:
    detections = synthetic.detections
    assert len(detections.leaves) >= 12
    answers = []
    for partitions in (1, 3, 12):
        cut = detections.repartition(partitions)
        assert cut.npartitions == partitions
        answers.append(verb(cut).compute(scheduler="threads"))
    assert answers[0].num_rows > 0
    assert answers[1].equals(answers[0])
    assert answers[2].equals(answers[0])


def test_threads_processes_and_a_cluster_give_the_same_answer(synthetic: Collection) -> None:
    lazy = {name: verb(synthetic.detections.repartition(3)) for name, verb in VERBS.items()}
    threads = {name: catalog.compute(scheduler="threads") for name, catalog in lazy.items()}
    with dask.config.set(scheduler="processes", num_workers=2):
        for name, table in zip(lazy, dask.compute(*lazy.values()), strict=True):
            assert table.equals(threads[name]), name
    with connect(workers=2) as client:
        for name, catalog in lazy.items():
            assert catalog.compute().equals(threads[name]), name
        again = connect(client.scheduler.address)
        assert lazy["where"].compute().equals(threads["where"])
        again.close()


def test_a_verb_has_one_task_per_partition(synthetic: Collection) -> None:
    cut = synthetic.detections.repartition(7)
    for name, verb in VERBS.items():
        lazy = verb(cut)
        tasks = len(lazy.__dask_graph__())
        # Combining partial results takes two more: the combination, and its hand-over as a partition.
        combined = name in ("sql sums", "sql spread")
        assert tasks == (7 + 2 if combined else lazy.npartitions)


def test_only_columns_that_are_needed_are_read(synthetic: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    lazy = variability(synthetic.detections.where("Class = -1"), ["Mean"], bands=["Ks"]).select("object_id", "Ks_Flux1Mean")
    needed = columns_needed(lazy.chain.steps, lazy.schema.names)
    assert set(needed) == {"object_id", "band", "Flux1", "dFlux1", "Class"}
    read = record_reads(monkeypatch)
    lazy.compute(scheduler="sync")
    assert {columns for _, columns in read} == {tuple(needed)}


def record_reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Path, tuple[str, ...]]]:
    """Return a list that fills with the path and columns of every leaf that is read from now on."""
    read: list[tuple[Path, tuple[str, ...]]] = []

    def recorded(path: Path, columns: list[str], **options: Any) -> pa.Table:
        read.append((path, tuple(columns)))
        return read_leaf(path, columns, **options)

    monkeypatch.setattr("scalable.catalog.steps.read_leaf", recorded)
    return read


def test_a_catalogue_is_a_dask_collection_that_persists_and_goes_on(synthetic: Collection) -> None:
    lazy = synthetic.detections.repartition(3)
    assert is_dask_collection(lazy)
    persisted = lazy.persist(scheduler="threads")
    assert persisted.where("Mag1 < 15").compute(scheduler="threads").equals(lazy.where("Mag1 < 15").compute(scheduler="threads"))
    assert pickle.loads(pickle.dumps(lazy)).compute(scheduler="threads").equals(lazy.compute(scheduler="threads"))


def test_a_verb_leaves_its_argument_alone(synthetic: Collection) -> None:
    detections = synthetic.detections
    before = (detections.chain, detections.schema, detections.partitions)
    for verb in VERBS.values():
        verb(detections)
    assert (detections.chain, detections.schema, detections.partitions) == before


def test_head_reads_only_the_leaves_it_needs(synthetic: Collection, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = synthetic.detections.compute(scheduler="sync")
    read = record_reads(monkeypatch)
    assert synthetic.detections.head(7).equals(whole.slice(0, 7))
    assert len(read) == 1
    assert synthetic.detections.where("Mag1 < -100").head(3).num_rows == 0


def test_pandas_and_dask_frames_keep_nulls_and_partitions(synthetic: Collection) -> None:
    lazy = synthetic.detections.select("object_id", "Mag1").repartition(3)
    table = lazy.compute()
    assert table["Mag1"].null_count > 0
    frame = lazy.to_pandas()
    assert frame["Mag1"].isna().sum() == table["Mag1"].null_count
    assert frame["object_id"].to_list() == table["object_id"].to_pylist()
    with no_compute():
        lazy_frame = lazy.to_dask()
    assert lazy_frame.npartitions == 3
    assert lazy_frame.compute(scheduler="sync").reset_index(drop=True).equals(frame)


def test_repr_shows_columns_units_rows_and_what_is_pending(synthetic: Collection) -> None:
    shown = repr(synthetic.detections.where("Mag1 < 15").select("Mag1"))
    assert "Mag1" in shown
    assert "mag" in shown
    assert "pending: where Mag1 < 15" in shown
    assert f"{synthetic.accounting['stored']:,} rows" in repr(synthetic.detections)
    assert "<table>" in synthetic.objects._repr_html_()
    assert "objects" in repr(synthetic)


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        ("Flx1 > 3", ColumnError, "did you mean 'Flux1'"),
        ("Flux1 >", QueryError, "not SQL"),
        ("Flux1 > (SELECT 1)", QueryError, "not allowed"),
        ("count(*) > 3", QueryError, "whole query"),
        ("1 = 1; DROP TABLE x", QueryError, "one statement"),
        ("Flux1 > 1, Flux2 > 1", QueryError, "one condition"),
        ("Flux1 > 1 ORDER BY 1", QueryError, "one condition"),
        ("read_text('/etc/passwd') = ''", QueryError, "not allowed"),
        ("Mag1 > 1 FROM read_csv('/etc/passwd')", QueryError, "one condition"),
    ],
)
def test_a_condition_that_is_none_is_refused_at_once(
    synthetic: Collection, condition: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        synthetic.detections.where(condition)


def test_null_is_not_true_and_division_by_zero_is_null(synthetic: Collection) -> None:
    detections = synthetic.detections
    rows = detections.compute().num_rows
    nulls = detections.select("Mag1").compute()["Mag1"].null_count
    assert detections.where("Mag1 > 0 or Mag1 <= 0").compute().num_rows == rows - nulls
    assert detections.where("Flux1 / (Class - Class) > 0").compute().num_rows == 0


def test_selecting_or_opening_with_a_wrong_name_names_the_nearest(synthetic: Collection) -> None:
    with pytest.raises(ColumnError, match="did you mean 'Mag1'"):
        synthetic.detections.select("mag1")
    with pytest.raises(StoreError, match="HATS"):
        open_catalog(synthetic.path)
    assert open_catalog(synthetic.path / "objects", columns=["object_id"]).schema.names == ["object_id"]


def test_cone_search_finds_what_great_circles_find_and_drops_far_leaves(synthetic: Collection) -> None:
    objects = synthetic.objects.compute()
    ra, dec = (np.radians(objects[name].to_numpy()) for name in ("object_ra", "object_dec"))
    centre = ra[7], dec[7]
    haversine = np.sin((dec - centre[1]) / 2) ** 2 + np.cos(dec) * np.cos(centre[1]) * np.sin((ra - centre[0]) / 2) ** 2
    distance = np.degrees(2 * np.arcsin(np.sqrt(haversine))) * 3600
    inside = objects["object_id"].to_numpy()[distance <= 200]
    assert 1 < len(inside) < objects.num_rows / 4
    cone = cone_search(synthetic.objects, ra_deg=np.degrees(centre[0]), dec_deg=np.degrees(centre[1]), radius_arcsec=200)
    assert set(cone.compute()["object_id"].to_pylist()) == set(inside.tolist())
    assert len(cone.leaves) < len(synthetic.objects.leaves)


def test_id_search_reads_only_the_leaves_that_hold_the_ids(synthetic: Collection) -> None:
    ids = synthetic.objects.compute()["object_id"].to_pylist()
    wanted = [ids[3], ids[-1], -12345]
    found = id_search(synthetic, wanted)
    assert sorted(found.compute()["object_id"].to_pylist()) == sorted(wanted[:2])
    assert len(found.leaves) <= 2
    light_curve = id_search(synthetic.detections, wanted[:1]).compute()
    assert light_curve.equals(synthetic.detections.where(f"object_id = {wanted[0]}").compute())


def test_a_result_writes_back_as_a_catalogue_and_reads_back_equal(synthetic: Collection, tmp_path: Path) -> None:
    lazy = variability(synthetic.detections.repartition(3))
    with dask.config.set(scheduler="threads"):
        written = write_catalog(lazy, tmp_path / "statistics")
        assert written.compute().equals(lazy.compute())
        assert written.columns == lazy.columns
        with pytest.raises(StoreError, match="exists already"):
            write_catalog(lazy, tmp_path / "statistics")
        with pytest.raises(StoreError, match="combined"):
            write_catalog(sql(synthetic, "SELECT count(*) AS n FROM objects"), tmp_path / "count")
        with pytest.raises(ColumnError, match="position"):
            write_catalog(lazy.select("object_id"), tmp_path / "ids")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["statistics"]
