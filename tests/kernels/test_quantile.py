"""Exact order statistics by bracketing passes: what sorting everything gives, for any cutting into pieces."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from scalable.kernels.quantile import DIGIT_BITS, PASSES, count_digits, from_sortable, merge_counts, narrow, sortable

Float = NDArray[np.float64]

numbers = st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, math.inf, -math.inf, 1.0, -1.0, 5e-324, -5e-324])
arrays = st.lists(numbers, min_size=1, max_size=60).map(lambda values: np.array(values, dtype=np.float64))


def select(groups: list[Float], wanted: list[tuple[int, int]], pieces: NDArray[np.int64]) -> Float:
    """Return the value of each wanted (group, rank), by passes over pieces: rows go to the piece of their number."""
    keys, owners = [], []
    for index, (group, _) in enumerate(wanted):
        keys.append(sortable(groups[group]))
        owners.append(np.full(len(groups[group]), index))
    all_keys, owner = np.concatenate(keys), np.concatenate(owners)
    piece = np.resize(pieces, len(all_keys))
    prefixes = np.zeros(len(wanted), dtype=np.uint64)
    ranks = np.array([rank for _, rank in wanted], dtype=np.int64)
    for done in range(PASSES):
        tables = [count_digits(all_keys[piece == p], owner[piece == p], prefixes, done) for p in np.unique(piece)]
        prefixes, ranks = narrow(merge_counts(tables), prefixes, ranks, done)
    return from_sortable(prefixes)


@given(arrays)
def test_keys_sort_as_values_do_and_give_them_back(values: Float) -> None:
    keys = sortable(values)
    assert keys.dtype == np.uint64
    assert (from_sortable(keys) == values).all()
    assert ((keys[:, None] < keys) == (values[:, None] < values)).all()
    assert ((keys[:, None] == keys) == (values[:, None] == values)).all()


def test_both_zeros_are_one_value() -> None:
    assert len(set(sortable(np.array([0.0, -0.0])).tolist())) == 1


def test_the_passes_use_every_bit_of_a_key() -> None:
    assert PASSES * DIGIT_BITS == 64


@settings(deadline=None)
@given(st.lists(arrays, min_size=1, max_size=4), st.data())
def test_any_rank_of_any_group_is_what_sorting_gives_for_any_cutting(groups: list[Float], data: st.DataObject) -> None:
    group = st.integers(0, len(groups) - 1)
    wanted = data.draw(
        st.lists(group.flatmap(lambda g: st.tuples(st.just(g), st.integers(0, len(groups[g]) - 1))), min_size=1, max_size=6)
    )
    pieces = np.array(data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=20)))
    expected = [np.sort(groups[g])[rank] for g, rank in wanted]
    assert select(groups, wanted, pieces).tolist() == expected


@settings(deadline=None)
@given(arrays.filter(lambda values: np.isfinite(values).all() and np.abs(values).max() < 1e300))
def test_lower_and_upper_middle_average_to_the_median(values: Float) -> None:
    n = len(values)
    pair = select([values], [(0, (n - 1) // 2), (0, n // 2)], np.array([0, 1, 2]))
    assert pair.mean() == np.median(values)


@settings(deadline=None)
@given(arrays, st.lists(st.integers(0, 3), min_size=1, max_size=10))
def test_counts_of_pieces_add_up_to_the_counts_of_the_whole(values: Float, pieces: list[int]) -> None:
    keys, piece = sortable(values), np.resize(pieces, len(values))
    owner = (np.arange(len(values)) % 2).astype(np.int64)
    none = np.zeros(2, dtype=np.uint64)
    whole = count_digits(keys, owner, none, 0)
    assert whole[:, 2].sum() == len(values)
    parts = [count_digits(keys[piece == p], owner[piece == p], none, 0) for p in range(4)]
    assert merge_counts(parts).tolist() == merge_counts(parts[::-1]).tolist() == whole.tolist()


def test_a_wanted_value_without_rows_keeps_its_prefix() -> None:
    nothing = count_digits(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int64), np.zeros(1, dtype=np.uint64), 0)
    prefixes, ranks = narrow(nothing, np.zeros(1, dtype=np.uint64), np.array([3]), 0)
    assert (prefixes.tolist(), ranks.tolist()) == ([0], [3])
