"""Stores on a server: a version is built on this machine, sent file by file, and appears when one small object changes.

At the URL of a store lie ``versions/NNNN/`` and ``current``, an object whose text is the number that readers open. What is at a
number never changes: a writer takes it by an object ``versions/NNNN.taken`` that only one can make.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from scalable.catalog.collection import Collection, locked, open_collection, remove_renamed
from scalable.cluster import run_tasks
from scalable.errors import StoreError
from scalable.io.atomic import point, publish, write_bytes, write_text
from scalable.io.remote import Url, arrived, fetch, is_sent, read_pointer, replace_pointer, send
from scalable.io.runs import read_json

FILES_PER_TASK = 16

Item = TypeVar("Item")


def stage_folder(url: Url, work: str | Path | None = None) -> Path:
    """Return the folder on this machine in which versions of a store at a URL are built: one for each URL.

    Parameters
    ----------
    url : Url
        The store.
    work : str or Path, optional
        Where such folders lie; by default in the user's cache. Workers on other machines must see it.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "scalable"
    return (Path(work) if work else cache).absolute() / hashlib.sha256(url.text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PublishedStore:
    """A store at a URL as a writer found it.

    Attributes
    ----------
    url : Url
        The store.
    stage : Path
        The store on this machine that mirrors its current version and in which the next one is built.
    seen : (str, str) or None
        The pointer to the current version and the tag of that content; the version to come replaces this very one.
    """

    url: Url
    stage: Path
    seen: tuple[str, str] | None

    @property
    def current(self) -> Collection | None:
        """The version that was found."""
        return open_collection(self.url / "versions" / self.seen[0]) if self.seen else None

    def mirror(self) -> None:
        """Make the version that was found the current one of the stage too: by its number, else by fetching all of it.

        Raises
        ------
        StoreError
            If there is no version, or a file does not arrive as the manifest says.
        """
        if self.seen is None:
            raise StoreError(f"{self.url}: no committed version here; run: scalable run survey.yaml --into {self.url}")
        name = self.seen[0]
        there, here = self.url / "versions" / name, self.stage / "versions" / name
        manifest = (there / "manifest.json").read_bytes()
        with locked(self.stage):
            if not (here / "manifest.json").is_file() or (here / "manifest.json").read_bytes() != manifest:
                drop_versions(self.stage, keep="")
                arriving = self.stage / f".tmp-{name}"
                shutil.rmtree(arriving, ignore_errors=True)
                entries = [(entry["path"], entry["sha256"]) for entry in read_json(there / "manifest.json")["files"]]
                run_tasks(fetch_files, cut(entries), str(there), str(arriving))
                write_bytes(arriving / "manifest.json", manifest)
                publish(arriving, here)
            point(self.stage / "current", os.path.join("versions", name))

    def commit(self, version: Path, progress: Callable[[str, int, int, int], None]) -> Collection:
        """Send a finished version of the stage and point readers at it, if nobody has pointed them elsewhere meanwhile.

        Interrupted, it is taken up by building the same version again, which is there already, and sending what is missing.

        Parameters
        ----------
        version : Path
            Its folder.
        progress : callable
            Called with ``"publish"``, portions sent, portions in all, and 0.

        Raises
        ------
        StoreError
            If another writer was faster; nothing of the store is changed then.
        """
        faster = f"{self.url}: another writer has committed a version while this one was made; nothing was changed, run again"
        with locked(self.stage):
            # Another process may have committed from this stage; the numbers it took are not to be written again.
            if read_pointer(self.url / "current") != self.seen:
                raise StoreError(faster)
            name = self._take_number()
            there = self.url / "versions" / name
            sizes = {str(entry["path"]): entry["bytes"] for entry in read_json(version / "manifest.json")["files"]}
            self._send(version, there, sizes, progress)
            send(version / "manifest.json", there / "manifest.json")
            if not replace_pointer(self.url / "current", name, self.seen):
                # What was sent stays, unused: should the answer have been lost, somebody may have it open.
                raise StoreError(faster)
            # Only what is current is kept here, under its number there: the next append begins with it.
            drop_versions(self.stage, keep=version.name)
            version.rename(self.stage / "versions" / name)
            point(self.stage / "current", os.path.join("versions", name))
        return open_collection(self.url)

    def _send(self, version: Path, there: Url, sizes: Mapping[str, int], progress: Callable[[str, int, int, int], None]) -> None:
        """Send the files that are not there yet, and see that all of them have arrived."""
        before = arrived(there)
        portions, done = cut([name for name in sizes if not is_sent(version / name, before.get(name))]), list[None]()

        def tell(sent: None) -> None:
            done.append(sent)
            progress("publish", len(done), len(portions), 0)

        run_tasks(send_files, portions, str(version), there.text, on_done=tell)
        after = arrived(there)
        for name, size in sizes.items():
            if name not in after or after[name][0] != size:
                raise StoreError(f"{there / name}: has not arrived whole ({size} bytes were sent); run again")

    def _take_number(self) -> str:
        """Return the next number that is free, or that an interrupted run from this stage took."""
        owner = self.stage / "owner"
        if not owner.exists():
            write_text(owner, secrets.token_hex(16))
        number = int(self.seen[0]) + 1 if self.seen else 1
        while True:
            name = f"{number:04d}"
            if replace_pointer(self.url / "versions" / f"{name}.taken", owner.read_text(), None):
                return name
            number += 1


def published_store(url: Url, work: str | Path | None) -> PublishedStore:
    """Look at a store at a URL as one who wants to change it.

    Raises
    ------
    StoreError
        If it is not on S3, whose conditional writes are relied upon, or its pointer names no version.
    """
    if not url.text.startswith("s3://"):
        raise StoreError(f"{url}: stores are written to s3:// or to a folder; of other servers, only input and stores are read")
    seen = read_pointer(url / "current")
    if seen and not seen[0].isdigit():
        raise StoreError(f"{url / 'current'}: {seen[0][:40]!r} is no number of a version; the store is damaged")
    return PublishedStore(url, stage_folder(url, work), seen)


def send_files(names: tuple[str, ...], version: str, url: str) -> None:
    """Send some files of a version."""
    for name in names:
        send(Path(version) / name, Url(url) / name)


def send_tree(folder: Path, url: Url) -> None:
    """Send all files of a folder, but those that are there already, by tasks."""
    there = arrived(url)
    paths = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    run_tasks(send_files, cut([name for name in paths if not is_sent(paths[name], there.get(name))]), str(folder), url.text)


def fetch_files(entries: tuple[tuple[str, str], ...], url: str, folder: str) -> None:
    """Fetch some files of a version, each with its SHA-256."""
    for name, sha256 in entries:
        path = Path(folder) / name
        if name.startswith("/") or ".." in path.parts:
            raise StoreError(f"{url}/manifest.json: {name!r} lies outside the version; the store is damaged")
        path.parent.mkdir(parents=True, exist_ok=True)
        fetch(f"{url}/{name}", str(path))
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise StoreError(f"{url}/{name}: its bytes are not those that the manifest lists; the store is damaged")


def cut(items: Sequence[Item]) -> list[tuple[Item, ...]]:
    """Cut into portions of one task."""
    return [tuple(items[at : at + FILES_PER_TASK]) for at in range(0, len(items), FILES_PER_TASK)]


def drop_versions(stage: Path, *, keep: str) -> None:
    """Remove all versions of a stage but one, each renamed first; only under its lock."""
    for path in (stage / "versions").glob("*"):
        if path.name != keep:
            path.rename(stage / f".tmp-{path.name}")
    remove_renamed(stage)
