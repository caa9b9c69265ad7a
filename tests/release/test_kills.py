"""A release that is killed is not there, or it is whole; run again, it has the bytes of one that was not disturbed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import pytest

from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest
from scalable.survey.read import open_survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables

_CHANGES = ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir")
"""Every call that changes the disk for good, by its name in ``os``."""

_KILL = """
import json, os, shutil, signal, sys
import dask
sys.path[:0] = [{tests!r}]
from release import conftest
from release.test_kills import digest
from scalable.catalog.collection import open_collection
from scalable.release.write import write_release

dask.config.set(scheduler="synchronous")
collection, recipe, base = open_collection({store!r}), conftest.{recipe}(), {base!r}


def write(into, last):
    # In a process of its own, killed before it changes the disk for the last time.
    child = os.fork()
    if not child:
        left = [last]
        def counted(call):
            def one(*arguments, **options):
                left[0] -= 1
                if left[0] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*arguments, **options)
            return one
        for name in {changes!r}:
            setattr(os, name, counted(getattr(os, name)))
        write_release(collection, recipe, into=into)
        with open(os.path.join(base, "changes"), "w") as file:
            file.write(str(last - left[0]))
        os._exit(0)
    return os.waitpid(child, 0)[1]


moments = {moments!r}
if not moments:
    # Once undisturbed: what every child would load and compile again is in memory when it begins, and nothing of the release is.
    undisturbed = os.path.join(base, "undisturbed")
    write_release(collection, recipe, into=undisturbed)
    print(json.dumps(digest(undisturbed)), flush=True)
    write(os.path.join(base, "counted"), 1 << 40)
    moments = range(1 + {share}, 1 + int(open(os.path.join(base, "changes")).read()), {shares})
for moment in moments:
    into = os.path.join(base, str(moment))
    status = write(into, moment)
    there = digest(into) if os.path.exists(into) else None
    if there is None:
        write(into, 0)
    print(json.dumps([moment, status, there, digest(into)]), flush=True)
    shutil.rmtree(into)
    shutil.rmtree(os.path.join(base, ".building-" + str(moment)), ignore_errors=True)
"""


def digest(folder: Path | str) -> str:
    """Return one digest of all files below a folder."""
    paths = [path for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    found = {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def kill_at(collection: Collection, recipe: str, base: Path, moments: list[int], share: int = 0, shares: int = 1) -> list[Any]:
    """Return what was there after a kill before each of these changes of the disk, and after a rerun.

    Without ``moments``, of a share of all changes that there are, behind the digest of an undisturbed release.
    """
    tests = str(Path(__file__).parents[1])
    code = _KILL.format(tests=tests, store=str(collection.path), base=str(base), moments=moments, recipe=recipe, share=share,
                        shares=shares, changes=_CHANGES)  # fmt: skip
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def check(killed: list[Any], whole: str) -> int:
    """Check every kill and return how many left a release that was whole."""
    for moment, status, before, after in killed:
        assert status == signal.SIGKILL, moment
        assert before in (None, whole), f"killed at change {moment}: a release that is not whole can be read"
        assert after == whole, f"killed at change {moment}: other bytes than those of an undisturbed run"
    return sum(before is not None for _, _, before, _ in killed)


def test_a_killed_release_is_not_there_and_a_rerun_gives_the_same_bytes(
    collection: Collection, released: Path, tmp_path: Path
) -> None:
    found = kill_at(collection, "of_objects", tmp_path, [150])
    assert check(found, digest(released)) == 0


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Few stars in few leaves: what is done at every moment of a release, and no more of it."""
    folder = tmp_path_factory.mktemp("few")
    write_tables(make_sky(SkySpec(seed=11, fields=1, stars_per_field=60, epochs=2)), folder)
    survey = open_survey(folder / "survey.yaml")
    small = survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 0.05})})
    with dask.config.set(scheduler="threads"):
        made = ingest(small, into=folder / "store")
    assert 2 <= len(made.detections.leaves) <= 8
    return made


@pytest.mark.long
@pytest.mark.parametrize("recipe", ["of_objects", "of_detections"])
@pytest.mark.parametrize("share", range(6))
def test_killed_before_any_change_of_the_disk(few: Collection, tmp_path: Path, recipe: str, share: int) -> None:
    whole, *killed = kill_at(few, recipe, tmp_path, [], share, 6)
    assert len(killed) > 25
    # A release is there as a whole from the rename on, before its working folder is removed.
    assert 0 < check(killed, whole) < len(killed)
