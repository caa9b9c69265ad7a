"""A network of rectified layers that learns by Adam."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalable.kernels.metrics import bin_of, mean_of_bins
from scalable.kernels.network import forward, gradients, softmax
from scalable.train.checkpoint import Arrays
from scalable.train.epochs import Epochs

Float = NDArray[np.float64]


class MLPRegressor(Epochs):
    """A network of rectified layers that learns by Adam from mixed batches (Kingma and Ba 2015).

    Parameters
    ----------
    hidden : sequence of int
        Width of each hidden layer.
    bins : sequence of float, optional
        Edges of target bins: then the network gives a probability for each, and `predict` their mean.
    epochs : int
        Most passes over the rows.
    learning_rate, alpha, batch_rows : float, float, int
        Step of Adam, falling with a cosine to a hundredth; penalty on squared weights; rows of a batch.
    validation : float
        Share of rows, by identity, that is kept for the validation curve; 0 for none.
    patience : int
        Epochs without a better validation loss after which learning stops, with the best weights.
    buffer_rows : int
        Rows of the mixing buffer, in memory.
    seed : int
    checkpoint, scratch : path, optional
        Where the state is kept after each epoch, and where rows are spilled that are not in memory.

    Attributes
    ----------
    weights_, biases_ : list of ndarray
    momenta_, squares_ : list of ndarray
        Adam's running means of the slopes and of their squares, of all weights and then all biases; ``t_`` steps made them.
    loss_curve_, validation_curve_ : list of float
        Loss in each epoch; half the mean squared error in units of the target's variance, or the cross-entropy of bins.
    n_iter_ : int
        Epochs.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 64),
        *,
        bins: Sequence[float] | None = None,
        epochs: int = 100,
        learning_rate: float = 3e-3,
        alpha: float = 1e-4,
        batch_rows: int = 128,
        validation: float = 0.1,
        patience: int = 20,
        buffer_rows: int = 1 << 18,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        self.hidden = hidden
        self.bins = bins
        self.epochs = epochs
        self.learning_rate = learning_rate
        self.alpha = alpha
        self.batch_rows = batch_rows
        self.validation = validation
        self.patience = patience
        self.buffer_rows = buffer_rows
        self.seed = seed
        self.checkpoint = checkpoint
        self.scratch = scratch

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows); the same bits for a row wherever it stands."""
        if self.bins is None:
            return self._outputs(columns)[0] * self.scale_[-1] + self.centre_[-1]
        edges = np.asarray(self.bins, dtype=np.float64)
        return mean_of_bins(self.predict_pdf_columns(columns), edges)

    def predict_pdf_columns(self, columns: Float) -> Float:
        """Return the probability of each target bin, shape (rows, bins)."""
        return np.ascontiguousarray(softmax(self._outputs(columns)).T)

    def check(self, features: int) -> None:
        """Raise ValueError if the layers cannot be those of so many features."""
        sizes = [features, *(weight.shape[-1] for weight in self.weights_)]
        layers = zip(self.weights_, self.biases_, sizes[:-1], sizes[1:], strict=True)
        fits = all(weight.shape == (a, b) and bias.shape == (b,) for weight, bias, a, b in layers)
        if not fits or sizes[-1] != (1 if self.bins is None else len(self.bins) - 1) or len(self.centre_) != features + 1:
            raise ValueError("its layers do not fit each other")

    def _outputs(self, columns: Float) -> Float:
        return forward(self._scaled(columns), self.weights_, self.biases_)

    def _start(self) -> None:
        rng = np.random.default_rng([self.seed, 1 << 31])
        outputs = 1 if self.bins is None else len(self.bins) - 1
        sizes = [len(self.centre_) - 1, *self.hidden, outputs]
        limits = [np.sqrt(6.0 / (a + b)) for a, b in zip(sizes, sizes[1:], strict=False)]
        self.weights_ = [rng.uniform(-limit, limit, (a, b)) for limit, a, b in zip(limits, sizes, sizes[1:], strict=False)]
        self.biases_ = [np.zeros(b) for b in sizes[1:]]
        self.momenta_ = [np.zeros_like(p) for p in (*self.weights_, *self.biases_)]
        self.squares_ = [np.zeros_like(p) for p in (*self.weights_, *self.biases_)]
        self.t_ = 0

    def _target(self, y: Float) -> Float:
        if self.bins is None:
            return (y - self.centre_[-1]) / self.scale_[-1]
        return bin_of(y, np.asarray(self.bins, dtype=np.float64)).astype(np.float64)

    def _step(self, X: Float, y: Float, weight: Float | None, done: float) -> float:
        how: dict[str, Any] = {"alpha": self.alpha, "classes": self.bins is not None, "row_weights": weight}
        loss, by_weight, by_bias = gradients(X, self._target(y), self.weights_, self.biases_, **how)
        self.t_ += 1
        rate = self.learning_rate * (0.01 + 0.99 * 0.5 * (1 + np.cos(np.pi * done)))
        rate *= np.sqrt(1 - 0.999**self.t_) / (1 - 0.9**self.t_)
        every = zip((*self.weights_, *self.biases_), (*by_weight, *by_bias), self.momenta_, self.squares_, strict=True)
        for parameter, gradient, first, second in every:
            first += 0.1 * (gradient - first)
            second += 0.001 * (gradient * gradient - second)
            parameter -= rate * first / (np.sqrt(second) + 1e-8)
        return loss

    def _losses(self, columns: Float, y: Float) -> Float:
        target, outputs = self._target(y), self._outputs(columns)
        if self.bins is None:
            return 0.5 * (outputs[0] - target) ** 2
        picked = softmax(outputs)[target.astype(np.int64), np.arange(len(y))]
        return -np.log(np.maximum(picked, 1e-300))

    def _state(self, *, file: bool) -> Arrays:
        del file
        lists = {name: getattr(self, name) for name in _LISTS}
        return {f"{name}{n}": array.copy() for name, arrays in lists.items() for n, array in enumerate(arrays)} | {
            "t_": np.array([self.t_])
        }

    def _restore(self, state: Arrays) -> None:
        for name in _LISTS:
            setattr(self, name, [state[f"{name}{n}"] for n in range(len(getattr(self, name)))])
        self.t_ = int(state["t_"][0])


_LISTS = ("weights_", "biases_", "momenta_", "squares_")
