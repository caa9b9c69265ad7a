"""Photometric redshifts: every estimator on real and simulated galaxies, train beside test; ten seeds of the network.

python -m benchmarks.suite.photoz [SET ...] [--json FILE]. Hyperparameters are chosen on training rows only.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.measure import DATA
from scalable.kernels.features import Features
from scalable.survey import ColumnRule, NullRule
from scalable.train.batches import Batches
from scalable.train.compare import CANDIDATES, compare
from scalable.train.incremental import OrderWarning
from scalable.train.tables import batches_of

FOLDS = 5
FEWER = ("linear", "nearest neighbours", "local planes", "gradient boosting", "network")
"""Estimators of the sets with folds, which are fitted as often as there are folds."""


def sdss(reference: str) -> tuple[Batches, Batches, Features]:
    """SDSS main galaxies, 5,000 to train and 5,000 to test with."""
    features = Features(("u", "g", "r", "i", "z"), reference=reference)
    tables = []
    for part in ("train", "test"):
        # The header has a name less than there are columns.
        columns = np.loadtxt(DATA / "photoz" / "sdss_mgs_mlz" / f"SDSS_MGS.{part}", usecols=range(6))
        tables.append(pa.table(dict(zip(["zs", *"ugriz"], columns.T, strict=True))))
    return (*(batches_of(table, features, target="zs") for table in tables), features)


def des(sky_order: int | None) -> tuple[Batches, Features]:
    """DES galaxies: sentinels and impossible values dropped by rules of their columns."""
    bands = [f"MAG_{band}" for band in "GRIZY"]
    nulls = (NullRule(at_most=0.0, state="sentinel"), NullRule(at_least=90.0, state="non_detection"))
    rules = {band: ColumnRule(unit="mag", nulls=nulls) for band in bands}
    features = Features(tuple(bands), reference="MAG_R")
    path = DATA / "photoz" / "des_dnf" / "valid.fits"
    return batches_of(path, features, target="Z", key="COADD_OBJECT_ID", sky_order=sky_order, rules=rules), features


def dc2() -> tuple[Batches, Batches, Features]:
    """DC2 galaxies, simulated; 99 is a non-detection, for which a faint magnitude stands."""
    bands = [f"mag_{band}_lsst" for band in "ugrizy"]
    rules = {band: ColumnRule(unit="mag", nulls=(NullRule(at_least=90.0, state="non_detection"),)) for band in bands}
    features = Features(tuple(bands), reference="mag_i_lsst", missing={"non_detection": 28.0})
    paths = [DATA / "photoz" / "rail_dc2_sim" / f"test_dc2_{part}_9816.hdf5" for part in ("training", "validation")]
    return (*(batches_of(path, features, target="redshift", rules=rules) for path in paths), features)


def folded(batches: Batches, features: Features) -> pa.Table:
    """Return the means over folds, and the deviation between them as spread."""
    some = {name: CANDIDATES[name] for name in FEWER}
    tables = []
    for fold in range(FOLDS):
        train = batches.fold([n for n in range(FOLDS) if n != fold], FOLDS, seed=3)
        tables.append(compare(train, batches.fold([fold], FOLDS, seed=3), features, candidates=some).to_pylist())
    rows = []
    for same in zip(*tables, strict=True):
        errors = [row["test"] for row in same]
        mean = {key: float(np.mean([row[key] for row in same])) for key in ("train", "test", "seconds")}
        rows.append({**same[0], **mean, "test_best": min(errors), "spread": float(np.std(errors, ddof=1))})
    return pa.Table.from_pylist(rows)


SETS: dict[str, Callable[[], pa.Table]] = {
    "SDSS main galaxies, four colours": lambda: compare(*sdss(""), seeds=10),
    "SDSS main galaxies, r and four colours": lambda: compare(*sdss("r"), seeds=10),
    "DES grizY, five random folds": lambda: folded(*des(None)),
    "DES grizY, five folds of order-3 pixels": lambda: folded(*des(3)),
    "DC2 simulated, i and five colours": lambda: compare(*dc2(), candidates={name: CANDIDATES[name] for name in FEWER}),
}
PUBLISHED = {
    "SDSS main galaxies, four colours": (0.0142, 0.0097),
    "SDSS main galaxies, r and four colours": (0.0116, 0.0085),
    "DES grizY, five random folds": (0.0516, 0.0117),
    "DES grizY, five folds of order-3 pixels": (None, 0.0124),
    "DC2 simulated, i and five colours": (0.0721, 0.0154),
}
"""median_abs of the linear fit and the best that was seen with defaults, by other people's tools on the same rows."""


def tables(names: list[str]) -> Iterator[tuple[str, pa.Table]]:
    """Compute the tables one after the other."""
    with warnings.catch_warnings():
        # DES galaxies are sorted by redshift within fields, which mixing makes harmless.
        warnings.simplefilter("ignore", OrderWarning)
        for name in names:
            yield name, SETS[name]()


def show(name: str, table: pa.Table) -> None:
    """Print one table."""
    linear, best = PUBLISHED[name]
    shown = Table("estimator", "train", "test", "best", "spread", "seconds", "note", title=f"{name}; others: {linear}, {best}")
    for row in table.to_pylist():
        numbers = [f"{row[key]:.4f}" for key in ("train", "test", "test_best", "spread")]
        shown.add_row(row["estimator"], *numbers, f"{row['seconds']:.1f}", row["note"])
    Console(width=140).print(shown)


def main(argv: list[str] | None = None) -> None:
    """Print the tables, and write them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"by default all of: {'; '.join(SETS)}")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    args = parser.parse_args(argv)
    found: dict[str, Any] = {}
    for name, table in tables(args.names or list(SETS)):
        show(name, table)
        found[name] = table.to_pylist()
        if args.json:
            args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
