"""Models as files: arrays and JSON, never a pickle; with the features, units, policy, data and versions they were taught with."""

from __future__ import annotations

import hashlib
import json
import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

import scalable
from scalable.errors import ColumnError, InputError, StoreError, nearest
from scalable.io.arrays import read_arrays, write_arrays
from scalable.kernels.features import Features
from scalable.kernels.trees import Forest
from scalable.schema import Schema, parse_unit
from scalable.train.components import PCA, Standardizer
from scalable.train.incremental import Incremental
from scalable.train.linear import ElasticNet, Lasso, LinearRegression, Ridge
from scalable.train.mixture import GaussianMixture
from scalable.train.neighbours import KernelRegression, KNeighbors
from scalable.train.network import MLPRegressor
from scalable.train.nonlinear import NonlinearRegression
from scalable.train.tables import build, null_states_of
from scalable.train.trees import AdaBoost, GradientBoosting, RandomForest

Float = NDArray[np.float64]
Arrays = dict[str, NDArray[Any]]

FORMAT = 1
ESTIMATORS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        LinearRegression,
        Ridge,
        Lasso,
        ElasticNet,
        GradientBoosting,
        RandomForest,
        AdaBoost,
        MLPRegressor,
        Incremental,
        KNeighbors,
        KernelRegression,
        NonlinearRegression,
        GaussianMixture,
        PCA,
        Standardizer,
    )
}
"""What a model file may name: nothing else is made from one."""

_LOCAL = ("checkpoint", "scratch", "estimator")
"""Parameters that mean something on the machine of the fit only, or that `restore` finds in what was learnt."""
_DERIVED = ("trees_", "estimator_")


@dataclass(frozen=True, eq=False)
class Model:
    """A fitted estimator and everything that is needed to use it on another table.

    Attributes
    ----------
    estimator : object
        One of `ESTIMATORS`, fitted.
    features : Features
        Bands in their order, reference, missing-data policy, class rule.
    units : mapping of str to str
        Unit of each column that the features are made of.
    target, target_unit : str
        What is predicted; empty for a mixture.
    transform : object, optional
        What the features go through first: a fitted `PCA` or `Standardizer`.
    about : mapping
        Digest and rows of the training data, what was left out, versions, metrics; as JSON can hold it.
    """

    estimator: Any
    features: Features
    units: Mapping[str, str]
    target: str = ""
    target_unit: str = ""
    transform: Any = None
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Name of the estimator's class, or of that which `Incremental` feeds."""
        return type(getattr(self.estimator, "estimator_", self.estimator)).__name__

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides what is predicted; a random number, if that cannot be kept in a file."""
        try:
            arrays, said = self._packed()
        except InputError:
            return uuid.uuid4().hex
        total = hashlib.sha256(json.dumps({**said, "about": None}, sort_keys=True).encode())
        for name in sorted(arrays):
            total.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
        return total.hexdigest()

    def __dask_tokenize__(self) -> Any:  # noqa: D105
        return ("scalable model", self.digest)

    def inputs(self, columns: Float) -> Float:
        """Return what the estimator sees of features, shape (inputs, rows)."""
        return columns if self.transform is None else self.transform.transform_columns(columns)

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows)."""
        return np.asarray(self.estimator.predict_columns(self.inputs(columns)))

    def table_features(self, table: pa.Table) -> tuple[Float, NDArray[np.bool_]]:
        """Return the features of the rows of a table that count, and which rows these are."""
        columns, kept, _ = build(table, self.features, null_states_of(Schema.from_arrow(table.schema), self.features))
        return columns, kept

    def check(self, schema: Schema, title: str) -> None:
        """Raise unless a table has the columns that the model was taught with, in their units.

        Raises
        ------
        ColumnError
            Naming the column, what it has and what the model needs.
        """
        for name in self.features.columns:
            if name not in schema:
                bands = f"the bands {', '.join(self.features.magnitudes)}" if self.features.magnitudes else "other columns"
                raise ColumnError(
                    f"{title} has no column {name!r}: the model was taught with {bands}; {nearest(name, schema.names)}"
                )
            here, there = schema[name].unit, self.units.get(name, "")
            if here and there and parse_unit(here) != parse_unit(there):
                raise ColumnError(
                    f"{title}: {name} is in {here}, the model was taught with {there}: convert the column, or train anew"
                )
            if bool(here) != bool(there):
                raise ColumnError(
                    f"{title}: {name} is {'in ' + here if here else 'without unit'}, the model was taught with a column "
                    f"{'in ' + there if there else 'without unit'}: say the unit that is lacking in a rule of its column"
                )

    def save(self, path: str | Path) -> str:
        """Write the model to one HDF5 file, whole or not at all; return the file's digest."""
        return write_arrays(Path(path), *self._packed())

    def _packed(self) -> tuple[Arrays, dict[str, Any]]:
        arrays: Arrays = {}
        said = {
            "format": FORMAT,
            "estimator": _pack(self.estimator, "estimator", arrays),
            "transform": None if self.transform is None else _pack(self.transform, "transform", arrays),
            "features": self.features.to_dict(),
            "units": dict(self.units),
            "target": self.target,
            "target_unit": self.target_unit,
            "about": _plain(self.about),
        }
        return arrays, said

    def equation(self) -> str:
        """Return a linear model as an equation with units."""
        w = getattr(self.estimator, "coef_", None)
        if w is None or self.transform is not None:
            return f"{self.kind} has no equation in the features"
        terms = [f"{self.estimator.intercept_:.6g}"]
        for value, name, unit in zip(w, self.features.names, self.about.get("feature_units", [""] * len(w)), strict=True):
            per = "" if unit == self.target_unit else f"{self.target_unit or 1}/{unit}" if unit else self.target_unit
            terms.append(f"{'-' if value < 0 else '+'} {abs(value):.6g}{f' {per}' if per else ''} ({name})")
        return f"{self.target} = " + " ".join(terms)

    def __repr__(self) -> str:
        """Show what it predicts, from what, and how well."""
        rows = self.about.get("rows")
        lines = [f"<Model {self.kind}: {self.target or 'density'} from {', '.join(self.features.names)}>"]
        if rows is not None:
            origin = self.about.get("origin")
            lines.append(
                f"  taught with {rows:,} rows{f' of {origin}' if origin else ''}, digest {str(self.about.get('data', ''))[:16]}"
            )
        if hasattr(self.estimator, "coef_") and self.transform is None:
            lines.append(f"  {self.equation()}")
        return "\n".join(lines)


def open_model(path: str | Path) -> Model:
    """Read a model that `Model.save` wrote.

    Raises
    ------
    StoreError
        If the file is no model, damaged, or made by a newer version.
    """
    arrays, said, _ = read_arrays(Path(path))
    if said.get("format") != FORMAT:
        raise StoreError(f"{path}: is no model, or of format {said.get('format')}, we read {FORMAT}; update scalable")
    try:
        transform = None if said["transform"] is None else _unpack(said["transform"], "transform", arrays)
        estimator, features = _unpack(said["estimator"], "estimator", arrays), Features.from_dict(said["features"])
        model = Model(estimator, features, said["units"], said["target"], said["target_unit"], transform, said["about"])
        estimator.check(len(model.inputs(np.zeros((len(features.names), 0)))))
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise StoreError(
            f"{path}: not what a model of this version holds ({error!r}); save it again with this version"
        ) from error
    return model


def versions() -> dict[str, str]:
    """Return the versions that made a model."""
    return {"scalable": scalable.__version__, "numpy": np.__version__}


def described(model: Model, **more: Any) -> Model:
    """Return a model that says more about itself."""
    return replace(model, about={**model.about, **more})


def _pack(estimator: Any, prefix: str, arrays: Arrays) -> dict[str, Any]:
    name = type(estimator).__name__
    if name not in ESTIMATORS:
        raise StoreError(f"{name} cannot be saved as arrays; {nearest(name, ESTIMATORS)}")
    parameters = {key: value for key, value in estimator.get_params(deep=False).items() if key not in _LOCAL}
    learned: dict[str, Any] = {}
    if hasattr(estimator, "keep"):
        estimator.keep()
    for key, value in vars(estimator).items():
        if not key.endswith("_") or key.startswith("_") or key in _DERIVED:
            continue
        where = f"{prefix}.{key}"
        if isinstance(value, Forest):
            arrays.update({f"{where}.{part}": array for part, array in value._asdict().items()})
            learned[key] = {"forest": True}
        elif isinstance(value, np.ndarray):
            arrays[where] = value
            learned[key] = {"array": True}
        elif isinstance(value, list) and value and isinstance(value[0], np.ndarray):
            arrays.update({f"{where}.{n}": array for n, array in enumerate(value)})
            learned[key] = {"arrays": len(value)}
        else:
            learned[key] = {"value": _plain(value)}
    return {"class": name, "parameters": _plain(parameters), "learned": learned}


def _unpack(said: Mapping[str, Any], prefix: str, arrays: Arrays) -> Any:
    if said["class"] not in ESTIMATORS:
        raise StoreError(f"the model is a {said['class']!r}, which this version does not know; update scalable")
    estimator = ESTIMATORS[said["class"]](**said["parameters"])
    for key, how in said["learned"].items():
        where = f"{prefix}.{key}"
        value: Any
        if "forest" in how:
            value = Forest(*(arrays[f"{where}.{part}"] for part in Forest._fields))
        elif "arrays" in how:
            value = [arrays[f"{where}.{n}"] for n in range(how["arrays"])]
        else:
            value = arrays[where] if "array" in how else how["value"]
        setattr(estimator, key, value)
    if hasattr(estimator, "restore"):
        estimator.restore()
    return estimator


def _plain(value: Any) -> Any:
    """Return a value as JSON holds it; NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(part) for part in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
