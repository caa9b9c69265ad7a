"""What every estimator shares: scikit-learn's contract for arrays, and the same `fit` for batches of any number of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from scalable.errors import InputError
from scalable.train.batches import Batches, arrays

Float = NDArray[np.float64]


class Streamed(BaseEstimator):
    """An estimator that learns in passes over `Batches`; arrays are wrapped into one."""

    def _batches(self, X: Any, y: Any = None, sample_weight: Any = None, *, supervised: bool, reset: bool = True) -> Batches:
        """Return what to learn from, and set what scikit-learn expects of a fitted estimator."""
        if isinstance(X, Batches):
            if y is not None or sample_weight is not None:
                raise InputError("batches carry their target and weights: give batches_of(..., target=, weight=) and no y")
            if supervised and not X.target:
                raise InputError("the batches have no target: give batches_of(..., target=NAME)")
            self.n_features_in_ = len(X.names)
            # Names would make scikit-learn ask for data frames at prediction; what the model was taught is kept with its file.
            self.__dict__.pop("feature_names_in_", None)
            return X
        if supervised:
            X, y = validate_data(self, X, y, dtype=np.float64, y_numeric=True, reset=reset)
            y = np.asarray(y, dtype=np.float64)
        else:
            X, y = validate_data(self, X, dtype=np.float64, reset=reset), None
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=np.float64)
        if weight is not None and (weight == 0).any():
            some = weight > 0
            X, y, weight = X[some], None if y is None else y[some], weight[some]
        return arrays(X, y, weight)

    def check(self, features: int) -> None:
        """Raise ValueError if what was learnt cannot be that of so many features, where compiled code would not notice."""

    def _columns(self, X: Any) -> Float:
        """Return the features to predict for, shape (features, rows), checked against those that were learnt from."""
        check_is_fitted(self)
        return np.ascontiguousarray(validate_data(self, X, dtype=np.float64, reset=False).T)
