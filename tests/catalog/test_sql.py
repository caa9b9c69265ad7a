"""SQL over leaves gives what one database over everything gives, or is refused with the reason."""

from __future__ import annotations

import duckdb
import pyarrow as pa
import pytest

from scalable.catalog.collection import Collection
from scalable.catalog.duck import widened
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
        ("SELECT * FROM read_csv('/etc/passwd')", QueryError, "no function and no file"),
        ("SELECT * FROM '/etc/passwd'", QueryError, "no view"),
        ("SELECT * FROM glob('/*')", QueryError, "no function and no file"),
        ("SELECT * FROM information_schema.tables", QueryError, "plain name"),
        ("SELECT read_text('/etc/passwd') FROM objects", QueryError, "not allowed"),
        ("SELECT getenv('HOME') FROM objects", QueryError, "not allowed"),
        ("COPY detections TO '/tmp/stolen.csv'", QueryError, "only SELECT"),
        ("ATTACH '/tmp/x.db'", QueryError, "only SELECT"),
        ("INSTALL httpfs", QueryError, "only SELECT"),
        ("SET threads = 4", QueryError, "only SELECT"),
        ("PRAGMA database_list", QueryError, "only SELECT"),
        ("CREATE TABLE x AS SELECT 1", QueryError, "only SELECT"),
        ("SELECT 1 AS a FROM objects; DROP TABLE objects", QueryError, "exactly one statement"),
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
    ],
)
def test_a_query_that_is_hostile_or_cannot_be_split_is_refused(
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
