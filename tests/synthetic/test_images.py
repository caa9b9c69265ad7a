"""Synthetic images hold the flux of their truth at the places of their truth, and are the same from the same seed."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from astropy.io import fits

from scalable.errors import SurveyError
from scalable.sky.grid import to_pixel
from scalable.synthetic.images import BAD_COLUMN, COSMIC_RAY, ImageSpec, draw_exposure, make_sources, write_images

SPEC = ImageSpec(seed=9, bands=("g", "r"), epochs=2, size=120, stars=8, galaxies=4)


def test_the_light_of_every_source_is_in_the_image_where_the_truth_says() -> None:
    spec = replace(SPEC, noise=0.0, defects=False)
    sources = make_sources(spec)
    for row in range(sources.num_rows):
        one = sources.slice(row, 1)
        exposure = draw_exposure(spec, one, "r", 1)
        x, y = to_pixel(exposure["wcs"], one["ra"].to_numpy(), one["dec"].to_numpy())
        reach = 6 * max(exposure["fwhm_arcsec"], one["size_arcsec"][0].as_py()) / spec.pixel_arcsec / 1.17741
        if not (reach < x[0] < 119 - reach and reach < y[0] < 119 - reach):
            continue
        image = exposure["image"].astype(float)
        rows, columns = np.indices(image.shape)
        assert image.sum() == pytest.approx(one["flux_r"][0].as_py(), rel=1e-5)
        assert (image * columns).sum() / image.sum() == pytest.approx(x[0], abs=1e-3)
        assert (image * rows).sum() / image.sum() == pytest.approx(y[0], abs=1e-3)


def test_noise_is_that_of_the_weights_and_defects_are_masked() -> None:
    spec = replace(SPEC, stars=0, galaxies=0)
    exposure = draw_exposure(spec, make_sources(spec), "g", 0)
    good = exposure["mask"] == 0
    assert exposure["image"][good].std() == pytest.approx(spec.noise, rel=0.05)
    assert np.allclose(exposure["ivar"][good], spec.noise**-2)
    assert (exposure["ivar"][~good] == 0).all()
    assert (exposure["image"][exposure["mask"] == 1 << COSMIC_RAY] > 500).all()
    assert (exposure["mask"] & 1 << BAD_COLUMN).any()


def test_the_same_seed_gives_the_same_files_and_an_exposure_does_not_depend_on_the_others(tmp_path: Path) -> None:
    for name in "ab":
        write_images(SPEC, tmp_path / name)
    digests = [
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((tmp_path / name / "images").iterdir())]
        for name in "ab"
    ]
    assert digests[0] == digests[1]
    assert len(set(digests[0])) == 4
    alone = draw_exposure(SPEC, make_sources(SPEC), "r", 1)
    assert np.array_equal(fits.getdata(tmp_path / "a" / "images" / "r-001.fits", "SCI"), alone["image"])
    with pytest.raises(SurveyError, match="bands that differ"):
        ImageSpec(bands=("g", "g"))
