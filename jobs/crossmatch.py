"""Crossmatch two catalogues on a Dask cluster: python jobs/crossmatch.py LEFT RIGHT --radius-arcsec 1 --out DIR.

LEFT and RIGHT are HATS catalogues, or stores, which stand for their objects. Writes a HATS catalogue of the pairs, a JSON report
beside it, and prints one line. A finished result is not computed again.
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
    parser.add_argument("left", type=Path, help="a HATS catalogue or a store")
    parser.add_argument("right", type=Path, help="another, or the same")
    parser.add_argument("--out", type=Path, required=True, help="the catalogue to write")
    parser.add_argument("--radius-arcsec", type=float, required=True, help="largest separation [arcsec]")
    parser.add_argument("-k", type=int, default=1, help="nearest right rows of each left row (default: 1)")
    parser.add_argument("--how", choices=["inner", "left", "outer"], default="inner", help="rows to keep (default: inner)")
    parser.add_argument("--one-to-one", action="store_true", help="only pairs in which each is the nearest of the other")
    parser.add_argument("--suffix", default="_2", help="added to the names of the right columns (default: _2)")
    parser.add_argument("--left-columns", nargs="+", metavar="NAME", help="left columns beside position and id (default: all)")
    parser.add_argument("--right-columns", nargs="+", metavar="NAME", help="right columns beside position and id (default: all)")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler")
    parser.add_argument("--workers", type=int, help="worker processes of the local cluster")
    return parser.parse_args(argv)


def open_side(path: Path, columns: Sequence[str] | None) -> scalable.Catalog:
    """Open a catalogue or a store's objects, with the columns asked for."""
    catalog = scalable.open_collection(path).objects if (path / "current").exists() else scalable.open_catalog(path)
    if columns is None:
        return catalog
    sky = [column.name for column in catalog.columns if column.name == "_healpix_29" or column.role in ("object_id", "ra", "dec")]
    return catalog.select(*dict.fromkeys([*sky, *columns]))


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Match and write, and say what was done."""
    start = time.monotonic()
    skipped = args.out.exists()
    with scalable.connect(args.scheduler, workers=args.workers):
        lazy = scalable.crossmatch(
            open_side(args.left, args.left_columns),
            open_side(args.right, args.right_columns),
            radius_arcsec=args.radius_arcsec,
            k=args.k,
            how=args.how,
            one_to_one=args.one_to_one,
            suffix=args.suffix,
        )
        catalog = scalable.open_catalog(args.out) if skipped else scalable.write_catalog(lazy, args.out)
    return {
        "job": "crossmatch",
        "out": str(args.out),
        "skipped": skipped,
        "rows": catalog.rows,
        "columns": catalog.columns.names,
        "history": catalog.history,
        "seconds": time.monotonic() - start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    args = parse_args(argv)
    report = run(args)
    args.out.with_name(args.out.name + ".json").write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['rows']} rows{' (there already)' if report['skipped'] else ''}: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
