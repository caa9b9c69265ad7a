"""Training at volume: rows a second of each learner on synthetic rows in Parquet, memory, and what others take for the same.

python -m benchmarks.scale.training FOLDER [--rows 2000000 20000000] [--limit-gib 2] [--only LEARNER ...] [--rounds 3]

It writes the rows once (6 features and a target, 56 bytes a row), then runs each learner on each number of rows, in a process of
its own with two threads; those that are compared run in turn. It prints medians and one JSON object. Answers are compared before
times are printed: linear coefficients with a fit in memory, mixtures with scikit-learn from the same start.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LinearRegression as InMemory
from sklearn.linear_model import SGDRegressor
from sklearn.mixture import GaussianMixture as PeerMixture

from benchmarks.measure import peak_bytes
from scalable.kernels.features import Features
from scalable.kernels.mixture import Parameters
from scalable.train.batches import Batches, arrays
from scalable.train.components import PCA, Standardizer
from scalable.train.incremental import Incremental
from scalable.train.linear import ElasticNet, Lasso, LinearRegression, Ridge
from scalable.train.mixture import expect_all, fit_together, merge_all
from scalable.train.neighbours import KernelRegression, KNeighbors
from scalable.train.network import MLPRegressor
from scalable.train.nonlinear import NonlinearRegression
from scalable.train.spill import spilled
from scalable.train.tables import batches_of
from scalable.train.trees import AdaBoost, GradientBoosting, RandomForest

console = Console(stderr=True, width=140)

NAMES = tuple(f"f{n}" for n in range(6))
FILE_ROWS = 1_000_000
CENTRES = np.random.default_rng(1).normal(size=(5, 6)) * 2
PASSES = 5
ROUNDS = 3
PEER_ROWS = 500_000
"""Rows that scikit-learn fits mixtures to in memory; its time is linear in them."""


def make(folder: Path, rows: int) -> list[Path]:
    """Write the rows, a million to a file, where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(-(-rows // FILE_ROWS)):
        path = folder / f"rows-{number:04d}.parquet"
        paths.append(path)
        if path.exists():
            continue
        rng = np.random.default_rng([7, number])
        count = min(FILE_ROWS, rows - number * FILE_ROWS)
        X = CENTRES[rng.integers(0, 5, count)] + rng.normal(size=(count, 6))
        y = X @ np.arange(1.0, 7.0) + 0.1 * np.sin(X[:, 0]) + 0.1 * rng.normal(size=count)
        table = pa.table({**dict(zip(NAMES, X.T, strict=True)), "y": y})
        pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=1 << 16)
    return paths


def rows_of(paths: list[Path]) -> Batches:
    """Return the files as batches."""
    return batches_of(paths, Features((), others=NAMES), target="y")


def start() -> Parameters:
    """Return the start of every mixture."""
    return Parameters(np.full(5, 0.2), CENTRES + 0.5, np.array([np.eye(6)] * 5))


def _touch(block: Any) -> float:
    return float(block.columns[0, 0])


def reading(paths: list[Path]) -> dict[str, Any]:
    """Merely read the columns and make features of them."""
    rows_of(paths).over(_touch, float.__add__)
    return {}


def linear(paths: list[Path]) -> dict[str, Any]:
    """Fit least squares: one pass of moments."""
    return {"answer": LinearRegression().fit(rows_of(paths)).coef_.tolist()}


def ridge(paths: list[Path]) -> dict[str, Any]:
    """Choose a penalty by five folds and fit: one pass of moments, too."""
    return {"alpha": Ridge(None).fit(rows_of(paths)).alpha_}


def lasso(paths: list[Path]) -> dict[str, Any]:
    """Choose a penalty on sizes by five folds and fit: one pass of moments, too."""
    return {"alpha": Lasso(None).fit(rows_of(paths)).alpha_}


def elastic_net(paths: list[Path]) -> dict[str, Any]:
    """Choose a penalty on sizes and squares by five folds and fit: one pass of moments, too."""
    return {"alpha": ElasticNet(None).fit(rows_of(paths)).alpha_}


def standardizer(paths: list[Path]) -> dict[str, Any]:
    """Find means and deviations: one pass of moments."""
    return {"answer": Standardizer().fit(rows_of(paths)).scale_.tolist()}


def components(paths: list[Path]) -> dict[str, Any]:
    """Find principal components: one pass of moments."""
    return {"answer": PCA().fit(rows_of(paths)).explained_variance_.tolist()}


def sgd(paths: list[Path]) -> dict[str, Any]:
    """Run the peer's loop: ``SGDRegressor.partial_fit`` over the same files, one pass."""
    peer = SGDRegressor(learning_rate="invscaling", eta0=0.01)
    for path in paths:
        for batch in pq.ParquetFile(path).iter_batches(1 << 16):
            X = np.column_stack([batch.column(n).to_numpy() for n in range(6)])
            peer.partial_fit(X, batch.column(6).to_numpy())
    return {"answer": peer.coef_.tolist()}


def sgd_on_blocks(paths: list[Path]) -> dict[str, Any]:
    """Run the peer's loop over blocks that our reader gives, one pass."""
    return {"answer": _peer_over(rows_of(paths))}


def _peer_over(rows: Batches) -> list[float]:
    peer = SGDRegressor(learning_rate="invscaling", eta0=0.01)
    for block in rows.blocks():
        peer.partial_fit(np.ascontiguousarray(block.columns.T), block.target)
    return list(peer.coef_)


def linear_on_arrays(paths: list[Path]) -> dict[str, Any]:
    """Fit the linear family and run the peer's loop in turn on the same mapped arrays: learning without decoding Parquet."""
    work: dict[str, Callable[[Batches], Any]] = {
        "linear": LinearRegression().fit, "ridge": Ridge(None).fit, "lasso": Lasso(None).fit, "sgd": _peer_over
    }  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in work}
    with spilled(rows_of(paths), paths[0].parent) as rows:
        rows.count()
        for _ in range(ROUNDS):
            for name, learn in work.items():
                begin = time.perf_counter()
                learn(rows)
                seconds[name].append(time.perf_counter() - begin)
    times = {f"sgd_over_{name}": median(a / b for a, b in zip(seconds["sgd"], own, strict=True)) for name, own in seconds.items()}
    return {**{f"{name}_seconds": median(own) for name, own in seconds.items()}, **times}


def one_pass_of_em(paths: list[Path]) -> dict[str, Any]:
    """Take one expectation step of five components."""
    rows_of(paths).over(expect_all, merge_all, [start()], False)
    return {}


def mixture(paths: list[Path]) -> dict[str, Any]:
    """Fit a mixture of five components in a few passes."""
    fit = fit_together(rows_of(paths), [start()], kind="full", tol=0.0, floor=1e-6, max_iter=PASSES)[0]
    return {"answer": fit.parameters.means.tolist(), "passes": PASSES}


def boosting(paths: list[Path]) -> dict[str, Any]:
    """Grow ten trees of depth 5."""
    GradientBoosting(10, max_depth=5, scratch=paths[0].parent).fit(rows_of(paths))
    return {"trees": 10}


def forest(paths: list[Path]) -> dict[str, Any]:
    """Grow four trees of depth 8."""
    RandomForest(4, max_depth=8, scratch=paths[0].parent).fit(rows_of(paths))
    return {"trees": 4}


def adaboost(paths: list[Path]) -> dict[str, Any]:
    """Grow three trees of depth 5, with rows weighted anew between them."""
    return {"trees": len(AdaBoost(3, max_depth=5, scratch=paths[0].parent).fit(rows_of(paths)).trees_)}


def incremental(paths: list[Path]) -> dict[str, Any]:
    """Feed scikit-learn's SGDRegressor with mixed batches of 4,096 rows for one epoch."""
    peer = SGDRegressor(learning_rate="invscaling", eta0=0.01)
    Incremental(peer, epochs=1, batch_rows=4096, scratch=paths[0].parent).fit(rows_of(paths))
    return {"epochs": 1}


def curve(paths: list[Path]) -> dict[str, Any]:
    """Take three damped Gauss-Newton steps of a curve."""
    return {"passes": NonlinearRegression("quadratic", max_iter=3).fit(rows_of(paths)).n_iter_ + 2}


def kernel(paths: list[Path]) -> dict[str, Any]:
    """Sum rows on a grid of cells a deviation wide."""
    return {"cells": len(KernelRegression(1.0, cells=1.0).fit(rows_of(paths)).cell_weight_)}


def network(paths: list[Path]) -> dict[str, Any]:
    """Learn for one epoch with batches of 4,096 rows."""
    MLPRegressor((32, 32), epochs=1, batch_rows=4096, validation=0.02, scratch=paths[0].parent).fit(rows_of(paths))
    return {"epochs": 1}


def neighbours(paths: list[Path]) -> dict[str, Any]:
    """Draw a reference set."""
    KNeighbors().fit(rows_of(paths))
    return {}


LEARNERS: dict[str, Callable[[list[Path]], dict[str, Any]]] = {
    work.__name__: work
    for work in (
        reading, linear, ridge, lasso, elastic_net, standardizer, components, sgd, sgd_on_blocks, one_pass_of_em, mixture,
        boosting, forest, adaboost, network, incremental, curve, neighbours, kernel, linear_on_arrays,
    )
}  # fmt: skip
IN_TURN = ("reading", "linear", "ridge", "lasso", "components", "sgd", "sgd_on_blocks", "one_pass_of_em")
"""Learners that are compared: they run in turn, so that what else the machine does falls on all."""


def measured(name: str, paths: list[Path], limit_gib: float) -> dict[str, Any]:
    """Run one learner on one file, so that it is compiled, then on all, and say how long it took and what memory it held."""
    with dask.config.set(scheduler="threads", num_workers=2):
        LEARNERS[name](paths[:1])
        before = peak_bytes() / 2**30
        # Mapped scratch files count as address space, and so the limit is one on data.
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit_gib * 2**30),) * 2)
        begin = time.perf_counter()
        found = LEARNERS[name](paths)
        seconds = time.perf_counter() - begin
    gib = peak_bytes() / 2**30
    return {"seconds": seconds, "gib": gib, "gib_of_one_file": before, **found}


def peer_mixture(paths: list[Path]) -> dict[str, Any]:
    """Fit scikit-learn's mixture to rows in memory from the same start, and ours to the same rows, in turn."""
    X = np.column_stack([pq.read_table(paths[0], columns=[name])[name].to_numpy() for name in NAMES])[:PEER_ROWS]
    given = start()
    precisions = np.linalg.inv(given.covariances)
    peer = PeerMixture(
        5, tol=0.0, max_iter=PASSES, weights_init=given.weights, means_init=given.means, precisions_init=precisions
    )
    batches = arrays(X)
    theirs, ours = [], []
    with dask.config.set(scheduler="threads", num_workers=2):
        fit_together(batches, [given], kind="full", tol=0.0, floor=1e-6, max_iter=1)
        for _ in range(ROUNDS):
            begin = time.perf_counter()
            peer.fit(X)
            theirs.append(time.perf_counter() - begin)
            begin = time.perf_counter()
            fit = fit_together(batches, [given], kind="full", tol=0.0, floor=1e-6, max_iter=PASSES)[0]
            ours.append(time.perf_counter() - begin)
            difference = float(np.abs(fit.parameters.means - peer.means_).max())
            assert difference < 1e-9, difference
    figures = {"rows": len(X), "scikit-learn": median(theirs), "scalable": median(ours), "difference_of_means": difference}
    return {**figures, "times": median(a / b for a, b in zip(theirs, ours, strict=True))}


def run(paths: list[Path], rows: int, names: Sequence[str], limit_gib: float, rounds: int) -> dict[str, Any]:
    """Measure learners, those that are compared in turn, so often."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names:
            if number == 0 or name in IN_TURN:
                found[name].append(_apart(measured, name, paths, limit_gib))
                console.print(f"{name}: {found[name][-1]['seconds']:.1f} s, {found[name][-1]['gib']:.2f} GiB")
    figures: dict[str, Any] = {}
    for name, runs in found.items():
        seconds = [one["seconds"] for one in runs]
        figures[name] = {**runs[0], "seconds": median(seconds), "least": min(seconds), "most": max(seconds)}
        figures[name]["gib"] = max(one["gib"] for one in runs)
        figures[name]["rows_per_second"] = rows / figures[name]["seconds"]
    ratios = {"linear_over_reading": ("linear", "reading"), "em_pass_over_reading": ("one_pass_of_em", "reading")}
    for peer in ("sgd", "sgd_on_blocks"):
        ratios |= {f"{peer}_over_{name}": (peer, name) for name in ("linear", "ridge", "lasso")}
    for ratio, (above, below) in ratios.items():
        if above in found and below in found:
            pairs = zip(found[above], found[below], strict=True)
            figures[ratio] = median(one["seconds"] / other["seconds"] for one, other in pairs)
    return figures


def show(figures: dict[int, dict[str, Any]]) -> None:
    """Print one line a learner, for each number of rows."""
    table = Table("learner", *(f"{rows:,} rows: s\n(least to most)" for rows in figures), "M rows/s", "peak GiB, each")
    first, last = next(iter(figures.values())), list(figures.values())[-1]
    for name in (name for name in LEARNERS if name in first):
        times = (f"{one[name]['seconds']:.2f}\n({one[name]['least']:.2f} to {one[name]['most']:.2f})" for one in figures.values())
        peaks = ", ".join(f"{one[name]['gib']:.2f}" for one in figures.values())
        table.add_row(name, *times, f"{last[name]['rows_per_second'] / 1e6:.2f}", peaks)
    console.print(table)


def main() -> None:
    """Make the rows, run everything, print the figures, and those as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, nargs="+", default=[2_000_000, 20_000_000])
    parser.add_argument("--limit-gib", type=float, default=2.0, help="most memory for data of each process")
    parser.add_argument("--only", nargs="+", choices=LEARNERS, help="some learners")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="how often those run that are compared")
    args = parser.parse_args()
    found: dict[int, dict[str, Any]] = {}
    paths = make(args.folder, max(args.rows))
    table = pq.read_table(paths[:2])
    exact = InMemory().fit(np.column_stack([table[name] for name in NAMES]), table["y"])
    assert np.allclose(LinearRegression().fit(rows_of(paths[:2])).coef_, exact.coef_, rtol=1e-9)
    for rows in args.rows:
        found[rows] = run(paths[: -(-rows // FILE_ROWS)], rows, args.only or list(LEARNERS), args.limit_gib, args.rounds)
    show(found)
    figures: dict[str, Any] = {str(rows): one for rows, one in found.items()}
    if not args.only:
        figures["mixture_in_memory"] = _apart(peer_mixture, paths)
    print(json.dumps(figures, indent=1))


def _apart(work: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run in a process of its own, so that nobody finds another's memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


if __name__ == "__main__":
    main()
