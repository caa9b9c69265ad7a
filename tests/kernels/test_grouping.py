"""Friends of friends and nearest references, held to all pairs, to a k-d tree and to a graph library."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from scalable.kernels.grouping import MIN_RADIUS_ARCSEC, chord, friends_of_friends, nearest_reference
from scalable.kernels.partition import unit_vectors

Float = NDArray[np.float64]
Int = NDArray[np.int64]


def first_rows(component: Int) -> Int:
    """Return for each row the first row with the same component number."""
    _, first, inverse = np.unique(component, return_index=True, return_inverse=True)
    return first[inverse]


def by_all_pairs(vectors: Float, radius_arcsec: float) -> Int:
    squared = sum((vectors[:, None, axis] - vectors[None, :, axis]) ** 2 for axis in range(3))
    return first_rows(connected_components(squared <= chord(radius_arcsec) ** 2, directed=False)[1])


def by_tree(vectors: Float, radius_arcsec: float) -> Int:
    pairs = cKDTree(vectors).query_pairs(chord(radius_arcsec), output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(vectors), len(vectors)))
    return first_rows(connected_components(graph, directed=False)[1])


def nearest_by_all_pairs(vectors: Float, reference: Float, radius_arcsec: float) -> Int:
    squared = sum((vectors[:, None, axis] - reference[None, :, axis]) ** 2 for axis in range(3))
    return np.where(squared.min(axis=1) <= chord(radius_arcsec) ** 2, squared.argmin(axis=1), -1)


PLACES = [(0.0, 90.0), (0.0, -90.0), (0.0, 0.0), (360.0, 45.0), (45.0, 41.81), (90.0, 0.0), (213.7, -61.2)]


@st.composite
def crowds(draw: st.DrawFn) -> tuple[Float, float]:
    """Draw clusters, chains and repeated positions about a few places, and a radius of their size."""
    radius = draw(st.sampled_from([MIN_RADIUS_ARCSEC, 0.5, 60.0, 36000.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pieces = []
    for _ in range(draw(st.integers(1, 4))):
        ra, dec = draw(st.sampled_from(PLACES))
        n = draw(st.integers(1, 25))
        size = radius / 3600 * draw(st.sampled_from([0.0, 0.3, 1.0, 3.0, 10.0]))
        away = rng.normal(size=(n, 3))
        if draw(st.booleans()):  # A chain: steps of about the radius in one direction.
            away = away[:1] / np.linalg.norm(away[:1]) * np.arange(n)[:, None] * draw(st.sampled_from([0.7, 0.99999, 1.00001]))
            size = radius / 3600
        points = unit_vectors(np.full(n, ra), np.full(n, dec)) + np.deg2rad(size) * away
        points = points / np.linalg.norm(points, axis=1)[:, None]
        pieces.append(points[rng.integers(0, n, n)] if draw(st.booleans()) else points)
    return rng.permutation(np.concatenate(pieces)), radius


@settings(max_examples=300, deadline=None, derandomize=True)
@given(crowds())
def test_friends_of_friends_are_the_components_of_the_graph_of_all_close_pairs(crowd: tuple[Float, float]) -> None:
    vectors, radius = crowd
    np.testing.assert_array_equal(friends_of_friends(vectors, radius), by_all_pairs(vectors, radius))


@settings(max_examples=100, deadline=None, derandomize=True)
@given(crowds(), st.integers(0, 2**32 - 1))
def test_the_order_of_the_rows_decides_the_labels_alone_not_the_groups(crowd: tuple[Float, float], seed: int) -> None:
    vectors, radius = crowd
    shuffled = np.random.default_rng(seed).permutation(len(vectors))
    labels = friends_of_friends(vectors, radius)
    np.testing.assert_array_equal(friends_of_friends(vectors[shuffled], radius), first_rows(labels[shuffled]))


@pytest.mark.parametrize("dec", [90.0, -90.0, 0.0, 41.8], ids=str)
def test_ten_thousand_crowded_positions_are_linked_as_a_tree_links_them(dec: float) -> None:
    rng = np.random.default_rng(3)
    vectors = unit_vectors(np.full(10_000, 0.0), np.full(10_000, dec)) + np.deg2rad(60 / 3600) * rng.normal(size=(10_000, 3))
    vectors /= np.linalg.norm(vectors, axis=1)[:, None]
    labels = friends_of_friends(vectors, 1.0)
    np.testing.assert_array_equal(labels, by_tree(vectors, 1.0))
    assert 1000 < len(np.unique(labels)) < 9000


def test_no_positions_have_no_labels_and_one_is_its_own_friend() -> None:
    assert friends_of_friends(np.zeros((0, 3)), 1.0).shape == (0,)
    assert friends_of_friends(np.array([[0.0, 0.0, 1.0]]), 1.0).tolist() == [0]


def test_a_radius_of_exactly_the_separation_links() -> None:
    vectors = unit_vectors(np.array([10.0, 10.0]), np.array([0.0, 1 / 3600]))
    squared = ((vectors[0] - vectors[1]) ** 2).sum()
    radius = float(np.rad2deg(2 * np.arcsin(np.sqrt(squared) / 2)) * 3600)
    assert friends_of_friends(vectors, radius * (1 + 1e-12)).tolist() == [0, 0]
    assert friends_of_friends(vectors, radius * (1 - 1e-9)).tolist() == [0, 1]


def test_a_chain_of_a_hundred_thousand_steps_is_one_component() -> None:
    n = 100_000
    vectors = unit_vectors(np.zeros(n), np.arange(n) * 0.9 / 3600)[np.random.default_rng(1).permutation(n)]
    assert (friends_of_friends(vectors, 1.0) == 0).all()


def test_a_dense_crowd_does_not_cost_the_square_of_its_number() -> None:
    # Spots of identical positions just out of each other's reach, and a cluster within one: all pairs would be more than 10**10.
    place = unit_vectors(np.array([120.0]), np.array([-30.0]))
    east, north = np.array([-np.sin(np.deg2rad(120.0)), np.cos(np.deg2rad(120.0)), 0.0]), np.zeros(3)
    north = np.cross(place[0], east)
    spots = [0.0 * east, 0.3 * east + 0.99 * north, 1.01 * north]
    many = np.concatenate([np.repeat(place + np.deg2rad(spot / 3600), 100_000, axis=0) for spot in spots])
    jitter = np.random.default_rng(2).normal(size=(200_000, 3)) * np.deg2rad(0.05 / 3600) + unit_vectors(
        np.array([10.0]), np.array([0.0])
    )
    friends_of_friends(many[:10], 1.0)
    start = time.perf_counter()
    labels = friends_of_friends(np.concatenate([many, jitter / np.linalg.norm(jitter, axis=1)[:, None]]), 1.0)
    assert time.perf_counter() - start < 10.0
    assert len(np.unique(labels[300_000:])) == 1
    np.testing.assert_array_equal(labels[[0, 100_000, 200_000]], by_all_pairs(many[::100_000], 1.0) * 100_000)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(crowds(), st.integers(0, 60))
def test_the_nearest_reference_is_that_of_all_pairs_and_the_lower_row_of_equals(crowd: tuple[Float, float], n: int) -> None:
    vectors, radius = crowd
    n = min(n, len(vectors) - 1)
    # Some references stand where a position is, some stand twice.
    reference, vectors = np.concatenate([vectors[:n], vectors[: n // 2], vectors[-1:]]), vectors[n // 2 :]
    index, separation = nearest_reference(vectors, reference, radius)
    np.testing.assert_array_equal(index, nearest_by_all_pairs(vectors, reference, radius))
    found = index >= 0
    cross = np.linalg.norm(np.cross(vectors[found], reference[index[found]]), axis=1)
    angle = np.rad2deg(np.arctan2(cross, (vectors[found] * reference[index[found]]).sum(axis=1))) * 3600
    np.testing.assert_allclose(separation[found], angle, rtol=1e-6, atol=1e-10)
    assert np.isnan(separation[~found]).all()


def test_without_positions_or_references_nothing_is_found() -> None:
    some, none = np.array([[1.0, 0.0, 0.0]]), np.zeros((0, 3))
    assert nearest_reference(some, none, 1.0)[0].tolist() == [-1]
    assert nearest_reference(none, some, 1.0)[0].shape == (0,)
