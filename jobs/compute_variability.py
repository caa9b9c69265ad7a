"""Compute light-curve statistics of a store on a Dask cluster: python jobs/compute_variability.py STORE --out DIR.

Writes a HATS catalogue with one row per object, a JSON report beside it, and prints one line. A finished result is not computed
again.
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
    parser.add_argument("store", help="a store made by ingest, or its URL")
    parser.add_argument("--out", type=Path, required=True, help="the catalogue to write")
    parser.add_argument("--statistics", nargs="+", metavar="NAME", help="statistics (default: the default set)")
    parser.add_argument("--values", nargs="+", help="flux or magnitude columns (default: the first flux)")
    parser.add_argument("--bands", nargs="+", help="bands (default: all)")
    parser.add_argument("--calibrate", metavar="BAND", help="divide the epochs of this band by their median flux ratio first")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler")
    parser.add_argument("--workers", type=int, help="worker processes of the local cluster")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Compute and write, and say what was done."""
    start = time.monotonic()
    skipped = args.out.exists()
    with scalable.connect(args.scheduler, workers=args.workers):
        collection = scalable.open_collection(args.store)
        detections = collection.detections
        values = args.values or [detections.columns.by_role("flux")[0].name]
        if args.calibrate and not skipped:
            zero_points = scalable.fit_zero_points(collection, band=args.calibrate, value=values[0])
            detections = scalable.calibrate(detections, zero_points, values=values)
        chosen = {"statistics": args.statistics} if args.statistics else {}
        lazy = scalable.variability(detections, **chosen, bands=args.bands, values=values)
        catalog = scalable.open_catalog(args.out) if skipped else scalable.write_catalog(lazy, args.out)
    return {
        "job": "compute_variability",
        "out": str(args.out),
        "skipped": skipped,
        "objects": catalog.rows,
        "columns": catalog.columns.names,
        "seconds": time.monotonic() - start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    args = parse_args(argv)
    report = run(args)
    args.out.with_name(args.out.name + ".json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['objects']} objects{' (there already)' if report['skipped'] else ''}: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
