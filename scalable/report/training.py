"""The page of one model: what it was taught, how good it is, where it fails, with plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.kernels.metrics import DEFINITIONS, relative
from scalable.kernels.mixture import Parameters, draw_rows
from scalable.report import learning
from scalable.report.page import Section, write_page
from scalable.train.batches import Batches, arrays
from scalable.train.components import PCA
from scalable.train.mixture import GaussianMixture
from scalable.train.model import Model
from scalable.train.photoz import batches_for, permutation_importance
from scalable.train.sample import Sample, draw
from scalable.train.tables import Data

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
    batches = {name: batches_for(model, side, **table) for name, side in sides.items()}
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


def labels_of(batches: Batches) -> list[str]:
    """Return the names of the features, with units."""
    units = batches.units or ("",) * len(batches.names)
    return [f"{name} [{unit}]" if unit else name for name, unit in zip(batches.names, units, strict=True)]


def _bins(values: Floats) -> Floats:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.linspace(float(low), float(high), 16)


def redshift_sections(model: Model, samples: Mapping[str, Sample], labels: Sequence[str]) -> list[Section]:
    """Return how good redshifts are: against the truth, by redshift and magnitude, and every metric.

    Parameters
    ----------
    model : Model
        From `fit_photoz`.
    samples : mapping of str to Sample
        Rows that it was taught with, and others, by what they are called; the first decide the frames.
    labels : sequence of str
        Names of the features, with units.
    """
    guesses = {name: (found.target, model.predict_columns(found.columns)) for name, found in samples.items()}
    magnitude = {labels[0]: 0} if model.features.reference else {}
    target = f"Spectroscopic redshift {model.target}"
    first = next(iter(samples.values()))
    spans = {target: _bins(first.target)}
    spans |= {name: _bins(first.columns[n]) for name, n in magnitude.items()}
    dz = {
        name: (
            {target: found.target} | {label: found.columns[n] for label, n in magnitude.items()},
            relative(guesses[name][1], found.target),
        )
        for name, found in samples.items()
    }
    return [
        Section(
            "Photometric against spectroscopic redshift",
            _taught(model),
            figure=lambda theme: learning.redshifts(guesses, theme=theme),
            caption="The broken line is equality.",
        ),
        Section("Residuals", figure=lambda theme: learning.residuals(spans, dz, theme=theme), table=_metrics(model)),
    ]


def _of_redshifts(model: Model, batches: dict[str, Batches], samples: dict[str, Sample]) -> list[Section]:
    labels = labels_of(batches["train"])
    sections = redshift_sections(model, samples, labels)
    if getattr(model.estimator, "loss_curve_", None):
        curves = {"training": model.estimator.loss_curve_, "validation": model.estimator.validation_curve_}
        sections.append(Section("Learning curve", figure=lambda theme: learning.learning_curves(curves, theme=theme)))
    if hasattr(model.estimator, "coef_") and model.transform is None:
        sections.append(Section("Equation", code=model.equation()))
    shown = samples["train"]
    rows = arrays(shown.columns.T, shown.target, names=batches["train"].names)
    shares = permutation_importance(model, rows)
    sections.append(
        Section(
            "What matters",
            figure=lambda theme: learning.importance(shares, theme=theme),
            caption="By how much the median |dz| of training rows grows when one feature is taken from other rows.",
        )
    )
    columns = np.vstack([shown.columns, shown.target])
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
    columns: dict[str, Any] = {"metric": list(DEFINITIONS), "training rows": [found["train"][name] for name in DEFINITIONS]}
    if found["folds"]:
        columns["unseen rows"] = [float(np.mean(folds[name])) for name in DEFINITIONS]
    if len(found["folds"]) > 1:
        columns["spread of folds"] = [float(np.std(folds[name], ddof=1)) for name in DEFINITIONS]
    return pa.table({**columns, "definition": list(DEFINITIONS.values())})


def _of_mixture(model: Model, batches: Batches, sample: Sample) -> list[Section]:
    labels, chosen = labels_of(batches), model.estimator
    settings = {"covariance_type": chosen.covariance_type, "seed": chosen.seed, "tol": chosen.tol, "n_init": chosen.n_init}
    counts = sorted({min(count, sample.columns.shape[1]) for count in (FEW, MANY)})
    compared = GaussianMixture(counts[0], **settings).fit_counts(arrays(sample.columns.T), counts)
    shown = " and ".join(str(count) for count in counts)
    text = f"{shown} components on the same axes. Judge by eye whether the fine structure is in the data."
    return [
        _criteria(model),
        *_samples([mixture.parameters for mixture in compared], sample, labels, text),
        Section("Pairs", figure=partial(_pairs, sample.columns, labels)),
        _variance(model, batches),
    ]


def mixture_sections(model: Model, sample: Sample, labels: Sequence[str]) -> list[Section]:
    """Return what a mixture makes of the data: how its number of components was chosen, and a sample beside the data.

    Parameters
    ----------
    model : Model
        From `fit_mixture`.
    sample : Sample
        Rows of the data.
    labels : sequence of str
        Names of the features, with units.
    """
    return [_criteria(model), *_samples([model.estimator.parameters], sample, labels, _tests(model))]


def _criteria(model: Model) -> Section:
    least = f"The least BIC is at {model.estimator.n_components} components; the likelihood of held-out rows may rise beyond."
    return Section(
        "Mixture: how many components",
        _taught(model),
        figure=lambda theme: learning.criteria(model.about["criteria"], theme=theme),
        caption=least,
    )


def _taught(model: Model) -> str:
    """Say what a model was taught with, and which rows were left out."""
    out = ", ".join(f"{number:,} {reason}" for reason, number in model.about["left_out"].items() if number and reason != "used")
    rows = (
        f"{model.kind} of {', '.join(model.features.names)}, taught with {model.about['rows']:,} rows of {model.about['origin']}"
    )
    return f"{rows}; left out: {out}." if out else f"{rows}."


def _tests(model: Model) -> str:
    """Say how a sample compares with rows held out."""
    found = model.about.get("tests")
    if not found:
        return ""
    said = [f"{name} {test['statistic']:.3f} (p = {test['pvalue']:.2g})" for name, test in found["ks"].items()]
    return (
        f"As many rows drawn as held out, {found['rows']:,}: Kolmogorov-Smirnov distance of {', '.join(said)}; energy distance "
        f"{found['energy']:.4f}, between two halves of the data {found['energy_of_data']:.4f}."
    )


def _samples(mixtures: Sequence[Parameters], sample: Sample, labels: Sequence[str], text: str) -> list[Section]:
    """Return data and samples of mixtures on the same axes, the first two features, and their components."""
    if len(labels) < 2:
        return []
    two = labels[0], labels[1]
    shown = {f"{len(mixture.weights)} components": _two(mixture) for mixture in mixtures}
    drawn = {name: (draw_rows(two_of, 0, SHOWN_ROWS, 1)[0], two_of) for name, two_of in shown.items()}
    return [
        Section(
            "Mixture: data and samples",
            figure=lambda theme: learning.mixture_samples(sample.columns[:2], drawn, two, theme=theme),
            caption=text,
        ),
        *(Section(f"Mixture of {name}", table=_components(two_of, two)) for name, two_of in shown.items()),
    ]


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
