"""`write_cube`: a lazy cube becomes a Zarr store in shards, one task a shard, resumable, and there only when it is whole."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

import dask
import numpy as np
import xarray as xr
import zarr
from dask.local import get_sync
from dask.optimization import cull
from numpy.typing import NDArray

from scalable.cluster import run_tasks
from scalable.cube.contract import VARIABLES, check_cube
from scalable.errors import StoreError
from scalable.io.atomic import publish
from scalable.io.remote import local_place
from scalable.io.zarr import ShardedArray, create_array

CHUNK_BYTES = 1 << 20
"""An inner chunk holds one object with all its bands, unless that is larger than this: then one band of it, or a part of it."""

_PIECES = 32
"""Pieces of a shard that are written while as many are made."""

Arrays = dict[str, NDArray[Any]]


def write_cube(cube: xr.Dataset, path: str | Path, *, on_done: Callable[[int, int], None] | None = None) -> Path:
    """Write a cube; computes, on the scheduler in use.

    Parts are written beside ``path`` and moved there in one step at the end. Killed and called again with the same cube, it goes
    on with the parts that are missing. The same cube gives the same bytes, whatever computes it.

    Parameters
    ----------
    cube : xarray.Dataset
        That keeps the contract, such as `stack_images` gives; its chunks along the first dimension become the shards.
    path : str or Path
        The folder to make.
    on_done : callable, optional
        Called with the number of shards done and of all.

    Returns
    -------
    Path
        ``path``, for `open_cube`.

    Raises
    ------
    StoreError
        If there is something at ``path``, the disk is full, or chunks are of different lengths.
    """
    destination = local_place(path)
    if destination.exists():
        raise StoreError(f"{destination}: is there already; remove it, or give another path")
    check_cube(cube)
    leading = str(cube["image"].dims[0])
    step = _step(cube, leading)
    building = destination.parent / f".building-{destination.name}"
    try:
        _prepare(building, cube, leading, step)
        names = [str(name) for name in cube.variables if leading in cube[name].dims and dask.is_dask_collection(cube[name].data)]
        count = -(-cube.sizes[leading] // step)
        missing = [n for n in range(count) if not _is_whole(building, n)]
        done = count - len(missing)

        def tell(_: int) -> None:
            nonlocal done
            done += 1
            if on_done:
                on_done(done, count)

        run_tasks(_write_part, list(_parts(cube, names, missing)), building, on_done=tell)
        _finish(building, cube, leading, names, count)
        publish(building / "cube", destination)
        shutil.rmtree(building)
    except OSError as error:
        if isinstance(error, StoreError):
            raise
        raise StoreError(f"{destination}: cannot be written ({error}); make room or mend that, then run again") from error
    return destination


class _Part:
    """One shard of every variable: the tasks that make it. No dataclass, or Dask would look into its graph."""

    def __init__(self, number: int, graph: dict[Any, Any], keys: dict[str, Any]) -> None:
        self.number = number
        self.graph = graph
        self.keys = keys

    def __repr__(self) -> str:
        return f"shard {self.number}"


def _step(cube: xr.Dataset, leading: str) -> int:
    """Return the length of the shards along the first dimension."""
    image = cube["image"]
    if image.chunks is None:
        raise StoreError("the cube is not lazy: give it chunks, cube.chunk({'object': 256})")
    lengths, *others = image.chunks
    if len(set(lengths[:-1])) > 1 or lengths[-1] > lengths[0] or any(len(other) > 1 for other in others):
        raise StoreError(
            f"the cube's chunks {image.chunks} are no shards: they must be of one length along {leading}, and whole along the "
            f"others; give them anew, cube.chunk({{'{leading}': {lengths[0]}}})"
        )
    return int(lengths[0])


def _prepare(building: Path, cube: xr.Dataset, leading: str, step: int) -> None:
    """Make the folder that the cube is built in, or keep what an earlier call of the same cube left in it."""
    token = dask.base.tokenize(*(cube[name].data for name in sorted(map(str, cube.variables))), sorted(cube.attrs.items()), step)
    recipe = building / "recipe.json"
    if building.exists():
        known = json.loads(recipe.read_text())["token"] if recipe.exists() else ""
        if known == token:
            shutil.rmtree(building / "aside", ignore_errors=True)
            (building / "aside").mkdir()
            return
        shutil.rmtree(building)
    (building / "aside").mkdir(parents=True)
    (building / "parts").mkdir()
    root = zarr.open_group(building / "cube", mode="w", zarr_format=3)
    for name, known in VARIABLES.items():
        if name in cube.variables and known.dims == "pixels":
            variable = cube[name]
            shape = (step, *variable.shape[1:])
            create_array(
                root, name, shape=variable.shape, dtype=variable.dtype, dims=[str(dim) for dim in variable.dims], fill=known.fill,
                attributes=_text(variable.attrs), chunks=_inner(shape, variable.dtype.itemsize), shards=shape,
            )  # fmt: skip
    # Last: without it, nothing here counts.
    recipe.write_text(json.dumps({"token": token}))


def _inner(shape: tuple[int, ...], itemsize: int) -> tuple[int, ...]:
    """Return the shape of inner chunks: one object; if that is much, one band and epoch of it; if that still is, parts."""
    chunk = [1, *shape[1:]]

    def is_large() -> bool:
        return math.prod(chunk) * itemsize > CHUNK_BYTES

    for axis in range(1, len(chunk) - 2):
        if is_large():
            chunk[axis] = 1
    while is_large() and all(n % 2 == 0 and n > 64 for n in chunk[-2:]):
        chunk[-2:] = [n // 2 for n in chunk[-2:]]
    return tuple(chunk)


def _text(attributes: dict[Any, Any]) -> dict[str, str]:
    return {str(key): str(value) for key, value in attributes.items()}


def _parts(cube: xr.Dataset, names: list[str], missing: list[int]) -> Iterator[_Part]:
    """Give the tasks of each shard by themselves."""
    graph: dict[Any, Any] = {}
    for name in names if missing else ():
        graph |= dict(cube[name].data.__dask_graph__())
    for number in missing:
        keys = {name: (cube[name].data.name, number, *(0,) * (cube[name].ndim - 1)) for name in names}
        own, _ = cull(graph, list(keys.values()))
        yield _Part(number, own, keys)


def _write_part(part: _Part, building: Path) -> int:
    """Make one shard of every variable with pixels, and then what tells that it is done: sizes, and all other variables."""
    names = list(part.keys)
    arrays = dict(zip(names, get_sync(part.graph, list(part.keys.values())), strict=True))
    record: dict[str, int] = {}
    for name in [name for name in names if VARIABLES.get(name) and VARIABLES[name].dims == "pixels"]:
        block = np.asarray(arrays.pop(name))
        array = ShardedArray.open(building / "cube" / name)
        target = array.shard_path((part.number, *(0,) * (block.ndim - 1)))
        if size := _write(target, array.encode(block), building):
            record[name] = size
    aside = building / "aside" / secrets.token_hex(8)
    with aside.open("wb") as file:
        np.savez(file, **arrays, _record=np.frombuffer(json.dumps(record).encode(), np.uint8))
    os.replace(aside, _part_path(building, part.number))
    return part.number


def _write(target: Path, pieces: Iterator[Any], building: Path) -> int:
    """Write a shard aside and move it to its place, unless it is empty; return its size."""
    aside = building / "aside" / secrets.token_hex(8)
    size = write_beside(aside, pieces)
    if size:
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(aside, target)
    return size


def write_beside(path: Path, pieces: Iterator[Any]) -> int:
    """Write pieces one behind the other in a thread, while the next ones are made in this one; return the size of the file."""
    size = 0
    with path.open("wb", buffering=0) as file, ThreadPoolExecutor(1) as thread:
        ahead: Future[int] | None = None
        while held := list(islice(pieces, _PIECES)):
            if ahead:
                size += ahead.result()
            ahead = thread.submit(_put, file.fileno(), held)
        if ahead:
            size += ahead.result()
    return size


def _put(descriptor: int, pieces: list[Any]) -> int:
    """Write pieces in one call, for each costs a change of threads; the system may take less, and says why on the next one."""
    size, done = sum(map(len, pieces)), os.writev(descriptor, pieces)
    if done < size:
        rest = b"".join(pieces)
        while done < size:
            done += os.write(descriptor, rest[done:])
    return size


def _part_path(building: Path, number: int) -> Path:
    return building / "parts" / f"{number:08d}.npz"


def _is_whole(building: Path, number: int) -> bool:
    """Return whether a shard was written, and is what was written: not all that a broken machine left is."""
    path = _part_path(building, number)
    if not path.exists():
        return False
    try:
        with np.load(path, allow_pickle=False) as saved:
            record = json.loads(saved["_record"].tobytes())
        for name, size in record.items():
            array = ShardedArray.open(building / "cube" / name)
            if array.shard_path((number, *(0,) * (len(array.shape) - 1))).stat().st_size != size:
                return False
            step = array.shard_shape[0]
            array.read(np.arange(number * step, min((number + 1) * step, array.shape[0])))  # its checksums speak
    except (OSError, ValueError, KeyError):
        return False
    return True


def _finish(building: Path, cube: xr.Dataset, leading: str, names: list[str], count: int) -> None:
    """Write what has no pixels, and the attributes, beside the shards."""
    small: dict[str, list[NDArray[Any]]] = {}
    for number in range(count):
        with np.load(_part_path(building, number), allow_pickle=False) as saved:
            for name in saved.files:
                small.setdefault(name, []).append(saved[name])
    root = zarr.open_group(building / "cube", mode="r+", zarr_format=3)
    others = [str(name) for name in cube.variables if name not in names and dask.is_dask_collection(cube[name].data)]
    computed = dict(zip(others, dask.compute(*(cube[name].data for name in others)), strict=True))
    coordinates = []
    for name in map(str, cube.variables):
        variable = cube[name]
        if name in VARIABLES and VARIABLES[name].dims == "pixels":
            continue
        values = np.concatenate(small[name]) if name in small else computed.get(name, variable.values)
        if name in cube.coords and name not in cube.dims:
            coordinates.append(name)
        _write_whole(root, name, values, [str(dim) for dim in variable.dims], _text(variable.attrs))
    root.attrs.put({**_text(cube.attrs), "coordinates": " ".join(sorted(coordinates))})


def _write_whole(root: zarr.Group, name: str, values: Any, dims: list[str], attributes: dict[str, str]) -> None:
    """Write an array as one chunk; text as text of any length."""
    values = np.asarray(values)
    if values.dtype.kind in "OUT":
        values = values.astype(np.dtypes.StringDType())
        array = root.create_array(
            name, shape=values.shape, dtype="string", chunks=tuple(max(1, n) for n in values.shape), dimension_names=dims,
            attributes=dict(attributes), overwrite=True,
        )  # fmt: skip
        array[...] = values
        return
    fill = VARIABLES[name].fill if name in VARIABLES else 0
    if name in root:
        del root[name]
    create_array(
        root, name, shape=values.shape, dtype=values.dtype.newbyteorder("="), dims=dims, fill=fill, attributes=attributes,
        chunks=tuple(max(1, n) for n in values.shape),
    )  # fmt: skip
    if values.size:
        root[name][...] = np.ascontiguousarray(values)  # type: ignore[index]
