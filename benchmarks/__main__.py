"""Run all benchmarks and print one table: python -m benchmarks [NAME ...] [--json FILE]."""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path

from benchmarks.measure import Measured, show
from benchmarks.suite import cube_cutouts, cube_shards, ingest_tables, light_curves, periods, read_tables

SUITE = {
    "read_tables": read_tables.run,
    "ingest_tables": ingest_tables.run,
    "light_curves": light_curves.run,
    "periods": periods.run,
    "cube_cutouts": cube_cutouts.run,
    "cube_shards": cube_shards.run,
}


def main() -> None:
    """Run the named benchmarks, by default all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*SUITE, []], help="which benchmarks; by default all")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    args = parser.parse_args()
    measured: list[Measured] = []
    for name in args.names or SUITE:
        measured += SUITE[name]()
    show(measured)
    if args.json:
        machine = {"python": platform.python_version(), "machine": platform.machine(), "system": platform.platform()}
        args.json.write_text(json.dumps({"machine": machine, "figures": [vars(m) for m in measured]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
