"""What ingest does where the input, the disk or the machine fails: reasons that name the place, and never half a version."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import surveys
from click.testing import CliRunner
from surveys import Observation, check_store, detections, fingerprint, read_member, write_survey

from scalable.catalog import ingest as stages
from scalable.catalog import ingest_plan
from scalable.catalog.collection import Collection, open_collection
from scalable.catalog.ingest import ingest
from scalable.cli.main import main
from scalable.errors import InputError, MissingInputError, StoreError, SurveyError
from scalable.survey.read import open_survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import damaged_files, table_paths, write_tables

SKY = make_sky(SkySpec(seed=4, fields=2, stars_per_field=60, bands=("J", "H", "Ks"), epochs=2))


@pytest.fixture(autouse=True)
def _here_and_at_a_fixed_date(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with dask.config.set(scheduler="sync"):
        yield


def quarantine(collection: Collection) -> dict[str, str]:
    """Return the reasons of the files that were set aside, by path below the survey's root."""
    with (collection.path / "quarantine.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    paths = dict(zip(*(collection.observations[name].to_pylist() for name in ("observation_id", "path")), strict=True))
    assert all(row["path"].endswith(paths[int(row["observation_id"])]) for row in rows)
    return {paths[int(row["observation_id"])]: row["reason"] for row in rows}


def stored_rows(collection: Collection) -> dict[int, list[int]]:
    """Return the source rows that are stored, by observation."""
    found: dict[int, list[int]] = {}
    for table in read_member(collection, "detections").values():
        for observation, row in zip(table["observation_id"].to_pylist(), table["source_row"].to_pylist(), strict=True):
            found.setdefault(observation, []).append(row)
    return {observation: sorted(rows) for observation, rows in sorted(found.items())}


def objects(n: int = 1, **extra: Any) -> pa.Table:
    """Return one detection of each of ``n`` objects, well apart."""
    return detections(list(range(1, n + 1)), np.arange(n) * 10.0 + 5.0, np.zeros(n), **extra)


# Files.


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", r"HDU 1: file ends at byte \d+, the table needs \d+: truncated"),
        ("missing_column", "no column 'Flux1'"),
        ("absent", "no such file"),
    ],
)
def test_a_damaged_file_is_set_aside_with_its_reason_and_the_others_are_complete(tmp_path: Path, kind: str, reason: str) -> None:
    survey = open_survey(write_tables(SKY, tmp_path / "s", bad=[kind]))
    [bad] = damaged_files(SKY, [kind]).values()
    found = ingest(survey, into=tmp_path / "store")
    assert list(quarantine(found)) == [bad]
    assert bad in quarantine(found)[bad]
    assert re.search(reason, quarantine(found)[bad])
    rows = {
        number: list(range(len(surveys.read_by_astropy(tmp_path / "s" / path)["Ra"])))
        for number, path in enumerate(table_paths(SKY), start=1)
        if path != bad
    }
    assert stored_rows(found) == rows
    [entry] = found.observations.filter(pc.equal(found.observations["path"], bad)).to_pylist()
    assert (entry["status"], entry["rows"], entry["rows_stored"], entry["sha256"]) == ("quarantined", 0, 0, None)
    assert found.observations["status"].to_pylist().count("stored") == len(rows)
    count = found.accounting
    assert (count["files"], count["quarantined"], count["rejected"]) == (len(rows) + 1, 1, 0)
    assert count["read"] == count["stored"] == sum(map(len, rows.values()))
    check_store(tmp_path / "store")


def test_every_kind_of_damage_at_once_costs_those_files_and_rows_and_no_other(tmp_path: Path) -> None:
    kinds = ["truncated", "missing_column", "absent", "duplicate"]
    survey = open_survey(write_tables(SKY, tmp_path / "s", bad=kinds))
    damaged = damaged_files(SKY, kinds)
    found = ingest(survey, into=tmp_path / "store")
    assert sorted(quarantine(found)) == sorted(damaged[kind] for kind in kinds[:3])
    repeated = table_paths(SKY).index(damaged["duplicate"]) + 1
    ids = surveys.read_by_astropy(tmp_path / "s" / damaged["duplicate"])["StarID"]
    first = [row for row, value in enumerate(ids) if value not in ids[:row]]
    assert len(first) < len(ids)
    assert stored_rows(found)[repeated] == first
    for entry in found.rejected.to_pylist():
        assert (entry["observation_id"], entry["object_id"]) == (repeated, ids[entry["source_row"]])
        assert entry["path"].endswith(damaged["duplicate"])
        assert entry["reason"].startswith("duplicate")
    assert found.rejected.num_rows == found.accounting["rejected"] == len(ids) - len(first)
    check_store(tmp_path / "store")


def test_a_survey_without_damage_has_an_empty_list_of_files_set_aside(tmp_path: Path) -> None:
    found = ingest(write_survey(tmp_path, [Observation(1, "J", 1.0, objects())]), into=tmp_path / "store")
    assert (found.path / "quarantine.csv").read_text() == "observation_id,path,reason\n"
    assert found.rejected.num_rows == 0


@pytest.mark.parametrize(
    ("odd", "reason"),
    [
        (objects(Extra=pa.array([1.0])), r"HDU 1 has a column 'Extra' that the other files have not"),
        (objects(Flux=pa.array([1.0])), r"HDU 1 column 'Flux' is double, elsewhere float"),
        (objects(id_type=pa.int32()), r"HDU 1 column 'StarID' is int32, elsewhere int64"),
        (objects(unit="adu"), r"column 'Ra' is double \[adu\], elsewhere double \[deg\]"),
    ],
    ids=["extra column", "another type", "another id type", "no angle"],
)
def test_a_file_with_other_columns_than_the_first_is_set_aside(tmp_path: Path, odd: pa.Table, reason: str) -> None:
    files = [Observation(1, "J", 1.0, objects()), Observation(2, "J", 2.0, odd), Observation(3, "Ks", 3.0, objects())]
    found = ingest(write_survey(tmp_path, files), into=tmp_path / "store")
    assert list(quarantine(found)) == ["tables/2-J.fits"]
    assert re.search(reason, quarantine(found)["tables/2-J.fits"])
    assert stored_rows(found) == {1: [0], 3: [0]}
    check_store(tmp_path / "store")


def test_a_file_without_an_undeclared_column_of_the_others_is_set_aside(tmp_path: Path) -> None:
    files = [Observation(1, "J", 1.0, objects(Extra=pa.array([1.0]))), Observation(2, "J", 2.0, objects())]
    found = ingest(write_survey(tmp_path, files), into=tmp_path / "store")
    assert "HDU 1 has no column 'Extra', which the other files have" in quarantine(found)["tables/2-J.fits"]


def test_columns_in_another_order_are_no_damage(tmp_path: Path) -> None:
    table = objects(3)
    files = [Observation(1, "J", 1.0, table), Observation(2, "J", 2.0, table.select(["Flux", "Dec", "StarID", "Ra"]))]
    found = ingest(write_survey(tmp_path, files), into=tmp_path / "store")
    assert stored_rows(found) == {1: [0, 1, 2], 2: [0, 1, 2]}
    rows = pa.concat_tables(read_member(found, "detections").values())
    assert (rows["StarID"].to_numpy() == rows["object_id"].to_numpy()).all()
    assert (rows["Flux"].to_numpy() == rows["source_row"].to_numpy()).all()


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda path: path.write_bytes(b""), "not a FITS file: the file is empty"),
        (lambda path: path.write_bytes(b"<html>404</html>" * 1000), "not a FITS file: it begins with b'<html>40'"),
        (lambda path: path.write_bytes(b"\x1f\x8b" + bytes(5000)), "corrupt gzip behind byte 0"),
        (lambda path: (path.unlink(), path.mkdir()), "not a regular file"),
        (lambda path: (path.unlink(), path.symlink_to("nowhere.fits")), "no such file"),
    ],
    ids=["empty", "web page", "gzip", "folder", "dangling link"],
)
def test_what_is_no_table_at_all_is_set_aside(tmp_path: Path, damage: Callable[[Path], Any], reason: str) -> None:
    survey = write_survey(tmp_path, [Observation(n, "J", float(n), objects()) for n in (1, 2, 3)])
    damage(tmp_path / "tables/1-J.fits")
    found = ingest(survey, into=tmp_path / "store")
    assert list(quarantine(found)) == ["tables/1-J.fits"]
    assert reason in quarantine(found)["tables/1-J.fits"]
    assert stored_rows(found) == {2: [0], 3: [0]}


def test_a_file_without_rows_is_stored_as_such(tmp_path: Path) -> None:
    files = [Observation(1, "J", 1.0, objects().slice(0, 0)), Observation(2, "Ks", 2.0, objects())]
    found = ingest(write_survey(tmp_path, files), into=tmp_path / "store")
    assert found.observations["status"].to_pylist() == ["stored", "stored"]
    assert found.observations["rows"].to_pylist() == [0, 1]


def test_a_repaired_file_comes_in_with_the_next_version(tmp_path: Path) -> None:
    survey = write_survey(tmp_path, [Observation(1, "J", 1.0, objects()), Observation(2, "J", 2.0, None)])
    assert ingest(survey, into=tmp_path / "store").accounting["quarantined"] == 1
    survey = write_survey(tmp_path, [Observation(1, "J", 1.0, objects()), Observation(2, "J", 2.0, objects(2))])
    found = ingest(survey, into=tmp_path / "store")
    assert (found.path.name, found.accounting["quarantined"], found.accounting["stored"]) == ("0002", 0, 3)


@pytest.mark.parametrize(
    ("tables", "reason"),
    [
        ([None, None], r"none of the 2 files can be used; the first says: .*1-J\.fits: no such file"),
        (
            [objects().drop_columns("Flux"), None],
            r"none of the 2 files can be used; the first says: .*1-J\.fits: no column 'Flux' although the survey declares it",
        ),
        (
            [detections([1.5], [0.0], [0.0], id_type=pa.float64()), None],
            r"no row of any file can be stored; the first reason: .*1-J\.fits: HDU 1 column 'StarID': object ids must be whole",
        ),
        ([detections([1], [0.0], [99.0]), None], r"no row of any file can be stored; the first reason: .*"),
    ],
    ids=["absent", "missing column", "ids with a fraction", "all rows rejected"],
)
def test_where_no_file_can_be_used_the_first_reason_is_given_and_no_version_appears(
    tmp_path: Path, tables: list[pa.Table | None], reason: str
) -> None:
    files = [Observation(n, "J", float(n), table) for n, table in enumerate(tables, start=1)]
    with pytest.raises(InputError, match=reason):
        ingest(write_survey(tmp_path, files), into=tmp_path / "store")
    assert not (tmp_path / "store" / "versions").exists()
    with pytest.raises(StoreError, match="no committed version here"):
        open_collection(tmp_path / "store")


def test_a_failed_ingest_leaves_the_version_before_it_as_it_was(tmp_path: Path) -> None:
    first = ingest(write_survey(tmp_path, [Observation(1, "J", 1.0, objects())]), into=tmp_path / "store")
    before = surveys.state_on_disk(first.path)
    (tmp_path / "tables/1-J.fits").unlink()
    with pytest.raises(InputError, match="no such file"):
        ingest(open_survey(tmp_path / "survey.yaml"), into=tmp_path / "store")
    assert open_collection(tmp_path / "store") == first
    assert surveys.state_on_disk(first.path) == before


# The index.


@pytest.mark.parametrize(
    ("text", "error", "reason"),
    [
        (None, MissingInputError, r"index\.csv: the observation index is not there"),
        ("ID,Filter,MJD\n1,J,1.0\n1,J,2.0\n", InputError, "observation id 1 is given more than once"),
        ("ID,Filter,MJD\n1,X,1.0\n", SurveyError, "band 'X' is not among the survey's bands"),
        ("ID,Filter,MJD\n1,J,\n2,J,2.0\n", InputError, "1 rows have no mjd"),
        ("ID,Filter,MJD\n", InputError, "must hold integer ids|lists no observation"),
        ("ID,Filter,MJD\none,J,1.0\n", InputError, "must hold integer ids"),
    ],
    ids=["absent", "id twice", "unknown band", "no time", "empty", "id is text"],
)
def test_a_wrong_index_is_refused_before_the_store_is_made(
    tmp_path: Path, text: str | None, error: type[Exception], reason: str
) -> None:
    survey = write_survey(tmp_path, [Observation(1, "J", 1.0, objects())])
    (tmp_path / "index.csv").unlink()
    if text is not None:
        (tmp_path / "index.csv").write_text(text)
    with pytest.raises(error, match=reason):
        ingest(survey, into=tmp_path / "store")
    assert not (tmp_path / "store").exists()


# Rows.


def test_rows_without_a_position_or_an_id_are_rejected_one_by_one_with_the_reason(tmp_path: Path) -> None:
    nan, inf = np.nan, np.inf
    rows = [  # id, ra, dec, column and reason of the rejection
        (1.0, 10.0, 0.0, None),
        (2.0, nan, 0.0, ("Ra", "no right ascension")),
        (3.0, 10.0, nan, ("Dec", "no declination")),
        (nan, 10.0, 0.0, ("StarID", "no object id")),
        (5.0, 10.0, 90.001, ("Dec", "declination outside -90 to 90 degrees")),
        (6.0, 10.0, -95.0, ("Dec", "declination outside -90 to 90 degrees")),
        (7.0, inf, 0.0, ("Ra", "right ascension is no number or far outside 0 to 360 degrees")),
        (8.0, -1e9, 0.0, ("Ra", "right ascension is no number or far outside 0 to 360 degrees")),
        (9.0, 10.0, -inf, ("Dec", "declination outside -90 to 90 degrees")),
        (nan, nan, nan, ("StarID", "no object id")),
        (11.0, 10.0, 90.0, None),
        (12.0, 359.0, -90.0, None),
    ]
    ids, ra, dec, expected = zip(*rows, strict=True)
    files = [Observation(3, "J", 1.0, detections(ids, ra, dec, id_type=pa.float64())), Observation(4, "J", 2.0, None)]
    found = ingest(write_survey(tmp_path, files), into=tmp_path / "store")
    assert stored_rows(found) == {3: [row for row, reason in enumerate(expected) if reason is None]}
    listed = found.rejected.to_pylist()
    assert [(e["source_row"], e["column"], e["reason"]) for e in listed] == [
        (row, *reason) for row, reason in enumerate(expected) if reason
    ]
    assert all(entry["path"].endswith("tables/3-J.fits") and entry["observation_id"] == 3 for entry in listed)
    assert listed[2]["value"] == "None"
    assert listed[3]["value"] == "90.001"
    assert listed[0]["object_id"] == 2
    count = found.accounting
    assert (count["read"], count["stored"], count["rejected"], count["quarantined"]) == (12, 3, 9, 1)
    [entry, _] = found.observations.to_pylist()
    assert (entry["rows"], entry["rows_stored"], entry["rows_rejected"]) == (12, 3, 9)
    check_store(tmp_path / "store")


def test_of_duplicates_in_one_observation_the_first_row_stays_and_other_observations_keep_theirs(tmp_path: Path) -> None:
    once, thrice = [1, 2], [2, 1, 2, 2]
    files = [
        Observation(1, "J", 1.0, detections(thrice, [20.0, 10.0, 20.0001, 20.0], np.zeros(4))),
        Observation(2, "J", 1.0, detections(once, [10.0, 20.0], np.zeros(2))),
    ]
    found = ingest(write_survey(tmp_path, files), into=tmp_path / "store")
    assert stored_rows(found) == {1: [0, 1], 2: [0, 1]}
    assert [(e["observation_id"], e["source_row"], e["object_id"]) for e in found.rejected.to_pylist()] == [(1, 2, 2), (1, 3, 2)]
    # Nothing of them is lost.
    assert found.duplicates.select(["source_row", "Ra", "Flux"]).to_pydict() == {
        "source_row": [2, 3],
        "Ra": [20.0001, 20.0],
        "Flux": [2.0, 3.0],
    }


# The store.


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_store_that_cannot_be_made_is_refused_with_what_to_do(tmp_path: Path, place: str) -> None:
    survey = write_survey(tmp_path / "s", [Observation(1, "J", 1.0, objects())])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StoreError, match=r"file.*: the store cannot be written \(.+\); choose another folder with --into"):
        ingest(survey, into=tmp_path / place)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused_with_what_to_do(tmp_path: Path) -> None:
    survey = write_survey(tmp_path / "s", [Observation(1, "J", 1.0, objects())])
    (tmp_path / "store").mkdir(mode=0o500)
    with pytest.raises(StoreError, match=r"store: the store cannot be written \(Permission denied\)"):
        ingest(survey, into=tmp_path / "store")


def test_of_two_ingests_at_once_the_second_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    survey = write_survey(tmp_path / "s", [Observation(1, "J", 1.0, objects())])
    store = tmp_path / "store"
    store.mkdir()
    with (store / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="store: another ingest or clean of this store is running; wait for it"):
            ingest(survey, into=store)
        assert [path.name for path in store.iterdir()] == ["lock"]
    assert ingest(survey, into=store).accounting["stored"] == 1


def test_a_lock_file_that_a_killed_run_left_is_no_lock(tmp_path: Path) -> None:
    survey = write_survey(tmp_path / "s", [Observation(1, "J", 1.0, objects())])
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "lock").write_text("")
    assert ingest(survey, into=tmp_path / "store").accounting["stored"] == 1


@pytest.mark.parametrize("target", ["versions/0001", "nowhere"])
def test_a_store_whose_current_leads_nowhere_is_no_store(tmp_path: Path, target: str) -> None:
    (tmp_path / "versions").mkdir()
    (tmp_path / "current").symlink_to(target)
    with pytest.raises(StoreError, match="no committed version here; run: scalable run survey.yaml --into"):
        open_collection(tmp_path)


# The command line.


def run_command(survey: Path, store: Path) -> Any:
    arguments = ["run", str(survey), "--into", str(store), "--only", "ingest", "--scheduler", "threads"]
    return CliRunner().invoke(main, arguments)


def test_the_command_ends_with_3_where_files_were_set_aside_and_with_0_where_none_was(tmp_path: Path) -> None:
    write_survey(tmp_path, [Observation(1, "J", 1.0, objects()), Observation(2, "J", 2.0, None)])
    result = run_command(tmp_path / "survey.yaml", tmp_path / "store")
    assert result.exit_code == 3
    assert "1 of 2 files" in result.output
    assert "quarantine.csv" in result.output.replace("\n", "")
    write_survey(tmp_path, [Observation(1, "J", 1.0, objects())])
    assert run_command(tmp_path / "survey.yaml", tmp_path / "store").exit_code == 0


def test_the_command_ends_with_1_and_the_message_alone_where_nothing_could_be_done(tmp_path: Path) -> None:
    write_survey(tmp_path, [Observation(1, "J", 1.0, None)])
    result = run_command(tmp_path / "survey.yaml", tmp_path / "store")
    assert result.exit_code == 1
    assert "no such file" in " ".join(result.output.split())
    assert "Traceback" not in result.output
    (tmp_path / "file").write_text("")
    result = run_command(tmp_path / "survey.yaml", tmp_path / "file")
    assert result.exit_code == 1
    assert "the store cannot be written" in " ".join(result.output.split())


# Crashes. The ingest runs in a child that kills itself at the n-th call that changes the file system.

KILLER = """
import json, os, signal, sys, tempfile, traceback
import dask
from scalable.catalog import ingest as stages, ingest_plan
from scalable.survey.read import open_survey

CALLS = ("replace", "rename", "link", "symlink", "unlink", "mkdir", "rmdir")
dask.config.set(scheduler="sync")
stages.BATCH_BYTES = ingest_plan.TASK_BYTES = 1

# Compiled code is loaded once, here, and not by every child. (Arrow's thread pools survive a fork.)
with tempfile.TemporaryDirectory() as folder:
    stages.ingest(open_survey(sys.argv[1]), into=folder)


def changes(name, arguments, options, store):
    if options.get("dir_fd") is not None:
        return True
    if not any(str(path).startswith(store) for path in arguments[:2]):
        return False  # The cache of compiled kernels, which only the first process on a machine writes.
    if name == "mkdir":
        return not os.path.isdir(arguments[0])
    return name != "unlink" or os.path.lexists(arguments[0])


def arm(order, log):
    def wrapped(name, real):
        def call(*arguments, **options):
            if changes(name, arguments, options, order["store"]):
                log.append(name)
                if len(log) == order["kill_at"]:
                    if order["torn"] and name == "replace" and not os.path.islink(arguments[0]):
                        os.truncate(arguments[0], os.path.getsize(arguments[0]) // 2)
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **options)
        return call
    for name in CALLS:
        setattr(os, name, wrapped(name, getattr(os, name)))


for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        log = []
        signal.alarm(60)
        try:
            arm(order, log)
            stages.ingest(open_survey(order["survey"]), into=order["store"])
            with open(order["log"], "w") as file:
                json.dump(log, file)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Case:
    """A change of a store: what is there before, the survey to ingest, what an undisturbed run leaves, and its calls."""

    before: Path
    survey: Path
    after: dict[str, str]
    calls: list[str]


class Killer:
    """A process that forks a child for every ingest, so that nothing is imported twice."""

    def __init__(self, folder: Path, survey: Path) -> None:
        """Ingest ``survey`` once, which loads everything."""
        self.log = folder / "log.json"
        self.process = subprocess.Popen(
            [sys.executable, "-c", KILLER, str(survey)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
        )

    def run(self, survey: Path, store: Path, *, kill_at: int = 0, torn: bool = False) -> int:
        """Run one ingest and return the exit code of its process, negative for a signal."""
        order = {"survey": str(survey), "store": str(store), "kill_at": kill_at, "torn": torn, "log": str(self.log)}
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(30)


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    folder = tmp_path_factory.mktemp("killer")
    write_survey(folder, [Observation(1, "J", 1.0, objects())])
    killer = Killer(folder, folder / "survey.yaml")
    yield killer
    killer.close()


@pytest.fixture(scope="module")
def cases(killer: Killer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """A first ingest into nothing, and one under other rules into a store that holds a version."""
    folder = tmp_path_factory.mktemp("cases")
    a, b = detections([1, 2, 2], [10.0, 200.0, 200.0], [0.0, 80.0, 80.0]), detections([2, 3], [200.0, 10.001], [80.0, 95.0])
    far = detections([1, 4], [10.005, 300.0], [0.0, -45.0])
    files = [
        Observation(1, "J", 1.0, a),
        Observation(2, "Ks", 2.0, b),
        Observation(3, "Ks", 3.0, far),
        Observation(4, "J", 4.0, None),
    ]
    write_survey(folder, files)
    first, second = folder / "survey.yaml", folder / "changed.yaml"
    second.write_text(first.read_text().replace('"margin_arcsec": 5.0', '"margin_arcsec": 30.0'))
    assert killer.run(first, folder / "first") == 0
    calls = json.loads(killer.log.read_text())
    shutil.copytree(folder / "first", folder / "both", symlinks=True)
    new = Case(folder / "nothing", first, fingerprint(folder / "first"), calls)
    assert killer.run(second, folder / "both") == 0
    change = Case(folder / "first", second, fingerprint(folder / "both"), json.loads(killer.log.read_text()))
    assert check_store(folder / "first").manifest["wide_objects"] == 1
    return {"new": new, "change": change}


def kill_and_check(killer: Killer, case: Case, store: Path, points: list[int], *, torn: bool) -> None:
    """Kill at each of ``points`` in turn; after each no reader sees half a version; then one run completes as if undisturbed."""
    if case.before.exists():
        shutil.copytree(case.before, store, symlinks=True)
    old = fingerprint(case.before / "versions" / "0001")
    for n in points:
        assert killer.run(case.survey, store, kill_at=n, torn=torn) in (-signal.SIGKILL, 0)
        for version in (store / "versions").glob("*"):
            surveys.check_version(version)
        try:
            seen = check_store(store).path
        except StoreError:
            assert not old
            assert not (store / "current").is_symlink()
        else:
            assert seen.parent == store / "versions"
        if old:
            assert fingerprint(store / "versions" / "0001") == old
    published = {path.name: surveys.state_on_disk(path) for path in (store / "versions").glob("*")}
    found = ingest(open_survey(case.survey), into=store)
    assert surveys.check_version(found.path) == found.manifest
    # A link that was never moved into place stays in the store's folder; nobody looks at it.
    left = {name: value for name, value in fingerprint(store).items() if not name.startswith(".tmp-")}
    assert left == case.after
    for name, state in published.items():
        assert surveys.state_on_disk(store / "versions" / name) == state, "a published version was written again"


def spread(calls: list[str], index: int, points: int) -> int:
    return 1 + index * (len(calls) - 1) // (points - 1)


@pytest.mark.parametrize("index", range(8))
def test_killed_anywhere_in_a_first_ingest_a_rerun_leaves_what_an_undisturbed_run_leaves(
    killer: Killer, cases: dict[str, Case], tmp_path: Path, index: int
) -> None:
    case = cases["new"]
    assert len(case.calls) > 60
    kill_and_check(killer, case, tmp_path / "store", [spread(case.calls, index, 8)], torn=index % 2 == 1)


@pytest.mark.parametrize("index", range(8))
def test_killed_anywhere_in_a_change_the_old_version_stays_until_the_new_one_is_whole(
    killer: Killer, cases: dict[str, Case], tmp_path: Path, index: int
) -> None:
    case = cases["change"]
    kill_and_check(killer, case, tmp_path / "store", [spread(case.calls, index, 8)], torn=index % 2 == 0)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("torn", [False, True], ids=["clean", "torn"])
@pytest.mark.parametrize("name", ["new", "change"])
def test_killed_at_every_single_call_a_rerun_leaves_what_an_undisturbed_run_leaves(
    killer: Killer, cases: dict[str, Case], tmp_path: Path, name: str, torn: bool
) -> None:
    case = cases[name]
    for n in range(1, len(case.calls) + 1):
        kill_and_check(killer, case, tmp_path / f"store-{n}", [n], torn=torn)
        shutil.rmtree(tmp_path / f"store-{n}")


@pytest.mark.parametrize("name", ["new", "change"])
def test_killed_again_and_again_it_still_comes_to_the_same_end(
    killer: Killer, cases: dict[str, Case], tmp_path: Path, name: str
) -> None:
    kill_and_check(killer, cases[name], tmp_path / "store", [20, 3, 30, 1, 25, 8], torn=True)


@pytest.mark.parametrize("name", ["new", "change"])
def test_killed_after_publishing_and_before_pointing_the_rerun_only_points(
    killer: Killer, cases: dict[str, Case], tmp_path: Path, name: str
) -> None:
    case = cases[name]
    number = case.calls.index("rename") + 2
    assert case.calls[number - 1] == "symlink"
    store, version = tmp_path / "store", "0001" if name == "new" else "0002"
    if case.before.exists():
        shutil.copytree(case.before, store, symlinks=True)
    assert killer.run(case.survey, store, kill_at=number) == -signal.SIGKILL
    surveys.check_version(store / "versions" / version)
    if name == "new":
        with pytest.raises(StoreError, match="no committed version"):
            open_collection(store)
    else:
        assert open_collection(store).path.name == "0001"
    before = surveys.state_on_disk(store / "versions")
    told: list[str] = []
    found = ingest(open_survey(case.survey), into=store, progress=lambda stage, *_: told.append(stage))
    assert told == []
    assert found.path == (store / "current").resolve() == store / "versions" / version
    assert surveys.state_on_disk(store / "versions") == before
    assert fingerprint(store) == case.after


def test_what_a_killed_task_left_half_written_is_not_in_the_version(
    killer: Killer, cases: dict[str, Case], tmp_path: Path
) -> None:
    case, store = cases["new"], tmp_path / "store"
    # Four batches write five files each, and a run its date; then come the leaves.
    first = [at for at, name in enumerate(case.calls, start=1) if name == "replace"][1 + 4 * 5 + 1]
    assert killer.run(case.survey, store, kill_at=first, torn=True) == -signal.SIGKILL
    [left] = store.glob("work/*/version/**/.tmp-*")
    assert left.name.endswith(".parquet")
    found = ingest(open_survey(case.survey), into=store)
    assert list(found.path.rglob(".tmp-*")) == []
    assert fingerprint(store) == case.after


def test_a_disk_that_fills_up_at_any_call_leaves_no_version_and_a_rerun_completes(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, survey = cases["new"], open_survey(cases["new"].survey)
    replaces = case.calls[: case.calls.index("rename")].count("replace")
    monkeypatch.setattr(stages, "BATCH_BYTES", 1)
    monkeypatch.setattr(ingest_plan, "TASK_BYTES", 1)
    for n in range(1, replaces + 1, 6):
        store, real, calls = tmp_path / f"store-{n}", os.replace, []

        def full(source: Any, target: Any, real: Any = real, calls: list[int] = calls, n: int = n, store: Path = store) -> None:
            ours = Path(target).is_relative_to(store)  # and not the cache of compiled kernels
            calls += [1] * ours
            if ours and len(calls) == n:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
            real(source, target)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(OSError, match="No space left on device"):
                ingest(survey, into=store)
        assert list(store.rglob(".tmp-*")) == []
        with pytest.raises(StoreError, match="no committed version"):
            open_collection(store)
        ingest(survey, into=store)
        assert fingerprint(store) == case.after


def test_nothing_is_renamed_before_its_bytes_are_on_the_disk_nor_left_before_its_folder_is(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, events = tmp_path / "store", list[tuple[str, str]]()
    fsync, replace, rename = os.fsync, os.replace, os.rename

    def synced(descriptor: int) -> None:
        fsync(descriptor)
        events.append(("sync", os.readlink(f"/proc/self/fd/{descriptor}")))

    def replaced(source: Any, target: Any) -> None:
        if not Path(target).is_relative_to(store):
            return replace(source, target)  # the cache of compiled kernels
        if not os.path.islink(source):
            assert ("sync", str(source)) in events
        replace(source, target)
        events.append(("folder of", str(Path(target).parent)))

    def renamed(source: Any, target: Any) -> None:
        if Path(target).name.startswith(".tmp-"):
            return rename(source, target)  # on its way out
        done = {name for kind, name in events if kind == "sync"}
        assert {str(path) for path in [Path(source), *Path(source).rglob("*")]} <= done
        rename(source, target)
        events.append(("folder of", str(Path(target).parent)))

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    monkeypatch.setattr(os, "rename", renamed)
    ingest(open_survey(cases["new"].survey), into=store)
    moves = [(at, name) for at, (kind, name) in enumerate(events) if kind == "folder of"]
    assert len(moves) > 40
    for at, folder in moves:
        assert ("sync", folder) in events[at:]


def test_a_damaged_intermediate_file_is_named_and_following_the_advice_helps(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey, store = open_survey(cases["new"].survey), tmp_path / "store"

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "_plan", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(survey, into=store)
    [run] = store.glob("work/*/map/*.run.arrow")
    os.truncate(run, 100)
    with pytest.raises(StoreError, match=rf"{re.escape(str(run))}: .*damaged.*delete {re.escape(str(run.parent))} and rerun"):
        ingest(survey, into=store)
    shutil.rmtree(run.parent)
    ingest(survey, into=store)
    assert fingerprint(store) == cases["new"].after


def test_an_unfinished_run_is_taken_up_and_finished_tasks_are_not_done_again(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey, store = open_survey(cases["new"].survey), tmp_path / "store"
    monkeypatch.setattr(stages, "BATCH_BYTES", 1)

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "commit_version", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(survey, into=store)
    work = [path for path in store.glob("work/*/*/*") if path.suffix in (".arrow", ".json")]
    assert {path.parent.name for path in work} == {"map", "reduce"}
    before = {path: path.stat().st_ino for path in work}
    leaves = {
        path.relative_to(next(store.glob("work/*/version"))): path.stat().st_ino
        for path in store.glob("work/*/version/**/*.parquet")
    }
    for path, inode in before.items():
        os.link(path, tmp_path / f"{inode}")  # an inode that is still linked is not given to another file
    seen: dict[Path, int] = {}
    real = stages.commit_version

    def look(*arguments: Any, **options: Any) -> Any:
        seen.update({path: path.stat().st_ino for path in before})
        return real(*arguments, **options)

    monkeypatch.setattr(stages, "commit_version", look)
    found = ingest(survey, into=store)
    assert seen == before
    assert {path: (found.path / path).stat().st_ino for path in leaves} == leaves
    assert fingerprint(store) == cases["new"].after


def test_without_resume_an_unfinished_run_is_thrown_away(
    cases: dict[str, Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey, store = open_survey(cases["new"].survey), tmp_path / "store"

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "commit_version", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(survey, into=store)
    [run] = store.glob("work/*/map/*.run.arrow")
    os.truncate(run, 100)
    ingest(survey, into=store, resume=False)
    assert fingerprint(store) == cases["new"].after
