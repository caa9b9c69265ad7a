"""`write_catalog`: the result of any lazy verb as a HATS catalogue, a leaf at a time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.steps import Chain
from scalable.cluster import run_tasks
from scalable.errors import ColumnError, StoreError
from scalable.io.atomic import publish
from scalable.io.layout import HEALPIX_COLUMN, LeafInfo, finish_catalog
from scalable.io.parquet import Leaf, write_leaf
from scalable.io.remote import local_place


def write_catalog(catalog: Catalog, path: str | Path, *, on_done: Callable[[int], None] | None = None) -> Catalog:
    """Compute a catalogue and write it as HATS, with its history; one leaf in memory per task, published by one rename.

    Parameters
    ----------
    catalog : Catalog
        One that still reads leaves and keeps ``_healpix_29`` and the position of its objects.
    path : str or Path
        Folder to make; must not exist.
    on_done : callable, optional
        Called with the number of leaves written whenever a task ends.

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
    aside = path.parent / f".tmp-{path.name}"
    shutil.rmtree(aside, ignore_errors=True)
    leaves: list[Leaf] = []

    def tell(written: list[Leaf]) -> None:
        leaves.extend(written)
        if on_done:
            on_done(len(leaves))

    # The history may be long: it is written once, not with every leaf.
    run_tasks(write_leaves, catalog.partitions, catalog.chain, catalog.schema.remove_metadata(), str(aside), on_done=tell)
    if not leaves:
        raise StoreError(f"{path}: the result has no row; nothing was written")
    finish_catalog(
        aside,
        leaves,
        schema=catalog.schema,
        name=path.name,
        product="object",
        position=(positions[0][0].name, positions[1][0].name),
        date=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    publish(aside, path)
    return open_catalog(path)


def write_leaves(leaves: tuple[LeafInfo, ...], chain: Chain, schema: pa.Schema, folder: str) -> list[Leaf]:
    """Compute and write the leaves of one partition; empty ones are left out."""
    written = []
    for leaf in leaves:
        table = chain.load(leaf, schema.names).cast(schema)
        if table.num_rows:
            written.append(write_leaf(table, Path(folder), leaf.path))
    return written
