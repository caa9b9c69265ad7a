"""Pixel grids on the sky: the world coordinates of a header, footprints, tangent grids, tiles; pixels count from 0.

A position is ICRS, in degrees; a pixel's centre has whole coordinates, as numpy counts and not as FITS does.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass

import numpy as np
from astropy import units as u
from astropy.coordinates import ICRS, SkyCoord
from astropy.io import fits
from astropy.wcs import WCS, FITSFixedWarning, Sip, WcsError
from astropy.wcs.utils import wcs_to_celestial_frame
from numpy.typing import NDArray

from scalable.sky.healpix import cell_radius, centres, unit_vectors

Floats = NDArray[np.float64]

_EDGE = 9  # points on each side of an image from which its footprint is found
SAME_PIXELS = 0.005
"""Two grids are one if, shifted by whole pixels, they differ by less than this everywhere [pixel]."""


def read_wcs(header: bytes, primary: bytes = b"") -> WCS:
    """Return the celestial world coordinates that a raw header describes.

    Parameters
    ----------
    header : bytes
        Raw header of the image.
    primary : bytes
        Raw primary header: where the image's own has no world coordinates and INHERIT is true, they stand there.

    Raises
    ------
    ValueError
        If it describes none, or they cannot be read.
    """
    cards = fits.Header.fromstring(header)
    if primary and cards.get("INHERIT") is True and "CTYPE1" not in cards:
        cards.extend(fits.Header.fromstring(primary), unique=True)
    if cards.get("ZIMAGE") is True:
        # The axes of an image in tiles stand under names of their own.
        for name in [name for name in cards if name.startswith("ZNAXIS")]:
            cards[name[1:]] = cards[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FITSFixedWarning)
            warnings.simplefilter("ignore", fits.verify.VerifyWarning)
            # Not `celestial`, which changes the order of the axes where declination comes first.
            sky = WCS(cards, naxis=2)
    except (WcsError, ValueError, KeyError, IndexError, MemoryError, AssertionError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise ValueError(f"its world coordinates cannot be read ({reason}); correct CTYPE, CRVAL, CD and their like") from error
    if sky.naxis != 2 or not sky.has_celestial:
        raise ValueError("no celestial world coordinates (CTYPE1, CTYPE2); without them nobody knows where it is on the sky")
    return sky


def shifted(wcs: WCS, y0: int, x0: int) -> WCS:
    """Return the world coordinates of a window that begins at a row and column, which may lie outside of the image."""
    moved = wcs.deepcopy()
    moved.wcs.crpix = moved.wcs.crpix - np.array([x0, y0])
    if wcs.sip is not None:
        sip = wcs.sip
        moved.sip = Sip(sip.a, sip.b, sip.ap, sip.bp, sip.crpix - np.array([x0, y0]))
    moved.pixel_shape = None
    return moved


def to_pixel(wcs: WCS, ra_deg: Floats, dec_deg: Floats) -> tuple[Floats, Floats]:
    """Return x and y of positions, shape (n,), from 0; NaN where the projection does not reach or does not converge."""
    frame = wcs_to_celestial_frame(wcs)
    lon, lat = np.asarray(ra_deg, np.float64), np.asarray(dec_deg, np.float64)
    if not isinstance(frame, ICRS):
        there = SkyCoord(lon, lat, unit=u.deg, frame="icrs").transform_to(frame).spherical
        lon, lat = there.lon.deg, there.lat.deg
    world = np.empty((len(lon), 2))
    world[:, wcs.wcs.lng], world[:, wcs.wcs.lat] = lon, lat
    if len(world) == 0:
        return np.empty(0), np.empty(0)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pixels = np.asarray(wcs.all_world2pix(world, 0, quiet=True))
    return pixels[:, 0], pixels[:, 1]


def to_sky(wcs: WCS, x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """Return right ascension and declination [deg] of pixels, shape (n,); NaN where there is no sky."""
    world = np.asarray(wcs.all_pix2world(np.column_stack([x, y]), 0))
    lon, lat = world[:, wcs.wcs.lng], world[:, wcs.wcs.lat]
    frame = wcs_to_celestial_frame(wcs)
    if not isinstance(frame, ICRS):
        bad = ~(np.isfinite(lon) & np.isfinite(lat))
        there = SkyCoord(np.where(bad, 0, lon), np.where(bad, 0, lat), unit=u.deg, frame=frame).icrs
        lon, lat = np.where(bad, np.nan, there.ra.deg), np.where(bad, np.nan, there.dec.deg)
    return lon % 360, lat


@dataclass(frozen=True)
class Footprint:
    """A circle that holds an image, and the side of a pixel in its middle."""

    ra_deg: float
    dec_deg: float
    radius_deg: float
    scale_arcsec: float


def footprint(wcs: WCS, shape: tuple[int, int]) -> Footprint:
    """Return where an image of ``shape`` (rows, columns) is.

    Raises
    ------
    ValueError
        If its edge is not on the sky.
    """
    rows, columns = shape
    along, across = np.linspace(-0.5, columns - 0.5, _EDGE), np.linspace(-0.5, rows - 0.5, _EDGE)
    x, y = (grid.ravel() for grid in np.meshgrid(along, across))
    points = unit_vectors(*to_sky(wcs, x, y))
    if not np.isfinite(points).all():
        raise ValueError("parts of its edge are not on the sky: an image of the whole sky, or a wrong header")
    middle = points.mean(axis=0)
    middle /= np.linalg.norm(middle)
    # Between the points, the edge bulges by less than they are apart.
    mesh = points.reshape(_EDGE, _EDGE, 3)
    gap = max(float(np.linalg.norm(np.diff(mesh, axis=axis), axis=2).max()) for axis in (0, 1))
    radius = 2 * math.degrees(math.asin(min(1.0, np.linalg.norm(points - middle, axis=1).max() / 2)))
    ra, dec = math.degrees(math.atan2(middle[1], middle[0])) % 360, math.degrees(math.asin(middle[2]))
    return Footprint(ra, dec, radius + math.degrees(gap) / 8, pixel_scale(wcs, (columns - 1) / 2, (rows - 1) / 2))


def pixel_scale(wcs: WCS, x: float, y: float) -> float:
    """Return the square root of a pixel's area at a place of the image [arcsec]."""
    points = unit_vectors(*to_sky(wcs, x + np.array([-0.5, 0.5, 0.0, 0.0]), y + np.array([0.0, 0.0, -0.5, 0.5])))
    area = np.linalg.norm(np.cross(points[1] - points[0], points[3] - points[2]))
    return math.degrees(math.sqrt(area)) * 3600


def tangent(ra_deg: float, dec_deg: float, size: int, scale_arcsec: float) -> WCS:
    """Return the gnomonic grid of ``size`` x ``size`` pixels whose middle is a position: north is up, east is left."""
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.cunit = ["deg", "deg"]
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.crval = [ra_deg, dec_deg]
    wcs.wcs.crpix = [(size + 1) / 2, (size + 1) / 2]
    wcs.wcs.cdelt = [-scale_arcsec / 3600, scale_arcsec / 3600]
    wcs.wcs.set()
    return wcs


def whole_shift(source: WCS, target: WCS, size: int) -> tuple[int, int] | None:
    """Return rows and columns by which a target's ``size`` x ``size`` pixels lie further in the source, if it has them."""
    ends = np.array([0.0, (size - 1) / 2, size - 1.0])
    x, y = (grid.ravel() for grid in np.meshgrid(ends, ends))
    there = to_pixel(source, *to_sky(target, x, y))
    dx, dy = there[0] - x, there[1] - y
    if not np.isfinite(dx).all():
        return None
    shift = round(float(dy.mean())), round(float(dx.mean()))
    off = max(float(np.abs(dy - shift[0]).max()), float(np.abs(dx - shift[1]).max()))
    return shift if off < SAME_PIXELS else None


@dataclass(frozen=True)
class Tiles:
    """Tiles on a grid of the sky, one around each HEALPix pixel of an order: gnomonic, north up, a little larger than the pixel.

    Attributes
    ----------
    order : int
        HEALPix order.
    index : ndarray of int64, shape (n,)
        Pixels, NESTED.
    scale_arcsec : float
        Side of a tile's pixel in its middle [arcsec].
    """

    order: int
    index: NDArray[np.int64]
    scale_arcsec: float

    @property
    def size(self) -> int:
        """Pixels on a side: enough to hold any HEALPix pixel of the order."""
        return math.ceil(2 * math.degrees(math.tan(cell_radius(self.order))) * 3600 / self.scale_arcsec)

    @property
    def centres(self) -> tuple[Floats, Floats]:
        """Right ascension and declination of the middles [deg]."""
        return centres(self.index, self.order)
