"""Images of a cube into the shards of a release: MB/s of pixels, by codec of the cube, against h5py and xarray.

python -m benchmarks.scale.release [OBJECTS]; caches warm, every file a new one on the disk of the temporary folder. Ours are
synced to the disk within their time, those of the others are not.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import h5py
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec

from scalable.io import hdf5_write
from scalable.io.hdf5_write import create_chunked, new_file, write_rows
from scalable.io.zarr import ShardedArray, create_array
from scalable.release.images import carry_rows

SHAPE, SHARD = (5, 64, 64), 256


def cube(folder: Path, objects: int, *, packed: bool = True) -> ShardedArray:
    """Write sky with noise and a source in the middle, in the counts of a detector, as a cube's image, by blosc or as it is."""
    rng = np.random.default_rng(1)
    y, x = np.mgrid[:64, :64] - 31.5
    source = 400 * np.exp(-(x * x + y * y) / 18)
    root = zarr.open_group(folder, mode="w", zarr_format=3)
    shape = (objects, *SHAPE)
    dims = ["object", "band", "y", "x"]
    sizes = {"shape": shape, "chunks": (1, *SHAPE), "shards": (SHARD, *SHAPE)}
    if packed:
        create_array(root, "image", dtype="float32", dims=dims, fill=np.nan, attributes={}, **sizes)
    else:
        root.create_array("image", dtype="float32", compressors=[Crc32cCodec()], fill_value=np.nan, **sizes)
    array = ShardedArray.open(folder / "image")
    for number in range(-(-objects // SHARD)):
        rows = min(SHARD, objects - number * SHARD)
        block = (rng.normal(100, 3, (rows, *SHAPE)) + source).astype(np.float32)
        path = array.shard_path((number, 0, 0, 0))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"".join(array.encode(block)))
    return array


def ours(array: ShardedArray, path: Path, rows: np.ndarray) -> None:
    """Write rows as a shard of a release has them."""
    with new_file(path) as file:
        made = create_chunked(file, "image", (len(rows), *SHAPE), np.dtype("float32"), (12, *SHAPE))
        for first in range(0, len(rows), 12 * 32):
            write_rows(made, first, array.read(rows[first : first + 12 * 32]))


def carried(array: ShardedArray, path: Path, rows: np.ndarray) -> None:
    """Copy the chunks as the cube has them."""
    with new_file(path) as file:
        carry_rows(file, "image", array, rows)


def plain(array: ShardedArray, path: Path, rows: np.ndarray, **options: object) -> None:
    """Write the same through h5py."""
    with h5py.File(path, "w") as file:
        made = file.create_dataset("image", (len(rows), *SHAPE), "float32", chunks=(12, *SHAPE), **options)
        for first in range(0, len(rows), 12 * 32):
            made[first : first + 12 * 32] = array.read(rows[first : first + 12 * 32])


def netcdf(array: ShardedArray, path: Path, rows: np.ndarray, level: int) -> None:
    """Write the same through xarray, compressed as most people do."""
    values = xr.Dataset({"image": (("object", "band", "y", "x"), array.read(rows))})
    values.to_netcdf(path, engine="h5netcdf", encoding={"image": {"zlib": True, "shuffle": True, "complevel": level}})


def packed(arrays: list[np.ndarray], level: int) -> list[bytes]:
    """Pack arrays with zlib."""
    return [zlib.compress(one.data, level) for one in arrays]


def seconds(call: Callable[[], object], *files: Path, enough: float = 8.0) -> float:
    """Return the least time of three calls, or of fewer where these took long; files are removed before each."""
    times: list[float] = []
    while len(times) < 3 and sum(times) < enough:
        for path in files:
            path.unlink(missing_ok=True)
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def run(objects: int = 2048) -> None:
    """Measure, check and print."""
    folder = Path(tempfile.mkdtemp())
    array, plainly = cube(folder / "cube", objects), cube(folder / "plain", objects, packed=False)
    rows = np.arange(objects)
    pixels = array.read(rows)
    megabytes = pixels.nbytes / 1e6
    deflate = {"compression": "gzip", "compression_opts": 1, "shuffle": True, "fletcher32": True}
    writers: dict[str, Callable[[Path], object]] = {
        "scalable": partial(ours, array, rows=rows),
        "scalable, carried (blosc)": partial(carried, array, rows=rows),
        "scalable, carried (none)": partial(carried, plainly, rows=rows),
        "h5py, the same filters": lambda path: plain(array, path, rows, **deflate),
        "h5py, no filter": lambda path: plain(array, path, rows),
        "xarray to_netcdf, zlib 4": partial(netcdf, array, rows=rows, level=4),
        "xarray to_netcdf, zlib 9": partial(netcdf, array, rows=rows, level=9),
    }
    rates = {}
    for name, write in writers.items():
        path = folder / "out.h5"
        rates[name] = megabytes / seconds(partial(write, path), path)
        with h5py.File(path) as file:
            # Pixels that blosc packed need the plugin.
            assert "(blosc)" in name or np.array_equal(file["image"][()], pixels)
        share = path.stat().st_size / pixels.nbytes
        print(f"{name:28} {rates[name]:7.0f} MB/s  {share:.3f} of raw")
    for name in list(writers)[:3]:
        others = ", ".join(f"{rates[name] / rates[other]:.1f} x {other}" for other in list(writers)[3:])
        print(f"{name}: {others}")
    halves = np.array_split(rows, 2)
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        list(pool.map(partial(ours, array), [folder / "w0.h5", folder / "w1.h5"], [rows[:12], rows[:12]]))
        files = [folder / "a.h5", folder / "b.h5"]
        both = seconds(lambda: list(pool.map(partial(ours, array), files, halves)), *files)
    print(f"{'scalable, two processes':28} {megabytes / both:7.0f} MB/s  {megabytes / both / rates['scalable']:.2f} x one")
    flat = [np.ascontiguousarray(pixels[n : n + 12].reshape(-1).view("u1").reshape(-1, 4).T) for n in range(0, 120, 12)]
    size = sum(one.nbytes for one in flat)
    for level in (1, 4, 6):
        spent = seconds(partial(packed, flat, level))
        share = sum(map(len, packed(flat, level))) / size
        name = f"zlib, level {level}{' (ours)' if level == hdf5_write.LEVEL else ''}"
        print(f"{name:28} {size / 1e6 / spent:7.0f} MB/s  {share:.3f} of raw")
    shutil.rmtree(folder)


if __name__ == "__main__":
    run(int(sys.argv[1]) if len(sys.argv) > 1 else 2048)
