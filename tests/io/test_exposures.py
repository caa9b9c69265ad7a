"""Images are found as the survey describes them; each says band, time, place, mask and weight, or why it is set aside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from scalable.errors import InputError, MissingInputError, SurveyError
from scalable.io.exposures import Exposure, describe_images, list_images, quarantined, shows_another_filter
from scalable.io.fits_image import FitsImage
from scalable.survey.description import Survey
from scalable.survey.read import open_survey

SKY = {
    "CTYPE1": "RA---TAN", "CTYPE2": "DEC--TAN", "CRVAL1": 10.0, "CRVAL2": 20.0, "CRPIX1": 8.0, "CRPIX2": 8.0,
    "CDELT1": -1e-4, "CDELT2": 1e-4,
}  # fmt: skip


def write(
    path: Path, *, primary: Any = (), shape: tuple[int, ...] = (15, 17), dtype: str = "f4", hdus: int = 1, **more: Any
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        fits.ImageHDU(np.ones(shape, dtype), header=fits.Header({**SKY, **more}), name=f"CCD{n}") for n in range(1, hdus + 1)
    ]
    fits.HDUList([fits.PrimaryHDU(header=fits.Header(dict(primary))), *images]).writeto(path, overwrite=True)


def survey(folder: Path, images: str, bands: str = "[g, r]") -> Survey:
    (folder / "s.yaml").write_text(f"survey: a\nroot: .\nbands: {bands}\nimages: {images}\n")
    return open_survey(folder / "s.yaml")


def exposures(described: Survey) -> list[Exposure]:
    return [one for source in list_images(described) for one in describe_images(source, described, FitsImage())[0]]


def test_keys_stand_in_headers_names_or_the_description(tmp_path: Path) -> None:
    primary = {"FILTER": "g DECam", "MJD-OBS": 55000.25, "EXPTIME": 30, "SEEING": 4.0, "ZP": 27.5}
    write(tmp_path / "a" / "x_r_1.fits", primary=primary, BUNIT="count", hdus=2)
    described = survey(
        tmp_path,
        "{glob: 'a/*.fits', band: {keyword: FILTER}, bands_as: {g DECam: g}, mjd: {keyword: MJD-OBS},"
        " exposure_s: {keyword: EXPTIME}, psf_fwhm: {keyword: SEEING}, psf_unit: pix, zero_point: {keyword: ZP}}",
    )
    first, second = exposures(described)
    assert (first.name, first.hdu, first.plane, first.shape, first.dtype) == ("a/x_r_1.fits", 1, 0, (15, 17), "<f4")
    assert (first.band, first.mjd, first.exposure_s, first.zero_point, first.unit) == ("g", 55000.25, 30.0, 27.5, "count")
    assert first.psf_fwhm_arcsec == pytest.approx(4 * 0.36, rel=1e-3)
    assert second.hdu == 2
    assert not shows_another_filter(first, described.images)
    named = survey(tmp_path, "{glob: 'a/*.fits', pattern: '_(?P<band>[gr])_', mjd: {value: 5}, unit: adu, hdu: [CCD2]}")
    [only] = exposures(named)
    assert (only.band, only.mjd, only.unit, only.hdu, only.filter) == ("r", 5.0, "adu", 2, "g DECam")
    assert shows_another_filter(only, named.images)


def test_planes_of_an_image_are_bands(tmp_path: Path) -> None:
    write(tmp_path / "a.fits", shape=(2, 15, 17), dtype=">i2")
    first, second = exposures(survey(tmp_path, "{glob: '*.fits', planes: [r, g]}"))
    assert [(one.plane, one.band, one.dtype) for one in (first, second)] == [(0, "r", "<i2"), (1, "g", "<i2")]


def test_masks_and_weights_are_other_files_or_other_hdus_and_must_fit(tmp_path: Path) -> None:
    write(tmp_path / "x_im.fits", primary={"FILTER": "g"})
    write(tmp_path / "x_mk.fits", dtype="i4")
    write(tmp_path / "x_wt.fits", hdus=2)
    text = "{glob: '*_im.fits', band: {keyword: FILTER}, mask: {replace: [_im, _mk]}, weight: {replace: [_im, _wt], hdu: CCD2}}"
    [one] = exposures(survey(tmp_path, text))
    assert one.mask is not None
    assert one.weight is not None
    assert (one.mask.name, one.mask.hdu, one.weight.name, one.weight.hdu) == ("x_mk.fits", 1, "x_wt.fits", 2)
    source = list_images(survey(tmp_path, text))[0]
    assert [file.name for file in describe_images(source, survey(tmp_path, text), FitsImage())[1]] == [
        "x_im.fits", "x_mk.fits", "x_wt.fits",
    ]  # fmt: skip
    inside = survey(tmp_path, "{glob: 'x_wt.fits', band: {value: g}, weight: {hdu: CCD2}}")
    [one] = exposures(inside)
    assert (one.hdu, one.weight and one.weight.hdu) == (1, 2), "the HDU of the weights is no image"
    write(tmp_path / "x_mk.fits", dtype="i4", shape=(15, 16))
    with pytest.raises(InputError, match=r"x_mk\.fits: HDU 1: the mask has 15 x 16 pixels, its image x_im.fits 15 x 17"):
        exposures(survey(tmp_path, text))
    write(tmp_path / "x_mk.fits", dtype="f4")
    with pytest.raises(InputError, match="the mask holds float32 numbers, whole numbers are needed"):
        exposures(survey(tmp_path, text))
    (tmp_path / "x_mk.fits").unlink()
    with pytest.raises(MissingInputError, match=r"x_mk\.fits: no such file"):
        exposures(survey(tmp_path, text))


@pytest.mark.parametrize(
    ("primary", "more", "images", "message"),
    [
        ({}, {}, "{glob: '*.fits', band: {keyword: FILTER}}", "images.band: there is no FILTER in its header"),
        ({"FILTER": "q"}, {}, "{glob: '*.fits', band: {keyword: FILTER}}", r"'q' is not among the survey's bands \(g, r\)"),
        (
            {},
            {"CTYPE1": "FREQ", "CTYPE2": "STOKES"},
            "{glob: '*.fits', band: {value: g}}",
            "HDU 1: no celestial world coordinates",
        ),
        ({}, {"CTYPE1": "FREQ"}, "{glob: '*.fits', band: {value: g}}", r"HDU 1: .* cannot be read \(Unmatched celestial axes"),
        ({"MJD": "soon"}, {}, "{glob: '*.fits', band: {value: g}, mjd: {keyword: MJD}}", "images.mjd: 'soon' is no number"),
        ({}, {}, "{glob: '*.fits', band: {value: g}, hdu: [SCI]}", r"no HDU 'SCI' with an image; there are 1 \(CCD1\)"),
        ({}, {}, "{glob: '*.fits', planes: [g, r]}", "1 planes, images.planes names 2 bands"),
        ({}, {}, "{glob: '*.fits', pattern: '(?P<band>zz)'}", "does not fit images.pattern"),
    ],
)
def test_an_image_that_cannot_be_used_is_set_aside_with_the_reason(
    tmp_path: Path, primary: dict[str, Any], more: dict[str, Any], images: str, message: str
) -> None:
    write(tmp_path / "a.fits", primary=primary, **more)
    described = survey(tmp_path, images)
    [source] = list_images(described)
    with pytest.raises(InputError, match=message):
        describe_images(source, described, FitsImage())
    found, files, problem = quarantined(source, described, FitsImage())
    assert (found, files) == ([], [])
    assert "a.fits" in problem
    assert str(tmp_path) not in problem


def test_an_index_names_files_and_a_row_that_leaves_the_root_or_stands_twice_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "in" / "a.fits")
    text = "{index: i.csv, path: 'in/{name}.fits', band: filter, mjd: when}"
    (tmp_path / "i.csv").write_text("name,filter,when\na,r,5.5\n")
    [one] = exposures(survey(tmp_path, text))
    assert (one.name, one.band, one.mjd) == ("in/a.fits", "r", 5.5)
    (tmp_path / "i.csv").write_text("name,filter,when\na,r,5.5\na,g,6\n")
    with pytest.raises(InputError, match="'in/a.fits' is listed twice"):
        list_images(survey(tmp_path, text))
    (tmp_path / "i.csv").write_text("name,filter,when\n../../b,r,5.5\n")
    with pytest.raises(InputError, match="outside the survey's root"):
        list_images(survey(tmp_path, text))
    with pytest.raises(SurveyError, match="images.band names the column 'Filter'"):
        list_images(survey(tmp_path, text.replace("filter", "Filter")))
    with pytest.raises(SurveyError, match="images.path: .*uses 'nme'; did you mean 'name'"):
        list_images(survey(tmp_path, text.replace("{name}", "{nme}")))
    with pytest.raises(MissingInputError, match="the index of images is not there"):
        list_images(survey(tmp_path, text.replace("i.csv", "j.csv")))
    with pytest.raises(InputError, match="finds no file"):
        list_images(survey(tmp_path, "{glob: 'q*.fits', band: {value: g}}"))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ("{band: {value: g}}", "give either glob, or index with path"),
        ("{glob: a, index: b, band: c}", "give either glob, or index with path"),
        ("{index: b, band: c}", "path: goes with index"),
        ("{glob: a}", "band: say it once"),
        ("{glob: a, band: {value: g}, planes: [g]}", "band: say it once"),
        ("{glob: a, band: FILTER}", "there is no index; write {keyword: FILTER}"),
        ("{glob: a, planes: [q]}", "images.planes: no band 'q'"),
        ("{glob: a, band: {value: g}, mask: {bad_bits: [1]}}", "say where it is"),
        ("{glob: ../a, band: {value: g}}", "must stay below root"),
        ("{glob: a, pattern: '(?P<bnd>.)', band: {value: g}}", "a group is called 'bnd'; did you mean 'band'"),
        ("{glob: a, band: {value: g}, wight: {hdu: 1}}", "no such field; did you mean 'weight'"),
    ],
)
def test_a_description_of_images_that_contradicts_itself_names_the_line(tmp_path: Path, images: str, message: str) -> None:
    with pytest.raises(SurveyError, match=r"s\.yaml:\d+: .*" + message.replace("{", r"\{")):
        survey(tmp_path, images)


def test_a_survey_needs_tables_or_images_and_one_of_images_alone_ingests_nothing(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("survey: a\nroot: .\nbands: [g]\n")
    with pytest.raises(SurveyError, match="files: this field is required and missing"):
        open_survey(tmp_path / "s.yaml")
    described = survey(tmp_path, "{glob: a, band: {value: g}}")
    assert not described.has_tables
    with pytest.raises(SurveyError, match="bands: images have bands"):
        survey(tmp_path, "{glob: a, band: {value: g}}", bands="[]")
