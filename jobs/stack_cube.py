"""Stack a survey's images on a Dask cluster: python jobs/stack_cube.py survey.yaml --objects FILE --size 64 --out cube.zarr.

FILE is a table with object_id, ra and dec [deg], a HATS catalogue, or a store, which stands for its objects. Writes the cube, a
page and a JSON report beside it, and prints one line. Killed and run again, it goes on with the parts that are missing; a
finished cube is not computed again.
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
    parser.add_argument("survey", type=Path, help="survey description with a block images")
    parser.add_argument("--objects", type=Path, required=True, help="a table, a HATS catalogue or a store")
    parser.add_argument("--out", type=Path, required=True, help="the cube to write")
    parser.add_argument("--size", type=int, help="pixels on a side")
    parser.add_argument("--arcsec", type=float, help="side on the sky [arcsec]")
    parser.add_argument("--size-column", default="", help="column with a length [arcsec]")
    parser.add_argument("--times", type=float, default=1.0, help="how many times that length is the side (default: 1)")
    parser.add_argument("--bands", nargs="+", metavar="BAND", help="bands (default: all)")
    parser.add_argument("--combine", choices=["mean", "median", "ivar", "clipped"], help="default: every exposure by itself")
    parser.add_argument("--resampling", default="native", choices=["native", "interp", "adaptive", "exact"])
    parser.add_argument("--grid", help="side of a pixel [arcsec], or a band whose pixels are taken")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler")
    parser.add_argument("--workers", type=int, help="worker processes of the local cluster")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Stack and write, and say what was done."""
    start = time.monotonic()
    skipped = args.out.exists()
    if not skipped:
        with scalable.connect(args.scheduler, workers=args.workers):
            size = scalable.CutoutSize(args.size, args.arcsec, args.size_column, args.times)
            grid = None if args.grid is None else float(args.grid) if args.grid.replace(".", "", 1).isdigit() else args.grid
            lazy = scalable.stack_images(
                scalable.open_survey(args.survey),
                scalable.read_objects(args.objects, columns=[args.size_column] if args.size_column else []),
                size=size,
                bands=args.bands,
                combine=args.combine,
                resampling=args.resampling,
                grid=grid,
            )
            scalable.write_cube(lazy, args.out)
    cube = scalable.open_cube(args.out)
    scalable.write_cube_page(cube, args.out.with_name(args.out.name + ".html"), opened_from=str(args.out))
    return {
        "job": "stack_cube",
        "out": str(args.out),
        "skipped": skipped,
        "sizes": {str(name): size for name, size in cube.sizes.items()},
        "bands": [str(band) for band in cube["band"].values],
        "cube": json.loads(cube.attrs["cube"]),
        "quarantined": json.loads(cube.attrs["quarantine"]),
        "seconds": time.monotonic() - start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    args = parse_args(argv)
    report = run(args)
    args.out.with_name(args.out.name + ".json").write_text(json.dumps(report, indent=1) + "\n")
    count, aside = report["sizes"]["object"], len(report["quarantined"])
    print(f"{count} objects{' (there already)' if report['skipped'] else ''}, {aside} files set aside: {args.out}")
    return 3 if aside else 0


if __name__ == "__main__":
    sys.exit(main())
