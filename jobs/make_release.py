"""Release a store on a Dask cluster: python jobs/make_release.py STORE recipe.yaml --out DIR.

Writes the release, verifies it, leaves a JSON report beside it, and says where it is and how to open it. Killed and run again,
it goes on with the parts that are missing; a finished release is only verified.
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
    parser.add_argument("store", type=Path, help="a store made by ingest")
    parser.add_argument("recipe", type=Path, help="what the release holds")
    parser.add_argument("--out", type=Path, required=True, help="the release to write")
    parser.add_argument("--parent", type=Path, help="the release that it follows")
    parser.add_argument("--cube", type=Path, help="cutouts of the objects, for a recipe with images")
    parser.add_argument("--model", type=Path, help="mixture to draw from, for a recipe that simulates rows")
    parser.add_argument("--level", type=int, default=2, choices=[1, 2, 3, 4], help="how far to verify (default: 2)")
    parser.add_argument("--sources", type=Path, help="folder of the source files, for levels 3 and 4")
    parser.add_argument(
        "--dry-run", action="store_true", help="check store and recipe, say what would be released; write nothing"
    )
    parser.add_argument("--scheduler", help="address of a running Dask scheduler")
    parser.add_argument("--workers", type=int, help="worker processes of the local cluster")
    return parser.parse_args(argv)


def tell(stage: str, done: int, total: int) -> None:
    """Say on the error stream how far a stage is: at its end, and on the way at each tenth."""
    if done == total or done * 10 // total > (done - 1) * 10 // total:
        print(f"{stage}: {done} of {total}", file=sys.stderr, flush=True)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Release and verify, and say what was done."""
    start = time.monotonic()
    skipped = args.out.exists()
    with scalable.connect(args.scheduler, workers=args.workers):
        if not skipped:
            collection = scalable.open_collection(args.store)
            recipe = scalable.open_recipe(args.recipe)
            given = {"parent": args.parent, "cube": args.cube, "model": args.model}
            scalable.write_release(collection, recipe, into=args.out, **given, on_done=tell)
        found = scalable.verify_release(args.out, level=args.level, sources=args.sources)
    release = scalable.open_release(args.out)
    manifest = release.manifest
    return {
        "job": "make_release",
        "out": str(args.out),
        "skipped": skipped,
        "version": manifest["version"],
        "accounting": manifest["accounting"],
        "split": manifest["split"]["rows"],
        "bytes_per_row": manifest["bytes_per_row"],
        "loader": release.loader_rate(),
        "findings": [str(finding) for finding in found.findings],
        "seconds": time.monotonic() - start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job."""
    args = parse_args(argv)
    try:
        if args.dry_run:
            plan = scalable.plan_release(
                scalable.open_collection(args.store),
                scalable.open_recipe(args.recipe),
                parent=args.parent,
                cube=args.cube,
                model=args.model,
            )
            print(json.dumps(plan, indent=1))
            return 0
        report = run(args)
    except (scalable.ScalableError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    args.out.with_name(args.out.name + ".json").write_text(json.dumps(report, indent=1) + "\n")
    verdict = f"{len(report['findings'])} findings" if report["findings"] else "verified"
    there = " (there already)" if report["skipped"] else ""
    print(f"{report['accounting']['released']} rows{there}, version {report['version']}, {verdict}: {args.out}")
    print(f'open it: scalable.open_release("{args.out}").pandas()')
    for finding in report["findings"]:
        print(finding, file=sys.stderr)
    return 4 if report["findings"] else 0


if __name__ == "__main__":
    sys.exit(main())
