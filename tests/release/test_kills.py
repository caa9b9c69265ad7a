"""A release that is killed is not there, or it is whole; run again, it has the bytes of one that was not disturbed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from scalable.catalog.collection import Collection

_KILL = """
import json, os, shutil, signal, sys
import dask
sys.path[:0] = [{tests!r}]
from release.conftest import of_objects
from release.test_kills import digest
from scalable.catalog.collection import open_collection
from scalable.release.write import write_release

collection, recipe, base = open_collection({store!r}), of_objects(), {base!r}


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
        for name in ("replace", "rename", "fsync", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        with dask.config.set(scheduler="synchronous"):
            write_release(collection, recipe, into=into)
        with open({changes!r}, "w") as file:
            file.write(str(last - left[0]))
        os._exit(0)
    return os.waitpid(child, 0)[1]


for moment in {moments!r}:
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


def kill_at(collection: Collection, base: Path, moments: list[int]) -> list[list[object]]:
    """Kill a release at each of these changes of the disk, run it again, and return what was there before and after."""
    tests = str(Path(__file__).parents[1])
    code = _KILL.format(tests=tests, store=str(collection.path), base=str(base), moments=moments, changes=str(base / "changes"))
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=280)
    assert found.returncode == 0, found.stderr
    return [json.loads(line) for line in found.stdout.splitlines()]


def check(found: list[list[object]], whole: str) -> int:
    """Check every kill and return how many left a release that was whole."""
    for moment, status, before, after in found:
        assert status == signal.SIGKILL, moment
        assert before in (None, whole), f"killed at change {moment}: a release that is not whole can be read"
        assert after == whole, f"killed at change {moment}: other bytes than those of an undisturbed run"
    return sum(before is not None for _, _, before, _ in found)


def test_a_killed_release_is_not_there_and_a_rerun_gives_the_same_bytes(
    collection: Collection, released: Path, tmp_path: Path
) -> None:
    assert check(kill_at(collection, tmp_path, [150]), digest(released)) == 0


@pytest.mark.long
@pytest.mark.parametrize("share", range(8))
def test_killed_at_any_change_of_the_disk(collection: Collection, released: Path, tmp_path: Path, share: int) -> None:
    ((_, status, there, _),) = kill_at(collection, tmp_path, [1 << 40])
    assert (status, there) == (0, digest(released))
    changes = int((tmp_path / "changes").read_text())
    assert changes > 100
    moments = [*range(1 + share, changes + 1, 8)]
    whole = check(kill_at(collection, tmp_path, moments), digest(released))
    assert whole < len(moments)
