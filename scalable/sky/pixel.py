"""HEALPix pixels in the NESTED scheme, ordered along the sky."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import total_ordering

MAX_ORDER = 29


@total_ordering
@dataclass(frozen=True)
class Pixel:
    """One HEALPix pixel, NESTED; pixels of mixed orders sort along the sky."""

    order: int
    index: int

    def __post_init__(self) -> None:
        """Refuse what is no pixel."""
        if not 0 <= self.order <= MAX_ORDER or not 0 <= self.index < 12 << 2 * self.order:
            raise ValueError(f"no HEALPix pixel of order {self.order} and index {self.index}")

    def __lt__(self, other: Pixel) -> bool:
        """Order along the sky; of two nested pixels the larger comes first."""
        return (self.start, self.order) < (other.start, other.order)

    @property
    def start(self) -> int:
        """First order-29 index inside this pixel."""
        return self.index << 2 * (MAX_ORDER - self.order)

    @property
    def stop(self) -> int:
        """First order-29 index after this pixel."""
        return (self.index + 1) << 2 * (MAX_ORDER - self.order)

    @property
    def hats_path(self) -> str:
        """Path of this pixel's leaf below a HATS catalogue, as the HATS note spells it."""
        return f"dataset/Norder={self.order}/Dir={self.index // 10000 * 10000}/Npix={self.index}.parquet"

    @classmethod
    def from_hats_path(cls, path: str) -> Pixel:
        """Read the pixel from the path of a leaf."""
        match = re.search(r"Norder=(\d+)/Dir=\d+/Npix=(\d+)", path)
        if match is None:
            raise ValueError(f"{path!r} names no HATS leaf")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:  # noqa: D105
        return f"order {self.order} pixel {self.index}"
