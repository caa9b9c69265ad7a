"""Where rows came from: every source file with its digest, and the raw header of each of its HDUs, byte for byte."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.errors import InputError
from scalable.io.fits_header import data_bytes, open_fits
from scalable.io.remote import local_copy
from scalable.io.runs import read_arrow, write_arrow
from scalable.survey.description import Survey

HEADERS = pa.schema(
    [("source_id", pa.int64()), ("hdu", pa.int32()), ("start", pa.int64()), ("data_start", pa.int64()),
     ("data_bytes", pa.int64()), ("raw", pa.large_binary())]
)  # fmt: skip
"""One row an HDU: where its header and its data begin in the (unpacked) file, and the header's blocks, padding included."""


@dataclass(frozen=True)
class SourceFile:
    """One file that rows came from, by its path below the survey's root."""

    source_id: int
    uri: str
    sha256: str
    size_bytes: int
    kind: str = "table"
    """``table``, or ``image`` for what cutouts were taken from, masks and weights too."""

    def is_fits(self, survey: Survey) -> bool:
        """Return whether it has headers."""
        return self.kind == "image" or survey.files.format == "fits"


def read_headers(source: SourceFile, survey: Survey, work: str) -> str:
    """Leave the raw headers of a FITS file in a file of its own and return its path; nothing where it is no FITS file."""
    path = Path(work) / "headers" / f"{source.source_id}.arrow"
    if not path.exists():
        write_arrow(pa.table(headers_of(source, survey, work), schema=HEADERS), path)
    return str(path)


def headers_of(source: SourceFile, survey: Survey, work: str) -> dict[str, list[Any]]:
    """Return the columns of `HEADERS` for one file."""
    rows: dict[str, list[Any]] = {name: [] for name in HEADERS.names}
    if not source.is_fits(survey):
        return rows
    with local_copy(survey.confined(source.uri), Path(work) / "fetched") as here, open_fits(here) as file:
        for number, (raw, at) in enumerate(file.walk()):
            values = (source.source_id, number, at - len(raw), at, data_bytes(raw), raw)
            for name, value in zip(HEADERS.names, values, strict=True):
                rows[name].append(value)
    return rows


def source_digest(source: SourceFile, survey: Survey, work: str) -> tuple[str, int]:
    """Return digest and size of a source as it is now.

    Raises
    ------
    InputError
        If it cannot be read.
    """
    try:
        with local_copy(survey.confined(source.uri), Path(work) / "fetched") as here, open(here, "rb") as file:
            digest = sha256()
            size = 0
            while piece := file.read(1 << 20):
                digest.update(piece)
                size += len(piece)
    except OSError as error:
        raise InputError(f"{source.uri}: cannot be read below {survey.root} ({error})") from error
    return digest.hexdigest(), size


def header_arrays(path: str) -> dict[str, NDArray[Any]]:
    """Return the headers of one source as the datasets of provenance hold them."""
    table = read_arrow(Path(path))
    raw = table["raw"].combine_chunks()
    found: dict[str, NDArray[Any]] = {name: table[name].to_numpy() for name in HEADERS.names if name != "raw"}
    edges = (
        np.frombuffer(raw.buffers()[1], np.int64)[raw.offset : raw.offset + len(raw) + 1] if len(raw) else np.zeros(1, np.int64)
    )
    bytes_ = np.frombuffer(raw.buffers()[2], np.uint8)[edges[0] : edges[-1]] if len(raw) else np.zeros(0, np.uint8)
    return found | {"length": np.diff(edges), "blocks": bytes_}


def of_observations(observations: Mapping[str, list[Any]]) -> tuple[SourceFile, ...]:
    """Return the sources of a collection's table of observations, those set aside excepted."""
    rows = zip(*(observations[name] for name in ("observation_id", "path", "sha256", "size_bytes", "status")), strict=True)
    return tuple(SourceFile(number, uri, digest, size) for number, uri, digest, size, status in rows if status == "stored")
