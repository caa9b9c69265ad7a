"""`write_catalog`: the result of any lazy verb as a HATS catalogue, a leaf at a time."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
from dask.base import tokenize

from scalable import __version__
from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.steps import Chain, LeafLoader
from scalable.catalog.write_begun import Begun, working_on
from scalable.cluster import run_tasks
from scalable.errors import ColumnError, StoreError
from scalable.io.atomic import link, publish
from scalable.io.layout import HEALPIX_COLUMN, LeafInfo, finish_catalog
from scalable.io.parquet import Leaf, known_leaf
from scalable.io.remote import local_place
from scalable.io.runs import read_json, write_json

RECIPE_FILE = "recipe.json"
"""Member of a written catalogue: a digest of the steps that made it with their parameters, and the catalogue they read."""


def write_catalog(
    catalog: Catalog, path: str | Path, *, reuse: str | Path | None = None, on_done: Callable[[int], None] | None = None
) -> Catalog:
    """Compute a catalogue and write it as HATS, with its history; one leaf in memory per task, published by one rename.

    Killed at any moment and called again with the same catalogue, it computes the leaves that are missing, and the files are
    those of a call that was not disturbed.

    Parameters
    ----------
    catalog : Catalog
        One that still reads leaves and keeps ``_healpix_29`` and the position of its objects.
    path : str or Path
        Folder to make; must not exist.
    reuse : str or Path, optional
        A catalogue that this wrote before, on the same file system. If the same steps made it, its leaves are linked wherever the
        leaf that they were made from is the same file still, as append leaves it; the result is that of computing all.
    on_done : callable, optional
        Called with the number of leaves done whenever a task ends.

    Returns
    -------
    Catalog
        The catalogue, opened from disk.
    """
    path = local_place(path)
    if path.exists():
        raise StoreError(f"{path}: exists already; choose another folder or remove it")
    if not catalog.leaves:
        raise StoreError(f"{catalog.title} is one combined table, not a catalogue on the sky; use compute() and write the table")
    positions = [catalog.columns.by_role(role) for role in ("ra", "dec")]
    if HEALPIX_COLUMN not in catalog.columns or not all(positions):
        raise ColumnError(f"a HATS catalogue needs {HEALPIX_COLUMN} and the position; keep them in select()")
    with working_on(path, catalog) as begun:
        recipe = _recipe(catalog, path)
        leaves = begun.finished(catalog.leaves)
        if reuse:
            leaves |= link_leaves(catalog, recipe, Path(reuse), begun.leaves, but=leaves)
        done: list[int] = []

        def tell(written: dict[str, Leaf | None]) -> None:
            done.append(len(written))
            if on_done:
                on_done(len(leaves) + sum(done))

        todo = catalog.on_leaves([leaf for leaf in catalog.leaves if leaf.path not in leaves])
        # The history may be long: it is written once, not with every leaf.
        schema = catalog.schema.remove_metadata()
        for written in run_tasks(write_leaves, todo.partitions, catalog.chain, schema, begun, on_done=tell):
            leaves |= written
        kept = [leaf for leaf in leaves.values() if leaf]
        if not kept:
            begun.forget()
            raise StoreError(f"{path}: the result has no row; nothing was written")
        finish_catalog(
            begun.leaves,
            kept,
            schema=catalog.schema,
            name=path.name,
            product="object",
            position=(positions[0][0].name, positions[1][0].name),
            date=begun.date,
        )
        write_json(begun.leaves / RECIPE_FILE, recipe)
        publish(begun.leaves, path)
        begun.forget()
    return open_catalog(path)


def write_leaves(leaves: tuple[LeafInfo, ...], chain: Chain, schema: pa.Schema, begun: Begun) -> dict[str, Leaf | None]:
    """Compute and write the leaves of one partition; empty ones are left out."""
    written: dict[str, Leaf | None] = {}
    for leaf in leaves:
        table = _along_the_sky(chain.load(leaf, schema.names).cast(schema), leaf)
        written[leaf.path] = begun.write(table, leaf)
    return written


def _along_the_sky(table: pa.Table, leaf: LeafInfo) -> pa.Table:
    """Return the rows of a leaf in the order that HATS asks for; queries may have changed it, or moved rows elsewhere."""
    index, pixel = table[HEALPIX_COLUMN].to_numpy(), leaf.pixel
    if len(index) and not pixel.start <= index.min() <= index.max() < pixel.stop:
        raise StoreError(f"{leaf.path}: {HEALPIX_COLUMN} of some row lies outside of {pixel}; keep that column as it is")
    return table if np.all(index[1:] >= index[:-1]) else table.take(np.argsort(index, kind="stable"))


def _recipe(catalog: Catalog, path: Path) -> dict[str, str]:
    """Return what the leaves of a catalogue written to ``path`` follow from, but for the leaves that they are made from."""
    source = catalog.chain.loader
    root = os.path.relpath(source.root, path) if isinstance(source, LeafLoader) else ""
    # Steps hold their parameters and, of functions, where they are defined: whose code may change with the version.
    return {"digest": tokenize(__version__, catalog.chain.steps, catalog.schema.serialize().to_pybytes()), "source": root}


def link_leaves(
    catalog: Catalog, recipe: Mapping[str, str], earlier: Path, aside: Path, *, but: Collection[str] = ()
) -> dict[str, Leaf | None]:
    """Link the leaves of a catalogue written before that would come out the same; None where there was no row."""
    known = read_json(earlier / RECIPE_FILE) if (earlier / RECIPE_FILE).exists() else {}
    source = catalog.chain.loader
    if known.get("digest") != recipe["digest"] or not known["source"] or not isinstance(source, LeafLoader) or source.foreign:
        return {}
    linked: dict[str, Leaf | None] = {}
    for leaf in (leaf for leaf in catalog.leaves if leaf.path not in but):
        before = earlier / known["source"] / leaf.path
        if not before.exists() or not before.samefile(Path(source.root) / leaf.path):
            continue
        linked[leaf.path] = None
        if (earlier / leaf.path).exists():
            link(earlier / leaf.path, aside / leaf.path)
            # Nothing is made of the digest of a leaf that goes into no manifest.
            size = (earlier / leaf.path).stat().st_size
            linked[leaf.path], _ = known_leaf(earlier, leaf.path, size_bytes=size, sha256="")
    return linked
