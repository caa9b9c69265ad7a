"""Regions hold what spherical geometry, computed here in another way, says; the cells that cover them lose nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
from cdshealpix import nested
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scalable.sky.healpix import to_pixels
from scalable.sky.region import Box, Cone, Moc, Polygon, Region, polygon

Float = NDArray[np.float64]

CENTRES = [(0.0, 0.0), (359.999, 20.0), (120.0, 90.0), (10.0, -89.9), (45.0, 41.8), (200.0, -33.3)]


def vectors(ra_deg: Float, dec_deg: Float) -> Float:
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)], axis=-1)


def angles(xyz: Float) -> tuple[Float, Float]:
    return np.degrees(np.arctan2(xyz[:, 1], xyz[:, 0])) % 360, np.degrees(np.arctan2(xyz[:, 2], np.hypot(xyz[:, 0], xyz[:, 1])))


def around(centre: tuple[float, float], radius_deg: float | Float, bearing_deg: Float) -> tuple[Float, Float]:
    """Return positions at a distance from a centre, in any directions."""
    middle = vectors(np.array([centre[0]]), np.array([centre[1]]))[0]
    side = np.cross(middle, [0.0, 0.0, 1.0] if abs(middle[2]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    angle, bearing = np.radians(np.broadcast_to(radius_deg, bearing_deg.shape))[:, None], np.radians(bearing_deg)[:, None]
    out = middle * np.cos(angle) + (side * np.cos(bearing) + np.cross(middle, side) * np.sin(bearing)) * np.sin(angle)
    return angles(out)


def scattered(centre: tuple[float, float], radius_deg: float, rng: np.random.Generator, n: int = 4000) -> tuple[Float, Float]:
    """Return positions all over a cone and some on the whole sky."""
    ra, dec = around(centre, rng.uniform(0, radius_deg, n), rng.uniform(0, 360, n))
    far = rng.uniform(0, 360, 500), np.degrees(np.arcsin(rng.uniform(-1, 1, 500)))
    return np.concatenate([ra, far[0]]), np.concatenate([dec, far[1]])


def side_of(points: Float, a: Float, b: Float) -> Float:
    return points @ np.cross(a, b)


def in_triangle(points: Float, corners: Float) -> NDArray[np.bool_]:
    """Return which points lie on one side of all three great circles, and not at the antipodes."""
    sides = [side_of(points, corners[i - 1], corners[i]) for i in range(3)]
    same = np.logical_and.reduce([s > 0 for s in sides]) | np.logical_and.reduce([s < 0 for s in sides])
    return same & (points @ corners.sum(axis=0) > 0)


@pytest.mark.parametrize("centre", CENTRES)
@pytest.mark.parametrize("size_deg", [0.01, 3.0, 60.0])
def test_a_polygon_of_any_shape_is_the_union_of_its_triangles(centre: tuple[float, float], size_deg: float) -> None:
    rng = np.random.default_rng(3)
    bearings = np.sort(rng.uniform(0, 360, 9))
    # A star: every corner at its own distance, so that many angles point inwards.
    corners = [around(centre, size_deg * r, np.array([b])) for r, b in zip(rng.uniform(0.3, 1, 9), bearings, strict=True)]
    vertices = [(ra[0], dec[0]) for ra, dec in corners]
    assert np.diff([*bearings, bearings[0] + 360]).max() < 180
    ra, dec = scattered(centre, 1.2 * size_deg, rng)
    points, ends = vectors(ra, dec), vectors(*np.array(vertices).T)
    middle = vectors(np.array([centre[0]]), np.array([centre[1]]))[0]
    expected = np.zeros(len(ra), dtype=bool)
    for i in range(9):
        expected |= in_triangle(points, np.array([middle, ends[i - 1], ends[i]]))
    # Points within a rounding error of a side of any triangle, the inner ones too, may fall to either.
    sides = [pair for i in range(9) for pair in ((ends[i - 1], ends[i]), (middle, ends[i]))]
    clear = np.min([np.abs(side_of(points, a, b)) for a, b in sides], axis=0) > 1e-12
    assert clear.mean() > 0.99
    assert 100 < expected.sum() < 4000
    for order in (vertices, vertices[::-1]):
        assert np.array_equal(polygon(order).contains(ra, dec)[clear], expected[clear])


def test_polygons_that_share_sides_tile_the_sky_between_them() -> None:
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(350, 370, 20_000) % 360, rng.uniform(-10, 10, 20_000)
    grid = np.linspace(-10, 10, 5)
    tiles = [
        Polygon(((west % 360, south), (east % 360, south), (east % 360, north), (west % 360, north)))
        for west, east in zip(grid[:-1], grid[1:], strict=True)
        for south, north in zip(grid[:-1], grid[1:], strict=True)
    ]
    times = np.sum([tile.contains(ra, dec) for tile in tiles], axis=0)
    assert times.max() == 1
    # The outer sides are great circles, not parallels: a sliver along them is outside.
    assert (times == 1).mean() > 0.99


def test_a_box_goes_eastwards_and_reaches_the_poles() -> None:
    ra, dec = np.array([350.0, 0.0, 9.9, 10.1, 180.0, 349.9, 33.0]), np.array([-5.0, 0.0, 5.0, 0.0, 0.0, 0.0, 90.0])
    assert Box((350, 10), (-5, 5)).contains(ra, dec).tolist() == [True, True, True, False, False, False, False]
    assert Box((-10, 10), (-5, 5)).contains(ra, dec).tolist() == [True, True, True, False, False, False, False]
    assert Box((10, 350), (-5, 5)).contains(ra, dec).tolist() == [True, False, False, True, True, True, False]
    assert Box((0, 360), (0, 90)).contains(ra, dec).tolist() == [False, True, True, True, True, True, True]
    assert Box((5, 365.5), (-90, 90)).contains(ra, dec).all()
    assert not Box((0, 360), (-90, 90)).contains(np.array([np.nan, 3.0]), np.array([0.0, np.nan])).any()


REGIONS: list[Region] = [
    *(Cone(*centre, 3600 * r) for centre in CENTRES for r in (0.001, 2.0)),
    *(Box((a - w, a + w), (max(-90, d - h), min(90, d + h))) for a, d in CENTRES[1::2] for w, h in ((0.01, 3), (40, 0.02))),
    Box((0, 360), (-3, 3)),
    Box((10, 200), (-90, 90)),
    *(polygon(np.column_stack(around(c, s, np.array([0.0, 100.0, 140.0, 250.0])))) for c in CENTRES[::2] for s in (0.05, 50)),
]  # fmt: skip


@pytest.mark.parametrize("region", REGIONS, ids=str)
def test_the_cells_of_a_region_hold_all_of_it_and_little_more(region: Region) -> None:
    rng = np.random.default_rng(8)
    cells = region.ranges()
    assert (cells[1:, 0] > cells[:-1, 1]).all()
    starts, stops = cells[:, 0], cells[:, 1]
    # Positions in the cells themselves: many are inside; and none of those outside of the cells is.
    sizes = (stops - starts).astype(np.float64)
    wanted = rng.choice(len(cells), 3000, p=sizes / sizes.sum())
    share = sizes.sum() / (12 << 58)
    ra, dec = rng.uniform(0, 360, 40_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 40_000)))
    pixels = to_pixels(ra, dec)
    place = np.searchsorted(starts, pixels, side="right") - 1
    held = (place >= 0) & (pixels < np.append(stops, 0)[place])
    assert not region.contains(ra[~held], dec[~held]).any()
    inside = region.contains(*positions(starts[wanted], stops[wanted], rng))
    # Of a sliver most cells lie beside it: they are as small as 8000 of them allow.
    sliver = isinstance(region, Box) and min(np.diff(region.ra_deg)[0], np.diff(region.dec_deg)[0]) < 1
    # Cells of a cone are a fair part of it on purpose: crossmatches ask for many cones.
    assert inside.mean() > (0.001 if sliver else 0.05 if isinstance(region, Cone) else 0.6)
    assert abs(held.mean() - share) < 0.02


def positions(starts: NDArray[np.int64], stops: NDArray[np.int64], rng: np.random.Generator) -> tuple[Float, Float]:
    lon, lat = nested.healpix_to_lonlat((starts + rng.integers(0, stops - starts)).astype(np.uint64), 29)
    return lon.deg, lat.deg


@settings(max_examples=8, deadline=None)
@given(
    st.sampled_from(CENTRES), st.floats(-5, 1.8).map(lambda log: 10**log), st.integers(3, 8), st.integers(0, 2**32 - 1)
)  # fmt: skip
def test_no_position_of_a_polygon_lies_outside_of_its_cells(centre: tuple[float, float], size: float, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    bearings = np.sort(rng.uniform(0, 360, n))
    vertices = [around(centre, size * r, np.array([b])) for r, b in zip(rng.uniform(0.2, 1, n), bearings, strict=True)]
    region = polygon([(ra[0], dec[0]) for ra, dec in vertices])
    cells = region.ranges()
    ra, dec = scattered(centre, size, rng, 300)
    inside = region.contains(ra, dec)
    pixels = to_pixels(ra[inside], dec[inside])
    place = np.searchsorted(cells[:, 0], pixels, side="right") - 1
    assert ((place >= 0) & (pixels < cells[place, 1])).all()


def test_a_map_holds_what_mocpy_says() -> None:
    mocpy = pytest.importorskip("mocpy", reason="the extra `moc` is not installed")
    units = pytest.importorskip("astropy.units")
    rng = np.random.default_rng(5)
    found = mocpy.MOC.from_cone(3 * units.deg, 88 * units.deg, radius=5 * units.deg, max_depth=9)
    moc = Moc(np.asarray(found.to_depth29_ranges, dtype=np.uint64).astype(np.int64))
    ra, dec = rng.uniform(0, 360, 5000), rng.uniform(75, 90, 5000)
    expected = found.contains_lonlat(ra * units.deg, dec * units.deg)
    assert 100 < expected.sum() < 4900
    assert np.array_equal(moc.contains(ra, dec), expected)
    assert moc.parameters()["sky_fraction"] == pytest.approx(found.sky_fraction)
    assert not moc.contains(np.array([np.nan]), np.array([89.0])).any()
    assert not Moc(np.zeros((0, 2), dtype=np.int64)).contains(ra, dec).any()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Cone(0, 91, 1), "no cone"),
        (lambda: Cone(0, 0, 0), "no cone"),
        (lambda: Cone(math.nan, 0, 1), "no cone"),
        (lambda: Box((0, 1), (2, 1)), "smaller declination first"),
        (lambda: Box((0, math.inf), (0, 1)), "no box"),
        (lambda: polygon([(0, 0), (1, 1)]), "at least three corners"),
        (lambda: polygon([]), "at least three corners"),
        (lambda: polygon([(0, 0), (1, 1), (2, 91)]), "at least three corners"),
        (lambda: polygon([1, 2, 3]), "pairs"),  # type: ignore[list-item]
        (lambda: polygon([(0, 0), (120, 0), (240, 0)]), "one hemisphere"),
    ],
)
def test_what_is_no_region_is_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=message):
        make()
