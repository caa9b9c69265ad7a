"""The survey's rules on columns: sentinels, states, units and conversions, on columns whose answer is written here."""

from __future__ import annotations

import math
import operator

import numpy as np
import pyarrow as pa
import pytest

from scalable.errors import ColumnError, InputError
from scalable.io.rules import apply_rules, factor, stored_schema
from scalable.schema import Column, Schema, State
from scalable.survey.tables import ColumnRule

RAD = 180 / math.pi


def store(table: pa.Table, **rules: dict[str, object]) -> pa.Table:
    """Return what is stored of a table under rules, and hold it to the schema that was promised."""
    checked = {name: ColumnRule.model_validate(rule) for name, rule in rules.items()}
    schema = stored_schema(Schema.from_arrow(table.schema), checked, path="a.fits")
    found = apply_rules(table, schema, checked)
    assert found.schema.equals(schema.to_arrow(), check_metadata=True)
    found.validate(full=True)
    return found


def one(values: list[object], dtype: pa.DataType, **meaning: str) -> pa.Table:
    return pa.table([pa.array(values, dtype)], schema=Schema((Column("x", dtype, **meaning),)).to_arrow())


def test_columns_without_a_rule_are_stored_as_they_are_under_the_units_of_the_header() -> None:
    table = pa.table(
        [[1, None], ["a", None], [[1.5], None]],
        schema=Schema(
            (Column("n", pa.int16(), unit="RADIANS"), Column("s", pa.string()), Column("v", pa.list_(pa.float32()), unit="blah"))
        ).to_arrow(),
    )
    found = store(table)
    assert found.to_pydict() == table.to_pydict()
    meanings = Schema.from_arrow(found.schema)
    # A text that no standard reads is no unit, but is kept.
    assert [(c.unit, c.source_unit) for c in meanings] == [("rad", "RADIANS"), ("", ""), ("", "blah")]
    assert [c.role for c in meanings] == ["value"] * 3


def test_a_declared_unit_overrules_the_header_whose_text_is_kept() -> None:
    table = one([1.0], pa.float64(), unit="DEGREES", ucd="pos.eq.ra", description="from the header")
    meaning = Schema.from_arrow(store(table, x={"role": "ra", "unit": "rad"}).schema)["x"]
    assert (meaning.unit, meaning.source_unit, meaning.role) == ("rad", "DEGREES", "ra")
    assert (meaning.ucd, meaning.description) == ("pos.eq.ra", "from the header")
    nothing = Schema.from_arrow(store(table, x={"unit": ""}).schema)["x"]
    assert (nothing.unit, nothing.source_unit) == ("", "DEGREES")
    same = Schema.from_arrow(store(one([1.0], pa.float64(), unit="deg"), x={}).schema)["x"]
    assert (same.unit, same.source_unit) == ("deg", "")


def test_a_rule_describes_a_column() -> None:
    table = pa.table({"x": [1.0], "e": [0.1]})
    rule = {"role": "flux", "error": "e", "ucd": "phot.flux", "description": "Flux", "aperture_arcsec": 2.0}
    meaning = Schema.from_arrow(store(table, x=rule, e={"role": "flux_err"}).schema)["x"]
    assert (meaning.role, meaning.error, meaning.ucd) == ("flux", "e", "phot.flux")
    assert meaning.description == "Flux (aperture 2 arcsec)"


def test_a_declared_column_that_the_file_lacks_is_named_with_the_nearest() -> None:
    with pytest.raises(ColumnError, match=r"a.fits: no column 'Flx' although the survey declares it; did you mean 'Flux'\?"):
        store(pa.table({"Flux": [1.0]}), Flx={})


@pytest.mark.parametrize("dtype", [pa.int16(), pa.int32(), pa.int64()])
def test_a_whole_sentinel_becomes_a_null_and_its_neighbours_stay(dtype: pa.DataType) -> None:
    found = store(one([-9999, -9998, None, 0, 9999], dtype), x={"nulls": [-9999]})
    assert found.to_pydict() == {"x": [None, -9998, None, 0, 9999]}
    assert Schema.from_arrow(found.schema)["x"].null_state == "sentinel"


@pytest.mark.parametrize("dtype", [pa.float32(), pa.float64()])
def test_a_sentinel_of_a_float_column_is_compared_in_its_own_precision(dtype: pa.DataType) -> None:
    near = float(np.nextafter(np.array(-9.999, dtype.to_pandas_dtype()), 0, dtype=dtype.to_pandas_dtype()))
    found = store(one([1.5, -9.999, near, float("inf"), None], dtype), x={"nulls": [-9.999]})
    assert found["x"].to_pylist() == [1.5, None, near, float("inf"), None]


BOUNDS = {"at_most": np.less_equal, "below": np.less, "at_least": np.greater_equal, "above": np.greater}


@pytest.mark.parametrize("dtype", [pa.float32(), pa.float64()])
@pytest.mark.parametrize("bound", [-9.999, 0.0, 90.0, 1e300])
@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_takes_what_lies_on_its_side_in_the_precision_of_the_column(name: str, bound: float, dtype: pa.DataType) -> None:
    kind = dtype.to_pandas_dtype()
    with np.errstate(over="ignore"):
        near = np.array([bound, -bound], kind)
    infinite = np.array([np.inf, -np.inf], kind)
    values = np.concatenate([near, np.nextafter(near, infinite), np.nextafter(near, -infinite), infinite, [5.0]]).astype(kind)
    # No float32 is 1e300, so there the comparison is with the number itself.
    number = near[0] if np.isfinite(near[0]) else np.float64(bound)
    expected = [None if BOUNDS[name](value, number) else float(value) for value in values]
    found = store(one([*map(float, values), None], dtype), x={"nulls": [{name: bound}]})
    assert found["x"].to_pylist() == [*expected, None]


@pytest.mark.parametrize("dtype", [pa.uint8(), pa.int16(), pa.int64()])
@pytest.mark.parametrize("bound", [0.0, 2.0, 2.5, -2.5, 1e30, -1e30])
@pytest.mark.parametrize("name", BOUNDS)
def test_a_bound_of_an_integer_column_is_exact_even_where_no_float_is(name: str, bound: float, dtype: pa.DataType) -> None:
    limits = np.iinfo(dtype.to_pandas_dtype())
    values = [int(limits.min), int(limits.max), int(limits.max) - 1, 0, 1, 2, 3]
    # Python compares an integer with a float exactly.
    takes = {"at_most": operator.le, "below": operator.lt, "at_least": operator.ge, "above": operator.gt}[name]
    expected = [None if takes(value, bound) else value for value in values]
    assert store(one(values, dtype), x={"nulls": [{name: bound}]})["x"].to_pylist() == expected


def test_the_first_rule_that_fits_decides_the_state() -> None:
    one_value, range_ = {"value": -1, "state": "not_observed"}, {"at_most": 0, "state": "rejected"}
    table = one([-2.0, -1.0, 0.0, 1.0, 95.0, 99.0, None], pa.float32())
    above = {"above": 90, "state": "non_detection"}
    found = store(table, x={"nulls": [one_value, range_, above, 99.0]})
    assert found["x"].to_pylist() == [None, None, None, 1.0, None, None, None]
    assert found["x_state"].to_pylist() == [4, 2, 4, 0, 1, 1, 3]
    assert store(table, x={"nulls": [range_, one_value, 99.0, above]})["x_state"].to_pylist() == [4, 4, 4, 0, 1, 3, 3]


def test_a_sentinel_of_zero_takes_both_zeros() -> None:
    assert store(one([0.0, -0.0, 5e-324], pa.float64()), x={"nulls": [0]})["x"].to_pylist() == [None, None, 5e-324]


def test_nulls_of_one_meaning_need_no_states() -> None:
    rule = {"nulls": [{"value": 0, "state": "not_observed"}], "null_state": "not_observed"}
    found = store(one([0, 1, None], pa.int32()), x=rule)
    assert found.to_pydict() == {"x": [None, 1, None]}
    assert Schema.from_arrow(found.schema)["x"].null_state == "not_observed"


def test_nulls_of_several_meanings_say_in_a_column_beside_which_it_is() -> None:
    rule = {
        "nulls": [-1, {"value": -2, "state": "non_detection"}, {"value": -3, "state": "rejected"}],
        "null_state": "not_observed",
    }
    found = store(one([5, -1, -2, -3, None, 0], pa.int32()), x=rule)
    assert found.column_names == ["x", "x_state"]
    assert found["x"].to_pylist() == [5, None, None, None, None, 0]
    assert found["x_state"].type == pa.uint8()
    expected = [State.MEASURED, State.SENTINEL, State.NON_DETECTION, State.REJECTED, State.NOT_OBSERVED, State.MEASURED]
    assert found["x_state"].to_pylist() == expected
    meaning = Schema.from_arrow(found.schema)["x_state"]
    assert meaning.role == "quality"
    assert all(f"{state.value} {state.name.lower()}" in meaning.description for state in State)


def test_states_follow_the_columns_of_the_source_in_order() -> None:
    table = pa.table({"a": [1], "b": [2], "c": [3]})
    rule = {"nulls": [{"value": 1, "state": "rejected"}]}
    found = store(table, c=rule, a=rule)
    assert found.to_pydict() == {"a": [None], "b": [2], "c": [3], "a_state": [4], "c_state": [0]}


@pytest.mark.parametrize("dtype", [pa.float32(), pa.float64(), pa.int32()])
def test_a_conversion_adds_a_column_in_double_precision_and_keeps_the_sources_own(dtype: pa.DataType) -> None:
    table = one([0, 1, None, -3], dtype, unit="RADIANS", ucd="pos.eq.ra")
    found = store(table, x={"role": "ra", "convert": {"name": "y", "unit": "deg"}})
    assert found["x"].equals(table["x"])
    assert found["y"].type == pa.float64()
    assert found["y"].to_pylist() == [0.0, RAD, None, -3 * RAD]
    meaning = Schema.from_arrow(found.schema)["y"]
    assert (meaning.unit, meaning.role, meaning.description) == ("deg", "value", "x converted from rad")
    assert Schema.from_arrow(found.schema)["x"].unit == "rad"


def test_the_declared_unit_is_the_one_that_is_converted() -> None:
    table = one([180.0], pa.float64(), unit="rad")
    found = store(table, x={"unit": "deg", "convert": {"name": "y", "unit": "arcsec"}})
    assert found["y"].to_pylist() == [648_000.0]


def test_a_sentinel_is_not_converted() -> None:
    rule = {"unit": "d", "nulls": [{"value": -1, "state": "not_observed"}], "convert": {"name": "y", "unit": "h"}}
    found = store(one([2, -1], pa.int64()), x=rule)
    assert found.to_pydict() == {"x": [2, None], "x_state": [0, 2], "y": [48.0, None]}


@pytest.mark.parametrize(("unit", "message"), [("mag", "mag cannot"), ("", "a dimensionless value cannot"), ("blah", "a dimen")])
def test_a_conversion_between_what_does_not_compare_is_refused(unit: str, message: str) -> None:
    with pytest.raises(InputError, match=rf"columns.x: {message}.*"):
        store(one([1.0], pa.float64(), unit=unit), x={"convert": {"name": "y", "unit": "Jy"}})


def test_factors_are_those_of_the_units() -> None:
    assert factor("rad", "deg", "x") == pytest.approx(RAD, rel=2**-52)
    assert factor("mJy", "Jy", "x") == 1e-3
    assert factor("h", "s", "x") == 3600.0


def test_blocks_give_what_the_whole_gives() -> None:
    values = np.random.default_rng(1).integers(-3, 3, 1000)
    table = one(values.tolist(), pa.int64(), unit="rad")
    rules = {"x": {"nulls": [-1, {"value": -2, "state": "rejected"}], "convert": {"name": "y", "unit": "deg"}}}
    whole = store(table, **rules)
    assert pa.concat_tables([store(table.slice(start, 137), **rules) for start in range(0, 1000, 137)]).equals(whole)
    assert store(table.slice(0, 0), **rules).equals(whole.slice(0, 0))
    in_chunks = pa.concat_tables([table.slice(0, 400), table.slice(400)])
    assert store(in_chunks, **rules).equals(whole)


def test_a_sentinel_beyond_the_range_of_a_float_takes_no_infinity() -> None:
    assert store(one([float("inf")], pa.float32()), x={"nulls": [1e300]})["x"].to_pylist() == [float("inf")]


@pytest.mark.parametrize(
    ("values", "dtype", "sentinel"),
    [([-9, -10], pa.int16(), -9.5), ([255, 1], pa.uint8(), -1), ([31073, 1], pa.int16(), -99999), ([1, 0], pa.int64(), 1e300)],
)
def test_a_sentinel_that_a_column_cannot_hold_marks_nothing(values: list[int], dtype: pa.DataType, sentinel: float) -> None:
    assert store(one(values, dtype), x={"nulls": [sentinel]})["x"].to_pylist() == values


@pytest.mark.parametrize("values", [pa.array(["a"]), pa.array([True]), pa.array([[1.0]])])
def test_a_sentinel_of_what_is_no_number_is_said(values: pa.Array) -> None:
    with pytest.raises(InputError, match="has no sentinel -1; only numbers have"):
        store(pa.table({"x": values}), x={"nulls": [-1]})


@pytest.mark.parametrize("other", ["y", "Y"])
def test_an_added_column_never_takes_the_place_of_one_of_the_file(other: str) -> None:
    rule = {"unit": "rad", "convert": {"name": "y", "unit": "deg"}}
    with pytest.raises(InputError, match="a.fits: the added column 'y' clashes with one of the file"):
        store(pa.table({"x": [1.0], other: [7.0]}), x=rule)
