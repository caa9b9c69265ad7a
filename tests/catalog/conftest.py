"""One small store for all tests of the lazy verbs, and the real one."""

from __future__ import annotations

from pathlib import Path

import dask
import pytest

from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest
from scalable.survey.read import open_survey
from scalable.synthetic.sky import Sky, SkySpec, make_sky
from scalable.synthetic.tables import write_tables

EXAMPLE = Path(__file__).parents[2] / "examples" / "vvv" / "survey.yaml"


@pytest.fixture(scope="session")
def sky() -> Sky:
    return make_sky(SkySpec(seed=5, fields=2, stars_per_field=400, epochs=4))


@pytest.fixture(scope="session")
def synthetic(sky: Sky, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """A synthetic survey in a store with more than a dozen leaves."""
    folder = tmp_path_factory.mktemp("synthetic")
    survey = open_survey(write_tables(sky, folder))
    small = survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 0.08})})
    with dask.config.set(scheduler="threads"):
        return ingest(small, into=folder / "store")


@pytest.fixture(scope="session")
def vvv(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """The real sample, ingested as the example says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALABLE_DATA", str(data))
        survey = open_survey(EXAMPLE)
    with dask.config.set(scheduler="threads"):
        return ingest(survey, into=tmp_path_factory.mktemp("vvv") / "store")
