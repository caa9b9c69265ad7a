"""Whole FITS files in a release: every HDU's data as typed datasets, from which the file comes back bit for bit."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from scalable.errors import StoreError
from scalable.io.fits_header import BLOCK, FitsFile, data_bytes, open_fits, parse_header, table_layout
from scalable.io.hdf5_write import chunk_shape, new_file, write_attributes
from scalable.io.remote import local_copy
from scalable.release.sources import SourceFile
from scalable.survey.description import Survey

_IMAGES = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_STEP = 1 << 24
"""Bytes that are copied at a time."""


def whole_path(source_id: int) -> str:
    """Return the path of a whole source below a release."""
    return f"data/sources/{source_id}.h5"


def write_whole(source: SourceFile, survey: Survey, release: str, work: str) -> str:
    """Write all HDUs of a FITS file as datasets, in their own types and byte order; skipped if done before."""
    path = Path(release) / whole_path(source.source_id)
    if not source.is_fits(survey) or path.exists():
        return str(path)
    with local_copy(survey.confined(source.uri), Path(work) / "fetched") as here:
        write_fits_as_hdf5(here, path, {"uri": source.uri, "sha256": source.sha256})
    return str(path)


def write_fits_as_hdf5(fits: str, path: Path, about: dict[str, str]) -> None:
    """Write the HDUs of a FITS file as groups: ``header``, ``data`` in its own type, and behind it ``heap`` and ``pad``."""
    with open_fits(fits) as file, new_file(path) as out:
        write_attributes(out, about)
        end = 0
        for number, (raw, at) in enumerate(file.walk()):
            group = out.create_group(f"hdu{number:04d}")
            group.create_dataset("header", data=np.frombuffer(raw, np.uint8), compression="gzip", shuffle=True, fletcher32=True)
            size = data_bytes(raw)
            dtype, shape = _form(raw, size)
            main = dtype.itemsize * int(np.prod(shape, dtype=np.int64))
            _copy(group, "data", file, at, dtype, shape, number)
            if size > main:
                _copy(group, "heap", file, at + main, np.dtype(np.uint8), (size - main,), number)
            end = at + -(-size // BLOCK) * BLOCK
            pad = min(end, file.size) - at - size
            if pad > 0:
                _copy(group, "pad", file, at + size, np.dtype(np.uint8), (pad,), number)
        if file.size > end:
            _copy(out, "tail", file, end, np.dtype(np.uint8), (file.size - end,), 0)


def _form(raw: bytes, size: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return type and shape of the main part of the data: pixels as stored, or rows with a field a column."""
    header = parse_header(raw)
    kind = header.text("XTENSION") or "IMAGE"
    if not size:
        return np.dtype(np.uint8), (0,)
    if kind in ("BINTABLE", "A3DTABLE", "TABLE"):
        return _row_type(raw, header.integer("NAXIS1")), (header.integer("NAXIS2"),)
    axes = [header.integer(f"NAXIS{n}") for n in range(1, header.integer("NAXIS") + 1)]
    dtype = np.dtype(_IMAGES[int(str(header.values["BITPIX"]))])
    if kind != "IMAGE" or 0 in axes or np.prod(axes, dtype=np.int64) * dtype.itemsize != size:
        return np.dtype(np.uint8), (size,)  # random groups and the like stay bytes
    return dtype, tuple(reversed(axes))


def _row_type(raw: bytes, row_bytes: int) -> np.dtype[Any]:
    """Return a compound type of a table's rows, or plain bytes where a layout is none of ours."""
    plain = np.dtype((np.void, row_bytes)) if row_bytes else np.dtype(np.uint8)
    try:
        fields = table_layout(raw).fields
    except ValueError:
        return plain
    names, formats, offsets = [], [], []
    for name, field in fields.items():
        item = {"L": "S1", "A": f"S{field.per}"}.get(
            field.code, "u1" if field.code == "X" else field.stored.newbyteorder(">").str
        )
        if field.heap:
            item = ">i4" if field.heap == "P" else ">i8"
        elif field.code not in "LXA":
            # The bits as they are stored: an unsigned number is a signed one with an offset.
            item = f">{'f' if field.stored.kind == 'f' else 'i'}{field.width}" if field.width > 1 else "u1"
        width = np.dtype(item).itemsize
        count = field.width * field.count // width
        names.append(name)
        formats.append((item, (count,)) if count > 1 else item)
        offsets.append(field.at)
    found = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": row_bytes})
    covered = sum(found.fields[name][0].itemsize for name in names) if found.fields else 0
    return found if covered == row_bytes else plain


def _copy(group: h5py.Group, name: str, file: FitsFile, at: int, dtype: np.dtype[Any], shape: tuple[int, ...], hdu: int) -> None:
    """Copy bytes of a file into a dataset, `_STEP` or one row at a time."""
    if not shape[0]:
        group.create_dataset(name, shape, dtype)
        return
    made = group.create_dataset(
        name, shape, dtype, chunks=chunk_shape(shape, dtype.itemsize), compression="gzip", compression_opts=1, shuffle=True,
        fletcher32=True,
    )  # fmt: skip
    row = dtype.itemsize * int(np.prod(shape[1:], dtype=np.int64))
    step = max(1, _STEP // row)
    for first in range(0, shape[0], step):
        count = min(step, shape[0] - first)
        piece = bytearray(count * row)
        file.read_into(memoryview(piece), at + first * row, hdu)
        made[first : first + count] = np.frombuffer(piece, dtype).reshape(count, *shape[1:])


def read_back(path: Path, target: Path) -> None:
    """Write the FITS file that a whole source was made from, bit for bit.

    Raises
    ------
    StoreError
        If the file is no whole source.
    """
    try:
        with h5py.File(path, "r") as file, target.open("wb") as out:
            for name in sorted(key for key in file if key.startswith("hdu")):
                group = file[name]
                out.write(group["header"][()].tobytes())
                for part in ("data", "heap", "pad"):
                    if part in group:
                        _stream(group[part], out)
            if "tail" in file:
                _stream(file["tail"], out)
            out.flush()
            os.fsync(out.fileno())
    except (OSError, KeyError) as error:
        raise StoreError(f"{path}: the source file cannot be read back ({error}); verify the release") from error


def _stream(dataset: h5py.Dataset, out: Any) -> None:
    if not dataset.size:
        return
    row = dataset.dtype.itemsize * int(np.prod(dataset.shape[1:], dtype=np.int64))
    step = max(1, _STEP // row)
    for first in range(0, dataset.shape[0], step):
        out.write(np.ascontiguousarray(dataset[first : first + step]).tobytes())
