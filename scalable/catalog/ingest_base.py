"""Append: what a version already holds, opened again as runs where new rows touch it, carried over by links elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from scalable.catalog.collection import DUPLICATES, Collection
from scalable.catalog.grouping import claimed_by_reference, key_of
from scalable.catalog.ingest_map import CELL_ORDER, FileRecord, RunInfo, Settings, located, positions, write_run
from scalable.catalog.ingest_plan import DENSITY_FILE, Counts, counts_of, cut_sky, row_limit
from scalable.catalog.ingest_reduce import (
    MEMBERS,
    Reduced,
    count_ranks,
    is_whole,
    load_result,
    member_folder,
    pixel_file,
    save_result,
)
from scalable.io.atomic import link
from scalable.io.layout import read_layout
from scalable.io.parquet import known_leaf, read_leaf
from scalable.io.reader import Source
from scalable.io.runs import flat, read_arrow, read_json, take_rows, write_arrow, write_json
from scalable.schema import Schema
from scalable.sky.healpix import around_pixel, merge_ranges, neighbours, ring_order
from scalable.sky.pixel import MAX_ORDER, Pixel
from scalable.survey.description import STORED_NAMES, Survey
from scalable.survey.tables import Store

Ranges = NDArray[np.int64]


@dataclass(frozen=True)
class Base:
    """The version that new files are added to.

    Attributes
    ----------
    collection : Collection
        The version.
    counts, deep : Counts
        Its detections by cell of `CELL_ORDER`, and by cell of the deepest order in crowded ones.
    wide : Table
        Its objects that are wider than the margin.
    leaves : dict
        Rows of detections by pixel, for every pixel that holds objects.
    """

    collection: Collection
    counts: Counts
    deep: Counts
    wide: pa.Table
    leaves: dict[Pixel, int]

    @property
    def path(self) -> Path:
        """Folder of the version."""
        return self.collection.folder

    @property
    def owners(self) -> NDArray[np.int64]:
        """Order-29 pixels of the wide objects."""
        return flat(self.wide, "owner")

    def cut(self, settings: Settings) -> set[Pixel]:
        """Return the pixels that the version was cut into, with those that hold nothing."""
        store = settings.survey.store
        cut = cut_sky(self.counts, self.deep, self.owners, store, limit=row_limit(store, settings.schema))
        return {pixel for pixel, _ in cut}


def open_base(collection: Collection) -> Base:
    """Read the small tables of a version; no leaf is opened."""
    counts, deep = counts_of(read_leaf(collection.path / DENSITY_FILE))
    leaves = {leaf.pixel: leaf.rows for leaf in read_layout(collection.path / "detections").leaves}
    return Base(collection, counts, deep, read_leaf(collection.path / "wide_objects.parquet"), leaves)


def stored_files(base: Collection) -> dict[int, FileRecord]:
    """Return what became of the files that a version holds, by observation id."""
    table, modified = base.observations, base.manifest.get("modified_ns", {})
    names = ("observation_id", "path", "rows", "size_bytes", "sha256", "header_digest", "rows_rejected", "status")
    rows = zip(*(table[name].to_pylist() for name in names), strict=True)
    return {
        number: FileRecord(number, path, count, size, sha256 or "", header or "", rejected, "", modified.get(str(number), 0))
        for number, path, count, size, sha256, header, rejected, status in rows
        if status == "stored"
    }


def stored_columns(base: Collection, survey: Survey) -> Schema:
    """Return the columns that the files of a version gave, with the roles of the survey."""
    stored = base.detections if base.has_positions else base.rows
    own = [column for column in Schema.from_arrow(stored.schema) if column.name not in STORED_NAMES]
    return Schema(tuple(replace(c, role=survey.columns[c.name].role) if c.name in survey.columns else c for c in own))


def reach(cells: NDArray[np.int64], store: Store) -> Ranges:
    """Return order-29 ranges that hold everything within three margins of some cells of `CELL_ORDER`, and some more.

    A row changes an object whose mean lies within a margin, which stands in the margin of pixels within another; their other
    rows lie within a third.
    """
    order = min(CELL_ORDER, ring_order(3 * store.margin_arcsec))
    near = neighbours(np.unique(cells >> 2 * (CELL_ORDER - order)), order) if len(cells) else cells
    shift = 2 * (MAX_ORDER - order)
    return merge_ranges(near << shift, (near + 1) << shift)


def meets(ranges: Ranges, pixel: Pixel) -> bool:
    """Return whether a pixel and sorted, disjoint ranges share anything."""
    at = int(np.searchsorted(ranges[:, 1], pixel.start, side="right"))
    return at < len(ranges) and int(ranges[at, 0]) < pixel.stop


def around_all(pixels: Iterable[Pixel], store: Store) -> Ranges:
    """Return the ranges within three margins of some pixels."""
    pieces = [around_pixel(pixel, radius_arcsec=3 * store.margin_arcsec) for pixel in pixels]
    ranges = np.concatenate([np.zeros((0, 2), dtype=np.int64), *pieces])
    return merge_ranges(ranges[:, 0], ranges[:, 1])


def pixels_of_ids(part: str, settings: Settings, runs: tuple[RunInfo, ...]) -> set[Pixel]:
    """Return the pixels of the objects in one part of a version's index whose ids occur in runs."""
    index = pq.read_table(part, columns=["object_id", "Norder", "Npix"])
    ids = flat(index, "object_id")
    found = np.zeros(len(ids), dtype=bool)
    for run in runs:
        wanted = flat(read_arrow(Path(settings.work) / "map" / f"{run.name}.boxes.arrow"), "object_id")
        at = np.searchsorted(ids, wanted)
        inside = at < len(ids)
        found[at[inside][ids[at[inside]] == wanted[inside]]] = True
    keys = np.unique(np.column_stack([flat(index, name)[found] for name in ("Norder", "Npix")]), axis=0)
    return {Pixel(int(order), int(number)) for order, number in keys}


@dataclass(frozen=True)
class Reopened:
    """One leaf of a version as a run, and the rows stored in it, and dropped beside it, by rank of observation."""

    run: RunInfo
    pixel: Pixel
    stored: dict[int, int]
    dropped: dict[int, int]


def reopen_leaf(pixel: Pixel, version: str, settings: Settings, ranks: tuple[NDArray[np.int64], NDArray[np.int64]]) -> Reopened:
    """Turn a leaf of detections back into the run it would come from: the same rows, duplicates too, with their work columns.

    Parameters
    ----------
    pixel : Pixel
        The leaf.
    version : str
        Folder of the version.
    settings : Settings
        The ingest.
    ranks : (ndarray, ndarray)
        Observation ids, sorted, and the rank of each.
    """
    name = f"leaf-{pixel.order}-{pixel.index}"
    folder = Path(settings.work) / "map"
    done = folder / f"{name}.json"
    if done.exists():
        value = read_json(done)
        stored, dropped = ({int(rank): rows for rank, rows in value[key].items()} for key in ("stored", "dropped"))
        return Reopened(RunInfo(**value["run"]), pixel, stored, dropped)
    path = Path(version) / "detections" / "detections" / pixel.hats_path
    leaf = read_leaf(path)
    leaf_rows, names = leaf.num_rows, ("object_id", "observation_id", "source_row", *settings.schema.names)
    beside = Path(version) / DUPLICATES / pixel.hats_path
    parts = [leaf, read_leaf(beside)] if beside.exists() else [leaf]
    leaf = pa.table({name: pa.chunked_array([chunk for part in parts for chunk in part[name].chunks]) for name in names})
    # The columns of a leaf carry the units of the survey, as the blocks of a file do.
    own = pa.table([leaf[name] for name in settings.schema.names], schema=settings.schema.to_arrow())
    ra, dec = positions(own, settings.survey, Source(str(path)))
    observations, numbers = flat(leaf, "observation_id"), flat(leaf, "source_row")
    rank = ranks[1][np.searchsorted(ranks[0], observations)].astype(np.int32)
    by = settings.survey.grouping.by
    rows = located(own, ra, dec, rank, flat(leaf, "object_id") if by == "id" else key_of(observations, numbers), numbers)
    if by == "reference":
        rows = claimed_by_reference(rows, settings.survey.grouping, Path(settings.work))
    rows = take_rows(rows, np.argsort(flat(rows, "_healpix_29")), nulls=False)
    run = write_run(folder, name, rows, settings)
    found = Reopened(run, pixel, count_ranks(rank[:leaf_rows]), count_ranks(rank[leaf_rows:]))
    write_json(done, {"run": asdict(run), "stored": found.stored, "dropped": found.dropped})
    return found


Known = dict[str, tuple[int, str]]
"""Bytes and digest of a pixel's leaves in a version, by member."""


def known_leaves(collection: Collection) -> dict[Pixel, Known]:
    """Return what the manifest of a version says about the leaves of each pixel."""
    members = {member_folder(Path(), member).as_posix(): member for member in (*MEMBERS, DUPLICATES)}
    found: dict[Pixel, Known] = {}
    for entry in collection.manifest["files"]:
        folder, _, path = entry["path"].partition("/dataset/Norder=")
        if path and folder in members:
            pixel = Pixel.from_hats_path(entry["path"])
            found.setdefault(pixel, {})[members[folder]] = (entry["bytes"], entry["sha256"])
    return found


def carry_pixels(pixels: tuple[tuple[Pixel, Known], ...], version: str, settings: Settings) -> list[Reduced]:
    """Link the leaves of untouched pixels into the new version; nothing of them is read but footers and ids."""
    return [_carry(pixel, known, Path(version), settings) for pixel, known in pixels]


def _carry(pixel: Pixel, known: Known, version: Path, settings: Settings) -> Reduced:
    work = Path(settings.work)
    done = pixel_file(work, pixel, "json")
    if done.exists() and is_whole(result := load_result(done), work / "version"):
        return result
    leaves: dict[str, Any] = dict.fromkeys((*MEMBERS, DUPLICATES))
    nulls: dict[str, int] = {}
    for member, (size_bytes, sha256) in known.items():
        old, new = (member_folder(folder, member) / pixel.hats_path for folder in (version, work / "version"))
        new.unlink(missing_ok=True)
        link(old, new)
        leaves[member], counts = known_leaf(member_folder(version, member), pixel.hats_path, size_bytes=size_bytes, sha256=sha256)
        if member == "detections":
            nulls = {name: counts[name] for name in settings.schema.names if counts[name]}
    ids = np.sort(flat(read_leaf(member_folder(version, "objects") / pixel.hats_path, ["object_id"]), "object_id"))
    write_arrow(pa.table({"object_id": ids}), pixel_file(work, pixel, "ids.arrow"))
    matched = (0, 0)
    if settings.survey.grouping.by == "reference":
        objects = read_leaf(member_folder(version, "objects") / pixel.hats_path, ["object_id", "detection_count"])
        claimed = flat(objects, "object_id") >= 0
        matched = (int(claimed.sum()), int(flat(objects, "detection_count")[claimed].sum()))
    result = Reduced(pixel, **leaves, stored={}, dropped={}, nulls=nulls, matched=matched)
    save_result(done, result)
    return result
