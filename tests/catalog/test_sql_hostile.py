"""Queries that would read, write, configure or exhaust something are refused before anything runs."""

from __future__ import annotations

import logging
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from scalable.catalog.collection import Collection
from scalable.catalog.duck import execute
from scalable.catalog.sql import sql
from scalable.errors import QueryError
from scalable.testing import no_compute

STATEMENTS = [
    "COPY detections TO '/tmp/stolen.csv'", "COPY (SELECT 1) TO '/tmp/x'", "EXPORT DATABASE '/tmp/x'", "ATTACH '/tmp/x.db'",
    "DETACH x", "INSTALL httpfs", "FORCE INSTALL x", "LOAD httpfs", "SET threads = 4", "SET VARIABLE x = 1", "RESET threads",
    "PRAGMA database_list", "CALL pragma_version()", "USE x", "CHECKPOINT", "VACUUM", "CREATE TABLE x AS SELECT 1",
    "CREATE MACRO f(x) AS x", "CREATE FUNCTION f(x) AS x", "CREATE SECRET s (TYPE S3)", "PREPARE x AS SELECT 1", "EXECUTE x",
    "DESCRIBE objects", "SUMMARIZE objects", "SHOW TABLES", "VALUES (1)", "INSERT INTO objects VALUES (1)", "DELETE FROM objects",
    "UPDATE objects SET n_J = 1", "ALTER TABLE objects ADD COLUMN x INT", "PIVOT detections ON band", "hello", "EXPLAIN SELECT 1",
]  # fmt: skip
TABLES = [
    "read_csv('/etc/passwd')", "read_csv_auto('/x')", "read_parquet('/x')", "read_text('/etc/passwd')", "read_json('/x')",
    "\"read_csv\"('/etc/passwd')", "glob('/*')", "duckdb_settings()", "duckdb_secrets()", "range(1000000)", "query('SELECT 1')",
    "query_table('objects')", "generate_series(1, 9)",
]  # fmt: skip
NAMES = ["'/etc/passwd'", "'http://evil/x.parquet'", '"/etc/passwd"', '"detections.parquet"', "sqlite_master", "partials", "rows"]
QUALIFIED = ["information_schema.tables", "system.main.duckdb_settings", "main.objects", "temp.objects", "pg_catalog.pg_tables"]
FUNCTIONS = [
    "getenv('HOME')", "\"getenv\"('HOME')", "read_text('/etc/passwd')", "current_setting('threads')", "getvariable('x')",
    "pragma_version()", "query('SELECT 1')", "nextval('x')", "random()", "now()", "repeat('x', 1000000000)", "unnest([1, 2])",
    "list_transform([1], x -> x)", "COLUMNS('.*')", "_region_0(1, 2)", "main.getenv('HOME')", "{'a': 1}", "[1, 2]", "$1",
]  # fmt: skip
CLAUSES = [
    "SELECT object_id FROM objects TABLESAMPLE 10%", "SELECT * FROM objects USING SAMPLE 10", "SELECT n_J INTO x FROM objects",
    "SELECT object_id FROM objects FOR UPDATE", "SELECT object_id FROM objects QUALIFY row_number() OVER () = 1",
    "SELECT o.n_J FROM objects o, LATERAL (SELECT o.object_id) x", "SELECT count(*) AS n FROM detections GROUP BY CUBE (band)",
    "SELECT band, count(*) AS n FROM detections GROUP BY GROUPING SETS ((band), ())", "SELECT * FROM (PIVOT detections ON band)",
]  # fmt: skip


def refused(store: Collection, query: str, message: str) -> None:
    with no_compute(), pytest.raises(QueryError, match=message):
        sql(store, query)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    # sqlglot says on its own that it does not understand commands.
    logging.getLogger("sqlglot").setLevel(logging.ERROR)


@pytest.mark.parametrize("query", STATEMENTS)
def test_only_select_is_run(synthetic: Collection, query: str) -> None:
    refused(synthetic, query, "only SELECT|not SQL we understand")


@pytest.mark.parametrize("table", TABLES)
def test_no_table_function_is_run_wherever_it_stands(synthetic: Collection, table: str) -> None:
    for query in (
        f"SELECT * FROM {table}",
        f"FROM {table} SELECT *",
        f"SELECT o.n_J FROM objects o, {table} AS t",
        f"WITH x AS (SELECT * FROM {table}) SELECT * FROM x",
        f"SELECT n_J FROM objects WHERE object_id IN (SELECT 1 FROM {table})",
        f"SELECT /* FROM objects */ * FROM {table} -- FROM objects",
    ):
        refused(synthetic, query, "no function and no file")


@pytest.mark.parametrize("name", NAMES)
def test_no_table_but_the_views_is_found(synthetic: Collection, name: str) -> None:
    refused(synthetic, f"SELECT * FROM {name}", "no view")


@pytest.mark.parametrize("name", QUALIFIED)
def test_no_schema_is_reached(synthetic: Collection, name: str) -> None:
    refused(synthetic, f"SELECT * FROM {name}", "plain name")


@pytest.mark.parametrize("function", FUNCTIONS)
def test_no_function_but_the_listed_ones_is_run(synthetic: Collection, function: str) -> None:
    for query in (f"SELECT {function} AS x FROM objects", f"SELECT n_J FROM objects WHERE {function} IS NULL"):
        refused(synthetic, query, "is not allowed in a query")
    with pytest.raises(QueryError, match="not allowed"):
        synthetic.objects.where(f"{function} IS NULL")


@pytest.mark.parametrize("query", CLAUSES)
def test_no_clause_but_the_listed_ones_is_run(synthetic: Collection, query: str) -> None:
    refused(synthetic, query, "is not allowed in a query")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("SELECT 1 AS a FROM objects; DROP TABLE objects", "exactly one statement"),
        ("SELECT 1 AS a /* ; */ ; -- x\n DROP TABLE x", "exactly one statement"),
        ("", "exactly one statement"),
        ("SELECT 'x", "not SQL we understand"),
        ("WITH RECURSIVE t AS (SELECT 1 AS n UNION ALL SELECT n + 1 FROM t) SELECT * FROM t", "not allowed"),
        ("WITH RECURSIVE t(n) AS (SELECT object_id FROM objects) SELECT n FROM t", "RECURSIVE"),
        ("WITH detections AS (SELECT * FROM objects) SELECT * FROM detections", "is a view already"),
        ('WITH "OBJECTS" AS (SELECT 1 AS a) SELECT * FROM objects', "is a view already"),
        ("SELECT " + "(" * 2000 + "1" + ")" * 2000 + " AS x FROM objects", "nested too deeply"),
        ("SELECT " + "+".join(["1"] * 3000) + " AS x FROM objects", "nested too deeply"),
        ("SELECT 1 AS x FROM objects -- " + "x" * 1_000_000, "at most 1,000,000 characters"),
        ("SELECT in_moc('/etc/passwd') AS x FROM objects", "no coverage map"),
    ],
    ids=lambda text: text[:40],
)
def test_what_hides_or_grows_is_refused(synthetic: Collection, query: str, message: str) -> None:
    refused(synthetic, query, message)


def test_a_condition_that_is_nested_too_deeply_is_refused(synthetic: Collection) -> None:
    with pytest.raises(QueryError, match="nested too deeply"):
        synthetic.objects.where("+".join(["n_J"] * 3000) + " > 1")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT getenv('HOME')",
        "COPY (SELECT 1) TO '{folder}/stolen.csv'",
        "ATTACH '{folder}/x.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET threads = 2",
        "SET memory_limit = '100GB'",
        "SET enable_external_access = true",
        "SELECT * FROM local_table",
    ],
)
def test_even_unchecked_a_statement_reaches_nothing(tmp_path: Path, statement: str) -> None:
    local_table = pa.table({"a": [1]})
    assert local_table.num_rows == 1
    with pytest.raises(QueryError):
        execute(statement.format(folder=tmp_path), {})
    assert not list(tmp_path.iterdir())


def test_a_task_has_one_thread_and_a_limit_of_memory() -> None:
    found = execute("SELECT current_setting('threads') AS t, current_setting('memory_limit') AS m", {}).to_pylist()[0]
    with duckdb.connect() as free:
        everything = free.sql("SELECT current_setting('memory_limit')").fetchall()[0][0]
    assert found["t"] == 1
    assert found["m"] != everything
