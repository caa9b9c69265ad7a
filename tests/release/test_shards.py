"""Shards are bounded by bytes, pixels counted: larger leaves are divided along the sky, and rows stay what they are."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from release.conftest import of_objects
from release.test_kills import digest

from scalable.catalog.collection import Collection
from scalable.io.runs import read_json
from scalable.release.parts import divide
from scalable.release.read import open_release
from scalable.release.verify import verify_release
from scalable.release.write import plan_release, write_release
from scalable.sky.pixel import Pixel


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 1 << 30), rows=st.integers(0, 200), width=st.sampled_from([2, 20, 44]), limit=st.floats(1, 500))
def test_every_row_is_in_one_pixel_that_is_not_too_large(seed: int, rows: int, width: int, limit: float) -> None:
    rng = np.random.default_rng(seed)
    pixel = Pixel(6, int(rng.integers(12 << 12)))
    cells = np.sort(pixel.start + rng.integers(0, 1 << width, rows))
    size = rng.uniform(0.5, 10, rows)
    found = list(divide(pixel, cells, size, limit))
    assert [row for _, a, b in found for row in range(a, b)] == list(range(rows))
    for one, a, b in found:
        assert pixel.start <= one.start <= cells[a] <= cells[b - 1] < one.stop <= pixel.stop
        assert size[a:b].sum() <= limit or len(set(cells[a:b].tolist())) == 1
        # And it is the largest such pixel.
        if one != pixel:
            above = Pixel(one.order - 1, one.index // 4)
            assert size[(cells >= above.start) & (cells < above.stop)].sum() > limit


@pytest.mark.long
def test_smaller_shards_hold_the_same_rows(collection: Collection, released: Path, sources: Path, tmp_path: Path) -> None:
    before = read_json(released / "release.json")
    small = of_objects(shard_mb=0.01)
    assert plan_release(collection, small)["shards"] > len(before["shards"])
    with dask.config.set(scheduler="threads"):
        write_release(collection, small, into=tmp_path / "r", parent=released)
        found = verify_release(tmp_path / "r", level=4, sources=sources)
    assert found.passed, found
    with dask.config.set(scheduler="synchronous"):
        write_release(collection, small, into=tmp_path / "again", parent=released)
    assert digest(tmp_path / "again") == digest(tmp_path / "r")
    manifest = read_json(tmp_path / "r" / "release.json")
    assert len(manifest["shards"]) > 2 * len(before["shards"])
    assert (manifest["version"], manifest["content"]) == ("1.0.1", before["content"])
    assert manifest["accounting"] == before["accounting"]
    rows, same = open_release(tmp_path / "r").numpy(), open_release(released).numpy()
    for name in ("object_id", "J_Mag1", "lc_count"):
        np.testing.assert_array_equal(rows[name], same[name])
    first = open_release(released).light_curve(int(same["object_id"][0]))
    for name, values in open_release(tmp_path / "r").light_curve(int(same["object_id"][0])).items():
        np.testing.assert_array_equal(values, first[name])
