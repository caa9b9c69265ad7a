"""Cubes of 64 x 64 pixels in five bands on disk: codecs, writing in shards, and random batches of 64 objects; cache warm."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numcodecs import blosc
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec

from benchmarks.measure import Measured, compare
from scalable.cube.write import write_beside
from scalable.io import zarr as ours
from scalable.io.zarr import ShardedArray

OBJECTS, BATCH, SHARD = 4096, 64, 256
SHUFFLES = {"noshuffle": 0, "shuffle": 1, "bitshuffle": 2}
SETTINGS: dict[str, dict[str, Any] | None] = {
    "lz4-1 bitshuffle (ours)": {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle"},
    "none": None,
    "lz4-5 shuffle": {"cname": "lz4", "clevel": 5, "shuffle": "shuffle"},
    "zstd-1 shuffle": {"cname": "zstd", "clevel": 1, "shuffle": "shuffle"},
    "zstd-1 bitshuffle": {"cname": "zstd", "clevel": 1, "shuffle": "bitshuffle"},
}


def made(folder: Path, settings: dict[str, Any] | None, values: np.ndarray) -> ShardedArray:
    """Describe an array, and write it."""
    compressors = [*([BloscCodec(**settings, typesize=4)] if settings else []), Crc32cCodec()]
    zarr.create_array(
        folder, shape=values.shape, dtype="float32", chunks=(1, *values.shape[1:]), shards=(SHARD, *values.shape[1:]),
        serializer=BytesCodec(), compressors=compressors, fill_value=np.nan, dimension_names=["object", "band", "y", "x"],
    )  # fmt: skip
    array = ShardedArray.open(folder)
    write(array, values)
    return array


def write(array: ShardedArray, values: np.ndarray) -> None:
    """Write every shard as `write_cube` does."""
    for number in range(len(values) // SHARD):
        path = array.shard_path((number, 0, 0, 0))
        path.parent.mkdir(parents=True, exist_ok=True)
        # A new file, as of a new cube: one that is written over goes to the disk when it is closed.
        path.unlink(missing_ok=True)
        write_beside(path, array.encode(values[number * SHARD : (number + 1) * SHARD]))


def codec_alone(settings: dict[str, Any], values: np.ndarray) -> None:
    """Encode the same chunks and keep nothing."""
    for value in values:
        blosc.compress(value, settings["cname"].encode(), settings["clevel"], SHUFFLES[settings["shuffle"]], 0, 4)


def run() -> list[Measured]:
    """Compare."""
    folder = Path(tempfile.mkdtemp())
    rng = np.random.default_rng(1)
    values = rng.normal(100, 3, (OBJECTS, 5, 64, 64)).astype(np.float32)
    megabytes = values.nbytes / 1e6
    raw = np.memmap(folder / "raw", np.float32, "w+", shape=values.shape)
    raw[:] = values
    raw.flush()
    batches = [np.sort(rng.choice(OBJECTS, BATCH, replace=False)) for _ in range(8)]
    arrays = {name: made(folder / str(n), settings, values) for n, (name, settings) in enumerate(SETTINGS.items())}
    mine = arrays["lz4-1 bitshuffle (ours)"]
    theirs = zarr.open_array(mine.path, mode="r")
    for batch in batches:
        assert np.array_equal(mine.read(batch), raw[batch])
        assert np.array_equal(theirs.oindex[batch], raw[batch])
    size = values.nbytes
    of = {
        name: sum(path.stat().st_size for path in Path(array.path).rglob("*") if path.is_file()) / size
        for name, array in arrays.items()
    }
    batch_mb = len(batches) * BATCH * values[0].nbytes / 1e6
    readers = {
        "scalable": lambda: [mine.read(batch) for batch in batches],
        "raw memory map": lambda: [raw[batch] for batch in batches],
        "zarr-python": lambda: [theirs.oindex[batch] for batch in batches],
    }
    found = compare(f"random batches of {BATCH}", readers, megabytes=batch_mb, repeats=5)
    own = dict(ours.COMPRESSOR)
    writers = {"scalable shards": lambda: write(mine, values), "its codec alone": lambda: codec_alone(own, values)}
    found += compare("write a cube", writers, megabytes=megabytes, repeats=5)
    codecs = {f"{name}, {of[name]:.2f} of raw": lambda array=array: write(array, values) for name, array in arrays.items()}
    found += compare("codec: write", codecs, megabytes=megabytes, repeats=3)
    codecs = {
        f"{name}, {of[name]:.2f} of raw": lambda array=array: [array.read(batch) for batch in batches]
        for name, array in arrays.items()
    }
    found += compare("codec: random batches", codecs, megabytes=batch_mb, repeats=3)
    whole = np.arange(OBJECTS)
    codecs = {f"{name}, {of[name]:.2f} of raw": lambda array=array: array.read(whole) for name, array in arrays.items()}
    found += compare("codec: all in order", codecs, megabytes=megabytes, repeats=3)
    shutil.rmtree(folder)
    return found
