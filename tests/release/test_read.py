"""A release opens in the tools that it names, gives the same numbers in each, and gives its sources back."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from scalable.errors import ColumnError, StoreError
from scalable.io.runs import read_json
from scalable.release.exchange import diff_releases, to_fits
from scalable.release.manifest import write_sums
from scalable.release.read import BLOCK_BYTES, block_rows, open_release
from scalable.release.verify import verify_release
from scalable.testing import no_compute


def test_numpy_pandas_and_xarray_see_the_same_rows(released: Path) -> None:
    release = open_release(released)
    found = release.numpy()
    assert len(found["object_id"]) == release.rows
    frame = release.pandas(["object_id", "J_Mag1"])
    assert isinstance(frame, pd.DataFrame)
    np.testing.assert_array_equal(frame["J_Mag1"], found["J_Mag1"])
    with release.xarray() as lazy:
        assert lazy["J_Mag1"].chunks is not None
        assert lazy["J_Mag1"].attrs["units"] == "mag"
        np.testing.assert_array_equal(lazy["J_Mag1"].values, found["J_Mag1"])


def test_h5py_and_xarray_alone_open_a_shard(released: Path) -> None:
    path = released / read_json(released / "release.json")["shards"][0]["path"]
    with h5py.File(path) as file:
        assert len({dataset.shape[0] for dataset in file.values()}) == 1
        assert all(h5py.h5z.filter_avail(c) for d in file.values() for c in range(1, 4) if d.chunks)
    with xr.open_dataset(path, engine="h5netcdf", phony_dims="access") as opened:
        assert opened["J_Mag1"].attrs["unit"] == "mag"
        assert opened.attrs["version"] == "1.0.0"


def test_a_split_and_a_quality_cut_leave_the_rows_that_they_say(released: Path, released_detections: Path) -> None:
    every = open_release(released).numpy()
    sizes = 0
    for number, name in enumerate(("train", "validation", "test", "guard")):
        part = open_release(released).numpy(["object_id"], split=name)["object_id"]
        np.testing.assert_array_equal(part, every["object_id"][every["split"] == number])
        sizes += len(part)
    assert sizes == len(every["object_id"])
    all_rows = open_release(released_detections).numpy(["Flux1", "dFlux1"])
    good = open_release(released_detections, quality="Flux1 / dFlux1 > 30").numpy(["Flux1"])["Flux1"]
    np.testing.assert_array_equal(good, all_rows["Flux1"][all_rows["Flux1"].astype(float) / all_rows["dFlux1"] > 30])
    assert 0 < len(good) < len(all_rows["Flux1"])


def test_blocks_are_shuffled_by_the_seed_and_workers_share_the_rows(released: Path) -> None:
    release = open_release(released)
    ids = release.numpy(["object_id"])["object_id"]

    def order(**options: int) -> np.ndarray:
        return np.concatenate([np.zeros(0, int), *(block["object_id"] for block in release.blocks(["object_id"], **options))])

    assert not np.array_equal(order(seed=1), ids)
    np.testing.assert_array_equal(order(seed=1), order(seed=1))
    assert not np.array_equal(order(seed=1), order(seed=2))
    shares = [order(seed=1, worker=worker, workers=3) for worker in range(3)]
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.sort(ids))
    assert all(len(share) for share in shares)


def test_blocks_are_whole_chunks_and_small_enough(tmp_path: Path) -> None:
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file.create_dataset("a", (20_000,), "f8", chunks=(8192,))
        file.create_dataset("image", (20_000, 5, 64, 64), "f4", chunks=(12, 5, 64, 64))
        assert block_rows(file, ["a"]) == 8192
        n = block_rows(file, ["a", "image"])
        assert n % 12 == 0
        assert n * (8 + 5 * 64 * 64 * 4) <= BLOCK_BYTES


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.long)])
def test_pytorch_reads_every_row_once(released: Path, workers: int) -> None:
    data = pytest.importorskip("torch.utils.data")
    rows = open_release(released).torch(["object_id", "J_Mag1"], split="train", seed=3)
    # Spawned: a process that has threads, as this one has of Dask, should not be forked.
    loader = data.DataLoader(rows, batch_size=None, num_workers=workers, multiprocessing_context="spawn" if workers else None)
    found = [int(row["object_id"]) for row in loader]
    assert sorted(found) == sorted(open_release(released).numpy(["object_id"], split="train")["object_id"].tolist())


def test_pytorch_shuffles_anew_every_epoch_and_survives_a_pickle(released: Path) -> None:
    pytest.importorskip("torch")
    rows = open_release(released).torch(["object_id"], seed=3)

    def order(some: Any) -> list[int]:
        return [int(row["object_id"]) for row in some]

    first = order(rows)
    assert order(rows) == first
    assert order(pickle.loads(pickle.dumps(rows))) == first
    rows.set_epoch(1)
    assert order(rows) != first
    assert sorted(order(rows)) == sorted(first)
    assert order(pickle.loads(pickle.dumps(rows))) == order(rows)


def test_tensorflow_reads_every_row_once(released: Path) -> None:
    pytest.importorskip("tensorflow")
    rows = open_release(released).tensorflow(["object_id"], seed=3)
    ids = open_release(released).numpy(["object_id"])["object_id"]
    assert sorted(int(row["object_id"]) for row in rows) == sorted(ids.tolist())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the libraries that it builds on
def test_mlcroissant_validates_and_loads_records(released: Path) -> None:
    croissant = pytest.importorskip("mlcroissant")
    dataset = croissant.Dataset(str(released / "croissant.json"))
    assert not dataset.metadata.ctx.issues.errors
    records = list(dataset.records("index"))
    index = open_release(released).index
    assert [record["index/object_id"] for record in records] == index["object_id"].to_pylist()
    columns = list(dataset.records("columns"))
    assert {record["columns/name"] for record in columns} >= {"J_Mag1", "Flux1"}


@pytest.mark.long
def test_hugging_face_loads_shards(released: Path, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    shards = [str(released / shard["path"]) for shard in read_json(released / "release.json")["shards"]]
    loaded = datasets.load_dataset("hdf5", data_files=shards, split="train", cache_dir=str(tmp_path))
    assert sorted(loaded["object_id"]) == sorted(open_release(released).numpy(["object_id"])["object_id"].tolist())


def test_all_root_datasets_of_a_shard_are_of_one_length_as_hugging_face_wants(released: Path) -> None:
    for shard in read_json(released / "release.json")["shards"]:
        with h5py.File(released / shard["path"]) as file:
            assert all(isinstance(dataset, h5py.Dataset) for dataset in file.values())
            assert {dataset.shape[0] for dataset in file.values()} == {shard["rows"]}


def test_the_readers_that_a_release_names_are_those_that_open_it_here(released: Path) -> None:
    tests = Path(__file__).read_text()
    for reader in read_json(released / "release.json")["read_by"]:
        assert f"import {reader}" in tests or f'importorskip("{reader}' in tests, reader


def test_opening_reads_nothing_but_the_manifest(released: Path) -> None:
    with no_compute():
        text = repr(open_release(released))
    assert "1.0.0" in text
    assert "J_Mag1" in text


def test_what_is_not_there_is_named(released: Path, tmp_path: Path) -> None:
    with pytest.raises(ColumnError, match="J_Mag1"):
        open_release(released).numpy(["J_Mag"])
    with pytest.raises(StoreError, match="no release is there"):
        open_release(tmp_path)
    with pytest.raises(ValueError, match="did you mean 'test'"):
        open_release(released).numpy(split="tests")


def test_whole_sources_come_back_bit_for_bit(released_detections: Path, sources: Path, tmp_path: Path) -> None:
    written = to_fits(released_detections, tmp_path / "fits")
    originals = sorted((sources / "tables").glob("*.fits"))
    assert [path.relative_to(tmp_path / "fits") for path in sorted(written)] == [path.relative_to(sources) for path in originals]
    for path, original in zip(sorted(written), originals, strict=True):
        assert path.read_bytes() == original.read_bytes()


def test_a_release_without_whole_sources_gives_every_header(released: Path, sources: Path, tmp_path: Path) -> None:
    for path in to_fits(released, tmp_path / "headers"):
        raw, name = path.read_bytes(), path.relative_to(tmp_path / "headers").as_posix().removesuffix(".hdr")
        source = (sources / name).read_bytes()
        assert raw.startswith(b"SIMPLE  =")
        assert raw[:2880] == source[:2880]
        assert raw[2880:] in source


def test_no_source_is_written_outside_of_the_folder(released: Path, tmp_path: Path) -> None:
    spoiled = Path(shutil.copytree(released, tmp_path / "spoiled"))
    with h5py.File(spoiled / "provenance.h5", "r+") as file:
        file["sources/uri"][0] = "../../escaped.fits"
    write_sums(spoiled)
    with pytest.raises(StoreError, match="outside of the folder"):
        to_fits(spoiled, tmp_path / "a" / "b")
    assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize("how", ["link", "external storage", "virtual"])
def test_no_other_file_is_read_through_a_release(released: Path, tmp_path: Path, how: str) -> None:
    spoiled = Path(shutil.copytree(released, tmp_path / "spoiled"))
    shard = spoiled / str(read_json(released / "release.json")["shards"][0]["path"])
    with h5py.File(tmp_path / "secret.h5", "w") as other, h5py.File(shard, "r+") as file:
        other["ra"] = np.ones_like(file["ra"][()])
        (tmp_path / "secret").write_bytes(other["ra"][()].tobytes())
        n = len(file["ra"])
        del file["ra"]
        if how == "link":
            file["ra"] = h5py.ExternalLink(str(tmp_path / "secret.h5"), "ra")
        elif how == "virtual":
            layout = h5py.VirtualLayout((n,), "f8")
            layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "ra", (n,))
            file.create_virtual_dataset("ra", layout)
        else:
            file.create_dataset("ra", (n,), "f8", external=[(str(tmp_path / "secret"), 0, n * 8)])
    write_sums(spoiled)
    with pytest.raises(StoreError, match="ra leads out of the file"):
        open_release(spoiled).numpy(["ra"])
    found = verify_release(spoiled)
    assert any("ra leads out of the file" in finding.problem for finding in found.findings), found


def test_a_release_differs_from_itself_in_nothing_and_from_another_kind_not_at_all(
    released: Path, released_detections: Path
) -> None:
    found = diff_releases(released, released)
    assert found.same == open_release(released).rows
    assert [table.num_rows for table in (found.added, found.removed, found.changed)] == [0, 0, 0]
    with pytest.raises(StoreError, match="cannot be compared"):
        diff_releases(released, released_detections)
