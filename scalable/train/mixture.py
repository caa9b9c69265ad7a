"""Gaussian mixtures by exact expectation maximisation: one pass an iteration, whatever the number of mixtures fitted together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import DensityMixin
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from scalable.errors import InputError, nearest
from scalable.kernels.mixture import (
    Expectation,
    Parameters,
    expect,
    free_parameters,
    log_density,
    maximise,
    merge,
    responsibilities,
)
from scalable.train.base import Streamed
from scalable.train.batches import Batches, Block
from scalable.train.checkpoint import Checkpoint
from scalable.train.sample import Sample, draw

Float = NDArray[np.float64]

KINDS = ("full", "diag", "tied")
SAMPLE_ROWS = 1 << 15
"""Rows of the sample that starts are sought in."""


@dataclass(frozen=True)
class Fit:
    """One mixture while it is fitted: parameters, mean log likelihood of the last pass, passes, and whether it has converged."""

    parameters: Parameters
    log_likelihood: float = -np.inf
    passes: int = 0
    converged: bool = False


def expect_all(block: Block, mixtures: Sequence[Parameters], diagonal: bool) -> list[Expectation]:
    """Take the expectation step of several mixtures on one block, which is read once."""
    return [expect(block.columns, parameters, block.weight, diagonal=diagonal) for parameters in mixtures]


def merge_all(a: list[Expectation], b: list[Expectation]) -> list[Expectation]:
    """Merge the sums of several mixtures."""
    return [merge(x, y) for x, y in zip(a, b, strict=True)]


def fit_together(
    batches: Batches,
    starts: Sequence[Parameters],
    *,
    kind: str,
    tol: float,
    floor: float,
    max_iter: int,
    checkpoint: Checkpoint | None = None,
) -> list[Fit]:
    """Fit several mixtures to the same rows: a pass over the rows is one iteration of each that has not converged.

    Parameters
    ----------
    batches : Batches
    starts : sequence of Parameters
    kind : str
        One of `KINDS`.
    tol : float
        A mixture has converged when its mean log likelihood changes by less.
    floor : float
        Added to the diagonals of covariances, in squared units of the features.
    max_iter : int
        Most passes.
    checkpoint : Checkpoint, optional
        Where the state is kept after each pass; a killed fit goes on there and gives the same bits.
    """
    fits = [Fit(start) for start in starts]
    if checkpoint is not None and (saved := checkpoint.load()) is not None:
        arrays, state = saved
        fits = [
            Fit(Parameters(*(arrays[f"{n}_{part}"] for part in Parameters._fields)), *said)
            for n, said in enumerate(state["fits"])
        ]
    while todo := [n for n, fit in enumerate(fits) if not fit.converged and fit.passes < max_iter]:
        sums = batches.over(expect_all, merge_all, [fits[n].parameters for n in todo], kind == "diag")
        for n, found in zip(todo, sums, strict=True):
            mean = found.log_likelihood / found.weight
            done = abs(mean - fits[n].log_likelihood) < tol
            parameters = maximise(found, fits[n].parameters.means, kind=kind, floor=floor)
            fits[n] = Fit(parameters, mean, fits[n].passes + 1, bool(done))
        if checkpoint is not None:
            arrays = {
                f"{n}_{name}": part
                for n, fit in enumerate(fits)
                for name, part in zip(Parameters._fields, fit.parameters, strict=True)
            }
            checkpoint.save(arrays, {"fits": [[fit.log_likelihood, fit.passes, fit.converged] for fit in fits]})
    return fits


def start_from(sample: Sample, components: int, *, kind: str, floor: float, seed: int) -> Parameters:
    """Return a start from a sample: k-means with a k-means++ start, then one maximisation with its clusters.

    Raises
    ------
    InputError
        If the sample has fewer rows than there are components.
    """
    rows = sample.columns.shape[1]
    if rows < components:
        raise InputError(f"{rows} rows are too few for {components} components; ask for at most {rows}")
    # Threads of the library would add in another order on another machine.
    with threadpool_limits(1):
        labels = KMeans(components, n_init=1, random_state=seed).fit(sample.columns.T).labels_
    share = (labels[None, :] == np.arange(components)[:, None]).astype(np.float64)
    count = share.sum(axis=1)
    centre = np.zeros((components, len(sample.columns)))
    first = np.einsum("kn,dn->kd", share, sample.columns)
    second = np.einsum("kn,dn,en->kde", share, sample.columns, sample.columns, optimize=True)
    return maximise(Expectation(float(rows), 0.0, count, first, second), centre, kind=kind, floor=floor)


class GaussianMixture(DensityMixin, Streamed):
    """A mixture of Gaussians, as scikit-learn's.

    Parameters
    ----------
    n_components : int
    covariance_type : str
        ``full``, ``diag`` or ``tied``.
    tol, reg_covar, max_iter : float, float, int
        As in scikit-learn: convergence of the mean log likelihood, floor of variances, most iterations.
    n_init : int
        Starts that are fitted together in the same passes; the likeliest is kept.
    means_init, weights_init, covariances_init : ndarray, optional
        A start, all three together; by default one is sought by k-means in a seeded sample.
    seed : int
    checkpoint : path, optional
        Where the state is kept after each pass.

    Attributes
    ----------
    weights_, means_, covariances_ : ndarray, shapes (k,), (k, d), (k, d, d)
        Covariances in full whatever their kind, in squared units of the features.
    lower_bound_, n_iter_, converged_ : float, int, bool
        As in scikit-learn.
    """

    def __init__(
        self,
        n_components: int = 1,
        *,
        covariance_type: str = "full",
        tol: float = 1e-3,
        reg_covar: float = 1e-6,
        max_iter: int = 100,
        n_init: int = 1,
        means_init: Float | None = None,
        weights_init: Float | None = None,
        covariances_init: Float | None = None,
        seed: int = 0,
        checkpoint: str | Path | None = None,
    ) -> None:
        self.n_components = n_components
        self.covariance_type = covariance_type
        self.tol = tol
        self.reg_covar = reg_covar
        self.max_iter = max_iter
        self.n_init = n_init
        self.means_init = means_init
        self.weights_init = weights_init
        self.covariances_init = covariances_init
        self.seed = seed
        self.checkpoint = checkpoint

    def fit(self, X: Any, y: Any = None) -> GaussianMixture:
        """Fit to arrays, or to `Batches`."""
        del y
        return self.fit_counts(self._batches(X, supervised=False), [self.n_components])[0]

    def fit_counts(self, batches: Batches, counts: Sequence[int]) -> list[GaussianMixture]:
        """Fit mixtures of several numbers of components in the same passes; the last one fitted is not this estimator."""
        if self.covariance_type not in KINDS:
            raise InputError(f"covariance_type={self.covariance_type!r}: {nearest(self.covariance_type, KINDS)}")
        starts = self._starts(batches, counts)
        keep = Checkpoint.of(self.checkpoint, batches, **self._recipe(), counts=list(counts))
        every = fit_together(
            batches,
            [start for group in starts for start in group],
            kind=self.covariance_type,
            tol=self.tol,
            floor=self.reg_covar,
            max_iter=self.max_iter,
            checkpoint=keep,
        )
        found, place = [], 0
        for number, group in zip(counts, starts, strict=True):
            fits, place = every[place : place + len(group)], place + len(group)
            estimator = self if list(counts) == [self.n_components] else self._with(number, batches)
            found.append(estimator._take(max(fits, key=lambda fit: fit.log_likelihood)))
        return found

    def _recipe(self) -> dict[str, Any]:
        return {name: value for name, value in self.get_params().items() if name != "checkpoint"}

    def _with(self, number: int, batches: Batches) -> GaussianMixture:
        other = GaussianMixture(**{**self.get_params(), "n_components": number})
        other._batches(batches, supervised=False)
        return other

    def _starts(self, batches: Batches, counts: Sequence[int]) -> list[list[Parameters]]:
        if self.means_init is not None:
            given = (self.weights_init, self.means_init, self.covariances_init)
            return [[Parameters(*(np.array(part, dtype=np.float64) for part in given))]]
        sample = draw(batches, SAMPLE_ROWS, seed=self.seed)
        how: dict[str, Any] = {"kind": self.covariance_type, "floor": self.reg_covar}
        return [
            [start_from(sample, number, **how, seed=self.seed + 1000 * number + n) for n in range(self.n_init)]
            for number in counts
        ]

    def _take(self, fit: Fit) -> GaussianMixture:
        self.weights_, self.means_, self.covariances_ = fit.parameters
        self.lower_bound_, self.n_iter_, self.converged_ = fit.log_likelihood, fit.passes, fit.converged
        return self

    def check(self, features: int) -> None:
        """Raise ValueError if the components cannot be those of so many features."""
        k = len(self.weights_)
        if k < 1 or self.means_.shape != (k, features) or self.covariances_.shape != (k, features, features):
            raise ValueError("its components do not fit each other")

    @property
    def parameters(self) -> Parameters:
        """The fitted parameters together."""
        return Parameters(self.weights_, self.means_, self.covariances_)

    def score_samples(self, X: Any) -> Float:
        """Return the log density of each row."""
        return log_density(self._columns(X), self.parameters)

    def score(self, X: Any, y: Any = None) -> float:
        """Return the mean log density of rows, of arrays or of `Batches`."""
        del y
        if isinstance(X, Batches):
            return log_likelihoods(X, [self.parameters])[0]
        return float(self.score_samples(X).mean())

    def predict_proba(self, X: Any) -> Float:
        """Return the probability of each component for each row."""
        return responsibilities(self._columns(X), self.parameters)

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Return the likeliest component of each row."""
        return self.predict_proba(X).argmax(axis=1)

    @property
    def n_parameters(self) -> int:
        """Number of free parameters."""
        return free_parameters(self.means_.shape[0], self.means_.shape[1], self.covariance_type)

    def bic(self, X: Any) -> float:
        """Return the Bayesian information criterion on rows: the less the better."""
        rows = X.count() if isinstance(X, Batches) else len(X)
        return self.criterion(self.score(X), rows, float(np.log(rows)))

    def aic(self, X: Any) -> float:
        """Return Akaike's information criterion on rows: the less the better."""
        rows = X.count() if isinstance(X, Batches) else len(X)
        return self.criterion(self.score(X), rows, 2.0)

    def criterion(self, score: float, rows: int, penalty: float) -> float:
        """Return minus twice the log likelihood of rows and a penalty on each free parameter."""
        return -2 * rows * score + penalty * self.n_parameters


def log_likelihoods(batches: Batches, mixtures: Sequence[Parameters]) -> list[float]:
    """Return the mean log density of rows in each of several mixtures, in one pass."""
    *totals, weight = batches.over(_log_likelihoods, np.add, mixtures)
    return [float(total / weight) for total in totals]


def _log_likelihoods(block: Block, mixtures: Sequence[Parameters]) -> Float:
    weight = np.ones(len(block)) if block.weight is None else block.weight
    return np.array([*((weight * log_density(block.columns, mixture)).sum() for mixture in mixtures), weight.sum()])
