"""What the tasks of a release do: a leaf becomes a part on disk, parts are counted and digested, a part becomes a shard."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.steps import Chain, apply_steps, columns_needed
from scalable.errors import StoreError
from scalable.io.hdf5_write import Dataset, new_file, write_attributes, write_dataset
from scalable.io.layout import HEALPIX_COLUMN, LeafInfo
from scalable.io.runs import read_arrow, read_json, take_rows, write_arrow, write_json
from scalable.kernels.quantile import count_digits, sortable
from scalable.release.assemble import (
    Arrays,
    Robust,
    assemble,
    group_digests,
    light_curve_arrays,
    numbers,
    objects_in,
    row_digests,
)
from scalable.release.coverage import magnitude_counts, magnitudes, seen_cells
from scalable.release.drawn import Drawn, drawn_arrays, drawn_path
from scalable.release.fill import candidates
from scalable.release.fill import merge as merge_samples
from scalable.release.images import CubeImages, write_images
from scalable.release.loss import error_of, labelled_histogram
from scalable.release.observed import Observed
from scalable.release.recipe import Impute, Recipe
from scalable.release.rows import LIGHT_CURVE_KEYS, Feature
from scalable.release.select import Cuts, cut
from scalable.schema import Schema
from scalable.sky.pixel import Pixel

BINS = 64
"""Of the histogram that stands for the distribution of a column."""


@dataclass(frozen=True)
class Plan:
    """What every task of one release needs to know.

    Attributes
    ----------
    work : str
        Folder of the parts.
    chain : Chain
        Where rows come from: detections, and the steps that make them objects.
    schema : pyarrow.Schema
        Columns of the rows.
    released, light_curves : tuple of Feature
        What is released of rows, and of the detections beside them.
    recipe, cuts
        What stays, and how it is flagged.
    """

    work: str
    chain: Chain
    schema: pa.Schema
    released: tuple[Feature, ...]
    light_curves: tuple[Feature, ...]
    recipe: Recipe
    cuts: Cuts
    bands: tuple[str, ...]
    observed: Observed
    images: CubeImages | None = None
    drawn: Drawn | None = None

    @property
    def of_objects(self) -> bool:
        """Whether a row is an object, and its detections lie beside it."""
        return self.recipe.rows == "objects"

    @property
    def row_bytes(self) -> float:
        """Decoded bytes of a row, its images included, its light curve not."""
        return self._wide(self.released) + (sum(one.row_bytes for one in self.images.variables) if self.images else 0)

    @property
    def detection_bytes(self) -> float:
        """Decoded bytes of a detection of a light curve."""
        return self._wide(self.light_curves) if self.of_objects else 0

    def _wide(self, some: tuple[Feature, ...]) -> float:
        return Schema(tuple(feature.column for feature in some)).row_bytes

    def file(self, part: str, kind: str) -> Path:
        """Return one of the files of a part."""
        return Path(self.work) / "parts" / f"{part}.{kind}"


def part_name(pixel: Pixel) -> str:
    """Return how the part of a pixel is called."""
    return f"{pixel.order}-{pixel.index}"


def divide(
    pixel: Pixel, cells: NDArray[np.int64], size: NDArray[np.float64], limit: float, first: int = 0
) -> Iterator[tuple[Pixel, int, int]]:
    """Yield pixels that hold at most ``limit`` bytes of the rows of one, each with its first row and the row behind its last.

    Parameters
    ----------
    pixel : Pixel
        That holds all of them.
    cells : ndarray of int64, shape (n,)
        Pixels of order 29 of the rows, ascending.
    size : ndarray of float64, shape (n,)
        Bytes of each row. Rows at one place stay together, whatever they hold.
    limit : float
        Bytes.
    first : int
        Number of the first row.
    """
    if len(cells) and (size.sum() <= limit or cells[0] == cells[-1]):
        yield pixel, first, first + len(cells)
    elif len(cells):
        for index in range(4 * pixel.index, 4 * pixel.index + 4):
            child = Pixel(pixel.order + 1, index)
            a, b = np.searchsorted(cells, [child.start, child.stop]).tolist()
            yield from divide(child, cells[a:b], size[a:b], limit, first + a)


def shard_path(part: str) -> str:
    """Return the path of a part's shard below the release."""
    order, index = part.split("-")
    return drawn_path(index) if order == "simulated" else f"data/Norder={order}/Npix={index}.h5"


def light_curve_path(part: str) -> str:
    """Return the path of the ragged file beside a shard."""
    return shard_path(part).removesuffix(".h5") + ".lightcurves.h5"


def make_part(leaf: LeafInfo, plan: Plan) -> dict[str, Any]:
    """Compute the rows of a leaf, drop what the recipe drops, and leave both on disk; skipped if done before.

    What is larger than a shard may be lies there in pieces: each is a pixel within that of the leaf, and a part from then on.
    """
    part = part_name(leaf.pixel)
    done = plan.file(part, "json")
    if done.exists():
        return read_json(done)
    names = [field.name for field in plan.schema]
    wanted = columns_needed(plan.chain.steps, names)
    curve_columns = dict.fromkeys([HEALPIX_COLUMN, "object_id", *LIGHT_CURVE_KEYS, *_stored(plan.light_curves)])
    raw = plan.chain.loader.load(leaf, list(dict.fromkeys([*wanted, *(curve_columns if plan.of_objects else ())])))
    table = apply_steps(raw, plan.chain.steps, names).cast(plan.schema.remove_metadata())
    counts = np.ones(0, dtype=np.int64)
    if plan.of_objects:
        edges = objects_in(raw, HEALPIX_COLUMN)
        first, counts = edges[:-1], np.diff(edges)
        if not np.array_equal(raw["object_id"].to_numpy()[first], table["object_id"].to_numpy()):
            raise StoreError(f"{leaf.path}: the steps gave other objects than the leaf holds; a release needs one row for each")
        source = raw.select(["observation_id", "source_row"]).take(pa.array(first))
    else:
        source = table.select(["observation_id", "source_row"])
    keys = {"object_id": table["object_id"].to_numpy(), "source_id": source["observation_id"].to_numpy(),
            "source_row": source["source_row"].to_numpy()}  # fmt: skip
    alive, rejected, dropped = cut(table, keys, plan.cuts)
    kept = take_rows(table, alive)
    for name in ("source_id", "source_row"):
        kept = kept.append_column(f"__{name}", pa.array(keys[name][alive]))
    record: dict[str, Any] = {"part": part, "rows_in": table.num_rows, "rows": len(alive), "dropped": dropped,
                              "magnitudes": magnitude_counts(table, alive, plan.released)}  # fmt: skip
    size, curves = np.full(len(alive), float(plan.row_bytes)), None
    if plan.of_objects:
        kept = kept.append_column("__lc_count", pa.array(counts[alive]))
        absent = plan.observed.absent(raw, edges).take(pa.array(alive))
        for name in absent.column_names:
            kept = kept.append_column(name, absent[name])
        mine = np.repeat(edges[:-1][alive] - (np.cumsum(counts[alive]) - counts[alive]), counts[alive])
        curves = take_rows(raw.select(list(curve_columns)), mine + np.arange(counts[alive].sum()))
        record |= {"detections_in": raw.num_rows, "detections": curves.num_rows}
        size += counts[alive] * plan.detection_bytes
    record["pieces"] = []
    ends = np.concatenate([[0], np.cumsum(counts[alive])]) if plan.of_objects else np.zeros(len(alive) + 1, np.int64)
    for pixel, a, b in divide(leaf.pixel, kept[HEALPIX_COLUMN].to_numpy(), size, plan.recipe.shard_mb * 1e6):
        piece, inside = part_name(pixel), int(ends[b] - ends[a])
        if curves is not None:
            write_arrow(curves.slice(int(ends[a]), inside), plan.file(piece, "lc.arrow"))
        write_arrow(kept.slice(a, b - a), plan.file(piece, "rows.arrow"))
        record["pieces"].append({"part": piece, "rows": b - a, "detections": inside})
    write_arrow(rejected, plan.file(part, "rejected.arrow"))
    # Written last: it says that everything before it is whole.
    write_json(done, record)
    return record


def _stored(features: tuple[Feature, ...]) -> list[str]:
    return [name for feature in features for name in (feature.source, feature.state) if name]


def count_part(
    part: str, plan: Plan, columns: tuple[str, ...], prefixes: NDArray[np.uint64], done: int, each: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return one pass of digits for the order statistics of columns, ``each`` of a column, and how many values these have."""
    table = read_arrow(plan.file(part, "rows.arrow"))
    pieces, totals = [np.zeros((0, 3), np.int64)], []
    for number, name in enumerate(columns):
        values = pc.cast(table[name], pa.float64()).drop_null().combine_chunks().to_numpy(zero_copy_only=False)
        keys = sortable(values[np.isfinite(values)])
        totals.append(len(keys))
        for wanted in range(number * each, (number + 1) * each):
            pieces.append(count_digits(keys, np.full(len(keys), wanted, dtype=np.int64), prefixes, done))
    return np.concatenate(pieces), np.array(totals)


def sample_parts(parts: Sequence[str], plan: Plan, asked: Impute) -> NDArray[np.float64]:
    """Return the rows of some parts that a rule of imputation may be learned from."""
    found = np.zeros((0, len(asked.using) + 2))
    for part in parts:
        found = merge_samples([found, candidates(read_arrow(plan.file(part, "rows.arrow")), asked)], asked)
    return found


def arrays_of(part: str, plan: Plan, robust: Robust) -> tuple[Arrays, Arrays]:
    """Return the arrays of a part's shard and of its light curves, which may be none."""
    table = read_arrow(plan.file(part, "rows.arrow"))
    keys = {name: table[f"__{name}"].to_numpy() for name in ("source_id", "source_row")}
    curves: Arrays = {}
    if plan.of_objects:
        keys["lc_count"] = table["__lc_count"].to_numpy()
        curves = light_curve_arrays(read_arrow(plan.file(part, "lc.arrow")), plan.light_curves)
    return assemble(table, keys, plan.released, plan.recipe, plan.cuts, robust), curves


def digest_part(part: str, plan: Plan, robust: Robust) -> dict[str, Any]:
    """Digest every row of a part, leave its piece of the index, and return what is known of its columns."""
    rows, curves = arrays_of(part, plan, robust)
    images: NDArray[np.uint8] | None = None
    shown: dict[str, Any] = {}
    if plan.images is not None:
        images, shown = plan.images.digest(rows["object_id"])
    digests = digest_rows(rows, curves, images)
    n = _leave_index(part, plan, rows, digests)
    features = (*plan.released, *plan.light_curves) if plan.of_objects else plan.released
    facts = {f.column.name: facts_of(rows if f in plan.released else curves, f.column.name) for f in features}
    tables = [(read_arrow(plan.file(part, "rows.arrow")), rows, plan.released)]
    if plan.of_objects:
        tables.append((read_arrow(plan.file(part, "lc.arrow")), curves, plan.light_curves))
    for table, arrays, released in tables:
        for f in released:
            facts[f.column.name]["apart"] = error_of(table, arrays, f)
    flags = {str(bit): int(np.count_nonzero(rows["flags"] & np.int32(1 << bit))) for bit in range(31)}
    return {"part": part, "rows": n, "digest": hashlib.sha256(digests.tobytes()).hexdigest(), "columns": facts,
            "flags": {bit: count for bit, count in flags.items() if count},
            "origin": np.bincount(rows["origin"], minlength=3).tolist(),
            "images": {"shown": int(np.count_nonzero(shown["shown"])), "pixels": shown["pixels"]} if shown else {},
            "cells": seen_cells(rows, plan.released, plan.bands, [one.column for one in plan.recipe.labels], shown)}  # fmt: skip


def _leave_index(part: str, plan: Plan, rows: Arrays, digests: NDArray[np.uint8]) -> int:
    """Write the piece of the index that a part has and return its rows."""
    n = len(digests)
    index = {name: rows[name] for name in ("object_id", "ra", "dec", "split", "fold", "source_id", "source_row")}
    columns = {name: pa.array(values) for name, values in index.items()}
    columns |= {"shard": pa.repeat(shard_path(part), n), "row": pa.array(np.arange(n))}
    columns |= {label.column: pa.array(rows[label.column]) for label in plan.recipe.labels}
    columns["row_digest"] = pa.FixedSizeBinaryArray.from_buffers(pa.binary(32), n, [None, pa.py_buffer(digests.tobytes())])
    write_arrow(pa.table(columns), plan.file(part, "index.arrow"))
    return n


def draw_part(part: str, plan: Plan, robust: Robust) -> dict[str, Any]:
    """Draw the simulated rows of a part, leave its piece of the index, and return what the manifest says of its shard."""
    rows = _drawn(part, plan, robust)
    images = plan.images.digest(rows["object_id"])[0] if plan.images is not None else None
    digests = digest_rows(rows, {}, images)
    n = _leave_index(part, plan, rows, digests)
    return {"path": shard_path(part), "rows": n, "digest": hashlib.sha256(digests.tobytes()).hexdigest(), "simulated": True}


def write_drawn(part: str, plan: Plan, robust: Robust, release: str, shell: Shell) -> None:
    """Write the shard of a part of simulated rows."""
    path = Path(release) / shard_path(part)
    if not path.exists():
        _write(path, _drawn(part, plan, robust), shell.attributes, shell.root, plan.images)


def _drawn(part: str, plan: Plan, robust: Robust) -> Arrays:
    if plan.drawn is None:
        raise StoreError(f"{part}: no rows are simulated in this release")
    span = plan.drawn.span(part)
    return drawn_arrays(plan.drawn, span, plan.schema, plan.released, plan.recipe, plan.cuts, robust, plan.bands)


def digest_rows(rows: Arrays, curves: Arrays, images: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Return the digest of every row, those of its light curve and of its images included."""
    more = [group_digests(row_digests(curves), rows["lc_count"])] if curves else []
    return row_digests(rows, more if images is None else [*more, images])


def facts_of(arrays: Mapping[str, NDArray[Any]], name: str) -> dict[str, Any]:
    """Return what can be merged of a column: counts by state, least and greatest, sum and sum of squares of what is measured."""
    values = arrays[name]
    states = arrays.get(f"{name}_state", np.zeros(len(values), np.uint8))
    counts = np.bincount(states, minlength=6).tolist()
    if values.dtype.kind not in "fiu" or values.ndim > 1:
        return {"states": counts}
    good = values[states == 0].astype(np.float64)
    good = good[np.isfinite(good)]
    if not len(good):
        return {"states": counts, "n": 0}
    total = float(good.sum())
    return {"states": counts, "n": len(good), "min": float(good.min()), "max": float(good.max()), "sum": total,
            "squares": float((good * good).sum())}  # fmt: skip


@dataclass(frozen=True)
class Shell:
    """What is written around the arrays: attributes of the root and of every dataset, and the ranges of the histograms."""

    root: Mapping[str, str]
    attributes: Mapping[str, Mapping[str, str]]
    curve_attributes: Mapping[str, Mapping[str, str]]
    ranges: Mapping[str, tuple[float, float]]


def write_shard(part: str, plan: Plan, robust: Robust, release: str, shell: Shell) -> tuple[dict[str, list[int]], dict[str, Any]]:
    """Write the shard of a part and the light curves beside it; return histograms of its columns, and of rows with labels."""
    rows, curves = arrays_of(part, plan, robust)
    folder = Path(release)
    if not (folder / shard_path(part)).exists():
        if curves:
            _write(folder / light_curve_path(part), curves, shell.curve_attributes, shell.root)
        # The shard comes last: it says that the light curves are whole.
        _write(folder / shard_path(part), rows, shell.attributes, shell.root, plan.images)
    found = {}
    for name, (low, high) in shell.ranges.items():
        arrays = rows if name in rows else curves
        values = arrays[name]
        states = arrays.get(f"{name}_state", np.zeros(len(values), np.uint8))
        good = values[states == 0].astype(np.float64)
        found[name] = np.histogram(good[np.isfinite(good)], BINS, (low, high))[0].tolist()
    known = {
        f"{label.column}:{column}": labelled_histogram(rows, label.column, column, bin_edges(shell.ranges[column]))
        for label in plan.recipe.labels
        for column in bias_columns(plan)
        if column in shell.ranges
    }
    return found, known


def bin_edges(limits: tuple[float, float]) -> NDArray[np.float64]:
    """Return the edges of the histogram of a column."""
    return np.histogram_bin_edges(np.zeros(0), BINS, limits)


def bias_columns(plan: Plan) -> list[str]:
    """Return the columns along which labelled rows are compared with all: those of the outliers, or magnitudes."""
    far = plan.recipe.outliers.far
    return list(far.columns) if far else [f.column.name for f in magnitudes(plan.released)]


def _write(
    path: Path,
    arrays: Arrays,
    attributes: Mapping[str, Mapping[str, str]],
    root: Mapping[str, str],
    images: CubeImages | None = None,
) -> None:
    with new_file(path) as file:
        write_attributes(file, root)
        for name, values in arrays.items():
            write_dataset(file, name, Dataset(values, attributes.get(name, {})))
        if images is not None:
            write_images(file, images, arrays["object_id"], attributes)


def fill_text(feature: Feature) -> str:
    """Return what stands in the released column for a null."""
    return numbers(pa.chunked_array([pa.array([], feature.column.dtype)]))[2]


def as_json(value: Any) -> str:
    """Return JSON text with sorted keys: equal values give equal bytes."""
    return json.dumps(value, sort_keys=True)
