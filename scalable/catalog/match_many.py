"""`crossmatch_many`: one row per object seen in any of several catalogues, as a lazy verb on leaves of any tilings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from scalable.catalog.catalog import Catalog
from scalable.catalog.history import recorded
from scalable.catalog.light_curves import nullable
from scalable.catalog.match import HALF_TURN_ARCSEC, SEPARATION
from scalable.catalog.near import Side, Tiling, inside, leaves_around, ranges_around, side_of
from scalable.catalog.steps import Chain
from scalable.errors import ColumnError, nearest
from scalable.io.layout import HEALPIX_COLUMN, LeafInfo
from scalable.kernels.match import match_many
from scalable.schema import Column, Schema
from scalable.sky.pixel import Pixel

KEYS = (HEALPIX_COLUMN, "object_ra", "object_dec")
COUNT = "n_catalogs"
HOWS = ("outer", "inner")


@dataclass(frozen=True)
class ManyLeaf(LeafInfo):
    """A leaf of the result: a pixel, and for each catalogue the leaves that may hold what its rows depend on."""

    near: tuple[tuple[LeafInfo, ...], ...]


@dataclass(frozen=True)
class ManyLoader:
    """Objects of several catalogues in one pixel: matched on positions first, everything else read only where it is needed."""

    sides: tuple[Side, ...]
    names: tuple[str, ...]
    radius_arcsec: float
    inner: bool

    @property
    def pending(self) -> tuple[object, ...]:
        """What is pending: the match."""
        return (self,)

    @property
    def reach_arcsec(self) -> float:
        """How far from a pixel the rows lie that its objects depend on.

        Whether a row of the i-th of N catalogues founds an object depends on the objects within a radius, on the nearest rows of
        these within another, and on whether those were founded, by a catalogue before: on i + 1 radii in all. And which row an
        object gets in the last catalogue depends on the objects within two radii of it.
        """
        return min(HALF_TURN_ARCSEC, (len(self.sides) + 1) * self.radius_arcsec)

    def load(self, leaf: LeafInfo, columns: Sequence[str]) -> pa.Table:
        """Match, and put the columns of all catalogues side by side, along the sky."""
        if not isinstance(leaf, ManyLeaf):
            raise TypeError("a crossmatch loads its own leaves")
        ranges = ranges_around(leaf.pixel, self.reach_arcsec)
        leaves = [Tiling(near).within(ranges) for near in leaf.near]
        sides = [side.near(mine, ranges) for side, mine in zip(self.sides, leaves, strict=True)]
        rows, apart = match_many([side.vectors for side in sides], self.radius_arcsec)
        founder = np.argmax(rows >= 0, axis=1)
        # One more entry, for catalogues without any row here.
        at = np.choose(founder, [np.append(side.pixel, -1)[rows[:, n]] for n, side in enumerate(sides)])
        mine = inside(at, leaf.pixel) & ((rows >= 0).all(axis=1) if self.inner else True)
        order = np.flatnonzero(mine)[np.argsort(at[mine], kind="stable")]
        rows, apart, founder = rows[order], apart[order], founder[order]
        table = {COUNT: pa.array((rows >= 0).sum(axis=1).astype(np.int32))}
        place = {name: [] for name in KEYS}  # type: dict[str, list[pa.ChunkedArray]]
        for n, (side, name) in enumerate(zip(self.sides, self.names, strict=True)):
            wanted = [field.name for field in side.fields if f"{field.name}_{name}" in columns]
            found = side.take(leaves[n], sides[n], rows[:, n], [*wanted, *side.sky])
            table |= {f"{column}_{name}": found[column] for column in wanted}
            table[_separation(name)] = nullable(apart[:, n], pa.float64())
            for key, column in zip(KEYS, side.sky, strict=True):
                place[key].append(found[column])
        for key, choices in place.items():
            table[key] = pa.array(np.choose(founder, [choice.fill_null(0).to_numpy() for choice in choices]))
        return pa.table({name: table[name] for name in columns})

    def __str__(self) -> str:
        """Show what is pending."""
        how = "inner" if self.inner else "outer"
        return f"{how} crossmatch of {', '.join(self.names)} (within {self.radius_arcsec:g} arcsec)"


def crossmatch_many(catalogs: Mapping[str, Catalog], *, radius_arcsec: float, how: str = "outer") -> Catalog:
    """Return one row per object seen in any of several catalogues, the bands of a survey for instance; nothing is computed.

    Catalogues are taken in the order given. Every row of the first is an object. A row of a later one is the object with which it
    makes a pair, each the nearest of the other within the radius, and a new object where there is none. So each row of each
    catalogue is in exactly one object, and none is lost; an object stays at the position at which it was seen first.

    Parameters
    ----------
    catalogs : mapping of str to Catalog
        Catalogues that read leaves and keep ``_healpix_29`` and the position, by the name that their columns are to end in; the
        best positions first.
    radius_arcsec : float
        Largest separation from an object's position [arcsec].
    how : str
        ``outer`` keeps every object; ``inner`` those that all catalogues have.

    Returns
    -------
    Catalog
        ``_healpix_29``, ``object_ra``, ``object_dec`` of the first sighting, ``n_catalogs``, then for each catalogue its columns
        as ``{column}_{name}`` and ``separation_arcsec_{name}``; along the sky, then in the order of founding.

    Raises
    ------
    ColumnError, StoreError, ValueError
        If there are fewer than two, one has no position or no leaves, two columns would share a name, or an argument is out of
        range.
    """
    if len(catalogs) < 2:
        raise ValueError(f"catalogs: {len(catalogs)} given, at least 2 are needed")
    if not 0 < radius_arcsec <= HALF_TURN_ARCSEC:
        raise ValueError(f"radius_arcsec: {radius_arcsec} is not between 0 and {HALF_TURN_ARCSEC:g}")
    if how not in HOWS:
        raise ValueError(f"how: {nearest(how, HOWS)}")
    sides = tuple(side_of(catalog, "crossmatch_many") for catalog in catalogs.values())
    loader = ManyLoader(sides, tuple(catalogs), float(radius_arcsec), how == "inner")
    titles = {name: catalog.title for name, catalog in catalogs.items()}
    earlier = {name: catalog.history for name, catalog in catalogs.items() if catalog.history}
    parameters = {"catalogs": titles, "radius_arcsec": radius_arcsec, "how": how, **({"history_of": earlier} if earlier else {})}
    schema = recorded(_output(catalogs), (), "crossmatch_many", parameters)
    title = " x ".join(catalog.title for catalog in catalogs.values())
    leaves = tuple(_leaves(catalogs, loader, schema))
    whole = Catalog(Chain(loader), (leaves,) if leaves else (), schema, title)
    return whole.repartition(max(catalog.npartitions for catalog in catalogs.values())) if leaves else whole


def _separation(name: str) -> str:
    return f"{SEPARATION}_{name}"


def _output(catalogs: Mapping[str, Catalog]) -> pa.Schema:
    """Return the columns of the result, without data."""
    first = next(iter(catalogs.values()))
    there = (first.columns[HEALPIX_COLUMN], *(first.columns.by_role(role)[0] for role in ("ra", "dec")))
    types = (pa.int64(), pa.float64(), pa.float64())
    columns = [
        replace(column, name=name, dtype=dtype, description=f"{column.description} (first sighting)")
        for name, dtype, column in zip(KEYS, types, there, strict=True)
    ]
    columns.append(Column(COUNT, pa.int32(), role="value", ucd="meta.number", description="Catalogues that have the object"))
    for name, catalog in catalogs.items():
        for column in catalog.columns:
            # The result has one position and no id that all catalogues share.
            role = "value" if column.role in ("ra", "dec", "object_id") else column.role
            error = f"{column.error}_{name}" if column.error else ""
            columns.append(replace(column, name=f"{column.name}_{name}", role=role, error=error))
        text = f"Angle between the object's position and the row of {catalog.title}"
        columns.append(
            Column(_separation(name), pa.float64(), role="value", unit="arcsec", ucd="pos.angDistance", description=text)
        )
    names = [column.name for column in columns]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ColumnError(f"the crossmatch would have two columns {twice[0]!r}; give the catalogues other names")
    return Schema(tuple(columns)).to_arrow()


def _leaves(catalogs: Mapping[str, Catalog], loader: ManyLoader, schema: pa.Schema) -> list[ManyLeaf]:
    """Return the pixels of the first tiling, and of each further one those that none before it covers."""
    row_bytes = Schema.from_arrow(schema).row_bytes
    cut: list[tuple[Pixel, int]] = []
    covered = Tiling(())
    for catalog in catalogs.values():
        for leaf in catalog.leaves:
            cut += [(pixel, leaf.rows >> 2 * (pixel.order - leaf.pixel.order)) for pixel in covered.uncovered(leaf.pixel)]
        covered = Tiling([LeafInfo(pixel.hats_path, rows, 0) for pixel, rows in cut])
    cut.sort()
    tilings = [Tiling(catalog.leaves) for catalog in catalogs.values()]
    pixels, sides = [pixel for pixel, _ in cut], zip(tilings, loader.sides, strict=True)
    around = [leaves_around(pixels, loader.reach_arcsec, tiling, side.margin) for tiling, side in sides]
    return [
        ManyLeaf(pixel.hats_path, rows, int(rows * row_bytes), near)
        for (pixel, rows), near in zip(cut, zip(*around, strict=True), strict=True)
    ]
