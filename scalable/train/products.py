"""The models that a survey asks of its run: which rows of the collection teach them, and which judge."""

from __future__ import annotations

from pathlib import Path

from scalable.catalog.bands import join_bands
from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.errors import InputError, SurveyError
from scalable.kernels.features import ClassRule, Features
from scalable.survey.description import Survey
from scalable.survey.products import Mixture, PhotoZ
from scalable.train.batches import Batches
from scalable.train.goodness import sample_tests
from scalable.train.model import Model, described
from scalable.train.photoz import fit_mixture, fit_photoz, overall
from scalable.train.tables import batches_of, left_out

KEY = "object_id"
"""Rows of one object are held out together."""


def mixture_rows(survey: Survey, wanted: Mixture, collection: Collection) -> tuple[Catalog, Features]:
    """Return one row per object with its magnitudes and classes, and the colours made of them; nothing is computed."""
    value = survey.products.magnitude
    kind = survey.column_of("class") if wanted.classes else ""
    joined = join_bands(collection.detections, wanted.bands, values=[value, *([kind] if kind else [])], pick="first", how="inner")
    rule = f"{wanted.rule}_{kind}" if wanted.rule in wanted.bands else wanted.rule
    classes = ClassRule(tuple(f"{band}_{kind}" for band in wanted.bands), wanted.classes, rule) if kind else None
    return joined, Features(tuple(f"{band}_{value}" for band in wanted.bands), classes=classes)


def teach_mixture(survey: Survey, wanted: Mixture, collection: Collection, *, checkpoint: Path) -> Model:
    """Fit a mixture, and compare rows drawn from it with objects that it was not fitted to; computes."""
    rows, features = mixture_rows(survey, wanted, collection)
    model = fit_mixture(rows, features, components=wanted.components, key=KEY, checkpoint=checkpoint)
    return described(model, tests=sample_tests(model, rows, key=KEY))


def photoz_rows(wanted: PhotoZ, collection: Collection) -> tuple[Batches, Features]:
    """Return the rows that have a redshift, as batches; nothing is computed."""
    features = Features(wanted.magnitudes, reference=wanted.reference)
    catalog, key = (collection.detections, KEY) if collection.has_positions else (collection.rows, "")
    return batches_of(catalog, features, target=wanted.target, key=key, sky_order=wanted.sky_order), features


def photoz_sides(wanted: PhotoZ, batches: Batches) -> dict[str, Batches]:
    """Return the rows that teach and those that judge, by what they are called."""
    of = round(1 / wanted.held_out)
    return {"train": batches.fold(range(1, of), of, seed=0), "held out": batches.fold([0], of, seed=0)}


def teach_photoz(wanted: PhotoZ, collection: Collection, *, checkpoint: Path) -> Model:
    """Teach an estimator redshifts, and measure it on the rows held out; computes."""
    batches, features = photoz_rows(wanted, collection)
    train, unseen = photoz_sides(wanted, batches).values()
    try:
        model = fit_photoz(train, features, target=wanted.target, estimator=wanted.estimator, folds=0, checkpoint=checkpoint)
        metrics = {**model.about["metrics"], "folds": [overall(model, unseen)]}
    except InputError as error:
        what = "objects" if wanted.sky_order is None else f"pixels of order {wanted.sky_order}"
        raise SurveyError(
            f"products.photoz: {error}. Or all rows are on one side: {wanted.held_out:g} of the {what} are held out; take more "
            "rows, or finer pixels"
        ) from error
    return described(model, metrics=metrics, left_out=left_out(batches))
