"""Zarr arrays in shards, written and read a shard at a time without the library's round trips; the format is the library's own.

A shard is a file: its inner chunks, each encoded for itself and with a checksum, and an index at the end. Here a shard is encoded
in one go, and read by its index once and its chunks by position. What is written, zarr reads; of what zarr writes, `ShardedArray`
reads arrays whose codecs are bytes, blosc, zstd, gzip and crc32c, and says so of others.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs import GZip, Zstd, blosc
from numpy.typing import NDArray
from xarray.backends.common import BackendArray
from xarray.core import indexing
from zarr.codecs import BloscCodec, Crc32cCodec

from scalable.errors import StoreError

Array = NDArray[Any]

_MISSING = 2**64 - 1
_OPEN = 64
"""Shards of one array whose descriptors and indices are kept."""

_SHUFFLES = {"noshuffle": blosc.NOSHUFFLE, "shuffle": blosc.SHUFFLE, "bitshuffle": blosc.BITSHUFFLE}

COMPRESSOR = {"cname": "lz4", "clevel": 1, "shuffle": "bitshuffle"}
"""Blosc's settings; chosen by benchmarks/suite/cube_shards.py."""


# With threads of its own, blosc orders the blocks of a chunk by chance, and equal pixels would not give equal bytes.
blosc.use_threads = False


class UnknownCodecError(StoreError):
    """An array is stored in a way that only the zarr library reads."""


def create_array(
    root: zarr.Group,
    name: str,
    *,
    shape: Sequence[int],
    dtype: Any,
    dims: Sequence[str],
    fill: Any,
    attributes: dict[str, str],
    chunks: Sequence[int],
    shards: Sequence[int] | None = None,
) -> None:
    """Add an array to a group; of one in shards only the description is written."""
    root.create_array(
        name,
        shape=tuple(shape),
        dtype=dtype,
        chunks=tuple(chunks),
        shards=None if shards is None else tuple(shards),
        compressors=[BloscCodec(**COMPRESSOR, typesize=np.dtype(dtype).itemsize), Crc32cCodec()],  # type: ignore[arg-type]
        fill_value=fill,
        dimension_names=list(dims),
        attributes=dict(attributes),
    )


@dataclass(frozen=True)
class _Codec:
    """One step of the pipeline that makes a chunk of bytes."""

    name: str
    settings: dict[str, Any]

    def encode(self, parts: list[Any], itemsize: int) -> list[Any]:
        """Return the encoded bytes, which need not be of one piece, of buffers of bytes."""
        if self.name == "crc32c":
            crc = 0
            for part in parts:
                crc = google_crc32c.extend(crc, bytes(part))  # of bytes this is no copy
            return [*parts, crc.to_bytes(4, "little")]
        data = b"".join(parts) if len(parts) > 1 else parts[0]
        if self.name == "blosc":
            name, level = self.settings["cname"].encode(), self.settings["clevel"]
            return [blosc.compress(data, name, level, _SHUFFLES[self.settings["shuffle"]], 0, itemsize)]
        return [bytes(_generic(self).encode(data))]

    def decode(self, data: bytes, where: str) -> bytes:
        """Return the decoded bytes."""
        if self.name == "crc32c":
            body = data[:-4]
            if google_crc32c.value(body) != int.from_bytes(data[-4:], "little"):
                raise StoreError(
                    f"{where}: the checksum of a chunk is wrong: the file is damaged; restore it, or make the cube again"
                )
            return body
        return bytes(blosc.decompress(data) if self.name == "blosc" else _generic(self).decode(data))


def _one_value(values: Array) -> bytes | None:
    """Return the bits that all of a chunk's values have, as most masks and states do; None if they differ."""
    if values.item(0) != values.item(-1):
        return None
    bits = values.view(f"u{values.itemsize}")
    return bits[:1].tobytes() if (bits == bits[0]).all() else None


def _generic(codec: _Codec) -> Any:
    return {"zstd": Zstd, "gzip": GZip}[codec.name](level=codec.settings.get("level", 1))


@dataclass(frozen=True)
class ShardedArray:
    """An array in shards on this machine; frozen, and cheap to send: it holds its description and no data.

    Attributes
    ----------
    path : str
        Its folder.
    metadata : str
        Its ``zarr.json``.
    """

    path: str
    metadata: str

    @classmethod
    def open(cls, path: Path) -> ShardedArray:
        """Read the description.

        Raises
        ------
        UnknownCodecError
            If the array is not stored in shards, or with codecs that are not read here.
        """
        try:
            found = cls(str(path), (path / "zarr.json").read_text())
        except OSError as error:
            raise StoreError(f"{path}: no Zarr array ({error.strerror})") from error
        found._pipeline  # noqa: B018
        return found

    @cached_property
    def _about(self) -> dict[str, Any]:
        return dict(json.loads(self.metadata))

    @cached_property
    def _sharding(self) -> dict[str, Any]:
        codecs = self._about["codecs"]
        if len(codecs) != 1 or codecs[0]["name"] != "sharding_indexed":
            raise UnknownCodecError(f"{self.path}: is not stored in shards")
        return dict(codecs[0]["configuration"])

    @cached_property
    def _pipeline(self) -> tuple[_Codec, ...]:
        settings = self._sharding
        index = [codec["name"] for codec in settings["index_codecs"]]
        first, *rest = [_Codec(codec["name"], codec.get("configuration") or {}) for codec in settings["codecs"]]
        little = first.settings.get("endian", "little") == "little"
        known = all(codec.name in ("blosc", "zstd", "gzip", "crc32c") for codec in rest)
        encoding = self._about["chunk_key_encoding"]
        plain_keys = encoding["name"] == "default" and (encoding.get("configuration") or {}).get("separator", "/") == "/"
        at_end = settings.get("index_location", "end") == "end" and index == ["bytes", "crc32c"]
        if not (first.name == "bytes" and little and known and plain_keys and at_end):
            raise UnknownCodecError(f"{self.path}: is stored with codecs that are not read here; open it with zarr")
        return tuple(rest)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(self._about["shape"])

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""
        return np.dtype(self._about["data_type"])

    @cached_property
    def dims(self) -> tuple[str, ...]:
        """Names of its dimensions."""
        return tuple(self._about["dimension_names"])

    @cached_property
    def attributes(self) -> dict[str, Any]:
        """Its attributes."""
        return dict(self._about.get("attributes") or {})

    @cached_property
    def shard_shape(self) -> tuple[int, ...]:
        """Shape of a shard."""
        return tuple(self._about["chunk_grid"]["configuration"]["chunk_shape"])

    @cached_property
    def chunk_shape(self) -> tuple[int, ...]:
        """Shape of an inner chunk."""
        return tuple(self._sharding["chunk_shape"])

    @cached_property
    def fill(self) -> Any:
        """Value of what is not stored."""
        return np.dtype(self.dtype).type(
            float(self._about["fill_value"]) if self.dtype.kind == "f" else self._about["fill_value"]
        )

    @cached_property
    def _grid(self) -> tuple[int, ...]:
        """Inner chunks of a shard along each dimension."""
        return tuple(s // c for s, c in zip(self.shard_shape, self.chunk_shape, strict=True))

    def shard_path(self, place: Sequence[int]) -> Path:
        """Return the file of a shard."""
        return Path(self.path, "c", *map(str, place))

    def encode(self, block: Array) -> Iterator[Any]:
        """Yield, piece by piece, what the file of a shard holds; nothing if that is nothing but the fill value.

        A block at the end of the array may be smaller than a shard. Inner chunks of nothing but the fill value are left out, as
        zarr does.
        """
        offsets = np.full((math.prod(self._grid), 2), _MISSING, "<u8")
        fill = self.fill.tobytes()
        constant: dict[bytes, list[Any]] = {}
        at = 0
        for number, chunk in enumerate(self._inner(block)):
            if chunk is None:
                continue
            # No copy where the block has the chunk in one piece.
            flat = np.ascontiguousarray(chunk, self.dtype).reshape(-1)
            value = _one_value(flat)
            if value == fill or self._is_nan(flat):
                continue
            parts = constant.get(value) if value else None
            if parts is None:
                parts = [flat.view(np.uint8)]
                for codec in self._pipeline:
                    parts = codec.encode(parts, self.dtype.itemsize)
                if value:
                    constant[value] = parts
            size = sum(map(len, parts))
            offsets[number] = at, size
            yield from parts
            at += size
        if at:
            index = offsets.tobytes()
            yield index
            yield google_crc32c.value(index).to_bytes(4, "little")

    def _inner(self, block: Array) -> Iterator[Array | None]:
        """Yield the inner chunks of a block in their order, filled up to their shape; None for those beyond its end."""
        length, *others = self.chunk_shape
        cells = [
            (slice(None), *(slice(n * c, (n + 1) * c) for n, c in zip(cell, others, strict=True)))
            for cell in np.ndindex(*self._grid[1:])
        ]
        for start in range(0, self.shard_shape[0], length):
            rows = block[start : start + length]
            for cell in cells:
                chunk = rows[cell]
                if chunk.shape == self.chunk_shape:
                    yield chunk
                elif 0 in chunk.shape:
                    yield None
                else:
                    whole = np.full(self.chunk_shape, self.fill, self.dtype)
                    whole[tuple(slice(0, n) for n in chunk.shape)] = chunk
                    yield whole

    @cached_property
    def _shard(self) -> Callable[[tuple[int, ...]], _Shard | None]:
        """Open a shard; those read last stay open, and their indices are not read again."""

        @lru_cache(maxsize=_OPEN)
        def open_shard(place: tuple[int, ...]) -> _Shard | None:
            try:
                return _Shard(str(self.shard_path(place)), math.prod(self._grid))
            except FileNotFoundError:
                return None  # nothing but the fill value

        return open_shard

    def __reduce__(self) -> tuple[Any, ...]:
        """Send the description alone."""
        return ShardedArray, (self.path, self.metadata)

    def _is_nan(self, values: Array) -> bool:
        """Return whether the fill value is NaN, of which there are many, and all values are; most are told by their first."""
        first = values.item(0)
        return bool(first != first and np.isnan(self.fill) and np.isnan(values).all())

    def read(self, rows: NDArray[np.int64]) -> Array:
        """Return rows of the first dimension, whole, in the order given.

        Raises
        ------
        StoreError
            If a chunk or an index fails its checksum, or a file is cut; names the file.
        """
        out = np.empty((len(rows), *self.shape[1:]), self.dtype)
        cells = math.prod(-(-s // k) for s, k in zip(self.shape[1:], self.shard_shape[1:], strict=True))
        for place in np.ndindex(*(-(-s // k) for s, k in zip(self.shape[1:], self.shard_shape[1:], strict=True))):
            region = tuple(slice(p * k, (p + 1) * k) for p, k in zip(place, self.shard_shape[1:], strict=True))
            part = out if cells == 1 else np.empty((len(rows), *out[(slice(None), *region)].shape[1:]), self.dtype)
            self._read_column(rows, place, part)
            if cells != 1:
                out[(slice(None), *region)] = part
        return out

    @property
    def blosc(self) -> bool:
        """Whether its chunks are packed by blosc and nothing else; if not, they are not packed.

        Raises
        ------
        StoreError
            If they are packed otherwise.
        """
        names = [codec.name for codec in self._pipeline if codec.name != "crc32c"]
        if names not in ([], ["blosc"]):
            raise StoreError(f"{self.path}: its chunks are packed by {names}: they cannot be carried over as they are")
        return bool(names)

    def stored(self, row: int) -> Iterator[tuple[tuple[int, ...], bytes]]:
        """Yield the inner chunks of a row as they are packed, their checksum verified, each with where it begins.

        Those of nothing but the fill value are left out. An inner chunk must hold one row.
        """
        cells = [range(-(-s // k)) for s, k in zip(self.shape[1:], self.shard_shape[1:], strict=True)]
        inner = list(np.ndindex(*self._grid[1:]))
        for place in product(*cells):
            shard = self._shard((row // self._grid[0], *place))
            for n, cell in enumerate(inner if shard is not None else ()):
                data = shard.chunk(row % self._grid[0] * len(inner) + n) if shard is not None else None
                if data is not None:
                    if self._pipeline[-1].name == "crc32c":
                        data = self._pipeline[-1].decode(data, self.path)
                    at = zip(place, self.shard_shape[1:], cell, self.chunk_shape[1:], strict=True)
                    yield tuple(p * s + c * k for p, s, c, k in at), data

    def _decode(self, data: bytes, where: str, out: Array) -> None:
        """Decode an inner chunk into an array of its shape, or of what of it the array has."""
        for codec in reversed(self._pipeline):
            if (
                codec is self._pipeline[0]
                and codec.name == "blosc"
                and out.flags.c_contiguous
                and out.size == math.prod(self.chunk_shape)
            ):
                blosc.decompress(data, out)  # without a copy
                return
            data = codec.decode(data, where)
        values = np.frombuffer(data, self.dtype).reshape(self.chunk_shape)
        if out.ndim < values.ndim:
            values = values[0]
        out[...] = values[tuple(slice(0, n) for n in out.shape)]

    def _read_column(self, rows: NDArray[np.int64], place: tuple[int, ...], out: Array) -> None:
        """Fill ``out`` from the shards that lie one behind the other along the first dimension."""
        step = self.chunk_shape[0]
        chunks = rows // step
        order = np.argsort(chunks, kind="stable")
        per_shard = self._grid[0]
        inner = [place for place in np.ndindex(*self._grid[1:])]
        start = 0
        while start < len(order):
            chunk = int(chunks[order[start]])
            stop = start
            while stop < len(order) and chunks[order[stop]] == chunk:
                stop += 1
            targets = order[start:stop]
            shard = self._shard((chunk // per_shard, *place))
            for n, cell in enumerate(inner):
                where = tuple(slice(n * c, (n + 1) * c) for n, c in zip(cell, self.chunk_shape[1:], strict=True))
                view = out[(slice(None), *where)]
                data = None if shard is None else shard.chunk(chunk % per_shard * len(inner) + n)
                if shard is None or data is None:
                    view[targets] = self.fill
                    continue
                if step == 1 and len(targets) == 1:
                    self._decode(data, shard.path, view[targets[0]])
                    continue
                values = np.empty(self.chunk_shape, self.dtype)
                self._decode(data, shard.path, values)
                cut = tuple(slice(0, n) for n in view.shape[1:])
                for target in targets:
                    view[target] = values[int(rows[target]) - chunk * step][cut]
            start = stop


class _Shard:
    """An open shard and its index; the file is closed when nobody reads from it any more."""

    def __init__(self, path: str, count: int) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        size, length = os.fstat(self._descriptor).st_size, 16 * count
        tail = os.pread(self._descriptor, length + 4, max(size - length - 4, 0))
        if len(tail) != length + 4 or google_crc32c.value(tail[:-4]) != int.from_bytes(tail[-4:], "little"):
            raise StoreError(f"{path}: the index at its end is damaged; restore the file, or make the cube again")
        self._index = np.frombuffer(tail[:-4], "<u8").reshape(count, 2).tolist()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def chunk(self, number: int) -> bytes | None:
        """Return the stored bytes of an inner chunk, or None where it is not stored."""
        at, size = self._index[number]
        if at == _MISSING:
            return None
        data = os.pread(self._descriptor, size, at)
        if len(data) != size:
            raise StoreError(f"{self.path}: the file is cut; restore it, or make the cube again")
        return data


class LazyShards(BackendArray):
    """What xarray reads a sharded array through: nothing until it is asked for, and then only the chunks needed."""

    def __init__(self, array: ShardedArray) -> None:
        self.array = array
        self.shape = array.shape
        self.dtype = array.dtype

    def __getitem__(self, key: indexing.ExplicitIndexer) -> Any:
        """Return what an indexer selects."""
        return indexing.explicit_indexing_adapter(key, self.shape, indexing.IndexingSupport.OUTER, self._select)

    def _select(self, key: tuple[Any, ...]) -> Array:
        rows: NDArray[np.int64] = np.atleast_1d(np.arange(self.shape[0])[key[0]])
        found = self.array.read(rows)
        for axis, part in enumerate(key[1:], start=1):
            if not isinstance(part, slice) or part != slice(None):
                found = np.take(found, np.atleast_1d(np.arange(self.shape[axis])[part]), axis)
        squeeze = tuple(axis for axis, part in enumerate(key) if isinstance(part, int | np.integer))
        return found.squeeze(axis=squeeze) if squeeze else found
