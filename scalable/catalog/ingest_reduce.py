"""Ingest, later stages: check the spread of objects, gather a pixel's rows, group them into objects, write the leaves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.collection import DUPLICATES, REASON
from scalable.catalog.grouping import APART, with_object_ids
from scalable.catalog.ingest_map import RunInfo, Settings
from scalable.io.layout import HEALPIX_COLUMN
from scalable.io.parquet import Leaf, write_leaf
from scalable.io.runs import flat, ranges_of, read_arrow, read_json, take_rows, write_arrow, write_json
from scalable.kernels.order import canonical_order
from scalable.kernels.partition import (
    boundaries,
    box_extent_arcsec,
    boxes,
    mean_positions,
    merge_boxes,
    spreads_arcsec,
    unit_vectors,
)
from scalable.schema import Column, Schema
from scalable.sky.healpix import around_pixel, near_pixel, to_pixels
from scalable.sky.pixel import Pixel

MEMBERS = ("objects", "detections", "objects_margin", "detections_margin")
"""The catalogues that a pixel has a leaf in; a collection is named by the first word."""

WIDE = pa.schema([("object_id", pa.int64()), ("spread_arcsec", pa.float64()), ("detections", pa.int64()), ("owner", pa.int64())])


@dataclass(frozen=True)
class Plan:
    """What the reduce stage works from: the runs and the observations in canonical order.

    ``observations`` holds ``observation_id, band, mjd, path`` by rank; ``runs`` are those that have rows;
    ``wide`` says whether objects wider than the margin were set apart.
    """

    settings: Settings
    runs: tuple[RunInfo, ...]
    observations: pa.Table
    wide: bool = False


@dataclass(frozen=True)
class Reduced:
    """What one pixel gave: its leaves (none if no object lies in it), rows stored and rejected by observation rank.

    The margin leaves hold the objects of other pixels that lie within the margin of this one's border, with their detections.
    ``dropped`` are the rows in ``duplicates``; ``matched`` counts the reference objects and their rows.
    """

    pixel: Pixel
    objects: Leaf | None
    detections: Leaf | None
    objects_margin: Leaf | None
    detections_margin: Leaf | None
    duplicates: Leaf | None
    stored: dict[int, int]
    dropped: dict[int, int]
    nulls: dict[str, int]
    matched: tuple[int, int] = (0, 0)


def detections_schema(source: Schema) -> Schema:
    """Return the columns of a detections leaf: keys first, then everything the source gave."""
    keys = (
        Column(HEALPIX_COLUMN, pa.int64(), description="HEALPix index of the object, NESTED, order 29"),
        Column("object_id", pa.int64(), role="object_id", ucd="meta.id;meta.main", description="Object this row belongs to"),
        *_position_columns("object_ra", "object_dec"),
        Column("observation_id", pa.int64(), role="observation_id", ucd="obs.image", description="Row of the observation index"),
        Column("band", pa.string(), role="band", ucd="instr.bandpass", description="Filter"),
        Column("mjd", pa.float64(), role="time", unit="d", ucd="time.epoch", description="Modified Julian date"),
        Column("source_row", pa.int64(), ucd="meta.record", description="Row in the source file, from 0"),
    )
    # Only one column may play a key role, and the keys play it: the source's own columns become plain values of that name.
    own = tuple(replace(c, role="value") if c.role in ("object_id", "ra", "dec", "band", "time") else c for c in source)
    return Schema(keys + own)


def duplicates_schema(source: Schema) -> Schema:
    """Return the columns of rows that were rejected as duplicates: which they are and why, then everything the source gave."""
    keys = (HEALPIX_COLUMN, "object_id", "observation_id", "source_row")
    stored = detections_schema(source)
    reason = Column(REASON, pa.string(), description="Why the row was rejected")
    return Schema((*(stored[name] for name in keys), reason, *(stored[name] for name in source.names)))


def objects_schema(bands: Sequence[str]) -> Schema:
    """Return the columns of an objects leaf."""
    counts = [Column(f"n_{band}", pa.int32(), ucd="meta.number", description=f"Detections in {band}") for band in bands]
    return Schema(
        (
            Column(HEALPIX_COLUMN, pa.int64(), description="HEALPix index of the object, NESTED, order 29"),
            Column("object_id", pa.int64(), role="object_id", ucd="meta.id;meta.main", description="Object"),
            *_position_columns("object_ra", "object_dec"),
            *counts,
            Column("detection_offset", pa.int64(), description="First row of this object in the sibling leaf of detections"),
            Column("detection_count", pa.int32(), ucd="meta.number", description="Rows of this object in that leaf"),
        )
    )


def _position_columns(ra: str, dec: str) -> tuple[Column, Column]:
    text = "that of its reference object, or else the normalised vector mean of its detections (ICRS)"
    return (
        Column(ra, pa.float64(), role="ra", unit="deg", ucd="pos.eq.ra;meta.main", description=f"Right ascension, {text}"),
        Column(dec, pa.float64(), role="dec", unit="deg", ucd="pos.eq.dec;meta.main", description=f"Declination, {text}"),
    )


def check_bucket(bucket: int, settings: Settings, runs: tuple[RunInfo, ...]) -> NDArray[np.int64]:
    """Return the ids in one hash bucket whose detections may spread further than the margin (never misses one)."""
    pieces = []
    bounds = np.array([[bucket, bucket + 1]], dtype=np.int64)
    for run in runs:
        pieces.append(ranges_of(read_arrow(Path(settings.work) / "map" / f"{run.name}.boxes.arrow"), "bucket", bounds))
    if not any(piece.num_rows for piece in pieces):
        return np.zeros(0, dtype=np.int64)
    merged = pa.concat_tables(pieces)
    ids = merged["object_id"].to_numpy()
    order = np.argsort(ids, kind="stable")
    offsets = boundaries(ids[order])
    box = np.column_stack([merged[name].to_numpy() for name in ("x0", "y0", "z0", "x1", "y1", "z1")])[order]
    extent = box_extent_arcsec(merge_boxes(box, offsets))
    return ids[order][offsets[:-1]][extent > settings.survey.store.margin_arcsec]


def check_pixels(pixels: tuple[Pixel, ...], plan: Plan) -> NDArray[np.int64]:
    """Return the keys of rows in and around some pixels whose object, grouped by position, spreads further than the margin.

    An object is a component C: rows connected by steps of at most the radius r, which is at most the margin M. It is *wide* if
    the diagonal of its Cartesian box is longer than M; no part of an object has a longer one than the whole. A task sees the rows
    S in its pixel P and, by the ring, all within 2 M of P. Let m be a row in P, C its object, and L the component of m in S.

    - If L is wide, C is: it holds L. So no row of another object is named.
    - If C is wide, L is: either L = C, or a step of C leads from a row a in L to a row b outside S. Then b is further than 2 M
      from m, a is further than 2 M - r >= M from m, and L holds both a and m. So every row of C is named, by its pixel's task.

    What is not wide spreads by no more than M. The tasks of the reduce stage, from whose rows all wide objects are taken away,
    see it as they see an object with an id: if the mean of some of its rows lies in P, or within M of P, all of it lies within M
    of that mean, hence within 2 M of P, and is seen; and no row of another object links with it.
    """
    found = [np.zeros(0, dtype=np.int64)]
    for pixel in pixels:
        rows = gather(pixel, plan).select(["_work_ra", "_work_dec", "object_id"])
        ids = flat(with_object_ids(rows, plan.settings.survey.grouping), "object_id")
        order = np.argsort(ids, kind="stable")
        offsets = boundaries(ids[order])
        box = boxes(unit_vectors(flat(rows, "_work_ra")[order], flat(rows, "_work_dec")[order]), offsets)
        wide = np.repeat(box_extent_arcsec(box) > plan.settings.survey.store.margin_arcsec, np.diff(offsets))
        found.append(flat(rows, "object_id")[order][wide])
    return np.unique(np.concatenate(found))


def settle_wide(suspects: NDArray[np.int64], settings: Settings, runs: tuple[RunInfo, ...]) -> pa.Table:
    """Measure the suspects exactly, set the rows of the truly wide objects apart, and return the list of those objects.

    Suspects are ids; keys of rows where objects are grouped by position, and then they are known to be the rows of wide objects.
    The rows are set apart with their keys, and who gathers all rows of an object finds it again.
    """
    by_id = settings.survey.grouping.by == "id"
    folder = Path(settings.work)
    pieces = []
    for run in runs:
        table = read_arrow(folder / "map" / f"{run.name}.run.arrow")
        pieces.append(table.filter(pa.array(np.isin(flat(table, "object_id"), suspects))))
    rows = pa.concat_tables(pieces)
    ids = flat(with_object_ids(rows, settings.survey.grouping), "object_id")
    objects = group(rows, ids, nearest=not by_id)
    # The spread is that of all rows, duplicates too: a task that sees a far duplicate alone would take it for the object.
    order = np.argsort(ids, kind="stable")
    vectors = unit_vectors(flat(rows, "_work_ra")[order], flat(rows, "_work_dec")[order])
    spread = spreads_arcsec(vectors, boundaries(ids[order]))
    wide = (spread > settings.survey.store.margin_arcsec) | (not by_id)
    chosen, owners = objects.ids[wide], objects.owners[wide]
    # Every row of a wide object, duplicates too: the owner of the object drops and lists them.
    mine = np.flatnonzero(np.isin(ids, chosen))
    owner = owners[np.searchsorted(chosen, ids[mine])]
    by_owner = np.argsort(owner, kind="stable")
    set_apart = take_rows(rows, mine[by_owner]).append_column("_work_owner", pa.array(owner[by_owner]))
    write_arrow(set_apart, folder / "wide.arrow")
    return pa.table([chosen, spread[wide], np.diff(objects.offsets)[wide], owners], schema=WIDE)


def reduce_pixels(pixels: tuple[Pixel, ...], plan: Plan) -> list[Reduced]:
    """Write the leaves of some neighbouring pixels; those done before are not touched."""
    return [_reduce_pixel(pixel, plan) for pixel in pixels]


def _reduce_pixel(pixel: Pixel, plan: Plan) -> Reduced:
    work = Path(plan.settings.work)
    done = pixel_file(work, pixel, "json")
    if done.exists() and is_whole(result := load_result(done), work / "version"):
        return result
    grouping = plan.settings.survey.grouping
    rows = with_object_ids(gather(pixel, plan), grouping)
    objects = group(rows, flat(rows, "object_id"), nearest=grouping.by != "id")
    mine = np.flatnonzero((objects.owners >= pixel.start) & (objects.owners < pixel.stop))
    result = Reduced(pixel, None, None, None, None, None, {}, {}, {})
    if len(mine):
        # Canonical order along the sky: pixel of the object, then its id.
        mine = _along_the_sky(objects, mine)
        result = _write_pixel(pixel, plan, rows, objects, mine)
        ids = np.sort(objects.ids[mine])
        dropped = objects.duplicates[np.isin(flat(rows, "object_id")[objects.duplicates], ids)]
        if len(dropped):
            duplicates = take_rows(rows, dropped)
            leaf = write_leaf(_as_stored(duplicates, plan, objects), member_folder(work / "version", DUPLICATES), pixel.hats_path)
            result = replace(result, duplicates=leaf, dropped=count_ranks(flat(duplicates, "_work_observation")))
        if grouping.by == "reference":
            matched = mine[objects.ids[mine] >= 0]
            result = replace(result, matched=(len(matched), int(np.diff(objects.offsets)[matched].sum())))
        write_arrow(pa.table({"object_id": ids}), pixel_file(work, pixel, "ids.arrow"))
    save_result(done, result)
    return result


def pixel_file(work: Path, pixel: Pixel, kind: str) -> Path:
    """Return the path of one of the small files that the reduce stage leaves for a pixel."""
    return work / "reduce" / f"{pixel.order}-{pixel.index}.{kind}"


def member_folder(version: Path, member: str) -> Path:
    """Return the folder of a member's catalogue, or of the duplicates, in a version."""
    return version / member if member == DUPLICATES else version / member.split("_")[0] / member


def is_whole(result: Reduced, version: Path) -> bool:
    """Return whether the leaves of a finished pixel are still there: a killed clean-up may have taken them."""
    leaves = [(name, getattr(result, name)) for name in (*MEMBERS, DUPLICATES)]
    paths = [(member_folder(version, name) / leaf.path, leaf.size_bytes) for name, leaf in leaves if leaf]
    return all(path.exists() and path.stat().st_size == size for path, size in paths)


def gather(pixel: Pixel, plan: Plan) -> pa.Table:
    """Return every row in a pixel and in the ring around it, with the objects that are wider than the ring put in place."""
    work = Path(plan.settings.work)
    # An object of a neighbour within the margin of a border reaches as far again with its detections.
    ranges = around_pixel(pixel, radius_arcsec=2 * plan.settings.survey.store.margin_arcsec)
    pieces = [
        ranges_of(read_arrow(work / "map" / f"{run.name}.run.arrow"), HEALPIX_COLUMN, ranges)
        for run in plan.runs
        if ((ranges[:, 1] > run.first) & (ranges[:, 0] <= run.last)).any()
    ]
    if plan.wide:
        wide = read_arrow(work / "wide.arrow")
        ids = np.unique(flat(wide, "object_id"))
        pieces = [piece.filter(pa.array(~np.isin(flat(piece, "object_id"), ids))) for piece in pieces]
        pieces.append(ranges_of(wide, "_work_owner", ranges).drop_columns(["_work_owner"]))
    if not pieces:
        return read_arrow(work / "map" / f"{plan.runs[0].name}.run.arrow").slice(0, 0)
    return pa.concat_tables(pieces)


@dataclass(frozen=True)
class Objects:
    """Rows grouped into objects.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Where the rows are, in canonical order (id, observation, source row), without duplicates.
    offsets : ndarray of int64, shape (objects + 1,)
        Where each object's rows begin and end in ``rows``.
    ids, ra, dec, owners : ndarray, shape (objects,)
        Id, mean position [deg] and the order-29 pixel that holds it.
    duplicates : ndarray of int64
        Where the further rows of one object in one observation are.
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    ids: NDArray[np.int64]
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    owners: NDArray[np.int64]
    duplicates: NDArray[np.int64]


def group(rows: pa.Table, ids: NDArray[np.int64], *, nearest: bool) -> Objects:
    """Group rows by the ids of their objects; the payload is not touched.

    Of several rows of one object in one observation the first is kept, or, with ``nearest``, the one nearest to the mean of all
    rows of the object or to its reference object.
    """
    observations = flat(rows, "_work_observation")
    order = canonical_order(ids, observations, flat(rows, "source_row"))
    first = np.ones(len(order), dtype=bool)
    first[1:] = (np.diff(ids[order]) != 0) | (np.diff(observations[order]) != 0)
    if nearest and not first.all():
        # The sort is stable: equally near rows stay in canonical order, and so do observations.
        order = order[np.lexsort((_apart(rows, ids, order), np.cumsum(first)))]
    kept = order[first]
    offsets = boundaries(ids[kept])
    vectors = unit_vectors(flat(rows, "_work_ra")[kept], flat(rows, "_work_dec")[kept])
    ra, dec = mean_positions(vectors, offsets)
    owners = to_pixels(ra, dec) if len(ra) else np.zeros(0, dtype=np.int64)
    return Objects(kept, offsets, ids[kept][offsets[:-1]], ra, dec, owners, order[~first])


def _apart(rows: pa.Table, ids: NDArray[np.int64], order: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return how far each row, in ``order`` by id, is from the mean of its object's rows or from its reference [arcsec].

    To a millionth: two rows are equally far from their mean, whatever rounding says.
    """
    offsets = boundaries(ids[order])
    vectors = unit_vectors(flat(rows, "_work_ra")[order], flat(rows, "_work_dec")[order])
    means = unit_vectors(*mean_positions(vectors, offsets))
    chords = np.sqrt(((vectors - np.repeat(means, np.diff(offsets), axis=0)) ** 2).sum(axis=1))
    # The rows of a reference object all stand at its position.
    return np.round(np.rad2deg(chords) * 3600 + (flat(rows, APART)[order] if APART in rows.column_names else 0.0), 6)


def _rows_of(objects: Objects, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return where the rows of chosen objects are, object after object."""
    counts = np.diff(objects.offsets)[chosen]
    starts = np.cumsum(counts) - counts
    return objects.rows[np.repeat(objects.offsets[:-1][chosen] - starts, counts) + np.arange(counts.sum())]


def _along_the_sky(objects: Objects, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return chosen objects in canonical order: by the pixel of the object, then by id."""
    return chosen[np.lexsort((objects.ids[chosen], objects.owners[chosen]))]


def _write_pixel(pixel: Pixel, plan: Plan, rows: pa.Table, objects: Objects, mine: NDArray[np.int64]) -> Reduced:
    """Write the leaves of a pixel from its own objects, and those of its margin from its neighbours' objects."""
    other = np.setdiff1d(np.arange(len(objects.ids)), mine)
    margin_arcsec = plan.settings.survey.store.margin_arcsec
    near = near_pixel(pixel, objects.ra[other], objects.dec[other], radius_arcsec=margin_arcsec)
    tables = _tables(plan, rows, objects, mine)
    own = _write_members(pixel, plan, tables, "")
    margin = _write_members(pixel, plan, _tables(plan, rows, objects, _along_the_sky(objects, other[near])), "_margin")
    nulls = {name: tables[1][name].null_count for name in plan.settings.schema.names if tables[1][name].null_count}
    return Reduced(pixel, *own, *margin, None, count_ranks(flat(rows, "_work_observation")[_rows_of(objects, mine)]), {}, nulls)


def _write_members(pixel: Pixel, plan: Plan, tables: tuple[pa.Table, pa.Table], suffix: str) -> tuple[Leaf | None, Leaf | None]:
    """Write one leaf of objects and the corresponding one of detections; nothing where there is no object."""
    if tables[0].num_rows == 0:
        return None, None
    version = Path(plan.settings.work) / "version"
    members = zip(("objects", "detections"), tables, strict=True)
    first, second = (write_leaf(table, member_folder(version, f"{name}{suffix}"), pixel.hats_path) for name, table in members)
    return first, second


def _tables(plan: Plan, rows: pa.Table, objects: Objects, chosen: NDArray[np.int64]) -> tuple[pa.Table, pa.Table]:
    """Return the objects and the detections of chosen objects as they are stored."""
    counts = np.diff(objects.offsets)[chosen]
    starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    rows = take_rows(rows, _rows_of(objects, chosen))
    ra, dec = objects.ra[chosen], objects.dec[chosen]
    observed = plan.observations.take(flat(rows, "_work_observation"))
    columns = {
        HEALPIX_COLUMN: np.repeat(objects.owners[chosen], counts),
        "object_id": rows["object_id"],
        "object_ra": np.repeat(ra, counts),
        "object_dec": np.repeat(dec, counts),
        "observation_id": observed["observation_id"],
        "band": observed["band"],
        "mjd": observed["mjd"],
        "source_row": rows["source_row"],
    } | {name: rows[name] for name in plan.settings.schema.names}
    schema = detections_schema(plan.settings.schema)
    detections = pa.table([columns[name] for name in schema.names], schema=schema.to_arrow())
    return _objects_table(detections, plan, starts, ra, dec, flat(rows, "_work_observation")), detections


def _objects_table(
    detections: pa.Table,
    plan: Plan,
    starts: NDArray[np.int64],
    ra: NDArray[np.float64],
    dec: NDArray[np.float64],
    ranks: NDArray[np.int32],
) -> pa.Table:
    bands = plan.settings.survey.bands
    # A file that was set aside may show no band; it has no rows.
    band_of_rank = np.array([bands.index(band) if band else -1 for band in plan.observations["band"].to_pylist()], dtype=np.int64)
    group = np.repeat(np.arange(len(ra)), np.diff(starts))
    n_band = np.bincount(group * len(bands) + band_of_rank[ranks], minlength=len(ra) * len(bands)).reshape(-1, len(bands))
    first = detections.take(starts[:-1])
    columns = {
        HEALPIX_COLUMN: first[HEALPIX_COLUMN],
        "object_id": first["object_id"],
        "object_ra": ra,
        "object_dec": dec,
        "detection_offset": starts[:-1],
        "detection_count": np.diff(starts).astype(np.int32),
    } | {f"n_{band}": n_band[:, i].astype(np.int32) for i, band in enumerate(bands)}
    schema = objects_schema(bands)
    return pa.table([columns[name] for name in schema.names], schema=schema.to_arrow())


def _as_stored(duplicates: pa.Table, plan: Plan, objects: Objects) -> pa.Table:
    """Return rejected rows with all that their source gave and the pixel of their object."""
    owners = objects.owners[np.searchsorted(objects.ids, flat(duplicates, "object_id"))]
    observed = plan.observations["observation_id"].take(pa.array(flat(duplicates, "_work_observation")))
    kept = "first row" if plan.settings.survey.grouping.by == "id" else "row nearest to the object"
    reason = pa.repeat(f"duplicate (object, observation): the {kept} is kept", duplicates.num_rows)
    columns = [owners, duplicates["object_id"], observed, duplicates["source_row"], reason]
    columns += [duplicates[name] for name in plan.settings.schema.names]
    return pa.table(columns, schema=duplicates_schema(plan.settings.schema).to_arrow())


def count_ranks(ranks: NDArray[np.int32]) -> dict[int, int]:
    """Return how many rows there are of each observation, by its rank."""
    values, counts = np.unique(ranks, return_counts=True)
    return {int(rank): int(n) for rank, n in zip(values, counts, strict=True)}


def write_index_part(bounds: tuple[int, int, int], settings: Settings, pixels: tuple[Pixel, ...]) -> Leaf | None:
    """Write one part of the index from id to pixel: the ids from ``bounds[1]`` to ``bounds[2]``, sorted; None without any."""
    number, low, high = bounds
    work = Path(settings.work)
    pieces = []
    for pixel in pixels:
        ids = read_arrow(pixel_file(work, pixel, "ids.arrow"))
        # Both bounds belong to the range: the bound after the largest id would be no 64-bit number.
        keys = flat(ids, "object_id")
        first, last = int(np.searchsorted(keys, low)), int(np.searchsorted(keys, high, side="right"))
        ids = ids.slice(first, last - first)
        n = ids.num_rows
        place = {"Norder": pixel.order, "Dir": pixel.index // 10000 * 10000, "Npix": pixel.index}
        pieces.append(ids.append_column("Norder", pa.array([place["Norder"]] * n, pa.uint8())))
        for name in ("Dir", "Npix"):
            pieces[-1] = pieces[-1].append_column(name, pa.array([place[name]] * n, pa.int64()))
    part = pa.concat_tables(pieces)
    if part.num_rows == 0:
        return None
    part = part.take(pc.sort_indices(part["object_id"]))
    return write_leaf(part, work / "version" / "objects" / "objects_id", f"dataset/index/part.{number}.parquet")


def save_result(path: Path, result: Reduced) -> None:
    """Write down what a finished pixel gave; written last."""
    counts = {"stored": result.stored, "dropped": result.dropped, "nulls": result.nulls, "matched": result.matched}
    leaves = {name: leaf and leaf.to_json() for name in (*MEMBERS, DUPLICATES) for leaf in (getattr(result, name),)}
    write_json(path, {"pixel": [result.pixel.order, result.pixel.index], **leaves, **counts})


def load_result(path: Path) -> Reduced:
    """Read back what a finished pixel gave."""
    value = read_json(path)
    stored, dropped = ({int(rank): n for rank, n in value[key].items()} for key in ("stored", "dropped"))
    leaves: dict[str, Any] = {name: value[name] and Leaf.from_json(value[name]) for name in (*MEMBERS, DUPLICATES)}
    matched = (int(value["matched"][0]), int(value["matched"][1]))
    return Reduced(Pixel(*value["pixel"]), **leaves, stored=stored, dropped=dropped, nulls=value["nulls"], matched=matched)
