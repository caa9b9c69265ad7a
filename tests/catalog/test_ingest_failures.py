"""What ingest does where the input, the disk or the machine fails: reasons that name the place, and never half a version."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import surveys
from click.testing import CliRunner
from surveys import Observation, check_store, detections, fingerprint, read_member, write_survey

from scalable import cli
from scalable.catalog import ingest as stages
from scalable.catalog.collection import Collection, open_collection
from scalable.catalog.ingest import ingest
from scalable.errors import InputError, MissingInputError, StoreError, SurveyError
from scalable.survey import Survey, open_survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import DAMAGE, damaged_files, table_paths, write_tables

SKY = make_sky(SkySpec(seed=4, fields=2, stars_per_field=60, bands=("J", "H", "Ks"), epochs=2))


@pytest.fixture(autouse=True)
def _here_and_at_a_fixed_date(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with dask.config.set(scheduler="sync"):
        yield


def quarantine(collection: Collection) -> dict[str, str]:
    """Return the reason by path, relative to the survey, of the files that were set aside."""
    with (collection.path / "quarantine.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    paths = dict(zip(*(collection.observations[name].to_pylist() for name in ("observation_id", "path")), strict=True))
    assert all(row["path"].endswith(paths[int(row["observation_id"])]) for row in rows)
    return {paths[int(row["observation_id"])]: row["reason"] for row in rows}


def stored_rows(collection: Collection) -> dict[int, list[int]]:
    """Return the source rows that are stored, by observation."""
    found: dict[int, list[int]] = {}
    for table in read_member(collection, "detections").values():
        for observation, row in zip(table["observation_id"].to_pylist(), table["source_row"].to_pylist(), strict=True):
            found.setdefault(observation, []).append(row)
    return {observation: sorted(rows) for observation, rows in sorted(found.items())}


def point(n: int = 1, **extra: Any) -> pa.Table:
    """Return ``n`` objects, well apart."""
    return detections(list(range(1, n + 1)), np.arange(n) * 10.0 + 5.0, np.zeros(n), **extra)


# Files.


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("truncated", r"HDU 1: file ends at byte \d+, the table needs \d+: truncated"),
        ("missing_column", "no column 'Flux1'"),
        ("absent", "no such file"),
    ],
)
def test_a_damaged_file_is_set_aside_with_its_reason_and_the_others_are_complete(tmp_path: Path, kind: str, reason: str) -> None:
    survey = open_survey(write_tables(SKY, tmp_path / "s", bad=[kind]))
    [bad] = damaged_files(SKY, [kind]).values()
    found = ingest(survey, into=tmp_path / "store")
    assert list(quarantine(found)) == [bad]
    text = quarantine(found)[bad]
    assert str(tmp_path / "s" / bad) in text
    assert pytest.raises(AssertionError, match=reason) if False else __import__("re").search(reason, text)
    paths = table_paths(SKY)
    expected = {
        row + 1: list(range(len(surveys.read_by_astropy(tmp_path / "s" / path)["Ra"])))
        for row, path in enumerate(paths)
        if path != bad
    }
    assert stored_rows(found) == expected
    [entry] = found.observations.filter(pa.compute.equal(found.observations["path"], bad)).to_pylist()
    assert (entry["status"], entry["rows"], entry["rows_stored"], entry["sha256"]) == ("quarantined", 0, 0, None)
    assert found.observations["status"].to_pylist().count("stored") == len(paths) - 1
    count = found.accounting
    assert (count["files"], count["quarantined"], count["rejected"]) == (len(paths), 1, 0)
    assert count["read"] == count["stored"] == sum(map(len, expected.values()))
    surveys.check_version(found.path)
