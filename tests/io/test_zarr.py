"""Shards that are written here zarr reads, shards that zarr writes are read here, and damage is noticed."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
import zarr
from xarray.core import indexing
from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec

from scalable.errors import StoreError
from scalable.io.zarr import LazyShards, ShardedArray, UnknownCodecError, create_array

RNG = np.random.default_rng(1)
DIMS = ("object", "band", "y", "x")


def made(folder: Path, values: np.ndarray[Any, Any], chunks: tuple[int, ...], shards: tuple[int, ...], fill: Any) -> ShardedArray:
    """Write an array shard by shard."""
    root = zarr.open_group(folder, mode="w", zarr_format=3)
    create_array(
        root,
        "a",
        shape=values.shape,
        dtype=values.dtype,
        dims=DIMS,
        fill=fill,
        attributes={"units": "adu"},
        chunks=chunks,
        shards=shards,
    )
    array = ShardedArray.open(folder / "a")
    for place in np.ndindex(*(-(-n // s) for n, s in zip(values.shape, shards, strict=True))):
        block = values[tuple(slice(p * s, (p + 1) * s) for p, s in zip(place, shards, strict=True))]
        if pieces := list(array.encode(block)):
            path = array.shard_path(place)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(pieces))
    return array


def holes(dtype: str, fill: Any) -> np.ndarray[Any, Any]:
    """Return numbers with objects, and one shard, of nothing but the fill value."""
    values = (RNG.normal(100, 20, (23, 3, 8, 8))).astype(dtype)
    values[4:6] = fill
    values[10:15] = fill
    values[0, 1] = fill
    return values


@pytest.mark.parametrize(("dtype", "fill"), [("float32", np.nan), ("float64", np.nan), ("int32", 0), ("uint8", 3)])
@pytest.mark.parametrize("chunks", [(1, 3, 8, 8), (1, 1, 4, 4), (5, 3, 8, 8)])
def test_zarr_reads_what_is_written_here_and_so_do_we(tmp_path: Path, dtype: str, fill: Any, chunks: tuple[int, ...]) -> None:
    values = holes(dtype, fill)
    array = made(tmp_path, values, chunks, (5, 3, 8, 8), fill)
    assert np.array_equal(zarr.open_array(tmp_path / "a", mode="r")[...], values, equal_nan=dtype.startswith("f"))
    rows = np.array([22, 0, 7, 7, 4, 11, 3])
    assert np.array_equal(array.read(rows), values[rows], equal_nan=dtype.startswith("f"))
    assert np.array_equal(pickle.loads(pickle.dumps(array)).read(rows), values[rows], equal_nan=dtype.startswith("f"))
    assert array.attributes == {"units": "adu"}
    assert not (tmp_path / "a" / "c" / "2").exists(), "a shard of nothing but the fill value is no file"


def test_the_bytes_are_those_that_zarr_writes(tmp_path: Path) -> None:
    values = holes("float32", np.nan)
    # Chunks of one value, twice in a shard; zeros of both signs are equal, and not the same bytes.
    values[1], values[2], values[3], values[16:18] = 0.0, -0.0, 0.0, 7.0
    values[18] = 7.0
    values[18, 1, 4] = 8.0
    array = made(tmp_path / "ours", values, (1, 3, 8, 8), (5, 3, 8, 8), np.nan)
    root = zarr.open_group(tmp_path / "theirs", mode="w", zarr_format=3)
    create_array(
        root,
        "a",
        shape=values.shape,
        dtype="float32",
        dims=DIMS,
        fill=np.nan,
        attributes={},
        chunks=(1, 3, 8, 8),
        shards=(5, 3, 8, 8),
    )
    root["a"][...] = values
    for number in (0, 1, 3, 4):
        theirs = ShardedArray.open(tmp_path / "theirs" / "a").shard_path((number, 0, 0, 0)).read_bytes()
        ours = array.shard_path((number, 0, 0, 0)).read_bytes()
        # zarr lays inner chunks in Morton order, which for chunks along one dimension is ours.
        assert ours == theirs
    assert np.array_equal(np.signbit(array.read(np.arange(23))), np.signbit(values))


@pytest.mark.parametrize(
    "codec", [BloscCodec(cname="zstd", clevel=3, shuffle="shuffle"), ZstdCodec(level=3), GzipCodec(level=2), None]
)
def test_shards_of_other_codecs_are_read(tmp_path: Path, codec: Any) -> None:
    values = holes("float32", np.nan)
    codecs = [*([codec] if codec else []), Crc32cCodec()]
    array = zarr.create_array(
        tmp_path / "a", shape=values.shape, dtype="float32", chunks=(1, 3, 4, 8), shards=(5, 3, 8, 8), compressors=codecs,
        fill_value=np.nan, dimension_names=DIMS,
    )  # fmt: skip
    array[...] = values
    rows = np.array([3, 21])
    assert np.array_equal(ShardedArray.open(tmp_path / "a").read(rows), values[rows], equal_nan=True)


def test_what_is_not_in_shards_is_left_to_zarr(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a", shape=(4, 4), dtype="float32", chunks=(2, 2))
    with pytest.raises(UnknownCodecError, match="not stored in shards"):
        ShardedArray.open(tmp_path / "a")
    with pytest.raises(StoreError, match="no Zarr array"):
        ShardedArray.open(tmp_path / "b")


def test_any_selection_of_xarray_is_numpys(tmp_path: Path) -> None:
    values = holes("float32", np.nan)
    lazy = indexing.LazilyIndexedArray(LazyShards(made(tmp_path, values, (1, 3, 8, 8), (5, 3, 8, 8), np.nan)))
    ours, numpys = xr.Variable(DIMS, lazy), xr.Variable(DIMS, values)
    for key in (
        {"object": 3},
        {"object": slice(20, 3, -4), "y": slice(1, None, 2)},
        {"object": [5, 1, 1], "band": [2, 0], "x": 4},
        {"object": np.array([], int)},
        {"band": 1, "y": [7, 0]},
        {},
    ):
        assert np.array_equal(ours.isel(key).values, numpys.isel(key).values, equal_nan=True), key


def test_every_flipped_bit_and_every_cut_is_noticed(tmp_path: Path) -> None:
    values = RNG.normal(0, 1, (5, 1, 8, 8)).astype("float32")
    array = made(tmp_path, values, (1, 1, 8, 8), (5, 1, 8, 8), np.nan)
    path = array.shard_path((0, 0, 0, 0))
    good = path.read_bytes()
    for bit in RNG.integers(0, 8 * len(good), 200):
        raw = bytearray(good)
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        with pytest.raises(StoreError, match=r"c/0/0/0/0: .*(damaged|cut)"):
            ShardedArray.open(tmp_path / "a").read(np.arange(5))
    for size in (0, 3, len(good) // 2, len(good) - 1):
        path.write_bytes(good[:size])
        with pytest.raises(StoreError, match=r"c/0/0/0/0: .*(damaged|cut)"):
            ShardedArray.open(tmp_path / "a").read(np.arange(5))


def test_the_description_is_that_of_the_standard(tmp_path: Path) -> None:
    made(tmp_path, holes("float32", np.nan), (1, 3, 8, 8), (5, 3, 8, 8), np.nan)
    about = json.loads((tmp_path / "a" / "zarr.json").read_text())
    [sharding] = about["codecs"]
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "blosc", "crc32c"]
    assert about["dimension_names"] == list(DIMS)
