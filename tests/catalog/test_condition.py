"""Conditions keep the rows for which they are true, whichever way they are evaluated."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from scalable.catalog.condition import parse_condition

TABLE = pa.table(
    {
        "row": np.arange(6),
        "a": pa.array([1.0, None, np.nan, 4.0, None, np.inf], pa.float32()),
        "b": pa.array([1, 2, None, None, 5, 6]),
        "name": pa.array(["x", None, "y", "x", None, "x"]).dictionary_encode(),
    }
)


@pytest.mark.parametrize(
    ("text", "known", "rows"),
    [
        ("a is not null", ("a",), [0, 3, 5]),
        ("not (b is null)", ("b",), [0, 1, 4, 5]),
        ("name IS NOT NULL and (a is not null)", ("name", "a"), [0, 3, 5]),
        ("a is not null and b is not null and a is not null", ("a", "b"), [0, 5]),
        ("a is null", (), [1, 2, 4]),
        ("a is not null or b is not null", (), [0, 1, 3, 4, 5]),
        ("a is not null and b > 1", (), [5]),
        ("not (b is not null)", (), [2, 3]),
        ("a + b is not null", (), [0, 5]),
        ("(b = 2) is not true", (), [0, 2, 3, 4, 5]),
    ],
)
@pytest.mark.parametrize("chunks", [1, 3])
def test_only_whether_columns_are_known_is_asked_without_a_database(
    text: str, known: tuple[str, ...], rows: list[int], chunks: int
) -> None:
    condition = parse_condition(text, TABLE.schema)
    assert condition.known == known
    table = pa.concat_tables(TABLE.slice(first, 6 // chunks) for first in range(0, 6, 6 // chunks))
    kept = condition.apply(table)
    assert kept["row"].to_pylist() == rows
    # NaN is not equal to itself.
    assert kept.drop_columns("a").equals(table.take(rows).drop_columns("a"))
    assert np.array_equal(kept["a"].to_pandas(), table["a"].take(rows).to_pandas(), equal_nan=True)
