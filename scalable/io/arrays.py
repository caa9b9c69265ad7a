"""Named arrays and what they mean, in one HDF5 file that shows any damage before it is opened: models and checkpoints.

The file begins with a line that names it, and the SHA-256 of all that follows the first 512 bytes. HDF5 leaves these to us.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from scalable.errors import StoreError
from scalable.io.atomic import aside
from scalable.io.regular import open_regular

_HEAD = 512
_NAME = b"scalable arrays 1\nsha256 "
_SAID = "scalable"
MOST_BYTES = 1 << 33
"""No larger file is read: it is held as a whole."""


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]], said: Mapping[str, Any]) -> str:
    """Write arrays of numbers, and what JSON can hold of their meaning; whole or not at all. Return the digest."""
    with aside(path) as temporary:
        with h5py.File(temporary, "w", userblock_size=_HEAD, track_order=True) as file:
            file.attrs[_SAID] = json.dumps(said, allow_nan=False)
            for name, array in arrays.items():
                if array.dtype.kind not in "fiub":
                    raise StoreError(f"{path}: array {name!r} holds {array.dtype}; only numbers are stored")
                filters = {"compression": "gzip", "shuffle": True, "fletcher32": True} if array.size > 64 else {}
                file.create_dataset(name, data=np.ascontiguousarray(array), track_times=False, **filters)
        with temporary.open("r+b") as raw:
            raw.seek(_HEAD)
            digest = hashlib.file_digest(raw, "sha256").hexdigest()
            raw.seek(0)
            raw.write(_NAME + digest.encode() + b"\n")
    return digest


def read_arrays(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any], str]:
    """Read what `write_arrays` wrote, and its digest.

    Raises
    ------
    StoreError
        If the file is missing, is another kind of file, or is damaged.
    """
    try:
        with open(open_regular(str(path), "model"), "rb") as raw:
            head = raw.read(_HEAD)
            if not head.startswith(_NAME):
                raise StoreError(f"{path}: is no model of ours; fit one and save it")
            expected = head[len(_NAME) : len(_NAME) + 64].decode("ascii", "replace")
            if raw.seek(0, 2) > MOST_BYTES:
                raise StoreError(f"{path}: larger than {MOST_BYTES} bytes, which is no model")
            raw.seek(_HEAD)
            if hashlib.file_digest(raw, "sha256").hexdigest() != expected:
                raise StoreError(f"{path}: damaged (its SHA-256 is not the one it says); take another copy or fit it again")
            raw.seek(0)
            with h5py.File(raw, "r") as file:
                said = json.loads(file.attrs[_SAID])
                datasets = {name: _numbers(file, name) for name in file}
                if (total := sum(dataset.nbytes for dataset in datasets.values())) > MOST_BYTES:
                    raise ValueError(f"its arrays expand to {total} bytes")
                arrays = {name: dataset[()] for name, dataset in datasets.items()}
    except StoreError:
        raise
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read as a model ({error})") from error
    return arrays, said, expected


def _numbers(file: h5py.File, name: str) -> h5py.Dataset:
    link, dataset = file.get(name, getlink=True), file[name]
    if not isinstance(link, h5py.HardLink) or not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise ValueError(f"{name!r} leads out of the file or is no array")
    if dataset.dtype.kind not in "fiub":
        raise ValueError(f"{name!r} holds {dataset.dtype} and not numbers")
    return dataset
