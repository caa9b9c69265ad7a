"""Learners of many passes: trees, networks, neighbours, curves; equal to scikit-learn or SciPy in memory where they must be."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import skops.io
from distributed import Client
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares
from sklearn.base import clone
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import SGDRegressor
from sklearn.neighbors import KNeighborsRegressor
from sklearn.neural_network import MLPRegressor as PeerNetwork
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils.estimator_checks import check_estimator

from scalable.cluster import connect
from scalable.errors import InputError, StoreError
from scalable.kernels.counter import poisson
from scalable.kernels.network import gradients
from scalable.kernels.nonlinear import CURVES
from scalable.train import neighbours, trees
from scalable.train.batches import ArrayPart, Batches, arrays, fold_of, keys_of
from scalable.train.checkpoint import Checkpoint
from scalable.train.incremental import Incremental, packed, unpacked
from scalable.train.linear import Ridge
from scalable.train.mixed import OrderWarning, mixed, order_share
from scalable.train.mixture import GaussianMixture
from scalable.train.neighbours import KernelRegression, KNeighbors
from scalable.train.network import MLPRegressor
from scalable.train.nonlinear import NonlinearRegression
from scalable.train.spill import spilled
from scalable.train.trees import AdaBoost, GradientBoosting, RandomForest


def table(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features with few distinct values, so that bins are the same in every implementation."""
    rng = np.random.default_rng(seed)
    X = rng.integers(0, 60, (rows, 4)) / 7.0
    return X, X @ [1.0, 2.0, -1.0, 0.3] + np.sin(X[:, 0]) + rng.normal(size=rows)


class _Streaming:
    """A part that is no array, so that it has to be spilled."""

    def __init__(self, part: Any) -> None:
        self.part = part

    def blocks(self) -> Any:
        for block in self.part.blocks():
            for start in range(0, len(block), 100):
                yield block.take(slice(start, start + 100))


def streaming(batches: Batches) -> Batches:
    return Batches(tuple(map(_Streaming, batches.parts)), batches.names, target=batches.target)


@settings(max_examples=3, deadline=None)
@given(st.integers(150, 2000), st.integers(0, 99))
def test_boosting_on_any_chunking_is_that_of_scikit_learn_on_the_same_bins(part_rows: int, seed: int) -> None:
    X, y = table(1500, seed)
    with dask.config.set(scheduler="sync"):
        ours = GradientBoosting(8, max_depth=4).fit(arrays(X, y, part_rows=part_rows))
    peer = HistGradientBoostingRegressor(max_iter=8, max_leaf_nodes=None, max_depth=4, early_stopping=False).fit(X, y)
    # The peer keeps gradients in single precision.
    np.testing.assert_allclose(ours.predict(X), peer.predict(X), atol=1e-5)


def test_one_tree_is_that_of_scikit_learn_and_weights_count() -> None:
    X, y = table(1000)
    weights = np.random.default_rng(1).integers(1, 4, 1000).astype(float)
    for weight in (None, weights):
        ours = AdaBoost(1, max_depth=4, least_rows=5).fit(X, y, weight)
        peer = DecisionTreeRegressor(max_depth=4, min_samples_leaf=5).fit(X, y, weight)
        np.testing.assert_allclose(ours.predict(X), peer.predict(X), rtol=1e-10)


def test_reweighting_is_that_of_drucker_written_out() -> None:
    X, y = table(800)
    ours = AdaBoost(6, max_depth=3, least_rows=5).fit(arrays(X, y, part_rows=111))
    weight, trees, votes = np.ones(len(y)), [], []
    for _ in range(6):
        trees.append(DecisionTreeRegressor(max_depth=3, min_samples_leaf=5).fit(X, y, weight))
        error = np.abs(trees[-1].predict(X) - y)
        share = (weight * error / error.max()).sum() / weight.sum()
        votes.append(np.log((1 - share) / share))
        weight = weight / weight.sum() * (share / (1 - share)) ** (1 - error / error.max())
    np.testing.assert_allclose(ours.tree_weights_, votes, rtol=1e-8)
    each = np.array([tree.predict(X) for tree in trees])
    order = each.argsort(axis=0)
    middle = (np.cumsum(np.array(votes)[order], axis=0) >= sum(votes) / 2).argmax(axis=0)
    np.testing.assert_allclose(ours.predict(X), each[order[middle, np.arange(800)], np.arange(800)], rtol=1e-8)


def test_a_forest_does_not_depend_on_chunks_workers_or_spilling_and_knows_its_error_out_of_bag(tmp_path: Path) -> None:
    X, y = table(1200)
    test, truth = table(1200, seed=1)
    settings: dict[str, Any] = {"trees": 12, "max_depth": 8}
    whole = RandomForest(**settings).fit(X, y)
    with Client(n_workers=1, threads_per_worker=4, processes=False, dashboard_address=":0"):
        found = RandomForest(**settings, scratch=tmp_path).fit(streaming(arrays(X, y, part_rows=200)))
    np.testing.assert_allclose(found.predict(test), whole.predict(test), rtol=1e-10)
    assert list(tmp_path.iterdir()) == []
    reordered = RandomForest(**settings).fit(X[::-1], y[::-1])
    np.testing.assert_allclose(reordered.predict(test), whole.predict(test), rtol=1e-10)
    each = whole.forest_.each(X.T)
    unseen = np.array([poisson(keys_of(X.T, y), seed=0, stream=number) == 0 for number in range(12)])
    some = unseen.any(axis=0)
    guess = (each * unseen).sum(axis=0)[some] / unseen.sum(axis=0)[some]
    assert whole.oob_mse_ == pytest.approx(((guess - y[some]) ** 2).mean(), rel=1e-10)
    errors = [((whole.predict(features) - target) ** 2).mean() for features, target in ((X, y), (test, truth))]
    assert errors[0] < 0.8 * errors[1] < whole.oob_mse_


def test_nodes_of_one_tree_whose_histograms_take_too_much_memory_take_more_passes_to_the_same_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X, y = table(1000)
    batches = arrays(X, y, part_rows=400)
    whole = RandomForest(4, max_depth=6).fit(batches)
    most, three_nodes, sums = 0, 3 * 4 * 256 * 3 * 8, trees._sums

    def watched(*arguments: Any) -> Any:
        nonlocal most
        found = sums(*arguments)
        most = max(most, sum(one.nbytes for one in found))
        return found

    monkeypatch.setattr(trees, "_sums", watched)
    monkeypatch.setattr(trees, "MOST_HISTOGRAM_BYTES", three_nodes)
    found = RandomForest(4, max_depth=6).fit(batches)
    assert most == three_nodes
    for name in whole.forest_._fields:
        assert np.array_equal(getattr(found.forest_, name), getattr(whole.forest_, name))


class _Killed(Exception):
    pass


@pytest.mark.parametrize(
    "estimator",
    [
        GradientBoosting(6, max_depth=3),
        RandomForest(9, max_depth=4),
        AdaBoost(6, max_depth=3),
        NonlinearRegression("softplus"),
        Incremental(epochs=6),
        Incremental(PeerNetwork(hidden_layer_sizes=(4,), random_state=np.random.RandomState(3)), epochs=6),
        MLPRegressor((8,), epochs=6),
        MLPRegressor((8,), epochs=6, bins=(-9, 0, 9, 18, 40)),
    ],
    ids=["boosting", "forest", "AdaBoost", "curve", "sgd", "peer network", "network", "density"],
)
def test_a_killed_fit_goes_on_to_the_same_bits(estimator: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trees, "TOGETHER", 2)
    X, y = table(600)
    test, _ = table(100, seed=1)
    batches = arrays(X, y, part_rows=250)
    whole = estimator.fit(batches).predict(test)
    estimator.set_params(checkpoint=tmp_path / "state.h5")
    saves, save = 0, Checkpoint.save

    def killed(self: Checkpoint, *arguments: Any) -> None:
        nonlocal saves
        save(self, *arguments)
        saves += 1
        if saves == 3:
            raise _Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", killed)
        with pytest.raises(_Killed):
            estimator.fit(batches)
    assert np.array_equal(estimator.fit(batches).predict(test), whole)


def test_sorted_rows_are_mixed_and_said_to_be_sorted(tmp_path: Path) -> None:
    X, y = table(4000)
    order = np.argsort(y)
    test, truth = table(1000, seed=1)
    settings: dict[str, Any] = {"hidden": (16,), "epochs": 15, "buffer_rows": 1024, "scratch": tmp_path}
    shuffled = MLPRegressor(**settings).fit(streaming(arrays(X, y)))
    with pytest.warns(OrderWarning, match="of the variance of y lies between blocks"):
        ordered = MLPRegressor(**settings).fit(streaming(arrays(X[order], y[order])))
    errors = [((model.predict(test) - truth) ** 2).mean() for model in (shuffled, ordered)]
    assert errors[0] < 2.0
    assert abs(errors[1] / errors[0] - 1) < 0.1


def test_the_gradients_of_a_network_are_its_slopes_and_rows_of_no_weight_do_not_count() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 3)), rng.normal(size=20)
    weights, biases = [rng.normal(size=(3, 5)), rng.normal(size=(5, 4))], [rng.normal(size=5), rng.normal(size=4)]
    bins = rng.integers(0, 4, 20).astype(float)
    for classes, target in ((False, y), (True, bins)):
        shapes = weights if classes else [weights[0], weights[1][:, :1]]
        shifts = biases if classes else [biases[0], biases[1][:1]]
        loss, by_weight, by_bias = gradients(X, target, shapes, shifts, alpha=0.0, classes=classes)
        for n in range(2):
            for parameters, slopes in ((shapes[n], by_weight[n]), (shifts[n], by_bias[n])):
                where = (0,) * parameters.ndim
                before = parameters[where]
                parameters[where] = before + 1e-6
                more = gradients(X, target, shapes, shifts, alpha=0.0, classes=classes)[0]
                parameters[where] = before
                assert (more - loss) / 1e-6 == pytest.approx(slopes[where], abs=1e-4)
        half = gradients(X[:10], target[:10], shapes, shifts, alpha=0.0, classes=classes)
        whole = gradients(X, target, shapes, shifts, alpha=0.0, classes=classes, row_weights=np.repeat([1.0, 0.0], 10))
        np.testing.assert_allclose(whole[1][0], half[1][0], rtol=1e-10, atol=1e-14)


def test_any_estimator_with_partial_fit_learns_from_mixed_batches(tmp_path: Path) -> None:
    X, y = table(3000)
    test, truth = table(1000, seed=1)
    found = Incremental(epochs=5, batch_rows=64, scratch=tmp_path).fit(streaming(arrays(X, y, part_rows=500)))
    written = SGDRegressor(random_state=0)
    # By hand on the same batches.
    with spilled(arrays(X, y, part_rows=500)) as rows:
        for epoch in range(int(np.argmin(found.validation_curve_)) + 1):
            for some, target, _ in mixed(rows, batch_rows=64, buffer_rows=1 << 18, seed=0, epoch=epoch, held=10):
                written.partial_fit((some - X.mean(axis=0)) / X.std(axis=0), target)
    np.testing.assert_allclose(found.estimator_.coef_, written.coef_, rtol=1e-9)
    assert len(found.loss_curve_) == len(found.validation_curve_) == 5
    assert found.score(test, truth) > 0.9
    held = fold_of(keys_of(X.T, y), 10, 0, inner=True) == 0
    squares = (found.predict(X[held]) - y[held]) ** 2 / y.var()
    assert min(found.validation_curve_) == pytest.approx(0.5 * squares.mean(), rel=1e-9)


def test_an_early_stop_takes_the_best_epoch() -> None:
    X, y = table(600)
    whole = Incremental(SGDRegressor(learning_rate="constant", eta0=0.1), epochs=40, patience=3).fit(X, y)
    best = int(np.argmin(whole.validation_curve_))
    assert whole.n_iter_ == len(whole.validation_curve_) == best + 4 < 40
    again = Incremental(SGDRegressor(learning_rate="constant", eta0=0.1), epochs=best + 1, patience=3).fit(X, y)
    assert np.array_equal(again.estimator_.coef_, whole.estimator_.coef_)


def test_weights_are_handed_on_and_steps_go_on() -> None:
    X, y = table(500)
    heavy = np.where(y > np.median(y), 100.0, 1.0)
    found = [Incremental(epochs=3, validation=0).fit(X, y, weight) for weight in (None, heavy)]
    assert found[1].predict(X).mean() > found[0].predict(X).mean()
    before = found[0].estimator_.t_
    found[0].partial_fit(X, y)
    assert found[0].estimator_.t_ == before + 500


def test_the_validation_curve_counts_weights() -> None:
    X, y = table(2000)
    weight = np.random.default_rng(0).random(2000)
    held = fold_of(keys_of(X.T, y), 10, 0, inner=True) == 0
    for learner in (Incremental(epochs=2), MLPRegressor((4,), epochs=2)):
        found = learner.fit(X, y, weight)
        squares = (found.predict(X[held]) - y[held]) ** 2 / found.scale_[-1] ** 2
        assert min(found.validation_curve_) == pytest.approx(0.5 * np.average(squares, weights=weight[held]), rel=1e-9)


def test_rows_for_validation_do_not_depend_on_what_was_held_out_before() -> None:
    X, y = table(3000)
    whole = arrays(X, y)
    for fold in range(5):
        given = whole.fold([n for n in range(5) if n != fold], 5, seed=0)
        assert 0.07 < given.fold([0], 10, seed=0, inner=True).count() / given.count() < 0.13
        assert len(MLPRegressor((2,), epochs=1).fit(given).validation_curve_) == 1
    together = Batches((ArrayPart(X.T, y, groups=np.zeros(3000, np.uint64)),), ("a", "b", "c", "d"), target="y")
    seed = next(seed for seed in range(100) if fold_of(np.zeros(1, np.uint64), 10, seed, inner=True)[0] == 0)
    with pytest.raises(InputError, match="no row is left to learn from.*validation=0"):
        MLPRegressor((2,), epochs=1, seed=seed).fit(together)


def test_the_state_of_a_fit_to_other_weights_or_keys_is_not_gone_on_with(tmp_path: Path) -> None:
    X, y = table(300)
    weight = np.random.default_rng(0).random(300)
    learner = GradientBoosting(2, max_depth=2, checkpoint=tmp_path / "state.h5").fit(X, y, weight)
    learner.fit(X, y, weight)
    with pytest.raises(StoreError, match="another fit .*weights"):
        learner.fit(X, y, weight[::-1])
    with pytest.raises(StoreError, match="another fit"):
        learner.fit(X, y)
    part = ArrayPart(X.T, y, weight, keys=np.arange(300, dtype=np.uint64))
    with pytest.raises(StoreError, match="another fit"):
        learner.fit(Batches((part,), ("a", "b", "c", "d"), target="y"))
    start = {"weights_init": [1.0], "covariances_init": [np.eye(4)], "max_iter": 2, "checkpoint": tmp_path / "mixture.h5"}
    many = np.zeros((1, 4))
    GaussianMixture(1, means_init=many, **start).fit(X)
    with pytest.raises(StoreError, match="another fit"):
        GaussianMixture(1, means_init=many + 1e-12, **start).fit(X)


def test_a_constant_feature_is_not_looked_at() -> None:
    X, y = table(500)
    more = np.column_stack([X, np.full(500, 0.1)])
    for learner in (NonlinearRegression("quadratic"), KNeighbors(5), KernelRegression(0.5)):
        without = learner.fit(arrays(X, y, part_rows=200)).predict(X)
        learner.fit(arrays(more, y, part_rows=200))
        assert learner.scale_[4] in (1.0, 0.5)
        np.testing.assert_allclose(learner.predict(more), without, rtol=1e-6)


class Foreign(SGDRegressor):
    """A class that no file may name."""


def test_equal_estimators_are_equal_bytes_and_others_are_refused(tmp_path: Path) -> None:
    X, y = table(200)
    for peer in (SGDRegressor(random_state=0), PeerNetwork(hidden_layer_sizes=(4,), random_state=0)):
        peers = [clone(peer).partial_fit(X, y) for _ in range(2)]
        states = [packed(one) for one in peers]
        assert np.array_equal(*states)
        back = unpacked(states[0])
        assert np.array_equal(packed(back), states[0])
        for one in (back, peers[0]):
            one.partial_fit(X, y)
        assert np.array_equal(back.predict(X), peers[0].predict(X))
    with pytest.raises(InputError, match="Foreign cannot be kept in a file .*in this process"):
        Incremental(Foreign(), checkpoint=tmp_path / "state.h5").fit(X, y)
    Incremental(Foreign(), epochs=2).fit(X, y)
    written = np.frombuffer(skops.io.dumps(Foreign().fit(X, y)), np.uint8)
    grown = np.frombuffer(skops.io.dumps(KNeighborsRegressor(algorithm="brute").fit(X, y)), np.uint8)
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as made, zipfile.ZipFile(io.BytesIO(states[0].tobytes())) as given:
        for name in given.namelist():
            made.writestr(name, given.read(name))
    for bad in (written, written[:-50], grown, np.frombuffer(deflated.getvalue(), np.uint8), np.zeros(10, np.uint8)):
        with pytest.raises(StoreError):
            unpacked(bad)


def test_spilled_rows_are_the_same_rows_in_the_same_parts(tmp_path: Path) -> None:
    X, y = table(1000)
    source = arrays(X, y, part_rows=300)
    with spilled(streaming(source), tmp_path) as rows:
        for mine, theirs in zip(rows.parts, source.parts, strict=True):
            a, b = list(mine.blocks()), list(theirs.blocks())
            assert len(a) == len(b) == 1
            for name in ("columns", "target", "keys", "groups"):
                assert np.array_equal(getattr(a[0], name), getattr(b[0], name))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="maps of a process are read from Linux's /proc")
def test_rows_on_the_disk_do_not_become_memory_of_the_process(tmp_path: Path) -> None:
    X, y = table(200_000)
    part_rows = 20_000
    part_bytes = part_rows * 8 * (X.shape[1] + 2)

    def held() -> int:
        maps = Path("/proc/self/smaps").read_text().split("VmFlags:")
        ours = [part.split("Rss:")[1].split()[0] for part in maps if str(tmp_path) in part]
        return sum(map(int, ours)) * 1024

    with spilled(streaming(arrays(X, y, part_rows=part_rows)), tmp_path) as rows:
        most = 0
        for block in rows.blocks():
            assert block.target.sum() != 0
            most = max(most, held())
        assert 0 < most <= 1.1 * part_bytes
        # The last block is a view of its file.
        del block
        assert held() == 0
        for _ in mixed(rows, batch_rows=10_000, buffer_rows=50_000, seed=0, epoch=0, held=5):
            assert held() == 0
        order_share(rows)
        assert held() == 0


def test_rows_lie_in_a_folder_of_dask_and_a_worker_that_does_not_see_it_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = streaming(arrays(*table(100), part_rows=30))
    with dask.config.set({"temporary-directory": str(tmp_path / "shared")}):
        with spilled(batches) as rows:
            folder = next((tmp_path / "shared").iterdir())
            shutil.move(folder, tmp_path / "elsewhere")
            with pytest.raises(StoreError, match=f"^{folder}: the folder .* give scratch= or set DASK_TEMPORARY_DIRECTORY"):
                rows.count()
        # As on another machine: made here, and not there.
        monkeypatch.setattr(Path, "rename", lambda _, new: new)
        with pytest.raises(StoreError, match="shared/scalable-rows.*: the folder .* that all workers see"), spilled(batches):
            pass


def test_what_a_killed_fit_left_is_removed_by_the_next_and_what_a_living_one_uses_is_not(tmp_path: Path) -> None:
    script = f"""
import os
from tests.train.test_learners import arrays, spilled, streaming, table
with spilled(streaming(arrays(*table(100))), {str(tmp_path)!r}):
    os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False)
    left = set(tmp_path.iterdir())
    assert len(left) == 1
    batches = streaming(arrays(*table(100)))
    with spilled(batches, tmp_path) as first:
        one = set(tmp_path.iterdir())
        assert len(one) == 1
        assert one != left
        with spilled(batches, tmp_path):
            assert len(set(tmp_path.iterdir()) - one) == 1
        assert first.count() == 100
    assert list(tmp_path.iterdir()) == []


def test_a_single_part_is_cut_on_the_disk_and_several_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalable.train.spill.PART_ROWS", 330)
    X, y = table(1000)
    for part_rows, expected in ((1000, [330, 330, 330, 10]), (500, [500, 500])):
        with spilled(streaming(arrays(X, y, part_rows=part_rows)), tmp_path) as rows:
            assert [sum(map(len, part.blocks())) for part in rows.parts] == expected
            assert np.array_equal(np.concatenate([block.columns.T for block in rows.blocks()]), X)
            assert np.array_equal(np.concatenate([block.target for block in rows.blocks()]), y)
            keys = np.concatenate([block.own_keys for block in rows.blocks()])
            assert np.array_equal(keys, keys_of(np.ascontiguousarray(X.T), y))


def test_a_network_does_not_depend_on_the_chunking() -> None:
    X, y = table(5000)
    network = MLPRegressor((8,), epochs=2, buffer_rows=2048)
    whole = network.fit(arrays(X, y, part_rows=5000)).predict(X)
    for part_rows in (300, 900):
        # The moments that features are scaled by differ in the last bits.
        np.testing.assert_allclose(network.fit(arrays(X, y, part_rows=part_rows)).predict(X), whole, rtol=1e-9)


@pytest.mark.long
def test_the_number_of_parts_is_not_bounded_by_that_of_open_files(tmp_path: Path) -> None:
    script = f"""
import resource
from tests.train.test_learners import GradientBoosting, MLPRegressor, arrays, streaming, table
X, y = table(1200)
batches = streaming(arrays(X, y, part_rows=6))
resource.setrlimit(resource.RLIMIT_NOFILE, (150, 150))
GradientBoosting(2, max_depth=2, scratch={str(tmp_path)!r}).fit(batches)
MLPRegressor((4,), epochs=1, scratch={str(tmp_path)!r}).fit(batches)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_neighbours_are_those_of_scikit_learn_and_a_sample_beyond_the_bound() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(1500, 3)), rng.normal(size=1500)
    for weights in ("uniform", "distance"):
        ours = KNeighbors(7, weights=weights, standardize=False).fit(arrays(X, y, part_rows=200))
        peer = KNeighborsRegressor(7, weights=weights).fit(X, y)
        test = np.vstack([X[:50], rng.normal(size=(50, 3))])
        np.testing.assert_allclose(ours.predict(test), peer.predict(test), rtol=1e-9)
    slope = np.array([1.0, -2.0, 0.5])
    planes = KNeighbors(20, local="plane").fit(X, 3 + X @ slope)
    inner = np.abs(X).max(axis=1) < 1
    # Damped by a thousandth, so that neighbours in a plane do not tilt it.
    np.testing.assert_allclose(planes.predict(X[inner] + 0.01), 3 + (X[inner] + 0.01) @ slope, atol=0.01)
    some = [KNeighbors(7, reference_rows=100).fit(arrays(X, y, part_rows=rows)) for rows in (100, 1500)]
    assert some[0].reference_.shape == (100, 3)
    assert some[0].rows_ == 1500
    np.testing.assert_allclose(some[0].predict(X), some[1].predict(X), rtol=1e-9)


def test_a_kernel_on_a_fine_grid_is_the_kernel_on_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, size=(2000, 2))
    y = np.sin(3 * X[:, 0]) + X[:, 1]
    found = KernelRegression(0.3, cells=20).fit(arrays(X, y, part_rows=300))
    width = 0.3 * X.std(axis=0)
    test = rng.uniform(-0.9, 0.9, size=(50, 2))
    weights = np.exp(-0.5 * (((test[:, None] - X[None]) / width) ** 2).sum(axis=2))
    np.testing.assert_allclose(found.predict(test), weights @ y / weights.sum(axis=1), atol=2e-3)
    assert np.isfinite(found.predict([[100.0, 100.0]])).all()
    whole = found.predict(test)
    monkeypatch.setattr(neighbours, "AROUND", 3000)
    assert np.array_equal(found.predict(test), whole)
    with pytest.raises(InputError, match="more than 100 cells are occupied: take fewer"):
        KernelRegression(0.3, cells=20, most_cells=100).fit(X, y)


@given(st.integers(0, 99), st.sampled_from([3, 1 << 40]))
def test_cells_are_sorted_by_their_features_in_turn_and_summed(seed: int, span: int) -> None:
    rng = np.random.default_rng(seed)
    index = rng.integers(-span, span, (200, 3))[rng.integers(0, 60, 200)]
    sums = rng.integers(0, 9, (200, 2)).astype(float)
    found = neighbours._unique(index, sums, 200)
    place, where = np.unique(index, axis=0, return_inverse=True)
    assert np.array_equal(found.place, place)
    assert np.array_equal(found.sums, [sums[where == n].sum(axis=0) for n in range(len(place))])


@pytest.mark.parametrize("curve", sorted(CURVES))
def test_curves_are_fitted_as_by_scipy(curve: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(500, 2))
    y = np.exp(0.2 + 0.3 * X[:, 0] - 0.2 * X[:, 1]) + 0.02 * rng.normal(size=500)
    ours = NonlinearRegression(curve).fit(arrays(X, y, part_rows=60))
    assert NonlinearRegression(curve).fit(X, y, np.full(500, 2.0)).mse_ == pytest.approx(ours.mse_, rel=1e-6)
    scaled = ((X - ours.centre_) / ours.scale_).T
    peer = least_squares(
        lambda p: CURVES[curve](p, scaled)[0] - y, np.zeros(len(ours.parameters_)), xtol=1e-15, ftol=1e-15, gtol=1e-15
    )
    np.testing.assert_allclose(ours.parameters_, peer.x, rtol=1e-6, atol=1e-7)
    value, slopes = CURVES[curve](peer.x, scaled)
    for n in range(len(peer.x)):
        step = np.zeros(len(peer.x))
        step[n] = 1e-6
        np.testing.assert_allclose((CURVES[curve](peer.x + step, scaled)[0] - value) / 1e-6, slopes[n], atol=1e-4)
    with pytest.raises(InputError, match="choices: exponential"):
        NonlinearRegression("cubic").fit(X, y)


WEIGHTS = {
    "check_sample_weight_equivalence_on_dense_data": "a weight is no repetition for draws by row, rows of leaves, neighbours"
}


@pytest.mark.long
@pytest.mark.parametrize(
    "estimator",
    [
        GradientBoosting(10),
        RandomForest(10),
        AdaBoost(5),
        KNeighbors(3),
        KernelRegression(),
        NonlinearRegression("quadratic"),
        MLPRegressor(validation=0),
        Incremental(validation=0),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_the_contract_of_scikit_learn_is_kept(estimator: Any) -> None:
    check_estimator(estimator, expected_failed_checks=WEIGHTS, on_skip=None)


@pytest.mark.long
def test_one_and_four_worker_processes_give_the_same_bits(tmp_path: Path) -> None:
    X, y = table(2000)
    batches = streaming(arrays(X, y, part_rows=150))
    estimators: list[Any] = [
        Ridge(None),
        GaussianMixture(3, max_iter=5),
        GradientBoosting(4, max_depth=3, scratch=tmp_path),
        RandomForest(3, max_depth=4, scratch=tmp_path),
        AdaBoost(3, max_depth=3, scratch=tmp_path),
        MLPRegressor((8,), epochs=3, scratch=tmp_path),
        KNeighbors(5),
        KernelRegression(),
        NonlinearRegression("quadratic"),
    ]
    found = []
    for workers in (1, 4):
        with connect(workers=workers):
            found.append([estimator.fit(batches).predict(X) for estimator in estimators])
    for estimator, one, four in zip(estimators, *found, strict=True):
        assert np.array_equal(one, four), estimator
