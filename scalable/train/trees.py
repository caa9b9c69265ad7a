"""Trees out of core: gradient boosting, a random forest and AdaBoost.R2, grown level by level from histograms that add up.

Growing is exact on the binned features: histograms of parts are summed in their order, so that chunking, workers and a rerun
change nothing beyond the rounding of sums. Bin edges come from a seeded sample, or all rows if there are no more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import RegressorMixin

from scalable.kernels.counter import poisson, random_bits
from scalable.kernels.metrics import bin_of
from scalable.kernels.trees import MAX_BINS, Codes, Forest, Tree, best_splits, bin_codes, bin_edges, histograms, leaves, stump
from scalable.train.base import Streamed
from scalable.train.batches import ArrayPart, Batches, Block
from scalable.train.checkpoint import Checkpoint
from scalable.train.sample import draw
from scalable.train.spill import spilled, with_arrays

Float = NDArray[np.float64]

SAMPLE_ROWS = 200_000
"""Rows that bin edges are found from."""
MOST_HISTOGRAM_BYTES = 1 << 26
"""Histograms that a task holds at once; more nodes take more passes."""
TOGETHER = 16
"""Trees of a forest that grow in the same passes, and are kept together."""

Values = Callable[..., tuple[Float, Float]]
"""From a block and the number of a tree to what it learns from each row, and the row's weight."""


@dataclass(frozen=True)
class Growing:
    """One tree while it grows: nodes so far, and those that may still be split."""

    number: int
    tree: Tree
    open: tuple[int, ...] = (0,)


class Splits(NamedTuple):
    """How some nodes of a tree are best split: a feature, or -1, the last bin that goes left, the means of both children.

    ``mean`` is that of all rows in the first of the nodes.
    """

    feature: NDArray[np.int64]
    code: NDArray[np.int64]
    children: Float
    mean: float


def _codes(block: Block) -> Codes:
    """Return the bins that stand in the place of features."""
    return np.asarray(block.columns, np.uint8)


def _add(a: Any, b: Any) -> Any:
    return [x + y for x, y in zip(a, b, strict=True)]


def _sums(block: Block, growing: Sequence[Growing], values: Values) -> list[Float]:
    codes = _codes(block)
    found = []
    for one in growing:
        number, weight = values(block, one.number)
        slot_of = np.full(len(one.tree.feature), -1, np.int64)
        slot_of[list(one.open)] = np.arange(len(one.open))
        found.append(histograms(codes, slot_of[leaves(codes, one.tree)], number, weight, len(one.open)))
    return found


def grow(
    batches: Batches,
    edges: list[Float],
    numbers: Sequence[int],
    values: Values,
    *,
    max_depth: int,
    least_rows: int,
    features_tried: int | None = None,
    seed: int = 0,
) -> list[Tree]:
    """Grow trees level by level; a pass over the rows is a level of all of them, unless their histograms take too much memory.

    Parameters
    ----------
    batches : Batches
        With bins for features, from `binned`.
    edges : list of ndarray
        Bin edges of each feature.
    numbers : sequence of int
        Numbers of the trees, which `values` sees.
    values : callable
        ``values(block, number)`` returns what a tree learns from each row, and the row's weight; a weight of 0 leaves it out.
    max_depth, least_rows : int
        Most splits between root and leaf; fewest rows of a leaf.
    features_tried : int, optional
        Features that each node may choose from, by a draw from ``seed``; by default all.
    """
    growing = [Growing(number, stump(0.0)) for number in numbers]
    most = max(1, MOST_HISTOGRAM_BYTES // (len(edges) * (MAX_BINS + 1) * 3 * 8))
    for _ in range(max_depth):
        splits: dict[int, list[Splits]] = {one.number: [] for one in growing}
        for now in _passes(growing, most):
            for one, sums in zip(now, batches.over(_sums, _add, now, values), strict=True):
                splits[one.number].append(_choose(one, sums, least_rows, features_tried, seed))
        growing = [_split(one, splits[one.number], edges) for one in growing]
    return [one.tree for one in growing]


def _passes(growing: Sequence[Growing], most: int) -> Iterator[list[Growing]]:
    """Yield for each pass the trees, with those of their open nodes that it looks at: so many, and fewer in the last."""
    now: list[Growing] = []
    room = most
    for one in growing:
        left = one.open
        while left:
            now.append(replace(one, open=left[:room]))
            left, room = left[room:], room - len(now[-1].open)
            if room == 0:
                yield now
                now, room = [], most
    if now:
        yield now


def _choose(one: Growing, sums: Float, least_rows: int, tried: int | None, seed: int) -> Splits:
    features = sums.shape[1]
    allowed = np.ones((len(one.open), features), dtype=bool)
    if tried is not None and tried < features:
        keys = np.arange(features, dtype=np.uint64)
        for row, node in zip(allowed, one.open, strict=True):
            chosen = np.argsort(random_bits(keys + np.uint64(features * node), seed=seed, stream=one.number))[:tried]
            row[:] = False
            row[chosen] = True
    feature, code, _, children = best_splits(sums, allowed, least_rows=least_rows)
    weight, total, _ = sums[0, 0].sum(axis=0)
    return Splits(feature, code, children, total / weight if weight > 0 else 0.0)


def _split(one: Growing, splits: Sequence[Splits], edges: list[Float]) -> Growing:
    if not one.open:
        return one
    tree = one.tree
    if len(tree.feature) == 1:
        tree = tree._replace(value=np.array([splits[0].mean]))
    feature, code, children = (
        np.concatenate([getattr(some, name) for some in splits]) for name in ("feature", "code", "children")
    )
    parts = [list(part) for part in tree]
    opened = []
    for slot, node in enumerate(one.open):
        if feature[slot] < 0:
            continue
        first = len(parts[0])
        j, b = int(feature[slot]), int(code[slot])
        for part, new in zip(parts, (j, b, edges[j][b], first, first + 1, None), strict=True):
            if new is not None:
                part[node] = new
        for value in children[slot]:
            for part, new in zip(parts, (-1, 0, 0.0, -1, -1, value), strict=True):
                part.append(new)
        opened += [first, first + 1]
    arrays: Any = (np.array(part, dtype=kind.dtype) for part, kind in zip(parts, tree, strict=True))
    grown = Tree(*arrays)
    return replace(one, tree=grown, open=tuple(opened))


class _Trees(RegressorMixin, Streamed):
    """What the ensembles share: bin edges, and trees that are kept as arrays."""

    seed: int
    checkpoint: str | Path | None
    scratch: str | Path | None
    trees_: list[Tree]

    def _kept(self, rows: Batches) -> tuple[Checkpoint | None, list[Tree]]:
        """Return where trees are kept, if anywhere, and those that are there."""
        recipe = {name: value for name, value in self.get_params().items() if name not in ("checkpoint", "scratch")}
        keep = Checkpoint.of(self.checkpoint, rows, **recipe)
        saved = keep.load() if keep else None
        return keep, unpack(saved[0]) if saved else []

    def _edges(self, batches: Batches) -> list[Float]:
        return bin_edges(draw(batches, SAMPLE_ROWS, seed=self.seed).columns)

    def _finish(self, trees: list[Tree]) -> None:
        self.trees_ = trees
        self.forest_ = Forest.of(trees)

    def check(self, features: int) -> None:
        """Raise ValueError if the trees cannot be those of so many features."""
        self.forest_.check(features)

    def predict(self, X: Any) -> Float:
        """Return the predictions, in the unit of the target."""
        return self.predict_columns(self._columns(X))

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows); the same bits for a row wherever it stands."""
        raise NotImplementedError


def _weights(block: Block) -> Float:
    return np.ones(len(block)) if block.weight is None else np.asarray(block.weight)


def _weighted_target(block: Block) -> Any:
    weight = _weights(block)
    return np.array([weight.sum(), (weight * block.target).sum()])


def _target(block: Block, number: int) -> tuple[Float, Float]:
    del number
    return np.asarray(block.target), _weights(block)


def binned(batches: Batches, edges: list[Float], start: float = 0.0) -> Batches:
    """Return spilled batches with the bins of their features in place of these, and the target less ``start``."""
    return replace(batches, parts=tuple(batches.each(_bin_part, edges, start)))


def _bin_part(part: ArrayPart, edges: list[Float], start: float) -> ArrayPart:
    own = part.opened()
    return with_arrays(part, "binned", columns=bin_codes(own.columns, edges), target=own.target - start)


def _subtract(part: ArrayPart, tree: Tree, tag: str) -> ArrayPart:
    """Return a part whose target is less by what a tree predicts; written anew, so that a task may run twice."""
    own = part.opened()
    return with_arrays(part, tag, target=own.target - tree.value[leaves(own.columns, tree)])


class GradientBoosting(_Trees):
    """Gradient boosting of the squared error on binned features, as scikit-learn's ``HistGradientBoostingRegressor``.

    Parameters
    ----------
    trees : int
    learning_rate : float
    max_depth, least_rows : int
        Depth of a tree, grown level by level, and rows of a leaf.
    seed : int
    checkpoint, scratch : path, optional
        Where the trees are kept as they are grown, and where rows are spilled that are not in memory.

    Attributes
    ----------
    start_, forest_ : float, Forest
        The mean of the target, and the trees, whose values add up.
    """

    def __init__(
        self,
        trees: int = 200,
        *,
        learning_rate: float = 0.1,
        max_depth: int = 6,
        least_rows: int = 20,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        self.trees = trees
        self.learning_rate = learning_rate
        self.max_depth = max_depth
        self.least_rows = least_rows
        self.seed = seed
        self.checkpoint = checkpoint
        self.scratch = scratch

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> GradientBoosting:
        """Learn from arrays, or from `Batches`; with a checkpoint, go on where a killed fit stopped."""
        batches = self._batches(X, y, sample_weight, supervised=True)
        with spilled(batches, self.scratch) as rows:
            weight, total = rows.over(_weighted_target, np.add)
            self.start_ = float(total / weight)
            edges = self._edges(rows)
            keep, trees = self._kept(rows)
            left = binned(rows, edges, self.start_)
            for number in range(self.trees):
                if number == len(trees):
                    grown = grow(left, edges, [number], _target, max_depth=self.max_depth, least_rows=self.least_rows)[0]
                    trees.append(grown._replace(value=grown.value * self.learning_rate))
                    if keep is not None:
                        keep.save(pack(trees), {})
                left = replace(left, parts=tuple(left.each(_subtract, trees[number], f"left{number % 2}")))
            self._finish(trees)
        return self

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows); the same bits for a row wherever it stands."""
        return self.start_ + self.forest_.total(columns)


def _leaf_bins(block: Block, trees: Sequence[tuple[int, Tree]], edges: Float, seed: int) -> list[Float]:
    """Return how much weight of the rows that a tree has seen lies in each bin of the target, shape (nodes, bins), by tree."""
    found, bins = [], len(edges) - 1
    for number, tree in trees:
        target, weight = _bootstrap(block, number, seed)
        cell = leaves(_codes(block), tree) * bins + bin_of(target, edges)
        found.append(np.asarray(np.bincount(cell, weight, len(tree.feature) * bins), np.float64).reshape(-1, bins))
    return found


def _bootstrap(block: Block, number: int, seed: int) -> tuple[Float, Float]:
    return np.asarray(block.target), _weights(block) * poisson(block.keys, seed=seed, stream=number)


class RandomForest(_Trees):
    """Trees of bootstrap samples, averaged; how often a row is in a sample is a Poisson deviate by its identity: bagging streams.

    Parameters
    ----------
    trees : int
    max_depth, least_rows : int
        Depth of a tree, and rows of a leaf, repetitions not counted.
    features_tried : float
        Share of the features that each node may choose from.
    bins : sequence of float, optional
        Edges of target bins: then leaves keep how the rows in them are spread over these, and the forest gives a probability for
        each bin: the mean over trees (Meinshausen 2006). Holds 4 bytes for each bin of each node.
    seed : int
    checkpoint, scratch : path, optional
        Where the trees are kept as they are grown, and where rows are spilled that are not in memory.

    Attributes
    ----------
    forest_ : Forest
    shares_ : ndarray of float32, shape (nodes, bins)
        With ``bins``: of the rows of each leaf.
    oob_mse_ : float
        Mean squared error of the rows by the trees that have not seen them; NaN if every tree has seen every row.
    """

    def __init__(
        self,
        trees: int = 100,
        *,
        max_depth: int = 14,
        least_rows: int = 5,
        features_tried: float = 0.5,
        bins: Sequence[float] | None = None,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        self.trees = trees
        self.max_depth = max_depth
        self.least_rows = least_rows
        self.features_tried = features_tried
        self.bins = bins
        self.seed = seed
        self.checkpoint = checkpoint
        self.scratch = scratch

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> RandomForest:
        """Learn from arrays, or from `Batches`; with a checkpoint, go on where a killed fit stopped."""
        batches = self._batches(X, y, sample_weight, supervised=True)
        tried = max(1, round(self.features_tried * len(batches.names)))
        with spilled(batches, self.scratch) as rows:
            edges = self._edges(rows)
            values = partial(_bootstrap, seed=self.seed)
            how: dict[str, Any] = {"max_depth": self.max_depth, "least_rows": self.least_rows, "seed": self.seed}
            codes = binned(rows, edges)
            keep, trees = self._kept(rows)
            while len(trees) < self.trees:
                # A tree follows from its number, whatever others grow beside it.
                numbers = range(len(trees), min(self.trees, len(trees) + TOGETHER))
                trees += grow(codes, edges, numbers, values, **how, features_tried=tried)
                if keep is not None:
                    keep.save(pack(trees), {})
            self._finish(trees)
            squares, weight = codes.over(_out_of_bag, np.add, self.trees_, self.seed)
            self.oob_mse_ = float(squares / weight) if weight > 0 else float("nan")
            if self.bins is not None:
                self.shares_ = self._shares(codes, np.asarray(self.bins, dtype=np.float64))
        return self

    def check(self, features: int) -> None:
        """Raise ValueError if the trees cannot be those of so many features, or the shares not those of the trees."""
        super().check(features)
        if self.bins is not None and self.shares_.shape != (len(self.forest_.feature), len(self.bins) - 1):
            raise ValueError("the shares of its leaves do not fit its trees and bins")

    def _shares(self, codes: Batches, edges: Float) -> NDArray[np.float32]:
        waiting, found = list(enumerate(self.trees_)), []
        while waiting:
            some, size = [waiting.pop(0)], 0
            size = len(some[0][1].feature)
            while waiting and (size + len(waiting[0][1].feature)) * len(edges) * 8 <= MOST_HISTOGRAM_BYTES:
                some.append(waiting.pop(0))
                size += len(some[-1][1].feature)
            for counts in codes.over(_leaf_bins, _add, some, edges, self.seed):
                total = counts.sum(axis=1, keepdims=True)
                found.append(np.divide(counts, total, out=np.zeros_like(counts), where=total > 0).astype(np.float32))
        return np.concatenate(found)

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows); the same bits for a row wherever it stands."""
        return self.forest_.total(columns) / (len(self.forest_.starts) - 1)

    def predict_pdf_columns(self, columns: Float) -> Float:
        """Return the probability of each target bin, shape (rows, bins), from a forest with ``bins``."""
        found = self.forest_.total_of(columns, self.shares_)
        return found / found.sum(axis=1, keepdims=True)


def _out_of_bag(block: Block, trees: Sequence[Tree], seed: int) -> Any:
    total, count = np.zeros(len(block)), np.zeros(len(block))
    for number, tree in enumerate(trees):
        unseen = poisson(block.keys, seed=seed, stream=number) == 0
        total += np.where(unseen, tree.value[leaves(_codes(block), tree)], 0.0)
        count += unseen
    some, weight = count > 0, _weights(block)
    error = (total[some] / count[some] - block.target[some]) ** 2
    return np.array([(weight[some] * error).sum(), weight[some].sum()])


class AdaBoost(_Trees):
    """AdaBoost.R2 (Drucker 1997) with the linear loss: trees of rows weighted by how badly the trees before did on them.

    Parameters
    ----------
    trees : int
        At most; fewer if a tree errs as much as chance would.
    max_depth, least_rows, seed, checkpoint, scratch
        As in `RandomForest`.

    Attributes
    ----------
    forest_ : Forest
    tree_weights_ : ndarray
        The prediction is the median of the trees with these weights.
    """

    def __init__(
        self,
        trees: int = 50,
        *,
        max_depth: int = 6,
        least_rows: int = 5,
        seed: int = 0,
        checkpoint: str | Path | None = None,
        scratch: str | Path | None = None,
    ) -> None:
        self.trees = trees
        self.max_depth = max_depth
        self.least_rows = least_rows
        self.seed = seed
        self.checkpoint = checkpoint
        self.scratch = scratch

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> AdaBoost:
        """Learn from arrays, or from `Batches`; with a checkpoint, go on where a killed fit stopped."""
        batches = self._batches(X, y, sample_weight, supervised=True)
        trees: list[Tree] = []
        weights: list[float] = []
        with spilled(batches, self.scratch) as rows:
            edges = self._edges(rows)
            keep, kept = self._kept(rows)
            left = binned(rows, edges)
            for number in range(self.trees):
                if number == len(kept):
                    kept += grow(left, edges, [number], _target, max_depth=self.max_depth, least_rows=self.least_rows)
                    if keep is not None:
                        keep.save(pack(kept), {})
                tree = kept[number]
                largest = left.over(_largest_error, max, tree)
                loss, weight = left.over(_loss, np.add, tree, max(largest, 1e-300))
                share = float(loss / weight)
                if share >= 0.5 and trees:
                    break
                trees.append(tree)
                beta = max(share, 1e-12) / (1 - min(share, 1 - 1e-12))
                weights.append(float(np.log(1 / beta)) if share < 0.5 else 1.0)
                if largest <= 0 or share >= 0.5:
                    break
                left = replace(left, parts=tuple(left.each(_reweight, tree, largest, beta, weight, f"weight{number % 2}")))
        self.tree_weights_ = np.array(weights)
        self._finish(trees)
        return self

    def predict_columns(self, columns: Float) -> Float:
        """Return the predictions for features of shape (features, rows); the same bits for a row wherever it stands."""
        each = self.forest_.each(columns)
        order = np.argsort(each, axis=0, kind="stable")
        total = np.cumsum(self.tree_weights_[order], axis=0)
        middle = (total >= 0.5 * total[-1]).argmax(axis=0)
        return each[order[middle, np.arange(each.shape[1])], np.arange(each.shape[1])]


def _error(block: Block, tree: Tree) -> Float:
    return np.abs(tree.value[leaves(_codes(block), tree)] - block.target)


def _largest_error(block: Block, tree: Tree) -> float:
    return float(_error(block, tree)[_weights(block) > 0].max(initial=0.0))


def _loss(block: Block, tree: Tree, largest: float) -> Any:
    weight = _weights(block)
    return np.array([(weight * _error(block, tree)).sum() / largest, weight.sum()])


def _reweight(part: ArrayPart, tree: Tree, largest: float, beta: float, total: float, tag: str) -> ArrayPart:
    own = part.opened()
    weight = np.ones(len(own.target)) if own.weight is None else own.weight
    error = np.abs(tree.value[leaves(own.columns, tree)] - own.target)
    return with_arrays(part, tag, weight=weight / total * beta ** (1 - error / largest))


def pack(trees: Sequence[Tree]) -> dict[str, NDArray[Any]]:
    """Return trees as a few arrays."""
    starts = np.cumsum([0, *(len(tree.feature) for tree in trees)])
    return {"starts": starts} | {name: np.concatenate([getattr(tree, name) for tree in trees]) for name in Tree._fields}


def unpack(arrays: Mapping[str, NDArray[Any]]) -> list[Tree]:
    """Return the trees of `pack`."""
    starts = arrays["starts"]
    cuts = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    return [Tree(*(arrays[name][cut] for name in Tree._fields)) for cut in cuts]
