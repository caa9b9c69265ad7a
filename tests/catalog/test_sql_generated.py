"""Queries from a seed, split over leaves, answer as one DuckDB over the whole data does."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import dask
import duckdb
import pytest
from queries import MACROS, Grammar

from scalable.catalog.collection import Collection
from scalable.catalog.duck import widened
from scalable.catalog.ingest import ingest
from scalable.catalog.sql import sql
from scalable.survey.read import open_survey
from scalable.synthetic.sky import Sky
from scalable.synthetic.tables import write_tables

BLOCK = 20


@pytest.fixture(scope="module")
def store(sky: Sky, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Enough leaves to split over, few enough for many queries."""
    folder = tmp_path_factory.mktemp("generated")
    survey = open_survey(write_tables(sky, folder))
    small = survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 0.8})})
    with dask.config.set(scheduler="threads"):
        return ingest(small, into=folder / "store")


@pytest.fixture(scope="module")
def whole(store: Collection) -> Iterator[duckdb.DuckDBPyConnection]:
    """One database that holds everything at once, in which division by zero is null as in ours."""
    with duckdb.connect() as connection:
        connection.sql("SET error_on_division_by_zero = false; SET ieee_floating_point_ops = false")
        for name in ("objects", "detections"):
            connection.register(name, widened(getattr(store, name).compute(scheduler="sync")))
        connection.register("observations", store.observations)
        for name in ("Field-1-J.fits", "Field-1-H.fits"):
            paths = zip(*(store.observations[column].to_pylist() for column in ("path", "observation_id")), strict=True)
            number = next(number for path, number in paths if path.endswith(name))
            view = Path(name).stem.replace("-", "_")
            connection.sql(f"CREATE TEMP VIEW {view} AS SELECT * FROM detections WHERE observation_id = {number}")
        connection.execute(MACROS)
        yield connection


@pytest.mark.parametrize("block", [pytest.param(n, marks=[] if n < 2 else pytest.mark.long) for n in range(10)])
def test_generated_queries_answer_as_one_database_does(store: Collection, whole: duckdb.DuckDBPyConnection, block: int) -> None:
    assert len(store.detections.leaves) >= 4
    given = 0
    for seed in range(block * BLOCK, (block + 1) * BLOCK):
        query = Grammar(seed).query()
        expected = [tuple(map(plain, row.values())) for row in whole.sql(query).to_arrow_table().to_pylist()]
        found = [tuple(row.values()) for row in sql(store, query).compute(scheduler="sync").to_pylist()]
        given += bool(expected)
        if not query.ordered:
            expected.sort(key=repr)
            found.sort(key=repr)
        assert len(found) == len(expected), query
        for mine, theirs in zip(found, expected, strict=True):
            assert all(map(agree, mine, theirs)), f"seed {seed}: {query}\n{mine}\n{theirs}"
    # Not a comparison of nothing with nothing.
    assert given > BLOCK * 2 / 3


def plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        # Sums of integers are decimals without places.
        return int(value) if value.as_tuple().exponent == 0 else float(value)
    return None if isinstance(value, float) and math.isnan(value) else value


def agree(mine: Any, theirs: Any) -> bool:
    """Counts, texts and stored values exactly; computed numbers to a part in 1e12: sums depend on the order of addition."""
    if isinstance(mine, float) and isinstance(theirs, float):
        return math.isclose(mine, theirs, rel_tol=1e-12, abs_tol=0.0)
    return type(mine) is type(theirs) and mine == theirs


def test_a_seed_gives_the_same_query_again_and_others_differ() -> None:
    queries = [Grammar(seed).query() for seed in range(200)]
    assert queries == [Grammar(seed).query() for seed in range(200)]
    assert len(set(queries)) > 180
