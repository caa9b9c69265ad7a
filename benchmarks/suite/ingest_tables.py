"""Ingesting the 18 real tables into a partitioned store, on two threads; against reading them with astropy, and their bytes."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import dask
from astropy.table import Table
from astropy.units import UnitsWarning

import scalable
from benchmarks.measure import DATA, Measured, compare

SURVEY = Path(__file__).parents[2] / "examples" / "vvv" / "survey.yaml"


def run() -> list[Measured]:
    """Compare a whole ingest (read, check, sort, write, fsync, commit) with what merely reads."""
    warnings.simplefilter("ignore", UnitsWarning)
    os.environ.setdefault("SCALABLE_DATA", str(DATA))
    survey = scalable.open_survey(SURVEY)
    # Leaves of the usual size: the example cuts the sample small for show.
    survey = survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 128})})
    paths = sorted((DATA / "vvv").glob("*.fits"))
    store = Path(tempfile.mkdtemp()) / "store"

    def ours() -> scalable.Collection:
        shutil.rmtree(store, ignore_errors=True)
        with dask.config.set(scheduler="threads", num_workers=2):
            return scalable.ingest(survey, into=store)

    def astropy() -> None:
        for path in paths:
            Table.read(path)

    def only_bytes() -> None:
        for path in paths:
            path.read_bytes()

    collection = ours()
    assert collection.accounting["stored"] == sum(len(Table.read(path)) for path in paths)
    contenders = {"scalable ingest": ours, "astropy Table.read alone": astropy, "reading the same bytes": only_bytes}
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    found = compare(f"ingest {len(paths)} tables", contenders, megabytes=megabytes, repeats=5)
    shutil.rmtree(store.parent)
    return found
