"""Any estimator of others that learns in steps, fed with mixed batches; kept without a pickle."""

from __future__ import annotations

import copy
import importlib
import io
import json
import zipfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import SGDRegressor
from sklearn.neural_network import MLPRegressor

from scalable.errors import InputError, StoreError
from scalable.kernels.linear import heights
from scalable.train.epochs import Epochs, summed

Float = NDArray[np.float64]

KEPT = (SGDRegressor, MLPRegressor)
"""Estimators of scikit-learn that files may hold; others could lead their own code out of memory."""
TRUSTED = tuple(f"sklearn.neural_network._stochastic_optimizers.{name}Optimizer" for name in ("Adam", "SGD"))
"""What a file may name beside what skops trusts."""


class Incremental(Epochs):
    """Any regressor with ``partial_fit``, fed with mixed batches of scaled features for some epochs.

    Parameters
    ----------
    estimator : object, optional
        Scikit-learn's contract; a clone learns, seeded if it has a ``random_state`` that is None. By default ``SGDRegressor()``.
    epochs, batch_rows, validation, patience, buffer_rows, seed, checkpoint, scratch
        As in `MLPRegressor`. Others than `KEPT` are not kept in files: they take no checkpoint and predict in their process.

    Attributes
    ----------
    estimator_ : object
        What has learnt, from features scaled by ``centre_`` and ``scale_``; the target is as it was.
    loss_curve_, validation_curve_ : list of float
        Half the mean squared error in units of the target's variance, in each epoch; of a batch just after its step.
    """

    estimator_: Any

    def __init__(
        self,
        estimator: Any = None,
        *,
        epochs: int = 20,
        batch_rows: int = 1024,
        validation: float = 0.1,
        patience: int = 5,
        buffer_rows: int = 1 << 18,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        self.estimator = estimator
        self.epochs = epochs
        self.batch_rows = batch_rows
        self.validation = validation
        self.patience = patience
        self.buffer_rows = buffer_rows
        self.seed = seed
        self.checkpoint = checkpoint
        self.scratch = scratch

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows).

        Of others than `SGDRegressor` the arithmetic is their own: the last bits of a row may depend on the rows beside it.
        """
        if isinstance(self.estimator_, SGDRegressor):
            return heights(self._scaled(columns), self.estimator_.coef_, float(self.estimator_.intercept_[0]))
        return np.asarray(self.estimator_.predict(self._scaled(columns).T), np.float64)

    def keep(self) -> None:
        """Make arrays of what is not one, for a file."""
        self.state_ = packed(self.estimator_)

    def restore(self) -> None:
        """Make what is not kept in a file: the estimator."""
        self.estimator_ = unpacked(self.state_)
        self.estimator = clone(self.estimator_)

    def _recipe(self) -> dict[str, Any]:
        return {**super()._recipe(), "estimator": type(self.estimator).__qualname__}

    def _start(self) -> None:
        self.estimator_ = SGDRegressor() if self.estimator is None else clone(self.estimator)
        if self.estimator_.get_params().get("random_state", 0) is None:
            self.estimator_.set_params(random_state=self.seed)

    def _step(self, X: Float, y: Float, weight: Float | None, done: float) -> float:
        self.estimator_.partial_fit(X, y, **({} if weight is None else {"sample_weight": weight}))
        total, rows = summed(self._half_squares(X, y), weight)
        return total / max(rows, 1e-300)

    def _losses(self, columns: Float, y: Float) -> Float:
        return self._half_squares(self._scaled(columns).T, y)

    def _half_squares(self, X: Float, y: Float) -> Float:
        return np.asarray(0.5 * ((self.estimator_.predict(X) - y) / self.scale_[-1]) ** 2)

    def _state(self, *, file: bool) -> dict[str, Any]:
        return {"estimator": packed(self.estimator_) if file else copy.deepcopy(self.estimator_)}

    def _restore(self, state: dict[str, Any]) -> None:
        kept = state["estimator"]
        self.estimator_ = unpacked(kept) if isinstance(kept, np.ndarray) else kept


def packed(estimator: Any) -> NDArray[np.uint8]:
    """Return an estimator of scikit-learn as skops writes it, as bytes; equal ones give equal bytes.

    Raises
    ------
    InputError
        If it is not one of `KEPT`.
    """
    if type(estimator) not in KEPT:
        raise InputError(
            f"{type(estimator).__name__} cannot be kept in a file (only {_names()} of scikit-learn can): fit without checkpoint, "
            "and use the model in this process"
        )
    written = _skops().dumps(estimator)
    plain = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(written)) as given, zipfile.ZipFile(plain, "w") as made:
        # Files and objects are named by places in memory, which differ from run to run.
        places: dict[str, str] = {}
        schema = _renumbered(json.loads(given.read("schema.json")), {}, count(), places)
        for old, new in places.items():
            made.writestr(zipfile.ZipInfo(new), given.read(old))
        made.writestr(zipfile.ZipInfo("schema.json"), json.dumps(schema))
    return np.frombuffer(plain.getvalue(), np.uint8)


def _renumbered(node: Any, seen: dict[int, int], numbers: Any, places: dict[str, str]) -> Any:
    if isinstance(node, list):
        return [_renumbered(part, seen, numbers, places) for part in node]
    if not isinstance(node, dict):
        return node
    out = {key: _renumbered(part, seen, numbers, places) for key, part in node.items()}
    if isinstance(node.get("__id__"), int):
        # Plain values may be one object by chance.
        out["__id__"] = next(numbers) if node.get("is_json") else seen.setdefault(node["__id__"], next(numbers))
    if isinstance(node.get("file"), str):
        out["file"] = places.setdefault(node["file"], f"{len(places)}{Path(node['file']).suffix}")
    return out


def unpacked(state: NDArray[np.uint8]) -> Any:
    """Return the estimator that `packed` made bytes of; nothing is made but what skops and `TRUSTED` name.

    Raises
    ------
    StoreError
        If the bytes name another class, or are damaged.
    """
    skops, written = _skops(), state.tobytes()
    try:
        with zipfile.ZipFile(io.BytesIO(written)) as file:
            if any(member.compress_type != zipfile.ZIP_STORED for member in file.infolist()):
                raise ValueError("it is compressed, which we never do")
        # What it names beside these, skops refuses.
        trusted = [name for name in skops.get_untrusted_types(data=written) if name in TRUSTED]
        found = skops.loads(written, trusted=trusted)
        if type(found) not in KEPT:
            raise TypeError(f"it is a {type(found).__name__}")
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"what the file holds is none of {_names()} of scikit-learn ({error}); fit it again") from error
    return found


def _names() -> str:
    return ", ".join(kind.__name__ for kind in KEPT)


def _skops() -> Any:
    """Return ``skops.io``, which imports all of scikit-learn: a second that only those pay who keep such an estimator."""
    return importlib.import_module("skops.io")
