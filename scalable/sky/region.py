"""Regions of the sky: which positions lie in them, and which HEALPix cells may hold such positions."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalable.sky.healpix import cone_ranges, covering, to_pixels, unit_vectors

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


class Region(Protocol):
    """A part of the sky, borders included as far as rounding lets them; frozen, cheap on the wire."""

    def parameters(self) -> dict[str, Any]:
        """Return what makes it, as JSON can hold it."""

    def contains(self, ra_deg: Float, dec_deg: Float) -> Bool:
        """Return which positions [deg], shape (n,), lie inside; one that is not finite does not."""

    def ranges(self) -> Int:
        """Return order-29 ranges, shape (n, 2), of cells that hold all of it, and some more."""


@dataclass(frozen=True)
class Cone:
    """All positions within a radius of a centre."""

    ra_deg: float
    dec_deg: float
    radius_arcsec: float

    def __post_init__(self) -> None:
        """Refuse what is no cone."""
        if not (0 < self.radius_arcsec <= 648_000 and -90 <= self.dec_deg <= 90 and math.isfinite(self.ra_deg)):
            raise ValueError(
                f"no cone: radius {self.radius_arcsec} arcsec about right ascension {self.ra_deg} and declination "
                f"{self.dec_deg} deg"
            )

    def parameters(self) -> dict[str, Any]:
        """Return centre and radius."""
        return {"ra_deg": self.ra_deg, "dec_deg": self.dec_deg, "radius_arcsec": self.radius_arcsec}

    def contains(self, ra_deg: Float, dec_deg: Float) -> Bool:
        """Compare chords, which are accurate for small and large radii."""
        centre = unit_vectors(np.array([self.ra_deg]), np.array([self.dec_deg]))
        chord = np.sqrt(((unit_vectors(ra_deg, dec_deg) - centre) ** 2).sum(axis=1))
        inside: Bool = chord <= 2 * math.sin(math.radians(self.radius_arcsec / 3600) / 2)
        return inside

    def ranges(self) -> Int:
        """Cut cells about the centre."""
        return cone_ranges(self.ra_deg, self.dec_deg, self.radius_arcsec)


@dataclass(frozen=True)
class Box:
    """All positions between two meridians and two parallels; eastwards from the first right ascension, over 0 if need be."""

    ra_deg: tuple[float, float]
    dec_deg: tuple[float, float]

    def __post_init__(self) -> None:
        """Refuse what is no box."""
        if not (all(map(math.isfinite, self.ra_deg)) and -90 <= self.dec_deg[0] <= self.dec_deg[1] <= 90):
            raise ValueError(
                f"no box: right ascension {self.ra_deg[0]} to {self.ra_deg[1]}, declination {self.dec_deg[0]} to "
                f"{self.dec_deg[1]} deg; give the smaller declination first"
            )

    def parameters(self) -> dict[str, Any]:
        """Return the limits."""
        return {"ra_deg": self.ra_deg, "dec_deg": self.dec_deg}

    @property
    def _meridians(self) -> tuple[float, float] | None:
        """The limits in [0, 360), or None for the full turn."""
        west, east = self.ra_deg
        return None if east - west >= 360 else (west % 360, east % 360)

    def contains(self, ra_deg: Float, dec_deg: Float) -> Bool:
        """Compare with the limits."""
        inside: Bool = (dec_deg >= self.dec_deg[0]) & (dec_deg <= self.dec_deg[1]) & np.isfinite(ra_deg)
        if self._meridians:
            west, east = self._meridians
            turned = np.mod(ra_deg, 360.0)
            after, before = turned >= west, turned <= east
            inside &= (after & before) if west <= east else (after | before)
        return inside

    def ranges(self) -> Int:
        """Cut cells by a lower bound of their distance to the nearest limit."""
        return covering(self._distance)

    def _distance(self, ra_deg: Float, dec_deg: Float) -> Float:
        to_limits = [np.radians(self.dec_deg[0] - dec_deg), np.radians(dec_deg - self.dec_deg[1])]
        if self._meridians:
            apart = [np.radians(ra_deg - limit) for limit in self._meridians]
            # A meridian ends at the poles: what lies behind it is nearest to one of them.
            side = [np.arcsin(np.minimum(1.0, np.cos(np.radians(dec_deg)) * np.abs(np.sin(angle)))) for angle in apart]
            behind = np.radians(90 - np.abs(dec_deg))
            nearest = np.minimum(*(np.where(np.cos(a) >= 0, s, behind) for a, s in zip(apart, side, strict=True)))
            to_limits.append(np.where(Box(self.ra_deg, (-90.0, 90.0)).contains(ra_deg, dec_deg), -nearest, nearest))
        return np.maximum.reduce(to_limits)


@dataclass(frozen=True)
class Polygon:
    """The inside of a polygon whose sides are great circles, less than a hemisphere large.

    Seen from the centre of the sphere, projected on the plane that touches it amid the corners, great circles are straight lines;
    so poles and right ascension 0 are places as any other. Where sides cross each other, the even-odd rule decides.
    """

    vertices_deg: tuple[tuple[float, float], ...]

    def __post_init__(self) -> None:
        """Refuse what is no polygon."""
        corners = np.array(self.vertices_deg, dtype=np.float64).reshape(-1, 2) if self.vertices_deg else np.zeros((0, 2))
        if len(corners) < 3 or not np.isfinite(corners).all() or (np.abs(corners[:, 1]) > 90).any():
            raise ValueError(
                f"no polygon: it needs at least three corners (right ascension, declination) [deg], not {self.vertices_deg}"
            )
        total = unit_vectors(corners[:, 0], corners[:, 1]).sum(axis=0)
        if np.linalg.norm(total) < 1e-9 or (self._frame()[1][:, 2] < 0.01).any():
            raise ValueError("no polygon: its corners do not fit into one hemisphere, so it has two insides; cut it in parts")

    def parameters(self) -> dict[str, Any]:
        """Return the corners."""
        return {"vertices_deg": self.vertices_deg}

    def _frame(self) -> tuple[Float, Float]:
        """Return axes of which the third points amid the corners, as columns, and the corners along them."""
        corners = unit_vectors(*np.array(self.vertices_deg, dtype=np.float64).T)
        middle = corners.sum(axis=0) / np.linalg.norm(corners.sum(axis=0))
        first = np.cross(middle, np.eye(3)[np.argmin(np.abs(middle))])
        first /= np.linalg.norm(first)
        axes = np.column_stack([first, np.cross(middle, first), middle])
        return axes, corners @ axes

    def contains(self, ra_deg: Float, dec_deg: Float) -> Bool:
        """Count in the plane how many sides a line from each position crosses."""
        axes, corners = self._frame()
        along = unit_vectors(ra_deg, dec_deg) @ axes
        ahead = along[:, 2] > 0
        inside = np.zeros(len(along), dtype=bool)
        x, y = (along[ahead, :2] / along[ahead, 2:]).T
        u, v = (corners[:, :2] / corners[:, 2:]).T
        odd = np.zeros(len(x), dtype=bool)
        for i in range(len(u)):
            straddles = (v[i - 1] > y) != (v[i] > y)
            side = (u[i] - u[i - 1]) * (y - v[i - 1]) - (x - u[i - 1]) * (v[i] - v[i - 1])
            odd ^= straddles & ((side > 0) == (v[i] > v[i - 1]))
        inside[ahead] = odd
        return inside

    def ranges(self) -> Int:
        """Cut cells by their distance to the nearest side."""
        return covering(self._distance)

    def _distance(self, ra_deg: Float, dec_deg: Float) -> Float:
        points, corners = unit_vectors(ra_deg, dec_deg), unit_vectors(*np.array(self.vertices_deg, dtype=np.float64).T)
        nearest = np.full(len(points), np.pi)
        for a, b in zip(np.roll(corners, 1, axis=0), corners, strict=True):
            nearest = np.minimum(nearest, 2 * np.arcsin(np.minimum(1.0, np.linalg.norm(points - b, axis=1) / 2)))
            normal = np.cross(a, b)
            length = np.linalg.norm(normal)
            if length > 0:
                normal /= length
                beside = (points @ np.cross(normal, a) >= 0) & (points @ np.cross(b, normal) >= 0)
                nearest = np.where(beside, np.minimum(nearest, np.arcsin(np.minimum(1.0, np.abs(points @ normal)))), nearest)
        return np.where(self.contains(ra_deg, dec_deg), -nearest, nearest)


@dataclass(frozen=True, eq=False)
class Moc:
    """A coverage map: sorted, disjoint half-open order-29 ranges, shape (n, 2)."""

    cells: Int

    def parameters(self) -> dict[str, Any]:
        """Return a digest, which tells maps apart, and the share of the sky."""
        share = float((self.cells[:, 1] - self.cells[:, 0]).sum() / (12 << 58))
        return {"sha256": hashlib.sha256(self.cells.tobytes()).hexdigest(), "sky_fraction": share}

    def contains(self, ra_deg: Float, dec_deg: Float) -> Bool:
        """Find each position's order-29 cell among the ranges."""
        inside = np.isfinite(ra_deg) & (np.abs(dec_deg) <= 90)
        pixels = to_pixels(ra_deg[inside], dec_deg[inside])
        before = np.searchsorted(self.cells[:, 0], pixels, side="right") - 1
        inside[inside] = (before >= 0) & (pixels < np.append(self.cells[:, 1], 0)[before])
        return inside

    def ranges(self) -> Int:
        """Return the map itself."""
        return self.cells


def polygon(vertices_deg: Sequence[Sequence[float]]) -> Polygon:
    """Return a polygon from corners (right ascension, declination) [deg] of any sequence or array."""
    try:
        return Polygon(tuple((float(ra), float(dec)) for ra, dec in vertices_deg))
    except TypeError as error:
        raise ValueError(f"no polygon: corners are pairs (right ascension, declination) [deg], not {vertices_deg!r}") from error
