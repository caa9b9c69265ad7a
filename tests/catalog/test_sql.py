"""SQL over leaves gives what one database over everything gives, or is refused with the reason."""

from __future__ import annotations

import math
from fractions import Fraction

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from scalable.catalog.collection import Collection
from scalable.catalog.duck import execute, widened
from scalable.catalog.match import crossmatch
from scalable.catalog.search import cone_search
from scalable.catalog.sql import sql
from scalable.errors import ColumnError, QueryError

QUERIES = [
    "SELECT count(*) AS n FROM detections",
    "SELECT band, count(*) AS n, sum(source_row) AS s, min(Mag1) AS a, max(Mag1) AS b, avg(Mag1) AS c FROM detections "
    "GROUP BY band",
    "SELECT band, count(Mag1) AS n FROM detections WHERE Flux1 / dFlux1 > 20 GROUP BY 1 HAVING count(*) > 10 "
    "ORDER BY n DESC, band",
    "SELECT o.field, d.band, count(*) FILTER (WHERE Class = -1) AS stars, count(*) AS n FROM detections d "
    "JOIN observations o USING (observation_id) GROUP BY o.field, d.band ORDER BY 1, 2",
    "SELECT j.object_id, j.Mag1 - h.Mag1 AS colour FROM detections j JOIN detections h ON j.object_id = h.object_id "
    "WHERE j.band = 'J' AND h.band = 'H' ORDER BY colour DESC NULLS LAST, j.object_id LIMIT 10",
    "SELECT p.object_id, p.n_Ks, d.mjd FROM objects p LEFT JOIN detections d ON p.object_id = d.object_id AND d.band = 'Z' "
    "ORDER BY p.object_id LIMIT 50 OFFSET 5",
    "WITH k AS (SELECT object_id, Flux1, avg(Flux1) OVER (PARTITION BY object_id) AS m FROM detections WHERE band = 'Ks') "
    "SELECT count(*) AS n, avg(Flux1 / m) AS r FROM k WHERE Flux1 > m",
    "SELECT n, count(*) AS objects FROM (SELECT object_id, count(*) AS n FROM detections GROUP BY object_id) GROUP BY n "
    "ORDER BY n",
    "SELECT DISTINCT band, observation_id FROM detections ORDER BY observation_id",
    "SELECT count(DISTINCT object_id) AS n FROM detections WHERE Mag1 < 16",
    "SELECT object_id, median(Mag1) AS m FROM detections GROUP BY object_id ORDER BY object_id LIMIT 5",
    "SELECT count(*) AS n FROM objects WHERE object_id IN (SELECT object_id FROM detections WHERE band = 'Ks' AND Mag1 < 15)",
    "SELECT field, count(*) AS n FROM observations WHERE mjd > 0 GROUP BY field ORDER BY field",
    "SELECT avg(Mag1) AS a, count(*) AS n FROM detections WHERE Mag1 > 1000",
    "SELECT CASE WHEN Mag1 < 15 THEN 'bright' ELSE 'faint' END AS kind, count(*) AS n FROM detections GROUP BY 1 ORDER BY kind",
    "SELECT sum(n_J) + sum(n_H) AS n, count(*) / 2 AS half FROM objects",
    "SELECT object_id, row_number() OVER (PARTITION BY object_id ORDER BY mjd, source_row) AS k FROM detections "
    "WHERE band = 'Ks' ORDER BY object_id, k LIMIT 20",
    'SELECT "Mag1" AS "a b", Mag2 FROM detections WHERE Mag1 IS NULL ORDER BY object_id, observation_id',
    "SELECT count(*) AS n FROM Field_1_J WHERE mag1 BETWEEN 12 AND 15",
]


@pytest.fixture(scope="module")
def whole(synthetic: Collection) -> duckdb.DuckDBPyConnection:
    """One database that holds everything at once."""
    connection = duckdb.connect()
    views = {name: getattr(synthetic, name).compute() for name in ("objects", "detections")}
    for name, table in (*views.items(), ("observations", synthetic.observations)):
        connection.register(name, widened(table))
    paths = zip(*(synthetic.observations[name].to_pylist() for name in ("path", "observation_id")), strict=True)
    j = next(i for path, i in paths if path.endswith("Field-1-J.fits"))
    connection.sql(f"CREATE TEMP VIEW Field_1_J AS SELECT * FROM detections WHERE observation_id = {j}")
    return connection


@pytest.mark.parametrize("query", QUERIES)
def test_a_split_query_answers_as_one_database_does(synthetic: Collection, whole: duckdb.DuckDBPyConnection, query: str) -> None:
    expected = whole.sql(query).to_arrow_table()
    found = sql(synthetic, query).compute(scheduler="threads")
    assert [name.lower() for name in found.column_names] == [name.lower() for name in expected.column_names]
    ordered = "order by" in query.lower()
    left, right = (rows(table, ordered) for table in (found, expected))
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        for x, y in zip(a, b, strict=True):
            # Counts and values are exact; sums of floats differ by the order of addition alone.
            assert x == y or x == pytest.approx(y, rel=1e-12)


def rows(table: pa.Table, ordered: bool) -> list[tuple[object, ...]]:
    found = [tuple(float(v) if isinstance(v, float) else v for v in row.values()) for row in table.to_pylist()]
    return found if ordered else sorted(found, key=repr)


@pytest.mark.parametrize(
    ("query", "error", "message"),
    [
        ("SELECT Flx1 FROM detections", ColumnError, "did you mean 'Flux1'"),
        ("SELECT * FROM detection", QueryError, "did you mean 'detections'"),
        ("SELECT a.object_id FROM detections a, detections b WHERE a.Mag1 < b.Mag1", QueryError, "crossmatch"),
        ("SELECT rank() OVER (ORDER BY Mag1) AS r FROM detections", QueryError, "PARTITION BY object_id"),
        ("SELECT median(Mag1) AS m FROM detections", QueryError, "cannot be combined"),
        ("SELECT count(DISTINCT band) AS n FROM detections", QueryError, "count\\(DISTINCT object_id\\)"),
        ("SELECT * FROM (SELECT object_id FROM detections LIMIT 4)", QueryError, "outermost"),
        ("SELECT * FROM (SELECT band, count(*) AS n FROM detections GROUP BY band)", QueryError, "outermost"),
        ("SELECT object_id FROM objects WHERE n_J > (SELECT avg(n_J) FROM objects)", QueryError, "outermost|may only stand"),
        ("SELECT o.path FROM observations o LEFT JOIN detections d USING (observation_id)", QueryError, "outer join"),
        ("SELECT a.Mag1, b.Mag1 FROM detections a JOIN detections b USING (object_id)", QueryError, "name them apart"),
        ("SELECT object_id FROM objects UNION SELECT object_id FROM detections", QueryError, "only SELECT"),
        ("SELECT sum(DISTINCT Mag1) AS s FROM detections", QueryError, "count\\(DISTINCT object_id\\)"),
        ("SELECT count(DISTINCT object_id) AS n FROM (SELECT floor(X) AS object_id FROM detections)", QueryError, "GROUP BY the"),
        ("SELECT max(Mag1, 3) AS m FROM detections", QueryError, "one argument"),
        ("SELECT DISTINCT ON (band) band, mjd FROM detections", QueryError, "row_number"),
        ("SELECT DISTINCT band FROM detections ORDER BY mjd", QueryError, "ORDER BY takes selected columns"),
        ("SELECT band, count(*) AS n FROM detections GROUP BY ALL", QueryError, "name the columns"),
        ("SELECT band FROM detections ORDER BY ALL", QueryError, "name the columns"),
        ("SELECT n_J FROM objects NATURAL JOIN detections", QueryError, "JOIN … ON"),
        ("SELECT object_id FROM objects LIMIT (SELECT 3)", QueryError, "whole number"),
        (
            "SELECT row_number() OVER (PARTITION BY b.object_id ORDER BY a.mjd) AS n FROM detections a "
            "LEFT JOIN detections b ON a.object_id = b.object_id AND b.band = 'J'",
            QueryError,
            "window over the whole sky",
        ),
        (
            "SELECT a.object_id FROM detections a LEFT JOIN detections b ON a.band = b.band "
            "LEFT JOIN detections d ON a.object_id = b.object_id AND b.object_id = d.object_id",
            QueryError,
            "different objects",
        ),
        (
            "SELECT band FROM observations WHERE observation_id IN (SELECT observation_id FROM detections)",
            QueryError,
            "join them",
        ),
        ("SELECT sqrt(sqrt(sqrt(sqrt(sqrt(Mag1))))) AS x FROM detections", QueryError, "inside each other"),
    ],
)
def test_a_query_that_cannot_be_split_is_refused_with_what_to_do(
    synthetic: Collection, query: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        sql(synthetic, query)


def test_an_aggregate_of_objects_inside_a_condition_is_refused_even_where_it_looks_local(synthetic: Collection) -> None:
    with pytest.raises(QueryError, match="HAVING|outermost|GROUP BY"):
        sql(synthetic, "SELECT object_id FROM (SELECT object_id FROM detections HAVING count(*) > 1)")


def test_a_column_keeps_its_unit_and_type_through_a_query(synthetic: Collection) -> None:
    found = sql(synthetic, "SELECT d.Mag1 AS m, d.Flux1 / d.dFlux1 AS snr FROM (SELECT * FROM detections) d LIMIT 3")
    assert found.columns["m"].unit == "mag"
    assert found.schema.field("m").type == pa.float32()
    assert found.schema.field("snr").type == pa.float64()
    assert found.compute().schema.equals(found.schema)


def test_groups_of_an_outer_join_without_partner_are_one_group_of_the_whole_sky(synthetic: Collection) -> None:
    query = (
        "SELECT b.object_id AS k, count(*) AS n FROM detections a LEFT JOIN detections b "
        "ON a.object_id = b.object_id AND b.band = 'H' WHERE a.band = 'J' GROUP BY b.object_id"
    )
    found = sql(synthetic, query).compute(scheduler="threads")
    assert found["k"].null_count == 1
    assert found.num_rows == len(set(found["k"].to_pylist()))


def test_what_is_not_defined_is_null_and_does_not_end_the_query(synthetic: Collection) -> None:
    query = (
        "SELECT log10(Flux1 - 300) AS a, sqrt(Flux1 - 300) AS b, ln(Flux1 - Flux1) AS c, pow(Flux1 - 300, 0.5) AS d, "
        "acos(Flux1) AS e, Flux1 / (Flux1 - Flux1) AS f, log2(4.0) AS g, log10(1000.0) AS h, Flux1 - 300 AS x FROM detections"
    )
    found = sql(synthetic, query).compute(scheduler="threads").to_pydict()
    assert 0 < sum(x < 0 for x in found["x"]) < len(found["x"])
    for a, b, d, x in zip(*(found[name] for name in "abdx"), strict=True):
        assert (a is None) == (x <= 0)
        assert (b is None) == (d is None) == (x < 0)
        assert b is None or b == pytest.approx(x**0.5)
    assert {*found["c"], *found["e"], *found["f"]} == {None}
    assert {*found["g"]} == {2.0}
    assert {*found["h"]} == {3.0}
    assert synthetic.detections.where("log10(Flux1 - 300) > -100").compute(scheduler="threads").num_rows == sum(
        a is not None and a > -100 for a in found["a"]
    )


def test_nan_of_other_peoples_tables_is_null_in_queries_and_conditions(synthetic: Collection) -> None:
    table = pa.table({"x": [1.0, float("nan"), None, 3.0]})
    assert execute("SELECT count(x) AS n, max(x) AS m FROM t", {"t": table}).to_pylist() == [{"n": 2, "m": 3.0}]
    assert execute("SELECT x FROM t WHERE x > 1.5", {"t": table}).to_pylist() == [{"x": 3.0}]
    assert execute("SELECT 'inf'::DOUBLE - 'inf'::DOUBLE AS x", {}).to_pylist() == [{"x": None}]


def test_the_spread_of_equal_values_is_zero_and_of_large_ones_is_not_lost(synthetic: Collection) -> None:
    # About values of 56,000 with a scatter of 14, sums of squares would keep four digits.
    found = sql(
        synthetic,
        "SELECT stddev(mjd) AS s, var_pop(mjd) AS v, stddev(X - X + 0.1) AS z, stddev_pop(object_id) AS o FROM detections",
    ).compute(scheduler="threads")
    table = synthetic.detections.compute(scheduler="threads")
    exact = [Fraction(value) for value in table["mjd"].to_pylist()]
    mean = sum(exact) / len(exact)
    squares = sum((value - mean) ** 2 for value in exact)
    assert found["s"][0].as_py() == pytest.approx(math.sqrt(squares / (len(exact) - 1)), rel=1e-9)
    assert found["v"][0].as_py() == pytest.approx(float(squares / len(exact)), rel=1e-9)
    assert found["z"][0].as_py() == 0.0
    assert found["o"][0].as_py() == pytest.approx(np.std(table["object_id"].to_numpy()), rel=1e-12)
    one = sql(
        synthetic, "SELECT stddev(Mag2) AS s, stddev_pop(Mag2) AS p FROM detections WHERE source_row = 3 AND observation_id = 1"
    )
    assert one.compute(scheduler="threads").to_pylist() == [{"s": None, "p": 0.0}]


def test_the_first_rows_of_an_order_are_chosen_in_every_leaf_already(synthetic: Collection) -> None:
    query = "SELECT object_id, Mag1 FROM detections ORDER BY Mag1 NULLS LAST, object_id LIMIT 5 OFFSET 2"
    partial = next(task for key, task in sql(synthetic, query).__dask_graph__().items() if "partial" in str(key))
    assert 0 < partial({}).num_rows <= 7 * len(synthetic.detections.leaves) < synthetic.detections.rows
    whole = synthetic.detections.compute(scheduler="threads").sort_by([("Mag1", "ascending"), ("object_id", "ascending")])
    assert sql(synthetic, query).compute(scheduler="threads")["Mag1"].to_pylist() == whole["Mag1"][2:7].to_pylist()


def test_aggregates_and_differences_keep_the_unit_and_ratios_have_none(synthetic: Collection) -> None:
    found = sql(
        synthetic,
        "SELECT avg(Mag1) AS a, stddev(Mag1) AS s, max(Mag1) - min(Mag2) AS d, variance(Mag1) AS v, "
        "sum(Flux1) / sum(Flux2) AS r, avg(Mag1 - Mag2) AS c, min(Mag1) + max(mjd) AS odd FROM detections",
    )
    assert [found.columns[name].unit for name in "asdvrc"] == ["mag", "mag", "mag", "", "", "mag"]
    assert found.columns["odd"].unit == ""


def test_a_query_on_rows_that_earlier_tasks_made_runs_on_them(synthetic: Collection) -> None:
    bands = sql(synthetic, "SELECT band, count(*) AS n FROM detections GROUP BY band ORDER BY band")
    found = sql(bands, "SELECT band, n FROM catalog WHERE n > 800").compute(scheduler="threads")
    assert found.to_pylist() == [row for row in bands.compute(scheduler="threads").to_pylist() if row["n"] > 800]
    assert 0 < found.num_rows < 5
    persisted = synthetic.detections.persist(scheduler="threads")
    for query in ("SELECT object_id, Mag1 FROM catalog WHERE Mag1 < 14", "SELECT count(*) AS n FROM catalog WHERE Mag1 < 14"):
        ours = sql(persisted, query).compute(scheduler="threads")
        assert ours.equals(sql(synthetic.detections, query).compute(scheduler="threads"))


def test_rows_without_an_object_are_not_grouped_by_object(synthetic: Collection) -> None:
    ra, dec = (synthetic.objects.head(1)[name][0].as_py() for name in ("object_ra", "object_dec"))
    objects = cone_search(synthetic.objects, ra_deg=ra, dec_deg=dec, radius_arcsec=300)
    pairs = crossmatch(objects.where("object_id % 2 = 0"), objects, radius_arcsec=1.0, how="outer")
    assert pairs.compute(scheduler="threads")["object_id"].null_count > 1
    query = "SELECT object_id, count(*) AS n FROM catalog GROUP BY object_id"
    with pytest.raises(QueryError, match="rows without object_id"):
        sql(pairs, query).compute(scheduler="threads")
    for harmless in ("SELECT object_id, n_J_2 FROM catalog", "SELECT count(*) AS n, count(DISTINCT object_id) AS k FROM catalog"):
        assert sql(pairs, harmless).compute(scheduler="threads").num_rows >= 1
    assert sql(pairs.where("object_id IS NOT NULL"), query).compute(scheduler="threads").num_rows > 1


def test_a_result_has_the_name_that_was_typed(synthetic: Collection) -> None:
    found = sql(synthetic, "SELECT Mag1 + 1 AS MAG2, X AS x, mag3, max(mjd) OVER (PARTITION BY object_id) AS Y FROM detections "
                "ORDER BY mag2 DESC NULLS LAST, x LIMIT 3")  # fmt: skip
    assert found.schema.names == ["MAG2", "x", "Mag3", "Y"]
    table = found.compute(scheduler="threads")
    whole = synthetic.detections.compute(scheduler="threads")
    faintest = sorted((value for value in whole["Mag1"].to_pylist() if value is not None), reverse=True)[:3]
    assert table["MAG2"].to_pylist() == [value + 1 for value in faintest]
