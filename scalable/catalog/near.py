"""Rows of a catalogue in and around a pixel, found and loaded leaf by leaf: what verbs on two or more catalogues share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.catalog import Catalog
from scalable.catalog.light_curves import floats, rows_of, whole
from scalable.catalog.steps import Chain, LeafLoader
from scalable.errors import ColumnError, StoreError
from scalable.io.layout import HEALPIX_COLUMN, LeafInfo, Margin, read_margin, read_pixels
from scalable.io.remote import place
from scalable.kernels.partition import unit_vectors
from scalable.sky.healpix import around_pixel, neighbour_ranges, ring_order, with_ring
from scalable.sky.pixel import Pixel

Int = NDArray[np.int64]
Leaves = tuple[LeafInfo, ...]


@dataclass(frozen=True)
class Near:
    """Rows of one side in and around a pixel, along the sky: where they stand, and in which leaf and row they are found."""

    pixel: Int
    vectors: NDArray[np.float64]
    leaf: Int
    row: Int


@dataclass(frozen=True)
class Side:
    """One of the two catalogues: how its rows are loaded, its fields, and the names of its position."""

    chain: Chain
    fields: tuple[pa.Field, ...]
    position: tuple[str, str]
    margin: Margin | None

    @property
    def sky(self) -> tuple[str, str, str]:
        """The columns that say where a row is."""
        return (HEALPIX_COLUMN, *self.position)

    def near(self, leaves: Sequence[LeafInfo], ranges: Int) -> Near:
        """Load the positions of the rows that lie in some order-29 ranges, along the sky."""
        pixels, vectors, numbers, rows = [], [np.zeros((0, 3))], [], []
        for number, leaf in enumerate(leaves):
            table = self.chain.load(leaf, self.sky)
            pixel = table[HEALPIX_COLUMN].to_numpy()
            inside = np.flatnonzero(pixel < np.append(ranges[:, 1], 0)[np.searchsorted(ranges[:, 0], pixel, side="right") - 1])
            ra, dec = (floats(table, name)[inside] for name in self.position)
            pixels.append(pixel[inside])
            vectors.append(unit_vectors(ra, dec))
            numbers.append(np.full(len(inside), number))
            rows.append(inside)
        flat = [np.concatenate([np.zeros(0, dtype=np.int64), *arrays]) for arrays in (pixels, numbers, rows)]
        found = Near(flat[0], np.concatenate(vectors), flat[1], flat[2])
        if (flat[0][1:] >= flat[0][:-1]).all():
            return found
        # Leaves lie along the sky, but for margins.
        along = np.argsort(found.pixel, kind="stable")
        return Near(found.pixel[along], found.vectors[along], found.leaf[along], found.row[along])

    def take(self, leaves: Sequence[LeafInfo], near: Near, wanted: Int, columns: Sequence[str]) -> pa.Table:
        """Return columns of the ``wanted`` rows of ``near``, nulls for -1; leaves of which no row is wanted are not read."""
        fields = pa.schema([field for field in self.fields if field.name in columns])
        there = np.flatnonzero(wanted >= 0)
        leaf, row = near.leaf[wanted[there]], near.row[wanted[there]]
        counts = np.bincount(leaf)
        numbers = sorted(np.flatnonzero(counts).tolist(), key=counts.__getitem__) if columns else []
        tables, filled, index = [fields.empty_table()], 0, np.full(len(wanted), -1, dtype=np.int64)
        for number in numbers:
            mine = leaf == number
            table, place = self.chain.load(leaves[number], fields.names).cast(fields), row[mine]
            # The leaf that gives most is gathered from once; of the others, only what is wanted stays in memory.
            if number != numbers[-1]:
                table, place = _rows(table, place), np.arange(len(place))
            index[there[mine]] = filled + place
            filled += table.num_rows
            tables.append(table)
        return _rows(pa.concat_tables(tables), index)


def _rows(table: pa.Table, index: Int) -> pa.Table:
    return pa.table([rows_of(whole(column), index) for column in table.columns], schema=table.schema)


def side_of(catalog: Catalog, verb: str) -> Side:
    """Return how the rows of a catalogue of leaves are loaded.

    Raises
    ------
    ColumnError, StoreError
        If it has no positions or no leaves; names the verb.
    """
    leaves = [leaf for partition in catalog.partitions for leaf in (partition if isinstance(partition, tuple) else (None,))]
    if not all(isinstance(leaf, LeafInfo) for leaf in leaves):
        raise StoreError(
            f"{catalog.title} comes from earlier tasks and has no leaves; {verb} before the verb that combines, or "
            "write_catalog() it and open the result"
        )
    catalog.need_positions(verb)
    if HEALPIX_COLUMN not in catalog.columns:
        raise ColumnError(f"{verb} needs {HEALPIX_COLUMN} of {catalog.title}; keep it in select()")
    ra, dec = (catalog.columns.by_role(role)[0].name for role in ("ra", "dec"))
    # Names and types alone: meanings stand in the schema of the result.
    fields = tuple(pa.field(field.name, field.type) for field in catalog.schema)
    return Side(catalog.chain, fields, (ra, dec), _margin(catalog))


def _margin(catalog: Catalog) -> Margin | None:
    """Return the margin of a catalogue on disk of which no leaf was left out: its rows are those of all leaves."""
    loader = catalog.chain.loader
    if not isinstance(loader, LeafLoader) or (margin := read_margin(place(loader.root))) is None:
        return None
    return margin if {leaf.pixel for leaf in catalog.leaves} == read_pixels(place(loader.root)) else None


def ranges_around(pixel: Pixel, reach_arcsec: float) -> Int:
    """Return order-29 ranges, shape (n, 2), that hold a pixel and all within a reach of it, and little more."""
    # A ring of cells a sixteenth of the pixel wide is quick to find and adds little.
    if pixel.order + 4 <= ring_order(reach_arcsec):
        return with_ring(pixel, pixel.order + 4)
    return around_pixel(pixel, radius_arcsec=reach_arcsec)


def leaves_around(pixels: Sequence[Pixel], reach_arcsec: float, tiling: Tiling, margin: Margin | None) -> Iterator[Leaves]:
    """Yield for each pixel the leaves that may hold something within a reach of it.

    A pixel inside one leaf stands with it and its margin, if that reaches far enough. Any other that is wider than the reach
    stands with its neighbours, which are found for thousands at once: who loads the leaves finds out which of them are near.
    """
    wide = [pixel for pixel in pixels if pixel.order <= ring_order(reach_arcsec)]
    ranges = dict(zip(wide, neighbour_ranges(wide), strict=True))
    for pixel in pixels:
        if margin and reach_arcsec <= margin.threshold_arcsec:
            inside = tiling.within(np.array([[pixel.start, pixel.stop]]))
            if len(inside) == 1 and inside[0].pixel.order <= pixel.order:
                yield (*inside, *margin.leaf(inside[0].pixel))
                continue
        found = ranges.get(pixel)
        yield tiling.within(ranges_around(pixel, reach_arcsec) if found is None else found)


class Tiling:
    """The leaves of one tiling along the sky, found by where they are."""

    def __init__(self, leaves: Sequence[LeafInfo]) -> None:
        along = sorted(((leaf.pixel, leaf) for leaf in leaves), key=lambda pair: pair[0])
        self.leaves = [leaf for _, leaf in along]
        self.starts = np.array([pixel.start for pixel, _ in along], dtype=np.int64)
        self.stops = np.array([pixel.stop for pixel, _ in along], dtype=np.int64)

    def within(self, ranges: Int) -> tuple[LeafInfo, ...]:
        """Return the leaves that share sky with some order-29 ranges."""
        first = np.searchsorted(self.stops, ranges[:, 0], side="right")
        last = np.searchsorted(self.starts, ranges[:, 1], side="left")
        found = {number for a, b in zip(first.tolist(), last.tolist(), strict=True) for number in range(a, b)}
        return tuple(self.leaves[number] for number in sorted(found))

    def uncovered(self, pixel: Pixel) -> Iterator[Pixel]:
        """Yield the largest pixels that fill what no leaf covers of a pixel."""
        inside = self.within(np.array([[pixel.start, pixel.stop]]))
        if not inside:
            yield pixel
        elif inside[0].pixel.order > pixel.order:
            for child in range(4):
                yield from self.uncovered(Pixel(pixel.order + 1, 4 * pixel.index + child))


def inside(index: Int, pixel: Pixel) -> NDArray[np.bool_]:
    """Return which order-29 pixels lie in a pixel."""
    return (index >= pixel.start) & (index < pixel.stop)
