"""One synthetic survey, released as objects with light curves and as detections, for all tests of releases."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import dask
import pytest
import yaml

from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest
from scalable.release.recipe import Recipe, parse_recipe
from scalable.release.write import write_release
from scalable.survey.read import open_survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import RECIPE, write_tables

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The input files of the survey."""
    folder = tmp_path_factory.mktemp("release-input")
    write_tables(make_sky(SkySpec(seed=11, fields=2, stars_per_field=150, epochs=3)), folder)
    return folder


@pytest.fixture(scope="session")
def collection(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    survey = open_survey(sources / "survey.yaml")
    small = survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 0.2})})
    with dask.config.set(scheduler="threads"):
        return ingest(small, into=tmp_path_factory.mktemp("release-store") / "store")


def of_objects(**changes: Any) -> Recipe:
    """Return the recipe of the demo without images, with other fields."""
    values = yaml.safe_load(RECIPE.read_text()) | {"images": False, "split": {"order": 11, "guard_arcsec": 2, "folds": 4}}
    return parse_recipe(values | changes, "test")


def of_detections(**changes: Any) -> Recipe:
    """Return a recipe that releases every detection, whole files beside them."""
    values = yaml.safe_load(RECIPE.read_text())
    for name in ("join", "statistics", "light_curves", "flags", "images"):
        del values[name]
    values["split"] = {"order": 11, "guard_arcsec": 2, "folds": 4}
    columns = {"*": {"reason": "everything is released", "serves": "epochs", "ucd": "meta.note"}}
    values |= {
        "rows": "detections",
        "select": [{"name": "bright", "where": "Flux1 / dFlux1 > 5", "reason": "signal to noise", "serves": "epochs"}],
        "outliers": {"erroneous": [{"column": "Mag1", "at_most": 18.5, "reason": "fainter than the limit"}]},
        "columns": columns,
        "labels": [{"column": "Class", "source": "the generator", "quality": "true"}],
        "whole": True,
    }
    return parse_recipe(values | changes, "test")


@pytest.fixture(scope="session")
def released(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of objects; do not change it."""
    with dask.config.set(scheduler="threads"):
        return write_release(collection, of_objects(), into=tmp_path_factory.mktemp("released") / "objects")


@pytest.fixture(scope="session")
def released_detections(collection: Collection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A release of detections with whole sources; do not change it."""
    with dask.config.set(scheduler="threads"):
        return write_release(collection, of_detections(), into=tmp_path_factory.mktemp("released") / "detections")


@pytest.fixture
def copied(released: Path, tmp_path: Path) -> Path:
    """A copy of the release of objects that a test may spoil."""
    return Path(shutil.copytree(released, tmp_path / "copied"))


@pytest.fixture
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a recipe for objects."""
    path = tmp_path_factory.mktemp("recipe") / "release.yaml"
    path.write_text(yaml.safe_dump(of_objects().model_dump(mode="json", exclude_defaults=True)))
    return path
