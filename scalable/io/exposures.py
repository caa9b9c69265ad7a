"""Images as a survey lists them: which files there are, what each shows of which part of the sky, and its mask and weight."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from scalable.errors import InputError, MissingInputError, ScalableError, SurveyError, nearest
from scalable.io.fits_header import parse_header
from scalable.io.image_reader import ImageFile, ImageHdu, ImageReader
from scalable.io.observations import read_index
from scalable.io.remote import find_files
from scalable.schema import standard_unit
from scalable.sky.grid import Footprint, footprint, read_wcs
from scalable.survey.description import Survey
from scalable.survey.images import IMAGE_KEYS, Images, Sibling
from scalable.survey.root import is_remote


@dataclass(frozen=True)
class ImageSource:
    """One file of images that the survey lists.

    Attributes
    ----------
    name : str
        Path below the survey's root.
    path : str
        Where it is.
    keys : dict
        What its index row or its path says of it.
    problem : str
        Why it is to be set aside unread, or empty.
    """

    name: str
    path: str
    keys: dict[str, Any] = field(default_factory=dict)
    problem: str = ""


@dataclass(frozen=True)
class Plane:
    """Where the pixels of a mask or weight are."""

    name: str
    path: str
    hdu: int
    plane: int = 0


@dataclass(frozen=True)
class Exposure:
    """One image on the sky: a plane of an HDU of a file.

    Attributes
    ----------
    name, path, hdu, plane : str, str, int, int
        Where its pixels are; ``name`` is below the survey's root.
    shape : tuple of int
        Rows and columns.
    dtype : str
        Of its pixels.
    band : str
        Filter.
    filter : str
        What the header's filter keyword says, as it is.
    footprint : Footprint
        Where it is on the sky.
    mjd, exposure_s, psf_fwhm_arcsec, zero_point : float
        Time [d], exposure [s], point spread function [arcsec], magnitude of one unit [mag]; NaN where unknown.
    unit : str
        Of a pixel, in VOUnit spelling.
    mask, weight : Plane, optional
        Where they are.
    """

    name: str
    path: str
    hdu: int
    plane: int
    shape: tuple[int, int]
    dtype: str
    band: str
    filter: str
    footprint: Footprint
    mjd: float = math.nan
    exposure_s: float = math.nan
    psf_fwhm_arcsec: float = math.nan
    zero_point: float = math.nan
    unit: str = ""
    mask: Plane | None = None
    weight: Plane | None = None


@dataclass(frozen=True)
class FileHeaders:
    """A file that a cube is made from: its size, and the sizes of the raw headers of all its HDUs [bytes]."""

    name: str
    path: str
    size: int
    headers: tuple[int, ...]


def list_images(survey: Survey) -> list[ImageSource]:
    """Find the survey's files of images, sorted by path; none is opened.

    Raises
    ------
    SurveyError, InputError
        If the survey describes no images, its index lacks a column, or a file is listed twice.
    MissingInputError
        If there is no index, or no file.
    """
    rule = survey.images
    if rule is None:
        raise SurveyError(f"survey {survey.name!r} describes no images; add a block images with glob and band")
    sources = _indexed(survey, rule) if rule.index else _found(survey, rule)
    sources.sort(key=lambda source: (source.name, source.keys.get("plane") or 0))
    for one, other in zip(sources, sources[1:], strict=False):
        if one.name == other.name and one.keys.get("plane") == other.keys.get("plane"):
            raise InputError(f"images: {one.name!r} is listed twice; a file may stand in the index once")
    return sources


def _found(survey: Survey, rule: Images) -> list[ImageSource]:
    if is_remote(survey.root):
        names = find_files(survey.root, rule.glob)
    else:
        root = survey.input_root
        names = [path.relative_to(root).as_posix() for path in root.glob(rule.glob) if not path.is_dir()]
    names = [name for name in names if not any(part.startswith(".") for part in PurePosixPath(name).parts)]
    if not names:
        raise MissingInputError(
            f"images.glob: {rule.glob!r} finds no file below {survey.root}; correct the glob or root, or bring the images there"
        )
    sources = []
    for name in names:
        match = re.search(rule.pattern, name)
        problem = "" if match else f"{name}: does not fit images.pattern {rule.pattern!r}"
        sources.append(ImageSource(name, survey.confined(name), dict(match.groupdict()) if match else {}, problem))
    return sources


def _indexed(survey: Survey, rule: Images) -> list[ImageSource]:
    path = survey.confined(rule.index)
    index = read_index(path, "the index of images is not there; set images.index or root")
    columns = {name: key.column for name, key in rule.given().items() if key.column}
    columns |= {"plane": rule.plane} if rule.plane else {}
    for name, column in columns.items():
        if column not in index.column_names:
            raise SurveyError(f"{path}: images.{name} names the column {column!r}; {nearest(column, index.column_names)}")
    sources = []
    for row in index.to_pylist():
        try:
            name = rule.path.format_map(row)
        except KeyError as error:
            raise SurveyError(
                f"images.path: {rule.path!r} uses {error}; {nearest(str(error.args[0]), index.column_names)}"
            ) from None
        sources.append(ImageSource(name, survey.confined(name), {key: row[column] for key, column in columns.items()}))
    if not sources:
        raise MissingInputError(f"{path}: the index of images has no row; add one for each image, or set images.index")
    return sources


def describe_images(source: ImageSource, survey: Survey, reader: ImageReader) -> tuple[list[Exposure], list[FileHeaders]]:
    """Read the headers of a file and of its siblings.

    Returns
    -------
    list of Exposure
        Its images, in order of HDU and plane.
    list of FileHeaders
        The file, and the files of its mask and weight.

    Raises
    ------
    InputError
        If it cannot be read, shows no band, is nowhere on the sky, or lacks its mask or weight; names file, HDU, keyword.
    """
    rule = survey.images
    if source.problem or rule is None:
        raise InputError(source.problem)
    with reader.opened(source.path) as file:
        hdus, files = file.hdus, [_headers(source.name, source.path, file)]
    siblings: dict[str, tuple[str, str, tuple[ImageHdu, ...]]] = {}
    for kind, place in (("mask", rule.mask), ("weight", rule.weight)):
        if place is not None:
            name = _sibling_name(source.name, place, kind)
            if name == source.name:
                siblings[kind] = (name, source.path, hdus)
                continue
            path = survey.confined(name)
            with reader.opened(path) as file:
                siblings[kind] = (name, path, file.hdus)
                files.append(_headers(name, path, file))
    found = []
    for hdu in _chosen(hdus, rule, source.name):
        where = f"{source.path}: HDU {hdu.number}"
        try:
            found += _exposures(source, hdu, hdus[0].header, rule, survey)
        except ValueError as error:
            raise InputError(f"{where}: {error}") from error
    if not found:
        raise InputError(f"{source.path}: no HDU holds an image")
    return [_with_siblings(exposure, siblings, rule) for exposure in found], files


def _headers(name: str, path: str, file: ImageFile) -> FileHeaders:
    size = 0 if is_remote(path) else Path(path).stat().st_size
    return FileHeaders(name, path, size, tuple(len(hdu.header) for hdu in file.hdus))


def _sibling_name(name: str, place: Sibling, kind: str) -> str:
    if place.replace is None:
        return name
    old, new = place.replace
    if old not in name:
        raise InputError(f"{name}: images.{kind}.replace: {old!r} does not occur in the path of the image")
    return name.replace(old, new)


def _chosen(hdus: Sequence[ImageHdu], rule: Images, name: str) -> list[ImageHdu]:
    """Return the HDUs with images that the survey asks for, without those that hold its masks and weights."""
    if not rule.hdu:
        taken = {place.hdu for place in (rule.mask, rule.weight) if place is not None and place.replace is None}
        return [hdu for hdu in hdus if hdu.is_image and hdu.number not in taken and (not hdu.name or hdu.name not in taken)]
    return [_hdu_called(hdus, wanted, name) for wanted in rule.hdu]


def _hdu_called(hdus: Sequence[ImageHdu], wanted: int | str, name: str) -> ImageHdu:
    for hdu in hdus:
        if wanted in (hdu.number, hdu.name) and hdu.is_image:
            return hdu
    there = [f"{hdu.number}{f' ({hdu.name})' if hdu.name else ''}" for hdu in hdus if hdu.is_image]
    raise InputError(f"{name}: no HDU {wanted!r} with an image; there are {', '.join(there) or 'none'}")


def _exposures(source: ImageSource, hdu: ImageHdu, primary: bytes, rule: Images, survey: Survey) -> list[Exposure]:
    """Return what the planes of one HDU show."""
    own = parse_header(hdu.header).values
    keywords = {**parse_header(primary).values, **own}
    said: dict[str, object] = dict(source.keys)
    for name, key in rule.given().items():
        if key.keyword:
            said[name] = keywords.get(key.keyword)
        elif key.value is not None:
            said[name] = key.value
    shape = (hdu.shape[-2], hdu.shape[-1])
    planes = int(np.prod(hdu.shape[:-2], dtype=np.int64))
    if rule.planes and planes != len(rule.planes):
        raise ValueError(f"{planes} planes, images.planes names {len(rule.planes)} bands")
    wanted = range(planes)
    if rule.plane:
        if source.keys["plane"] not in wanted:
            raise ValueError(f"images.plane: the index says {source.keys['plane']!r}, there are 0 to {planes - 1}")
        wanted = range(source.keys["plane"], source.keys["plane"] + 1)
    elif not rule.planes and planes != 1:
        raise ValueError(f"{planes} planes, one band: name the band of each with images.planes, or with images.plane in an index")
    where = footprint(read_wcs(hdu.header, primary), shape)
    numbers = {name: _number(said.get(name), name) for name in IMAGE_KEYS if name != "band"}
    psf = numbers["psf_fwhm"] * (where.scale_arcsec if rule.psf_unit == "pix" else 1.0)
    unit = rule.unit if rule.unit is not None else standard_unit(str(keywords.get("BUNIT") or "")) or ""
    shown = str(keywords.get(rule.filter_keyword) or "").strip()
    found = []
    for plane in wanted:
        band = _band(rule.planes[plane] if rule.planes else said.get("band"), rule, survey)
        found.append(
            Exposure(
                source.name,
                source.path,
                hdu.number,
                plane,
                shape,
                hdu.dtype.str,
                band,
                shown,
                where,
                numbers["mjd"],
                numbers["exposure_s"],
                psf,
                numbers["zero_point"],
                unit,
            )
        )
    return found


def _band(text: object, rule: Images, survey: Survey) -> str:
    said = str(text or "").strip()
    band = rule.bands_as.get(said, said)
    if not band:
        key = rule.band
        place = f"no {key.keyword} in its header" if key and key.keyword else "nothing in its path or index row"
        raise ValueError(f"images.band: there is {place}; every image needs one")
    if band not in survey.bands:
        raise ValueError(
            f"images.band: {band!r} is not among the survey's bands ({', '.join(survey.bands)}); add it there, or say what it "
            f"means in images.bands_as"
        )
    return band


def _number(value: object, name: str) -> float:
    if value is None or str(value).strip() == "":
        return math.nan
    try:
        return float(str(value))
    except ValueError:
        raise ValueError(f"images.{name}: {value!r} is no number") from None


def _with_siblings(exposure: Exposure, siblings: dict[str, tuple[str, str, tuple[ImageHdu, ...]]], rule: Images) -> Exposure:
    """Add where mask and weight are, once they are known to fit."""
    found: dict[str, Plane] = {}
    for kind, (name, path, hdus) in siblings.items():
        place: Sibling | None = getattr(rule, kind)
        wanted = exposure.hdu if place is None or place.hdu is None else place.hdu
        hdu = _hdu_called(hdus, wanted, path)
        if hdu.shape[-2:] != exposure.shape:
            raise InputError(
                f"{path}: HDU {hdu.number}: the {kind} has {hdu.shape[-2]} x {hdu.shape[-1]} pixels, its image {exposure.name} "
                f"{exposure.shape[0]} x {exposure.shape[1]}"
            )
        if kind == "mask" and hdu.dtype.kind not in "iub":
            raise InputError(f"{path}: HDU {hdu.number}: the mask holds {hdu.dtype} numbers, whole numbers are needed")
        planes = int(np.prod(hdu.shape[:-2], dtype=np.int64))
        found[kind] = Plane(name, path, hdu.number, exposure.plane if exposure.plane < planes else 0)
    return Exposure(**{**vars(exposure), **found})


def shows_another_filter(exposure: Exposure, rule: Images) -> bool:
    """Return whether the filter keyword of the header speaks for another band than the one that holds."""
    said = rule.bands_as.get(exposure.filter, exposure.filter)
    # Long filter names such as "g DECam SDSS c0001" begin with the band.
    return bool(said) and said.split()[0].lower() != exposure.band.lower()


def quarantined(source: ImageSource, survey: Survey, reader: ImageReader) -> tuple[list[Exposure], list[FileHeaders], str]:
    """Describe a file, or say why it is set aside."""
    try:
        exposures, files = describe_images(source, survey, reader)
    except (ScalableError, OSError) as error:
        return [], [], str(error).replace(f"{survey.root}/", "")
    return exposures, files, ""
