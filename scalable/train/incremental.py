"""Any estimator of others that learns in steps, fed with mixed batches; kept without a pickle."""

from __future__ import annotations

import io
import json
import zipfile
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import skops.io
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import SGDRegressor

from scalable.errors import InputError, StoreError
from scalable.kernels.linear import heights
from scalable.train.checkpoint import Arrays
from scalable.train.epochs import Epochs

Float = NDArray[np.float64]

TRUSTED = tuple(f"sklearn.neural_network._stochastic_optimizers.{name}Optimizer" for name in ("Adam", "SGD"))
"""What a file may name beside what skops trusts: plain Python. Trees are not there: their indices could lead out of memory."""


class Incremental(Epochs):
    """Any regressor with ``partial_fit``, fed with mixed batches of scaled features for some epochs.

    Parameters
    ----------
    estimator : object, optional
        Scikit-learn's contract; a clone learns, seeded if it has a ``random_state`` that is None. By default ``SGDRegressor()``.
    epochs, batch_rows, validation, patience, buffer_rows, seed, checkpoint, scratch
        As in `MLPRegressor`. Classes outside scikit-learn are not kept in files: give them no checkpoint, and ``validation`` 0.

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
        return self._half_square(X, y)

    def _loss(self, columns: Float, y: Float) -> float:
        return self._half_square(self._scaled(columns).T, y)

    def _half_square(self, X: Float, y: Float) -> float:
        return float(0.5 * (((self.estimator_.predict(X) - y) / self.scale_[-1]) ** 2).mean())

    def _state(self) -> Arrays:
        return {"estimator": packed(self.estimator_)}

    def _restore(self, state: Arrays) -> None:
        self.estimator_ = unpacked(state["estimator"])


def packed(estimator: Any) -> NDArray[np.uint8]:
    """Return an estimator of scikit-learn as skops writes it, as bytes; equal ones give equal bytes.

    Raises
    ------
    InputError
        If there is a class in it that `unpacked` would refuse.
    """
    try:
        written = skops.io.dumps(estimator)
        _check(written)
    except (TypeError, AttributeError, StoreError) as error:
        raise InputError(
            f"{type(estimator).__name__} cannot be kept in a file ({error}): take SGDRegressor or MLPRegressor, or fit without "
            "checkpoint and with validation=0"
        ) from error
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
    written = state.tobytes()
    try:
        return skops.io.loads(written, trusted=_check(written))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError, AttributeError) as error:
        raise StoreError(f"what the file holds is no estimator of scikit-learn ({error}); fit it again") from error


def _check(written: bytes) -> list[str]:
    """Return the classes in it that skops does not know but `TRUSTED` does; raise if there are others."""
    names = skops.io.get_untrusted_types(data=written)
    for name in names:
        if name not in TRUSTED:
            raise StoreError(f"{name} is not trusted")
    return list(names)
