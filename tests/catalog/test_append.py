"""Append: in whatever pieces the files come, the store ends as if they had come at once, and the rest of it is not written."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import numpy as np
import pytest
import test_ingest_position
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from surveys import Observation, detections, fingerprint, write_survey
from test_ingest_sky import Sky, skies

from scalable.catalog import append as stages
from scalable.catalog import ingest_map
from scalable.catalog.append import append
from scalable.catalog.append_plan import plan_append
from scalable.catalog.collection import Collection, open_collection
from scalable.catalog.ingest import ingest
from scalable.errors import AdditionError, InputError, StoreError
from scalable.survey.description import Survey
from scalable.survey.read import open_survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables


@pytest.fixture(autouse=True)
def _here_at_a_fixed_date(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with dask.config.set(scheduler="sync"):
        yield


def contents(collection: Collection) -> dict[str, str]:
    """Return the digest of every file but the manifest, which names the run."""
    return {name: digest for name, digest in fingerprint(collection.path).items() if name != "manifest.json"}


def grow(folder: Path, observations: list[Observation], pieces: list[int], **options: Any) -> tuple[Collection, Survey]:
    """Ingest the files up to the first of ``pieces`` and append the others piece by piece."""
    survey = write_survey(folder, observations[: pieces[0]], **options)
    found = ingest(survey, into=folder / "grown")
    for stop in [*pieces[1:], len(observations)]:  # The last may be no addition at all.
        survey = write_survey(folder, observations[:stop], **options)
        found = append(survey, into=folder / "grown")
    return found, survey


def compare(grown: Collection, whole: Collection) -> None:
    assert contents(grown) == contents(whole)
    assert grown.accounting == whole.accounting
    assert grown.manifest["nulls"] == whole.manifest["nulls"]


def append_by_id(sky: Sky, pieces: list[int], folder: Path) -> None:
    options = {"margin_arcsec": sky.margin_arcsec, "leaf_mb": sky.leaf_rows * 140 / 1e6}
    grown, survey = grow(folder, sky.observations, pieces, **options)
    compare(grown, ingest(survey, into=folder / "whole"))


def append_by_position(sky: test_ingest_position.Sky, pieces: list[int], folder: Path) -> None:
    for number, stop in enumerate([*pieces, test_ingest_position.FILES]):
        survey = sky.write(folder, stop)
        grown = append(survey, into=folder / "grown") if number else ingest(survey, into=folder / "grown")
    compare(grown, ingest(survey, into=folder / "whole"))


def append_random_skies(tmp_path_factory: pytest.TempPathFactory, examples: int, kind: str) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(GROUPINGS[kind][0], st.sampled_from([[3], [1, 2, 5], [5], [2, 4]]))
    def run(sky: Any, pieces: list[int]) -> None:
        first = min(row[GROUPINGS[kind][2]] for row in sky.rows)
        folder = tmp_path_factory.mktemp("sky")
        with mock.patch.object(os, "fsync"):
            GROUPINGS[kind][1](sky, [stop for stop in pieces if stop > first] or [FILES_OF_A_SKY], folder)
        shutil.rmtree(folder)

    run()


FILES_OF_A_SKY = 6
GROUPINGS: dict[str, tuple[st.SearchStrategy[Any], Callable[[Any, list[int], Path], None], int]] = {
    "id": (skies(), append_by_id, 1),
    "position": (test_ingest_position.skies(), append_by_position, 0),
    "reference": (test_ingest_position.skies(with_references=True), append_by_position, 0),
}
"""Which skies to draw, how to ingest them in pieces, and where a row names its file."""


@pytest.mark.parametrize("kind", [pytest.param(k, marks=[] if k == "id" else pytest.mark.long) for k in GROUPINGS])
def test_in_whatever_pieces_files_come_the_store_is_that_of_all_at_once(
    tmp_path_factory: pytest.TempPathFactory, kind: str
) -> None:
    append_random_skies(tmp_path_factory, 3, kind)


def test_files_without_any_row_join_a_store_with_a_wide_object(tmp_path: Path) -> None:
    sky = Sky(rows=((1, 0, 0.0, 90.0), (1, 0, 90.0, 89.9998)), margin_arcsec=0.5, leaf_rows=1.0)
    append_by_id(sky, [3], tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("kind", GROUPINGS)
def test_in_whatever_pieces_the_files_of_many_skies_come(tmp_path_factory: pytest.TempPathFactory, kind: str) -> None:
    append_random_skies(tmp_path_factory, 200, kind)


FILES = [
    Observation(1, "J", 1.0, detections([1, 2, 3], [10.0, 200.0, 10.0], [0.0, 80.0, 40.0])),
    Observation(2, "Ks", 2.0, detections([1, 4], [10.0, 300.0], [0.0, -45.0])),
    Observation(3, "J", 3.0, detections([2, 2, 5], [200.0001, 200.0001, 210.0], [80.0, 80.0, 10.0])),
]
"""Objects all over the sky; the third file sees one of them again, twice, and a new one."""


def test_only_touched_pixels_are_written_and_the_others_are_links(tmp_path: Path) -> None:
    found, _ = grow(tmp_path, FILES, [2])
    before = tmp_path / "grown" / "versions" / "0001"
    written, linked = set(), set()
    for path in found.path.rglob("Npix=*.parquet"):
        old = before / path.relative_to(found.path)
        (linked if old.exists() and old.stat().st_ino == path.stat().st_ino else written).add(path.name)
    mine = {leaf.pixel.hats_path.rpartition("/")[2] for leaf in found.detections.leaves}
    assert written | linked == mine
    assert len(written) == 2
    assert len(linked) == len(mine) - 2 >= 3
    assert found.manifest["parent"] == {
        "version": "0001",
        "run_id": open_collection(before).manifest["run_id"],
        "stored": open_collection(before).accounting["stored"],
    }


def test_a_plan_names_the_files_and_the_leaves_that_an_append_then_writes(tmp_path: Path) -> None:
    before = ingest(write_survey(tmp_path, FILES[:2]), into=tmp_path / "store")
    survey = write_survey(tmp_path, FILES)
    known = fingerprint(tmp_path / "store")
    planned = plan_append(survey, into=tmp_path / "store")
    assert fingerprint(tmp_path / "store") == known
    assert (planned.files, planned.unusable, planned.leaves) == ({FILES[2].path: 3}, {}, len(before.detections.leaves))
    found = append(survey, into=tmp_path / "store")
    digests = [{e["path"]: e["sha256"] for e in c.manifest["files"] if e["path"].startswith("det")} for c in (before, found)]
    written = {leaf.pixel for leaf in before.detections.leaves for path in digests[0]
               if path.endswith(f"detections/{leaf.path}") and digests[1].get(path) != digests[0][path]}  # fmt: skip
    assert written
    assert written <= set(planned.touched)
    assert len(planned.touched) < planned.leaves


def test_readers_of_the_version_before_are_not_disturbed(tmp_path: Path) -> None:
    survey = write_survey(tmp_path, FILES[:2])
    old = ingest(survey, into=tmp_path / "store")
    lazy, print_before = old.detections, fingerprint(old.path)
    before = lazy.compute()
    append(write_survey(tmp_path, FILES), into=tmp_path / "store")
    assert fingerprint(old.path) == print_before
    assert lazy.compute().equals(before)


def test_an_id_far_away_from_its_object_makes_it_wide_wherever_it_was(tmp_path: Path) -> None:
    far = Observation(3, "Ks", 3.0, detections([1, 1], [190.0, 10.0], [-20.0, 0.0]))
    grown, _ = grow(tmp_path, [*FILES[:2], far], [2])
    whole = ingest(write_survey(tmp_path, [*FILES[:2], far]), into=tmp_path / "whole")
    assert grown.manifest["wide_objects"] == whole.manifest["wide_objects"] == 1
    assert contents(grown) == contents(whole)


def test_stored_files_need_not_be_there_any_more(tmp_path: Path) -> None:
    survey = write_survey(tmp_path, FILES[:2])
    ingest(survey, into=tmp_path / "store")
    survey = write_survey(tmp_path, FILES)
    for observation in FILES[:2]:
        (tmp_path / observation.path).unlink()
    assert append(survey, into=tmp_path / "store").accounting["stored"] == 7


def test_a_file_that_was_set_aside_is_tried_again(tmp_path: Path) -> None:
    survey = write_survey(tmp_path, FILES)
    whole = (tmp_path / FILES[1].path).read_bytes()
    (tmp_path / FILES[1].path).write_bytes(whole[:3000])
    first = ingest(survey, into=tmp_path / "store")
    assert first.accounting["quarantined"] == 1
    (tmp_path / FILES[1].path).write_bytes(whole)
    found = append(survey, into=tmp_path / "store")
    assert found.accounting["quarantined"] == 0
    assert contents(found) == contents(ingest(survey, into=tmp_path / "whole"))


def test_a_file_that_is_still_damaged_is_no_reason_for_a_version(tmp_path: Path) -> None:
    survey = write_survey(tmp_path, FILES)
    (tmp_path / FILES[1].path).write_bytes(b"no table")
    first = ingest(survey, into=tmp_path / "store")
    assert first.accounting["quarantined"] == 1
    assert append(survey, into=tmp_path / "store").path == first.path


def test_without_new_files_nothing_happens(tmp_path: Path) -> None:
    survey = write_survey(tmp_path, FILES)
    first = ingest(survey, into=tmp_path / "store")
    assert append(survey, into=tmp_path / "store").path == first.path
    assert [path.name for path in (tmp_path / "store" / "versions").iterdir()] == ["0001"]


def test_a_night_without_a_row_is_listed_and_changes_no_leaf(tmp_path: Path) -> None:
    empty = Observation(3, "J", 3.0, detections([], [], []))
    grown, _ = grow(tmp_path, [*FILES[:2], empty], [2])
    assert contents(grown) == contents(ingest(write_survey(tmp_path, [*FILES[:2], empty]), into=tmp_path / "whole"))


def test_new_files_that_are_all_damaged_leave_the_store_as_it_is(tmp_path: Path) -> None:
    ingest(write_survey(tmp_path, FILES[:2]), into=tmp_path / "store")
    survey = write_survey(tmp_path, FILES)
    (tmp_path / FILES[2].path).write_bytes(b"no table")
    with pytest.raises(InputError, match="none of the 1 new files can be used"):
        append(survey, into=tmp_path / "store")
    assert open_collection(tmp_path / "store").path.name == "0001"


def _another_rule(folder: Path) -> Survey:
    return write_survey(folder, FILES, margin_arcsec=7.0)


def _a_stored_file_changed(folder: Path) -> Survey:
    more = detections([1, 2, 3] * 400, [10.0, 200.0, 10.0] * 400, [0.0, 80.0, 40.0] * 400)
    return write_survey(folder, [replace(FILES[0], table=more), *FILES[1:]])


def _other_bytes_of_the_same_size(folder: Path) -> Survey:
    return write_survey(
        folder, [replace(FILES[0], table=detections([1, 2, 6], [10.0, 200.0, 10.0], [0.0, 80.0, 40.0])), *FILES[1:]]
    )


def _another_date(folder: Path) -> Survey:
    return write_survey(folder, [replace(FILES[0], mjd=1.5), *FILES[1:]])


def _no_longer_listed(folder: Path) -> Survey:
    return write_survey(folder, FILES[1:])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_another_rule, "was made under other rules"),
        (_a_stored_file_changed, "observation 1 .* has changed since it was stored: its file has"),
        (_other_bytes_of_the_same_size, "observation 1 .* has changed since it was stored: its file has as many bytes"),
        (_another_date, "observation 1 .* mjd is 1.5, was 1.0"),
        (_no_longer_listed, "observation 1 .* is stored but no longer listed"),
    ],
)
def test_what_is_not_an_addition_is_refused(tmp_path: Path, change: Callable[[Path], Survey], message: str) -> None:
    ingest(write_survey(tmp_path, FILES[:2]), into=tmp_path / "store")
    with pytest.raises(AdditionError, match=message):
        append(change(tmp_path), into=tmp_path / "store")
    assert open_collection(tmp_path / "store").path.name == "0001"


def test_there_must_be_a_version_to_add_to(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no committed version here"):
        append(write_survey(tmp_path, FILES), into=tmp_path / "store")


def test_an_interrupted_append_is_taken_up_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(write_survey(tmp_path, FILES[:2]), into=tmp_path / "store")
    survey = write_survey(tmp_path, FILES)

    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stages, "commit_version", stop)
        with pytest.raises(KeyboardInterrupt):
            append(survey, into=tmp_path / "store")
    assert open_collection(tmp_path / "store").path.name == "0001"
    read: list[Any] = []
    monkeypatch.setattr(ingest_map, "_read_file", lambda *arguments: read.append(arguments))
    found = append(survey, into=tmp_path / "store")
    assert read == []
    monkeypatch.undo()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert contents(found) == contents(ingest(survey, into=tmp_path / "whole"))
    assert not (tmp_path / "store" / "work").exists()


@pytest.mark.long
def test_a_field_that_fills_up_is_cut_deeper_as_at_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    ra, dec = 150.0 + rng.normal(0, 20 / 3600, 900), 2.0 + rng.normal(0, 20 / 3600, 900)
    files = [
        Observation(n + 1, "J", float(n), detections(np.arange(n * 300, n * 300 + 300), ra[n::3], dec[n::3])) for n in range(3)
    ]
    grown, _ = grow(tmp_path, files, [1, 2], leaf_mb=60 * 140 / 1e6)
    whole = ingest(write_survey(tmp_path, files, leaf_mb=60 * 140 / 1e6), into=tmp_path / "whole")
    assert max(leaf.pixel.order for leaf in whole.detections.leaves) > 10
    assert contents(grown) == contents(whole)


@pytest.mark.long
def test_the_nights_of_a_synthetic_survey_give_the_whole(tmp_path: Path) -> None:
    write_tables(make_sky(SkySpec(seed=3, fields=2, stars_per_field=300, epochs=3)), tmp_path)
    text = (tmp_path / "survey.yaml").read_text()
    (tmp_path / "survey.yaml").write_text(text.replace("leaf_mb: 0.25", "leaf_mb: 0.05"))
    survey, index = open_survey(tmp_path / "survey.yaml"), tmp_path / "observations.csv"
    lines = index.read_text().splitlines()
    for stop in (5, 6, len(lines)):
        index.write_text("\n".join(lines[:stop]) + "\n")
        found = append(survey, into=tmp_path / "grown") if stop > 5 else ingest(survey, into=tmp_path / "grown")
    assert contents(found) == contents(ingest(survey, into=tmp_path / "whole"))
