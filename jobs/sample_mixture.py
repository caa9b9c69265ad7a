"""Fit a mixture and draw from it on a Dask cluster: python jobs/sample_mixture.py DATA... --magnitudes Y,J,H --out DIR.

DATA is a store, a HATS catalogue, or files. Writes DIR/mixture.h5, DIR/sample.parquet and DIR/report.json, with two-sample tests
against rows that were held out, and prints one line. What is there already is not made again, and a killed fit goes on where it
stopped.
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
    parser.add_argument("--out", type=Path, required=True, help="the folder to write")
    parser.add_argument("--magnitudes", required=True, help="columns in the order of the bands, with commas")
    parser.add_argument("--components", default="1,3,5,6,10,20", help="numbers of components; the least BIC is taken")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to draw (default: 100000)")
    parser.add_argument("--seed", type=int, default=0, help="of the split, the starts and the draw")
    parser.add_argument("--key", default="", help="column that identifies a row")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler")
    parser.add_argument("--workers", type=int, help="worker processes of the local cluster")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fit, draw and compare, and say what was done."""
    start = time.monotonic()
    saved, sample, state = (args.out / name for name in ("mixture.h5", "sample.parquet", "mixture.h5.state"))
    skipped = [path.name for path in (saved, sample) if path.exists()]
    table = scalable.open_rows(args.data)
    with scalable.connect(args.scheduler, workers=args.workers):
        if saved.exists():
            model = scalable.open_model(saved)
        else:
            features = scalable.Features(tuple(args.magnitudes.split(",")))
            counts = [int(text) for text in args.components.split(",")]
            model = scalable.fit_mixture(table, features, components=counts, seed=args.seed, key=args.key, checkpoint=state)
            model.save(saved)
            state.unlink(missing_ok=True)
        if not sample.exists():
            scalable.write_sample(scalable.sample_mixture(model, args.rows, seed=args.seed), sample)
        tests = scalable.sample_tests(model, table, seed=args.seed, key=args.key)
    return {
        "job": "sample_mixture",
        "out": str(args.out),
        "skipped": skipped,
        "components": model.estimator.n_components,
        "criteria": model.about["criteria"],
        "rows": args.rows,
        "tests": tests,
        "seconds": time.monotonic() - start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    args = parse_args(argv)
    report = run(args)
    (args.out / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    said = f"{report['components']} components, energy distance {report['tests']['energy']:.5f}"
    print(f"{said} ({report['tests']['energy_of_data']:.5f} within the data): {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
