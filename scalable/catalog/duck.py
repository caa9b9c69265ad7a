"""One SQL statement on Arrow tables in a DuckDB that can reach nothing else."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
from dask.system import CPU_COUNT
from distributed.system import MEMORY_LIMIT

from scalable.errors import QueryError

_CONFIG: dict[str, str | bool | int | float | list[str]] = {
    "threads": 1,
    # As many queries as cores may run at once.
    "memory_limit": f"{MEMORY_LIMIT // CPU_COUNT // 2**20}MiB",
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


def execute(
    statement: str, tables: Mapping[str, pa.Table], functions: Mapping[str, Callable[..., pa.Array]] | None = None
) -> pa.Table:
    """Run a statement that was checked before on the given tables, and nothing but them.

    Single-precision columns are computed with in double precision. Sums of integers come back as int64. What is not a number is
    null, going in and coming out.

    Parameters
    ----------
    statement : str
        SQL.
    tables : mapping
        By the name that the statement gives them.
    functions : mapping, optional
        Functions of right ascension and declination, as Arrow columns, that tell which rows hold.

    Raises
    ------
    QueryError
        With DuckDB's own words.
    """
    connection, named = _connection(), functions or {}
    try:
        for name, table in tables.items():
            connection.register(name, widened(table))
        for name, function in named.items():
            connection.create_function(name, function, ["DOUBLE", "DOUBLE"], "BOOLEAN", type="arrow")
        result = connection.sql(statement).to_arrow_table()
        return without_nan(result.cast(pa.schema([_plain(column) for column in result.schema])))
    except duckdb.Error as error:
        raise QueryError(f"the query failed: {error}") from error
    except pa.ArrowInvalid as error:
        raise QueryError(f"a sum of integers is too large ({error}); sum them as numbers: sum(x * 1.0)") from error
    finally:
        for name in tables:
            connection.unregister(name)
        for name in named:
            connection.remove_function(name)


def widened(table: pa.Table) -> pa.Table:
    """Return the table with float32 columns as float64 and null for NaN.

    Comparisons and quotients then do not depend on the stored precision; DuckDB holds NaN for larger than every number.
    """
    return without_nan(table.cast(pa.schema([f.with_type(pa.float64()) if f.type == pa.float32() else f for f in table.schema])))


def without_nan(table: pa.Table) -> pa.Table:
    """Return the table with null for NaN."""
    for number, column in enumerate(table.columns):
        if pa.types.is_floating(column.type) and pc.any(pc.is_nan(column)).as_py():
            known = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
            table = table.set_column(number, table.schema.field(number), known)
    return table


def _plain(column: pa.Field) -> pa.Field:
    """DuckDB sums integers in 128 bits, which reach Arrow as a decimal, and computes with literals as decimals."""
    if not pa.types.is_decimal(column.type):
        return column
    return column.with_type(pa.int64() if column.type.scale == 0 else pa.float64())
