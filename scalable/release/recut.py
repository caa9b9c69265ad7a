"""Level 3 of verify for images: cutouts of sampled objects, stacked again from the source images, compared bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from scalable.cube.contract import VARIABLES
from scalable.cube.stack import CutoutSize, stack_images
from scalable.kernels.resample import METHODS
from scalable.release.assemble import Arrays
from scalable.release.images import load_plugin
from scalable.release.manifest import read_manifest
from scalable.release.resample import Found, same_bits, sampled
from scalable.survey.description import Survey

_OBJECTS = 256
"""Objects that are stacked at a time."""


def check_images(folder: Path, survey: Survey, samples: int) -> Found:
    """Yield sampled objects with an image, each with the datasets that do not come out of the source images as released."""
    manifest = read_manifest(folder)
    columns = [column for column in manifest["columns"] if column["in"] == "images"]
    if not columns:
        return
    chosen = sampled(folder, samples, _with_image(folder, manifest))
    shards = np.asarray(chosen["shard"].to_pylist())
    for path in dict.fromkeys(shards.tolist()):
        rows = chosen.filter(pa.array(shards == path))["row"].to_numpy()
        for first in range(0, len(rows), _OBJECTS):
            yield from _compare(folder, path, rows[first : first + _OBJECTS], columns, manifest, survey)


def _with_image(folder: Path, manifest: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return which rows of the index belong to an object that the cube had."""
    has = []
    for shard in manifest["shards"]:
        with h5py.File(folder / shard["path"], "r") as file:
            has.append(np.isfinite(file["image_ra"][()]))
    return np.concatenate(has)


def _compare(
    folder: Path,
    path: str,
    rows: NDArray[np.int64],
    columns: list[dict[str, Any]],
    manifest: Mapping[str, Any],
    survey: Survey,
) -> Iterator[tuple[str, str]]:
    load_plugin(manifest)
    released: Arrays = {}
    with h5py.File(folder / path, "r") as file:
        ids = file["object_id"][()][rows]
        for column in columns:
            # Rows one by one: images of what lies between them may be large.
            released[column["source"]] = np.stack([file[column["name"]][row] for row in rows.tolist()])
    there = np.isfinite(released["ra"])
    if not there.any():
        return
    about = json.loads(manifest["images"]["attributes"]["cube"])
    made = _stacked(survey, about, manifest["images"]["bands"], {n: v[there] for n, v in released.items()}, ids[there])
    order = np.searchsorted(made["object_id"].values, ids[there], sorter=np.argsort(made["object_id"].values))
    order = np.argsort(made["object_id"].values)[order]
    wrong: list[set[str]] = [set() for _ in ids[there]]
    # What a cube says of a slot without exposure: nothing covers it, and nothing is cut off what was asked for in pixels.
    asked = about["size_asked"]
    empty = {"pad_fraction": 1.0, "crop_fraction": np.nan if asked["arcsec"] or asked["column"] else 0.0}
    for column in columns:
        name = column["source"]
        values = _padded(made[name].values[order], released[name].shape[1:], empty.get(name, VARIABLES[name].fill))
        for n in np.flatnonzero(~same_bits(values, released[name][there])).tolist():
            wrong[n].add(column["name"])
    for row, number, differing in zip(rows[there].tolist(), ids[there].tolist(), wrong, strict=True):
        yield (
            f"{path}: row {row}",
            f"object {number}: {', '.join(sorted(differing))} not as the source images give" if differing else "",
        )


def _stacked(survey: Survey, about: Mapping[str, Any], bands: list[str], released: Arrays, ids: NDArray[np.int64]) -> xr.Dataset:
    """Stack cutouts of objects as the attribute ``cube`` says that they were stacked."""
    table = {"object_id": ids, "ra": released["ra"], "dec": released["dec"]}
    asked, grid = CutoutSize(**about["size_asked"]), about["grid"]
    scale = released["scale_asked"]
    stretched = asked.pixels is not None and (asked.arcsec is not None or asked.column)
    if asked.column:
        table[asked.column] = np.where(np.isfinite(scale), scale * about["size"], 1.0) / asked.times
    wanted = {"native": None, "tangent": None if stretched else float(scale[0])}.get(grid, grid)
    resampling = {text: name for name, text in METHODS.items()}.get(about["resampling"], "native")
    cube = stack_images(
        survey, pa.table(table), size=asked, bands=bands, combine=about["combine"], resampling=resampling, grid=wanted
    )
    return cube[[name for name in cube.variables if "object" in cube[name].dims]].compute()


def _padded(values: NDArray[Any], shape: tuple[int, ...], fill: Any) -> NDArray[Any]:
    """Return values with as many epochs as the release has: of few objects there may be fewer."""
    if values.shape[1:] == shape:
        return values
    out = np.full((len(values), *shape), fill, values.dtype)
    out[tuple(slice(0, n) for n in values.shape)] = values
    return out
