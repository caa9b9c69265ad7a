"""A survey's store: versions, each complete, and ``current``, which names the one that readers open."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from scalable.catalog.catalog import Catalog, open_catalog
from scalable.errors import MissingInputError, StoreError
from scalable.io.atomic import holding, point, publish
from scalable.io.parquet import read_groups, read_leaf, read_schema
from scalable.io.remote import Place, Url, place
from scalable.io.runs import flat, read_json

REJECTED_FILE = "rejected.parquet"
"""Rows that no catalogue of a version can hold: without position or id."""
REJECTED = pa.schema(
    [
        ("path", pa.string()),
        ("observation_id", pa.int64()),
        ("source_row", pa.int64()),
        ("object_id", pa.int64()),
        ("reason", pa.string()),
        ("column", pa.string()),
        ("value", pa.string()),
    ]
)
DUPLICATES = "duplicates"
"""Folder of rows that were rejected because an object was seen twice in one observation, in leaves by its pixel."""
REASON = "rejected_because"


@dataclass(frozen=True)
class Collection:
    """One committed version of a survey's store; opened versions stay as they are while newer ones are added.

    Attributes
    ----------
    path : Path or Url
        Folder of the version.
    manifest : dict
        Run id, date, bands, accounting, and every file with rows, bytes and SHA-256.
    """

    path: Place
    manifest: dict[str, Any] = field(repr=False)

    @property
    def folder(self) -> Path:
        """Folder of the version, which must be on this machine: what adds to it links to its files."""
        if isinstance(self.path, Url):
            raise StoreError(f"{self.path}: lies on a server; this works on a store on this machine")
        return self.path

    @property
    def has_positions(self) -> bool:
        """Whether it holds objects and detections on the sky, or plain rows."""
        return "objects" in self.accounting

    @property
    def objects(self) -> Catalog:
        """One row per object; lazy."""
        return self._member("objects", self.has_positions)

    @property
    def detections(self) -> Catalog:
        """One row per detection, an object's light curve contiguous; lazy."""
        return self._member("detections", self.has_positions)

    @property
    def rows(self) -> Catalog:
        """One row per row of tables without positions, in the order of the files; lazy."""
        return self._member("rows", not self.has_positions)

    def _member(self, name: str, there: bool) -> Catalog:
        if not there:
            why, instead = ("", "objects or detections") if self.has_positions else ("no ", "rows")
            raise StoreError(
                f"{self.manifest['survey']}: its tables have {why}positions, so there is no {name}; ask for {instead}"
            )
        return open_catalog(self.path / name)

    @property
    def parent(self) -> Collection | None:
        """The version that this one was appended to, if it is still there."""
        known = self.manifest.get("parent")
        folder = self.path.parent / known["version"] if known else None
        return open_collection(folder) if folder and (folder / "manifest.json").is_file() else None

    def leaves_linked(self) -> tuple[int, int]:
        """Return how many leaves it has, of all members, and how many of them are files of the version it was appended to."""
        paths = [entry["path"] for entry in self.manifest["files"] if "/Npix=" in entry["path"] or "rows/" in entry["path"]]
        paths = [path for path in paths if path.endswith(".parquet")]
        before = self.parent.path if self.parent else None
        linked = [path for path in paths if before and (before / path).exists() and (before / path).samefile(self.path / path)]
        return len(paths), len(linked)

    @property
    def observations(self) -> pa.Table:
        """One row per catalogue file; small, read at once."""
        return read_leaf(self.path / "observations.parquet")

    def iterate_rejected(self) -> Iterator[pa.Table]:
        """Yield the rows that were not stored, each with file, row and reason, piece by piece: there may be many."""
        yield from read_groups(self.path / REJECTED_FILE)
        observations = self.observations
        path_of = dict(zip(*(observations[name].to_pylist() for name in ("observation_id", "path")), strict=True))
        keys = ("observation_id", "source_row", "object_id", REASON)
        for leaf in self._duplicates:
            rows = read_leaf(leaf, keys)
            paths = pa.array([path_of[number] for number in rows["observation_id"].to_pylist()], pa.string())
            value = (pa.repeat("object_id", rows.num_rows), rows["object_id"].cast(pa.string()))
            yield pa.table([paths, *(rows[name] for name in keys), *value], schema=REJECTED)

    @property
    def rejected(self) -> pa.Table:
        """Rows that were not stored, each with file, row and reason."""
        return _by_row(pa.concat_tables([REJECTED.empty_table(), *self.iterate_rejected()]))

    @property
    def duplicates(self) -> pa.Table:
        """Rejected rows that were duplicates, with all that their source gave and the pixel of their object."""
        schema = read_schema(self.path / DUPLICATES / "dataset" / "_common_metadata")
        return _by_row(pa.concat_tables([schema.empty_table(), *(read_leaf(leaf).cast(schema) for leaf in self._duplicates)]))

    @property
    def _duplicates(self) -> list[Place]:
        names = [entry["path"] for entry in self.manifest["files"]]
        return [self.path / name for name in names if name.startswith(f"{DUPLICATES}/dataset/Norder=")]

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands of the survey, in order of wavelength."""
        return tuple(self.manifest["bands"])

    @property
    def accounting(self) -> dict[str, int]:
        """Rows read, stored and rejected; files read and quarantined; objects, where there are positions."""
        return dict(self.manifest["accounting"])

    def __repr__(self) -> str:  # noqa: D105
        count = self.accounting
        held = f"{count['stored']:,} rows"
        if self.has_positions:
            held = f"{count['objects']:,} objects, {count['stored']:,} detections in {len(self.bands)} bands"
        files = count["files"] - count["quarantined"]
        return f"<Collection {self.manifest['survey']} version {self.path.name}: {held} from {files} files>"


def open_collection(path: str | Place) -> Collection:
    """Open the current version of a store, here or at a URL, or one version's folder; only its manifest is read.

    Raises
    ------
    StoreError
        If there is no committed version.
    """
    path = place(path)
    if isinstance(path, Url):
        folder: Place = path
        with suppress(MissingInputError):
            folder = path / "versions" / (path / "current").read_text()
    else:
        folder = (path / "current").resolve() if (path / "current").is_symlink() else path
    if not (folder / "manifest.json").is_file():
        raise StoreError(f"{path}: no committed version here; run: scalable run survey.yaml --into {path}")
    return Collection(folder, read_json(folder / "manifest.json"))


def find_version(store: Path, run_id: str) -> Collection | None:
    """Return the newest version if ``run_id`` made it, else None.

    A driver killed between publishing a version and pointing at it leaves it complete: it is pointed at now.
    """
    newest = next(iter(version_folders(store)), None)
    if newest is None or open_collection(newest).manifest["run_id"] != run_id:
        return None
    if not (store / "current").exists() or (store / "current").resolve() != newest.resolve():
        point(store / "current", os.path.join("versions", newest.name))
    return open_collection(store)


def version_folders(store: Path) -> list[Path]:
    """Return the folders of all complete versions, newest first."""
    # A folder without a manifest is none of ours: versions appear whole.
    versions = [path for path in (store / "versions").glob("*") if path.name.isdigit() and (path / "manifest.json").exists()]
    return sorted(versions, key=lambda path: int(path.name), reverse=True)


def commit(store: Path, version: Path) -> Collection:
    """Publish a finished version under the next number and point ``current`` at it; then drop intermediate files."""
    taken = [int(path.name) for path in (store / "versions").glob("*") if path.name.isdigit()]
    destination = store / "versions" / f"{max(taken, default=0) + 1:04d}"
    try:
        publish(version, destination)
        point(store / "current", os.path.join("versions", destination.name))
    except OSError as error:
        raise StoreError(f"{destination}: the new version cannot be published ({error}); mend that and run again") from error
    sweep(store)
    return open_collection(store)


@contextmanager
def locked(store: Path) -> Iterator[None]:
    """Hold the store's lock, which everything that changes a store takes."""
    with holding(
        store,
        unwritable=f"{store}: the store cannot be written",
        instead="choose another folder with --into",
        busy=f"{store}: another ingest or clean of this store is running; wait for it, then run again",
    ):
        yield


def sweep(store: Path, *, keep: Path | None = None) -> None:
    """Remove intermediate files of finished and abandoned runs, all but ``keep``; only under the store's lock.

    A folder is renamed before it is emptied, so that a half-removed one is never taken for one to go on with.
    """
    for path in (store / "work").glob("*"):
        if path != keep and not path.name.startswith(".tmp-"):
            path.rename(path.with_name(f".tmp-{path.name}"))
    remove_renamed(store)
    if keep is None and (store / "work").is_dir():
        shutil.rmtree(store / "work", ignore_errors=True)


def remove_renamed(store: Path) -> None:
    """Empty what this or a killed process has renamed to be removed; only under the store's lock."""
    for path in (*store.glob(".tmp-*"), *(store / "work").glob(".tmp-*")):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _by_row(rows: pa.Table) -> pa.Table:
    return rows.take(np.lexsort((flat(rows, "source_row"), flat(rows, "observation_id"))))
