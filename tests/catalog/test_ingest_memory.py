"""What one worker's task holds at most stays below the formula, and does not grow with the input.

Mapped pages of intermediate files count too.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from surveys import Observation, detections, write_survey

CHILD = """
import ctypes, json, sys, threading
from pathlib import Path
import dask
import pyarrow as pa
from scalable.catalog import ingest, ingest_commit, ingest_forecast, ingest_map, ingest_plan
from scalable.survey.read import open_survey

order = json.loads(sys.argv[1])
dask.config.set(scheduler="sync")
store = Path(order["survey"]).parent / "store"
# Code and compiled kernels are loaded before anything is measured.
ingest.ingest(open_survey(order["tiny"]), into=store.with_name("tiny-store"))
for name, limit in order["limits"].items():
    for module in (ingest_map, ingest_forecast, ingest):
        if hasattr(module, name):
            setattr(module, name, limit)


def held(key):
    [line] = [line for line in open("/proc/self/status") if line.startswith(key)]
    return int(line.split()[1]) * 1024


peaks = {}


def measured(task):
    def run(*arguments):
        # What earlier tasks and the driver gave back must not count, nor hide what this one takes.
        pa.default_memory_pool().release_unused()
        ctypes.CDLL(None).malloc_trim(0)
        base, seen, ended = held("VmRSS"), [0], threading.Event()

        def watch():
            while not ended.wait(0.002):
                seen.append(held("VmRSS") - base)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return task(*arguments)
        finally:
            ended.set()
            watcher.join()
            peaks[task.__name__] = max(peaks.get(task.__name__, 0), *seen)
    return run


for module, name in [(ingest, "map_batch"), (ingest, "check_bucket"), (ingest, "reduce_pixels"), (ingest_plan, "count_inside")]:
    setattr(module, name, measured(getattr(module, name)))
survey = open_survey(order["survey"])
found = ingest.ingest(survey, into=store)
leaves = [(leaf.pixel.order, leaf.rows) for leaf in found.detections.leaves]
schema = ingest.reference_schema(survey, ingest.find_inputs(survey).sources)
margin = survey.store.margin_arcsec
formula = ingest_forecast.worker_memory_bytes(
    schema,
    rows=found.accounting["read"],
    batch_bytes=max(ingest.BATCH_BYTES, *found.observations["size_bytes"].to_pylist()),
    leaf_rows=max(rows for _, rows in leaves),
    gathered_rows=max(rows * ingest_forecast.ring_overhead(deep, margin) for deep, rows in leaves),
)
print(json.dumps({"peaks": peaks, "formula": formula, "leaves": len(leaves)}))
"""

MB = 1 << 20
SLACK = 24 * MB
"""What allocators round up to, and buffers of fixed size."""

needs_linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")


def measure(folder: Path, tables: list[pa.Table], limits: dict[str, int], leaf_mb: float) -> dict[str, Any]:
    """Ingest in a fresh process; return the peak of each kind of task over what was held before, and the formula."""
    files = [Observation(n, "J", float(n), table) for n, table in enumerate(tables, start=1)]
    write_survey(folder / "survey", files, leaf_mb=leaf_mb)
    write_survey(folder / "tiny", [Observation(1, "J", 1.0, detections([1], [1.0], [1.0]))])
    order = {"survey": str(folder / "survey/survey.yaml"), "tiny": str(folder / "tiny/survey.yaml"), "limits": limits}
    # What is freed goes back at once, and is not kept for a while as the time of day has it.
    env = os.environ | {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_MMAP_THRESHOLD_": "131072"}
    run = subprocess.run([sys.executable, "-c", CHILD, json.dumps(order)], capture_output=True, text=True, check=False, env=env)
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    print({name: f"{peak / MB:.0f} MB" for name, peak in found["peaks"].items()}, f"formula {found['formula'] / MB:.0f} MB")
    return found


def all_over_the_sky(rows: int) -> pa.Table:
    """Objects in no order at all, each seen once: the worst case for the spread check."""
    rng = np.random.default_rng(1)
    dec: NDArray[np.float64] = np.rad2deg(np.arcsin(rng.uniform(-1, 1, rows)))
    return detections(rng.permutation(rows), rng.uniform(0, 360, rows), dec)


def cluster_of_stars(rows: int) -> pa.Table:
    """Objects within one pixel of order 10."""
    rng = np.random.default_rng(1)
    return detections(np.arange(rows), 150 + rng.normal(0, 30 / 3600, rows), 2 + rng.normal(0, 30 / 3600, rows))


LIMITS = {"RUN_BYTES": 4 * MB, "BLOCK_BYTES": MB, "BATCH_BYTES": MB, "CHECK_BYTES": 12 * MB}


@needs_linux
@pytest.mark.long
def test_ten_times_the_input_needs_no_more_memory_than_the_formula_says(tmp_path: Path) -> None:
    small = measure(tmp_path / "small", [all_over_the_sky(60_000)], LIMITS, leaf_mb=4.0)
    large = measure(tmp_path / "large", [all_over_the_sky(600_000)], LIMITS, leaf_mb=4.0)
    assert large["formula"] < 1.5 * small["formula"]
    for found in (small, large):
        assert max(found["peaks"].values()) < found["formula"] + SLACK
    # Holding the larger input whole, once as runs and once as boxes, would take more.
    assert large["formula"] + SLACK < 600_000 * (28 + 44 + 56 + 56)


@needs_linux
@pytest.mark.long
def test_a_cluster_of_stars_in_one_small_place_stays_below_the_formula(tmp_path: Path) -> None:
    found = measure(tmp_path, [cluster_of_stars(300_000)], {}, leaf_mb=0.5)
    assert found["leaves"] > 20
    assert found["peaks"]["reduce_pixels"] < found["formula"] + SLACK
    assert found["peaks"]["count_inside"] < found["formula"] + SLACK


@needs_linux
@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "tables",
    [lambda: [all_over_the_sky(10_000_000)], lambda: [all_over_the_sky(1000)] * 1000],
    ids=["one file", "many files"],
)
def test_large_and_many_files_stay_below_the_formula_at_the_limits_as_they_are(tmp_path: Path, tables: Any) -> None:
    found = measure(tmp_path, tables(), {}, leaf_mb=128.0)
    assert max(found["peaks"].values()) < found["formula"] + SLACK
