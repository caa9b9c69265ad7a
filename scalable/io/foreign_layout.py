"""HATS catalogues that other tools made: what they leave out is found elsewhere, what they name otherwise is made known."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalable.errors import StoreError
from scalable.io.parquet import leaf_files
from scalable.io.remote import Place, opened
from scalable.schema import Column, Schema
from scalable.sky.pixel import MAX_ORDER, Pixel


def foreign_leaves(path: Place, properties: Mapping[str, str]) -> tuple[pa.Schema, dict[str, int]]:
    """Return the schema and the rows of each leaf, by its path below the catalogue.

    Of ``_metadata``, ``_common_metadata`` and ``partition_info.csv``, which not all tools write, those are used that are there;
    without ``_metadata`` the footer of every leaf is read.

    Raises
    ------
    StoreError
        If nothing says which leaves there are, or one cannot be read.
    """
    suffix = properties.get("hats_npix_suffix", ".parquet")
    dataset = path / "dataset"
    try:
        listed = _listed(path, suffix)
        if (dataset / "_metadata").is_file():
            with opened(dataset / "_metadata") as file:
                metadata = pq.read_metadata(file)
            groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
            rows = _summed((f"dataset/{group.column(0).file_path}", group.num_rows) for group in groups)
            # The files of a leaf that is a folder count as one.
            rows = _summed((leaf_path(Pixel.from_hats_path(name), suffix), n) for name, n in rows.items())
            if not set(rows) <= set(listed):
                raise StoreError(f"{path}: partition_info.csv and _metadata name different leaves; the catalogue is damaged")
            # A leaf without rows has no row group; one whose rows _metadata does not know is counted.
            rows |= _summed((name, _rows(file)) for name in set(listed) - set(rows) for file in leaf_files(path / name))
        else:
            rows = _summed((name, _rows(file)) for name in listed for file in leaf_files(path / name))
        first = dataset / "_common_metadata"
        source = first if first.is_file() else leaf_files(path / next(iter(rows)))[0]
        with opened(source) as file:
            schema = pq.read_schema(file)
    except StoreError:
        raise
    except (OSError, ValueError, KeyError, StopIteration, IndexError, pa.ArrowException) as error:
        raise StoreError(f"{path}: metadata of the catalogue cannot be read ({error!r})") from error
    return schema, rows


def leaf_path(pixel: Pixel, suffix: str) -> str:
    """Return where a pixel's leaf lies below a catalogue: a file, or with the suffix ``/`` a folder of files."""
    return pixel.hats_path.removesuffix(".parquet") + suffix


def placed(schema: pa.Schema, properties: Mapping[str, str], healpix: str) -> tuple[pa.Schema, tuple[str, ...]]:
    """Return the schema with the roles and units that the properties give the position, and with the index along the sky.

    Parameters
    ----------
    schema : pyarrow.Schema
        As the leaves have it.
    properties : mapping
        Of the catalogue.
    healpix : str
        What the index is called here.

    Returns
    -------
    schema : pyarrow.Schema
        With the column ``healpix``.
    made_from : tuple of str
        Where leaves have no column of that name: the one that holds the same, or those of the position that it follows from.
    """
    position = (properties.get("hats_col_ra", ""), properties.get("hats_col_dec", ""))
    roles = dict(zip(position, ("ra", "dec"), strict=True))
    columns = []
    for column in Schema.from_arrow(schema):
        if column.name in roles:
            columns.append(replace(column, role=roles[column.name], unit=column.unit or "deg"))
        else:
            # Whoever wrote it anew need not have kept the rows of an object together.
            columns.append(replace(column, role="") if column.role in ("ra", "dec", "object_id") else column)
    made_from: tuple[str, ...] = ()
    if healpix not in schema.names and set(position) <= set(schema.names):
        columns.insert(0, Column(healpix, pa.int64(), description=f"HEALPix index, NESTED, order {MAX_ORDER}"))
        same = properties.get("hats_col_healpix", "")
        deepest = properties.get("hats_col_healpix_order", str(MAX_ORDER)) == str(MAX_ORDER)
        made_from = (same,) if deepest and same in schema.names else position
    return Schema(tuple(columns)).to_arrow().with_metadata(schema.metadata), made_from


def _listed(path: Place, suffix: str) -> list[str]:
    """Return the paths of the leaves that the catalogue lists, or else has."""
    if (path / "partition_info.csv").is_file():
        lines = (path / "partition_info.csv").read_text(encoding="utf-8").splitlines()
        return [leaf_path(Pixel(int(row["Norder"]), int(row["Npix"])), suffix) for row in csv.DictReader(lines)]
    if not isinstance(path, Path):
        return []
    found = path.glob(f"dataset/Norder=*/Dir=*/Npix=*{suffix.removesuffix('/')}")
    return [leaf_path(Pixel.from_hats_path(leaf.as_posix()), suffix) for leaf in sorted(found)]


def _summed(counts: Iterable[tuple[str, int]]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for name, n in counts:
        rows[name] = rows.get(name, 0) + n
    return rows


def _rows(file: Place) -> int:
    with opened(file) as source:
        return int(pq.read_metadata(source).num_rows)
