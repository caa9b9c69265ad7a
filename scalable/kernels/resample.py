"""Images moved to another grid by the `reproject` library, with their flux, errors and masks; never two at once in a process."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray
from reproject import reproject_adaptive, reproject_exact, reproject_interp

Floats = NDArray[np.float64]

METHODS = {
    "interp": "bicubic interpolation (reproject_interp)",
    "adaptive": "anti-aliased resampling with a Gaussian kernel (reproject_adaptive)",
    "exact": "exact overlap of spherical polygons (reproject_exact)",
}
"""What can be asked for, and how it is named in the attributes of a cube."""

_SIGMA = 0.65
_REACH = 2.0
"""Of the Gaussian kernel, in the larger of the pixels: its standard deviation, and where it is cut."""

_CUT = (
    math.sqrt(2 / math.pi) * _REACH / _SIGMA * math.exp(-((_REACH / _SIGMA) ** 2) / 2) / math.erf(_REACH / _SIGMA / math.sqrt(2))
)
KERNEL_VARIANCE = {
    # A cubic spline passes through parabolas: it leaves second moments as they are.
    "interp": (0.0, 0.0, 0.0),
    "adaptive": (0.0, 0.0, _SIGMA**2 * (1 - _CUT)),
    # A box of the one pixel, and one of the other.
    "exact": (1 / 12, 1 / 12, 0.0),
}
"""What a method adds to the variance of a point source along an axis: so many squares of the side of the source's pixel, of the
grid's, and of the larger of both."""


def widened(fwhm: Floats, method: str, source: float, grid: Floats) -> Floats:
    """Return the width of the point spread function in resampled pixels: second moments add.

    Parameters
    ----------
    fwhm : ndarray, shape (n,)
        Full width at half maximum before; NaN where unknown.
    method : str
        One of `METHODS`.
    source, grid : float, ndarray, shape (n,)
        Sides of the pixels before and after, in the unit of the width.

    Returns
    -------
    ndarray, shape (n,)
        sqrt(FWHM^2 + 8 ln 2 V), where V is the variance of the kernel (`KERNEL_VARIANCE`). Of a Gaussian this is the width; of
        another profile it is that of the Gaussian with its second moments.
    """
    of_source, of_grid, of_larger = KERNEL_VARIANCE[method]
    variance = of_source * source**2 + of_grid * grid**2 + of_larger * np.maximum(source, grid) ** 2
    return np.sqrt(fwhm**2 + 8 * math.log(2) * variance)


def resample(
    image: Floats, bad: NDArray[np.bool_], source: WCS, target: WCS, size: int, x: Floats, y: Floats, *, method: str, flux: bool
) -> tuple[Floats, Floats]:
    """Resample an image to a grid of ``size`` x ``size`` pixels.

    Parameters
    ----------
    image : ndarray of float64, shape (rows, columns)
        A part of the source.
    bad : ndarray of bool, shape (rows, columns)
        Pixels without a value: whatever touches them becomes NaN.
    source, target : astropy.wcs.WCS
        World coordinates of the part and of the grid.
    size : int
        Rows and columns of the grid.
    x, y : ndarray, shape (size, size)
        Place of the grid's pixels in the part [pixel].
    method : str
        One of `METHODS`.
    flux : bool
        Whether a pixel holds the flux that fell into it: then values are multiplied by the ratio of the pixels' areas; a surface
        brightness stays as it is.

    Returns
    -------
    image, ratio : ndarray of float64, shape (size, size)
        NaN where a bad pixel or the outside takes part; and the area of a pixel of the grid in pixels of the source.
    """
    ratio = area_ratio(x, y)
    holes = np.where(bad, np.nan, image)
    if method == "interp":
        # A spline would spread a NaN over the whole image: bad pixels are nought while it is fitted.
        filled = np.where(bad, 0.0, image)
        out = reproject_interp(
            (filled, source), target, (size, size), order="bicubic", return_footprint=False, roundtrip_coords=False
        )
        out = np.where(_nearest(_grown(bad), x, y, outside=1) != 0, np.nan, out)
    elif method == "adaptive":
        out = reproject_adaptive(
            (holes, source), target, (size, size), kernel="gaussian", kernel_width=2 * _SIGMA,
            sample_region_width=2 * _REACH, boundary_mode="strict", bad_value_mode="strict", return_footprint=False,
            roundtrip_coords=False,
        )  # fmt: skip
    else:
        out, covered = reproject_exact((holes, source), target, (size, size))
        out = np.where(covered > 1 - 1e-6, out, np.nan)
    return (out * ratio if flux else out), ratio


def resample_mask(bits: NDArray[Any], x: Floats, y: Floats, ratio: Floats) -> NDArray[np.int32]:
    """Return the bits that any source pixel near a pixel of the grid has, shape (size, size): a mask has no values between."""
    reach = max(1, int(np.ceil(np.sqrt(np.nanmax(ratio, initial=1.0)) / 2)))
    steps = range(1 - reach, reach)
    return np.bitwise_or.reduce([_nearest(bits, x + dx, y + dy, outside=0) for dy in steps for dx in steps])


def _nearest(values: NDArray[Any], x: Floats, y: Floats, *, outside: int) -> NDArray[np.int32]:
    """Return the values of the pixels that are nearest to places."""
    rows, columns = values.shape
    inside = (x > -0.5) & (x < columns - 0.5) & (y > -0.5) & (y < rows - 0.5)
    out = np.full(x.shape, outside, np.int32)
    out[inside] = values[np.rint(y[inside]).astype(np.int64), np.rint(x[inside]).astype(np.int64)]
    return out


def area_ratio(x: Floats, y: Floats) -> Floats:
    """Return the area of each pixel of a grid in pixels of the source, from the places of its pixels there."""
    if min(x.shape) < 2:
        return np.ones(x.shape)
    (x_row, x_column), (y_row, y_column) = np.gradient(x), np.gradient(y)
    return np.abs(x_column * y_row - x_row * y_column)


def _grown(bad: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return bad pixels and what lies within two pixels of them: a bicubic interpolation reaches so far."""
    padded = np.pad(bad, 2, constant_values=True)
    rows, columns = bad.shape
    return np.any([padded[r : r + rows, c : c + columns] for r in range(5) for c in range(5)], axis=0)
