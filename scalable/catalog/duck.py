"""One SQL statement on Arrow tables in a DuckDB that can reach nothing else."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import duckdb
import pyarrow as pa

from scalable.errors import QueryError

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    "enable_external_access": False,
    "autoload_known_extensions": False,
    "autoinstall_known_extensions": False,
    "allow_community_extensions": False,
    "python_enable_replacements": False,
    # Division by zero is null, as catalogues mean it: neither infinity nor an error.
    "ieee_floating_point_ops": False,
    "error_on_division_by_zero": False,
    "preserve_insertion_order": True,
    "lock_configuration": True,
}


_local = threading.local()


def _connection() -> duckdb.DuckDBPyConnection:
    """Return this thread's locked connection: opening one costs more than most queries on a leaf."""
    if not hasattr(_local, "connection"):
        with duckdb.connect(":memory:") as probe:
            known = {name for (name,) in probe.execute("SELECT name FROM duckdb_settings()").fetchall()}
        # An unknown setting would be an error, and versions differ.
        settings = {name: value for name, value in _CONFIG.items() if name in known}
        _local.connection = duckdb.connect(":memory:", config=settings)
    return _local.connection


def execute(statement: str, tables: Mapping[str, pa.Table]) -> pa.Table:
    """Run a statement that was checked before on the given tables, and nothing but them.

    Single-precision columns are computed with in double precision. Sums of integers come back as int64.

    Raises
    ------
    QueryError
        With DuckDB's own words.
    """
    connection = _connection()
    try:
        for name, table in tables.items():
            connection.register(name, widened(table))
        result = connection.sql(statement).to_arrow_table()
    except duckdb.Error as error:
        raise QueryError(f"the query failed: {error}") from error
    finally:
        for name in tables:
            connection.unregister(name)
    return result.cast(pa.schema([_plain(column) for column in result.schema]))


def widened(table: pa.Table) -> pa.Table:
    """Return the table with float32 columns as float64: comparisons and quotients then do not depend on the stored precision."""
    return table.cast(pa.schema([f.with_type(pa.float64()) if f.type == pa.float32() else f for f in table.schema]))


def _plain(column: pa.Field) -> pa.Field:
    """DuckDB sums integers in 128 bits, which reach Arrow as a decimal."""
    whole = pa.types.is_decimal(column.type) and column.type.scale == 0
    return column.with_type(pa.int64()) if whole else column
