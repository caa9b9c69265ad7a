"""Images whose truth is known: stars and galaxies from a seed, in any number of bands, with noise, masks, weights and defects.

Every profile is a circular Gaussian, integrated over each pixel, so that the flux of a source is in its pixels exactly. Every
draw comes from a generator seeded with (seed, purpose, number): an exposure does not change when others are asked for.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv
from astropy.io import fits
from astropy.wcs import WCS
from numba import njit
from numpy.typing import NDArray

from scalable.errors import SurveyError
from scalable.sky.grid import to_pixel
from scalable.synthetic.sky import BANDS, PIXEL_ARCSEC, Sky
from scalable.synthetic.sky import GALAXY as SKY_GALAXY

Floats = NDArray[np.float64]

STAR, GALAXY = 0, 1
BAD_COLUMN, COSMIC_RAY = 0, 3
"""Bits of the mask."""

ZERO_POINT = 25.0
FIRST_MJD = 59000.0
_REACH = 6.0  # standard deviations out to which a source is drawn: a flux of 1e-8 lies beyond


class _Stream(IntEnum):
    """What a generator is for."""

    SOURCES = 1
    EXPOSURE = 2


@dataclass(frozen=True)
class ImageSpec:
    """What to make.

    Attributes
    ----------
    seed : int
        Of everything.
    bands : tuple of str
        Filters, in order of wavelength; any number.
    epochs : int
        Exposures in each band.
    size : int
        Rows and columns of an exposure.
    pixel_arcsec, seeing_arcsec : float
        Side of a pixel, and mean full width at half maximum of the point spread function [arcsec].
    stars, galaxies : int
        Sources.
    ra_deg, dec_deg : float
        Middle of the field [deg].
    noise : float
        Standard deviation of a pixel [adu].
    dither_pixels, rotation_deg : float
        Largest shift and turn between exposures; with none, all have one grid.
    defects : bool
        Whether there are bad columns and cosmic rays; the mask marks them.
    """

    seed: int = 1
    bands: tuple[str, ...] = ("g", "r", "i", "z", "y")
    epochs: int = 2
    size: int = 256
    pixel_arcsec: float = 0.25
    seeing_arcsec: float = 0.9
    stars: int = 40
    galaxies: int = 20
    ra_deg: float = 150.0
    dec_deg: float = 2.2
    noise: float = 3.0
    dither_pixels: float = 8.0
    rotation_deg: float = 0.5
    defects: bool = True

    def __post_init__(self) -> None:
        """Refuse what gives no images."""
        if not self.bands or self.epochs < 1 or self.size < 8 or len(set(self.bands)) < len(self.bands):
            raise SurveyError(f"{self}: bands that differ, at least one epoch and 8 pixels are needed")


def make_sources(spec: ImageSpec) -> pa.Table:
    """Return the truth: ``object_id``, ``ra``, ``dec`` [deg], ``kind``, ``size_arcsec`` (half-light radius, 0 of a star) and a
    column of fluxes [adu] named ``flux_BAND`` for each band.
    """  # noqa: D205
    rng = np.random.default_rng([spec.seed, _Stream.SOURCES, 0])
    count = spec.stars + spec.galaxies
    half = spec.size * spec.pixel_arcsec / 3600 / 2
    dec = spec.dec_deg + rng.uniform(-half, half, count)
    ra = (spec.ra_deg + rng.uniform(-half, half, count) / math.cos(math.radians(spec.dec_deg))) % 360
    kind = np.repeat([STAR, GALAXY], [spec.stars, spec.galaxies])
    size = np.where(kind == GALAXY, rng.uniform(0.4, 2.0, count), 0.0)
    bright = 10 ** rng.uniform(2.8, 5.0, count)
    slope = rng.normal(0, 0.5, count) + np.where(kind == GALAXY, 0.5, 0.0)
    along = np.linspace(-1, 1, len(spec.bands)) if len(spec.bands) > 1 else np.zeros(1)
    fluxes = {f"flux_{band}": bright * np.exp(slope * place) for band, place in zip(spec.bands, along, strict=True)}
    return pa.table({"object_id": np.arange(1, count + 1), "ra": ra, "dec": dec, "kind": kind, "size_arcsec": size, **fluxes})


def draw_exposure(spec: ImageSpec, sources: pa.Table, band: str, epoch: int) -> dict[str, Any]:
    """Return one exposure: ``image`` (float32), ``mask`` (int16), ``ivar`` (float32), ``wcs``, ``mjd`` and ``fwhm_arcsec``."""
    number = spec.bands.index(band) * spec.epochs + epoch
    rng = np.random.default_rng([spec.seed, _Stream.EXPOSURE, number])
    fwhm = spec.seeing_arcsec * rng.uniform(0.9, 1.1)
    wcs = _grid(spec, rng)
    x, y = to_pixel(wcs, sources["ra"].to_numpy(), sources["dec"].to_numpy())
    sigma = np.hypot(fwhm / 2.35482, sources["size_arcsec"].to_numpy() / 1.17741) / spec.pixel_arcsec
    image = rng.normal(0, spec.noise, (spec.size, spec.size)) if spec.noise else np.zeros((spec.size, spec.size))
    _add_sources(image, x, y, sigma, sources[f"flux_{band}"].to_numpy())
    mask = np.zeros(image.shape, np.int16)
    if spec.defects:
        _add_defects(image, mask, rng)
    ivar = np.full(image.shape, 1 / max(spec.noise, 1e-3) ** 2, np.float32)
    ivar[mask != 0] = 0
    mjd = FIRST_MJD + 3 * epoch + 0.01 * spec.bands.index(band)
    return {"image": image.astype(np.float32), "mask": mask, "ivar": ivar, "wcs": wcs, "mjd": mjd, "fwhm_arcsec": fwhm}


def _grid(spec: ImageSpec, rng: np.random.Generator) -> WCS:
    """Return the world coordinates of an exposure, shifted and turned by chance."""
    turn = math.radians(rng.uniform(-1, 1) * spec.rotation_deg)
    shift = rng.uniform(-1, 1, 2) * spec.dither_pixels
    scale = spec.pixel_arcsec / 3600
    wcs = WCS(naxis=2)
    wcs.wcs.ctype = ["RA---TAN", "DEC--TAN"]
    wcs.wcs.crval = [spec.ra_deg, spec.dec_deg]
    wcs.wcs.crpix = (spec.size + 1) / 2 + shift
    wcs.wcs.cd = scale * np.array([[-math.cos(turn), math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    wcs.wcs.radesys = "ICRS"
    wcs.wcs.set()
    return wcs


def _add_defects(image: Floats, mask: NDArray[np.int16], rng: np.random.Generator) -> None:
    size = len(image)
    for column in rng.integers(0, size, max(1, size // 128)):
        image[:, column] = 0
        mask[:, column] |= 1 << BAD_COLUMN
    rows, columns = rng.integers(0, size, (2, max(1, size * size // 8192)))
    image[rows, columns] += rng.uniform(1e3, 1e4, len(rows))
    mask[rows, columns] |= 1 << COSMIC_RAY


@njit(cache=True)
def _add_sources(image, x, y, sigma, flux):  # type: ignore[no-untyped-def]
    """Add circular Gaussians, integrated over each pixel."""
    rows, columns = image.shape
    for n in range(len(x)):
        width = sigma[n] * math.sqrt(2.0)
        reach = _REACH * sigma[n] + 1
        for row in range(max(0, math.ceil(y[n] - reach)), min(rows, math.floor(y[n] + reach) + 1)):
            down = math.erf((row + 0.5 - y[n]) / width) - math.erf((row - 0.5 - y[n]) / width)
            for column in range(max(0, math.ceil(x[n] - reach)), min(columns, math.floor(x[n] + reach) + 1)):
                across = math.erf((column + 0.5 - x[n]) / width) - math.erf((column - 0.5 - x[n]) / width)
                image[row, column] += flux[n] * down * across / 4


def write_images(spec: ImageSpec, folder: Path, *, sources: pa.Table | None = None) -> Path:
    """Write every exposure as a FITS file with its image, mask and weight in three HDUs, the truth, and a survey description.

    Parameters
    ----------
    spec : ImageSpec
        What to make.
    folder : Path
        Where; files are ``images/BAND-EPOCH.fits``, ``truth.csv`` and ``images.yaml``.
    sources : pyarrow.Table, optional
        What is on the sky; by default `make_sources`.

    Returns
    -------
    Path
        The survey description.
    """
    sources = make_sources(spec) if sources is None else sources
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for band in spec.bands:
        for epoch in range(spec.epochs):
            exposure = draw_exposure(spec, sources, band, epoch)
            cards = exposure["wcs"].to_header()
            primary = fits.PrimaryHDU()
            primary.header.update(
                {
                    "FILTER": band,
                    "MJD-OBS": exposure["mjd"],
                    "EXPTIME": 30.0,
                    "FWHM": exposure["fwhm_arcsec"],
                    "MAGZERO": ZERO_POINT,
                }
            )
            planes = [
                fits.ImageHDU(exposure[kind], header=cards, name=name)
                for kind, name in (("image", "SCI"), ("mask", "MASK"), ("ivar", "WEIGHT"))
            ]
            planes[0].header["BUNIT"] = "adu"
            fits.HDUList([primary, *planes]).writeto(folder / "images" / f"{band}-{epoch:03d}.fits", overwrite=True)
    pa.csv.write_csv(sources, folder / "truth.csv")
    path = folder / "images.yaml"
    path.write_text(
        f"survey: synthetic_images\ndescription: A synthetic field of images from seed {spec.seed}\nroot: .\n"
        f"bands: [{', '.join(spec.bands)}]\n" + images_yaml(spec)
    )
    return path


def add_images(sky: Sky, folder: Path) -> None:
    """Add images of the middle of field 1 to a survey that `write_tables` wrote, and the cutouts that a run makes of them."""
    ra, dec = sky.spec.centre
    spec = ImageSpec(
        seed=sky.spec.seed, bands=sky.spec.bands, epochs=1, size=512, pixel_arcsec=PIXEL_ARCSEC, ra_deg=ra, dec_deg=dec
    )
    stars = sky.stars.filter(pa.compute.equal(sky.stars["field"], 1))
    galaxy = stars["class"].to_numpy() == SKY_GALAXY
    fluxes = {f"flux_{band}": 10 ** (0.4 * (ZERO_POINT - stars[f"mag_{band}"].to_numpy())) for band in spec.bands}
    places = {"object_id": stars["star_id"], "ra": stars["ra_deg"], "dec": stars["dec_deg"]}
    kinds = {"kind": np.where(galaxy, GALAXY, STAR), "size_arcsec": np.where(galaxy, 1.0, 0.0)}
    write_images(spec, folder, sources=pa.table({**places, **kinds, **fluxes}))
    path = folder / "survey.yaml"
    cutouts = "products:\n  cutouts: {size: 32, combine: mean, resampling: adaptive}\n"
    path.write_text(path.read_text().replace("products:\n", cutouts, 1) + images_yaml(spec))


def images_yaml(spec: ImageSpec) -> str:
    """Return the block ``images`` of the description of a survey that `write_images` wrote."""
    made_up = {band: 400 + 600 * n / max(1, len(spec.bands) - 1) for n, band in enumerate(spec.bands)}
    known = all(band in BANDS for band in spec.bands)
    waves = {band: round(BANDS[band].wavelength_um * 1000 if known else made_up[band]) for band in spec.bands}
    lines = [
        "images:",
        "  glob: images/*.fits",
        "  hdu: [SCI]",
        "  band: {keyword: FILTER}",
        "  mjd: {keyword: MJD-OBS}",
        "  exposure_s: {keyword: EXPTIME}",
        "  psf_fwhm: {keyword: FWHM}",
        "  zero_point: {keyword: MAGZERO}",
        f"  mask: {{hdu: MASK, bad_bits: [{BAD_COLUMN}, {COSMIC_RAY}]}}",
        "  weight: {hdu: WEIGHT, kind: ivar}",
        f"  wavelength_nm: {json.dumps(waves)}",
    ]
    return "\n".join(lines) + "\n"
