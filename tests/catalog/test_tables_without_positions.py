"""Tables without positions: stored as blocks of rows, the same books and promises, everything but the verbs of the sky."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from surveys import fingerprint
from test_ingest_failures import Killer

import scalable
from scalable.catalog import ingest as stages
from scalable.catalog import ingest_map, ingest_rows
from scalable.catalog.append import append
from scalable.catalog.append_plan import plan_append
from scalable.catalog.check import check
from scalable.catalog.collection import Collection, open_collection
from scalable.catalog.ingest import ingest
from scalable.catalog.versions import list_versions
from scalable.cli.console import QUARANTINED
from scalable.cli.main import main
from scalable.errors import ColumnError, InputError, QueryError, StoreError, SurveyError
from scalable.io.delimited import DelimitedTable
from scalable.io.parquet import cut_blocks
from scalable.survey.read import open_survey
from scalable.testing import no_compute


@pytest.fixture(autouse=True)
def _here_and_at_a_fixed_date(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with dask.config.set(scheduler="sync"):
        yield


def describe(folder: Path, root: Path, glob: str, format: str, **more: Any) -> Path:
    """Write a description of tables without positions, and nothing more than it needs."""
    described = {"survey": "photoz", "root": str(root), "files": {"glob": glob, "format": format}, "columns": {}} | more
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "survey.yaml").write_text(json.dumps(described))
    return folder / "survey.yaml"


# Real training sets ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TrainingSet:
    """A real training set: its files and format, and its names and values as another reader gives them."""

    folder: str
    glob: str
    format: str
    names: Sequence[str]

    def values(self, path: Path) -> NDArray[np.float64]:
        """Return the table, shape (rows, columns), by a reader that is not ours."""
        return np.loadtxt(path)


MGS = "photoz/sdss_mgs_mlz"
COLOURS = ["u-g", "g-r", "r-i", "i-z"]
SETS = {
    # 18 names stand over 19 columns.
    "SDSS train": TrainingSet(MGS, "*.train", "text", [f"col{n}" for n in range(1, 20)]),
    "SDSS test": TrainingSet(MGS, "*.test", "text", ["zs", *"ugriz", *COLOURS, *(f"e{name}" for name in [*"ugriz", *COLOURS])]),
}


@pytest.mark.parametrize("name", SETS)
def test_a_real_training_set_comes_back_as_another_reader_gives_it(data: Path, tmp_path: Path, name: str) -> None:
    known = SETS[name]
    root = data / known.folder
    survey = open_survey(describe(tmp_path, root, known.glob, known.format, store={"leaf_mb": 0.3}))
    found = ingest(survey, into=tmp_path / "store")
    [path] = root.glob(known.glob)
    expected = known.values(path)
    table = found.rows.compute()
    assert table.column_names == ["observation_id", "source_row", *known.names]
    assert np.array_equal(np.column_stack([table[column].to_numpy() for column in known.names]), expected)
    assert table["source_row"].to_pylist() == list(range(len(expected)))
    assert len(found.rows.leaves) > 1
    assert found.accounting["read"] == found.accounting["stored"] == len(expected) == found.rows.rows
    first = known.names[0]
    limit = float(np.median(expected[:, 0]))
    answer = scalable.sql(found, f'SELECT count(*) AS n, sum("{first}") AS total FROM rows WHERE "{first}" > {limit}').compute()
    assert scalable.sql(found, f'SELECT "{first}" FROM {path.stem}').compute()[first].equals(table[first])
    chosen = expected[expected[:, 0] > limit, 0]
    assert answer["n"].to_pylist() == [len(chosen)]
    assert answer["total"][0].as_py() == pytest.approx(chosen.sum())


def test_training_files_with_other_names_are_not_mixed_silently(data: Path, tmp_path: Path) -> None:
    survey = open_survey(describe(tmp_path, data / MGS, "SDSS_MGS.*", "text"))
    found = ingest(survey, into=tmp_path / "store")
    [reason] = quarantine(found).values()
    assert re.search(r"has a column '(col1|zs)' that the other files have not", reason)
    assert found.accounting["stored"] == 5000


# By hand --------------------------------------------------------------------------------------------------------------------


TEN_ROWS_MB = 10.5 * 41 / 1e6
"""Size of a block that holds ten rows of the tables below: five columns of 8 bytes and a state of one."""


def write_tables(
    folder: Path, sizes: Sequence[int], *, declare: dict[str, Any] | None = None, leaf_mb: float = TEN_ROWS_MB
) -> Path:
    """Write one CSV file a size, with an id, a redshift and a magnitude with sentinels, and their description."""
    tables = folder / "tables"
    tables.mkdir(parents=True, exist_ok=True)
    start = 0
    for number, size in enumerate(sizes, start=1):
        ids = np.arange(start, start + size)
        start += size
        lines = [f"{i},{i / 8},{99 if i % 5 == 0 else 20 + i / 16}" for i in ids]
        (tables / f"{number}.csv").write_text("\n".join(["Id,z,Mag", *lines]) + "\n")
    columns = {"Mag": {"role": "mag", "unit": "mag", "nulls": [{"value": 99, "state": "non_detection"}]}}
    return describe(
        folder,
        tables,
        "*.csv",
        "csv",
        observations={"pattern": r"(?P<id>\d+)"},
        columns=columns | {"Id": {"role": "object_id"}} | (declare or {}),
        store={"leaf_mb": leaf_mb},
    )


def quarantine(collection: Collection) -> dict[str, str]:
    with (collection.path / "quarantine.csv").open(newline="") as file:
        return {row["path"]: row["reason"] for row in csv.DictReader(file)}


def check_rows(collection: Collection) -> None:
    """Hold a version against its manifest with Parquet's own reader."""
    listed = {entry["path"]: entry for entry in collection.manifest["files"]}
    present = {path.relative_to(collection.path).as_posix() for path in collection.path.rglob("*") if path.is_file()}
    assert present == {*listed, "manifest.json"}
    blocks = [name for name in listed if name.startswith("rows/") and name.endswith(".parquet")]
    assert sum(pq.read_metadata(collection.path / name).num_rows for name in blocks) == collection.accounting["stored"]
    for name, digest in fingerprint(collection.path).items():
        assert name not in listed or listed[name]["sha256"] == digest


def test_rows_come_back_in_the_order_of_the_files_with_nulls_states_and_units(tmp_path: Path) -> None:
    found = ingest(open_survey(write_tables(tmp_path, [25, 0, 7])), into=tmp_path / "store")
    table = found.rows.compute()
    ids = np.arange(32)
    assert table["Id"].to_pylist() == ids.tolist()
    assert table["observation_id"].to_pylist() == [1] * 25 + [3] * 7
    assert table["source_row"].to_pylist() == [*range(25), *range(7)]
    assert table["Mag"].to_pylist() == [None if i % 5 == 0 else 20 + i / 16 for i in ids]
    assert table["Mag_state"].to_pylist() == [1 if i % 5 == 0 else 0 for i in ids]
    assert found.manifest["nulls"] == {"Mag": 7}
    assert [leaf.rows for leaf in found.rows.leaves] == [10, 10, 5, 7]
    assert found.rows.columns["Mag"].unit == "mag"
    assert Table.read(found.path / "rows/_common_metadata", format="parquet.votable")["Mag"].unit == "mag"
    assert found.observations.select(["path", "rows", "rows_stored", "band", "mjd", "epoch"]).to_pylist() == [
        {"path": f"{n}.csv", "rows": size, "rows_stored": size, "band": None, "mjd": None, "epoch": None}
        for n, size in ((1, 25), (2, 0), (3, 7))
    ]
    assert pq.read_table(found.path / "rows").num_rows == 32
    check_rows(found)


@given(st.lists(st.integers(0, 12), max_size=8), st.integers(1, 9))
def test_blocks_hold_the_same_rows_however_the_reader_cuts_them(sizes: list[int], rows: int) -> None:
    values = pa.table({"x": pa.array(range(sum(sizes)), pa.int64())})
    starts = np.cumsum([0, *sizes[:-1]]) if sizes else []
    blocks = list(cut_blocks([values.slice(a, n) for a, n in zip(starts, sizes, strict=True)], rows))
    assert [block.num_rows for block in blocks[:-1]] == [rows] * (len(blocks) - 1)
    assert all(0 < block.num_rows <= rows for block in blocks)
    assert [x for block in blocks for x in block["x"].to_pylist()] == list(range(sum(sizes)))


def test_a_block_is_written_as_soon_as_it_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = open_survey(write_tables(tmp_path, [500]))
    balance: list[int] = [0]
    scan, write = DelimitedTable.scan, ingest_rows.write_leaf

    def in_small_pieces(self: DelimitedTable, source: Any, **options: Any) -> Iterator[pa.Table]:
        for block in scan(self, source, **options | {"block_bytes": 60}):
            balance.append(balance[-1] + block.num_rows)
            yield block

    def written(table: pa.Table, *place: Any) -> Any:
        balance.append(balance[-1] - table.num_rows)
        return write(table, *place)

    monkeypatch.setattr(DelimitedTable, "scan", in_small_pieces)
    monkeypatch.setattr(ingest_rows, "write_leaf", written)
    ingest(survey, into=tmp_path / "store")
    pieces = [b - a for a, b in zip(balance, balance[1:], strict=False) if b > a]
    assert len(pieces) > 50
    assert max(balance) < 10 + max(pieces)
    assert balance[-1] == 0


def test_verbs_are_lazy_and_give_what_numpy_gives(tmp_path: Path) -> None:
    found = ingest(open_survey(write_tables(tmp_path, [25, 30])), into=tmp_path / "store")
    with no_compute():
        bright = found.rows.where("Mag < 21 and z > 0.5").select("Id", "z")
        counted = scalable.sql(found, "SELECT observation_id, count(*) AS n, avg(z) AS z FROM rows GROUP BY observation_id")
        joined = scalable.sql(found, "SELECT o.path, r.z FROM rows r JOIN observations o USING (observation_id) WHERE r.Id = 30")
        again = scalable.sql(bright, "SELECT max(z) AS z FROM catalog")
        assert repr(found.rows).startswith("<Catalog rows: 55 rows, 6 columns, 1 partitions, 6 leaves>")
    ids = np.arange(55)
    chosen = ids[(ids % 5 != 0) & (20 + ids / 16 < 21) & (ids / 8 > 0.5)]
    assert bright.compute().to_pydict() == {"Id": chosen.tolist(), "z": (chosen / 8).tolist()}
    assert sorted(counted.compute().to_pylist(), key=lambda row: row["n"]) == [
        {"observation_id": 1, "n": 25, "z": 1.5},
        {"observation_id": 2, "n": 30, "z": pytest.approx(ids[25:].mean() / 8)},
    ]
    assert joined.compute().to_pylist() == [{"path": "2.csv", "z": 3.75}]
    assert again.compute()["z"].to_pylist() == [chosen.max() / 8]
    assert found.rows.head(12)["Id"].to_pylist() == list(range(12))
    with no_compute():
        split = found.rows.repartition(3)
    assert split.npartitions == 3
    assert split.compute().equals(found.rows.compute())
    assert open_collection(tmp_path / "store").rows.compute().equals(found.rows.compute())
    assert scalable.open_catalog(found.path / "rows", columns=["z"]).compute().num_rows == 55


def test_verbs_of_the_sky_say_that_there_are_no_positions(tmp_path: Path) -> None:
    found = ingest(open_survey(write_tables(tmp_path, [5])), into=tmp_path / "store")
    reason = "needs positions, and rows has none; where\\(\\), select\\(\\) and sql\\(\\) work on it"
    with pytest.raises(ColumnError, match=f"cone_search {reason}"):
        scalable.cone_search(found.rows, ra_deg=1.0, dec_deg=2.0, radius_arcsec=3.0)
    with pytest.raises(ColumnError, match=f"id_search {reason}"):
        scalable.id_search(found.rows, [1])
    with pytest.raises(ColumnError, match=f"join_bands {reason}"):
        scalable.join_bands(found.rows, ["J"], values=["Mag"])
    with pytest.raises(ColumnError, match=f"variability {reason}"):
        scalable.variability(found.rows, values=["Mag"])
    for member in ("objects", "detections"):
        with pytest.raises(StoreError, match=f"photoz: its tables have no positions, so there is no {member}; ask for rows"):
            getattr(found, member)
    with pytest.raises(QueryError, match="no view 'detections'; choices: rows, observations"):
        scalable.sql(found, "SELECT * FROM detections")


@pytest.mark.parametrize("text", ["SELECT Id AS object_id FROM rows", "SELECT Id AS OBJECT_ID, z FROM rows WHERE z > 1"])
def test_no_result_column_claims_that_rows_are_kept_by_object(tmp_path: Path, text: str) -> None:
    found = ingest(open_survey(write_tables(tmp_path, [5])), into=tmp_path / "store")
    with pytest.raises(QueryError, match="these rows are not kept by object: call the result column something else"):
        scalable.sql(found, text)
    with pytest.raises(QueryError, match="these rows are not kept by object"):
        scalable.sql(found.rows, text.replace("FROM rows", "FROM catalog"))


# Failures -------------------------------------------------------------------------------------------------------------------


def test_appended_files_are_new_blocks_beside_linked_ones_and_all_is_as_at_once(tmp_path: Path) -> None:
    first = ingest(open_survey(write_tables(tmp_path, [25, 12])), into=tmp_path / "store")
    (tmp_path / "tables" / "3.csv").write_text("another,head\n1,2\n")
    survey = open_survey(tmp_path / "survey.yaml")
    with pytest.raises(InputError, match="none of the 1 new files can be used"):
        append(survey, into=tmp_path / "store")
    assert plan_append(survey, into=tmp_path / "store").unusable.keys() == {"3.csv"}
    survey = open_survey(write_tables(tmp_path, [25, 12, 7]))
    planned = plan_append(survey, into=tmp_path / "store")
    assert (planned.files, planned.unusable, planned.leaves, planned.touched) == ({"3.csv": 7}, {}, 5, ())
    found, whole = append(survey, into=tmp_path / "store"), ingest(survey, into=tmp_path / "whole")
    check_rows(found)
    assert found.leaves_linked() == (6, 5)
    both = [{name: digest for name, digest in fingerprint(c.path).items() if name != "manifest.json"} for c in (found, whole)]
    assert both[0] == both[1]
    for key in ("accounting", "nulls"):
        assert found.manifest[key] == whole.manifest[key]
    assert found.manifest["parent"]["stored"] == first.accounting["stored"] == 37
    assert [(v.added, v.objects) for v in list_versions(tmp_path / "store")] == [(7, 0), (37, 0)]
    assert append(survey, into=tmp_path / "store").path == found.path


def test_files_of_the_store_itself_are_never_appended(tmp_path: Path) -> None:
    survey = open_survey(write_tables(tmp_path, [25, 12]))
    ingest(survey, into=tmp_path / "tables" / "store")
    (tmp_path / "tables" / "store" / "3.csv").write_text((tmp_path / "tables" / "1.csv").read_text())
    described = json.loads((tmp_path / "survey.yaml").read_text())
    described["files"]["glob"] = "**/*.csv"
    del described["observations"]
    (tmp_path / "survey.yaml").write_text(json.dumps(described))
    for verb in (append, plan_append):
        with pytest.raises(InputError, match="store/3.csv lies in the store"):
            verb(open_survey(tmp_path / "survey.yaml"), into=tmp_path / "tables" / "store")


def test_a_row_without_the_declared_id_is_rejected_with_its_reason(tmp_path: Path) -> None:
    path = write_tables(tmp_path, [4])
    (tmp_path / "tables/1.csv").write_text("Id,z,Mag\n7,1.5,20.5\n,2.5,21.5\n9,3.5,22.5\n")
    found = ingest(open_survey(path), into=tmp_path / "store")
    assert found.rows.compute()["source_row"].to_pylist() == [0, 2]
    entry = dict(path="1.csv", observation_id=1, source_row=1, object_id=None, reason="no object id", column="Id", value="None")
    assert found.rejected.to_pylist() == [entry]
    assert (found.accounting["read"], found.accounting["stored"], found.accounting["rejected"]) == (3, 2, 1)
    check_rows(found)


def test_an_object_that_occurs_twice_is_two_rows_and_ids_may_be_text(tmp_path: Path) -> None:
    path = write_tables(tmp_path, [4])
    (tmp_path / "tables/1.csv").write_text("Id,z,Mag\nNGC 1,1.5,20.5\nNGC 1,2.5,21.5\n")
    assert check(open_survey(path)).findings == ()
    found = ingest(open_survey(path), into=tmp_path / "store")
    assert found.rows.compute()["Id"].to_pylist() == ["NGC 1", "NGC 1"]


def test_a_bad_file_is_set_aside_whole_though_its_first_blocks_were_written(tmp_path: Path) -> None:
    path = write_tables(tmp_path, [40, 40, 40, 40])
    tables = tmp_path / "tables"
    cut = (tables / "1.csv").read_text().rstrip("\n").rsplit(",", 1)[0]
    (tables / "1.csv").write_text(cut)
    (tables / "2.csv").write_text((tables / "2.csv").read_text().replace("Mag", "Mg", 1))
    survey = open_survey(path)
    with pytest.MonkeyPatch.context() as patch:
        scan = DelimitedTable.scan
        patch.setattr(DelimitedTable, "scan", lambda *a, **options: scan(*a, **options | {"block_bytes": 60}))
        found = ingest(survey, into=tmp_path / "store")
    reasons = quarantine(found)
    assert list(reasons) == ["1.csv", "2.csv"]
    assert "1.csv: line 41" in reasons["1.csv"]
    assert "no column 'Mag' although the survey declares it" in reasons["2.csv"]
    assert found.rows.compute()["Id"].to_pylist() == list(range(80, 160))
    assert found.observations["status"].to_pylist() == ["quarantined", "quarantined", "stored", "stored"]
    check_rows(found)


def test_where_nothing_can_be_stored_the_reason_is_given(tmp_path: Path) -> None:
    path = write_tables(tmp_path, [2])
    (tmp_path / "tables/1.csv").write_text("Id,z,Mag\n")
    with pytest.raises(InputError, match="no row of any file can be stored; the first reason: every table is empty"):
        ingest(open_survey(path), into=tmp_path / "store")
    (tmp_path / "tables/1.csv").rename(tmp_path / "tables/1.txt")
    with pytest.raises(InputError, match=r"files.glob: '\*.csv' finds no file below"):
        ingest(open_survey(path), into=tmp_path / "store")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"columns": {"a": {"role": "ra"}}}, "columns: exactly one column must have role object_id, not none"),
        ({"columns": {"a": {"role": "ra"}, "i": {"role": "object_id"}}, "bands": ["J"]}, "must have role dec, not none"),
        ({"columns": {"d": {"role": "dec"}, "i": {"role": "object_id"}}, "bands": ["J"]}, "must have role ra, not none"),
        ({"columns": {"f": {}}, "products": {"flux": "f"}}, "products: a table without positions has none but photoz"),
        ({"columns": {"i": {"role": "object_id"}, "j": {"role": "object_id"}}}, "exactly one column must have role object_id"),
    ],
)
def test_half_a_position_and_products_of_the_sky_are_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(SurveyError, match=message):
        open_survey(describe(tmp_path, tmp_path, "*.csv", "csv", **more))


def test_an_index_lists_such_tables_too_and_needs_neither_band_nor_time(tmp_path: Path) -> None:
    expected = ingest(open_survey(write_tables(tmp_path, [5, 6])), into=tmp_path / "found").rows.compute()
    (tmp_path / "tables/index.csv").write_text("ID\n1\n2\n")
    described = json.loads((tmp_path / "survey.yaml").read_text())
    described |= {"observations": {"index": "index.csv", "id": "ID"}}
    described |= {"files": {"templates": [{"path": "{ID}.csv"}], "format": "csv"}}
    (tmp_path / "survey.yaml").write_text(json.dumps(described))
    assert ingest(open_survey(tmp_path / "survey.yaml"), into=tmp_path / "indexed").rows.compute().equals(expected)


# The same bytes, whatever happens -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", ["threads", pytest.param("processes", marks=pytest.mark.long)])
def test_batches_and_schedulers_give_the_same_bytes_and_a_rerun_does_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scheduler: str
) -> None:
    survey = open_survey(write_tables(tmp_path, [25, 30, 7]))
    ingest(survey, into=tmp_path / "one")
    expected = fingerprint(tmp_path / "one")
    told: list[str] = []
    ingest(survey, into=tmp_path / "one", progress=lambda stage, *_: told.append(stage))
    assert told == []
    monkeypatch.setattr(stages, "BATCH_BYTES", 1)
    with dask.config.set(scheduler=scheduler):
        ingest(survey, into=tmp_path / "three")
    assert fingerprint(tmp_path / "three") == expected


def test_an_unfinished_run_is_taken_up_and_no_file_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = open_survey(write_tables(tmp_path, [25, 30]))
    monkeypatch.setattr(stages, "BATCH_BYTES", 1)
    ingest(survey, into=tmp_path / "whole")

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "commit_rows", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(survey, into=tmp_path / "store")
    [lost] = tmp_path.glob("store/work/*/version/rows/2-00001.parquet")
    lost.unlink()
    read: list[str] = []
    scan = ingest_map.scan_file
    monkeypatch.setattr(ingest_rows, "scan_file", lambda source, *rest: read.append(source.name) or scan(source, *rest))
    ingest(survey, into=tmp_path / "store")
    assert read == ["2.csv"]
    assert fingerprint(tmp_path / "store") == fingerprint(tmp_path / "whole")


def test_a_disk_that_is_full_is_no_fault_of_the_file_and_a_rerun_completes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = open_survey(write_tables(tmp_path, [25, 30]))
    ingest(survey, into=tmp_path / "whole")
    write = ingest_rows.write_leaf

    def full(table: pa.Table, folder: Path, relative: str) -> Any:
        if relative == "2-00001.parquet":
            raise OSError(28, "No space left on device")
        return write(table, folder, relative)

    monkeypatch.setattr(stages, "BATCH_BYTES", 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ingest_rows, "write_leaf", full)
        with pytest.raises(OSError, match="No space left on device"):
            ingest(survey, into=tmp_path / "store")
    with pytest.raises(StoreError, match="no committed version"):
        open_collection(tmp_path / "store")
    ingest(survey, into=tmp_path / "store")
    assert fingerprint(tmp_path / "store") == fingerprint(tmp_path / "whole")


@dataclass(frozen=True)
class Undisturbed:
    """A survey, what a run that nobody kills leaves, and its calls that change the file system."""

    survey: Path
    after: dict[str, str]
    calls: list[str]


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    folder = tmp_path_factory.mktemp("killer")
    killer = Killer(folder, write_tables(folder, [1]))
    yield killer
    killer.close()


@pytest.fixture(scope="module")
def undisturbed(killer: Killer, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    folder = tmp_path_factory.mktemp("undisturbed")
    survey = write_tables(folder, [25, 12, 3])
    cut = folder / "tables/2.csv"
    cut.write_text(cut.read_text().rstrip("\n").rsplit(",", 1)[0])
    assert killer.run(survey, folder / "store") == 0
    return Undisturbed(survey, fingerprint(folder / "store"), json.loads(killer.log.read_text()))


def kill_and_check(killer: Killer, case: Undisturbed, store: Path, kill_at: int, *, torn: bool) -> None:
    """Kill once: a reader sees the whole version or none; then one run leaves what an undisturbed one leaves."""
    assert killer.run(case.survey, store, kill_at=kill_at, torn=torn) == -signal.SIGKILL
    if (store / "current").is_symlink():
        check_rows(open_collection(store))
    else:
        with pytest.raises(StoreError, match="no committed version"):
            open_collection(store)
    check_rows(ingest(open_survey(case.survey), into=store))
    # A link that was never moved into place stays in the store's folder; nobody looks at it.
    assert {name: value for name, value in fingerprint(store).items() if not name.startswith(".tmp-")} == case.after


@pytest.mark.parametrize("index", range(10))
def test_killed_anywhere_a_rerun_leaves_what_an_undisturbed_run_leaves(
    killer: Killer, undisturbed: Undisturbed, tmp_path: Path, index: int
) -> None:
    assert len(undisturbed.calls) > 30
    kill_at = 1 + index * (len(undisturbed.calls) - 1) // 9
    kill_and_check(killer, undisturbed, tmp_path / "store", kill_at, torn=index % 2 == 1)


@pytest.mark.long
@pytest.mark.parametrize("torn", [False, True], ids=["clean", "torn"])
def test_killed_at_every_single_call_a_rerun_leaves_what_an_undisturbed_run_leaves(
    killer: Killer, undisturbed: Undisturbed, tmp_path: Path, torn: bool
) -> None:
    for kill_at in range(1, len(undisturbed.calls) + 1):
        kill_and_check(killer, undisturbed, tmp_path / f"store-{kill_at}", kill_at, torn=torn)


# The command ----------------------------------------------------------------------------------------------------------------


def test_the_command_checks_runs_and_answers(tmp_path: Path) -> None:
    path = write_tables(tmp_path, [25, 30], declare={"z": {"unit": ""}})
    described = json.loads(path.read_text())
    described |= {
        "quality": {"faint": "Mag > 21"},
        "questions": [{"id": "Q1", "title": "How many?", "sql": "SELECT 1 FROM rows"}],
    }
    path.write_text(json.dumps(described))
    (tmp_path / "tables/9.csv").write_text("")
    checked = CliRunner().invoke(main, ["check", str(path)])
    assert checked.exit_code == 0, checked.output
    assert "3 files, 55 rows" in checked.output
    assert "unreadable-file" in checked.output
    store = tmp_path / "out"
    ran = CliRunner().invoke(main, ["run", str(path), "--into", str(store), "--scheduler", "sync"])
    assert ran.exit_code == QUARANTINED, ran.output
    assert "55 rows read = 55 stored + 0 rejected; 2 of 3 files\n" in ran.output
    assert "SELECT count(*) FROM rows" in ran.output
    assert "lsdb" not in ran.output
    page = (store / "report.html").read_text()
    for text in (
        "Accounting",
        "Versions",
        "Files set aside",
        "Quality cuts",
        "Q1: How many?",
        "How to open it",
        "55 of 55 rows read",
    ):
        assert text in page
    assert "Partitions on the sky" not in page
    # One in five is a sentinel that stands for a non-detection.
    assert '<th scope="col" class=n>non_detection</th></tr>' in page
    assert '<td>Mag</td><td class="n">44</td><td class="n">11</td>' in page
    asked = CliRunner().invoke(main, ["query", "SELECT count(*) AS n FROM rows WHERE Mag > 21", "--store", str(store)])
    assert "31" in asked.output
    os.utime(path)
    again = CliRunner().invoke(main, ["run", str(path), "--into", str(store), "--scheduler", "sync"])
    assert "there already: ingest" in again.output
