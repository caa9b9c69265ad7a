"""The page of a cube shows cutouts by band, their colours, what was measured and how deep; a figure shows what it was given."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pytest
from astropy.io import fits

from scalable.cube.stack import stack_images
from scalable.report.cutouts import colours, coverage, cube_sections, depth, mosaic, write_cube_page
from scalable.report.style import DARK, LIGHT
from scalable.survey.read import open_survey
from scalable.synthetic.images import ImageSpec, make_sources, write_images


def test_the_mosaic_has_a_panel_for_each_object_and_band_and_says_where_there_is_none() -> None:
    images = np.random.default_rng(1).normal(size=(2, 3, 8, 8))
    images[1, 2] = np.nan
    figure = mosaic(images, ["g", "r", "i"], ["7", "9"], theme=DARK)
    axes = figure.axes
    assert [one.get_title() for one in axes[:3]] == ["g", "r", "i"]
    assert [len(one.images) for one in axes] == [1, 1, 1, 1, 1, 0]
    assert axes[5].texts[0].get_text() == "not observed"
    shown = axes[4].images[0].get_array()
    order = np.argsort(images[1, 1].ravel())
    assert np.all(np.diff(np.asarray(shown).ravel()[order]) > 0), "brighter pixels are drawn brighter"
    assert axes[0].images[0].origin == "lower"


def test_bars_of_coverage_are_the_parts_of_the_states() -> None:
    state = np.zeros((4, 2, 5, 5), np.uint8)
    state[:, 0, 0] = 1
    state[:2, 1] = 3
    figure = coverage(state, ["g", "r"], theme=LIGHT)
    widths = np.array([patch.get_width() for patch in figure.axes[0].patches]).reshape(4, 2)
    assert np.allclose(widths, [[0.8, 0.5], [0.2, 0], [0, 0], [0, 0.5]])


def test_depth_is_a_median_with_a_range_and_without_variances_a_sentence() -> None:
    figure = depth([np.linspace(1, 3, 21), np.array([np.nan])], ["g", "r"], "adu")
    range_, middle = figure.axes[0].lines
    assert list(range_.get_xdata()) == pytest.approx([1.1, 2.9])
    assert list(np.atleast_1d(middle.get_xdata())) == [2.0]
    assert "depth is unknown" in depth([np.array([np.nan])], ["g"], "").axes[0].texts[0].get_text()


def test_colours_have_red_where_only_the_red_band_is_bright() -> None:
    images = np.random.default_rng(1).normal(0, 0.01, size=(1, 3, 9, 9))
    images[0, 0, 4, 4] = 50
    shown = np.asarray(colours(images, ["1"]).axes[0].images[0].get_array())
    red, green, blue, _ = shown[4, 4].astype(int)
    assert red > 100
    assert max(green, blue) < 60


def test_equal_light_has_equal_colour_in_every_cutout_and_none_where_a_band_is_missing() -> None:
    images = np.random.default_rng(1).normal(0, 1, size=(2, 3, 15, 15)) + 20
    images[0, :, 4, 4] = images[1, :, 4, 4] = 120, 70, 45
    images[0, 0, 9, 9] = 100_000  # light elsewhere changes nothing
    images[1, 2, :, 7:] = np.nan
    first, second = (np.asarray(axes.images[0].get_array()).astype(int) for axes in colours(images, ["1", "2"]).axes[:2])
    assert np.abs(first[4, 4] - second[4, 4]).max() <= 12
    red, green, blue, _ = first[4, 4]
    assert red > green > blue
    assert (first[..., 3] == 255).all()
    assert (second[:, :7, 3] == 255).all()
    assert (second[:, 7:, 3] == 0).all(), "no false colour"


def test_the_page_names_files_set_aside_and_how_to_open_the_cube(tmp_path: Path) -> None:
    spec = ImageSpec(seed=1, bands=("g", "r", "z"), epochs=1, size=64, stars=5, galaxies=0)
    survey = open_survey(write_images(spec, tmp_path))
    (tmp_path / "images" / "a.fits").write_bytes(b"no image")
    with dask.config.set(scheduler="synchronous"):
        cube = stack_images(survey, make_sources(spec), size=8).compute()
    assert [section.heading for section in cube_sections(cube)] == ["Cutouts", "Colours", "Coverage", "Depth of the pixels"]
    write_cube_page(cube, tmp_path / "page.html", opened_from="c.zarr")
    text = (tmp_path / "page.html").read_text()
    width = f"{float(np.median([fits.getheader(path)['FWHM'] for path in (tmp_path / 'images').glob('?-*.fits')])):.2f} arcsec"
    assert f"Point sources are {width} wide in the images and {width} here" in text
    assert "images/a.fits" in text
    assert "not a FITS file" in text
    assert "scalable.open_cube(&#x27;c.zarr&#x27;)" in text
    assert text.count("data:image/png") == 8
