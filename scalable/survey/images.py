"""The part of a survey description that says where the images are and what they show."""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Literal

from pydantic import Field, model_validator

from scalable.survey.part import Key, ObservationKey, Part, Unit, groups_of

IMAGE_KEYS = ("band", "mjd", "exposure_s", "psf_fwhm", "zero_point")
"""What is known of an image beside its pixels."""


class Sibling(Part):
    """Where the mask or the weight of an image is: in another file, in another HDU, or both."""

    replace: tuple[str, str] | None = Field(
        None, description="a text in the path of the image and what stands in its place in the sibling's, for example [ooi, ood]"
    )
    hdu: int | str | None = Field(None, description="number or name of its HDU; without it, the number of the image's own")

    @model_validator(mode="after")
    def _elsewhere(self) -> Sibling:
        if self.replace is None and self.hdu is None:
            raise ValueError("say where it is: replace: [TEXT, OTHER] for another file, hdu for another HDU, or both")
        return self


class Mask(Sibling):
    """The mask of an image: whole numbers, a pixel each."""

    bad_bits: tuple[int, ...] | None = Field(
        None, description="numbers of the bits, from 0, that make a pixel bad; without them, every value but 0 does"
    )


class Weight(Sibling):
    """The weight of an image, a pixel each."""

    kind: Literal["ivar", "variance", "sigma"] = Field(
        "ivar", description="what it holds; an inverse variance of 0 is a bad pixel"
    )


class Images(Part):
    """Where the images are, and what they show."""

    glob: str = Field("", description="which files to read, relative to root, for example night*/*_ooi_*.fits; or give index")
    index: str = Field("", description="CSV file with one row per image, relative to root")
    path: str = Field("", description="with index: path of an image below root, index columns in braces, for example {Filename}")
    pattern: str = Field(
        "", description="with glob: a regular expression with groups called like the keys below, as in observations"
    )
    hdu: tuple[int | str, ...] = Field((), description="numbers or names of the HDUs with images; empty: all that hold one")
    planes: tuple[str, ...] = Field((), description="bands of the planes, where an image has three axes")
    plane: str = Field("", description="column of the index with the number of the plane, from 0, that a row is about")
    band: Key = Field(None, description="filter")
    mjd: Key = Field(None, description="modified Julian date [d]")
    exposure_s: Key = Field(None, description="exposure time [s]")
    psf_fwhm: Key = Field(None, description="full width at half maximum of the point spread function, in psf_unit")
    psf_unit: Literal["pix", "arcsec"] = "arcsec"
    zero_point: Key = Field(None, description="magnitude of one unit of flux [mag]")
    bands_as: dict[str, str] = Field(default_factory=dict, description="band that a FILTER text means, as in observations")
    filter_keyword: str = Field(
        "FILTER", description="keyword of the header that names the filter; check holds the band against it"
    )
    unit: Unit | None = Field(None, description="the true unit of a pixel; it overrules BUNIT")
    pixel_holds: Literal["flux", "surface_brightness"] = Field(
        "flux", description="what a pixel holds, the flux that fell into it or a surface brightness: resampling must know"
    )
    wavelength_nm: dict[str, float] = Field(default_factory=dict, description="central wavelength of each band [nm]")
    mask: Mask | None = None
    weight: Weight | None = None

    def given(self) -> dict[str, ObservationKey]:
        """Return the keys that stand under their own names here."""
        return {name: key for name in IMAGE_KEYS if (key := getattr(self, name))}

    @model_validator(mode="after")
    def _consistent(self) -> Images:
        if bool(self.glob) == bool(self.index):
            raise ValueError("give either glob, or index with path")
        if bool(self.index) != bool(self.path):
            raise ValueError("path: goes with index, which goes with path")
        if self.pattern and not self.glob:
            raise ValueError("pattern: goes with glob; with an index, name its columns")
        if self.plane and (self.planes or not self.index):
            raise ValueError("plane: goes with index, and instead of planes")
        if self.glob.startswith("/") or ".." in PurePosixPath(self.glob).parts:
            raise ValueError(f"glob: {self.glob!r} must stay below root: no leading / and no ..")
        groups = groups_of(self.pattern, IMAGE_KEYS)
        for name, key in self.given().items():
            if name in groups:
                raise ValueError(f"{name}: is given here and by a group of pattern; keep one")
            if key.column and not self.index:
                raise ValueError(f"{name}: {key.column!r} names a column, but there is no index; write {{keyword: {key.column}}}")
        if bool(self.planes) == bool(self.band or "band" in groups):
            raise ValueError("band: say it once: band, a group of pattern, or planes")
        return self
