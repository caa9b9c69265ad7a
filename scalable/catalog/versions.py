"""The versions of a store: list them with what each added on disk, and remove old ones."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from scalable.catalog.collection import locked, remove_renamed, version_folders
from scalable.errors import StoreError
from scalable.io.atomic import sync
from scalable.io.remote import local_place
from scalable.io.runs import read_json


@dataclass(frozen=True)
class Version:
    """One committed version of a store.

    Attributes
    ----------
    number : int
        Its number; later is larger.
    date : str
        When the run that made it began, in UTC.
    run_id : str
        Digest of the input and of the survey's rules.
    stored, added, objects, files, quarantined : int
        Rows, those among them that the version it was appended to has not, objects (none without positions), files read and
        files set aside.
    added_bytes : int
        Bytes on disk that no older version holds; a file with several hard links counts once.
    current : bool
        Whether readers of the store open this one.
    """

    number: int
    date: str
    run_id: str
    stored: int
    added: int
    objects: int
    files: int
    quarantined: int
    added_bytes: int
    current: bool


@dataclass(frozen=True)
class Expired:
    """Versions that were removed, or would be, and the bytes that come free: those of files no other folder links to."""

    versions: tuple[int, ...]
    freed_bytes: int


def list_versions(store: str | Path) -> list[Version]:
    """Return the versions of a store, newest first; of their files only the sizes are looked at.

    Raises
    ------
    StoreError
        If there is no version.
    """
    store = local_place(store)
    versions = []
    seen: set[tuple[int, int]] = set()
    for path in reversed(_folders(store)):
        manifest = read_json(path / "manifest.json")
        count = manifest["accounting"]
        inodes = {(state.st_dev, state.st_ino): state.st_size for state in _states([path])}
        added = sum(size for inode, size in inodes.items() if inode not in seen)
        seen.update(inodes)
        rows = count["stored"], count["stored"] - (manifest.get("parent") or {}).get("stored", 0)
        numbers = (*rows, count.get("objects", 0), count["files"], count["quarantined"], added)
        versions.append(Version(int(path.name), manifest["date"], manifest["run_id"], *numbers, path == _current(store)))
    return versions[::-1]


def expire_versions(store: str | Path, *, keep: int = 1, dry_run: bool = False) -> Expired:
    """Remove old versions and the products made from them; the current version always stays.

    A version is renamed before it is emptied: no reader sees half of one, and what a killed process leaves, the next ingest or
    clean removes. Who has a removed version open can read it no more.

    Parameters
    ----------
    store : str or Path
        The store.
    keep : int
        Newest versions to keep, at least 1.
    dry_run : bool
        Change nothing; only say what would go.

    Raises
    ------
    StoreError
        If there is no version, ``keep`` is below 1, another process changes the store, or a file cannot be removed.
    """
    if keep < 1:
        raise StoreError(f"keep is {keep}; at least 1 version stays")
    store = local_place(store)
    if dry_run:
        return _measure(_expired(store, keep))
    _folders(store)  # The lock would make a store where there is none.
    with locked(store):
        remove_renamed(store)  # What a killed process left.
        doomed = _expired(store, keep)
        found = _measure(doomed)
        moved = []
        try:
            for path in doomed:
                moved.append(path.rename(store / f".tmp-{path.parent.name}-{path.name}"))
                sync(path.parent)
        except OSError as error:
            raise StoreError(f"{path}: cannot be removed ({error}); mend that and run again") from error
        remove_renamed(store)
    left = [path for path in moved if path.exists()]
    if left:
        raise StoreError(f"{left[0]}: not all of it can be removed; no reader looks at it: remove it by hand")
    return found


def _folders(store: Path) -> list[Path]:
    folders = version_folders(store)
    if not folders:
        raise StoreError(f"{store}: no committed version here; give the folder that scalable run wrote --into")
    return folders


def _current(store: Path) -> Path:
    return store / "versions" / (store / "current").resolve().name


def _expired(store: Path, keep: int) -> list[Path]:
    """Return the folders to remove: the products of each version before the version, so that none is left without it."""
    old = [path for path in _folders(store)[keep:] if path != _current(store)]
    both = (folder for version in old for folder in (store / "products" / version.name, version))
    return [folder for folder in both if folder.is_dir()]


def _measure(folders: Iterable[Path]) -> Expired:
    """Return the versions among ``folders``, and the bytes of all files whose every link lies in them."""
    folders = list(folders)
    links: dict[tuple[int, int], list[os.stat_result]] = {}
    for state in _states(folders):
        links.setdefault((state.st_dev, state.st_ino), []).append(state)
    freed = sum(states[0].st_size for states in links.values() if len(states) == states[0].st_nlink)
    return Expired(tuple(int(path.name) for path in folders if path.parent.name == "versions"), freed)


def _states(folders: Iterable[Path]) -> Iterator[os.stat_result]:
    """Yield the state of every file below the folders, once for each of its names there."""
    for folder in folders:
        for directory, _, names in os.walk(folder):
            for name in names:
                state = (Path(directory) / name).lstat()
                if stat.S_ISREG(state.st_mode):
                    yield state
