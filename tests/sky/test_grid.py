"""A position and its pixel belong together on every grid; footprints hold their images; windows of a grid are its pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.wcs import WCS

from scalable.sky.grid import Tiles, footprint, pixel_scale, read_wcs, shifted, tangent, to_pixel, to_sky, whole_shift
from scalable.sky.healpix import centres, outline, to_pixels
from scalable.sky.pixel import Pixel

TPV = {"PV1_0": 1e-4, "PV1_1": 1.001, "PV1_4": 2e-3, "PV2_0": -1e-4, "PV2_1": 0.999, "PV2_6": 1e-3}
SIP = {"A_ORDER": 2, "B_ORDER": 2, "A_2_0": 2e-6, "A_1_1": -1e-6, "B_0_2": 3e-6, "B_1_1": 1e-6}


def header(kind: str = "TAN", **more: Any) -> bytes:
    first, second = ("GLON", "GLAT") if kind == "CAR" else ("RA", "DEC")
    cards = fits.Header({"SIMPLE": True, "BITPIX": -32, "NAXIS": 2, "NAXIS1": 100, "NAXIS2": 80})
    cards.update(
        {
            "CTYPE1": f"{first:-<5}{kind:->3}",
            "CTYPE2": f"{second:-<5}{kind:->3}",
            "CRVAL1": 30.0,
            "CRVAL2": 0.0 if kind == "CAR" else 40.0,
        }
    )
    cards.update({"CRPIX1": 50.0, "CRPIX2": 40.0, "CD1_1": -7e-5, "CD1_2": 1e-6, "CD2_1": 1e-6, "CD2_2": 7e-5, **more})
    if kind == "TPV":
        cards.update(TPV)
    if "A_ORDER" in cards:
        cards.update({"CTYPE1": "RA---TAN-SIP", "CTYPE2": "DEC--TAN-SIP"})
    return cards.tostring().encode()


GRIDS = {
    "tan": header(),
    "sip": header(**SIP),
    "tpv": header("TPV"),
    "car": header("CAR"),
    "sin": header("SIN"),
    "fk5": header(RADESYS="FK5", EQUINOX=1975.0),
    "swapped": header(CTYPE1="DEC--TAN", CTYPE2="RA---TAN", CRVAL1=40.0, CRVAL2=30.0),
}


@pytest.mark.parametrize("name", GRIDS)
def test_pixels_are_those_of_astropy_and_come_back(name: str) -> None:
    wcs = read_wcs(GRIDS[name])
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-20, 120, 50), rng.uniform(-20, 100, 50)
    ra, dec = to_sky(wcs, x, y)
    there = WCS(fits.Header.fromstring(GRIDS[name])).pixel_to_world(x, y).icrs
    assert SkyCoord(ra, dec, unit=u.deg).separation(there).arcsec.max() < 1e-6
    back = to_pixel(wcs, ra, dec)
    assert np.abs(back[0] - x).max() < 1e-5
    assert np.abs(back[1] - y).max() < 1e-5


@pytest.mark.parametrize("name", GRIDS)
def test_a_window_has_the_pixels_of_its_image_and_a_footprint_holds_all_of_them(name: str) -> None:
    wcs = read_wcs(GRIDS[name])
    window = shifted(wcs, -7, 12)
    assert whole_shift(wcs, window, 30) == (-7, 12)
    moved = tangent(*(float(axis[0]) for axis in to_sky(wcs, np.array([49.3]), np.array([39.0]))), 30, pixel_scale(wcs, 49, 39))
    assert whole_shift(wcs, moved, 30) is None
    place = footprint(wcs, (80, 100))
    x, y = (grid.ravel().astype(float) for grid in np.meshgrid(np.arange(-0.5, 100), np.arange(-0.5, 80)))
    apart = SkyCoord(*to_sky(wcs, x, y), unit=u.deg).separation(SkyCoord(place.ra_deg, place.dec_deg, unit=u.deg)).deg
    assert apart.max() <= place.radius_deg < 1.2 * apart.max()
    assert place.scale_arcsec == pytest.approx(7e-5 * 3600, rel=0.02)


def test_a_star_on_the_reference_pixel_of_its_header_is_at_that_pixel_counted_from_0() -> None:
    x, y = to_pixel(read_wcs(header()), np.array([30.0]), np.array([40.0]))
    assert (x[0], y[0]) == pytest.approx((49.0, 39.0), abs=1e-9)
    grid = tangent(10.0, -20.0, 33, 0.2)
    assert [axis[0] for axis in to_pixel(grid, np.array([10.0]), np.array([-20.0]))] == pytest.approx([16.0, 16.0], abs=1e-9)
    east, north = to_sky(grid, np.array([15.0, 16.0]), np.array([16.0, 17.0]))
    assert east[0] > 10
    assert north[1] > -20


def test_headers_without_a_sky_are_refused_and_those_in_tiles_or_with_a_primary_are_read() -> None:
    with pytest.raises(ValueError, match="no celestial world coordinates"):
        read_wcs(fits.Header({"SIMPLE": True, "BITPIX": 8, "NAXIS": 2}).tostring().encode())
    with pytest.raises(ValueError, match="no celestial world coordinates"):
        read_wcs(header(CTYPE1="FREQ", CTYPE2="STOKES"))
    bare = fits.Header({"XTENSION": "IMAGE", "BITPIX": 8, "NAXIS": 2, "INHERIT": True}).tostring().encode()
    assert to_pixel(read_wcs(bare, header()), np.array([30.0]), np.array([40.0]))[0][0] == pytest.approx(49.0)


def test_tiles_hold_their_healpix_pixel_at_every_place_of_the_sky() -> None:
    rng = np.random.default_rng(4)
    order = 8
    index = np.unique(rng.integers(0, 12 * 4**order, 60))
    tiles = Tiles(order, index, 2.0)
    for number, ra, dec in zip(index.tolist(), *centres(index, order), strict=True):
        x, y = to_pixel(tangent(float(ra), float(dec), tiles.size, 2.0), *outline(Pixel(order, number)))
        assert min(x.min(), y.min()) >= -0.5
        assert max(x.max(), y.max()) <= tiles.size - 0.5
    assert np.array_equal(to_pixels(*centres(index, order), order), index)
