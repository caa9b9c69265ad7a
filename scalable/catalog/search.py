"""Finding objects: in a cone on the sky, or by id. Leaves that cannot hold a match are never read."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.catalog.light_curves import floats
from scalable.catalog.steps import LeafLoader
from scalable.errors import StoreError
from scalable.io.layout import read_properties
from scalable.kernels.partition import unit_vectors
from scalable.sky.healpix import cone_ranges
from scalable.sky.pixel import Pixel


@dataclass(frozen=True)
class Cone:
    """Keep the rows whose object lies within a radius of a position."""

    name: ClassVar[str] = "cone_search"
    ra_deg: float
    dec_deg: float
    radius_arcsec: float
    columns: tuple[str, str]

    def parameters(self) -> dict[str, Any]:
        """Return the cone."""
        return {"ra_deg": self.ra_deg, "dec_deg": self.dec_deg, "radius_arcsec": self.radius_arcsec}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the same columns."""
        return schema

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return what is wanted, and the position."""
        return [*wanted, *self.columns]

    def apply(self, table: pa.Table) -> pa.Table:
        """Compare chords, which are accurate for small and large radii."""
        ra, dec = (floats(table, name) for name in self.columns)
        centre = unit_vectors(np.array([self.ra_deg]), np.array([self.dec_deg]))
        chord = np.sqrt(((unit_vectors(ra, dec) - centre) ** 2).sum(axis=1))
        return table.filter(pa.array(chord <= 2 * math.sin(math.radians(self.radius_arcsec / 3600) / 2)))


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
    if not 0 < radius_arcsec <= 648_000 or not -90 <= dec_deg <= 90:
        raise ValueError(f"no cone: radius {radius_arcsec} arcsec about declination {dec_deg} deg")
    catalog.need_positions("cone_search")
    ranges = cone_ranges(ra_deg, dec_deg, radius_arcsec)
    near = [leaf for leaf in catalog.leaves if ((ranges[:, 1] > leaf.pixel.start) & (ranges[:, 0] < leaf.pixel.stop)).any()]
    columns = tuple(catalog.columns.by_role(role)[0].name for role in ("ra", "dec"))
    return catalog.on_leaves(near).then(Cone(ra_deg, dec_deg, radius_arcsec, (columns[0], columns[1])))


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
    collection = Path(loader.root).parent
    member = read_properties(collection / "collection.properties").get("default_index") or ""
    indexes = read_properties(collection / "collection.properties").get("all_indexes", "").split()
    folder = collection / dict(zip(indexes[::2], indexes[1::2], strict=True)).get(member, "") / "dataset"
    table = pq.ParquetDataset(folder / "index", filters=pc.field("object_id").isin(list(ids))).read(["Norder", "Npix"])
    return {Pixel(order, index) for order, index in zip(*(table[name].to_pylist() for name in ("Norder", "Npix")), strict=True)}
