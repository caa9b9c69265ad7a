"""Cutouts of 64 x 64 pixels around 10,000 objects in five bands, on two threads; against a loop of astropy's `Cutout2D`."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
from astropy import units as u
from astropy.coordinates import SkyCoord
from astropy.io import fits
from astropy.nddata import Cutout2D
from astropy.wcs import WCS

import scalable
from benchmarks.measure import Measured, compare
from scalable.synthetic.images import ImageSpec, write_images

OBJECTS, SIZE = 10_000, 64
SPEC = ImageSpec(seed=1, epochs=1, size=4096, stars=3000, galaxies=1000, dither_pixels=8, defects=False)


def positions(spec: ImageSpec, count: int) -> pa.Table:
    """Return places all over the field."""
    rng = np.random.default_rng(1)
    half = spec.size * spec.pixel_arcsec / 3600 * 0.48
    dec = spec.dec_deg + rng.uniform(-half, half, count)
    ra = spec.ra_deg + rng.uniform(-half, half, count) / np.cos(np.radians(spec.dec_deg))
    return pa.table({"object_id": np.arange(count), "ra": ra, "dec": dec})


def loop(folder: Path, objects: pa.Table, bands: tuple[str, ...]) -> np.ndarray:
    """Return the same cutouts as a user makes them."""
    out = np.empty((objects.num_rows, len(bands), SIZE, SIZE), np.float32)
    places = SkyCoord(objects["ra"].to_numpy(), objects["dec"].to_numpy(), unit=u.deg)
    for b, band in enumerate(bands):
        with fits.open(folder / "images" / f"{band}-000.fits") as file:
            wcs = WCS(file["SCI"].header)
            for n in range(objects.num_rows):
                out[n, b] = Cutout2D(file["SCI"].data, places[n], SIZE, wcs=wcs, mode="partial", fill_value=np.nan).data
    return out


def run() -> list[Measured]:
    """Compare computing all cutouts into memory; ours has masks, weights and states besides only where they are described."""
    warnings.simplefilter("ignore")
    folder = Path(tempfile.mkdtemp())
    survey = scalable.open_survey(write_images(SPEC, folder))
    images = survey.images.model_copy(update={"mask": None, "weight": None})
    survey = survey.model_copy(update={"images": images})
    objects = positions(SPEC, OBJECTS)

    def ours() -> np.ndarray:
        with dask.config.set(scheduler="threads", num_workers=2):
            cube = scalable.stack_images(survey, objects, size=SIZE)
            cube = cube[["image", "state"]].compute()
        return cube

    cube = ours()
    few = objects.slice(0, 200)
    expected = loop(folder, few, SPEC.bands)
    order = {int(thing): n for n, thing in enumerate(cube["object_id"].values)}
    rows = [order[int(thing)] for thing in few["object_id"].to_pylist()]
    assert np.array_equal(cube["image"].values[rows, :, 0], expected, equal_nan=True)
    megabytes = OBJECTS * len(SPEC.bands) * SIZE**2 * 4 / 1e6
    contenders = {"scalable stack_images": ours, "astropy Cutout2D loop": lambda: loop(folder, objects, SPEC.bands)}
    return compare("10,000 objects x 5 bands x 64²", contenders, megabytes=megabytes, repeats=1)
