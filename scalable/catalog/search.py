"""Finding objects: in a region of the sky, or by id. Leaves that cannot hold a match are never read."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.catalog.leaves_in import in_regions
from scalable.catalog.light_curves import floats
from scalable.catalog.steps import LeafLoader
from scalable.errors import StoreError
from scalable.io.layout import read_properties
from scalable.io.moc import parse_moc, read_moc
from scalable.sky.pixel import Pixel
from scalable.sky.region import Box, Cone, Region, polygon


@dataclass(frozen=True)
class InRegion:
    """Keep the rows whose object lies in a region."""

    name: ClassVar[str]
    region: Region
    columns: tuple[str, str]

    def parameters(self) -> dict[str, Any]:
        """Return the region."""
        return self.region.parameters()

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the same columns."""
        return schema

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return what is wanted, and the position."""
        return [*wanted, *self.columns]

    def apply(self, table: pa.Table) -> pa.Table:
        """Test every row."""
        ra, dec = (floats(table, name) for name in self.columns)
        return table.filter(pa.array(self.region.contains(ra, dec)))


class InCone(InRegion):
    """Keep the rows whose object lies in a cone."""

    name = "cone_search"


class InBox(InRegion):
    """Keep the rows whose object lies in a box."""

    name = "box_search"


class InPolygon(InRegion):
    """Keep the rows whose object lies in a polygon."""

    name = "polygon_search"


class InMoc(InRegion):
    """Keep the rows whose object lies in a coverage map."""

    name = "moc_search"


@dataclass(frozen=True)
class Ids:
    """Keep the rows of some objects."""

    name: ClassVar[str] = "id_search"
    ids: tuple[int, ...]

    def parameters(self) -> dict[str, Any]:
        """Return how many objects were asked for: which ones were found, the rows say."""
        return {"objects": len(self.ids)}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the same columns."""
        return schema

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return what is wanted, and the id."""
        return [*wanted, "object_id"]

    def apply(self, table: pa.Table) -> pa.Table:
        """Filter."""
        return table.filter(pc.is_in(table["object_id"], pa.array(self.ids, pa.int64())))


def cone_search(catalog: Catalog, *, ra_deg: float, dec_deg: float, radius_arcsec: float) -> Catalog:
    """Return the rows of objects within ``radius_arcsec`` of a position; nothing is computed, other leaves are dropped.

    Parameters
    ----------
    catalog : Catalog
        Objects or detections (of which all whose *object* lies in the cone are kept).
    ra_deg, dec_deg : float
        Centre, ICRS [deg].
    radius_arcsec : float
        Radius, up to 180 degrees.
    """
    return _search(catalog, InCone, Cone(ra_deg, dec_deg, radius_arcsec))


def box_search(catalog: Catalog, *, ra_deg: tuple[float, float], dec_deg: tuple[float, float]) -> Catalog:
    """Return the rows of objects between two meridians and two parallels; nothing is computed, other leaves are dropped.

    Parameters
    ----------
    catalog : Catalog
        Objects or detections.
    ra_deg : (float, float)
        Right ascension [deg], eastwards from the first to the second: ``(350, 10)`` goes over 0.
    dec_deg : (float, float)
        Lowest and highest declination [deg].
    """
    (west, east), (south, north) = ra_deg, dec_deg
    return _search(catalog, InBox, Box((west, east), (south, north)))


def polygon_search(catalog: Catalog, *, vertices_deg: Sequence[Sequence[float]]) -> Catalog:
    """Return the rows of objects inside a polygon of great circles; nothing is computed, other leaves are dropped.

    Parameters
    ----------
    catalog : Catalog
        Objects or detections.
    vertices_deg : sequence of (float, float), or array of shape (n, 2)
        Right ascension and declination of the corners [deg], in either direction, within one hemisphere.
    """
    return _search(catalog, InPolygon, polygon(vertices_deg))


def moc_search(catalog: Catalog, *, moc: str | Path) -> Catalog:
    """Return the rows of objects inside a coverage map; nothing is computed, other leaves are dropped.

    Parameters
    ----------
    catalog : Catalog
        Objects or detections.
    moc : str or Path
        The map as text (``"4/30-33 38"``, or JSON), or the path of a FITS, JSON or ASCII file; needs the extra ``moc``.
    """
    text = isinstance(moc, str) and (moc.lstrip().startswith("{") or bool(re.match(r"\s*\d+/", moc)))
    return _search(catalog, InMoc, parse_moc(str(moc)) if text else read_moc(Path(moc)))


def _search(catalog: Catalog, step: type[InRegion], region: Region) -> Catalog:
    catalog.need_positions(step.name)
    ra, dec = (catalog.columns.by_role(role)[0].name for role in ("ra", "dec"))
    near = catalog.on_leaves(in_regions(catalog.leaves, [region])) if catalog.leaves else catalog
    return near.then(step(region, (ra, dec)))


def id_search(source: Collection | Catalog, ids: Sequence[int]) -> Catalog:
    """Return the rows of some objects; only the index is read now, and only leaves that hold them later.

    Parameters
    ----------
    source : Collection or Catalog
        A collection stands for its objects.
    ids : sequence of int
        Object ids; unknown ones give no row.
    """
    catalog = source.objects if isinstance(source, Collection) else source
    catalog.need_positions("id_search")
    wanted = tuple(int(i) for i in ids)
    pixels = _pixels_of(catalog, wanted)
    return catalog.on_leaves([leaf for leaf in catalog.leaves if leaf.pixel in pixels]).then(Ids(wanted))


def _pixels_of(catalog: Catalog, ids: tuple[int, ...]) -> set[Pixel]:
    loader = catalog.chain.loader
    if not isinstance(loader, LeafLoader):
        raise StoreError(f"{catalog.title} comes from earlier tasks and has no index; search before the verb that combines")
    if loader.foreign:
        raise StoreError(f"{catalog.title} has no index on object_id of ours; use where() with a condition on its id column")
    collection = Path(loader.root).parent
    member = read_properties(collection / "collection.properties").get("default_index") or ""
    indexes = read_properties(collection / "collection.properties").get("all_indexes", "").split()
    folder = collection / dict(zip(indexes[::2], indexes[1::2], strict=True)).get(member, "") / "dataset"
    table = pq.ParquetDataset(folder / "index", filters=pc.field("object_id").isin(list(ids))).read(["Norder", "Npix"])
    return {Pixel(order, index) for order, index in zip(*(table[name].to_pylist() for name in ("Norder", "Npix")), strict=True)}
