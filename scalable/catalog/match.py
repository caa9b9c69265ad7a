"""`crossmatch`: rows of two catalogues that lie near each other on the sky, as a lazy verb on leaves of any two tilings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.catalog import Catalog
from scalable.catalog.history import recorded
from scalable.catalog.light_curves import nullable
from scalable.catalog.near import Near, Side, Tiling, inside, leaves_around, ranges_around, side_of
from scalable.catalog.steps import Chain
from scalable.errors import ColumnError, nearest
from scalable.io.layout import HEALPIX_COLUMN, LeafInfo
from scalable.kernels.match import match_mutual, match_nearest
from scalable.schema import Column, Schema
from scalable.sky.pixel import Pixel

Int = NDArray[np.int64]

SEPARATION = "separation_arcsec"
HOWS = ("inner", "left", "outer")
HALF_TURN_ARCSEC = 648_000.0


@dataclass(frozen=True)
class MatchLeaf(LeafInfo):
    """A leaf of the result: a pixel, and the leaves of both sides that may hold what its rows depend on."""

    left: tuple[LeafInfo, ...]
    right: tuple[LeafInfo, ...]


@dataclass(frozen=True)
class MatchLoader:
    """Rows of a crossmatch in one pixel: matched on positions first, everything else read only where it is needed."""

    left: Side
    right: Side
    title: str
    radius_arcsec: float
    k: int
    how: str
    one_to_one: bool
    suffix: str
    separation: str

    @property
    def two_sided(self) -> bool:
        """Whether a row's fate depends on other left rows too: on the rivals for its partner, or on who matched it."""
        return self.one_to_one or self.how == "outer"

    @property
    def pending(self) -> tuple[object, ...]:
        """What is pending on the left, and the match."""
        return (*self.left.chain.pending, self)

    @property
    def reach_arcsec(self) -> float:
        """How far from a pixel the rows lie that its own depend on: a radius, two where two-sided.

        A partner may have a nearer partner of its own, which is at most a radius further away.
        """
        return min(HALF_TURN_ARCSEC, self.radius_arcsec * (2 if self.two_sided else 1))

    def load(self, leaf: LeafInfo, columns: Sequence[str]) -> pa.Table:
        """Match, and put the columns of both sides side by side, along the sky."""
        if not isinstance(leaf, MatchLeaf):
            raise TypeError("a crossmatch loads its own leaves")
        ranges = ranges_around(leaf.pixel, self.reach_arcsec)
        lefts, rights = (Tiling(leaves).within(ranges) for leaves in (leaf.left, leaf.right))
        left, right = self.left.near(lefts, ranges), self.right.near(rights, ranges)
        left_row, right_row, apart = self._rows(leaf.pixel, left, right)
        mine = [field.name for field in self.left.fields if field.name in columns]
        others = [field.name for field in self.right.fields if field.name + self.suffix in columns]
        more = self.right.sky if self.how == "outer" else ()
        first = self.left.take(lefts, left, left_row, mine)
        second = self.right.take(rights, right, right_row, [*others, *more])
        table = {name: first[name] for name in mine}
        for name, other in zip(self.left.sky, more, strict=False):
            if name in table:
                table[name] = pc.coalesce(table[name], second[other])
        table |= {name + self.suffix: second[name] for name in others}
        table[self.separation] = nullable(apart, pa.float64())
        return pa.table({name: table[name] for name in columns})

    def _rows(self, pixel: Pixel, left: Near, right: Near) -> tuple[Int, Int, NDArray[np.float64]]:
        """Return for each row of the result the left and right row, -1 where there is none, and the separation, then NaN."""
        if self.one_to_one:
            left_row, right_row, apart = match_mutual(left.vectors, right.vectors, self.radius_arcsec)
        else:
            left_row, right_row, apart = match_nearest(left.vectors, right.vectors, self.radius_arcsec, self.k)
        own = inside(left.pixel[left_row], pixel)
        if self.how == "inner":  # Pairs are sorted by left row, and rows lie along the sky.
            return left_row[own], right_row[own], apart[own]
        lone_left = lone_right = np.zeros(0, dtype=np.int64)
        if self.how != "inner":
            lone_left = np.setdiff1d(np.flatnonzero(inside(left.pixel, pixel)), left_row)
        if self.how == "outer":
            lone_right = np.setdiff1d(np.flatnonzero(inside(right.pixel, pixel)), right_row)
        lefts = np.concatenate([left_row[own], lone_left, np.full(len(lone_right), -1)])
        rights = np.concatenate([right_row[own], np.full(len(lone_left), -1), lone_right])
        apart = np.concatenate([apart[own], np.full(len(lone_left) + len(lone_right), np.nan)])
        at = np.concatenate([left.pixel[left_row[own]], left.pixel[lone_left], right.pixel[lone_right]])
        # Stable: pairs of one left row stay in order; right rows without partner come after left rows of the same place.
        order = np.lexsort((np.where(lefts < 0, len(left.pixel), lefts), at))
        return lefts[order], rights[order], apart[order]

    def __str__(self) -> str:
        """Show what is pending."""
        what = "mutual nearest" if self.one_to_one else f"{self.k} nearest"
        return f"{self.how} crossmatch with {self.title} ({what} within {self.radius_arcsec:g} arcsec)"


def crossmatch(
    left: Catalog,
    right: Catalog,
    *,
    radius_arcsec: float,
    k: int = 1,
    how: str = "inner",
    one_to_one: bool = False,
    suffix: str = "_2",
) -> Catalog:
    """Return pairs of rows of two catalogues that lie near each other on the sky; nothing is computed.

    The tilings of the two may differ. Rows near a border are matched with those of neighbouring leaves, whatever the radius: from
    the margin where there is one that reaches far enough and the tilings fit, else from positions in those leaves.

    Parameters
    ----------
    left, right : Catalog
        Catalogues that read leaves and keep ``_healpix_29`` and the position; they may be the same.
    radius_arcsec : float
        Largest separation [arcsec].
    k : int
        Each left row is paired with at most this many right rows, the nearest; of equally near ones, the first along the sky.
    how : str
        ``inner`` keeps pairs; ``left`` also keeps each left row without a partner, once; ``outer`` also each right row that
        is in no pair, once, at its own place: it gives ``_healpix_29`` and the position, all other left columns are null.
    one_to_one : bool
        Keep only pairs in which each is the nearest of the other.
    suffix : str
        What is added to the name of every right column.

    Returns
    -------
    Catalog
        Left columns under their names, right columns, which play no role as position or id any more, and
        ``separation_arcsec`` (with the suffix if the left side has one from an earlier match); along the sky, then by
        left row and separation.

    Raises
    ------
    ColumnError, StoreError, ValueError
        If a side has no position or is no catalogue of leaves, two columns would share a name, or an argument is out of range.
    """
    if not 0 < radius_arcsec <= HALF_TURN_ARCSEC:
        raise ValueError(f"radius_arcsec: {radius_arcsec} is not between 0 and {HALF_TURN_ARCSEC:g}")
    if k < 1 or (one_to_one and k != 1):
        raise ValueError(f"k: {k}; at least 1, and with one_to_one exactly 1")
    if how not in HOWS:
        raise ValueError(f"how: {nearest(how, HOWS)}")
    sides = side_of(left, "crossmatch"), side_of(right, "crossmatch")
    separation = SEPARATION if SEPARATION not in left.columns else SEPARATION + suffix
    schema = _output(left, right, how == "outer", suffix, separation)
    loader = MatchLoader(*sides, right.title, float(radius_arcsec), k, how, one_to_one, suffix, separation)
    parameters = {"with": right.title, "radius_arcsec": radius_arcsec, "k": k, "how": how, "one_to_one": one_to_one}
    earlier = {"history_of_right": right.history} if right.history else {}
    schema = recorded(schema, left.history, "crossmatch", parameters | earlier)
    partitions = _partitions(left, right, loader, schema)
    return Catalog(Chain(loader), partitions, schema, f"{left.title} x {right.title}")


def _output(left: Catalog, right: Catalog, outer: bool, suffix: str, separation: str) -> pa.Schema:
    """Return the columns of the result, without data."""
    columns = list(left.columns)
    if outer:
        here = {HEALPIX_COLUMN, *(left.columns.by_role(role)[0].name for role in ("ra", "dec"))}
        note = "of the right row where there is no left one"
        columns = [replace(c, description=f"{c.description} ({note})".strip()) if c.name in here else c for c in columns]
    for column in right.columns:
        # A catalogue has one position and one id.
        role = "value" if column.role in ("ra", "dec", "object_id") else column.role
        error = column.error + suffix if column.error else ""
        columns.append(replace(column, name=column.name + suffix, role=role, error=error))
    columns.append(
        Column(
            separation,
            pa.float64(),
            role="value",
            unit="arcsec",
            ucd="pos.angDistance",
            description=f"Angle between the row of {left.title} and that of {right.title}",
        )
    )
    names = [column.name for column in columns]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise ColumnError(f"the crossmatch would have two columns {twice[0]!r}; choose another suffix than {suffix!r}")
    return Schema(tuple(columns)).to_arrow().with_metadata(left.schema.metadata)


def _partitions(left: Catalog, right: Catalog, loader: MatchLoader, schema: pa.Schema) -> tuple[tuple[MatchLeaf, ...], ...]:
    """Return the leaves of the left side, each with what it depends on; for ``outer`` also the pixels that only the right has."""
    tilings = left_leaves, right_leaves = Tiling(left.leaves), Tiling(right.leaves)
    row_bytes = Schema.from_arrow(schema).row_bytes

    def matched(cut: Sequence[tuple[Pixel, int, tuple[LeafInfo, ...]]]) -> Iterator[MatchLeaf]:
        pixels = [pixel for pixel, _, _ in cut]
        sides = zip(tilings, (loader.left, loader.right), strict=True)
        around = [leaves_around(pixels, loader.reach_arcsec, tiling, side.margin) for tiling, side in sides]
        for (pixel, rows, own), near_left, near_right in zip(cut, *around, strict=True):
            near_left = near_left if loader.two_sided else own
            yield MatchLeaf(pixel.hats_path, rows, int(rows * row_bytes), near_left, near_right)

    leaves = matched([(leaf.pixel, leaf.rows, (leaf,)) for partition in left.partitions for leaf in partition])
    partitions = tuple(tuple(itertools.islice(leaves, len(partition))) for partition in left.partitions)
    if loader.how != "outer":
        return partitions
    lonely = [
        (pixel, leaf.rows >> 2 * (pixel.order - leaf.pixel.order), ())
        for leaf in right.leaves
        for pixel in left_leaves.uncovered(leaf.pixel)
    ]
    every = sorted([*itertools.chain(*partitions), *matched(lonely)], key=lambda leaf: leaf.pixel)
    whole = Catalog(Chain(loader), (tuple(every),), schema, left.title)
    return whole.repartition(left.npartitions + right.npartitions).partitions if every else ()
