"""Whatever sequence of adding, damaging, repairing, ingesting, appending, killing and cleaning keeps what is promised."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from surveys import Observation, check_version, detections, fingerprint, write_survey

from scalable.catalog import append as append_stages
from scalable.catalog import ingest as stages
from scalable.catalog import ingest_map, ingest_plan
from scalable.catalog.append import append
from scalable.catalog.collection import Collection, open_collection
from scalable.catalog.ingest import ingest
from scalable.catalog.versions import expire_versions
from scalable.errors import AdditionError, InputError, StoreError
from scalable.survey.description import Survey

CALLS = ("replace", "rename", "link", "symlink", "unlink", "mkdir", "rmdir")


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_at(number: int | None) -> Iterator[None]:
    """End the process at its ``number``-th call that changes the file system: neither that call nor any later one happens."""
    done = 0

    def wrapped(real: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if number is not None and done >= number:
                raise Killed
            return real(*arguments, **options)

        return call

    with mock.patch.multiple(os, fsync=lambda _: None, **{name: wrapped(getattr(os, name)) for name in CALLS}):
        yield


def contents(version: Path) -> dict[str, str]:
    """Return the digest of every file but the manifest, which names the run."""
    return {name: digest for name, digest in fingerprint(version).items() if name != "manifest.json"}


kills = st.none() | st.integers(1, 90)
"""At which call to end; a small ingest makes about eighty."""


class Ingests(RuleBasedStateMachine):
    """A survey that grows and breaks, and its store."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="states-"))
        self.store = self.folder / "store"
        self.files: list[Observation] = []
        self.whole: dict[int, tuple[bytes, tuple[int, int]]] = {}
        self.damaged: set[int] = set()
        self.versions: dict[str, dict[str, str]] = {}
        self.current: str | None = None
        self.add([1, 2, 3], bad=False)

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def path(self, number: int) -> Path:
        return self.folder / self.files[number - 1].path

    # What happens to the files.

    @precondition(lambda self: len(self.files) < 7)
    @rule(ids=st.lists(st.integers(1, 9), min_size=1, max_size=6, unique=True), bad=st.booleans())
    def add(self, ids: list[int], bad: bool) -> None:
        """A new file: objects all over the sky, one of its rows perhaps without a position."""
        number = len(self.files) + 1
        ra, dec = np.array(ids) * 37.0 + number * 1e-4, np.array(ids) * 9.0
        dec[0] = np.nan if bad else dec[0]
        file = Observation(number, "J" if number % 2 else "Ks", float(number), detections(ids, ra, dec))
        self.files.append(file)
        self.survey: Survey = write_survey(self.folder, [*(replace(f, table=None) for f in self.files[:-1]), file])
        state = self.path(number).stat()
        self.whole[number] = self.path(number).read_bytes(), (state.st_atime_ns, state.st_mtime_ns)

    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(1, len(self.files)))
        self.path(number).write_bytes(self.whole[number][0][:4000])
        self.damaged.add(number)

    @precondition(lambda self: self.damaged)
    @rule(data=st.data())
    def repair(self, data: st.DataObject) -> None:
        """Bring a file back, with its date, as a copy from an archive has it."""
        number = data.draw(st.sampled_from(sorted(self.damaged)))
        self.path(number).write_bytes(self.whole[number][0])
        os.utime(self.path(number), ns=self.whole[number][1])
        self.damaged.discard(number)

    # What happens to the store.

    @rule(kill=kills)
    def ingest(self, kill: int | None) -> None:
        nothing = not self.rows()[0]
        self.run(kill, ingest, InputError if nothing else None)

    @rule(kill=kills)
    def append(self, kill: int | None) -> None:
        error: type[Exception] | None = None
        if self.current is None:
            error = StoreError
        else:
            observations = open_collection(self.store).observations
            rows = zip(observations["observation_id"].to_pylist(), observations["status"].to_pylist(), strict=True)
            stored = {number for number, status in rows if status == "stored"}
            new = set(range(1, len(self.files) + 1)) - stored
            if stored & self.damaged:
                error = AdditionError
            elif new and new <= self.damaged:
                error = InputError
        self.run(kill, append, error)

    @precondition(lambda self: self.current is not None)
    @rule(kill=kills, keep=st.integers(1, 2))
    def clean(self, kill: int | None, keep: int) -> None:
        try:
            with killed_at(kill):
                expire_versions(self.store, keep=keep)
        except Killed:
            pass
        else:
            assert len(list((self.store / "versions").iterdir())) <= keep + 1  # and the current one, if it is an older one
        for name in set(self.versions) - {path.name for path in (self.store / "versions").iterdir()}:
            assert name != self.current
            del self.versions[name]

    def run(self, kill: int | None, verb: Any, error: type[Exception] | None) -> None:
        """Run a verb that may be killed; where it comes to its end, that is what ingesting everything at once gives."""
        found, raised = None, None
        try:
            with killed_at(kill):
                found = verb(self.survey, into=self.store)
        except Killed:
            self.note()
            return
        except (InputError, StoreError) as refused:
            raised = refused
        assert type(raised) is (error or type(None)), raised
        if found is None:
            return
        self.note()
        assert self.current == found.path.name
        assert sorted(path.name for path in self.store.iterdir()) == ["current", "lock", "versions"]
        self.balance(found)
        with killed_at(None):
            whole = ingest(self.survey, into=self.folder / "whole")
        assert contents(found.path) == contents(whole.path)
        assert found.accounting == whole.accounting
        shutil.rmtree(self.folder / "whole")

    def note(self) -> None:
        """Remember versions that are there now, and which one readers open; it never goes back."""
        for path in (self.store / "versions").glob("*"):
            if path.name not in self.versions:
                check_version(path)
                self.versions[path.name] = fingerprint(path)
        if (self.store / "current").is_symlink():
            now = open_collection(self.store).path.name
            assert self.current is None or now >= self.current
            self.current = now

    def rows(self) -> tuple[Counter[tuple[int, int]], Counter[tuple[int, int]]]:
        """Return (observation, row) of every row to store and of every row to reject."""
        stored, rejected = Counter[tuple[int, int]](), Counter[tuple[int, int]]()
        for file in self.files:
            if file.id not in self.damaged:
                assert file.table is not None
                for row, dec in enumerate(file.table["Dec"].to_pylist()):
                    (rejected if np.isnan(dec) else stored)[file.id, row] += 1
        return stored, rejected

    def balance(self, found: Collection) -> None:
        stored, rejected = self.rows()
        for table, expected in ((found.detections.compute(), stored), (found.rejected, rejected)):
            pairs = zip(table["observation_id"].to_pylist(), table["source_row"].to_pylist(), strict=True)
            assert Counter(pairs) == expected

    @invariant()
    def readers_see_whole_versions_that_stay_as_they_were(self) -> None:
        for name, before in self.versions.items():
            assert fingerprint(self.store / "versions" / name) == before
        if self.current is None:
            with pytest.raises(StoreError, match="no committed version"):
                open_collection(self.store)
        else:
            assert open_collection(self.store).path.name == self.current


def explore(examples: int, steps: int) -> None:
    options = settings(max_examples=examples, stateful_step_count=steps, deadline=None, suppress_health_check=list(HealthCheck))
    with dask.config.set(scheduler="sync"), pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        for module in (stages, append_stages):
            patch.setattr(module, "BATCH_BYTES", 1)
        patch.setattr(ingest_plan, "TASK_BYTES", 1)
        patch.setattr(ingest_map, "BLOCK_BYTES", 100)
        run_state_machine_as_test(Ingests, settings=options)


def test_whatever_happens_in_whatever_order_rows_are_stored_once_and_readers_see_whole_versions() -> None:
    explore(8, 10)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_many_long_sequences_of_everything_that_can_happen() -> None:
    explore(200, 25)
