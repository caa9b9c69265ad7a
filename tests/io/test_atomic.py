"""Files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest

from scalable.errors import StoreError
from scalable.io import atomic
from scalable.io.atomic import aside, link, point, publish, write_bytes, write_text


class Stop(Exception):
    """What interrupts a writer."""


def stop_halfway(path: Path) -> None:
    with aside(path) as temporary:
        temporary.write_text("half")
        raise Stop


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_a_file_appears_under_its_name_only_when_the_body_has_ended(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "down" / "a.txt"
    with aside(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
        assert temporary.parent == path.parent
        assert temporary.name.startswith(".tmp-")
    assert path.read_text() == "whole"
    assert names(path.parent) == ["a.txt"]


def test_an_exception_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(Stop):
        stop_halfway(tmp_path / "a.txt")
    assert names(tmp_path) == []


def test_an_exception_leaves_the_old_file_as_it_was(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    with pytest.raises(Stop):
        stop_halfway(tmp_path / "a.txt")
    assert names(tmp_path) == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"


def test_a_body_that_writes_nothing_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="a.txt: cannot be written"), aside(tmp_path / "a.txt"):
        pass
    assert names(tmp_path) == []


def test_bytes_and_text_arrive_as_given(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a", memoryview(b"\x00\xff\r\n"))
    write_text(tmp_path / "b", "Größe\r\n")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff\r\n"
    assert (tmp_path / "b").read_bytes() == "Größe\r\n".encode()


def test_a_reader_never_sees_part_of_a_file_that_is_written_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_bytes(path, bytes(100_000))

    def read() -> tuple[int, int]:
        data = path.read_bytes()
        return len(data), data.count(data[:1])

    seen = _read_while(read, lambda n: write_bytes(path, bytes([n % 251]) * 100_000))
    assert set(seen) == {(100_000, 100_000)}


def test_a_reader_never_sees_a_missing_link_while_it_is_pointed_elsewhere(tmp_path: Path) -> None:
    for version in ("v0", "v1"):
        (tmp_path / version).mkdir()
        (tmp_path / version / "name").write_text(version)
    link = tmp_path / "current"
    point(link, "v0")
    seen = _read_while(lambda: (link / "name").read_text(), lambda n: point(link, f"v{n % 2}"))
    assert set(seen) == {"v0", "v1"}
    assert os.readlink(link) == "v1"
    assert names(tmp_path) == ["current", "v0", "v1"]


def _read_while(read, write) -> list:
    """Read in a thread as fast as it goes while this one writes 100 times, and at least once before and after."""
    seen: list = []
    failed: list[BaseException] = []
    ended, begun = threading.Event(), threading.Event()

    def loop() -> None:
        try:
            while True:
                last = ended.is_set()
                seen.append(read())
                begun.set()
                if last:
                    return
        except OSError as error:
            failed.append(error)
            begun.set()

    reader = threading.Thread(target=loop)
    reader.start()
    begun.wait(10)
    for n in range(100):
        write(n)
    ended.set()
    reader.join(10)
    assert failed == []
    assert len(seen) > 2
    return seen


def test_a_link_may_be_made_before_its_target(tmp_path: Path) -> None:
    point(tmp_path / "current", "versions/v1")
    assert os.readlink(tmp_path / "current") == "versions/v1"
    assert not (tmp_path / "current").exists()


def test_a_published_folder_appears_at_once_with_all_it_holds(tmp_path: Path) -> None:
    folder = tmp_path / ".tmp-new"
    (folder / "dataset").mkdir(parents=True)
    (folder / "dataset" / "leaf").write_text("1")
    (folder / "properties").write_text("2")
    publish(folder, tmp_path / "versions" / "v1")
    assert names(tmp_path) == ["versions"]
    assert (tmp_path / "versions" / "v1" / "dataset" / "leaf").read_text() == "1"
    assert (tmp_path / "versions" / "v1" / "properties").read_text() == "2"


def test_publishing_over_what_is_there_changes_neither(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        publish(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old" / "a").read_text() == "old"
    assert (tmp_path / "new" / "a").read_text() == "new"


def test_all_bytes_are_synced_before_the_name_appears_and_the_name_after(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    sync, replace, rename = atomic.sync, os.replace, os.rename

    def place(path: object) -> str:
        return "/".join(part for part in Path(str(path)).relative_to(tmp_path).parts if not part.startswith(".tmp-")) or "."

    monkeypatch.setattr(atomic, "sync", lambda path: (events.append(f"sync {place(path)}"), sync(path)))
    monkeypatch.setattr(os, "replace", lambda a, b: (events.append(f"rename {place(b)}"), replace(a, b)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append(f"rename {place(b)}"), rename(a, b)))
    write_text(tmp_path / "new" / "a", "1")
    assert events == ["sync new", "rename new/a", "sync new"]
    events.clear()
    publish(tmp_path / "new", tmp_path / "v1")
    assert events == ["sync new/a", "sync new", "rename v1", "sync ."]
    events.clear()
    point(tmp_path / "current", "v1")
    assert events == ["rename current", "sync ."]


def test_a_link_that_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    with pytest.raises(IsADirectoryError):
        point(tmp_path / "current", "v1")
    assert [path.name for path in tmp_path.iterdir()] == ["current"]


def test_a_link_is_the_same_file_and_a_copy_where_there_are_no_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "old"
    old.write_bytes(b"bytes")
    link(old, tmp_path / "a" / "new")
    assert (tmp_path / "a" / "new").samefile(old)

    def refused(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refused)
    link(old, tmp_path / "b" / "new")
    assert not (tmp_path / "b" / "new").samefile(old)
    assert (tmp_path / "b" / "new").read_bytes() == b"bytes"
    monkeypatch.undo()
    with pytest.raises(FileNotFoundError):
        link(tmp_path / "absent", tmp_path / "c")
