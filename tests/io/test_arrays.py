"""Files of arrays: what was written comes back; what leads out of the file, or holds more than numbers, is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from scalable.errors import StoreError
from scalable.io.arrays import read_arrays, write_arrays


def test_arrays_and_what_is_said_of_them_come_back_bit_for_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {"a.b": rng.normal(size=(70, 3)), "n": np.arange(3), "u": np.zeros(0, np.uint8), "nan": np.array([np.nan, -0.0])}
    digest = write_arrays(tmp_path / "x.h5", arrays, {"text": "é", "list": [1, None]})
    found, said, again = read_arrays(tmp_path / "x.h5")
    assert digest == again
    assert said == {"text": "é", "list": [1, None]}
    assert set(found) == set(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].tobytes() == array.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["x.h5"]


def test_equal_arrays_give_equal_bytes(tmp_path: Path) -> None:
    for name in "ab":
        write_arrays(tmp_path / name, {"x": np.arange(1000.0)}, {"y": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_only_numbers_are_written_and_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_arrays(path, {"x": np.ones(2)}, {})
    before = path.read_bytes()
    with pytest.raises(StoreError, match="only numbers"):
        write_arrays(path, {"x": np.array(["a"], dtype=object)}, {})
    assert path.read_bytes() == before


def soft(file: h5py.File) -> None:
    file["x"] = h5py.SoftLink("/y")
    file["y"] = np.ones(2)


def outside(file: h5py.File) -> None:
    file["x"] = h5py.ExternalLink("other.h5", "/x")


def storage(file: h5py.File) -> None:
    file.create_dataset("x", (4,), "i1", external=[("/etc/hostname", 0, 4)])


def texts(file: h5py.File) -> None:
    file["x"] = "text"


@pytest.mark.parametrize("spoil", [soft, outside, storage, texts])
def test_a_crafted_file_reads_nothing_else(spoil: Callable[[h5py.File], None], tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    write_arrays(path, {"z": np.ones(2)}, {})
    with h5py.File(path, "r+") as file:
        spoil(file)
    raw = path.read_bytes()
    digest = hashlib.sha256(raw[512:]).hexdigest().encode()
    path.write_bytes(raw[:25] + digest + raw[25 + 64 :])
    with pytest.raises(StoreError, match="cannot be read as a model"):
        read_arrays(path)
