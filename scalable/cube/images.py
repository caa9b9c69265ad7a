"""The images of a survey as an index over the sky: which exposures may show which part of it, from their headers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from scalable.cluster import run_tasks
from scalable.errors import MissingInputError
from scalable.io.exposures import Exposure, FileHeaders, ImageSource, list_images, quarantined
from scalable.io.image_reader import ImageReader
from scalable.sky.healpix import unit_vectors
from scalable.survey.description import Survey

_FILES_PER_TASK = 64
_SHOWN = 5


@dataclass(frozen=True)
class SkyImages:
    """The images of a survey.

    Attributes
    ----------
    exposures : tuple of Exposure
        In order of band, time, name, HDU and plane.
    files : tuple of FileHeaders
        Every file that was read, masks and weights too, in order of name.
    problems : tuple of (str, str)
        Files that are set aside, and why.
    """

    exposures: tuple[Exposure, ...]
    files: tuple[FileHeaders, ...]
    problems: tuple[tuple[str, str], ...]

    @cached_property
    def centres(self) -> NDArray[np.float64]:
        """Middles of the footprints as unit vectors, shape (n, 3)."""
        places = [exposure.footprint for exposure in self.exposures]
        return unit_vectors(np.array([place.ra_deg for place in places]), np.array([place.dec_deg for place in places]))

    @cached_property
    def radii(self) -> NDArray[np.float64]:
        """Radii of the footprints [rad], shape (n,)."""
        return np.radians([exposure.footprint.radius_deg for exposure in self.exposures])

    def near(self, middle: NDArray[np.float64], radius: float) -> NDArray[np.int64]:
        """Return which exposures may show something within ``radius`` [rad] of a unit vector."""
        chord = np.linalg.norm(self.centres - middle, axis=1)
        return np.flatnonzero(2 * np.arcsin(np.minimum(1.0, chord / 2)) <= self.radii + radius)

    def shows(self, ra_deg: NDArray[np.float64], dec_deg: NDArray[np.float64]) -> NDArray[np.bool_]:
        """Return which positions lie in the circle around some image."""
        points = unit_vectors(ra_deg, dec_deg)
        found = np.zeros(len(points), np.bool_)
        for centre, radius in zip(self.centres, self.radii, strict=True):
            found |= np.linalg.norm(points - centre, axis=1) <= 2 * np.sin(radius / 2)
        return found

    @cached_property
    def depth(self) -> int:
        """An upper bound of how many exposures of one band show any one place."""
        most = 0
        for band in {exposure.band for exposure in self.exposures}:
            which = np.array([n for n, exposure in enumerate(self.exposures) if exposure.band == band])
            centres, radii = self.centres[which], self.radii[which]
            for rows in np.array_split(np.arange(len(which)), len(which) // 512 + 1):
                chord = 2 * np.sin(np.minimum(np.pi, radii[rows, None] + radii) / 2)
                apart = np.sqrt(np.maximum(0.0, 2 - 2 * centres[rows] @ centres.T))
                most = max(most, int((apart <= chord + 1e-12).sum(axis=1).max(initial=0)))
        return most


def find_images(survey: Survey, reader: ImageReader, *, bands: Sequence[str]) -> SkyImages:
    """Read the headers of all images on the scheduler in use; files that cannot be used are set aside.

    Raises
    ------
    MissingInputError
        If no image of these bands is there and can be used.
    """
    sources = list_images(survey)
    batches = [sources[n : n + _FILES_PER_TASK] for n in range(0, len(sources), _FILES_PER_TASK)]
    exposures: list[Exposure] = []
    files: dict[str, FileHeaders] = {}
    problems: list[tuple[str, str]] = []
    for batch, found in zip(batches, run_tasks(_describe, batches, survey, reader), strict=True):
        for source, (here, headers, problem) in zip(batch, found, strict=True):
            if problem:
                problems.append((source.name, problem))
            wanted = [exposure for exposure in here if exposure.band in bands]
            exposures += wanted
            files |= {file.name: file for file in headers if wanted}
    if not exposures:
        why = "\n  ".join(["", *(problem for _, problem in problems[:_SHOWN])])
        raise MissingInputError(f"none of {len(sources)} files holds an image of {', '.join(bands)} that can be used{why}")
    place = {band: n for n, band in enumerate(survey.bands)}
    exposures.sort(key=lambda one: (place[one.band], *_time(one.mjd), one.name, one.hdu, one.plane))
    return SkyImages(tuple(exposures), tuple(files[name] for name in sorted(files)), tuple(problems))


def _time(mjd: float) -> tuple[bool, float]:
    """Return a key that puts unknown times last."""
    return (mjd != mjd, 0.0 if mjd != mjd else mjd)


def _describe(
    batch: Sequence[ImageSource], survey: Survey, reader: ImageReader
) -> list[tuple[list[Exposure], list[FileHeaders], str]]:
    return [quarantined(source, survey, reader) for source in batch]
