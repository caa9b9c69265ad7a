"""Teach redshifts on a Dask cluster: python jobs/train_photoz.py DATA... --magnitudes g,r,i --target z --out model.h5.

DATA is a store, a HATS catalogue, or files. Writes the model, a JSON report beside it, and prints one line. A finished model is
not fitted again, and a killed fit of boosting or a network goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import scalable


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the flags."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+", help="a store, a HATS catalogue, or files of one format")
    parser.add_argument("--out", type=Path, required=True, help="the model to write")
    parser.add_argument("--magnitudes", required=True, help="columns in the order of the bands, with commas")
    parser.add_argument("--reference", default="", help="one of them that is a feature itself")
    parser.add_argument("--target", required=True, help="column with the redshifts")
    parser.add_argument(
        "--estimator", default="boosting", help="linear, ridge, boosting, forest, network, ... (default: boosting)"
    )
    parser.add_argument("--test", type=Path, nargs="+", help="files to judge on")
    parser.add_argument("--folds", type=int, default=5, help="folds that the error is measured on (default: 5)")
    parser.add_argument("--weight", default="", help="column with what each row counts; 0 leaves it out")
    parser.add_argument("--key", default="", help="column that identifies a row")
    parser.add_argument("--sky-order", type=int, help="keep pixels of this HEALPix order together in folds")
    parser.add_argument("--survey", type=Path, help="survey description with the null rules and units of the columns of files")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler")
    parser.add_argument("--workers", type=int, help="worker processes of the local cluster")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fit, judge and save, and say what was done."""
    start = time.monotonic()
    skipped = args.out.exists()
    state = args.out.with_name(args.out.name + ".state")
    rules = dict(scalable.open_survey(args.survey).columns) if args.survey else {}
    with scalable.connect(args.scheduler, workers=args.workers):
        if skipped:
            model = scalable.open_model(args.out)
        else:
            learner = scalable.estimator_of(args.estimator)
            model = scalable.fit_photoz(
                scalable.open_rows(args.data),
                scalable.Features(tuple(args.magnitudes.split(",")), reference=args.reference),
                target=args.target,
                estimator=learner,
                folds=args.folds,
                weight=args.weight,
                key=args.key,
                sky_order=args.sky_order,
                rules=rules,
                checkpoint=state,
            )
            model.save(args.out)
            # A fit in one pass keeps no state: one that lies there is another's.
            if "checkpoint" in learner.get_params():
                state.unlink(missing_ok=True)
        judged = scalable.evaluate(model, scalable.open_rows(args.test), rules=rules).to_pylist()[0] if args.test else None
    return {
        "job": "train_photoz",
        "out": str(args.out),
        "skipped": skipped,
        "model": model.kind,
        "digest": model.digest,
        "metrics": model.about["metrics"],
        "test": judged and {name: value for name, value in judged.items() if name not in ("by", "low", "high")},
        "rows": model.about["rows"],
        "left_out": model.about["left_out"],
        "seconds": time.monotonic() - start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    args = parse_args(argv)
    report = run(args)
    args.out.with_name(args.out.name + ".json").write_text(json.dumps(report, indent=1) + "\n")
    error = (report["test"] or report["metrics"]["train"])["median_abs"]
    where = "test" if report["test"] else "training"
    print(
        f"{report['model']}: median |dz| {error:.5f} on {where} rows{' (there already)' if report['skipped'] else ''}: {args.out}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
