"""Images moved to another grid by the `reproject` library, with their flux, errors and masks; never two at once in a process."""

from __future__ import annotations

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
            (holes, source), target, (size, size), kernel="gaussian", boundary_mode="strict", bad_value_mode="strict",
            return_footprint=False, roundtrip_coords=False,
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
