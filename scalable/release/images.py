"""The images of a release: rows of a cube beside the rows of a shard, copied, digested and read block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import xarray as xr
from numpy.typing import NDArray

from scalable.cube.contract import TABLES, VARIABLES, about_cube, check_cube, open_cube, raw_headers
from scalable.errors import StoreError, SurveyError, require
from scalable.io.fits_header import BLOCK, data_bytes
from scalable.io.hdf5_write import Dataset, create_chunked, text_attributes, write_attributes, write_dataset, write_rows
from scalable.io.runs import write_arrow
from scalable.io.zarr import ShardedArray
from scalable.kernels.stack import PixelState
from scalable.release.assemble import Arrays, row_digests
from scalable.release.manifest import PROVENANCE
from scalable.release.recipe import Meaning, Recipe, Split
from scalable.release.sources import HEADERS, SourceFile
from scalable.schema import Column

BLOCK_BYTES = 32 << 20
"""Pixels that a task holds of a cube at a time, all variables together; one object where that is larger."""
CHUNK_BYTES = 1 << 20

_UCD = {"image": "obs.image", "ivar": "stat.weight;obs.image", "mask": "meta.code.qual;obs.image", "state": "meta.code;obs.image",
        "mjd": "time.epoch", "psf_fwhm": "instr.det.psf", "pixel_scale": "instr.scale", "ra": "pos.eq.ra",
        "dec": "pos.eq.dec"}  # fmt: skip
PIXELS = ("image", "ivar", "mask", "state")
IMAGE, BLOSC = "image", 32001
_FROM_PROVENANCE = {"source_uri", "source_size", "source_sha256", "header_source", "header_hdu", "header_start", "header_stop",
                    "headers"}  # fmt: skip
"""Tables of a cube that provenance holds with those of the other sources."""


@dataclass(frozen=True)
class ImageVariable:
    """One variable of a cube as it is released.

    Attributes
    ----------
    name, source : str
        Of the dataset, and of the variable in the cube.
    dims : tuple of str
        Dimensions, ``object`` first.
    shape : tuple of int
        Of one object.
    dtype : str
        Of its values.
    attributes : tuple of (str, str)
        Those that the cube gives it.
    """

    name: str
    source: str
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: str
    attributes: tuple[tuple[str, str], ...]

    @property
    def fill(self) -> Any:
        """Value of an object that the cube does not have."""
        return np.dtype(self.dtype).type(VARIABLES[self.source].fill)

    @property
    def row_bytes(self) -> int:
        """Bytes of one object."""
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class CubeImages:
    """The cube that images are taken from; frozen, and cheap to send: it is opened where it is read.

    Attributes
    ----------
    path : str
        Its folder.
    variables : tuple of ImageVariable
        What is released of it, in the order of the format.
    """

    path: str
    written: int
    """When it was, so that another cube at the same place is another one."""
    variables: tuple[ImageVariable, ...]
    carried: bool = False
    """Whether chunks of pixels go into the release as the cube holds them."""

    @property
    def opened(self) -> xr.Dataset:
        """The cube."""
        return _opened(self.path, self.written)

    @property
    def chunk_rows(self) -> int:
        """Objects in a chunk of a dataset of pixels: the same in all of them."""
        return max(1, CHUNK_BYTES // max(variable.row_bytes for variable in self.variables))

    @property
    def step(self) -> int:
        """Objects that are held at a time: whole chunks."""
        return block_step([variable.row_bytes for variable in self.variables], self.chunk_rows)

    def places(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the row of each object in the cube, -1 where it has none."""
        known = self.opened["object_id"].values
        order = np.argsort(known, kind="stable")
        at = np.minimum(np.searchsorted(known[order], ids), len(known) - 1)
        found = order[at]
        return np.where(known[found] == ids, found, -1)

    def read(self, source: str, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows of a variable, the fill value where a row is -1."""
        variable = next(one for one in self.variables if one.source == source)
        values = np.full((len(rows), *variable.shape), variable.fill, variable.dtype)
        good = rows >= 0
        if good.any():
            values[good] = self.opened[source].isel(object=rows[good]).values
        return values

    def digest(self, ids: NDArray[np.int64]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Return what `digest_images` gives for objects; those that the cube does not have are all the same."""
        rows = self.places(ids)
        has = rows >= 0
        found, facts = digest_images(self.blocks(rows[has]))
        empty, nothing = digest_images(self.blocks(rows[~has][:1]))
        digests, shown = np.empty((len(ids), 32), np.uint8), np.zeros(len(ids), np.bool_)
        digests[has], shown[has] = found, facts["shown"]
        digests[~has] = empty
        missing = len(ids) - int(np.count_nonzero(has))
        pixels = [a + missing * b for a, b in zip(facts["pixels"], nothing["pixels"], strict=True)]
        return digests, {"shown": shown, "pixels": pixels}

    def blocks(self, rows: NDArray[np.int64]) -> Iterator[tuple[int, Arrays]]:
        """Yield rows of the cube as they are released, some at a time, each time with the number of the first."""
        for first in range(0, len(rows), self.step):
            some = rows[first : first + self.step]
            yield first, {one.name: self.read(one.source, some) for one in self.variables}


@lru_cache(maxsize=4)
def _opened(path: str, _: int) -> xr.Dataset:
    return open_cube(path)


def images_of(path: str | Path, *, carried: bool = False) -> CubeImages:
    """Look at a cube; nothing but its tables is read.

    Raises
    ------
    StoreError
        If it holds tiles, or an object twice.
    """
    cube = open_cube(path)
    about = about_cube(cube)
    if about["kind"] != "cutouts":
        raise StoreError(f"{path}: holds {about['kind']}; a release needs cutouts, one row an object")
    ids = cube["object_id"].values
    if len(np.unique(ids)) < len(ids):
        raise StoreError(f"{path}: holds an object twice; stack every object once")
    found = []
    for name in VARIABLES:
        if name in cube.variables and (name != "unreadable" or cube[name].values.any()):
            variable = cube[name]
            attributes = tuple(sorted((str(key), str(value)) for key, value in variable.attrs.items()))
            dims = tuple(map(str, variable.dims))
            found.append(ImageVariable(_released(name), name, dims, variable.shape[1:], variable.dtype.str, attributes))
    return CubeImages(str(path), (Path(path) / "zarr.json").stat().st_mtime_ns, tuple(found), carried)


def _released(name: str) -> str:
    return name if name == "image" else f"image_{name}"


def check_guard(images: CubeImages, split: Split) -> None:
    """Refuse a guard band narrower than two cutouts need to share no pixel.

    Raises
    ------
    SurveyError
        With the width that is needed.
    """
    cube = images.opened
    scales = np.concatenate([cube[name].values.ravel() for name in ("pixel_scale", "scale_asked")])
    scale = float(np.max(scales[np.isfinite(scales)], initial=0.0))
    needed = math.sqrt(2) * scale * about_cube(cube)["size"]
    if not split.random and split.guard_arcsec < needed:
        raise SurveyError(
            f"split.guard_arcsec: {split.guard_arcsec} arcsec let cutouts of different splits share pixels; "
            f"take {needed:.1f} or more"
        )


def image_entries(images: CubeImages, recipe: Recipe) -> list[tuple[Column, Meaning, ImageVariable]]:
    """Return what recipe and cube say of every variable of the images."""
    found = []
    for one in images.variables:
        given = recipe.meaning(one.name)
        attributes, known = dict(one.attributes), VARIABLES[one.source]
        unit = given.unit or attributes.get("units") or known.units or "1"
        column = Column(
            one.name, pa.from_numpy_dtype(np.dtype(one.dtype)), unit=unit, ucd=given.ucd or _UCD.get(one.source, "meta.code"),
            description=given.description or known.text, shape=",".join(map(str, one.shape)),
        )  # fmt: skip
        reason = given.reason or ("" if one.source == "image" else "says what the pixels of image are")
        obtained = given.obtained or "cutout of the source images, see the attribute cube"
        found.append((column, given.model_copy(update={"reason": reason, "obtained": obtained}), one))
    return found


def image_columns(images: CubeImages, recipe: Recipe) -> list[dict[str, Any]]:
    """Return what the manifest says of the datasets of images."""
    return [
        {
            "name": column.name, "in": "images", "dtype": str(column.dtype), "role": "", "unit": column.unit, "source_unit": "",
            "ucd": column.ucd, "description": column.description, "reason": meaning.reason, "serves": meaning.serves,
            "obtained": meaning.obtained, "error": "image_ivar" if column.name == "image" and _has(images, "ivar") else "",
            "states": False, "null_value": str(one.fill), "dims": list(one.dims), "shape": list(one.shape),
            "cube": dict(one.attributes), "source": one.source,
        }
        for column, meaning, one in image_entries(images, recipe)
    ]  # fmt: skip


def _has(images: CubeImages, source: str) -> bool:
    return any(one.source == source for one in images.variables)


def describe_images(images: CubeImages) -> dict[str, Any]:
    """Return what the manifest says of the cube: its attributes word for word, its coordinates, and how many objects it has."""
    cube = images.opened
    return {
        "objects_in_cube": int(cube.sizes["object"]),
        "sizes": {str(name): int(size) for name, size in cube.sizes.items() if name in ("band", "epoch", "y", "x")},
        "bands": [str(band) for band in cube["band"].values],
        "attributes": {str(key): str(value) for key, value in sorted(cube.attrs.items())},
        "coordinates": sorted(str(name) for name in cube.coords),
        "sources": int(cube.sizes["source"]),
    }


def load_plugin(manifest: Mapping[str, Any]) -> None:
    """Let HDF5 read pixels that were carried over.

    Raises
    ------
    ExtraMissingError
        If hdf5plugin is not installed.
    """
    if manifest["recipe"]["codec"] == "carry":
        require("hdf5plugin", "hdf5")


def digest_images(blocks: Iterator[tuple[int, Arrays]]) -> tuple[NDArray[np.uint8], dict[str, Any]]:
    """Return the digest of the images of every object, shape (n, 32), and what is counted of them."""
    digests, shown, pixels = [np.zeros((0, 32), np.uint8)], [np.zeros(0, np.bool_)], np.zeros(256, np.int64)
    for _, arrays in blocks:
        digests.append(row_digests(arrays))
        exposure = arrays["image_exposure"]
        shown.append(np.any((exposure >= 0).reshape(len(exposure), -1), axis=1))
        pixels += np.bincount(arrays["image_state"].ravel(), minlength=256)
    return np.concatenate(digests), {"shown": np.concatenate(shown), "pixels": pixels[: max(PixelState) + 1].tolist()}


def write_images(
    file: h5py.File, images: CubeImages, ids: NDArray[np.int64], attributes: Mapping[str, Mapping[str, str]]
) -> None:
    """Write the images of objects into an open shard, some objects at a time."""
    rows, n = images.places(ids), len(ids)
    for one in images.variables:
        if one.source not in PIXELS:
            write_dataset(file, one.name, Dataset(images.read(one.source, rows), attributes.get(one.name, {})))
            continue
        if images.carried:
            carry_rows(file, one.name, ShardedArray.open(Path(images.path, one.source)), rows)
            write_attributes(file[one.name], attributes.get(one.name, {}))
            continue
        # Whole objects, or one band of one object where that is more than a chunk should hold.
        inner = one.shape if one.row_bytes <= CHUNK_BYTES else (*(1 for _ in one.shape[:-2]), *one.shape[-2:])
        chunks = (min(n, images.chunk_rows), *inner)
        made = create_chunked(file, one.name, (n, *one.shape), np.dtype(one.dtype), chunks, fill=one.fill)
        step = images.chunk_rows if np.any(rows < 0) else block_step([one.row_bytes], images.chunk_rows)
        for first in range(0, n, step):
            some = rows[first : first + step]
            # A chunk that is not written holds the fill value.
            if np.any(some >= 0):
                write_rows(made, first, images.read(one.source, some))
        write_attributes(file[one.name], attributes.get(one.name, {}))


def carry_rows(file: h5py.File, name: str, array: ShardedArray, rows: NDArray[np.int64]) -> None:
    """Copy rows of an array into a dataset, chunk by chunk as they are stored; -1 stays the fill value.

    Raises
    ------
    StoreError
        If the array is not packed by blosc, or not at all.
    """
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk(array.chunk_shape)
    settings.set_obj_track_times(False)
    settings.set_fill_value(np.array(array.fill, array.dtype))
    if array.blosc:
        nbytes = math.prod(array.chunk_shape) * array.dtype.itemsize
        # Optional, or the library would ask for the plugin to write, too.
        settings.set_filter(BLOSC, h5py.h5z.FLAG_OPTIONAL, (2, 2, array.dtype.itemsize, nbytes, 1, 2, 1))
    space = h5py.h5s.create_simple((len(rows), *array.shape[1:]))
    made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.py_create(array.dtype), space, settings)
    for n, row in enumerate(rows.tolist()):
        if row >= 0:
            for place, data in array.stored(row):
                made.write_direct_chunk((n, *place), data)


def block_step(row_bytes: Sequence[int], chunk_rows: int) -> int:
    """Return how many objects `BLOCK_BYTES` hold, in whole chunks; one chunk where that is more."""
    return max(chunk_rows, BLOCK_BYTES // max(1, sum(row_bytes)) // chunk_rows * chunk_rows)


def read_blocks(file: h5py.File, columns: Sequence[Mapping[str, Any]], step: int) -> Iterator[tuple[int, Arrays]]:
    """Yield the images of a shard, ``step`` objects at a time, as `CubeImages.blocks` gave them."""
    names = [column["name"] for column in columns]
    for first in range(0, len(file["object_id"]), step):
        yield first, {name: file[name][first : first + step] for name in names}


def step_of(columns: Sequence[Mapping[str, Any]]) -> int:
    """Return how many objects are held at a time."""
    each = sum(math.prod(column["shape"]) * np.dtype(pa.type_for_alias(column["dtype"]).to_pandas_dtype()).itemsize
               for column in columns)  # fmt: skip
    return max(1, BLOCK_BYTES // max(1, each))


def image_sources(images: CubeImages, first: int, work: Path) -> tuple[list[SourceFile], list[str]]:
    """Return the files that the cube was cut from, numbered from ``first``, and leave the raw headers of each in a file."""
    cube = images.opened
    found, paths = [], []
    digests = cube["source_sha256"].values
    for number, (uri, size) in enumerate(
        zip(cube["source_uri"].values.tolist(), cube["source_size"].values.tolist(), strict=True)
    ):
        found.append(SourceFile(first + number, uri, digests[number].tobytes().hex(), int(size), IMAGE))
        rows: dict[str, list[Any]] = {name: [] for name in HEADERS.names}
        at = 0
        for hdu, raw in enumerate(raw_headers(cube, number)):
            start, at = at, at + len(raw)
            for name, value in zip(HEADERS.names, (first + number, hdu, start, at, data_bytes(raw), raw), strict=True):
                rows[name].append(value)
            at += -(-data_bytes(raw) // BLOCK) * BLOCK
        paths.append(str(work / "headers" / f"{first + number}.arrow"))
        write_arrow(pa.table(rows, schema=HEADERS), Path(paths[-1]))
    return found, paths


def write_cube_tables(group: h5py.Group, images: CubeImages, first: int) -> None:
    """Write what a cube says beside its objects: exposures, bands, attributes; its sources begin at number ``first``."""
    cube = images.opened
    group.attrs["first_source"] = first
    write_attributes(group, {str(key): str(value) for key, value in cube.attrs.items()})
    for name in cube.variables:
        variable = cube[name]
        if "object" not in variable.dims and str(name) not in _FROM_PROVENANCE:
            write_dataset(group, str(name), Dataset(variable.values, {str(k): str(v) for k, v in variable.attrs.items()}))


def cube_of(folder: Path, manifest: Mapping[str, Any], pixels: Mapping[str, Any]) -> xr.Dataset:
    """Return the images of a release as a cube under its contract, with the attributes that it had.

    Parameters
    ----------
    folder : Path
        The release.
    manifest : mapping
        What it says of itself.
    pixels : mapping
        ``object_id`` and every dataset of images as an array over the objects, lazy or not.
    """
    about = manifest["images"]
    variables: dict[str, Any] = {"object_id": (("object",), pixels["object_id"], {"long_name": "id of the object"})}
    for column in manifest["columns"]:
        if column["in"] == "images":
            variables[column["source"]] = (tuple(column["dims"]), pixels[column["name"]], column["cube"])
    with h5py.File(folder / PROVENANCE, "r") as file:
        group = file["cube"]
        base = int(group.attrs["first_source"])
        attributes = {key: value for key, value in text_attributes(group).items() if key != "first_source"}
        for name, dataset in group.items():
            text = h5py.check_string_dtype(dataset.dtype) is not None
            values = dataset.asstr()[()].astype(object) if text else dataset[()]
            variables[name] = ((TABLES.get(name, name if name == "band" else "band"),), values, text_attributes(dataset))
        mine = file["sources/source_id"][()] >= base
        for name in ("uri", "sha256"):
            variables[f"source_{name}"] = (("source",), file["sources"][name].asstr()[()][mine].astype(object))
        variables["source_size"] = (("source",), file["sources/size"][()][mine])
        listed = file["headers"]
        ids, lengths = listed["source_id"][()], listed["length"][()]
        begin = int(lengths[ids < base].sum())
        variables["headers"] = (("header_byte",), listed["blocks"][begin:])
        stops = np.cumsum(lengths[ids >= base])
        hdus = listed["hdu"][()][ids >= base]
        header = {"header_source": ids[ids >= base] - base, "header_hdu": hdus, "header_start": stops - lengths[ids >= base],
                  "header_stop": stops}  # fmt: skip
    digests = np.frombuffer(bytes.fromhex("".join(variables["source_sha256"][1])), np.uint8).reshape(-1, 32)
    variables["source_sha256"] = (("source", "sha256_byte"), digests)
    variables |= {name: (("header",), values) for name, values in header.items()}
    coordinates = {name: variables.pop(name) for name in about["coordinates"] if name in variables}
    return check_cube(xr.Dataset(variables, coordinates, attributes))
