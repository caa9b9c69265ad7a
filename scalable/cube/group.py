"""One task of a cube: the pixels of a group of neighbouring objects, or of a tile, from every image that shows them."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
from astropy.wcs import WCS
from numpy.typing import NDArray

from scalable.errors import ScalableError, SurveyError
from scalable.io.exposures import Exposure, Plane
from scalable.io.image_reader import ImageFile, ImageReader, Window
from scalable.kernels.resample import resample, resample_mask, widened
from scalable.kernels.stack import PixelState, combine, mark, place, strips, window_start
from scalable.sky.grid import read_wcs, shifted, tangent, to_pixel, to_sky, whole_shift
from scalable.sky.healpix import unit_vectors

Pixels = NDArray[Any]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

STRIP_PIXELS = 1 << 23
"""Pixels of an image that are read at a time."""

_MARGIN = 8
"""Pixels around what a resampled window needs, of the source or of the grid, whichever is larger."""

_LOG = logging.getLogger(__name__)
_ONE_AT_A_TIME = threading.Lock()  # reproject is not thread-safe


@dataclass(frozen=True)
class Recipe:
    """What every group of a cube has in common.

    Attributes
    ----------
    bands : tuple of str
        In the order of the cube.
    size : int
        Rows and columns.
    epochs : int
        Slots of a band, or 0 where exposures are combined.
    method : str
        How they are combined.
    resampling : str
        ``native``, or one of `resample.METHODS`.
    reference : str
        Band whose own pixels are the grid of all, or empty: then a resampled cube lies on tangent grids.
    dtype : str
        Of the pixels.
    flux : bool
        Whether a pixel holds flux, not a surface brightness.
    weight : str
        What the weight files hold, or empty.
    mask : bool
        Whether there are masks.
    bad_bits : int, optional
        Bits of the mask that make a pixel bad; None for all.
    """

    bands: tuple[str, ...]
    size: int
    epochs: int
    method: str
    resampling: str
    reference: str
    dtype: str
    flux: bool
    weight: str
    mask: bool
    bad_bits: int | None

    @property
    def slots(self) -> tuple[int, ...]:
        """Lengths of the dimensions between the object and the pixels."""
        return (len(self.bands), self.epochs) if self.epochs else (len(self.bands),)


@dataclass(frozen=True)
class Group:
    """Some objects, neighbours on the sky, and the images that may show them.

    Attributes
    ----------
    ra_deg, dec_deg : ndarray, shape (n,)
        Positions.
    scale_arcsec : ndarray, shape (n,)
        Side of a pixel of their tangent grids; NaN where the pixels are those of the images.
    side_arcsec : ndarray, shape (n,)
        Side of the square that was asked for; NaN where that is a number of pixels.
    exposures : tuple of Exposure
        Images, in the order of the survey's.
    numbers : tuple of int
        Their places among all of the survey's.
    """

    ra_deg: Floats
    dec_deg: Floats
    scale_arcsec: Floats
    side_arcsec: Floats
    exposures: tuple[Exposure, ...]
    numbers: tuple[int, ...]


@dataclass
class _Cut:
    """What one exposure shows of some objects: a window each; ``y0`` and ``x0`` are its place in the image of ``grid``, or -1."""

    exposure: Exposure
    number: int
    objects: Ints
    image: Pixels
    ivar: NDArray[np.float32]
    mask: NDArray[np.int32]
    state: NDArray[np.uint8]
    scale_arcsec: Floats
    psf_arcsec: Floats
    grid: Ints
    y0: Ints
    x0: Ints


def most_epochs(group: Group, recipe: Recipe, reader: ImageReader) -> int:
    """Return how many exposures of one band show one object at most; reads headers only."""
    counts = np.zeros((len(group.ra_deg), len(recipe.bands)), np.int64)
    for exposure, _, file in _opened(group, recipe, reader):
        objects, _, _ = _shown(exposure, _wcs(exposure, file), group, recipe)
        counts[objects, recipe.bands.index(exposure.band)] += 1
    return int(counts.max(initial=0))


def stack_group(group: Group, recipe: Recipe, reader: ImageReader) -> dict[str, Pixels]:
    """Return the arrays of a group's objects, by name; the first dimension is the objects, then those of `Recipe.slots`.

    An image that turns out to be damaged when its pixels are read is left out, counted in ``unreadable`` and logged.

    Raises
    ------
    SurveyError
        If exposures that are to be combined as they are lie on different grids.
    """
    cuts: dict[str, list[_Cut]] = {band: [] for band in recipe.bands}
    unreadable = np.zeros((len(group.ra_deg), len(recipe.bands)), np.uint16)
    grids = _Grids()
    for exposure, number, file in _opened(group, recipe, reader):
        shown = _Shown(exposure, number, _wcs(exposure, file), group, recipe, grids)
        objects, x, y = _shown(exposure, shown.wcs, group, recipe)
        try:
            with ExitStack() as stack:
                planes = {"image": (file, Plane(exposure.name, exposure.path, exposure.hdu, exposure.plane))}
                for kind in ("mask", "weight"):
                    plane: Plane | None = getattr(exposure, kind)
                    if plane is not None and len(objects):
                        other = file if plane.path == exposure.path else stack.enter_context(reader.opened(plane.path))
                        planes[kind] = (other, plane)
                if len(objects) and (cut := shown.cut(objects, x, y, planes)):
                    cuts[exposure.band].append(cut)
        except SurveyError:
            raise
        except (ScalableError, OSError) as error:
            _LOG.warning("an image is left out of a cube: %s", error)
            unreadable[objects, recipe.bands.index(exposure.band)] += 1
    bands = [_band(sorted(cuts[band], key=lambda cut: cut.number), group, recipe) for band in recipe.bands]
    arrays = {name: np.stack([band[name] for band in bands], axis=1) for name in bands[0]}
    return arrays | {"unreadable": unreadable}


def _opened(group: Group, recipe: Recipe, reader: ImageReader) -> Iterator[tuple[Exposure, int, ImageFile]]:
    """Open each file once and give the images in it; those of the reference band come first, as they give the grid."""
    exposures = group.exposures
    order = sorted(
        range(len(exposures)),
        key=lambda n: (bool(recipe.reference) and exposures[n].band != recipe.reference, exposures[n].path, n),
    )
    path = ""
    with ExitStack() as stack:
        for n in order:
            if exposures[n].path != path:
                stack.close()
                file = stack.enter_context(reader.opened(exposures[n].path))
                path = exposures[n].path
            yield exposures[n], group.numbers[n], file


def _wcs(exposure: Exposure, file: ImageFile) -> WCS:
    return _parsed(file.hdus[exposure.hdu].header, file.hdus[0].header, threading.get_ident())


@lru_cache(maxsize=256)
def _parsed(header: bytes, primary: bytes, _thread: int) -> WCS:
    """Read world coordinates; each thread has its own, as their library may write into them."""
    return read_wcs(header, primary)


def _shown(exposure: Exposure, wcs: WCS, group: Group, recipe: Recipe) -> tuple[Ints, Floats, Floats]:
    """Return the objects whose window may touch an image, and where in it they are [pixel]."""
    place = exposure.footprint
    sides = np.where(np.isfinite(group.scale_arcsec), group.scale_arcsec, place.scale_arcsec) * recipe.size
    # Beside its footprint a projection may fold back, and a distortion does not converge.
    middle = unit_vectors(np.array([place.ra_deg]), np.array([place.dec_deg]))
    chord = np.linalg.norm(unit_vectors(group.ra_deg, group.dec_deg) - middle, axis=1)
    reach = np.radians(place.radius_deg + sides / 3600)
    objects = np.flatnonzero(2 * np.arcsin(np.minimum(1.0, chord / 2)) <= reach)
    x, y = to_pixel(wcs, group.ra_deg[objects], group.dec_deg[objects])
    # A window that is turned against the image reaches further along its axes.
    half = sides[objects] / place.scale_arcsec / 2 * (1.0 if recipe.resampling == "native" else math.sqrt(2)) + 1
    rows, columns = exposure.shape
    touched = (x > -half) & (x < columns + half) & (y > -half) & (y < rows + half)
    return objects[touched], x[touched], y[touched]


@dataclass
class _Grids:
    """The pixel grids that objects are given by the first image that shows them."""

    wcs: dict[int, WCS] = field(default_factory=dict)
    scale_arcsec: dict[int, float] = field(default_factory=dict)
    found: dict[tuple[int, str], tuple[int, int, int]] = field(default_factory=dict)
    """By object and band (of all bands the reference's): exposure, first row and first column."""


@dataclass
class _Shown:
    """One exposure, and the windows it fills: copied where it has the very pixels of the grid, else resampled."""

    exposure: Exposure
    number: int
    wcs: WCS
    group: Group
    recipe: Recipe
    grids: _Grids

    def cut(self, objects: Ints, x: Floats, y: Floats, planes: dict[str, tuple[ImageFile, Plane]]) -> _Cut | None:
        """Return the windows of objects at places of the image; None if none of them has a grid."""
        size = self.recipe.size
        y0, x0 = window_start(y, size), window_start(x, size)
        grid, at_y, at_x = np.full(len(objects), self.number), y0.copy(), x0.copy()
        targets: dict[int, WCS] = {}
        scale = np.full(len(objects), self.exposure.footprint.scale_arcsec)
        kept = np.ones(len(objects), np.bool_)
        if self.recipe.reference or (self.recipe.resampling == "native" and not self.recipe.epochs):
            for n, thing in enumerate(objects.tolist()):
                place = self._place(thing, x[n], y[n], int(y0[n]), int(x0[n]))
                if place is None:
                    kept[n] = False
                    continue
                grid[n], at_y[n], at_x[n] = place
                target = shifted(self.grids.wcs[place[0]], place[1], place[2])
                scale[n] = self.grids.scale_arcsec[place[0]]
                self._move(n, target, y0, x0, targets, place[0] == self.number)
        elif self.recipe.resampling != "native":
            scale = self.group.scale_arcsec[objects]
            grid[:], at_y[:], at_x[:] = -1, -1, -1
            for n, thing in enumerate(objects.tolist()):
                target = tangent(self.group.ra_deg[thing], self.group.dec_deg[thing], size, scale[n])
                self._move(n, target, y0, x0, targets, False)
        if not kept.any():
            return None
        copied = np.array([n for n in np.flatnonzero(kept) if n not in targets], np.int64)
        image, ivar, bits, state = self._copied(len(objects), copied, y0, x0, planes)
        psf = np.full(len(objects), self.exposure.psf_fwhm_arcsec)
        moved = np.array(list(targets), np.int64)
        if len(moved):
            own = self.exposure.footprint.scale_arcsec
            psf[moved] = widened(psf[moved], self.recipe.resampling, own, scale[moved])
        for n, target in targets.items():
            image[n], ivar[n], bits[n], state[n] = self._resampled(target, planes)
        if kept.all():
            return _Cut(self.exposure, self.number, objects, image, ivar, bits, state, scale, psf, grid, at_y, at_x)
        return _Cut(
            self.exposure, self.number, objects[kept], image[kept], ivar[kept], bits[kept], state[kept],
            scale[kept], psf[kept], grid[kept], at_y[kept], at_x[kept],
        )  # fmt: skip

    def _place(self, thing: int, x: float, y: float, y0: int, x0: int) -> tuple[int, int, int] | None:
        """Return the grid of an object, which this exposure gives if no other one has."""
        band = self.recipe.reference or self.exposure.band
        found = self.grids.found.get((thing, band))
        if found is None and self.exposure.band == band:
            rows, columns = self.exposure.shape
            if self.recipe.reference and not (-0.5 <= x < columns - 0.5 and -0.5 <= y < rows - 0.5):
                return None
            found = self.grids.found[thing, band] = (self.number, y0, x0)
            self.grids.wcs.setdefault(self.number, self.wcs)
            self.grids.scale_arcsec[self.number] = self.exposure.footprint.scale_arcsec
        return found

    def _move(self, n: int, target: WCS, y0: Ints, x0: Ints, targets: dict[int, WCS], own: bool) -> None:
        """Settle where a window begins in this image, or that it must be resampled."""
        if own:
            return
        shift = whole_shift(self.wcs, target, self.recipe.size)
        if shift is not None:
            y0[n], x0[n] = shift
        elif self.recipe.resampling != "native":
            targets[n] = target
        else:
            raise SurveyError(
                f"{self.exposure.name}: exposures in {self.exposure.band} lie on different pixel grids and cannot be combined as "
                "they are; give resampling='adaptive' (or 'interp', 'exact'), or combine=None for each epoch by itself"
            )

    def _copied(
        self, count: int, copied: Ints, y0: Ints, x0: Ints, planes: dict[str, tuple[ImageFile, Plane]]
    ) -> tuple[Pixels, NDArray[np.float32], NDArray[np.int32], NDArray[np.uint8]]:
        """Cut windows as they are."""
        size, shape = self.recipe.size, self.exposure.shape
        image = np.full((count, size, size), np.nan, self.recipe.dtype)
        ivar = np.zeros(image.shape, np.float32)
        bits = np.zeros(image.shape, np.int32)
        y, x = y0[copied], x0[copied]
        for which, (top, bottom, left, right) in strips(y, x, size, shape, STRIP_PIXELS):
            window = Window(top, bottom, left, right)
            for kind, out in (("image", image), ("weight", ivar), ("mask", bits)):
                if kind in planes:
                    # Of one type and layout, so that few variants of the kernel are compiled.
                    part = np.ascontiguousarray(self._read(kind, planes, window), out.dtype)
                    place(part, top, left, y[which], x[which], copied[which], out)
        return image, ivar, bits, self._states(image, ivar, bits, shape, y, x, copied)

    def _states(
        self, image: Pixels, ivar: Pixels, bits: Pixels, shape: tuple[int, int], y0: Ints, x0: Ints, slots: Ints
    ) -> NDArray[np.uint8]:
        state = np.empty(image.shape, np.uint8)
        bad = (-1 if self.recipe.bad_bits is None else self.recipe.bad_bits) if self.recipe.mask else 0
        mark(image, ivar, bool(self.recipe.weight), bits, bad, shape, y0, x0, slots, state)
        return state

    def _read(self, kind: str, planes: dict[str, tuple[ImageFile, Plane]], window: Window) -> Pixels:
        file, plane = planes[kind]
        pixels = file.read(plane.hdu, window, plane=plane.plane)
        if kind == "mask":
            return pixels.astype(np.int32)
        if kind == "image" or self.recipe.weight == "ivar":
            return pixels
        spread = np.asarray(pixels, np.float64) ** (2 if self.recipe.weight == "sigma" else 1)
        return np.divide(1.0, spread, out=np.zeros_like(spread), where=spread > 0)

    def _resampled(
        self, target: WCS, planes: dict[str, tuple[ImageFile, Plane]]
    ) -> tuple[Floats, Floats, NDArray[np.int32], NDArray[np.uint8]]:
        """Return image, inverse variance, mask and state of one window on another grid."""
        size, (rows, columns) = self.recipe.size, self.exposure.shape
        empty = np.full((size, size), np.nan)
        nothing = (
            empty,
            np.zeros((size, size)),
            np.zeros((size, size), np.int32),
            np.full((size, size), PixelState.OUTSIDE, np.uint8),
        )
        across, down = np.meshgrid(np.arange(size, dtype=np.float64), np.arange(size, dtype=np.float64))
        x, y = (axis.reshape(size, size) for axis in to_pixel(self.wcs, *to_sky(target, across.ravel(), down.ravel())))
        inside = (x >= -0.5) & (x < columns - 0.5) & (y >= -0.5) & (y < rows - 0.5)
        if not inside.any():
            return nothing
        margin = math.ceil(
            _MARGIN * max(1.0, float(np.nanmax(np.abs(np.diff(x, axis=1)))), float(np.nanmax(np.abs(np.diff(y, axis=1)))))
        )
        top, bottom = max(0, math.floor(y[inside].min()) - margin), min(rows, math.ceil(y[inside].max()) + margin + 1)
        left, right = max(0, math.floor(x[inside].min()) - margin), min(columns, math.ceil(x[inside].max()) + margin + 1)
        window = Window(top, bottom, left, right)
        image = np.asarray(self._read("image", planes, window), np.float64)
        weight = np.asarray(self._read("weight", planes, window), np.float64) if "weight" in planes else None
        bits = self._read("mask", planes, window) if "mask" in planes else np.zeros(image.shape, np.int32)
        first = np.zeros(1, np.int64)
        spare = np.empty((1, 1), np.float32) if weight is None else weight.astype(np.float32)
        bad = self._states(image[None], spare[None], bits[None], image.shape, first, first, first)[0] != PixelState.MEASURED
        part = shifted(self.wcs, top, left)
        method, flux = self.recipe.resampling, self.recipe.flux
        with _ONE_AT_A_TIME:
            out, ratio = resample(image, bad, part, target, size, x - left, y - top, method=method, flux=flux)
            spread = empty
            if weight is not None:
                variance = np.divide(1.0, weight, out=np.ones_like(weight), where=~bad)
                spread, _ = resample(variance, bad, part, target, size, x - left, y - top, method=method, flux=False)
        # Independent pixels add their variances; what neighbours share after resampling is not kept.
        spread = spread * ratio if flux else spread / ratio
        ivar = np.where(spread > 0, 1 / np.where(spread > 0, spread, 1), 0) if weight is not None else empty
        state = np.where(inside, np.where(np.isfinite(out), PixelState.MEASURED, PixelState.MASKED), PixelState.OUTSIDE)
        return out, ivar, resample_mask(bits, x - left, y - top, ratio), state.astype(np.uint8)


def _band(cuts: Sequence[_Cut], group: Group, recipe: Recipe) -> dict[str, Pixels]:
    """Put the windows of one band into the slots of their objects, and combine them if that is asked for."""
    count, size = len(group.ra_deg), recipe.size
    filled = np.zeros(count, np.int64)
    slots = []
    for cut in cuts:
        slots.append(filled[cut.objects])
        filled[cut.objects] += 1
    depth = recipe.epochs or int(filled.max(initial=0))
    planes: dict[str, tuple[Any, Any]] = {"image": (recipe.dtype, np.nan), "state": (np.uint8, PixelState.NOT_OBSERVED)}
    planes |= {"ivar": (np.float32, np.nan)} if recipe.weight else {}
    planes |= {"mask": (np.int32, 0)} if recipe.mask else {}
    if depth == 1 and len(cuts) == 1 and len(cuts[0].objects) == count:
        stacks: dict[str, Pixels] = {name: getattr(cuts[0], name)[None] for name in planes}
    else:
        stacks = {name: np.full((depth, count, size, size), fill, dtype) for name, (dtype, fill) in planes.items()}
        for cut, slot in zip(cuts, slots, strict=True):
            for name, stack in stacks.items():
                stack[slot, cut.objects] = getattr(cut, name)
    numbers = {name: np.full((depth, count), -1, np.int32) for name in ("exposure", "grid", "y0", "x0")}
    values = {
        name: np.full((depth, count), np.nan) for name in ("mjd", "psf_fwhm", "psf_fwhm_after", "pixel_scale", "downsampling")
    }
    for cut, slot in zip(cuts, slots, strict=True):
        where = slot, cut.objects
        numbers["exposure"][where], numbers["grid"][where] = cut.number, cut.grid
        numbers["y0"][where], numbers["x0"][where] = cut.y0, cut.x0
        values["mjd"][where], values["psf_fwhm"][where] = cut.exposure.mjd, cut.exposure.psf_fwhm_arcsec
        values["psf_fwhm_after"][where] = cut.psf_arcsec
        values["pixel_scale"][where] = cut.scale_arcsec
        values["downsampling"][where] = cut.scale_arcsec / cut.exposure.footprint.scale_arcsec
    if recipe.epochs:
        arrays = {name: np.moveaxis(array, 0, 1) for name, array in {**stacks, **numbers, **values}.items()}
    else:
        weight = stacks.get("ivar", np.broadcast_to(np.float32(np.nan), stacks["image"].shape))
        image, ivar, state, _ = combine(stacks["image"], weight, stacks["state"], recipe.method)
        arrays = {
            "image": image,
            "state": state,
            "n_exposures": filled.astype(np.uint16),
            **({"ivar": ivar} if recipe.weight else {}),
            **({"mask": np.bitwise_or.reduce(stacks["mask"], axis=0, initial=0)} if recipe.mask else {}),
            **{name: array[0] if depth else np.full(count, -1, np.int32) for name, array in numbers.items()},
            **{name: _mean(array) for name, array in values.items()},
            "psf_fwhm_after": np.sqrt(_mean(values["psf_fwhm_after"] ** 2)),
        }
    side = group.side_arcsec.reshape(-1, *(1,) * (arrays["pixel_scale"].ndim - 1))
    held = np.minimum(1.0, size * arrays["pixel_scale"] / side)
    arrays["pad_fraction"] = (arrays["state"] >= PixelState.OUTSIDE).mean(axis=(-2, -1)).astype(np.float32)
    arrays["crop_fraction"] = np.where(np.isfinite(side), 1 - held**2, 0).astype(np.float32)
    for name in ("psf_fwhm", "psf_fwhm_after", "pixel_scale", "downsampling"):
        arrays[name] = arrays[name].astype(np.float32)
    return arrays


def _mean(values: Floats) -> Floats:
    """Return the mean over exposures, NaN where there is none."""
    known = np.isfinite(values)
    count = known.sum(axis=0)
    return np.divide(np.where(known, values, 0).sum(axis=0), count, out=np.full(values.shape[1:], np.nan), where=count > 0)
