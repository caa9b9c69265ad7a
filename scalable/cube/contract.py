"""The contract of a cube: a plain `xarray.Dataset` whose dimensions, variables, units and attributes say what it is.

Dimensions are ``object`` (or ``tile``), ``band``, with exposures side by side ``epoch``, then ``y`` and ``x``. Attributes are
text, and hold JSON where they hold more than a word. The world coordinates of every window follow from it: `cutout_wcs`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from astropy.wcs import WCS
from xarray.core import indexing

from scalable.errors import StoreError, nearest
from scalable.io.remote import local_place
from scalable.io.zarr import LazyShards, ShardedArray, UnknownCodecError
from scalable.kernels.stack import PixelState
from scalable.sky.grid import read_wcs, shifted, tangent

FORMAT = 1
STATES = {str(int(state)): state.name.lower() for state in PixelState}


@dataclass(frozen=True)
class Known:
    """What a variable of a cube is; ``dims`` is ``pixels``, ``slots`` (object, band and epoch), ``bands`` or ``objects``."""

    dims: str
    kinds: str
    fill: Any
    units: str
    text: str


VARIABLES = {
    "image": Known("pixels", "f", np.nan, "", "values; NaN where there is none"),
    "ivar": Known("pixels", "f", np.nan, "", "inverse variance of the values; 0 or NaN where unknown"),
    "mask": Known("pixels", "i", 0, "", "bits of the source's mask, of all exposures together where they are combined"),
    "state": Known(
        "pixels", "u", int(PixelState.NOT_OBSERVED), "", "why a pixel holds a value or none; see the attribute states"
    ),
    "exposure": Known("slots", "i", -1, "", "row of the table of exposures; of several, the first"),
    "mjd": Known("slots", "f", np.nan, "d", "modified Julian date; of several exposures, their mean"),
    "psf_fwhm": Known("slots", "f", np.nan, "arcsec", "width of the point spread function in the source; of several, the mean"),
    "psf_fwhm_after": Known(
        "slots", "f", np.nan, "arcsec", "likewise in the cube's pixels; of several, the root of the mean square; see cube: psf"
    ),
    "pixel_scale": Known("slots", "f", np.nan, "arcsec", "side of a pixel"),
    "downsampling": Known("slots", "f", np.nan, "", "side of a pixel in sides of the source's pixels"),
    "pad_fraction": Known("slots", "f", np.nan, "", "part of the window that no image covers"),
    "crop_fraction": Known("slots", "f", np.nan, "", "part of the square asked for that the window does not hold"),
    "grid": Known("slots", "i", -1, "", "exposure whose pixels the window has; -1 for a tangent grid"),
    "y0": Known("slots", "i", -1, "pix", "row of that exposure where the window begins, from 0; it may lie outside"),
    "x0": Known("slots", "i", -1, "pix", "column likewise"),
    "n_exposures": Known("bands", "u", 0, "", "exposures that were combined"),
    "unreadable": Known("bands", "u", 0, "", "exposures left out because their pixels are damaged"),
    "ra": Known("objects", "f", np.nan, "deg", "right ascension, ICRS"),
    "dec": Known("objects", "f", np.nan, "deg", "declination, ICRS"),
    "scale_asked": Known("objects", "f", np.nan, "arcsec", "side of a pixel of the object's tangent grid"),
}
"""Variables and coordinates over objects; those of the tables of exposures and sources are in `TABLES`."""

NEEDED = ("image", "state", "exposure", "mjd", "pad_fraction", "crop_fraction", "pixel_scale", "grid", "y0", "x0", "ra", "dec")

TABLES = {
    "exposure_name": "exposures",
    "exposure_hdu": "exposures",
    "exposure_plane": "exposures",
    "exposure_band": "exposures",
    "exposure_mjd": "exposures",
    "exposure_source": "exposures",
    "source_uri": "source",
    "source_size": "source",
    "source_sha256": "source",
    "header_source": "header",
    "header_hdu": "header",
    "header_start": "header",
    "header_stop": "header",
    "headers": "header_byte",
}
"""Tables and their first dimensions: exposures, the files they come from, and the raw headers of every HDU of those files."""


def dims_of(kind: str, leading: str, *, epochs: bool) -> tuple[str, ...]:
    """Return the dimensions that a variable of a kind has."""
    bands = (leading, "band")
    slots = (*bands, "epoch") if epochs else bands
    return {"pixels": (*slots, "y", "x"), "slots": slots, "bands": bands, "objects": (leading,)}[kind]


def check_cube(cube: xr.Dataset) -> xr.Dataset:
    """Return a cube that keeps the contract, untouched.

    Raises
    ------
    StoreError
        Naming the first thing that does not, and what is needed.
    """
    about = about_cube(cube)
    leading = "tile" if about["kind"] == "tiles" else "object"
    epochs = about["combine"] is None
    for name in (*NEEDED, f"{leading}_id", "band", *TABLES):
        if name not in cube.variables:
            raise StoreError(f"the cube has no {name!r}; {nearest(name, map(str, cube.variables))}")
    for name, known in VARIABLES.items():
        if name in cube.variables:
            needed = dims_of(known.dims, leading, epochs=epochs)
            if cube[name].dims != needed:
                raise StoreError(f"{name} has the dimensions {cube[name].dims}, {needed} are needed")
            if cube[name].dtype.kind not in known.kinds:
                raise StoreError(f"{name} holds {cube[name].dtype}, a number of kind {known.kinds!r} is needed")
            if known.units and cube[name].attrs.get("units") != known.units:
                raise StoreError(f"{name} has the unit {cube[name].attrs.get('units')!r}, {known.units!r} is needed")
    for name, dim in TABLES.items():
        if cube[name].dims[0] != dim:
            raise StoreError(f"{name} has the dimensions {cube[name].dims}, the first must be {dim}")
    if "units" not in cube["image"].attrs:
        raise StoreError("image has no attribute units; give '' for a pure number")
    bands = [str(band) for band in cube["band"].values]
    if len(set(bands)) < len(bands) or not all(bands):
        raise StoreError(f"the bands {bands} must differ, and none may be empty")
    for name, attributes in {"": cube.attrs, **{str(n): v.attrs for n, v in cube.variables.items()}}.items():
        for key, value in attributes.items():
            if not isinstance(value, str):
                raise StoreError(
                    f"attribute {key} of {name or 'the cube'} is {type(value).__name__}; attributes are text: json.dumps it"
                )
    return cube


def about_cube(cube: xr.Dataset) -> dict[str, Any]:
    """Return what the attribute ``cube`` says: kind, grid, size, resampling, combination and the like.

    Raises
    ------
    StoreError
        If there is none, or it was written by a later version.
    """
    try:
        about = json.loads(cube.attrs["cube"])
        version = about["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError("this is no cube of ours: its attribute cube is missing or is no JSON; see stack_images") from error
    if version > FORMAT:
        raise StoreError(f"the cube has format {version}, this version reads up to {FORMAT}; upgrade scalable-sky")
    return dict(about)


def open_cube(path: str | Path) -> xr.Dataset:
    """Open a cube; nothing but its tables is read until pixels are asked for, and then only the chunks needed.

    Parameters
    ----------
    path : str or Path
        Folder that `write_cube` made.

    Returns
    -------
    xarray.Dataset
        Over lazy arrays: ``.isel(object=[…])`` reads single objects fast, ``.chunk()`` makes it a Dask collection.

    Raises
    ------
    StoreError
        If there is no cube, or it does not keep the contract.
    """
    folder = local_place(path)
    if not (folder / "zarr.json").is_file():
        raise StoreError(f"{folder}: no cube is there; write_cube makes one")
    cube = xr.open_zarr(folder, consolidated=False, chunks=None)
    for name, known in VARIABLES.items():
        if name not in cube.variables:
            continue
        if known.dims != "pixels":
            cube[name].load()
            continue
        try:
            array = ShardedArray.open(folder / name)
        except UnknownCodecError:
            continue  # written by somebody else; zarr itself reads it
        chunks = dict(zip(array.dims, array.shard_shape, strict=True))
        lazy = indexing.LazilyIndexedArray(LazyShards(array))
        cube[name] = xr.Variable(array.dims, lazy, cube[name].attrs, {"preferred_chunks": chunks})
    try:
        return check_cube(cube)
    except StoreError as error:
        raise StoreError(f"{folder}: {error}") from error


def raw_headers(cube: xr.Dataset, source: int) -> list[bytes]:
    """Return the raw headers of all HDUs of a source, byte for byte as they are in its file."""
    rows = np.flatnonzero(cube["header_source"].values == source)
    spans = zip(cube["header_start"].values[rows].tolist(), cube["header_stop"].values[rows].tolist(), strict=True)
    return [cube["headers"][start:stop].values.tobytes() for start, stop in spans]


def cutout_wcs(cube: xr.Dataset, **place: int) -> WCS:
    """Return the world coordinates of one window.

    Parameters
    ----------
    cube : xarray.Dataset
        A cube.
    **place : int
        Its place along ``object`` (or ``tile``), ``band`` and, where there is one, ``epoch``.

    Raises
    ------
    StoreError
        If no image was found for it.
    """
    about = about_cube(cube)
    one = cube[["grid", "y0", "x0", "exposure", "ra", "dec", "scale_asked"]].isel(place)
    if int(one["exposure"]) < 0:
        raise StoreError(f"no image shows {place}: it has no grid")
    if about["grid"] == "tangent":
        return tangent(float(one["ra"]), float(one["dec"]), about["size"], float(one["scale_asked"]))
    exposure = int(one["grid"])
    headers = raw_headers(cube, int(cube["exposure_source"][exposure]))
    wcs = read_wcs(headers[int(cube["exposure_hdu"][exposure])], headers[0])
    return shifted(wcs, int(one["y0"]), int(one["x0"]))
