"""What a release is made of: names of its files, and `release.json`, which every reader opens first."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from scalable.errors import StoreError
from scalable.io.atomic import write_text
from scalable.io.runs import read_json

FORMAT = 1
MANIFEST, INDEX, PROVENANCE, SUMS = "release.json", "index.parquet", "provenance.h5", "SHA256SUMS"
DATASHEET, CROISSANT, README, CODE = "datasheet.json", "croissant.json", "README.txt", "code"
MODEL = f"{CODE}/model.h5"
"""The mixture that simulated rows were drawn from."""


def read_manifest(path: Path) -> dict[str, Any]:
    """Return what a release says of itself.

    Raises
    ------
    StoreError
        If there is no release, or it was written by a later version.
    """
    if not (path / MANIFEST).is_file():
        raise StoreError(f"{path}: no release is there; write_release makes one")
    manifest = read_json(path / MANIFEST)
    if manifest.get("format_version", 0) > FORMAT:
        raise StoreError(
            f"{path}: has format {manifest['format_version']}, this version reads up to {FORMAT}; upgrade scalable-sky"
        )
    return manifest


def own_dataset(file: h5py.File, name: str) -> h5py.Dataset:
    """Return a dataset of a file, if its values lie in that very file.

    Raises
    ------
    StoreError
        If it is a link, virtual, or stored elsewhere: a file that was fetched must not make its reader open others.
    """
    link = file.get(name, getlink=True)
    dataset = file[name] if isinstance(link, h5py.HardLink) else None
    if not isinstance(dataset, h5py.Dataset) or dataset.is_virtual or dataset.external:
        raise StoreError(
            f"{file.filename}: {name} leads out of the file or is no dataset; fetch the release again, and verify it"
        )
    return dataset


def files_below(path: Path) -> Iterator[str]:
    """Yield every file of a release but the list of checksums, sorted."""
    found = []
    for folder, _, names in os.walk(path):
        found += [(Path(folder) / name).relative_to(path).as_posix() for name in names]
    yield from (name for name in sorted(found) if name != SUMS)


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sums(path: Path) -> None:
    """Write the checksums of all files as ``sha256sum --check`` reads them."""
    write_text(path / SUMS, "".join(f"{file_digest(path / name)}  {name}\n" for name in files_below(path)))


def read_sums(path: Path) -> dict[str, str]:
    """Return the digest of each file that the list names."""
    try:
        lines = (path / SUMS).read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    except OSError as error:
        raise StoreError(f"{path}: {SUMS} cannot be read ({error})") from error
