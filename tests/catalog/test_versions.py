"""The versions of a store: what each added, and how old ones go without a reader ever seeing half of one."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from click.testing import CliRunner
from surveys import Observation, check_store, check_version, detections, fingerprint, write_survey

import scalable
from scalable.catalog import collection as stores
from scalable.catalog import versions
from scalable.cli.console import FAULT
from scalable.cli.main import main
from scalable.errors import StoreError


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with three versions, each with one observation more, and products of each."""
    folder = tmp_path_factory.mktemp("three")
    store = folder / "store"
    seen = []
    for number in (1, 2, 3):
        seen.append(Observation(number, "J", float(number), detections([1, 2, 3], [5.0, 15.0, 25.0], np.zeros(3))))
        survey = write_survey(folder / "s", seen)
        with dask.config.set(scheduler="sync"):
            scalable.ingest(survey, into=store)
        product = store / "products" / f"{number:04d}" / "bands" / "leaf.parquet"
        product.parent.mkdir(parents=True)
        product.write_bytes(bytes(1000 * number))
    return store


@pytest.fixture
def store(three: Path, tmp_path: Path) -> Path:
    """A copy of the three versions in which a file of the second is that of the first, as unchanged leaves are."""
    store = tmp_path / "store"
    shutil.copytree(three, store, symlinks=True)
    for first in (store / "versions" / "0001").rglob("*.parquet"):
        if first.name == "wide_objects.parquet":
            second = store / "versions" / "0002" / first.name
            second.unlink()
            os.link(first, second)
    return store


def used_bytes(folder: Path) -> int:
    """Return the bytes of the files below a folder, links counted once."""
    states = [path.lstat() for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return sum({state.st_ino: state.st_size for state in states}.values())


def test_the_log_lists_versions_newest_first_with_what_each_added(store: Path) -> None:
    found = scalable.list_versions(store)
    assert [(v.number, v.stored, v.objects, v.files, v.quarantined) for v in found] == [
        (3, 9, 3, 3, 0), (2, 6, 3, 2, 0), (1, 3, 3, 1, 0),
    ]  # fmt: skip
    assert [version.current for version in found] == [True, False, False]
    manifests = [json.loads((store / "versions" / f"000{n}" / "manifest.json").read_text()) for n in (3, 2, 1)]
    assert [(v.date, v.run_id) for v in found] == [(m["date"], m["run_id"]) for m in manifests]
    assert sum(version.added_bytes for version in found) == used_bytes(store / "versions")
    shared = (store / "versions" / "0001" / "wide_objects.parquet").stat().st_size
    assert found[2].added_bytes == used_bytes(store / "versions" / "0001")
    assert found[1].added_bytes == used_bytes(store / "versions" / "0002") - shared > 0


@pytest.mark.parametrize(("keep", "gone"), [(1, (2, 1)), (2, (1,)), (3, ()), (9, ())])
def test_all_but_the_newest_go_with_their_products_and_free_what_was_said(store: Path, keep: int, gone: tuple[int, ...]) -> None:
    before, size = fingerprint(store), used_bytes(store)
    said = scalable.expire_versions(store, keep=keep, dry_run=True)
    assert fingerprint(store) == before
    done = scalable.expire_versions(store, keep=keep)
    assert done == said
    assert done.versions == gone
    assert done.freed_bytes == size - used_bytes(store)
    doomed = [f"{kind}/{number:04d}" for kind in ("versions", "products") for number in gone]
    assert fingerprint(store) == {
        name: state for name, state in before.items() if not any(f"{name}/".startswith(f"{folder}/") for folder in doomed)
    }
    for version in scalable.list_versions(store):
        check_version(store / "versions" / f"{version.number:04d}")


def test_a_file_that_a_kept_version_links_to_frees_nothing_and_stays(store: Path) -> None:
    shared = (store / "versions" / "0001" / "wide_objects.parquet").stat().st_size
    first = used_bytes(store / "versions" / "0001") + used_bytes(store / "products" / "0001")
    assert scalable.expire_versions(store, keep=2).freed_bytes == first - shared
    check_version(store / "versions" / "0002")


def test_the_current_version_stays_even_if_it_is_the_oldest(store: Path) -> None:
    (store / "current").unlink()
    (store / "current").symlink_to("versions/0001")
    assert scalable.expire_versions(store).versions == (2,)
    assert [(v.number, v.current) for v in scalable.list_versions(store)] == [(3, False), (1, True)]
    check_store(store)


def test_a_catalogue_that_is_open_on_a_kept_version_is_not_disturbed(store: Path) -> None:
    kept = scalable.open_collection(store / "versions" / "0002").detections
    current = scalable.open_collection(store).detections
    wanted = kept.compute(), current.compute()
    scalable.expire_versions(store, keep=2)
    assert kept.compute().equals(wanted[0])
    assert current.compute().equals(wanted[1])


class Killed(BaseException):
    """The process ends here."""


def _killed(*_: Any, **__: Any) -> None:
    raise Killed


def _kill_second_rename(patch: pytest.MonkeyPatch) -> None:
    rename = Path.rename

    def once(self: Path, target: Path) -> Path:
        patch.setattr(Path, "rename", _killed)
        return rename(self, target)

    patch.setattr(Path, "rename", once)


def _kill_before_emptying(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(versions, "remove_renamed", lambda store: patch.setattr(versions, "remove_renamed", _killed))


def _kill_in_the_middle_of_a_folder(patch: pytest.MonkeyPatch) -> None:
    def half(folder: Path, **_: Any) -> None:
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        for path in files[: (len(files) + 1) // 2]:
            path.unlink()
        raise Killed

    patch.setattr(stores.shutil, "rmtree", half)


@pytest.mark.parametrize("kill", [_kill_second_rename, _kill_before_emptying, _kill_in_the_middle_of_a_folder])
@pytest.mark.parametrize("then", ["clean", "ingest"])
def test_killed_half_way_every_visible_version_is_whole_and_the_next_sweep_finishes(
    store: Path, three: Path, kill: Callable[[pytest.MonkeyPatch], None], then: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        kill(patch)
        with pytest.raises(Killed):
            scalable.expire_versions(store)
    assert list(store.glob(".tmp-*"))
    left = scalable.list_versions(store)
    for version in left:
        check_version(store / "versions" / f"{version.number:04d}")
    check_store(store)
    if then == "clean":
        scalable.expire_versions(store)
        assert [version.number for version in scalable.list_versions(store)] == [3]
        assert [path.name for path in (store / "products").iterdir()] == ["0003"]
    else:
        scalable.ingest(scalable.open_survey(three.parent / "s" / "survey.yaml"), into=store)
        assert scalable.list_versions(store) == left
    assert not list(store.glob(".tmp-*"))


def test_an_unfinished_ingest_keeps_its_work(store: Path) -> None:
    (store / "work" / "abc").mkdir(parents=True)
    (store / "work" / "abc" / "run.json").write_text("{}")
    scalable.expire_versions(store)
    assert (store / "work" / "abc" / "run.json").exists()


def test_what_cannot_be_removed_is_named(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores.shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(StoreError, match=r"\.tmp-products-0002: not all of it can be removed"):
        scalable.expire_versions(store)
    assert [version.number for version in scalable.list_versions(store)] == [3]


def test_while_another_process_holds_the_lock_nothing_is_removed(store: Path) -> None:
    before = fingerprint(store)
    with (store / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(StoreError, match="another ingest or clean of this store is running; wait for it"):
            scalable.expire_versions(store)
        assert scalable.expire_versions(store, dry_run=True).versions == (2, 1)
    assert fingerprint(store) == before


def test_where_there_is_no_store_none_is_made(tmp_path: Path) -> None:
    for verb in (scalable.list_versions, scalable.expire_versions):
        with pytest.raises(StoreError, match="nowhere: no committed version here"):
            verb(tmp_path / "nowhere")
    assert not list(tmp_path.iterdir())


def test_at_least_one_version_is_kept(store: Path) -> None:
    with pytest.raises(StoreError, match="keep is 0; at least 1"):
        scalable.expire_versions(store, keep=0)


def test_the_commands_say_what_the_verbs_return(store: Path) -> None:
    def run(*arguments: str) -> str:
        found = CliRunner().invoke(main, [*arguments, "--store", str(store)])
        assert found.exit_code == 0, found.output
        return found.output

    versions = json.loads(run("log", "--json"))
    assert [version["number"] for version in versions] == [3, 2, 1]
    shown = run("log")
    assert "0003 current" in shown
    assert versions[0]["run_id"][:8] in shown
    assert json.loads(run("clean", "--dry-run", "--json"))["versions"] == [2, 1]
    assert "would be removed: 0001" in run("clean", "--keep", "2", "--dry-run")
    assert "versions removed: 0002, 0001" in run("clean")
    assert "versions removed: none; 0.0 MB" in run("clean")


def test_a_mistake_gets_a_message_and_no_traceback(tmp_path: Path) -> None:
    for verb in ("log", "clean"):
        found = CliRunner().invoke(main, [verb, "--store", str(tmp_path / "nowhere")])
        assert found.exit_code == FAULT
        assert "no committed version" in " ".join(found.output.split())
        assert "Traceback" not in found.output
