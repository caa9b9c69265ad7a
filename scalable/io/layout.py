"""The HATS layout (IVOA note): properties, partition list, metadata files, collections and the index on the id."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from scalable.errors import StoreError
from scalable.io.atomic import write_text
from scalable.io.foreign_layout import foreign_leaves, placed
from scalable.io.parquet import Leaf, read_schema, write_common_metadata, write_footers
from scalable.io.remote import Place, opened
from scalable.schema import Schema
from scalable.sky.pixel import MAX_ORDER, Pixel

HEALPIX_COLUMN = "_healpix_29"
BUILDER = "scalable"
META_KEY = b"scalable"
"""Key of the schema metadata that hold the survey's name and bands, as JSON."""


@dataclass(frozen=True)
class LeafInfo:
    """One leaf of a catalogue on disk: its path below the catalogue, rows and size in memory."""

    path: str
    rows: int
    decoded_bytes: int

    @property
    def on_sky(self) -> bool:
        """Whether it holds a pixel of the sky, or a block of a table without positions."""
        return "Npix=" in self.path

    @property
    def pixel(self) -> Pixel:
        """Pixel of a leaf on the sky."""
        return Pixel.from_hats_path(self.path)


@dataclass(frozen=True)
class Layout:
    """What a HATS catalogue folder says about itself; leaves in order along the sky.

    ``made_from`` are the columns that ``_healpix_29`` is made from, where the leaves of another tool have none.
    """

    path: Place
    name: str
    properties: Mapping[str, str]
    schema: pa.Schema
    leaves: tuple[LeafInfo, ...]
    made_from: tuple[str, ...] = ()

    @property
    def foreign(self) -> bool:
        """Whether another tool made it."""
        return self.properties.get("hats_builder", BUILDER) != BUILDER


def finish_catalog(
    folder: Path,
    leaves: Sequence[Leaf],
    *,
    schema: pa.Schema,
    name: str,
    product: str,
    position: tuple[str, str],
    date: str,
    margin: tuple[str, float] | None = None,
) -> None:
    """Write everything a HATS catalogue holds beside its leaves.

    Parameters
    ----------
    folder : Path
        The catalogue; its leaves are in place.
    leaves : sequence of Leaf
        What the tasks wrote, in any order.
    schema : pyarrow.Schema
        Common to all leaves.
    name, product : str
        ``obs_collection`` and ``dataproduct_type`` (``object`` or ``source``).
    position : (str, str)
        Names of the columns with right ascension and declination [deg].
    date : str
        Creation date, ISO 8601; given, so that a rerun writes the same bytes.
    margin : (str, float), optional
        For a margin: the folder of its primary catalogue beside it, and the threshold [arcsec].
    """
    by_sky = sorted(leaves, key=lambda leaf: Pixel.from_hats_path(leaf.path))
    pixels = [Pixel.from_hats_path(leaf.path) for leaf in by_sky]
    rows = io.StringIO()
    writer = csv.writer(rows, lineterminator="\n")
    writer.writerow(["Norder", "Npix"])
    # Breadth-first, as the note asks: by order, then by index.
    writer.writerows(sorted((pixel.order, pixel.index) for pixel in pixels))
    write_text(folder / "partition_info.csv", rows.getvalue())
    write_common_metadata(schema, folder / "dataset" / "_common_metadata")
    write_footers([leaf.footer for leaf in by_sky], folder / "dataset" / "_metadata")
    _write_properties(
        folder,
        {
            "obs_collection": name,
            "dataproduct_type": product,
            "hats_col_ra": position[0],
            "hats_col_dec": position[1],
            "hats_col_healpix": HEALPIX_COLUMN,
            "hats_col_healpix_order": str(MAX_ORDER),
            "hats_nrows": str(sum(leaf.rows for leaf in leaves)),
            "hats_npix_suffix": ".parquet",
            "hats_order": str(max(pixel.order for pixel in pixels)),
            "hats_builder": BUILDER,
            "hats_creation_date": date,
            "hats_version": "v1.0",
            "hats_estsize": str(sum(leaf.size_bytes for leaf in leaves) // 1024),
            "moc_sky_fraction": f"{sum(1 / (12 * 4**pixel.order) for pixel in pixels):.10g}",
            **({"hats_primary_table_url": margin[0], "hats_margin_threshold": f"{margin[1]:g}"} if margin else {}),
        },
    )


def finish_index(folder: Path, parts: Sequence[Leaf], *, schema: pa.Schema, name: str, primary: str, date: str) -> None:
    """Write what an index catalogue, from the values of its first column to pixels, holds beside its parts."""
    write_common_metadata(schema, folder / "dataset" / "_common_metadata")
    write_footers([part.footer for part in parts], folder / "dataset" / "_metadata")
    _write_properties(
        folder,
        {
            "obs_collection": f"{name}_id",
            "dataproduct_type": "index",
            "hats_primary_table_url": primary,
            "hats_index_column": schema.names[0],
            "hats_nrows": str(sum(part.rows for part in parts)),
            "hats_builder": BUILDER,
            "hats_creation_date": date,
            "hats_version": "v1.0",
        },
    )


def finish_collection(folder: Path, *, name: str, primary: str, indexes: Mapping[str, str], margin: str = "") -> None:
    """Write ``collection.properties``: which member is the primary catalogue, which its margin, which are indexes."""
    properties = {"obs_collection": name, "hats_primary_table_url": primary}
    if margin:
        properties |= {"all_margins": margin, "default_margin": margin}
    if indexes:
        properties["all_indexes"] = " ".join(f"{column} {member}" for column, member in indexes.items())
        properties["default_index"] = next(iter(indexes))
    _write(folder / "collection.properties", properties)


def _write_properties(folder: Path, properties: Mapping[str, str]) -> None:
    _write(folder / "hats.properties", properties)
    _write(folder / "properties", properties)


def _write(path: Path, properties: Mapping[str, str]) -> None:
    write_text(path, "".join(f"{key}={value}\n" for key, value in properties.items()))


def read_properties(path: Place) -> dict[str, str]:
    """Read a Java-style properties file of plain ``key = value`` lines."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path}: cannot be read ({getattr(error, 'strerror', error)}); is this a HATS catalogue?") from error
    pairs = (line.partition("=") for line in lines if line.strip() and not line.lstrip().startswith(("#", "!")))
    return {key.strip(): _ESCAPED.sub(_unescaped, value.strip()) for key, _, value in pairs}


_ESCAPED = re.compile(r"\\u([0-9a-fA-F]{4})|\\(.)")


def _unescaped(match: re.Match[str]) -> str:
    return chr(int(match[1], 16)) if match[1] else match[2]


def read_layout(path: Place) -> Layout:
    """Read what a HATS catalogue or collection says about itself; no leaf is opened.

    Raises
    ------
    StoreError
        If the folder is no HATS catalogue, or its metadata do not agree.
    """
    collection = path / "collection.properties"
    if collection.exists():
        path = path / _property(read_properties(collection), "hats_primary_table_url", collection)
    properties = catalog_properties(path)
    made_from: tuple[str, ...] = ()
    if properties.get("hats_builder", BUILDER) == BUILDER:
        schema, rows = _own_leaves(path)
    else:
        schema, rows = foreign_leaves(path, properties)
        schema, made_from = placed(schema, properties, HEALPIX_COLUMN)
    row_bytes = Schema.from_arrow(schema).row_bytes
    # Units stand on the fields; the copies for other readers stay on disk.
    schema = schema.with_metadata({k: v for k, v in (schema.metadata or {}).items() if k == META_KEY})
    along = sorted(rows, key=Pixel.from_hats_path)
    leaves = tuple(LeafInfo(name, rows[name], int(rows[name] * row_bytes)) for name in along)
    return Layout(path, _property(properties, "obs_collection", path / "hats.properties"), properties, schema, leaves, made_from)


def catalog_properties(path: Place) -> dict[str, str]:
    """Read the properties of a catalogue, of which older tools wrote only the copy."""
    if not (path / "hats.properties").is_file() and (path / "properties").is_file():
        properties = read_properties(path / "properties")
        if properties.get("hats_builder", BUILDER) != BUILDER:
            return properties
    return read_properties(path / "hats.properties")


def _own_leaves(path: Place) -> tuple[pa.Schema, dict[str, int]]:
    """Return the schema and the rows of each leaf of a catalogue of ours, which holds all metadata."""
    try:
        schema, metadata = read_footers(path / "dataset")
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path}: metadata of the catalogue cannot be read ({error})") from error
    rows: dict[str, int] = {}
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        name = Pixel.from_hats_path(group.column(0).file_path).hats_path
        rows[name] = rows.get(name, 0) + group.num_rows
    if {pixel.hats_path for pixel in read_pixels(path)} != set(rows):
        raise StoreError(f"{path}: partition_info.csv and _metadata name different leaves; the catalogue is damaged")
    return schema, rows


def read_pixels(path: Place) -> set[Pixel]:
    """Return the pixels that a HATS catalogue, not a collection, has leaves for."""
    try:
        lines = (path / "partition_info.csv").read_text(encoding="utf-8").splitlines()
        return {Pixel(int(row["Norder"]), int(row["Npix"])) for row in csv.DictReader(lines)}
    except (OSError, KeyError, ValueError) as error:
        raise StoreError(f"{path}: partition_info.csv cannot be read ({error!r})") from error


@dataclass(frozen=True)
class Margin:
    """The margin of a catalogue: where its leaves begin, seen from the catalogue, how far it reaches, and its pixels."""

    prefix: str
    threshold_arcsec: float
    pixels: frozenset[Pixel]

    def leaf(self, pixel: Pixel) -> tuple[LeafInfo, ...]:
        """Return the leaf of what lies around a pixel, none where there is nothing."""
        return (LeafInfo(self.prefix + pixel.hats_path, 0, 0),) if pixel in self.pixels else ()


def read_margin(path: Place) -> Margin | None:
    """Return the default margin of the collection that a catalogue of ours on this machine is a member of, if it has one."""
    collection = path.parent / "collection.properties"
    if not isinstance(path, Path) or not collection.exists():
        return None
    properties = read_properties(collection)
    name = properties.get("default_margin", "")
    folder = path.parent / name
    if properties.get("hats_primary_table_url") != path.name or not name or not (folder / "hats.properties").exists():
        return None
    margin = read_properties(folder / "hats.properties")
    if margin.get("hats_builder") != BUILDER:
        return None
    return Margin(f"../{name}/", float(margin["hats_margin_threshold"]), frozenset(read_pixels(folder)))


def read_footers(dataset: Place) -> tuple[pa.Schema, pq.FileMetaData]:
    """Read the schema of a dataset, and the row groups of all its leaves."""
    schema = read_schema(dataset / "_common_metadata")
    with opened(dataset / "_metadata") as file:
        return schema, pq.read_metadata(file)


def _property(properties: Mapping[str, str], key: str, path: Place) -> str:
    if key not in properties:
        raise StoreError(f"{path}: does not say {key}; is this a HATS catalogue?")
    return properties[key]
