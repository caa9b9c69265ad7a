"""One small store for the tests of training."""

from __future__ import annotations

import dask
import pytest

from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest
from scalable.survey.read import open_survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables


@pytest.fixture(scope="session")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """A synthetic survey in a store with a dozen leaves."""
    folder = tmp_path_factory.mktemp("train")
    survey = open_survey(write_tables(make_sky(SkySpec(seed=6, fields=1, stars_per_field=300, epochs=2)), folder))
    small = survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 0.02})})
    with dask.config.set(scheduler="threads"):
        return ingest(small, into=folder / "store")
