"""A catalogue that is being written: what is there of it after a kill, so that the next call goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from dask.base import tokenize

from scalable import __version__
from scalable.catalog.catalog import Catalog
from scalable.catalog.ingest import start
from scalable.catalog.steps import LeafLoader
from scalable.io.atomic import holding
from scalable.io.layout import LeafInfo, catalog_properties
from scalable.io.parquet import Leaf, known_leaf, write_leaf
from scalable.io.remote import place
from scalable.io.runs import read_json


@dataclass(frozen=True)
class Begun:
    """Two folders beside the catalogue to be, and the date of the first call, which is the date of the catalogue.

    ``leaves`` becomes the catalogue; ``notes`` holds what identifies it and marks of the leaves without rows, until it is there.
    Every file in them is whole or absent.
    """

    leaves: Path
    notes: Path
    date: str

    def finished(self, leaves: Sequence[LeafInfo]) -> dict[str, Leaf | None]:
        """Return what is written of these leaves, by their paths; None for those without rows."""
        found: dict[str, Leaf | None] = {}
        for leaf in leaves:
            path = leaf.pixel.hats_path
            if (self.leaves / path).exists():
                # Nothing is made of the digest of a leaf that goes into no manifest.
                size = (self.leaves / path).stat().st_size
                found[leaf.path], _ = known_leaf(self.leaves, path, size_bytes=size, sha256="")
            elif (self.notes / path).exists():
                found[leaf.path] = None
        return found

    def write(self, table: pa.Table, leaf: LeafInfo) -> Leaf | None:
        """Write a leaf, or note that it has no row."""
        path = leaf.pixel.hats_path
        if table.num_rows:
            return write_leaf(table, self.leaves, path)
        (self.notes / path).parent.mkdir(parents=True, exist_ok=True)
        (self.notes / path).touch()
        return None

    def forget(self) -> None:
        """Remove what is not part of the catalogue."""
        shutil.rmtree(self.leaves, ignore_errors=True)
        shutil.rmtree(self.notes, ignore_errors=True)


@contextmanager
def working_on(path: Path, catalog: Catalog) -> Iterator[Begun]:
    """Go on with what an earlier call for the same catalogue left beside ``path``, or begin anew.

    Raises
    ------
    StoreError
        If another process is writing it.
    """
    leaves, notes = path.parent / f".tmp-{path.name}", path.parent / f".tmp-{path.name}.notes"
    with holding(
        notes,
        unwritable=f"{path}: cannot be written",
        instead="choose another folder",
        busy=f"{path}: another process is writing it; wait for it",
    ):
        yield _begin(leaves, notes, _identity(catalog))


def _begin(leaves: Path, notes: Path, identity: str) -> Begun:
    run = notes / "run.json"
    if not run.exists() or read_json(run)["run_id"] != identity:
        shutil.rmtree(leaves, ignore_errors=True)
        shutil.rmtree(notes / "dataset", ignore_errors=True)
        run.unlink(missing_ok=True)
    return Begun(leaves, notes, start(notes, identity))


def _identity(catalog: Catalog) -> str:
    """Return what tells one result from another: the leaves, the steps with their parameters, and the catalogues read."""
    sources = [catalog_properties(place(root)) for root in dict.fromkeys(_roots(catalog.chain))]
    schema = catalog.schema.serialize().to_pybytes()
    return tokenize(__version__, catalog.chain, schema, [leaf.path for leaf in catalog.leaves], sources)


def _roots(part: Any) -> Iterator[str]:
    """Yield the folders of all catalogues that a chain reads, those inside of its loaders and steps too."""
    if isinstance(part, LeafLoader):
        yield part.root
    elif isinstance(part, tuple):
        for inner in part:
            yield from _roots(inner)
    elif is_dataclass(part) and not isinstance(part, type):
        for member in fields(part):
            yield from _roots(getattr(part, member.name))
