"""The verbs that learn and use what was learned: train, evaluate, predict, sample."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from rich.table import Table

import scalable
from scalable.cli.console import connected, out, with_scheduler
from scalable.errors import ColumnError

OUTLIER_CLASS = "outlier_class"
"""What releases call the column that flags outliers: 0 for the other rows."""


def _listed(_: Any, __: Any, text: str | None) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _bins(_: Any, __: Any, texts: tuple[str, ...]) -> dict[str, list[float]]:
    """Read NAME=EDGE,EDGE,... options."""
    found = {}
    for text in texts:
        name, _, edges = text.partition("=")
        try:
            found[name] = [float(edge) for edge in edges.split(",")]
        except ValueError:
            raise click.BadParameter(f"{text!r} is not NAME=EDGE,EDGE,...") from None
        if len(found[name]) < 2 or sorted(set(found[name])) != found[name]:
            raise click.BadParameter(f"{text!r}: give two edges or more, ascending")
    return found


def _missing(_: Any, __: Any, texts: tuple[str, ...]) -> dict[str, str | float]:
    """Read STATE=VALUE options."""
    found: dict[str, str | float] = {}
    for text in texts:
        state, _, value = text.partition("=")
        try:
            found[state] = value if value in ("drop", "keep") else float(value)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not STATE=NUMBER, STATE=drop or STATE=keep") from None
    return found


def _edges(_: Any, __: Any, text: str | None) -> list[float]:
    """Read LOW,HIGH,BINS as the edges of so many equal bins."""
    if not text:
        return []
    try:
        low, high, bins = (float(part) for part in text.split(","))
        count = int(bins)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not LOW,HIGH,BINS") from None
    if not (low < high and 1 < count == bins):
        raise click.BadParameter(f"{text!r}: give a range and a whole number of bins, two or more")
    return [low + (high - low) * n / count for n in range(count + 1)]


def _counts(_: Any, __: Any, text: str) -> list[int]:
    """Read K,K,... as numbers of components."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not K,K,...") from None
    if min(counts) < 1:
        raise click.BadParameter(f"{text!r}: a mixture has one component or more")
    return counts


def _rules(survey: Path | None) -> dict[str, Any]:
    return dict(scalable.open_survey(survey).columns) if survey else {}


data_argument = click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
file_to_write = click.Path(path_type=Path, dir_okay=False)
split_option = click.option("--split", default="", metavar="NAME", help="Of a release: the rows of this split alone.")
rules_option = click.option(
    "--survey", type=click.Path(path_type=Path), help="Survey description whose null rules and units the columns of files have."
)


@click.command()
@data_argument
@click.option(
    "--magnitudes", callback=_listed, metavar="A,B,...", help="Columns in the order of the bands; neighbours make colours."
)
@click.option("--reference", default="", metavar="A", help="One of them that is a feature itself.")
@click.option("--others", callback=_listed, metavar="A,B,...", help="Further columns, taken as they are.")
@click.option(
    "--missing",
    callback=_missing,
    multiple=True,
    metavar="STATE=VALUE",
    help="What stands for values of a state, such as non_detection=28; drop leaves the row out, keep takes what was imputed.",
)
@click.option("--target", default="", metavar="COLUMN", help="Redshifts to learn; without it a mixture is fitted.")
@click.option(
    "--estimator",
    default="boosting",
    show_default=True,
    help="linear, ridge, lasso, elastic_net, sgd, boosting, forest, adaboost, network, neighbours, kernel or curve.",
)
@click.option("--pdf", callback=_edges, metavar="LOW,HIGH,BINS", help="Bins of the p(z) that a network or a forest is to give.")
@click.option(
    "--components", callback=_counts, default="5", show_default=True, metavar="K,K,...", help="Of a mixture: least BIC is taken."
)
@click.option("--test", multiple=True, type=click.Path(path_type=Path, exists=True), help="Files to judge on; repeat for more.")
@click.option("--compare", "compare_all", is_flag=True, help="Fit every estimator, in several ways, and judge each on --test.")
@click.option("--folds", default=5, show_default=True, help="Folds that the error is measured on; 0 for none.")
@click.option("--weight", default="", metavar="COLUMN", help="What each row counts; 0 leaves it out.")
@click.option("--key", default="", help="Column that identifies a row.")
@click.option("--sky-order", type=int, help="Keep pixels of this HEALPix order together in folds.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@split_option
@rules_option
@click.option("--model", type=file_to_write, default=Path("model.h5"), show_default=True, help="The file to write.")
@click.option("--page", type=file_to_write, help="Write a page with plots.")
@with_scheduler
def train(
    data: tuple[Path, ...],
    magnitudes: tuple[str, ...],
    reference: str,
    others: tuple[str, ...],
    missing: dict[str, str | float],
    target: str,
    estimator: str,
    pdf: list[float],
    components: list[int],
    test: tuple[Path, ...],
    compare_all: bool,
    folds: int,
    weight: str,
    key: str,
    sky_order: int | None,
    seed: int,
    split: str,
    survey: Path | None,
    model: Path,
    page: Path | None,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Teach a model redshifts, or fit a mixture, from a store, a catalogue, a release or files (DATA) of any size.

    What takes several passes keeps its state beside the model (MODEL.state) until it is done: type the same again after a kill.
    """
    if split and test:
        raise click.UsageError("--split is of the rows to learn from: judge the model with scalable evaluate --split test")
    if compare_all and not (target and test):
        raise click.UsageError("--compare needs --target and --test")
    if test and not target:
        raise click.UsageError("--test needs --target: a mixture is judged on rows of DATA that it is not fitted to")
    features = scalable.Features(magnitudes, reference=reference, others=others, missing={"imputed": "keep", **missing})
    learner = scalable.estimator_of(estimator, **({"bins": pdf} if pdf else {})) if target else None
    rules = _rules(survey)
    how: dict[str, Any] = {"target": target, "weight": weight, "key": key, "sky_order": sky_order, "split": split}
    table = scalable.open_rows(data)
    rows = scalable.batches_of(table, features, rules=rules, **how)
    unseen = scalable.open_rows(test) if test else None
    judge = None if unseen is None else scalable.batches_of(unseen, features, target=target, rules=rules)
    state = model.with_name(model.name + ".state")
    with connected(scheduler, workers, default="threads"):
        if compare_all:
            whole = replace(features, missing={})
            taught = scalable.batches_of(table, whole, rules=rules, **how)
            unflagged = None
            # Headers are looked at, and lack at most this column.
            with suppress(ColumnError):
                rule = scalable.ClassRule((OUTLIER_CLASS,), (0.0,), OUTLIER_CLASS)
                unflagged = scalable.batches_of(table, replace(features, classes=rule), rules=rules, **how)
            variants = scalable.usual_variants(rows, judge, unflagged)
            if taught.count() < rows.count():
                judged = scalable.batches_of(unseen, whole, target=target, rules=rules)
                variants.append(scalable.Variant("taught and judged on whole rows", taught, judged))
            _show_comparison(scalable.compare(rows, judge, features, variants=variants, seed=seed))
            return
        if target:
            settings: dict[str, Any] = {"estimator": learner, "folds": folds, "seed": seed, "checkpoint": state}
            found = scalable.fit_photoz(rows, features, target=target, **settings)
        else:
            found = scalable.fit_mixture(rows, features, components=components, seed=seed, checkpoint=state)
        found.save(model)
        # A fit in one pass keeps no state: one that lies there is another's.
        if learner is None or "checkpoint" in learner.get_params():
            state.unlink(missing_ok=True)
        if target:
            _show_metrics(found, None if judge is None else scalable.evaluate(found, judge).to_pylist()[0])
        else:
            _show_criteria(found)
        if page is not None:
            scalable.write_training_page(page, found, rows, test=judge)
    out.print(repr(found), markup=False, soft_wrap=True)
    verb = f"scalable predict {model} DATA --to OUT" if target else f"scalable sample {model} --rows 100000 --to sample.parquet"
    out.print(f"saved in {model}; use it with: {verb}", markup=False, soft_wrap=True)


def _show_metrics(model: Any, test: dict[str, float] | None) -> None:
    found = model.about["metrics"]
    heads = [*(["test rows"] if test else []), *(["unseen folds", "spread"] if found["folds"] else [])]
    table = Table("metric", "training rows", *heads)
    for name, value in found["train"].items():
        unseen = [fold[name] for fold in found["folds"]]
        mean = sum(unseen) / len(unseen) if unseen else 0.0
        spread = (sum((one - mean) ** 2 for one in unseen) / max(len(unseen) - 1, 1)) ** 0.5
        numbers = [value, *([test[name]] if test else []), *([mean, spread] if unseen else [])]
        table.add_row(name, *(f"{number:.5f}" for number in numbers))
    out.print(table)


def _show_criteria(model: Any) -> None:
    table = Table("components", "log likelihood", "held out", "BIC", "AIC", "passes")
    for row in model.about["criteria"]:
        held = "" if row["held_out"] is None else f"{row['held_out']:.4f}"
        numbers = (f"{row['train']:.4f}", held, f"{row['bic']:,.0f}", f"{row['aic']:,.0f}", str(row["passes"]))
        table.add_row(str(row["components"]), *numbers)
    out.print(table)


def _show_comparison(found: Any) -> None:
    table = Table("estimator", "variant", "rows", "train", "test", "best", "seconds", "chosen", "note")
    for row in found.to_pylist():
        numbers = [f"{row['rows']:,}", *(f"{row[name]:.4f}" for name in ("train", "test", "test_best"))]
        table.add_row(row["estimator"], row["variant"], *numbers, f"{row['seconds']:.1f}", row["chosen"], row["note"])
    out.print(table)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@data_argument
@click.option("--bins", multiple=True, callback=_bins, metavar="NAME=A,B,...", help="Edges of bins of a feature or the target.")
@split_option
@rules_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_scheduler
def evaluate(
    model: Path,
    data: tuple[Path, ...],
    bins: dict[str, list[float]],
    split: str,
    survey: Path | None,
    as_json: bool,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Measure MODEL on rows with known redshifts: every metric by its id, overall and in bins, and those of its p(z)."""
    judged, table, how = scalable.open_model(model), scalable.open_rows(data), {"rules": _rules(survey), "split": split}
    with connected(scheduler, workers, default="threads"):
        found = scalable.evaluate(judged, table, bins=bins, **how).to_pylist()
        if getattr(judged.estimator, "bins", None) is not None:
            densities = scalable.evaluate_pdf(judged, table, **how)
            found = [{**row, **{name: math.nan if row["by"] else value for name, value in densities.items()}} for row in found]
    if as_json:
        click.echo(json.dumps([{name: None if value != value else value for name, value in row.items()} for row in found]))
        return
    heads = ["all" if not row["by"] else f"{row['by']}\n{row['low']:g} to {row['high']:g}" for row in found]
    table = Table("metric", *heads)
    for name in found[0]:
        if name not in ("by", "low", "high"):
            cells = ("" if math.isnan(row[name]) else f"{row[name]:,}" if name == "rows" else f"{row[name]:.5f}" for row in found)
            table.add_row(name, *cells)
    out.print(table)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@data_argument
@click.option("--to", type=click.Path(path_type=Path), required=True, help="A catalogue to write; for files, a .parquet file.")
@click.option("--pdf", is_flag=True, help="Add the probability of each bin, from a model that gives one.")
@rules_option
@with_scheduler
def predict(
    model: Path, data: tuple[Path, ...], to: Path, pdf: bool, survey: Path | None, scheduler: str | None, workers: int | None
) -> None:
    """Predict with MODEL for every row of a store, a catalogue or files (DATA)."""
    found, table = scalable.open_model(model), scalable.open_rows(data)
    with connected(scheduler, workers, default="threads"):
        if isinstance(table, list):
            rows = scalable.predict_files(table, found, to, pdf=pdf, rules=_rules(survey))
        else:
            rows = scalable.write_catalog(scalable.predict(table, found, pdf=pdf), to).rows
    out.print(f"{rows:,} rows written to {to}", markup=False, soft_wrap=True)


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--rows", default=100_000, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0))
@click.option("--to", type=click.Path(path_type=Path), required=True, help="The .parquet file to write.")
def sample(model: Path, rows: int, seed: int, to: Path) -> None:
    """Draw rows from the mixture in MODEL; the same rows for the same seed, whatever the machine's size."""
    drawn = scalable.write_sample(scalable.sample_mixture(scalable.open_model(model), rows, seed=seed), to)
    out.print(f"{drawn:,} rows written to {to}", markup=False, soft_wrap=True)


VERBS = (train, evaluate, predict, sample)
