"""`stack_images`: cutouts around positions, or tiles of the sky, from all images that show them, as one lazy cube."""

from __future__ import annotations

import hashlib
import json
import math
import operator
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
import xarray as xr
from dask.base import tokenize
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import NDArray

from scalable.cluster import run_tasks
from scalable.cube.contract import FORMAT, STATES, VARIABLES, Known, check_cube, dims_of
from scalable.cube.group import Group, Recipe, most_epochs, stack_group
from scalable.cube.images import SkyImages, find_images
from scalable.errors import ColumnError, InputError, SurveyError, nearest
from scalable.io.exposures import FileHeaders
from scalable.io.fits_image import FitsImage
from scalable.io.image_reader import ImageReader
from scalable.io.remote import local_copy
from scalable.kernels.resample import KERNEL_VARIANCE
from scalable.kernels.resample import METHODS as RESAMPLING
from scalable.kernels.stack import METHODS as COMBINING
from scalable.schema import Schema
from scalable.sky.grid import Tiles
from scalable.sky.healpix import to_pixels, unit_vectors
from scalable.survey.description import Survey

SHARD_BYTES = 64 << 20
"""Pixels, inverse variances, masks and states that one task makes, about."""
STACK_BYTES = 384 << 20
"""What a task may hold of single exposures before it combines them."""
MOST_OBJECTS = 4096

_PIXEL_BYTES = 9  # of inverse variance, mask and state
_FILES_PER_TASK = 64
_PIECE = 1 << 20


@dataclass(frozen=True)
class CutoutSize:
    """How large cutouts are: a number of pixels, a length on the sky, or a multiple of a column.

    Attributes
    ----------
    pixels : int, optional
        Rows and columns. Without them, as many as the largest length needs at the images' own scale.
    arcsec : float, optional
        Side of the square [arcsec].
    column : str
        Column of the table of objects that holds a length [arcsec], such as a half-light radius, …
    times : float
        … and how many times that is the side.
    """

    pixels: int | None = None
    arcsec: float | None = None
    column: str = ""
    times: float = 1.0

    def __post_init__(self) -> None:
        """Refuse what is no size."""
        given = [value for value in (self.pixels, self.arcsec, self.times) if value is not None]
        if self.arcsec is not None and self.column:
            raise SurveyError("size: give arcsec or a column, not both")
        if self.pixels is None and self.arcsec is None and not self.column:
            raise SurveyError("size: give pixels, arcsec, or a column of lengths")
        if not all(math.isfinite(value) and value > 0 for value in given):
            raise SurveyError(f"size: {self} must be positive")


def stack_images(
    survey: Survey,
    where: pa.Table | Tiles,
    *,
    size: int | CutoutSize | None = None,
    bands: Sequence[str] | None = None,
    combine: str | None = None,
    resampling: str = "native",
    grid: float | str | None = None,
    reader: ImageReader | None = None,
) -> xr.Dataset:
    """Stack the images that show objects, or tiles of the sky, lazily; headers are read now, pixels when they are asked for.

    Parameters
    ----------
    survey : Survey
        Its block ``images`` says where they are.
    where : pyarrow.Table or Tiles
        Objects with their id, right ascension and declination [deg] in columns of those roles, or called ``object_id``, ``ra``
        and ``dec``; or tiles.
    size : int or CutoutSize, optional
        Of cutouts: pixels, or a `CutoutSize`.
    bands : sequence of str, optional
        By default all of the survey.
    combine : str, optional
        ``mean``, ``median``, ``ivar`` or ``clipped``; by default every exposure is kept, in order of time.
    resampling : str
        ``native``: the images' own pixels, bit for bit; or ``interp``, ``adaptive``, ``exact`` of `reproject`, by which images
        are moved that do not have the very pixels of the grid.
    grid : float or str, optional
        The grid when resampling: side of a pixel of a tangent grid around each object, north up [arcsec] (by default that of the
        finest image, or what ``size`` asks for), or a band whose own pixels are taken.
    reader : ImageReader, optional
        By default FITS.

    Returns
    -------
    xarray.Dataset
        As `cube.contract` says, on Dask arrays: one task a group of neighbouring objects, which opens each of its images once.
        Objects are ordered along the sky.

    Raises
    ------
    SurveyError, ColumnError
        If a parameter, band or column is none there is.
    InputError
        If no image can be used.
    """
    wanted = _wanted(survey, bands, combine, resampling, grid)
    reader = reader or FitsImage()
    images = find_images(survey, reader, bands=wanted)
    things = _things(where)
    tiles = isinstance(where, Tiles)
    things, recipe = _sized(survey, images, where, things, size, wanted, combine, resampling, grid)
    groups = _groups(images, things, recipe)
    if combine is None:
        counts = run_tasks(most_epochs, groups, recipe, reader)
        recipe = replace(recipe, epochs=max(1, *counts))
    return _dataset(survey, images, things, recipe, groups, reader, size, "tile" if tiles else "object")


@dataclass(frozen=True)
class _Things:
    """Objects or tiles, ordered along the sky; lengths as of `Group`."""

    ids: NDArray[np.int64]
    ra_deg: NDArray[np.float64]
    dec_deg: NDArray[np.float64]
    scale_arcsec: NDArray[np.float64]
    side_arcsec: NDArray[np.float64]
    per_task: int = 1


def _wanted(
    survey: Survey, bands: Sequence[str] | None, combine: str | None, resampling: str, grid: float | str | None
) -> tuple[str, ...]:
    """Check what was asked for, and return the bands."""
    for band in (*(bands or ()), *([grid] if isinstance(grid, str) else [])):
        if band not in survey.bands:
            raise SurveyError(f"no band {band!r} in survey {survey.name!r}; {nearest(band, survey.bands)}")
    if combine is not None and combine not in COMBINING:
        raise SurveyError(f"combine: {combine!r} is no way to combine; {nearest(combine, COMBINING)}")
    if resampling not in ("native", *RESAMPLING):
        raise SurveyError(f"resampling: {resampling!r} is none; {nearest(resampling, ('native', *RESAMPLING))}")
    if resampling == "native" and grid is not None:
        raise SurveyError("grid: native pixels have a grid already; give resampling='adaptive' (or 'interp', 'exact') too")
    if combine == "ivar" and (survey.images is None or survey.images.weight is None):
        raise SurveyError("combine: 'ivar' needs inverse variances; describe them in images.weight, or choose mean or clipped")
    wanted = tuple(dict.fromkeys(bands)) if bands else survey.bands
    if isinstance(grid, str) and grid not in wanted:
        raise SurveyError(f"grid: {grid!r} must be one of the bands that are stacked: {', '.join(wanted)}")
    return wanted


def _things(where: pa.Table | Tiles) -> _Things:
    """Return ids and positions, sorted along the sky."""
    if isinstance(where, Tiles):
        ids = np.asarray(where.index, np.int64)
        ra, dec = where.centres
        scale = np.full(len(ids), where.scale_arcsec)
    else:
        ids = role_column(where, "object_id").astype(np.int64)
        ra, dec = (role_column(where, role).astype(np.float64) for role in ("ra", "dec"))
        scale = np.full(len(ids), np.nan)
    if len(ids) == 0:
        raise InputError("there is no object to cut out")
    bad = np.flatnonzero(~(np.isfinite(ra) & (np.abs(dec) <= 90)))
    if len(bad):
        raise InputError(f"object {ids[bad[0]]} (and {len(bad) - 1} more) has no position: ra {ra[bad[0]]}, dec {dec[bad[0]]}")
    order = np.lexsort((ids, to_pixels(ra, dec)))
    return _Things(ids[order], ra[order], dec[order], scale[order], np.full(len(ids), np.nan))


def role_column(table: pa.Table, role: str) -> NDArray[Any]:
    """Return the column of a role, or of the role's name."""
    by_role = [column.name for column in Schema.from_arrow(table.schema).by_role(role)]
    plain = [name for name in table.column_names if name.lower() in (role, f"object_{role}")]
    name = next(iter((*by_role, *plain)), None)
    if name is None:
        raise ColumnError(f"objects: no column with the role {role!r}; {nearest(role, table.column_names)}")
    if table[name].null_count:
        raise InputError(f"objects: column {name!r} holds {table[name].null_count} nulls; leave those rows out")
    return table[name].to_numpy()


def _sized(
    survey: Survey,
    images: SkyImages,
    where: pa.Table | Tiles,
    things: _Things,
    size: int | CutoutSize | None,
    bands: tuple[str, ...],
    combine: str | None,
    resampling: str,
    grid: float | str | None,
) -> tuple[_Things, Recipe]:
    """Settle the side of windows and of their pixels, and how many objects go to a task."""
    rule = survey.images
    if rule is None:  # find_images has said so
        raise SurveyError("no images")
    finest = min(
        exposure.footprint.scale_arcsec
        for exposure in images.exposures
        if grid in (exposure.band, None) or not isinstance(grid, str)
    )
    if isinstance(where, Tiles):
        if size is not None or grid is not None or resampling == "native":
            raise SurveyError(
                "tiles have a size and a grid of their own: give neither, and resampling='adaptive' (or 'interp', 'exact')"
            )
        pixels, side, scale = where.size, things.side_arcsec, things.scale_arcsec
    else:
        asked = CutoutSize(pixels=size) if isinstance(size, int) else size
        if asked is None:
            raise SurveyError("size: give the pixels of a cutout, or a CutoutSize")
        side = _sides(where, things, asked)
        step = float(grid) if isinstance(grid, int | float) else finest
        pixels = asked.pixels or math.ceil(float(np.nanmax(side)) / step - 0.01)
        stretched = asked.pixels is not None and np.isfinite(side).all() and not isinstance(grid, int | float)
        scale = side / pixels if stretched else np.full(len(side), step)
        if resampling == "native" or isinstance(grid, str):
            scale = np.full(len(side), np.nan)
    dtype = np.result_type(np.float32, *{np.dtype(exposure.dtype) for exposure in images.exposures})
    bits = rule.mask.bad_bits if rule.mask else None
    recipe = Recipe(
        bands,
        pixels,
        0,
        combine or "",
        resampling,
        grid if isinstance(grid, str) else "",
        str(dtype),
        rule.pixel_holds == "flux",
        rule.weight.kind if rule.weight else "",
        rule.mask is not None,
        None if bits is None else sum(1 << bit for bit in set(bits)),
    )
    one = pixels * pixels * (dtype.itemsize + _PIXEL_BYTES)
    depth = images.depth
    shard = one * len(bands) * (1 if combine else depth)
    per_task = min(SHARD_BYTES // shard, STACK_BYTES // (2 * one * depth), MOST_OBJECTS, len(things.ids))
    return replace(things, scale_arcsec=scale, side_arcsec=side, per_task=max(1, per_task)), recipe


def _sides(table: pa.Table, things: _Things, size: CutoutSize) -> NDArray[np.float64]:
    """Return the side of the square that is asked for of each object [arcsec], NaN where that is a number of pixels."""
    if not size.column:
        return np.full(len(things.ids), np.nan if size.arcsec is None else size.arcsec)
    if size.column not in table.column_names:
        raise ColumnError(f"size: no column {size.column!r}; {nearest(size.column, table.column_names)}")
    ids = role_column(table, "object_id").astype(np.int64)
    ra, dec = (role_column(table, role).astype(np.float64) for role in ("ra", "dec"))
    sides = np.asarray(table[size.column].to_numpy(zero_copy_only=False), np.float64) * size.times
    sides = sides[np.lexsort((ids, to_pixels(ra, dec)))]
    bad = np.flatnonzero(~(np.isfinite(sides) & (sides > 0)))
    if len(bad):
        raise InputError(f"size: {size.column!r} of object {things.ids[bad[0]]} (and {len(bad) - 1} more) is no positive length")
    return sides


def _groups(images: SkyImages, things: _Things, recipe: Recipe) -> list[Group]:
    """Cut the objects into runs of neighbours, and find the images that may show each run."""
    points = unit_vectors(things.ra_deg, things.dec_deg)
    groups = []
    for start in range(0, len(points), things.per_task):
        part = slice(start, start + things.per_task)
        here = points[part]
        middle = here.mean(axis=0)
        middle /= max(float(np.linalg.norm(middle)), 1e-9)
        spread = 2 * math.asin(min(1.0, float(np.linalg.norm(here - middle, axis=1).max()) / 2))
        coarsest = max(exposure.footprint.scale_arcsec for exposure in images.exposures)
        window = math.radians(np.nanmax(things.scale_arcsec[part], initial=coarsest) * recipe.size / 3600)
        found = images.near(middle, spread + window)
        # A run may jump over gaps: an image in one of them shows none of its objects.
        chord = np.linalg.norm(images.centres[found][:, None] - here[None], axis=2).min(axis=1) if len(found) else np.empty(0)
        found = found[2 * np.arcsin(np.minimum(1.0, chord / 2)) <= images.radii[found] + window]
        groups.append(
            Group(
                things.ra_deg[part],
                things.dec_deg[part],
                things.scale_arcsec[part],
                things.side_arcsec[part],
                tuple(images.exposures[n] for n in found),
                tuple(int(n) for n in found),
            )
        )
    return groups


def _dataset(
    survey: Survey,
    images: SkyImages,
    things: _Things,
    recipe: Recipe,
    groups: list[Group],
    reader: ImageReader,
    size: int | CutoutSize | None,
    leading: str,
) -> xr.Dataset:
    """Lay arrays over the tasks of the groups."""
    epochs = recipe.epochs > 0
    lengths = [len(group.ra_deg) for group in groups]
    token = tokenize(recipe, [(group.ra_deg, group.dec_deg, group.scale_arcsec, group.numbers) for group in groups], images.files)
    name = f"stack-{token}"
    tasks: dict[Any, Any] = {(name, n): (stack_group, group, recipe, reader) for n, group in enumerate(groups)}
    sizes = {leading: len(things.ids), "band": len(recipe.bands), "epoch": recipe.epochs, "y": recipe.size, "x": recipe.size}
    dtypes = {"image": recipe.dtype, "mjd": "float64", "state": "uint8", "n_exposures": "uint16", "unreadable": "uint16"}
    variables: dict[str, Any] = {}
    for variable, known in VARIABLES.items():
        if known.dims == "objects" or not _is_made(variable, recipe):
            continue
        dims = dims_of(known.dims, leading, epochs=epochs)
        dtype = dtypes.get(variable, "int32" if known.kinds == "i" else "float32")
        layer = {
            (f"{variable}-{token}", n, *(0,) * (len(dims) - 1)): (operator.getitem, (name, n), variable)
            for n in range(len(groups))
        }
        chunks = (tuple(lengths), *((sizes[dim],) for dim in dims[1:]))
        graph = HighLevelGraph({name: tasks, f"{variable}-{token}": layer}, {name: set(), f"{variable}-{token}": {name}})
        array = da.Array(graph, f"{variable}-{token}", chunks, dtype=dtype)
        variables[variable] = (dims, array, _attributes(known, variable, images))
    coordinates = {
        f"{leading}_id": ((leading,), things.ids, {"long_name": "HEALPix pixel" if leading == "tile" else "id of the object"}),
        "ra": ((leading,), things.ra_deg, _attributes(VARIABLES["ra"], "ra", images)),
        "dec": ((leading,), things.dec_deg, _attributes(VARIABLES["dec"], "dec", images)),
        "scale_asked": ((leading,), things.scale_arcsec, _attributes(VARIABLES["scale_asked"], "scale_asked", images)),
        "band": (("band",), np.array(recipe.bands, object), {"long_name": "filter"}),
        **{key: variables.pop(key) for key in ("mjd", "exposure")},
    }
    waves = survey.images.wavelength_nm if survey.images else {}
    coordinates["wavelength"] = (("band",), np.array([waves.get(band, np.nan) for band in recipe.bands]), {"units": "nm"})
    variables |= _tables(images, recipe.bands, reader)
    policy = asdict(CutoutSize(pixels=size)) if isinstance(size, int) else None if size is None else asdict(size)
    about = {
        "format": FORMAT,
        "kind": "tiles" if leading == "tile" else "cutouts",
        "survey": survey.name,
        "size": recipe.size,
        "size_asked": policy,
        "combine": recipe.method or None,
        "resampling": "native" if recipe.resampling == "native" else RESAMPLING[recipe.resampling],
        "grid": recipe.reference or ("native" if recipe.resampling == "native" else "tangent"),
        "psf": {
            "before": "psf_fwhm",
            "after": "psf_fwhm_after",
            "method": "second moments add: FWHM^2 + 8 ln 2 V of each exposure, V being the kernel's variance where it was moved",
            "kernel_variance": dict(
                zip(
                    ("source_pixel", "grid_pixel", "larger_pixel"),
                    KERNEL_VARIANCE.get(recipe.resampling, (0.0,) * 3),
                    strict=True,
                )
            ),
        },
        "pixel_holds": "flux" if recipe.flux else "surface_brightness",
        "bad_bits": recipe.bad_bits if recipe.mask else None,
    }
    attributes = {
        "cube": json.dumps(about),
        "states": json.dumps(STATES),
        "quarantine": json.dumps([{"file": file, "reason": reason} for file, reason in images.problems]),
    }
    return check_cube(xr.Dataset(variables, coordinates, attributes))


def _is_made(variable: str, recipe: Recipe) -> bool:
    return {"ivar": bool(recipe.weight), "mask": recipe.mask, "n_exposures": not recipe.epochs}.get(variable, True)


def _attributes(known: Known, name: str, images: SkyImages) -> dict[str, str]:
    """Return unit and description of a variable."""
    unit = known.units
    if name in ("image", "ivar"):
        units = {exposure.unit for exposure in images.exposures}
        own = units.pop() if len(units) == 1 else ""
        unit = own if name == "image" or not own else f"({own})**-2"
    return {"long_name": known.text, **({"units": unit} if unit or name in ("image", "ivar") else {})}


def _tables(images: SkyImages, bands: tuple[str, ...], reader: ImageReader) -> dict[str, Any]:
    """Return the tables of exposures, of sources, and of the raw headers, which are read when they are asked for."""
    place = {file.name: n for n, file in enumerate(images.files)}
    sizes = np.array([size for file in images.files for size in file.headers], np.int64)
    stops = np.cumsum(sizes)
    batches = [images.files[n : n + _FILES_PER_TASK] for n in range(0, len(images.files), _FILES_PER_TASK)]
    token = tokenize(images.files)
    name = f"sources-{token}"
    tasks: dict[Any, Any] = {(name, n): (_capture, list(batch), reader) for n, batch in enumerate(batches)}

    def lazy(what: str, lengths: list[int], rest: tuple[int, ...]) -> da.Array:
        key = f"{what}-{token}"
        layer = {(key, n, *(0,) * len(rest)): (operator.getitem, (name, n), what) for n in range(len(batches))}
        graph = HighLevelGraph({name: tasks, key: layer}, {name: set(), key: {name}})
        return da.Array(graph, key, (tuple(lengths), *((n,) for n in rest)), dtype=np.uint8)

    digests = lazy("sha256", [len(batch) for batch in batches], (32,))
    headers = lazy("headers", [sum(sum(file.headers) for file in batch) for batch in batches], ())
    exposures = images.exposures
    columns: dict[str, tuple[tuple[str, ...], Any]] = {
        "exposure_name": (("exposures",), np.array([one.name for one in exposures], object)),
        "exposure_hdu": (("exposures",), np.array([one.hdu for one in exposures], np.int32)),
        "exposure_plane": (("exposures",), np.array([one.plane for one in exposures], np.int32)),
        "exposure_band": (("exposures",), np.array([bands.index(one.band) for one in exposures], np.int32)),
        "exposure_mjd": (("exposures",), np.array([one.mjd for one in exposures])),
        "exposure_source": (("exposures",), np.array([place[one.name] for one in exposures], np.int32)),
        "source_uri": (("source",), np.array([file.name for file in images.files], object)),
        "source_size": (("source",), np.array([file.size for file in images.files], np.int64)),
        "source_sha256": (("source", "sha256_byte"), digests),
        "header_source": (("header",), np.repeat(np.arange(len(images.files)), [len(file.headers) for file in images.files])),
        "header_hdu": (("header",), np.concatenate([np.arange(len(file.headers)) for file in images.files])),
        "header_start": (("header",), stops - sizes),
        "header_stop": (("header",), stops),
        "headers": (("header_byte",), headers),
    }
    return columns


def _capture(files: Sequence[FileHeaders], reader: ImageReader) -> dict[str, NDArray[np.uint8]]:
    """Read files whole: their digests, and the raw headers of all their HDUs one behind the other."""
    digests, headers = [], []
    for file in files:
        with local_copy(file.path) as here:
            with Path(here).open("rb") as stream:
                digests.append(hashlib.file_digest(stream, "sha256").digest())
            with reader.opened(here) as opened:
                headers += [hdu.header for hdu in opened.hdus]
    flat = b"".join(headers)
    return {"sha256": np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32), "headers": np.frombuffer(flat, np.uint8)}
