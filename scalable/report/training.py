"""The page of one model: what it was taught, how good it is, where it fails, with plots."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.kernels.metrics import DEFINITIONS, relative
from scalable.kernels.mixture import Parameters
from scalable.report import learning
from scalable.report.page import Section, write_page
from scalable.train.batches import Batches
from scalable.train.components import PCA
from scalable.train.mixture import GaussianMixture
from scalable.train.model import Model
from scalable.train.photoz import permutation_importance
from scalable.train.predict import draw_rows
from scalable.train.sample import Sample, draw
from scalable.train.tables import Data, batches_of

Floats = NDArray[np.float64]

SHOWN_ROWS = 100_000
MANY, FEW = 20, 5
"""Components of the two mixtures whose samples stand beside the data."""


def write_training_page(path: str | Path, model: Model, data: Data, *, test: Data | None = None, **table: Any) -> None:
    """Write one HTML page about a model; computes, from samples of at most 100,000 rows.

    Parameters
    ----------
    path : path
        The file to write.
    model : Model
        From `fit_photoz` or `fit_mixture`.
    data, test : Catalog, Batches, pyarrow.Table, path or sequence of paths
        The rows it was taught with, and others it has not seen; ``rules`` and ``key`` are handed on to `batches_of`.
    """
    sides = {"train": data} | ({"test": test} if test is not None else {})
    batches = {name: batches_of(side, model.features, target=model.target, **table) for name, side in sides.items()}
    samples = {name: draw(side, SHOWN_ROWS, seed=1) for name, side in batches.items()}
    parts = _of_redshifts(model, batches, samples) if model.target else _of_mixture(model, batches["train"], samples["train"])
    about = model.about
    summary = {"model": model.kind, "rows": f"{about['rows']:,}", "data": about["data"][:16], "digest": model.digest[:16]}
    write_page(
        Path(path),
        title=f"{model.target or 'Density'} from colours",
        subtitle=repr(model).splitlines()[0][1:-1],
        sections=parts,
        summary=summary,
    )


def _labels(batches: Batches) -> list[str]:
    units = batches.units or ("",) * len(batches.names)
    return [f"{name} [{unit}]" if unit else name for name, unit in zip(batches.names, units, strict=True)]


def _bins(values: Floats) -> Floats:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.linspace(float(low), float(high), 16)


def _of_redshifts(model: Model, batches: dict[str, Batches], samples: dict[str, Sample]) -> list[Section]:
    guesses = {name: (found.target, model.predict_columns(found.columns)) for name, found in samples.items()}
    labels = _labels(batches["train"])
    magnitude = {labels[0]: 0} if model.features.reference else {}
    target = f"Spectroscopic redshift {model.target}"
    spans = {target: _bins(samples["train"].target)}
    spans |= {name: _bins(samples["train"].columns[n]) for name, n in magnitude.items()}
    dz = {
        name: (
            {target: found.target} | {label: found.columns[n] for label, n in magnitude.items()},
            relative(guesses[name][1], found.target),
        )
        for name, found in samples.items()
    }
    sections = [
        Section(
            "Photometric against spectroscopic redshift",
            figure=lambda theme: learning.redshifts(guesses, theme=theme),
            caption="The broken line is equality.",
        ),
        Section("Residuals", figure=lambda theme: learning.residuals(spans, dz, theme=theme), table=_metrics(model)),
    ]
    if getattr(model.estimator, "loss_curve_", None):
        curves = {"training": model.estimator.loss_curve_, "validation": model.estimator.validation_curve_}
        sections.append(Section("Learning curve", figure=lambda theme: learning.learning_curves(curves, theme=theme)))
    if hasattr(model.estimator, "coef_") and model.transform is None:
        sections.append(Section("Equation", code=model.equation()))
    shares = permutation_importance(model, Batches(batches["train"].parts[:4], batches["train"].names, target=model.target))
    sections.append(
        Section(
            "What matters",
            figure=lambda theme: learning.importance(shares, theme=theme),
            caption="By how much the median |dz| of training rows grows when one feature is taken from other rows.",
        )
    )
    found = samples["train"]
    columns = np.vstack([found.columns, found.target])
    sections.append(
        Section("Colours and redshift", figure=lambda theme: learning.pairs(columns, [*labels, model.target], theme=theme))
    )
    sections.append(_variance(model, batches["train"]))
    return sections


def _variance(model: Model, batches: Batches) -> Section:
    pca = model.transform if isinstance(model.transform, PCA) else PCA().fit(batches)
    ratios = pca.explained_variance_ratio_.tolist()
    return Section("Explained variance", figure=lambda theme: learning.explained_variance(ratios, theme=theme))


def _metrics(model: Model) -> pa.Table:
    found = model.about["metrics"]
    folds = {name: [fold[name] for fold in found["folds"]] for name in DEFINITIONS}
    columns = {
        "metric": list(DEFINITIONS),
        "training rows": [found["train"][name] for name in DEFINITIONS],
        "definition": list(DEFINITIONS.values()),
    }
    if found["folds"]:
        columns["unseen folds"] = [float(np.mean(folds[name])) for name in DEFINITIONS]
        columns["spread"] = [float(np.std(folds[name], ddof=1)) if len(found["folds"]) > 1 else None for name in DEFINITIONS]
    order = ["metric", "training rows", *(["unseen folds", "spread"] if found["folds"] else []), "definition"]
    return pa.table({name: columns[name] for name in order})


def _of_mixture(model: Model, batches: Batches, sample: Sample) -> list[Section]:
    labels, chosen = _labels(batches), model.estimator
    two = labels[0], labels[1] if len(labels) > 1 else labels[0]
    sections = [
        Section(
            "How many components",
            figure=lambda theme: learning.criteria(model.about["criteria"], theme=theme),
            caption=f"The least BIC is at {chosen.n_components} components; the likelihood of held-out rows may rise beyond.",
        )
    ]
    if len(labels) > 1:
        settings = {"covariance_type": chosen.covariance_type, "seed": chosen.seed, "tol": chosen.tol, "n_init": chosen.n_init}
        compared = GaussianMixture(FEW, **settings).fit_counts(batches, [FEW, MANY])
        shown = {f"{mixture.n_components} components": _two(mixture.parameters) for mixture in compared}
        drawn = {name: (draw_rows(two_of, 0, SHOWN_ROWS, 1)[0], two_of) for name, two_of in shown.items()}
        sections.append(
            Section(
                "Data and samples",
                figure=lambda theme: learning.mixture_samples(sample.columns[:2], drawn, two, theme=theme),
                caption=f"{FEW} and {MANY} components on the same axes. Judge by eye whether the fine structure is in the data.",
            )
        )
        sections += [Section(f"Components of {name}", table=_components(two_of, two)) for name, two_of in shown.items()]
    sections.append(Section("Pairs", figure=partial(_pairs, sample.columns, labels)))
    sections.append(_variance(model, batches))
    return sections


def _pairs(columns: Floats, labels: list[str], theme: Any) -> Any:
    return learning.pairs(columns, labels, theme=theme)


def _two(parameters: Parameters) -> Parameters:
    """Return a mixture in its first two features."""
    return Parameters(parameters.weights, parameters.means[:, :2], parameters.covariances[:, :2, :2])


def _components(parameters: Parameters, labels: tuple[str, str]) -> pa.Table:
    order = np.argsort(-parameters.weights)
    deviation = np.sqrt(np.diagonal(parameters.covariances, axis1=1, axis2=2))
    columns = {"weight": parameters.weights[order]}
    for n, label in enumerate(labels):
        columns[f"mean {label}"] = parameters.means[order, n]
        columns[f"deviation {label}"] = deviation[order, n]
    return pa.table(columns)
