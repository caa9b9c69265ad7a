"""Add a night's new files to a store on a Dask cluster: python jobs/append_night.py survey.yaml --into out.

The survey's index or folder has more files than the store, which was made by ingest. Without ``--scheduler tcp://host:8786`` a
local cluster is started. Rerun after a kill: it does what was left. Writes a JSON report, prints one line.
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
    parser.add_argument("--into", type=Path, required=True, help="the store; there must be a version in it")
    parser.add_argument("--scheduler", help="address of a running Dask scheduler")
    parser.add_argument("--workers", type=int, help="worker processes of the local cluster")
    parser.add_argument("--report", type=Path, help="where to write the JSON report (default: INTO/append.json)")
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Append, and say what was done."""
    start = time.monotonic()
    stages: set[str] = set()
    with scalable.connect(args.scheduler, workers=args.workers):
        survey = scalable.open_survey(args.survey)
        collection = scalable.append(survey, into=args.into, progress=lambda stage, *_: stages.add(stage))
    return {
        "job": "append_night",
        "store": str(args.into),
        "version": collection.path.name,
        "skipped": not stages,
        "added": collection.accounting["stored"] - collection.manifest["parent"]["stored"] if stages else 0,
        "accounting": collection.accounting,
        "seconds": time.monotonic() - start,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; exit with 3 if files were set aside."""
    args = parse_args(argv)
    report = run(args)
    (args.report or args.into / "append.json").write_text(json.dumps(report, indent=1) + "\n")
    count = report["accounting"]
    print(f"{report['added']} rows added, {count['stored']} stored, {count['quarantined']} files set aside: {args.into}")
    return 3 if count["quarantined"] else 0


if __name__ == "__main__":
    sys.exit(main())
