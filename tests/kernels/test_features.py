"""Features: which numbers a model sees, which rows count, and what became of the others."""

from __future__ import annotations

import numpy as np
import pytest

from scalable.errors import ColumnError, InputError
from scalable.kernels.features import ClassRule, Features
from scalable.schema import State

NAN = float("nan")


def test_colours_are_of_neighbouring_bands_after_the_reference() -> None:
    features = Features(("g", "r", "i"), reference="r", others=("size",))
    values = {name: np.array(column) for name, column in {"g": [20.0], "r": [19.0], "i": [18.5], "size": [2.0]}.items()}
    columns, kept, left_out = features.build(values, {})
    assert features.names == ["r", "g - r", "r - i", "size"]
    assert columns[:, 0].tolist() == [19.0, 1.0, 0.5, 2.0]
    assert kept.all()
    assert not left_out


def test_what_is_missing_is_dropped_filled_or_kept_by_its_state_and_counted() -> None:
    features = Features(("g", "r"), missing={"non_detection": 28.0, "imputed": "keep"})
    g = np.array([20.0, NAN, NAN, 21.0, NAN, NAN])
    state = np.array([0, State.NON_DETECTION, State.NOT_OBSERVED, State.IMPUTED, State.IMPUTED, 0], np.uint8)
    columns, kept, left_out = features.build({"g": g, "r": np.full(6, 19.0)}, {"g": state})
    assert kept.tolist() == [True, True, False, True, False, False]
    assert columns[0].tolist() == [1.0, 9.0, 2.0]
    assert left_out == {"not_observed": 1, "imputed": 1, "not_finite": 1}
    assert kept.sum() + sum(left_out.values()) == 6


def test_nan_without_a_state_is_a_sentinel() -> None:
    _, kept, left_out = Features(("g", "r")).build({"g": np.array([1.0, NAN]), "r": np.array([np.inf, 1.0])}, {})
    assert not kept.any()
    assert left_out == {"sentinel": 2}


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("any", [True, True, True, True]),
        ("all", [True, False, False, False]),
        ("majority", [True, True, True, False]),
        ("Y", [True, False, False, False]),
    ],
)
def test_the_class_rule_decides_where_bands_disagree(rule: str, expected: list[bool]) -> None:
    classes = {"Y": np.array([-1, 1, NAN, 1]), "J": np.array([-1, -1, -1, 1]), "H": np.array([-1, -1, NAN, -1])}
    assert ClassRule(("Y", "J", "H"), (-1,), rule).keep(classes).tolist() == expected


def test_rules_that_name_nothing_are_refused_and_all_come_back_from_json() -> None:
    with pytest.raises(ColumnError, match="did you mean 'non_detection'"):
        Features(("g", "r"), missing={"nondetection": "drop"})
    for value in (NAN, np.inf, "28"):
        with pytest.raises(InputError, match="missing: sentinel is .*: give a finite number, 'drop' or 'keep'"):
            Features(("g", "r"), missing={"sentinel": value})
    with pytest.raises(ColumnError, match="not a magnitude of the features"):
        Features(("g", "r"), reference="z")
    with pytest.raises(ColumnError, match="no feature"):
        Features(("g",))
    with pytest.raises(ColumnError, match="majority"):
        ClassRule(("Y",), (-1,), "most")
    features = Features(("g", "r"), "r", ("size",), {"rejected": 30.0}, ClassRule(("Y",), (-1.0, -2.0), "all"))
    assert Features.from_dict(features.to_dict()) == features


@pytest.mark.parametrize("reference", ["a", "c", "d"])
def test_columns_follow_from_the_features_that_a_reference_anchors(reference: str) -> None:
    rng = np.random.default_rng(1)
    values = {name: rng.normal(20, 2, 50) for name in ("a", "b", "c", "d", "size")}
    features = Features(("a", "b", "c", "d"), reference=reference, others=("size",))
    assert features.given == list(values)
    found = features.columns_of(features.build(values, {})[0])
    assert set(found) == set(values)
    for name, column in values.items():
        np.testing.assert_allclose(found[name], column, rtol=1e-14, err_msg=name)
    colours = Features(("a", "b"), others=("size",))
    assert colours.given == ["size"]
    np.testing.assert_array_equal(colours.columns_of(colours.build(values, {})[0])["size"], values["size"])
