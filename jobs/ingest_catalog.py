"""Ingest a survey's tables on a Dask cluster: python jobs/ingest_catalog.py survey.yaml --into out [--scheduler tcp://host:8786].

Without an address a local cluster is started. Rerun after a kill: it does what was left. Writes a JSON report, prints one line.
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
    parser.add_argument("survey", type=Path, help="survey.yaml")
    parser.add_argument("--into", required=True, help="the store, or its URL")
    parser.add_argument("--work", type=Path, help="where a store for a URL is built; all workers must see it")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler")
    parser.add_argument("--workers", type=int, help="worker processes of the local cluster")
    parser.add_argument(
        "--report", type=Path, help="where to write the JSON report (default: INTO/ingest.json, for a URL ./ingest.json)"
    )
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Ingest, and say what was done."""
    start = time.monotonic()
    stages: set[str] = set()
    with scalable.connect(args.scheduler, workers=args.workers):
        survey = scalable.open_survey(args.survey)
        collection = scalable.ingest(survey, into=args.into, work=args.work, progress=lambda stage, *_: stages.add(stage))
    return {
        "job": "ingest_catalog",
        "store": args.into,
        "version": collection.path.name,
        "skipped": not stages,
        "accounting": collection.accounting,
        "seconds": time.monotonic() - start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; exit with 3 if files were set aside."""
    args = parse_args(argv)
    report = run(args)
    (args.report or Path("" if "://" in args.into else args.into) / "ingest.json").write_text(json.dumps(report, indent=1) + "\n")
    count = report["accounting"]
    print(f"{count['stored']} rows stored, {count['rejected']} rejected, {count['quarantined']} files set aside: {args.into}")
    return 3 if count["quarantined"] else 0


if __name__ == "__main__":
    sys.exit(main())
