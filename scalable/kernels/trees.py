"""Regression trees on binned features: histograms that add up, the best split of each node, and the walk of rows down a tree."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

Float = NDArray[np.float64]
Int = NDArray[np.int64]
Codes = NDArray[np.uint8]

MAX_BINS = 255
WEIGHT, TOTAL, ROWS = range(3)
"""What a histogram holds for each node, feature and bin: sum of weights, of weighted values, and number of rows."""


class Tree(NamedTuple):
    """A binary tree as arrays, a node each; node 0 is the root and a child comes after its parent.

    Attributes
    ----------
    feature : ndarray of int64
        What is compared; -1 for a leaf.
    code : ndarray of int64
        A row whose bin is at most this goes left.
    threshold : ndarray of float64
        The same in the unit of the feature: upper edge of that bin.
    left, right : ndarray of int64
        Children.
    value : ndarray of float64
        Mean of the values of the rows in the node.
    """

    feature: Int
    code: Int
    threshold: Float
    left: Int
    right: Int
    value: Float


def stump(value: float) -> Tree:
    """Return a tree of one leaf."""
    leaf, none = np.full(1, -1), np.zeros(1, np.int64)
    return Tree(leaf, none, np.zeros(1), leaf, leaf, np.array([value]))


def bin_edges(columns: Float, bins: int = MAX_BINS) -> list[Float]:
    """Return upper edges of the bins of each feature: between distinct values if they are few, else between quantiles.

    Parameters
    ----------
    columns : ndarray, shape (features, rows)
        The rows, or a sample of them.
    """
    edges = []
    for column in columns:
        distinct = np.unique(column)
        if len(distinct) <= bins:
            edges.append((distinct[:-1] + distinct[1:]) / 2)
        else:
            levels = np.linspace(0, 100, bins + 1)[1:-1]
            edges.append(np.unique(np.percentile(column, levels, method="midpoint")))
    return edges


@njit(cache=True, nogil=True)
def _bin(column: Float, edges: Float, out: Codes) -> None:
    for i in range(len(column)):
        low, high = 0, len(edges)
        while low < high:
            middle = (low + high) >> 1
            if edges[middle] < column[i]:
                low = middle + 1
            else:
                high = middle
        out[i] = low


def bin_codes(columns: Float, edges: list[Float]) -> Codes:
    """Return the bin of each value, shape (features, rows); a value on an edge lies in the lower bin."""
    codes = np.empty(columns.shape, np.uint8)
    for column, own, out in zip(np.ascontiguousarray(columns), edges, codes, strict=True):
        _bin(column, own, out)
    return codes


@njit(cache=True, nogil=True)
def _leaves(codes: Codes, feature: Int, code: Int, left: Int, right: Int) -> Int:
    out = np.empty(codes.shape[1], np.int64)
    for i in range(len(out)):
        node = 0
        while feature[node] >= 0:
            node = left[node] if codes[feature[node], i] <= code[node] else right[node]
        out[i] = node
    return out


def leaves(codes: Codes, tree: Tree) -> Int:
    """Return the leaf in which each row ends, shape (rows,)."""
    return _leaves(codes, tree.feature, tree.code, tree.left, tree.right)


@njit(cache=True, nogil=True)
def _add_trees(
    columns: Float, starts: Int, feature: Int, threshold: Float, left: Int, right: Int, value: Float, out: Float
) -> None:
    for t in range(len(starts) - 1):
        root = starts[t]
        for i in range(len(out)):
            node = root
            while feature[node] >= 0:
                node = root + (left[node] if columns[feature[node], i] <= threshold[node] else right[node])
            out[i] += value[node]


@njit(cache=True, nogil=True)
def _add_numbers(
    columns: Float, starts: Int, feature: Int, threshold: Float, left: Int, right: Int, numbers: NDArray[np.float32], out: Float
) -> None:
    for t in range(len(starts) - 1):
        root = starts[t]
        for i in range(len(out)):
            node = root
            while feature[node] >= 0:
                node = root + (left[node] if columns[feature[node], i] <= threshold[node] else right[node])
            for k in range(out.shape[1]):
                out[i, k] += numbers[node, k]


class Forest(NamedTuple):
    """Trees one after the other in the same arrays, from ``starts[t]`` to ``starts[t + 1]``; children count from there."""

    starts: Int
    feature: Int
    threshold: Float
    left: Int
    right: Int
    value: Float

    @classmethod
    def of(cls, trees: list[Tree]) -> Forest:
        """Join trees."""
        starts = np.cumsum([0, *(len(tree.feature) for tree in trees)])
        parts = (np.concatenate([getattr(tree, name) for tree in trees]) for name in cls._fields[1:])
        return cls(starts, *parts)

    def check(self, features: int) -> None:
        """Raise ValueError unless every row of so many features comes to a leaf, which compiled code takes for granted."""
        nodes = len(self.feature)
        whole = all(part.dtype.kind == "i" for part in (self.starts, self.feature, self.left, self.right))
        if not whole or any(part.shape != (nodes,) for part in self[1:]) or self.starts.ndim != 1 or len(self.starts) < 2:
            raise ValueError("the arrays of its trees do not fit each other")
        sizes = np.diff(self.starts)
        if self.starts[0] != 0 or self.starts[-1] != nodes or (sizes < 1).any():
            raise ValueError("its trees do not follow each other")
        place = np.arange(nodes) - np.repeat(self.starts[:-1], sizes)
        inner = self.feature >= 0
        # Children come after their parents, and so no way leads in a circle.
        for child in (self.left, self.right):
            if ((child <= place) | (child >= np.repeat(sizes, sizes)))[inner].any():
                raise ValueError("a branch of its trees leads nowhere")
        if (self.feature >= features).any():
            raise ValueError(f"its trees look at more than {features} features")

    def total(self, columns: Float) -> Float:
        """Return the sum of the values of all trees for each row, in the order of the trees, shape (rows,)."""
        out = np.zeros(columns.shape[1])
        _add_trees(np.ascontiguousarray(columns), *self, out)
        return out

    def total_of(self, columns: Float, numbers: NDArray[np.float32]) -> Float:
        """Return the sum over all trees of what ``numbers``, shape (nodes, k), says of each row's leaf, shape (rows, k)."""
        out = np.zeros((columns.shape[1], numbers.shape[1]))
        _add_numbers(np.ascontiguousarray(columns), *self[:-1], numbers, out)
        return out

    def each(self, columns: Float) -> Float:
        """Return the value of each tree for each row, shape (trees, rows)."""
        columns, out = np.ascontiguousarray(columns), np.zeros((len(self.starts) - 1, columns.shape[1]))
        for t, row in enumerate(out):
            _add_trees(columns, self.starts[t : t + 2], *self[1:], row)
        return out


@njit(cache=True, nogil=True)
def _histograms(codes: Codes, slot: Int, values: Float, weights: Float, slots: int) -> Float:
    out = np.zeros((slots, codes.shape[0], MAX_BINS + 1, 3))
    for j in range(codes.shape[0]):
        column = codes[j]
        for i in range(len(column)):
            s = slot[i]
            if s >= 0 and weights[i] > 0.0:
                cell = out[s, j, column[i]]
                cell[0] += weights[i]
                cell[1] += weights[i] * values[i]
                cell[2] += 1.0
    return out


def histograms(codes: Codes, slot: Int, values: Float, weights: Float, slots: int) -> Float:
    """Return sums over rows, shape (slots, features, bins, 3); those of disjoint sets of rows add up.

    Parameters
    ----------
    codes : ndarray of uint8, shape (features, rows)
    slot : ndarray of int64, shape (rows,)
        Node that is to be split, in [0, slots); -1 for a row in none.
    values, weights : ndarray of float64, shape (rows,)
        A row of no weight does not count.
    """
    return _histograms(codes, slot, values, weights, slots)


@njit(cache=True, nogil=True)
def _best_splits(sums: Float, allowed: NDArray[np.bool_], least_rows: int, least_gain: float) -> tuple[Int, Int, Float, Float]:
    slots, features, bins = sums.shape[0], sums.shape[1], sums.shape[2]
    feature, code, gains = np.full(slots, -1, np.int64), np.zeros(slots, np.int64), np.zeros(slots)
    children = np.zeros((slots, 2))
    for s in range(slots):
        best = least_gain
        for j in range(features):
            if not allowed[s, j]:
                continue
            weight = total = rows = 0.0
            for b in range(bins):
                weight += sums[s, j, b, 0]
                total += sums[s, j, b, 1]
                rows += sums[s, j, b, 2]
            left_weight = left_total = left_rows = 0.0
            for b in range(bins - 1):
                if sums[s, j, b, 2] == 0.0:
                    continue
                left_weight += sums[s, j, b, 0]
                left_total += sums[s, j, b, 1]
                left_rows += sums[s, j, b, 2]
                if left_rows < least_rows:
                    continue
                if rows - left_rows < least_rows:
                    break
                right_weight, right_total = weight - left_weight, total - left_total
                if left_weight <= 0.0 or right_weight <= 0.0:
                    continue
                gain = left_total**2 / left_weight + right_total**2 / right_weight - total**2 / weight
                # Rounding must not choose between splits that are equal.
                if gain > best * (1 + 1e-12) + 1e-300:
                    best = gain
                    feature[s], code[s], gains[s] = j, b, gain
                    children[s, 0], children[s, 1] = left_total / left_weight, right_total / right_weight
    return feature, code, gains, children


def best_splits(
    sums: Float, allowed: NDArray[np.bool_], *, least_rows: int, least_gain: float = 0.0
) -> tuple[Int, Int, Float, Float]:
    """Return the split of each node that leaves the least squared deviation.

    Parameters
    ----------
    sums : ndarray, shape (slots, features, bins, 3)
        From `histograms`, of all rows.
    allowed : ndarray of bool, shape (slots, features)
        Features that a node may split on.
    least_rows : int
        Rows that each child must have.
    least_gain : float
        Gain that a split must exceed, in squared units of the values times weight.

    Returns
    -------
    feature : ndarray of int64, shape (slots,)
        -1 where no split is left.
    code, gain : ndarray, shape (slots,)
    children : ndarray, shape (slots, 2)
        Weighted means of the left and the right child.
    """
    return _best_splits(sums, allowed, least_rows, least_gain)
