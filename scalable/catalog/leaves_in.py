"""Leaves that share sky with regions: the others are never read."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scalable.io.layout import LeafInfo
from scalable.sky.region import Region


def in_regions(leaves: Sequence[LeafInfo], regions: Sequence[Region]) -> list[LeafInfo]:
    """Return the leaves that share sky with every one of some regions."""
    for region in regions:
        ranges = region.ranges()
        # The first range that ends behind the start of a leaf must begin before its end.
        stops, starts = ranges[:, 1], np.append(ranges[:, 0], np.iinfo(np.int64).max)
        leaves = [leaf for leaf in leaves if starts[np.searchsorted(stops, leaf.pixel.start, side="right")] < leaf.pixel.stop]
    return list(leaves)
