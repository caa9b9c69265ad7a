"""Workers and whole runs that are killed at random moments on a cluster: run again, they end as if nothing had happened."""

from __future__ import annotations

import contextlib
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import dask
import psutil
import pyarrow as pa
import pytest
from surveys import check_version, fingerprint

from scalable.catalog.collection import Collection, open_collection
from scalable.errors import StoreError
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables

DRIVER = """
import json, sys
import dask
from scalable.catalog import append, ingest, ingest_plan
from scalable.cluster import connect
from scalable.survey.read import open_survey

ingest.BATCH_BYTES = append.BATCH_BYTES = ingest_plan.TASK_BYTES = 1
if __name__ == "__main__":
    with connect(workers=2), dask.config.set(scheduler=None):
        print("ready", flush=True)
        for line in sys.stdin:
            order = json.loads(line)
            verb = ingest.ingest if order["verb"] == "ingest" else append.append
            try:
                verb(open_survey(order["survey"]), into=order["store"])
                print("done", flush=True)
            except Exception as error:
                print(f"{type(error).__name__}: {error}".replace("\\n", " "), flush=True)
"""


@dataclass(frozen=True)
class Case:
    """A change of a store: the verb, what is there before, the survey, what an undisturbed run leaves and how long it takes."""

    verb: str
    before: Path
    survey: Path
    after: dict[str, str]
    seconds: float


class Driver:
    """A process with a cluster of two workers that runs one ingest or append after another."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=os.environ | {"SOURCE_DATE_EPOCH": "1700000000"},
            start_new_session=True,
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def begin(self, verb: str, survey: Path, store: Path) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"verb": verb, "survey": str(survey), "store": str(store)}) + "\n")
        self.process.stdin.flush()

    def ends_within(self, seconds: float) -> bool:
        return bool(select.select([self.process.stdout], [], [], seconds)[0])

    def end(self) -> str:
        """Return what became of the run; without an answer, all is dead and a new driver is started."""
        line = self._line()
        if not line:
            self.close()
            self._start()
        return line or "killed"

    def kill(self, whom: str, chance: random.Random) -> bool:
        """Kill one worker, if there is one, the driver alone (its workers notice, a little later), or all at once."""
        if whom == "all":
            os.killpg(self.process.pid, signal.SIGKILL)
        elif whom == "driver":
            self.process.kill()
        else:
            workers = []
            for child in psutil.Process(self.process.pid).children():
                with contextlib.suppress(psutil.NoSuchProcess):  # killed before, and not yet started again
                    workers += [child] if "spawn_main" in " ".join(child.cmdline()) else []
            if not workers:
                return False
            chance.choice(workers).kill()
        return True

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()


@dataclass
class Watcher:
    """A reader that opens a store again and again, and holds what it finds against the version's own manifest."""

    store: Path
    old: Collection | None
    looks: int = 0
    versions: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)

    def __enter__(self) -> Watcher:
        self._stop = threading.Event()
        self._rows: pa.Table | None = self.old and self.old.detections.compute(scheduler="sync")
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            try:
                self._look()
            except Exception as error:
                self.problems.append(repr(error))
            self.looks += 1

    def _look(self) -> None:
        try:
            found = open_collection(self.store)
        except StoreError as error:
            if self.old is not None or "no committed version here" not in str(error):
                raise
            return
        if found.path.name not in self.versions:
            check_version(found.path)
            self.versions.add(found.path.name)
        if self.old is not None and self.looks % 10 == 0:
            assert self.old.detections.compute(scheduler="sync").equals(self._rows)


@pytest.fixture(scope="module")
def driver() -> Iterator[Driver]:
    driver = Driver()
    yield driver
    driver.close()


@pytest.fixture(scope="module")
def cases(driver: Driver, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Case]:
    """Six files, one of them cut, ingested at once; and the last two appended to a version of the first."""
    folder = tmp_path_factory.mktemp("kills")
    write_tables(make_sky(SkySpec(seed=6, fields=1, stars_per_field=150, bands=("J", "Ks"), epochs=5)), folder, bad=["truncated"])
    text = (folder / "survey.yaml").read_text()
    assert "leaf_mb: 0.25" in text
    (folder / "survey.yaml").write_text(text.replace("leaf_mb: 0.25", "leaf_mb: 0.02"))
    header, *index = (folder / "observations.csv").read_text().splitlines(keepends=True)
    mjd = header.strip().split(",").index("MJD")
    index.sort(key=lambda line: float(line.strip().split(",")[mjd]))
    (folder / "observations.csv").write_text("".join([header, *index]))
    survey = folder / "survey.yaml"

    def run(verb: str, survey: Path, store: Path) -> float:
        start = time.monotonic()
        driver.begin(verb, survey, store)
        assert driver.end() == "done"
        return time.monotonic() - start

    run("ingest", survey, folder / "warm")
    seconds = run("ingest", survey, folder / "whole")
    (folder / "observations.csv").write_text("".join([header, *index[:-2]]))
    run("ingest", survey, folder / "part")
    (folder / "observations.csv").write_text("".join([header, *index]))
    shutil.copytree(folder / "part", folder / "both", symlinks=True)
    whole = Case("ingest", folder / "nothing", survey, fingerprint(folder / "whole"), seconds)
    seconds = run("append", survey, folder / "both")
    return {"ingest": whole, "append": Case("append", folder / "part", survey, fingerprint(folder / "both"), seconds)}


def kill_and_check(driver: Driver, case: Case, store: Path, whom: list[str], chance: random.Random) -> Counter[str]:
    """Kill at random moments, run again until it is done, and hold the end against an undisturbed run; return the kills."""
    kills = Counter[str]()
    old = None
    if case.before.exists():
        shutil.copytree(case.before, store, symlinks=True)
        old = open_collection(store)
    waiting = list(whom)
    with dask.config.set(scheduler="sync"), Watcher(store, old) as watcher:
        for _ in range(2 + 2 * len(whom)):
            driver.begin(case.verb, case.survey, store)
            while waiting and not driver.ends_within(chance.uniform(0, case.seconds)):
                kills[waiting[0]] += driver.kill(waiting.pop(0), chance)
            answer = driver.end()
            if answer == "done":
                break
            assert answer == "killed" or "ClusterError" in answer, answer
        assert answer == "done"
    assert watcher.problems == []
    assert watcher.looks > 0
    found = open_collection(store)
    check_version(found.path)
    assert fingerprint(store) == case.after
    return kills


@pytest.mark.parametrize(
    ("name", "whom"), [("ingest", ["worker", "driver"]), pytest.param("append", ["worker"], marks=pytest.mark.long)]
)
def test_killed_workers_and_killed_runs_cost_nothing_but_time(
    driver: Driver, cases: dict[str, Case], tmp_path: Path, name: str, whom: list[str]
) -> None:
    kills = kill_and_check(driver, cases[name], tmp_path / "store", whom, random.Random(1))
    assert kills.total() >= 1


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", ["ingest", "append"])
def test_fifty_kills_lose_or_double_no_row_and_show_no_half_version(
    driver: Driver, cases: dict[str, Case], tmp_path: Path, name: str
) -> None:
    chance, kills = random.Random(2), Counter[str]()
    for trial in range(100):
        whom = chance.choices(["worker", "driver", "all"], weights=[3, 1, 1], k=chance.randint(1, 3))
        kills += kill_and_check(driver, cases[name], tmp_path / f"store-{trial}", whom, chance)
        shutil.rmtree(tmp_path / f"store-{trial}")
        if kills.total() >= 50:
            break
    print(f"{name}: {dict(kills)} in {trial + 1} trials")
    assert kills.total() >= 50
    assert set(kills) == {"worker", "driver", "all"}
