"""Figures of models: what is drawn is what was given, in both themes, with nothing hidden; and the page that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from scalable.kernels.features import Features
from scalable.kernels.mixture import Parameters
from scalable.report import learning
from scalable.report.style import DARK, LIGHT, Theme
from scalable.report.training import write_training_page
from scalable.train.photoz import fit_mixture, fit_photoz


def texts(figure: Figure) -> str:
    return "\n".join(text.get_text() for axes in figure.axes for text in axes.texts)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=lambda theme: theme.name)
def test_redshifts_count_every_galaxy_and_give_the_median_error(theme: Theme) -> None:
    rng = np.random.default_rng(0)
    z = rng.uniform(0, 1, 1000)
    z[0] = 5.0
    figure = learning.redshifts({"train": (z, z), "test": (z, z + 0.1 * (1 + z))}, theme=theme)
    figure.canvas.draw()
    said = texts(figure)
    assert "1,000 galaxies, median |dz| 0.0000" in said
    assert "1,000 galaxies, median |dz| 0.1000; 1 outside" in said
    drawn = [mesh for axes in figure.axes[:2] for mesh in axes.collections]
    assert [int(mesh.get_array().sum()) for mesh in drawn] == [1000, 999]


def test_residuals_are_medians_of_bins() -> None:
    z = np.repeat([0.1, 0.3], 50)
    figure = learning.residuals({"z": np.array([0.0, 0.2, 0.4])}, {"test": ({"z": z}, np.where(z < 0.2, -1.0, 2.0))})
    assert figure.axes[0].lines[0].get_ydata().tolist() == [-1.0, 2.0]


def test_learning_curves_mark_the_least_of_the_validation() -> None:
    figure = learning.learning_curves({"training": [3.0, 2.0, 1.0], "validation": [3.0, 2.0, 2.5]})
    assert figure.axes[0].lines[2].get_xdata()[0] == 2
    assert "nothing was learnt" in texts(learning.learning_curves({"training": []}))


def test_pairs_and_mixtures_draw_every_row_and_component() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(2, 2000))
    figure = learning.pairs(np.vstack([rows, rows[:1]]), ["a", "b", "c"])
    figure.canvas.draw()
    assert len(figure.axes) == 9
    below = figure.axes[3].collections[0].get_array()
    assert abs(int(below.sum()) - 2000) <= 4
    parameters = Parameters(np.array([0.3, 0.7]), np.zeros((2, 2)), np.array([np.eye(2)] * 2))
    figure = learning.mixture_samples(rows, {"2 components": (rows, parameters)}, ("a", "b"))
    figure.canvas.draw()
    assert len(figure.axes[4].patches) == 2
    residual = figure.axes[5].collections[0].get_array()
    assert np.abs(residual).max() == 0


def test_criteria_mark_the_least_bic() -> None:
    rows = [{"components": n, "bic": bic, "train": n / 100, "held_out": n / 101} for n, bic in ((1, 5.0), (3, 1.0), (5, 2.0))]
    assert "least at 3 components" in texts(learning.criteria(rows))


@pytest.mark.long
def test_pages_are_made_of_few_rows_and_of_parts_without_redshifts(tmp_path: Path) -> None:
    g, r = np.random.default_rng(0).normal(20, 1, (2, 60))
    cuts = [slice(n, n + 10) for n in range(0, 60, 10)]
    parts = [pa.table({"g": g[cut], "r": r[cut], "z": g[cut] if n == 5 else np.full(10, np.nan)}) for n, cut in enumerate(cuts)]
    features = Features((), others=("g", "r"))
    model = fit_photoz(parts, features, target="z", estimator="linear", folds=0)
    write_training_page(tmp_path / "z.html", model, parts)
    assert "What matters" in (tmp_path / "z.html").read_text()
    mixture = fit_mixture(parts[0], features, components=1, held_out=0)
    write_training_page(tmp_path / "m.html", mixture, parts[0])
    page = (tmp_path / "m.html").read_text()
    for text in ("5 and 10 components on the same axes", "Mixture of 10 components"):
        assert text in page


@pytest.mark.long
def test_pages_of_models_say_what_they_were_taught_and_how_good_they_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    z = rng.uniform(0, 0.5, 600)
    table = pa.table({"g": 20 + 3 * z, "r": 20 + z + 0.02 * rng.normal(size=600), "i": 20 + 0.1 * rng.normal(size=600), "z": z})
    features = Features(("g", "r", "i"))
    model = fit_photoz(table, features, target="z", estimator="linear", folds=2)
    write_training_page(tmp_path / "z.html", model, table, test=table.slice(0, 100))
    page = (tmp_path / "z.html").read_text()
    for text in ("Residuals", "median_abs", "z = ", "Explained variance", "What matters", model.digest[:16]):
        assert text in page
    mixture = fit_mixture(table, features, components=[1, 2], tol=1e-2)
    write_training_page(tmp_path / "m.html", mixture, table)
    page = (tmp_path / "m.html").read_text()
    for text in ("Mixture: how many components", "Mixture: data and samples", "Mixture of 20 components", "deviation g - r"):
        assert text in page
