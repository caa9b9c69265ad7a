"""Graphs that other runtimes predict with: the same redshifts, and a clear word where there is no exact graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from scalable.errors import InputError
from scalable.kernels.features import Features
from scalable.train.components import PCA, Standardizer
from scalable.train.network import MLPRegressor
from scalable.train.onnx_graph import to_onnx
from scalable.train.photoz import fit_photoz

FEATURES = Features(("g", "r", "i"), reference="r")


def galaxies() -> pa.Table:
    rng = np.random.default_rng(2)
    z = rng.uniform(0, 0.5, 300)
    slopes = {"g": 3.0, "r": 1.0, "i": 0.2}
    return pa.table({**{band: 20 + slope * z + 0.02 * rng.normal(size=300) for band, slope in slopes.items()}, "z": z})


@pytest.mark.parametrize(
    ("estimator", "transform"),
    [
        ("linear", None),
        ("ridge", PCA(2, whiten=True, robust=True)),
        ("lasso", Standardizer()),
        (MLPRegressor((8, 8), epochs=2), PCA(2)),
        (MLPRegressor((8,), epochs=2, bins=(0.0, 0.1, 0.2, 0.4, 0.6)), None),
    ],
    ids=str,
)
def test_another_runtime_predicts_the_same(estimator: Any, transform: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    table = galaxies()
    model = fit_photoz(table, FEATURES, target="z", estimator=estimator, transform=transform, folds=0)
    to_onnx(model, tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    columns, _ = model.table_features(table)
    found = dict(zip([out.name for out in session.get_outputs()], session.run(None, {"features": columns.T.copy()}), strict=True))
    assert found["prediction"].dtype == np.float64
    np.testing.assert_allclose(found["prediction"], model.predict_columns(columns), rtol=1e-11, atol=1e-12)
    assert ("pdf" in found) == (getattr(model.estimator, "bins", None) is not None)
    if "pdf" in found:
        np.testing.assert_allclose(found["pdf"], model.estimator.predict_pdf_columns(columns), rtol=1e-11, atol=1e-12)
    said = json.loads(session.get_modelmeta().custom_metadata_map["scalable"])
    assert said["names"] == ["r", "g - r", "r - i"]
    assert said["digest"] == model.digest


def test_what_no_graph_holds_exactly_is_refused(tmp_path: Path) -> None:
    model = fit_photoz(galaxies(), FEATURES, target="z", estimator="curve", folds=0)
    with pytest.raises(InputError, match=r"NonlinearRegression has no exact ONNX graph .*use the file of Model.save"):
        to_onnx(model, tmp_path / "model.onnx")
    assert not (tmp_path / "model.onnx").exists()
