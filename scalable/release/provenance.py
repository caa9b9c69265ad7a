"""`provenance.h5`: sources, raw headers, queries, steps, rejected rows, sketches and rules, written piece by piece."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.collection import Collection
from scalable.io.fits_header import parse_header
from scalable.io.hdf5_write import TEXT, Dataset, Growing, new_file, write_dataset
from scalable.io.runs import read_arrow
from scalable.release.images import CubeImages, write_cube_tables
from scalable.release.parts import as_json
from scalable.release.select import REJECTED
from scalable.release.sources import SourceFile, header_arrays

LIMITS = ("TELESCOP", "INSTRUME", "DETECTOR", "FILTER", "OBSERVAT", "PROPID", "BUNIT", "EXPTIME", "DATE-OBS", "MJD-OBS",
          "APERTURE", "AIRMASS")  # fmt: skip
"""Keywords of headers that limit a sample."""
_SHOWN = 12
_LAYOUT = re.compile(
    r"SIMPLE|XTENSION|BITPIX|NAXIS\d*|EXTEND|[PG]COUNT|TFIELDS|END|COMMENT|HISTORY|CHECKSUM|DATASUM|CONTINUE|T[A-Z]{3,4}\d+|"
)
"""Keywords that say how bytes lie, or are no facts of a file; the raw headers hold them."""


@dataclass(frozen=True)
class Provenance:
    """What the file is written from."""

    sources: tuple[SourceFile, ...]
    headers: tuple[str, ...]
    collection: Collection
    rejected: tuple[Path, ...]
    manifest: Mapping[str, Any]
    images: CubeImages | None = None
    first_image: int = 0


def write_provenance(path: Path, books: Provenance) -> dict[str, Any]:
    """Write the file and return what the manifest says of it: digests of sources and headers, rows rejected, limits."""
    limits, keywords = _Limits(books.collection), _Keywords()
    with new_file(path) as file:
        digest = _write_sources(file.create_group("sources"), books.sources)
        count, blocks = _write_headers(file.create_group("headers"), books.headers, limits, keywords)
        group = file.create_group("keywords")
        for name, texts in keywords.columns().items():
            write_dataset(group, name, Dataset(np.array(texts, dtype=object)))
        listed = _write_rejected(file.create_group("rejected"), books)
        if books.images is not None:
            write_cube_tables(file.create_group("cube"), books.images, books.first_image)
        for name in ("query", "steps", "sketches", "outliers", "selection"):
            write_dataset(file, name, Dataset(np.array([as_json(books.manifest[name])], dtype=object)))
    accounting = {**books.manifest["accounting"], "rejected": listed}
    facts = {"files": len(books.sources), "digest": digest, "headers": count, "headers_digest": blocks}
    return {"sources": facts, "accounting": accounting, "limits": limits.found()}


SOURCE_COLUMNS = ("source_id", "uri", "sha256", "size", "kind")


def sources_digest(columns: Mapping[str, list[Any]]) -> str:
    """Return one digest of the table of sources."""
    return hashlib.sha256(as_json({name: columns[name] for name in SOURCE_COLUMNS}).encode()).hexdigest()


def _write_sources(group: h5py.Group, sources: tuple[SourceFile, ...]) -> str:
    columns: dict[str, list[Any]] = {
        "source_id": [s.source_id for s in sources],
        "uri": [s.uri for s in sources],
        "sha256": [s.sha256 for s in sources],
        "size": [s.size_bytes for s in sources],
        "kind": [s.kind for s in sources],
    }
    for name, values in columns.items():
        dtype = np.dtype(object) if name in ("uri", "sha256", "kind") else np.dtype(np.int64)
        write_dataset(group, name, Dataset(np.array(values, dtype=dtype)))
    return sources_digest(columns)


_HEADER_COLUMNS = ("source_id", "hdu", "start", "data_start", "data_bytes", "length")


def _write_headers(group: h5py.Group, headers: tuple[str, ...], limits: _Limits, keywords: _Keywords) -> tuple[int, str]:
    table = Growing(group, {name: np.dtype(np.int64) for name in _HEADER_COLUMNS})
    blocks = Growing(group, {"blocks": np.dtype(np.uint8)})
    count, digest = 0, hashlib.sha256()
    for path in headers:
        arrays = header_arrays(path)
        table.append({name: arrays[name].astype(np.int64) for name in _HEADER_COLUMNS})
        blocks.append({"blocks": arrays["blocks"]})
        digest.update(arrays["length"].astype(">i8").tobytes() + arrays["blocks"].tobytes())
        count += len(arrays["hdu"])
        at = 0
        keywords.next_source()
        for length in arrays["length"].tolist():
            values = parse_header(arrays["blocks"][at : at + length].tobytes()).values
            limits.add(values)
            keywords.add(values)
            at += length
    return count, digest.hexdigest()


def headers_digest(group: h5py.Group) -> str:
    """Return one digest of all raw headers, source by source."""
    ids, lengths = group["source_id"][()], group["length"][()]
    digest, at = hashlib.sha256(), 0
    edges = np.flatnonzero(np.diff(ids, prepend=ids[:1] - 1, append=ids[-1:] + 1)) if len(ids) else np.zeros(1, int)
    for first, last in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
        size = int(lengths[first:last].sum())
        digest.update(lengths[first:last].astype(">i8").tobytes() + group["blocks"][at : at + size].tobytes())
        at += size
    return digest.hexdigest()


def _write_rejected(group: h5py.Group, books: Provenance) -> int:
    """Write the rows that are not in the release, those of ingest first; return how many count against the rows in."""
    columns: dict[str, Any] = {f.name: TEXT if pa.types.is_string(f.type) else np.dtype(np.int64) for f in REJECTED}
    growing, counted = Growing(group, columns), 0
    for counts, piece in _rejected(books):
        growing.append({name: _array(piece[name]) for name in REJECTED.names})
        counted += piece.num_rows if counts else 0
    return counted


def _rejected(books: Provenance) -> Iterator[tuple[bool, pa.Table]]:
    of_detections = books.manifest["recipe"]["rows"] == "detections"
    for piece in books.collection.iterate_rejected():
        words = pa.repeat("ingest", piece.num_rows)
        columns = [
            piece["object_id"],
            piece["observation_id"],
            piece["source_row"],
            words,
            piece["reason"],
            piece["column"],
            piece["value"],
        ]
        yield of_detections, pa.table(columns, schema=REJECTED)
    for path in books.rejected:
        yield True, read_arrow(path)


def _array(column: pa.ChunkedArray) -> NDArray[Any]:
    if pa.types.is_string(column.type):
        return column.fill_null("").to_numpy(zero_copy_only=False).astype(object)
    return pc.fill_null(column, -1).to_numpy()


class _Limits:
    """The fixed limits of a sample: what its headers and its observations say, and no more."""

    def __init__(self, collection: Collection) -> None:
        observed = collection.observations
        self._values: dict[str, set[str]] = {key: set() for key in LIMITS}
        self._ranges: dict[str, str] = {}
        for name, unit in (("mjd", "d"), ("exposure_s", "s"), ("airmass", "")):
            if (
                name in observed.column_names
                and observed[name].null_count < observed.num_rows
                and pa.types.is_floating(observed[name].type)
            ):
                bounds = pc.min_max(observed[name]).as_py()
                self._ranges[name] = f"{bounds['min']:g} to {bounds['max']:g} {unit}".strip()

    def add(self, values: Mapping[str, Any]) -> None:
        """Note the keywords of one header."""
        for key in LIMITS:
            if values.get(key) not in (None, "") and len(self._values[key]) <= _SHOWN:
                self._values[key].add(str(values[key]))

    def found(self) -> dict[str, str]:
        """Return what was found, by keyword."""
        shown = {
            key: ", ".join(sorted(values)[:_SHOWN]) + (" and more" if len(values) > _SHOWN else "")
            for key, values in self._values.items()
            if values
        }
        return shown | self._ranges


class _Keywords:
    """Keywords of the headers by source, each by its first card: those that differ between sources become columns."""

    def __init__(self) -> None:
        self._sources: list[dict[str, str]] = []

    def next_source(self) -> None:
        """Begin the headers of another source."""
        self._sources.append({})

    def add(self, values: Mapping[str, Any]) -> None:
        """Note the keywords of one header."""
        for key, value in values.items():
            if not _LAYOUT.fullmatch(key) and "/" not in key:
                self._sources[-1].setdefault(key, str(value))

    def columns(self) -> dict[str, list[str]]:
        """Return one text a source for every keyword that differs; empty where a source does not have it."""
        found = {
            key: [one.get(key, "") for one in self._sources] for key in sorted({key for one in self._sources for key in one})
        }
        return {key: texts for key, texts in found.items() if len(set(texts)) > 1}
