"""What ingest and append do where input, disk or paths change under them: a reason and a way on, and never half a version."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
from surveys import Observation, check_store, detections, fingerprint, read_member, write_survey

import scalable
from scalable.catalog import ingest as stages
from scalable.catalog import ingest_map
from scalable.catalog.append import append
from scalable.catalog.collection import Collection, open_collection
from scalable.catalog.ingest import ingest
from scalable.catalog.versions import expire_versions
from scalable.errors import InputError, StoreError


@pytest.fixture(autouse=True)
def _here_at_a_fixed_date(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with dask.config.set(scheduler="sync"):
        yield


def night(number: int, rows: int = 200) -> Observation:
    """One file of ``rows`` objects, the same ones in every file."""
    ids = np.arange(rows)
    return Observation(number, "J", float(number), detections(ids, 10.0 + ids * 0.01, np.zeros(rows)))


FILES = [night(1), night(2), night(3)]


def rows_of(collection: Collection) -> dict[int, int]:
    """Return the number of rows stored of each observation."""
    found: dict[int, int] = {}
    for table in read_member(collection, "detections").values():
        for number in table["observation_id"].to_pylist():
            found[number] = found.get(number, 0) + 1
    return found


def contents(collection: Collection) -> dict[str, str]:
    """Return the digest of every file but the manifest, which names the run."""
    return {name: digest for name, digest in fingerprint(collection.path).items() if name != "manifest.json"}


# Files that change.


def _grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(bytes(2880))


def _write_over(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-2880] + data[-2880:][::-1])
    os.utime(path, ns=(0, 1))


def _replace(path: Path) -> None:
    state = path.stat()
    shutil.copy(path, path.with_suffix(".new"))
    os.utime(path.with_suffix(".new"), ns=(state.st_atime_ns, state.st_mtime_ns))
    path.with_suffix(".new").rename(path)


def _cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def disturb(monkeypatch: pytest.MonkeyPatch, path: Path, change: Callable[[Path], None]) -> None:
    """Change a file when its first block has been read."""
    real, done = ingest_map.apply_rules, list[Path]()

    def changing(table: Any, schema: Any, rules: Any) -> Any:
        if table["StarID"].num_chunks and not done and observed == [str(path)]:
            done.append(path)
            change(path)
        return real(table, schema, rules)

    observed: list[str] = []
    scan = ingest_map.scan_file

    def watching(source: Any, *arguments: Any) -> Any:
        observed[:] = [source.path]
        return scan(source, *arguments)

    monkeypatch.setattr(ingest_map, "apply_rules", changing)
    monkeypatch.setattr(ingest_map, "scan_file", watching)


@pytest.mark.parametrize("change", [_grow, _write_over, _replace, _cut])
@pytest.mark.parametrize("run_bytes", [1000, 1 << 30], ids=["several runs a file", "one run"])
def test_a_file_that_is_changed_while_it_is_read_is_set_aside_and_comes_in_when_it_rests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], run_bytes: int
) -> None:
    survey = write_survey(tmp_path, FILES)
    path = tmp_path / FILES[1].path
    whole = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(ingest_map, "BLOCK_BYTES", 1000)
        patch.setattr(ingest_map, "RUN_BYTES", run_bytes)
        disturb(patch, path, change)
        found = ingest(survey, into=tmp_path / "store")
    assert rows_of(found) == {1: 200, 3: 200}
    reason = (found.path / "quarantine.csv").read_text().splitlines()[1]
    assert FILES[1].path in reason
    assert ("file ends" if change is _cut else "was changed while it was read; run again when it is complete") in reason
    check_store(tmp_path / "store")
    path.write_bytes(whole)
    added = append(survey, into=tmp_path / "store")
    assert contents(added) == contents(ingest(survey, into=tmp_path / "whole"))


def test_a_new_file_that_is_changed_while_it_is_read_is_not_appended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ingest(write_survey(tmp_path, FILES[:1]), into=tmp_path / "store")
    survey = write_survey(tmp_path, FILES)
    with monkeypatch.context() as patch:
        disturb(patch, tmp_path / FILES[2].path, _grow)
        found = append(survey, into=tmp_path / "store")
    assert rows_of(found) == {1: 200, 2: 200}
    assert found.accounting["quarantined"] == 1
    assert rows_of(Collection(first.path, first.manifest)) == {1: 200}
    again = append(survey, into=tmp_path / "store")
    assert rows_of(again) == {1: 200, 2: 200, 3: 200}


def test_a_table_without_positions_that_is_changed_while_it_is_read_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = write_survey(tmp_path, FILES, columns={name: {"role": "value"} for name in ("Ra", "Dec")})
    assert not survey.has_positions
    monkeypatch.setattr(ingest_map, "BLOCK_BYTES", 1000)
    real, calls = ingest_map.apply_rules, list[int]()

    def changing(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            _grow(tmp_path / FILES[0].path)
        return real(*arguments)

    monkeypatch.setattr(ingest_map, "apply_rules", changing)
    found = ingest(survey, into=tmp_path / "store")
    assert found.observations["status"].to_pylist() == ["quarantined", "stored", "stored"]
    assert found.rows.compute()["observation_id"].to_pylist() == [2] * 200 + [3] * 200


def test_a_file_that_grew_after_it_was_listed_comes_in_as_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survey = write_survey(tmp_path, FILES)
    scalable.check(survey)
    real = stages.find_inputs

    def grow_after(*arguments: Any) -> Any:
        inputs = real(*arguments)
        write_survey(tmp_path, [FILES[0], night(2, 300), FILES[2]])
        return inputs

    with monkeypatch.context() as patch:
        patch.setattr(stages, "find_inputs", grow_after)
        found = ingest(survey, into=tmp_path / "store")
    assert rows_of(found) == {1: 200, 2: 300, 3: 200}
    assert found.observations["rows"].to_pylist() == [200, 300, 200]
    check_store(tmp_path / "store")
    # The next ingest sees another input, and stores the same.
    again = ingest(survey, into=tmp_path / "store")
    assert again.path.name == "0002"
    assert contents(again) == contents(found)


@pytest.mark.parametrize(
    "now", [FILES[:2], [*FILES, night(4)], [FILES[0], night(2, 150), FILES[2]]], ids=["fewer", "more", "other"]
)
def test_where_the_list_of_files_changed_since_a_run_was_interrupted_the_list_of_now_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: list[Observation]
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    survey = write_survey(tmp_path, FILES)
    with monkeypatch.context() as patch:
        patch.setattr(stages, "commit_version", stop)
        with pytest.raises(KeyboardInterrupt):
            ingest(survey, into=tmp_path / "store")
    survey = write_survey(tmp_path, now)
    found = ingest(survey, into=tmp_path / "store")
    assert found.path.name == "0001"
    assert not (tmp_path / "store" / "work").exists()
    assert fingerprint(found.path) == fingerprint(ingest(survey, into=tmp_path / "whole").path)


# The disk.


def test_a_full_disk_in_the_middle_of_a_large_file_is_no_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = write_survey(tmp_path, FILES)
    monkeypatch.setattr(ingest_map, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(ingest_map, "RUN_BYTES", 5_000)
    whole = ingest(survey, into=tmp_path / "whole")
    real, store = ingest_map.write_arrow, tmp_path / "store"
    for number in (1, 2, 5, 12, 19, 25):
        calls: list[Path] = []

        def full(table: Any, path: Path, calls: list[Path] = calls, number: int = number) -> None:
            calls.append(path)
            if len(calls) == number:
                raise StoreError(f"{path}: cannot be written ([Errno 28] No space left on device)")
            real(table, path)

        with monkeypatch.context() as patch:
            patch.setattr(ingest_map, "write_arrow", full)
            with pytest.raises(StoreError, match="No space left on device"):
                ingest(survey, into=store)
        assert not (store / "versions").exists()
    found = ingest(survey, into=store)
    assert found.accounting["quarantined"] == 0
    assert fingerprint(found.path) == fingerprint(whole.path)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A mounted file system of a size that can be set, which only root can make."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(place)], capture_output=True, check=False)
    if made.returncode:
        pytest.skip(f"a file system can be mounted by root alone: {made.stderr.decode().strip()}")

    def options(text: str) -> Path:
        subprocess.run(["mount", "-o", f"remount,{text}", str(place)], check=True)
        return place

    yield options
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.root
def test_on_a_full_disk_of_any_size_no_version_appears_and_with_more_room_the_run_goes_on(
    tmp_path: Path, disk: Callable[[str], Path]
) -> None:
    survey = write_survey(tmp_path, FILES, leaf_mb=0.02)
    whole = ingest(survey, into=tmp_path / "whole")
    message = r"(cannot be written|cannot be published|not a folder that can be written).*No space left on device"
    for kilobytes in range(16, 300, 36):
        store = disk(f"size={kilobytes}k") / "store"
        with pytest.raises(StoreError, match=message):
            ingest(survey, into=store)
        assert not list(store.glob("versions/*"))
        assert not list(store.rglob("*.parquet.*"))
        with pytest.raises(StoreError, match="no committed version"):
            open_collection(store)
    found = ingest(survey, into=disk("size=64m") / "store")
    assert fingerprint(found.path) == fingerprint(whole.path)


@pytest.mark.root
def test_on_a_full_disk_an_append_leaves_the_version_and_its_readers_alone(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    survey = write_survey(tmp_path, FILES[:2], leaf_mb=0.02)
    store = disk("size=64m") / "store"
    old = ingest(survey, into=store)
    before, rows = fingerprint(old.path), old.detections.compute()
    used = sum(path.stat().st_blocks * 512 for path in store.rglob("*")) // 1024
    survey = write_survey(tmp_path, FILES, leaf_mb=0.02)
    for more in (8, 40, 100, 160):
        disk(f"size={used + more}k")
        with pytest.raises(StoreError, match="No space left on device"):
            append(survey, into=store)
        assert open_collection(store).path == old.path
        assert fingerprint(old.path) == before
        assert old.detections.compute().equals(rows)
    disk("size=64m")
    assert contents(append(survey, into=store)) == contents(ingest(survey, into=tmp_path / "whole"))


@pytest.mark.root
def test_on_a_disk_that_is_read_only_nothing_is_begun(tmp_path: Path, disk: Callable[[str], Path]) -> None:
    survey = write_survey(tmp_path, FILES)
    store = disk("size=64m") / "store"
    ingest(write_survey(tmp_path / "other", FILES[:1]), into=store)
    disk("ro")
    for verb in (ingest, append):
        with pytest.raises(StoreError, match=r"store: the store cannot be written \(.*Read-only file system.*--into"):
            verb(survey, into=store)
    assert rows_of(open_collection(store)) == {1: 200}


# The store.


def test_whatever_changes_a_store_is_refused_while_it_is_changed_by_another(tmp_path: Path) -> None:
    first = write_survey(tmp_path / "a", FILES[:2])
    store = tmp_path / "store"
    other = write_survey(tmp_path / "b", FILES)
    tried: list[str] = []

    def intrude(stage: str, *_: Any) -> None:
        before = fingerprint(store)
        for verb in (ingest, append):
            with pytest.raises(StoreError, match="another ingest or clean of this store is running; wait for it"):
                verb(other, into=store)
        if (store / "versions").exists():
            with pytest.raises(StoreError, match="another ingest or clean of this store is running; wait for it"):
                expire_versions(store)
        assert fingerprint(store) == before
        tried.append(stage)

    ingest(first, into=store, progress=intrude)
    assert {"map", "plan", "reduce", "commit"} <= set(tried)
    tried.clear()
    append(write_survey(tmp_path / "a", FILES), into=store, progress=intrude)
    assert {"map", "plan", "reduce", "commit"} <= set(tried)
    assert rows_of(check_store(store)) == {1: 200, 2: 200, 3: 200}


@pytest.mark.parametrize("name", ["a store", "Stürme & Sterne ☄", "100% #1 ?x=1;b", "*[a]", "'quoted\"", "line\nbreak"])
def test_a_store_and_a_survey_may_lie_at_any_path(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    ingest(write_survey(folder, FILES[:2]), into=folder / name)
    survey = write_survey(folder, FILES)
    found = append(survey, into=folder / name)
    assert contents(found) == contents(ingest(survey, into=tmp_path / "plain"))
    opened = scalable.open_collection(folder / name)
    assert scalable.sql(opened, "SELECT count(*) AS n FROM detections").compute()["n"].to_pylist() == [600]
    assert scalable.id_search(opened.objects, [7]).compute()["object_id"].to_pylist() == [7]


def test_a_store_may_be_a_link_and_is_the_same_by_both_names(tmp_path: Path) -> None:
    survey = write_survey(tmp_path, FILES[:2])
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")

    def by_the_other_name(*_: Any) -> None:
        with pytest.raises(StoreError, match="real: another ingest or clean of this store is running"):
            ingest(survey, into=tmp_path / "real")

    ingest(survey, into=tmp_path / "link", progress=by_the_other_name)
    survey = write_survey(tmp_path, FILES)
    found = append(survey, into=tmp_path / "real")
    assert open_collection(tmp_path / "link").manifest == found.manifest
    assert contents(found) == contents(ingest(survey, into=tmp_path / "whole"))
    assert (tmp_path / "link").is_symlink()


def test_a_store_whose_link_leads_nowhere_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("nowhere")
    with pytest.raises(StoreError, match=r"link: the store cannot be written \(.+\); choose another folder with --into"):
        ingest(write_survey(tmp_path, FILES), into=tmp_path / "link")
    assert not (tmp_path / "nowhere").exists()


# The clock.


@pytest.mark.parametrize("date", ["yesterday", "1e9", "99999999999999999"])
def test_a_date_that_is_none_is_refused_with_what_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, date: str) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", date)
    with pytest.raises(InputError, match=rf"SOURCE_DATE_EPOCH is '{date}': whole seconds since 1970 are needed; unset it"):
        ingest(write_survey(tmp_path, FILES), into=tmp_path / "store")
    assert not (tmp_path / "store" / "versions").exists()


def test_files_dated_before_1970_or_in_the_future_and_a_clock_that_goes_back_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = write_survey(tmp_path, FILES[:2])
    os.utime(tmp_path / FILES[0].path, (-1e6, -1e6))
    os.utime(tmp_path / FILES[1].path, (1e10, 1e10))
    ingest(survey, into=tmp_path / "store")
    assert ingest(survey, into=tmp_path / "store").path.name == "0001"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000000000")
    survey = write_survey(tmp_path, FILES)
    for observation, date in zip(FILES, (-1e6, 1e10, 0.0), strict=True):
        os.utime(tmp_path / observation.path, (date, date))
    found = append(survey, into=tmp_path / "store")
    assert (found.path.name, found.manifest["date"]) == ("0002", "2001-09-09T01:46:40Z")
    assert open_collection(tmp_path / "store").path == found.path
    assert rows_of(found) == {1: 200, 2: 200, 3: 200}
