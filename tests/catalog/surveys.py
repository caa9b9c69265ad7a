"""Surveys made by hand for the tests of ingest, and independent answers about what a store must hold."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.io import fits
from numpy.typing import NDArray

from scalable.catalog.collection import Collection, open_collection
from scalable.survey.description import Survey
from scalable.survey.read import open_survey
from scalable.synthetic.tables import write_fits

BANDS = ("J", "Ks")


@dataclass(frozen=True)
class Observation:
    """One file of a hand-made survey: its row of the index and its table; without a table the file is not written."""

    id: int
    band: str
    mjd: float
    table: pa.Table | None

    @property
    def path(self) -> str:
        """Path below the survey's root."""
        return f"tables/{self.id}-{self.band}.fits"


def detections(
    ids: Sequence[int] | NDArray[Any], ra: Any, dec: Any, *, unit: str = "deg", id_type: pa.DataType | None = None, **extra: Any
) -> pa.Table:
    """Return a small source table: id, position [``unit``], a flux that tells the rows apart, and further columns."""
    n = len(ids)
    columns = {
        "StarID": pa.array(ids, id_type or pa.int64()),
        "Ra": pa.array(np.asarray(ra, dtype=np.float64)),
        "Dec": pa.array(np.asarray(dec, dtype=np.float64)),
        "Flux": pa.array(np.arange(n, dtype=np.float32)),
        **extra,
    }
    units = {"Ra": unit, "Dec": unit}
    fields = [
        pa.field(name, pa.array(values).type, metadata={"unit": units[name]} if units.get(name) else None)
        for name, values in columns.items()
    ]
    return pa.table(list(map(pa.array, columns.values())), schema=pa.schema(fields))


def write_survey(
    folder: Path,
    observations: Sequence[Observation],
    *,
    margin_arcsec: float = 5.0,
    leaf_mb: float = 128.0,
    bands: Sequence[str] = BANDS,
    columns: Mapping[str, Mapping[str, Any]] | None = None,
    grouping: Mapping[str, Any] | None = None,
) -> Survey:
    """Write tables, index and description; ``columns`` are further column rules, or other ones.

    With a ``grouping`` other than by id the ids of the tables are plain values.
    """
    (folder / "tables").mkdir(parents=True, exist_ok=True)
    for observation in observations:
        if observation.table is not None:
            write_fits(observation.table, folder / observation.path, {"FILTER": observation.band})
    with (folder / "index.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["ID", "Filter", "MJD"])
        writer.writerows((o.id, o.band, repr(o.mjd)) for o in observations)
    rules = {
        "StarID": {"role": "value" if grouping else "object_id"},
        "Ra": {"role": "ra"},
        "Dec": {"role": "dec"},
        "Flux": {"role": "flux"},
    }
    description = {
        "survey": "byhand",
        "root": ".",
        "observations": {"index": "index.csv", "id": "ID", "band": "Filter", "mjd": "MJD"},
        "files": {"templates": [{"path": "tables/{ID}-{Filter}.fits"}]},
        "bands": list(bands),
        "columns": rules | dict(columns or {}),
        "store": {"margin_arcsec": margin_arcsec, "leaf_mb": leaf_mb},
        "grouping": dict(grouping or {}),
    }
    # JSON is YAML.
    (folder / "survey.yaml").write_text(json.dumps(description))
    return open_survey(folder / "survey.yaml")


def read_by_astropy(path: Path) -> dict[str, NDArray[Any]]:
    """Return the columns of a FITS table in native byte order, as astropy reads them."""
    with fits.open(path) as hdus:
        data = hdus[1].data
        return {name: np.array(data[name]).astype(data[name].dtype.newbyteorder("=")) for name in data.names}


def fingerprint(folder: Path) -> dict[str, str]:
    """Return every entry below a folder with the digest of its bytes, the target of a link, or ``/`` for a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            text = "-> " + os.readlink(path)
        else:
            text = "/" if path.is_dir() else hashlib.sha256(path.read_bytes()).hexdigest()
        found[path.relative_to(folder).as_posix()] = text
    return found


def state_on_disk(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Return inode, time of change and size of every entry: nothing that is written anew keeps all three."""
    states = {path.relative_to(folder).as_posix(): path.lstat() for path in sorted(folder.rglob("*"))}
    return {name: (state.st_ino, state.st_mtime_ns, state.st_size) for name, state in states.items()}


def leaf_paths(member: Path) -> list[Path]:
    """Return the leaves of a HATS catalogue, by listing its folder."""
    return sorted((member / "dataset").glob("Norder=*/Dir=*/Npix=*.parquet"))


def read_member(collection: Collection, kind: str) -> dict[str, pa.Table]:
    """Return the tables of all leaves of ``objects`` or ``detections``, read by pyarrow alone, by path below the catalogue."""
    member = collection.path / kind / kind
    return {path.relative_to(member).as_posix(): pq.ParquetFile(path).read() for path in leaf_paths(member)}


def check_version(version: Path) -> dict[str, Any]:
    """Hold a version against its own manifest: every file there, none besides, right bytes and rows; return the manifest."""
    manifest = json.loads((version / "manifest.json").read_text())
    listed = {entry["path"]: entry for entry in manifest["files"]}
    present = {path.relative_to(version).as_posix() for path in version.rglob("*") if not path.is_dir()}
    assert present == {*listed, "manifest.json"}
    for name, entry in listed.items():
        data = (version / name).read_bytes()
        assert (entry["bytes"], entry["sha256"]) == (len(data), hashlib.sha256(data).hexdigest()), name
        if "rows" in entry:
            assert pq.read_metadata(version / name).num_rows == entry["rows"], name
    for kind, total in (("objects", "objects"), ("detections", "stored")):
        leaves = leaf_paths(version / kind / kind)
        assert sum(pq.read_metadata(leaf).num_rows for leaf in leaves) == manifest["accounting"][total]
    return manifest


def check_store(store: Path) -> Collection:
    """Open the current version as a reader does, and hold it against its manifest."""
    collection = open_collection(store)
    check_version(collection.path)
    return collection


def vectors(ra_deg: Any, dec_deg: Any) -> NDArray[np.float64]:
    """Return unit vectors, shape (n, 3)."""
    ra, dec = np.deg2rad(ra_deg), np.deg2rad(dec_deg)
    return np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def separation_arcsec(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the angle between unit vectors [arcsec], accurate for small and for large ones."""
    cross, dot = np.linalg.norm(np.cross(a, b), axis=-1), (a * b).sum(axis=-1)
    return np.rad2deg(np.arctan2(cross, dot)) * 3600


def nested_pixels(ra_deg: Any, dec_deg: Any, order: int) -> NDArray[np.int64]:
    """Return NESTED HEALPix indices by the formulae of Górski et al. (2005), in NumPy alone."""
    ra, z = np.asarray(ra_deg, dtype=np.float64) % 360.0, np.sin(np.deg2rad(np.asarray(dec_deg, dtype=np.float64)))
    nside, quarter = 1 << order, ra / 90.0
    # Equatorial belt.
    up, down = nside * (0.5 + quarter - 0.75 * z), nside * (0.5 + quarter + 0.75 * z)
    north, south = np.floor(up).astype(np.int64), np.floor(down).astype(np.int64)
    face_up, face_down = north >> order, south >> order
    face = np.where(face_up == face_down, face_up % 4 + 4, np.where(face_up < face_down, face_up % 4, face_down % 4 + 8))
    x, y = south & (nside - 1), nside - 1 - (north & (nside - 1))
    # Polar caps.
    cap = np.abs(z) > 2 / 3
    which = np.minimum(quarter.astype(np.int64), 3)
    rest = quarter - which
    # cos(dec) / sqrt(1 + |z|) is sqrt(1 - |z|) without cancellation near the pole.
    size = nside * np.sqrt(3.0) * np.cos(np.deg2rad(np.asarray(dec_deg, dtype=np.float64))) / np.sqrt(1 + np.abs(z))
    left = np.minimum(np.floor(rest * size), nside - 1).astype(np.int64)
    right = np.minimum(np.floor((1 - rest) * size), nside - 1).astype(np.int64)
    face = np.where(cap, np.where(z > 0, which, which + 8), face)
    x = np.where(cap, np.where(z > 0, nside - 1 - right, left), x)
    y = np.where(cap, np.where(z > 0, nside - 1 - left, right), y)
    index = face << (2 * order)
    for bit in range(order):
        index |= ((x >> bit) & 1) << (2 * bit) | ((y >> bit) & 1) << (2 * bit + 1)
    return index
