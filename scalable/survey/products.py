"""The parts of a survey description that say what is computed, why the data set exists, and how its input was obtained."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from scalable.survey.part import Part


class Variability(Part):
    """Which objects count as variable on the page."""

    band: str = Field(description="band with several epochs")
    threshold: float = Field(20.0, gt=0, description="largest deviation from the mean, in units of its error")


class Bright(Part):
    """The well measured stars shown on the page."""

    snr: float = Field(30.0, gt=0, description="least signal to noise in every band")
    bands: tuple[str, ...] = Field((), description="bands that must all reach it; empty: all")


class Cutouts(Part):
    """The cube of cutouts that a run makes around objects, from the survey's images."""

    size: int = Field(gt=0, description="rows and columns [pixel]")
    objects: int = Field(1000, gt=0, description="at most so many objects, spread evenly over those that the images show")
    combine: Literal["mean", "median", "ivar", "clipped"] | None = Field(None, description="without it, each exposure by itself")
    resampling: Literal["native", "interp", "adaptive", "exact"] = Field(
        "native", description="the images' own pixels, or how they are moved"
    )
    grid: float | str | None = Field(
        None, description="with resampling: side of a pixel [arcsec], or a band whose pixels are taken"
    )


class Mixture(Part):
    """The mixture of Gaussians that a run fits to the colours of objects, and the sample that it draws from it."""

    bands: tuple[str, ...] = Field(
        min_length=2, description="bands in order of wavelength: neighbours make the colours, from the first epochs of magnitude"
    )
    components: tuple[int, ...] = Field((1, 3, 5, 10, 20), description="numbers of components; that of the least BIC is taken")
    classes: tuple[float, ...] = Field((), description="classes that count, for example [-1]; empty: every object")
    rule: str = Field("any", description="who must say so: any, all or majority of the bands, or the name of one of them")
    rows: int = Field(100_000, gt=0, description="rows of the sample")


class PhotoZ(Part):
    """The redshifts that a run teaches a model from columns of the tables, and predicts for every row."""

    magnitudes: tuple[str, ...] = Field(min_length=2, description="columns in order of wavelength: neighbours make the colours")
    target: str = Field(description="column of the spectroscopic redshifts; rows without one teach nothing")
    reference: str = Field("", description="a magnitude that is itself a feature")
    estimator: Literal[
        "linear", "ridge", "lasso", "elastic_net", "sgd", "boosting", "forest", "adaboost", "network", "neighbours", "kernel",
        "curve",
    ] = "boosting"  # fmt: skip
    held_out: float = Field(0.2, gt=0, le=0.5, description="share of the objects, by identity, that only judge")
    sky_order: int | None = Field(None, ge=0, le=29, description="HEALPix order of the pixels that are held out as a whole")


class Products(Part):
    """What a run computes and the page shows."""

    magnitude: str = Field("", description="magnitude column of the plots")
    flux: str = Field("", description="flux column of the statistics")
    statistics: tuple[str, ...] = Field(
        (), description="statistics of its light curves, for example [Mean, Chi2]; empty: the default"
    )
    colours: tuple[tuple[str, str], ...] = Field((), description="pairs of bands, for example [[J, H], [Y, J]]")
    variability: Variability | None = None
    bright: Bright | None = None
    cutouts: Cutouts | None = None
    mixture: Mixture | None = None
    photoz: PhotoZ | None = None
    release: str = Field("", description="recipe of a release, a file beside this one; see release.yaml in the README")


class Question(Part):
    """A question the team asks of the catalogue; its answer stands on the page."""

    id: str
    title: str
    sql: str
    note: str = Field("", description="which version this is, or what to beware of")


class Motivation(Part):
    """Why the data set exists."""

    text: str = Field(min_length=1)
    goal: str = ""
    requirements: dict[str, str] = Field(default_factory=dict)


class Query(Part):
    """How the input was obtained."""

    text: str = Field(min_length=1, description="verbatim archive query, or how the files were selected")
    endpoint: str = ""
    data_release: str = ""
    date: str = ""
    rows: int | None = None
