"""`open_release`: a release as NumPy, xarray, pandas, PyTorch and TensorFlow see it; files are opened where they are read."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask.array as da
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import xarray as xr
from numpy.typing import NDArray

from scalable.catalog.condition import parse_condition
from scalable.errors import ColumnError, StoreError, nearest, require
from scalable.io.hdf5_write import CHUNK_ROWS
from scalable.io.parquet import read_leaf
from scalable.io.remote import local_place
from scalable.release import manifest as names
from scalable.release.images import cube_of, load_plugin
from scalable.release.manifest import own_dataset, read_manifest
from scalable.release.select import holds
from scalable.release.split import Part

BLOCK_ROWS, BLOCK_BYTES = CHUNK_ROWS, 64 << 20
"""What is read at a time when rows are shuffled: a shard is read in blocks, and each block is shuffled in memory."""


@dataclass(frozen=True)
class Release:
    """A published data set; opening it read its manifest and nothing else.

    Attributes
    ----------
    path : Path
        Its folder.
    manifest : dict
        What it says of itself.
    quality : str
        Names of the survey's quality cuts, or a condition, that every row read must fulfil.
    """

    path: Path
    manifest: dict[str, Any] = field(repr=False)
    quality: str = ""

    @property
    def version(self) -> str:
        """Version, computed from what changed since the parent."""
        return str(self.manifest["version"])

    @property
    def columns(self) -> list[str]:
        """Names of the features, states and keys aside."""
        return [column["name"] for column in self.manifest["columns"] if column["in"] == "rows"]

    @property
    def rows(self) -> int:
        """Number of rows, before any cut."""
        return sum(int(shard["rows"]) for shard in self.manifest["shards"])

    @property
    def index(self) -> pa.Table:
        """One row each: ids, position, shard, row, split, labels and digest."""
        found = read_leaf(self.path / names.INDEX)
        mine = pa.array([shard["path"] for shard in self.manifest["shards"]])
        return found if found.num_rows == self.rows else found.filter(pc.is_in(found["shard"], mine))

    def iterate(self, columns: Sequence[str] | None = None, *, split: str | None = None) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield the rows shard by shard as NumPy arrays.

        Parameters
        ----------
        columns : sequence of str, optional
            Datasets to read; by default all but pixels.
        split : str, optional
            ``train``, ``validation``, ``test`` or ``guard``; by default all rows.
        """
        for shard in self.manifest["shards"]:
            yield self._read(shard["path"], columns, split)

    def numpy(self, columns: Sequence[str] | None = None, *, split: str | None = None) -> dict[str, NDArray[Any]]:
        """Return all rows as NumPy arrays: in memory at once."""
        pieces = list(self.iterate(columns, split=split))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def pandas(self, columns: Sequence[str] | None = None, *, split: str | None = None) -> Any:
        """Return the columns that are one number or text a row as a pandas data frame."""
        found = self.numpy(columns, split=split)
        return require("pandas", "dataframe").DataFrame({name: values for name, values in found.items() if values.ndim == 1})

    def xarray(self) -> xr.Dataset:
        """Return all shards as one xarray dataset along ``object``, with units; values are read as they are used."""
        about = {column["name"]: column for column in self.manifest["columns"] if column["in"] != "light_curves"}
        shards = self.manifest["shards"]
        variables = {}
        with h5py.File(self.path / shards[0]["path"], "r") as file:
            for name, dataset in file.items():
                text = h5py.check_string_dtype(dataset.dtype) is not None
                dtype, shape = np.dtype(object) if text else dataset.dtype, dataset.shape[1:]
                step = block_rows(file, [name])
                pieces = []
                for shard in shards:
                    path = str(self.path / shard["path"])
                    place = OnDisk(path, name, (shard["rows"], *shape), dtype, self.manifest["recipe"]["codec"])
                    known = f"{shard['digest']}-{name}"
                    pieces.append(
                        da.from_array(place, chunks=(step, *shape), name=known, meta=np.zeros((0,) * place.ndim, dtype))
                    )
                column = about.get(name, {})
                dims = column.get("dims") or ["object", *(f"{name}_{axis}" for axis in range(1, len(shape) + 1))]
                variables[name] = (dims, da.concatenate(pieces), {"units": column["unit"]} if column else {})
        return xr.Dataset(variables, attrs={"title": self.manifest["title"], "version": self.version})

    def cube(self) -> xr.Dataset:
        """Return the images as a cube, as `open_cube` gives one: `cutout_wcs` and `raw_headers` work on it.

        Raises
        ------
        StoreError
            If the release has no images.
        """
        if not self.manifest["images"]:
            raise StoreError(f"{self.path}: holds no images")
        lazy = self.xarray()
        names = [column["name"] for column in self.manifest["columns"] if column["in"] == "images"]
        pixels = {"object_id": lazy["object_id"].values}
        pixels |= {name: lazy[name].data if lazy[name].dims[-1] == "x" else lazy[name].values for name in names}
        return cube_of(self.path, self.manifest, pixels)

    def light_curve(self, object_id: int) -> dict[str, NDArray[Any]]:
        """Return the detections of one object.

        Raises
        ------
        ColumnError, StoreError
            If it is not in the release, or this has no light curves.
        """
        shards = {shard["path"]: shard for shard in self.manifest["shards"]}
        index = self.index
        at = np.flatnonzero(index["object_id"].to_numpy() == object_id)
        if not len(at):
            raise ColumnError(f"object {object_id} is not in {self.path}")
        shard, row = shards[index["shard"][int(at[0])].as_py()], int(index["row"][int(at[0])].as_py())
        if "light_curves" not in shard:
            raise StoreError(f"{self.path}: rows are {self.manifest['recipe']['rows']}, and no light curves lie beside them")
        with h5py.File(self.path / shard["path"], "r") as file, h5py.File(self.path / shard["light_curves"], "r") as beside:
            first, count = int(file["lc_offset"][row]), int(file["lc_count"][row])
            return {name: _values(own_dataset(beside, name), slice(first, first + count)) for name in beside}

    def torch(self, columns: Sequence[str], *, split: str | None = None, seed: int = 0) -> Any:
        """Return a PyTorch ``IterableDataset`` of rows, each a dict; needs PyTorch.

        Each worker opens files itself and takes every n-th block; shards, blocks and their rows are shuffled by the seed and the
        number that ``set_epoch`` was given.
        """
        return torch_dataset(self, tuple(columns), split, seed)

    def tensorflow(self, columns: Sequence[str], *, split: str | None = None, seed: int = 0) -> Any:
        """Return a ``tf.data.Dataset`` of rows, each a dict; needs TensorFlow."""
        tf = require("tensorflow", "tensorflow")
        self._check(columns)
        signature = {}
        with h5py.File(self.path / self.manifest["shards"][0]["path"], "r") as file:
            for name in columns:
                text = h5py.check_string_dtype(file[name].dtype) is not None
                signature[name] = tf.TensorSpec(file[name].shape[1:], tf.string if text else tf.as_dtype(file[name].dtype))
        return tf.data.Dataset.from_generator(
            lambda: rows_of(self.blocks(columns, split=split, seed=seed)), output_signature=signature
        )

    def blocks(
        self,
        columns: Sequence[str],
        *,
        split: str | None = None,
        seed: int | Sequence[int] = 0,
        worker: int = 0,
        workers: int = 1,
    ) -> Iterator[dict[str, NDArray[Any]]]:
        """Yield blocks of at most `BLOCK_ROWS` rows and about `BLOCK_BYTES`: shards, blocks in them, and rows in these shuffled.

        The order follows from the seed alone; of several workers each gets other blocks.
        """
        self._check(columns)
        part = _part(split)
        rng = np.random.default_rng(seed)
        number = 0
        for shard in rng.permutation(len(self.manifest["shards"])).tolist():
            entry = self.manifest["shards"][shard]
            with h5py.File(self.path / entry["path"], "r") as file:
                step = block_rows(file, columns)
                for first in (rng.permutation(-(-entry["rows"] // step)) * step).tolist():
                    order = np.random.default_rng(rng.integers(1 << 62))
                    number += 1
                    if (number - 1) % workers != worker:
                        continue
                    block = self._rows(file, columns, part, slice(first, first + step))
                    mixed = order.permutation(len(block[columns[0]]))
                    if len(mixed):
                        yield {name: values[mixed] for name, values in block.items()}

    def loader_rate(self, columns: Sequence[str] | None = None, *, rows: int = 100_000) -> dict[str, float]:
        """Measure here and now how fast shuffled blocks come: ``rows_per_second``, and from it ``epoch_seconds``."""
        start, seen = time.perf_counter(), 0
        every = ["object_id", *self.columns, *(["image"] if self.manifest["images"] else [])]
        for block in self.blocks(columns if columns is not None else every):
            seen += len(next(iter(block.values())))
            if seen >= rows:
                break
        rate = seen / max(time.perf_counter() - start, 1e-9)
        return {"rows_per_second": rate, "epoch_seconds": self.rows / rate}

    def _check(self, columns: Sequence[str] | None) -> None:
        if columns is None:
            return
        with h5py.File(self.path / self.manifest["shards"][0]["path"], "r") as file:
            for name in columns:
                if name not in file:
                    raise ColumnError(f"no column {name!r} in {self.path}; {nearest(name, file)}")

    def _read(self, shard: str, columns: Sequence[str] | None, split: str | None) -> dict[str, NDArray[Any]]:
        self._check(columns)
        with h5py.File(self.path / shard, "r") as file:
            if columns is None:
                pixels = {column["name"] for column in self.manifest["columns"] if "y" in column.get("dims", ())}
                columns = [name for name in file if name not in pixels]
            return self._rows(file, columns, _part(split), slice(None))

    def _rows(self, file: h5py.File, columns: Sequence[str], part: Part | None, rows: slice) -> dict[str, NDArray[Any]]:
        """Return rows of a shard, those that a split and the quality cuts leave."""
        found = {name: _values(own_dataset(file, name), rows) for name in columns}
        keep = None if part is None else own_dataset(file, "split")[rows] == part
        if self.quality:
            good = self._good(file, rows)
            keep = good if keep is None else keep & good
        return found if keep is None else {name: values[keep] for name, values in found.items()}

    def _good(self, file: h5py.File, rows: slice) -> NDArray[np.bool_]:
        """Return which rows fulfil the quality cuts."""
        columns = {name: file[name] for name in self.columns if own_dataset(file, name).ndim == 1}
        schema = pa.schema([(name, _arrow_type(dataset)) for name, dataset in columns.items()])
        condition = parse_condition(self._condition(), schema)
        arrays = []
        for name in condition.columns:
            values = _values(columns[name], rows)
            # A cell without a value is null, and null is not true.
            null = file[f"{name}_state"][rows] % 5 != 0 if f"{name}_state" in file else None
            arrays.append(pa.array(values, schema.field(name).type, mask=null))
        table = pa.table(arrays, names=list(condition.columns))
        good = np.zeros(table.num_rows, dtype=bool)
        good[holds(table, condition)] = True
        return good

    def _condition(self) -> str:
        known: Mapping[str, str] = self.manifest["quality"]
        words = [word.strip() for word in self.quality.split(",")]
        return " AND ".join(f"({known[word]})" for word in words) if all(word in known for word in words) else self.quality

    def __repr__(self) -> str:
        """Show name, version, rows, splits and columns."""
        m = self.manifest
        parts = ", ".join(f"{count:,} {name}" for name, count in m["split"]["rows"].items())
        lines = [
            f"<Release {m['name']} {m['version']}: {self.rows:,} {m['recipe']['rows']} in {len(m['shards'])} shards ({parts})>"
        ]
        width = max(len(column["name"]) for column in m["columns"])
        for column in m["columns"]:
            if column["in"] == "rows":
                lines.append(f"  {column['name']:<{width}}  {column['dtype']:<8} {column['unit']:<8} {column['description']}")
        return "\n".join(lines)


def open_release(path: str | Path, *, quality: str = "", simulated: bool = True) -> Release:
    """Open a release; only its manifest is read.

    Parameters
    ----------
    path : str or Path
        Its folder.
    quality : str
        Names of the survey's quality cuts, comma between, or an SQL condition: rows that do not fulfil it are left out.
    simulated : bool
        Whether rows that were drawn from a mixture are among those that are read.

    Raises
    ------
    StoreError
        If there is none.
    """
    folder = local_place(path)
    manifest = read_manifest(folder)
    load_plugin(manifest)
    if not simulated:
        manifest["shards"] = [shard for shard in manifest["shards"] if not shard.get("simulated")]
    return Release(folder, manifest, quality)


@dataclass(frozen=True)
class OnDisk:
    """A dataset of a shard as an array whose file is opened for each piece that is read."""

    path: str
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    codec: str

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> NDArray[Any]:
        """Read a piece."""
        load_plugin({"recipe": {"codec": self.codec}})  # on the worker that reads
        with h5py.File(self.path, "r") as file:
            return _values(own_dataset(file, self.name), key)


def torch_dataset(release: Release, columns: tuple[str, ...], split: str | None, seed: int, epoch: int = 0) -> Any:
    """Return the dataset of `Release.torch`; its class is made here, for its base may not be installed."""
    torch = require("torch.utils.data", "torch")

    def set_epoch(self: Any, epoch: int) -> None:
        self.epoch = epoch

    def rows(self: Any) -> Iterator[dict[str, Any]]:
        info = torch.get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        return rows_of(release.blocks(columns, split=split, seed=(seed, self.epoch), worker=worker, workers=workers))

    def remade(self: Any) -> tuple[Any, ...]:
        return torch_dataset, (release, columns, split, seed, self.epoch)  # a class made in a function cannot be pickled

    made = type("ReleaseRows", (torch.IterableDataset,), {"__iter__": rows, "set_epoch": set_epoch, "__reduce__": remade})()
    made.epoch = epoch
    return made


def rows_of(blocks: Iterator[dict[str, NDArray[Any]]]) -> Iterator[dict[str, Any]]:
    """Yield the rows of blocks one by one."""
    for block in blocks:
        for row in range(len(next(iter(block.values())))):
            yield {name: values[row] for name, values in block.items()}


def _part(split: str | None) -> Part | None:
    if split is not None and split.upper() not in Part.__members__:
        raise ValueError(f"split: {nearest(split, [part.name.lower() for part in Part])}")
    return None if split is None else Part[split.upper()]


def block_rows(file: h5py.File, columns: Sequence[str]) -> int:
    """Return how many rows are read at once: whole chunks of the columns, so that none is unpacked twice."""
    sizes = [file[name].dtype.itemsize * math.prod(file[name].shape[1:]) for name in columns]
    chunk = min([BLOCK_ROWS, *(file[name].chunks[0] for name in columns if file[name].chunks)])
    return max(chunk, min(BLOCK_ROWS, BLOCK_BYTES // max(1, sum(sizes))) // chunk * chunk)


def _values(dataset: h5py.Dataset, rows: Any) -> NDArray[Any]:
    text = h5py.check_string_dtype(dataset.dtype) is not None
    values: NDArray[Any] = (dataset.asstr() if text else dataset)[rows]
    return values


def _arrow_type(dataset: h5py.Dataset) -> pa.DataType:
    return pa.string() if h5py.check_string_dtype(dataset.dtype) is not None else pa.from_numpy_dtype(dataset.dtype)
