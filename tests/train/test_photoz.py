"""From files to redshifts: fit, evaluate, save, predict lazily; what is refused, and the figures on real galaxies."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import dask
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table
from sklearn.ensemble import RandomForestRegressor as PeerForest
from sklearn.linear_model import SGDRegressor
from sklearn.neural_network import MLPRegressor as PeerNetwork

from scalable.catalog.collection import Collection
from scalable.errors import ColumnError, InputError, StoreError
from scalable.io.arrays import read_arrays, write_arrays
from scalable.kernels.counter import poisson
from scalable.kernels.features import ClassRule, Features
from scalable.report.training import write_training_page
from scalable.survey.tables import ColumnRule, NullRule
from scalable.testing import no_compute
from scalable.train.components import PCA, Standardizer
from scalable.train.goodness import sample_tests
from scalable.train.incremental import Incremental
from scalable.train.linear import LinearRegression
from scalable.train.metrics import metrics_of
from scalable.train.model import Model, open_model
from scalable.train.network import MLPRegressor
from scalable.train.photoz import estimator_of, evaluate, evaluate_pdf, fit_mixture, fit_photoz, permutation_importance
from scalable.train.predict import predict, sample_mixture, to_qp
from scalable.train.tables import batches_of, left_out
from scalable.train.trees import AdaBoost, GradientBoosting, RandomForest

BANDS = ("g", "r", "i")


def galaxies(rows: int, seed: int = 0, noise: float = 0.02) -> pa.Table:
    rng = np.random.default_rng(seed)
    z = rng.uniform(0, 0.5, rows)
    base = rng.uniform(17, 21, rows)
    mags = [base + slope * z + noise * rng.normal(size=rows) for slope in (4.0, 1.0, 0.2)]
    fields = [pa.field(band, pa.float64(), metadata={"unit": "mag"}) for band in BANDS]
    fields += [pa.field("z", pa.float64()), pa.field("id", pa.int64())]
    return pa.table([*mags, z, np.arange(rows)], schema=pa.schema(fields))


FEATURES = Features(BANDS, reference="r")


@pytest.fixture(scope="module")
def model() -> Model:
    return fit_photoz(galaxies(3000), FEATURES, target="z", estimator="ridge", folds=3, key="id")


def test_a_model_knows_what_it_was_taught_with_and_how_good_it_is(model: Model) -> None:
    assert model.about["rows"] == 3000
    assert model.about["left_out"] == {"used": 3000}
    assert model.units == {"g": "mag", "r": "mag", "i": "mag"}
    train, folds = model.about["metrics"]["train"], model.about["metrics"]["folds"]
    assert len(folds) == 3
    assert all(0.3 < fold["median_abs"] / train["median_abs"] < 3 for fold in folds)
    table = galaxies(3000)
    assert train == pytest.approx(metrics_of(predict(table, model)["z_phot"].to_numpy(), table["z"].to_numpy()), rel=1e-9)
    assert model.equation().startswith("z = ")
    assert "1/mag (g - r)" in model.equation()


def test_every_format_gives_the_same_rows(tmp_path: Path, model: Model) -> None:
    table = galaxies(500)
    pq.write_table(table, tmp_path / "t.parquet")
    plain = Table({name: table[name].to_numpy() for name in table.column_names})
    for band in BANDS:
        plain[band].unit = "mag"
    paths = [tmp_path / "t.parquet"]
    for name, kind in (("t.fits", "fits"), ("t.vot", "votable"), ("t.ecsv", "ascii.ecsv"), ("t.hdf5", "hdf5")):
        plain.write(tmp_path / name, format=kind, **({"path": "data", "serialize_meta": True} if kind == "hdf5" else {}))
        paths.append(tmp_path / name)
    digests = {path.suffix: batches_of(path, FEATURES, target="z").digest() for path in paths}
    assert len(set(digests.values())) == 1, digests
    twice = batches_of([paths[1], paths[1]], FEATURES, target="z")
    assert twice.count() == 1000
    assert evaluate(model, paths[2])["rows"][0].as_py() == 500


def test_null_rules_states_and_missing_targets_are_counted(tmp_path: Path) -> None:
    table = galaxies(100).to_pydict()
    table["g"][:3] = [99.0, -9.999, float("nan")]
    table["z"][5] = float("nan")
    Table(table).write(tmp_path / "t.fits")
    rules = {
        "g": ColumnRule(
            unit="mag", nulls=(NullRule(value=99.0, state="non_detection"), NullRule(value=-9.999, state="not_observed"))
        )
    }
    batches = batches_of(tmp_path / "t.fits", FEATURES, target="z", rules=rules)
    assert left_out(batches) == {"used": 96, "non_detection": 1, "not_observed": 1, "sentinel": 1, "no target or weight": 1}
    filled = Features(BANDS, reference="r", missing={"non_detection": 28.0})
    assert batches_of(tmp_path / "t.fits", filled, target="z", rules=rules).count() == 97


def test_rows_of_weight_0_are_left_out_and_weights_below_are_refused() -> None:
    table = galaxies(400)
    weight = np.where(np.arange(400) < 150, 0.0, 2.0)
    weight[399] = np.nan
    weighted = table.append_column("w", pa.array(weight))
    batches = batches_of(weighted, FEATURES, target="z", weight="w")
    assert left_out(batches) == {"used": 249, "no target or weight": 1, "weight 0": 150}
    assert batches.digest() == batches_of(weighted.slice(150, 249), FEATURES, target="z", weight="w").digest()
    model = fit_photoz(weighted, FEATURES, target="z", weight="w", estimator="neighbours", folds=0)
    assert np.isfinite(predict(table, model)["z_phot"].to_numpy()).all()
    weight[3] = -1.5
    with pytest.raises(InputError, match=r"w is -1\.5 in a row: a weight is 0"):
        fit_photoz(table.append_column("w", pa.array(weight)), FEATURES, target="z", weight="w", estimator="linear")


def test_folds_without_rows_are_refused_before_the_fit() -> None:
    table = galaxies(300)
    for folds in (1, -2):
        with pytest.raises(InputError, match=f"folds={folds}: give two or more"):
            fit_photoz(table, FEATURES, target="z", folds=folds)
    rng = np.random.default_rng(0)
    sky = {"ra": 10 + 0.1 * rng.random(300), "dec": 0.1 * rng.random(300)}
    near = pa.table({**{name: table[name] for name in table.column_names}, **sky})
    with pytest.raises(InputError, match=r"4 of 5 folds would have no row: .* take fewer folds, or finer pixels"):
        fit_photoz(near, Features(BANDS), target="z", estimator=Untaught(), sky_order=3)


class Untaught(LinearRegression):
    """An estimator that must not be fitted."""

    def fit(self, X: object, y: object = None, sample_weight: object = None) -> Untaught:
        raise AssertionError


@pytest.mark.parametrize("large", [2**60, -(2**60)])
def test_the_identity_of_a_row_does_not_depend_on_nulls_beside_it(large: int) -> None:
    table = galaxies(4).drop_columns("id")
    ids = [large + 1, large + 2, None, 7]
    batches = batches_of(table.append_column("id", pa.array(ids, pa.int64())), FEATURES, key="id")
    keys = np.concatenate([block.keys for block in batches.blocks()])
    assert keys[[0, 1, 3]].astype(np.int64).tolist() == [large + 1, large + 2, 7]


@pytest.mark.parametrize(
    "estimator",
    [
        "sgd",
        *(
            pytest.param(other, marks=pytest.mark.long)
            for other in (
                "linear",
                "lasso",
                RandomForest(5),
                MLPRegressor(epochs=2),
                GradientBoosting(5),
                AdaBoost(4),
                "neighbours",
                "kernel",
                "curve",
            )
        ),
    ],
    ids=str,
)
def test_a_model_file_predicts_the_same_bits_in_a_fresh_process(estimator: object, tmp_path: Path) -> None:
    table = galaxies(400)
    model = fit_photoz(
        table, FEATURES, target="z", estimator=estimator, folds=0, transform=PCA(2) if estimator == "linear" else None
    )
    model.save(tmp_path / "model.h5")
    again = open_model(tmp_path / "model.h5")
    assert again.digest == model.digest
    assert again.about == model.about
    before = predict(table, model)["z_phot"].to_numpy()
    assert np.array_equal(predict(table, again)["z_phot"].to_numpy(), before)
    pq.write_table(table, tmp_path / "t.parquet")
    code = (
        "import sys, pyarrow.parquet as pq; from scalable import open_model, predict\n"
        "pq.write_table(predict(pq.read_table(sys.argv[1]), open_model(sys.argv[2])), sys.argv[3])"
    )
    paths = [str(tmp_path / name) for name in ("t.parquet", "model.h5", "out.parquet")]
    subprocess.run([sys.executable, "-c", code, *paths], check=True)
    assert np.array_equal(pq.read_table(paths[2])["z_phot"].to_numpy(), before)
    some = predict(table.slice(17, 5), model)["z_phot"].to_numpy()
    assert np.array_equal(some, before[17:22])


def test_other_units_and_bands_are_refused(model: Model) -> None:
    table = galaxies(10)
    flux = table.set_column(0, pa.field("g", pa.float64(), metadata={"unit": "nJy"}), table["g"])
    with pytest.raises(ColumnError, match="g is in nJy, the model was taught with mag"):
        predict(flux, model)
    bare = table.set_column(0, pa.field("g", pa.float64()), table["g"])
    with pytest.raises(ColumnError, match="g is without unit, the model was taught with a column in mag"):
        predict(bare, model)
    with pytest.raises(ColumnError, match="no column 'g': the model was taught with the bands g, r, i"):
        predict(table.drop_columns("g"), model)
    with pytest.raises(ColumnError, match="gives no p"):
        predict(table, model, pdf=True)
    with pytest.raises(ColumnError, match="already"):
        predict(table, model, column="z")
    mixed = table.set_column(0, pa.field("g", pa.float64(), metadata={"unit": "nJy"}), table["g"])
    with pytest.raises(ColumnError, match=r"no colour of g \[nJy\] and r \[mag\]"):
        fit_photoz(mixed, FEATURES, target="z")
    with pytest.raises(InputError, match="did you mean 'boosting'"):
        fit_photoz(table, FEATURES, target="z", estimator="bosting")


def test_what_judges_a_model_has_its_units_too(model: Model, tmp_path: Path) -> None:
    table = galaxies(200)
    thousands = [pa.compute.multiply(table[band], 1000.0) for band in BANDS]
    fields = [pa.field(band, pa.float64(), metadata={"unit": "mmag"}) for band in BANDS]
    other = pa.table([*thousands, table["z"]], schema=pa.schema([*fields, pa.field("z", pa.float64())]))
    with pytest.raises(ColumnError, match="a table in memory: g is in mmag, the model was taught with mag: convert"):
        evaluate(model, other)
    with pytest.raises(ColumnError, match="g is in mmag"):
        evaluate(model, batches_of(other, FEATURES, target="z"))
    with pytest.raises(ColumnError, match="g is in mmag"):
        write_training_page(tmp_path / "page.html", model, table, test=other)
    forest = fit_photoz(table, FEATURES, target="z", estimator=RandomForest(2, bins=EDGES.tolist()), folds=0)
    with pytest.raises(ColumnError, match="g is in mmag"):
        evaluate_pdf(forest, other)
    with pytest.raises(ColumnError, match="g is in mmag"):
        sample_tests(fit_mixture(table, Features(BANDS), components=1), other)


class Mine(SGDRegressor):
    """A class that no file may name."""


def test_regressors_of_others_learn_in_steps_or_are_refused(tmp_path: Path) -> None:
    table = galaxies(300)
    peer = PeerNetwork(hidden_layer_sizes=(8,), random_state=1)
    model = fit_photoz(table, FEATURES, target="z", estimator=peer, folds=2)
    assert model.kind == "MLPRegressor"
    assert isinstance(model.estimator, Incremental)
    assert not hasattr(peer, "coefs_")
    model.save(tmp_path / "model.h5")
    again = open_model(tmp_path / "model.h5")
    assert again.digest == model.digest
    assert np.array_equal(predict(table, again)["z_phot"].to_numpy(), predict(table, model)["z_phot"].to_numpy())
    mine = fit_photoz(table, FEATURES, target="z", estimator=Mine(), folds=0)
    assert np.isfinite(predict(table, mine)["z_phot"].to_numpy()).all()
    with pytest.raises(InputError, match="Mine cannot be kept in a file"):
        mine.save(tmp_path / "mine.h5")
    assert estimator_of(SGDRegressor(alpha=0.5), epochs=3).estimator.alpha == 0.5
    with pytest.raises(InputError, match="RandomForestRegressor cannot learn in steps .* take one of linear, ridge"):
        fit_photoz(table, FEATURES, target="z", estimator=PeerForest())


def test_damaged_and_foreign_model_files_are_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    model.save(path)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(100, len(whole), 40):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        if place < 512:
            continue
        with pytest.raises(StoreError, match="damaged"):
            open_model(path)
    path.write_bytes(whole[:-10])
    with pytest.raises(StoreError, match="damaged"):
        open_model(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1.0
    with pytest.raises(StoreError, match="no model of ours"):
        open_model(path)
    with pytest.raises(StoreError, match="no such file"):
        open_model(tmp_path / "none.h5")


def beyond(arrays: dict[str, np.ndarray], name: str, values: object) -> None:
    arrays[f"estimator.{name}"] = np.full_like(arrays[f"estimator.{name}"], values)


@pytest.mark.parametrize(
    ("estimator", "harm"),
    [
        (GradientBoosting(2), lambda arrays: beyond(arrays, "forest_.feature", 3)),
        (GradientBoosting(2), lambda arrays: beyond(arrays, "forest_.left", 0)),
        (GradientBoosting(2), lambda arrays: beyond(arrays, "forest_.right", 10**9)),
        (GradientBoosting(2), lambda arrays: beyond(arrays, "forest_.starts", 5)),
        (GradientBoosting(2), lambda arrays: arrays.update({"estimator.forest_.value": np.zeros(1)})),
        (GradientBoosting(2), lambda arrays: arrays.update({"estimator.forest_.left": np.zeros(1)})),
        (RandomForest(2, bins=[0, 0.2, 1]), lambda arrays: arrays.update({"estimator.shares_": np.zeros((1, 2), np.float32)})),
        (MLPRegressor((4,), epochs=1), lambda arrays: arrays.update({"estimator.weights_.0": np.zeros((300, 4))})),
        (MLPRegressor((4,), epochs=1), lambda arrays: arrays.update({"estimator.biases_.1": np.zeros(0)})),
    ],
)
def test_a_model_whose_arrays_would_lead_out_of_memory_is_refused(
    estimator: object, harm: Callable[[dict[str, np.ndarray]], None], tmp_path: Path
) -> None:
    path = tmp_path / "model.h5"
    fit_photoz(galaxies(300), FEATURES, target="z", estimator=estimator, folds=0).save(path)
    arrays, said, _ = read_arrays(path)
    harm(arrays)
    write_arrays(path, arrays, said)
    with pytest.raises(StoreError, match="not what a model of this version holds"):
        open_model(path)


def test_a_mixture_of_other_dimensions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.h5"
    fit_mixture(galaxies(300), FEATURES, components=2).save(path)
    arrays, said, _ = read_arrays(path)
    arrays["estimator.means_"] = arrays["estimator.means_"][:, :1]
    write_arrays(path, arrays, said)
    with pytest.raises(StoreError, match="its components do not fit each other"):
        open_model(path)


def test_prediction_over_a_catalogue_is_lazy_and_the_same_for_any_partitions(synthetic: Collection) -> None:
    detections = synthetic.detections
    features = Features((), others=("Flux1", "dFlux1"))
    with dask.config.set(scheduler="sync"):
        table = detections.select("Flux1", "dFlux1", "Mag1").compute()
        model = fit_photoz(detections, features, target="Mag1", estimator=GradientBoosting(3), folds=0)
    with no_compute():
        lazy = predict(detections, model, column="guess")
        assert "guess" in lazy.columns
        assert lazy.columns["guess"].unit == detections.columns["Mag1"].unit
        assert "GradientBoosting" in repr(lazy)
    expected = predict(table, model, column="guess")["guess"]
    found = [lazy.repartition(n).compute()["guess"] for n in (1, 3, 12)]
    assert all(one.equals(expected) or one.combine_chunks().equals(expected.combine_chunks()) for one in found)
    for number in (3, 12):
        parts = batches_of(detections.repartition(number), features, target="Mag1")
        assert len(parts.parts) > 1
        assert parts.digest() == model.about["data"]
    missing = np.isnan(table["Flux1"].fill_null(np.nan).to_numpy())
    assert expected.null_count == missing.sum()
    assert lazy.select("guess").where("guess > 0").compute().column_names == ["guess"]
    assert "guess" not in lazy.select("object_id").compute().column_names
    assert lazy.history[-1]["digest"] == model.digest


EDGES = np.linspace(0, 0.6, 31)


@pytest.mark.parametrize(
    "estimator",
    [MLPRegressor((16,), bins=EDGES.tolist(), epochs=60), RandomForest(20, least_rows=20, bins=EDGES.tolist())],
    ids=["network", "forest"],
)
def test_densities_are_those_that_qp_reads(estimator: object, tmp_path: Path) -> None:
    train, test = galaxies(2000, noise=0.2), galaxies(500, seed=1, noise=0.2)
    model = fit_photoz(train, FEATURES, target="z", estimator=estimator, folds=0)
    model.save(tmp_path / "m.h5")
    found = predict(test, open_model(tmp_path / "m.h5"), pdf=True)
    shares = np.array(found["z_phot_pdf"].to_pylist())
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, rtol=1e-5)
    # The mean of a forest is that of the rows, not of the middles of bins.
    close = 1e-5 if isinstance(estimator, MLPRegressor) else 0.01
    np.testing.assert_allclose(shares @ ((EDGES[1:] + EDGES[:-1]) / 2), found["z_phot"].to_numpy(), atol=close)
    scores = evaluate_pdf(model, test)
    assert scores["pit_ks"] < 0.15
    assert 0 < scores["crps"] < 0.07
    with dask.config.set(scheduler="sync"):
        assert evaluate_pdf(model, batches_of(test, FEATURES, target="z").fold(range(3), 3, seed=0)) == pytest.approx(scores)
    pytest.importorskip("qp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        ensemble = to_qp(found, model)
        assert ensemble.npdf == 500
        np.testing.assert_allclose(ensemble.cdf(np.array([0.3]))[:, 0], shares[:, :15].sum(axis=1), atol=1e-5)
        np.testing.assert_allclose(ensemble.pdf(np.array([0.31]))[:, 0], shares[:, 15] / 0.02, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    "estimator", [MLPRegressor((16,), bins=EDGES.tolist(), epochs=1), AdaBoost(30, max_depth=2)], ids=["network", "AdaBoost"]
)
def test_a_prediction_needs_little_more_memory_than_it_returns_and_has_the_same_bits_in_any_cuts(
    estimator: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = fit_photoz(galaxies(500), FEATURES, target="z", estimator=estimator, folds=0)
    table, pdf = galaxies(100_000), isinstance(estimator, MLPRegressor)
    tracemalloc.start()
    found = predict(table, model, pdf=pdf)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # Features, their states and the result; what is said of a cut of rows on the way there.
    assert peak < 100_000 * (150 + 4 * 30 * pdf) + 8192 * 8 * 30 * 5
    monkeypatch.setattr("scalable.train.predict.CUT_ROWS", 1 << 20)
    assert predict(table, model, pdf=pdf).equals(found)


def test_a_forest_spreads_its_probability_as_the_rows_in_the_leaves() -> None:
    table = galaxies(600)
    forest = RandomForest(3, max_depth=4, bins=EDGES.tolist(), seed=2)
    batches = batches_of(table, FEATURES, target="z", key="id")
    columns, z = np.concatenate([block.columns for block in batches.blocks()], axis=1), table["z"].to_numpy()
    forest.fit(batches)
    leaf = forest.forest_.each(columns)  # values of leaves tell these apart
    seen = [poisson(np.arange(600, dtype=np.uint64), seed=2, stream=tree) for tree in range(3)]
    row = 17
    shares = []
    for tree in range(3):
        mates = leaf[tree] == leaf[tree, row]
        shares.append(np.histogram(z[mates], EDGES, weights=seen[tree][mates])[0] / seen[tree][mates].sum())
    np.testing.assert_allclose(forest.predict_pdf_columns(columns[:, [row]])[0], np.mean(shares, axis=0), atol=1e-6)


def test_a_mixture_is_chosen_by_its_bic_and_its_sample_does_not_depend_on_the_blocks() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 3, 3000)
    rows = rng.normal(size=(3000, 2)) * 0.3 + np.array([[0, 0], [2, 1], [-1, 3]])[centres]
    table = pa.table({"a": rows[:, 0], "b": rows[:, 1]})
    model = fit_mixture(table, Features((), others=("a", "b")), components=[1, 3, 5])
    criteria = model.about["criteria"]
    assert model.estimator.n_components == 3
    assert [row["components"] for row in criteria] == [1, 3, 5]
    assert criteria[1]["held_out"] > criteria[0]["held_out"] + 0.5
    with no_compute():
        samples = [sample_mixture(model, 100_000, seed=4, blocks=blocks) for blocks in (1, 3, 12)]
    drawn = [sample.compute() for sample in samples]
    assert [sample.npartitions for sample in samples] == [1, 3, 12]
    assert drawn[0].equals(drawn[1])
    assert drawn[0].equals(drawn[2])
    assert np.allclose(np.bincount(drawn[0]["component"]) / 100_000, model.estimator.weights_, atol=0.02)
    assert samples[2].where("component = 1").head(3)["component"].to_pylist() == [1, 1, 1]
    found = predict(table, model)
    assert found["log_density"].to_numpy().mean() == pytest.approx(model.estimator.score(rows), rel=1e-9)
    with pytest.raises(InputError, match="no density to draw from"):
        sample_mixture(fit_photoz(galaxies(50), FEATURES, target="z", estimator="linear", folds=0), 5)


def test_what_matters_is_found_by_shuffling_it(model: Model) -> None:
    found = permutation_importance(model, batches_of(galaxies(2000), FEATURES, target="z"))
    assert max(found, key=lambda name: found[name]) == "g - r"
    assert min(found.values()) > -1e-3


def test_linear_redshifts_of_real_galaxies_are_those_of_the_published_exercise(data: Path, tmp_path: Path) -> None:
    """Train on VOTable A, test on VOTable B, without positions, as published."""
    paths = {}
    for part in ("train", "test"):
        # The header has a name less than there are columns; the first six are as it says.
        text = np.loadtxt(data / "photoz" / "sdss_mgs_mlz" / f"SDSS_MGS.{part}", usecols=range(6))
        table = Table(text, names=["zs", *"ugriz"])
        for band in "ugriz":
            table[band].unit = "mag"
        table.write(paths.setdefault(part, tmp_path / f"{part}.vot"), format="votable")
    colours = Features(("u", "g", "r", "i", "z"))
    model = fit_photoz(paths["train"], colours, target="zs", estimator="linear", folds=0)
    found = evaluate(model, paths["test"], bins={"zs": [0.0, 0.1, 0.2, 0.4]})
    assert model.about["metrics"]["train"]["median_abs"] == pytest.approx(0.0152, abs=5e-5)
    assert found["median_abs"][0].as_py() == pytest.approx(0.0142, abs=5e-5)
    assert found["rows"].to_pylist()[0] == 5000
    with_r = fit_photoz(
        paths["train"], Features(("u", "g", "r", "i", "z"), reference="r"), target="zs", estimator="linear", folds=0
    )
    assert evaluate(with_r, paths["test"])["median_abs"][0].as_py() == pytest.approx(0.0116, abs=5e-5)


def test_the_colours_of_real_stars_have_the_published_mixture(data: Path) -> None:
    pieces = []
    for field in (1, 2, 3):
        bands = {band: Table.read(data / "vvv" / f"Field-{field}-{band}.fits", unit_parse_strict="silent") for band in "YJH"}
        columns = {band: np.asarray(table["Mag1"], np.float64) for band, table in bands.items()}
        pieces.append(pa.table({**columns, "Class_Y": np.asarray(bands["Y"]["Class"], np.float64)}))
    stars = Features(("Y", "J", "H"), classes=ClassRule(("Class_Y",), (-1.0,), "Class_Y"))
    batches = batches_of(pa.concat_tables(pieces), stars)
    assert left_out(batches) == {"used": 21_196, "class": 30_000 - 21_212, "sentinel": 16}
    found = Standardizer().fit(batches)
    np.testing.assert_allclose(found.centre_, (-0.1516, 1.3375), atol=5e-5)
    np.testing.assert_allclose(found.scale_, (0.1711, 0.3889), atol=5e-5)
    model = fit_mixture(batches, stars, components=[1, 3, 5, 10, 20], n_init=2, tol=1e-3)
    criteria = {row["components"]: row for row in model.about["criteria"]}
    assert model.estimator.n_components == 10
    # The published values, for another fifth of the stars held out.
    for components, published in ((1, -0.005), (3, 1.254), (5, 1.307), (10, 1.328), (20, 1.332)):
        assert criteria[components]["held_out"] == pytest.approx(published, abs=0.1)
