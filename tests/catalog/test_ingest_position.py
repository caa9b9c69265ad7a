"""Objects by position and by reference, held against all pairs of the whole sky, which know of no pixels, tasks or margins."""

from __future__ import annotations

import os
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import surveys
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree
from surveys import Observation, check_store, detections, fingerprint, read_member, write_survey
from test_ingest_sky import ROW_BYTES, Position, anchors, check_objects, corner, moved

from scalable.catalog import ingest as stages
from scalable.catalog import ingest_plan
from scalable.catalog.check import check as check_headers
from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest
from scalable.errors import ColumnError, InputError, MissingInputError
from scalable.survey.description import Survey
from scalable.survey.read import open_survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_fits, write_tables

FILES = 5
EXAMPLE = Path(__file__).parents[2] / "examples" / "vvv" / "survey.yaml"
REFERENCE_COLUMNS = {"reference": "reference.fits", "id": "StarID", "ra": "Ra", "dec": "Dec"}

Vectors = NDArray[np.float64]
Ints = NDArray[np.int64]


@pytest.fixture(autouse=True)
def _at_a_fixed_date(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with dask.config.set(scheduler="sync"):
        yield


@dataclass(frozen=True)
class Sky:
    """Rows (file, right ascension, declination [deg]) in the order of the files, references (id, position), how to group them."""

    rows: tuple[tuple[int, float, float], ...]
    radius_arcsec: float
    margin_arcsec: float = 5.0
    leaf_rows: float = 1e6
    references: tuple[tuple[int, float, float], ...] | None = None

    @property
    def grouping(self) -> dict[str, Any]:
        by = {"by": "position"} if self.references is None else {"by": "reference", **REFERENCE_COLUMNS}
        return by | {"radius_arcsec": self.radius_arcsec}

    def write(self, folder: Path, files_listed: int = FILES) -> Survey:
        files = []
        for number in range(files_listed):
            mine = [row for row in self.rows if row[0] == number]
            table = detections(list(range(len(mine))), [row[1] for row in mine], [row[2] for row in mine])
            files.append(Observation(number + 1, ("J", "Ks")[number % 2], float(number // 2), table))
        if self.references is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_fits(detections(*zip(*self.references, strict=True)), folder / "reference.fits", {})
        leaf_mb = self.leaf_rows * ROW_BYTES / 1e6
        return write_survey(
            folder, files, margin_arcsec=self.margin_arcsec, leaf_mb=leaf_mb, grouping=self.grouping, bands=["J", "Ks"]
        )


@dataclass(frozen=True)
class Truth:
    """By object id: its rows (file, source row) with their vectors; the vector of its reference, if it has one."""

    members: dict[int, dict[tuple[int, int], Vectors]]
    references: dict[int, Vectors]


def apart_arcsec(left: Vectors, right: Vectors) -> Vectors:
    return surveys.separation_arcsec(left[:, None, :], right[None, :, :])


def is_clear(sky: Sky) -> bool:
    """Return whether no pair is so near the radius, and no two references so equally near a row, that rounding decides."""
    at = surveys.vectors(*np.array([row[1:] for row in sky.rows]).T)
    there = surveys.vectors(*np.array([reference[1:] for reference in sky.references or ()]).reshape(-1, 2).T)
    if (np.abs(apart_arcsec(at, np.concatenate([at, there])) - sky.radius_arcsec) < 1e-6 * sky.radius_arcsec).any():
        return False
    for separation in apart_arcsec(at, there) if len(there) else ():
        rivals = there[separation < separation.min() + 1e-6]
        if (rivals != rivals[0]).any():
            return False
    return True


def truth(sky: Sky) -> Truth:
    """Group the rows of the whole sky by all pairs."""
    keys, counts = [], defaultdict(int)
    for file, _, _ in sky.rows:
        keys.append((file, counts[file]))
        counts[file] += 1
    at = surveys.vectors(*np.array([row[1:] for row in sky.rows]).T)
    ids = np.array([(file + 1) * 2**33 + row for file, row in keys])
    references: dict[int, Vectors] = {}
    alone = np.arange(len(ids))
    if sky.references is not None:
        listed = sorted(sky.references)
        there = surveys.vectors(*np.array([reference[1:] for reference in listed]).T)
        separation = apart_arcsec(at, there)
        nearest = separation.argmin(axis=1)
        claimed = separation.min(axis=1) <= sky.radius_arcsec
        ids = np.where(claimed, np.array([reference[0] for reference in listed])[nearest], -ids - 1)
        references = {listed[i][0]: there[i] for i in np.unique(nearest[claimed])}
        alone = np.flatnonzero(~claimed)
    separation = apart_arcsec(at[alone], at[alone])
    component = connected_components(separation <= sky.radius_arcsec, directed=False)[1]
    for number in np.unique(component):
        mine = alone[component == number]
        ids[mine] = min(ids[mine], key=abs)
    members: dict[int, dict[tuple[int, int], Vectors]] = defaultdict(dict)
    for key, number, vector in zip(keys, ids.tolist(), at, strict=True):
        members[number][key] = vector
    return Truth(dict(members), references)


def stored(sky: Sky, folder: Path) -> Collection:
    with mock.patch.object(os, "fsync"), mock.patch.object(stages, "BATCH_BYTES", 20_000):
        return ingest(sky.write(folder), into=folder / "store")


def check(sky: Sky, folder: Path) -> Collection:
    """Ingest a sky and hold every promise about objects, rejected rows, margins and wide objects against all pairs."""
    assert is_clear(sky)
    expected = truth(sky)
    found = stored(sky, folder)
    kept: dict[tuple[int, int, int], Vectors] = {}
    for table in read_member(found, "detections").values():
        for row in table.select(["observation_id", "source_row", "object_id"]).to_pylist():
            file, number = row["observation_id"] - 1, row["object_id"]
            # The objects of a reference stand where it stands.
            at = expected.members[number][file, row["source_row"]]
            kept[file, row["source_row"], number] = expected.references.get(number, at)
    rejected = [(e["observation_id"] - 1, e["source_row"], e["object_id"]) for e in found.rejected.to_pylist()]
    assert sorted([*kept, *rejected]) == sorted((*key, i) for i, rows in expected.members.items() for key in rows)
    check_nearest_is_kept(expected, {key[:2] for key in kept})
    check_objects(found, kept)
    check_margins(found)
    if sky.references is not None:
        matched = sum(number in expected.references for _, _, number in kept)
        assert found.accounting["matched"] == matched
        assert found.accounting["unmatched"] == len(kept) - matched
        assert found.accounting["reference_unseen"] == len(sky.references) - len(expected.references)
    check_wide(sky, expected, found)
    return found


def check_nearest_is_kept(expected: Truth, kept: set[tuple[int, int]]) -> None:
    for number, rows in expected.members.items():
        mean = np.sum(list(rows.values()), axis=0)
        centre = expected.references.get(number, mean / np.linalg.norm(mean))
        by_file: dict[int, list[tuple[float, bool, int]]] = defaultdict(list)
        for key, at in rows.items():
            by_file[key[0]].append((float(surveys.separation_arcsec(at, centre)), key in kept, key[1]))
        for choices in by_file.values():
            [chosen] = [separation for separation, is_kept, _ in choices if is_kept]
            assert chosen <= min(choices)[0] + 2e-6


def check_margins(found: Collection) -> None:
    """Check that what lies in a margin is a copy of what lies in another leaf."""
    primary = {e["object_id"]: e for table in read_member(found, "objects").values() for e in table.to_pylist()}
    for path in surveys.leaf_paths(found.path / "objects" / "objects_margin"):
        for entry in pq.ParquetFile(path).read().drop_columns("detection_offset").to_pylist():
            assert entry.items() <= primary[entry["object_id"]].items()


def check_wide(sky: Sky, expected: Truth, found: Collection) -> None:
    """Check that those objects are listed whose Cartesian box has a diagonal beyond the margin."""
    listed = {entry["object_id"]: entry for entry in pq.ParquetFile(found.path / "wide_objects.parquet").read().to_pylist()}
    assert found.manifest["wide_objects"] == len(listed)
    for number, rows in expected.members.items():
        at = np.array(list(rows.values()))
        diagonal = np.rad2deg(2 * np.arcsin(np.linalg.norm(at.max(axis=0) - at.min(axis=0)) / 2)) * 3600
        if abs(diagonal - sky.margin_arcsec) > 1e-6:
            assert (number in listed) == (diagonal > sky.margin_arcsec and number not in expected.references)
        if number in listed:
            assert listed[number]["spread_arcsec"] == pytest.approx(apart_arcsec(at, at).max(), abs=1e-6)


def check_in_a_folder_of_its_own(sky: Sky) -> Collection:
    assume(is_clear(sky))
    with tempfile.TemporaryDirectory() as folder:
        return check(sky, Path(folder))


def chain(
    start: Position, angle_deg: float, step_arcsec: float, n: int, file: int | None = None
) -> list[tuple[int, float, float]]:
    """Return detections one step after another, in one file or in the files by turns."""
    return [(number % FILES if file is None else file, *moved(start, angle_deg, step_arcsec * number)) for number in range(n)]


@st.composite
def skies(draw: st.DrawFn, *, with_references: bool = False) -> Sky:
    """Draw clusters, chains and repeated positions about a few awkward places, and perhaps references among them."""
    margin = draw(st.sampled_from([0.5, 5.0, 60.0]))
    radius = margin * draw(st.sampled_from([0.1, 0.5, 1.0]))
    places = draw(st.lists(anchors, min_size=1, max_size=3))
    rows: list[tuple[int, float, float]] = []
    for _ in range(draw(st.integers(1, 8))):
        place = draw(st.sampled_from(places))
        place = moved(place, draw(st.integers(0, 359)), margin * draw(st.sampled_from([0.0, 0.3, 2.0, 40.0])))
        if draw(st.integers(0, 3)) == 0:
            step = radius * draw(st.sampled_from([0.6, 0.99, 1.01]))
            rows += chain(place, draw(st.integers(0, 359)), step, draw(st.integers(2, 30)))
            continue
        reach = radius * draw(st.sampled_from([0.0, 0.3, 0.499, 1.5]))
        members = st.tuples(st.integers(0, FILES - 1), st.integers(0, 359), st.floats(0, 1))
        rows += [
            (file, *moved(place, angle, reach * share)) for file, angle, share in draw(st.lists(members, min_size=1, max_size=6))
        ]
    rows = [rows[i] for i in draw(st.permutations(range(len(rows))))]
    references = None
    if with_references:
        near = st.tuples(st.sampled_from(rows), st.integers(0, 359), st.sampled_from([0.0, 0.2, 0.7, 1.3]))
        at = [moved(row[1:], angle, radius * share) for row, angle, share in draw(st.lists(near, min_size=1, max_size=8))]
        numbers = draw(st.lists(st.integers(0, 2**63 - 1), min_size=len(at), max_size=len(at), unique=True))
        references = tuple((number, *position) for number, position in zip(numbers, at, strict=True))
    return Sky(tuple(rows), radius, margin, draw(st.sampled_from([1.0, 1.0, 3.0, 12.0, 1e6])), references)


# By position.

PLACES = {
    "north pole": (0.0, 90.0),
    "south pole": (77.0, -90.0),
    "RA 0": (0.0, 33.0),
    "south corner of 0": corner(0, 0, 0),
    "corner of 9": corner(0, 9, 1),
    "corner of 3": corner(0, 3, 3),
    "order 10": corner(10, 7_000_001, 1),
    "order 13": corner(13, 300_000_000, 2),
}


def crossing(place: Position) -> tuple[tuple[int, float, float], ...]:
    """Return objects about a place, chains of less and of several margins through it, and blends in one file."""
    rows = [(file, *moved(moved(place, 60 * number, 4.0), 70 * file, 0.3)) for number in range(6) for file in range(FILES)]
    rows += chain(moved(place, 30, 30.0), 210, 0.9, 60) + chain(moved(place, 100, 12.0), 10, 0.95, 4)
    rows += [(2, *moved(place, angle, 0.4)) for angle in (0, 90, 200)]
    return tuple(rows)


@pytest.mark.parametrize(
    "leaf_rows",
    [pytest.param(1.0, id="tiny leaves"), *(pytest.param(n, id=f"leaves of {n:g}", marks=pytest.mark.long) for n in (30, 1e6))],
)
@pytest.mark.parametrize(
    "place",
    [
        pytest.param(where, id=name, marks=[] if name in ("north pole", "RA 0", "corner of 9") else pytest.mark.long)
        for name, where in PLACES.items()
    ],
)
def test_objects_by_position_around_an_awkward_place_are_those_of_all_pairs(
    tmp_path: Path, place: Position, leaf_rows: float
) -> None:
    found = check(Sky(crossing(place), 1.0, leaf_rows=leaf_rows), tmp_path)
    assert found.manifest["wide_objects"] == 1
    check_store(tmp_path / "store")


@pytest.mark.parametrize("by", ["position", pytest.param("reference", marks=pytest.mark.long)])
def test_the_tiling_changes_nothing_but_the_leaves(tmp_path: Path, by: str) -> None:
    references = ((7, *moved(PLACES["order 10"], 60, 4.1)), (9, *moved(PLACES["order 10"], 20, 0.2)))
    rows = crossing(PLACES["order 10"]) + crossing(moved(PLACES["order 10"], 40, 3000.0))
    sky = Sky(rows, 1.0, references=references if by == "reference" else None)
    several = [stored(replace(sky, leaf_rows=rows), tmp_path / str(rows)) for rows in (1.0, 120.0, 1e6)]
    assert len({len(read_member(found, "objects")) for found in several}) == 3
    for kind in ("objects", "detections"):
        tables = [pa.concat_tables(read_member(found, kind).values()) for found in several]
        if kind == "objects":
            tables = [table.drop_columns("detection_offset") for table in tables]
        assert tables[0].equals(tables[1])
        assert tables[0].equals(tables[2])


@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(skies())
def test_in_any_small_sky_objects_by_position_are_those_of_all_pairs(sky: Sky) -> None:
    check_in_a_folder_of_its_own(sky)


@settings(max_examples=2, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(skies(with_references=True))
def test_in_any_small_sky_rows_belong_to_the_nearest_reference_and_the_rest_to_each_other(sky: Sky) -> None:
    check_in_a_folder_of_its_own(sky)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.one_of(skies(), skies(with_references=True)))
def test_in_any_small_sky_of_many_objects_are_those_of_all_pairs(sky: Sky) -> None:
    check_in_a_folder_of_its_own(sky)


def test_a_later_night_leaves_the_ids_of_the_objects_as_they_were(tmp_path: Path) -> None:
    sky = Sky(crossing((10.0, 20.0)), 1.0)
    before = stored(replace(sky, rows=tuple(row for row in sky.rows if row[0] < FILES - 1)), tmp_path / "a")
    after = stored(sky, tmp_path / "b")
    ids = [set(pa.concat_tables(read_member(found, "objects").values())["object_id"].to_pylist()) for found in (before, after)]
    new = {number for number in ids[1] if number >> 33 == FILES}
    # The chain hangs together by its last file too: without it, it is several objects.
    assert ids[1] - new <= ids[0]
    assert len(ids[0] - ids[1]) == 11


def test_an_observation_id_that_object_ids_cannot_be_made_of_is_refused(tmp_path: Path) -> None:
    table = detections([1], [0.0], [0.0])
    for number in (-1, 2**30):
        survey = write_survey(
            tmp_path / str(number), [Observation(number, "J", 1.0, table)], grouping={"by": "position", "radius_arcsec": 1.0}
        )
        with pytest.raises(InputError, match=rf"observation id {number}: .* must lie in 0 to 2\*\*30 - 1; number the"):
            ingest(survey, into=tmp_path / "store")
    last = write_survey(tmp_path, [Observation(2**30 - 1, "J", 1.0, table)], grouping={"by": "position", "radius_arcsec": 1.0})
    found = ingest(last, into=tmp_path / "store")
    assert pa.concat_tables(read_member(found, "objects").values())["object_id"].to_pylist() == [(2**30 - 1) * 2**33]


def test_rows_without_a_position_are_rejected_without_an_id(tmp_path: Path) -> None:
    table = detections([1, 2], [0.0, np.nan], [0.0, 0.0])
    survey = write_survey(tmp_path, [Observation(1, "J", 1.0, table)], grouping={"by": "position", "radius_arcsec": 1.0})
    [entry] = ingest(survey, into=tmp_path / "store").rejected.to_pylist()
    assert (entry["source_row"], entry["object_id"], entry["reason"]) == (1, None, "no right ascension")


def test_a_survey_without_ids_passes_the_check_of_its_headers(tmp_path: Path) -> None:
    assert check_headers(Sky(crossing((10.0, 20.0)), 1.0).write(tmp_path)).rows == len(crossing((10.0, 20.0)))


# By reference.


def test_an_object_of_the_reference_stands_where_the_reference_says(tmp_path: Path) -> None:
    rows = tuple((file, 10.0 + 0.5 / 3600, 0.0) for file in range(FILES))
    found = check(Sky(rows, 1.0, references=((42, 10.0, 0.0), (43, 11.0, 0.0))), tmp_path)
    [entry] = pa.concat_tables(read_member(found, "objects").values()).to_pylist()
    assert entry["object_id"] == 42
    assert entry["object_ra"] == pytest.approx(10.0, abs=1e-12)
    stored_rows = pa.concat_tables(read_member(found, "detections").values())
    assert stored_rows["Ra"].to_pylist() == [row[1] for row in rows]
    assert found.accounting["reference_unseen"] == 1


def test_a_reference_across_the_border_of_any_cell_is_found(tmp_path: Path) -> None:
    rows = [(file, *moved(place, 90 * file, 0.3)) for place in PLACES.values() for file in range(4)]
    references = [(number, *moved(place, 40, 0.3)) for number, place in enumerate(PLACES.values())]
    found = check(Sky(tuple(rows), 1.0, references=tuple(references)), tmp_path)
    assert (found.accounting["matched"], found.accounting["objects"]) == (len(rows), len(references))


def test_of_two_references_in_one_place_the_lower_id_is_taken(tmp_path: Path) -> None:
    found = check(Sky(((0, 10.0, 0.0),), 1.0, references=((8, 10.0, 0.0), (3, 10.0, 0.0), (5, 10.0, 0.0))), tmp_path)
    assert pa.concat_tables(read_member(found, "objects").values())["object_id"].to_pylist() == [3]


BAD_REFERENCES = {
    "no file": (None, MissingInputError, "no such file"),
    "no column": (
        detections([1], [0.0], [0.0]).rename_columns(["Star", "Ra", "Dec", "Flux"]),
        ColumnError,
        r"HDU 1 has no column 'StarID'; did you mean 'Star'",
    ),
    "an id below 0": (
        detections([1, -1], [0.0, 1.0], [0.0, 0.0]),
        InputError,
        r"'StarID', row 1: an id below 0.* \(1 such rows\)",
    ),
    "an id twice": (
        detections([4, 5, 4], [0.0, 1.0, 2.0], [0.0] * 3),
        InputError,
        r"'StarID', row 2: an id that was given before",
    ),
    "no position": (detections([1, 2], [0.0, np.nan], [0.0, 0.0]), InputError, r"'Ra', row 1: no right ascension"),
    "no declination": (detections([1, 2], [0.0, 1.0], [0.0, 91.0]), InputError, r"'Dec', row 1: no declination in -90 to 90"),
    "a fraction": (detections([1.5], [0.0], [0.0], id_type=pa.float64()), InputError, r"object ids must be whole numbers"),
}


@pytest.mark.parametrize("case", BAD_REFERENCES)
def test_a_reference_that_cannot_be_used_is_refused_with_the_place(tmp_path: Path, case: str) -> None:
    table, error, message = BAD_REFERENCES[case]
    survey = Sky(crossing((10.0, 20.0)), 1.0, references=((1, 0.0, 0.0),)).write(tmp_path)
    (tmp_path / "reference.fits").unlink()
    if table is not None:
        write_fits(table, tmp_path / "reference.fits", {})
    with pytest.raises(error, match=message):
        ingest(survey, into=tmp_path / "store")
    assert not (tmp_path / "store" / "versions").exists()
    if case in ("no file", "no column"):
        with pytest.raises(error, match=message):
            check_headers(survey)


def test_another_reference_is_another_run(tmp_path: Path) -> None:
    sky = Sky(((0, 10.0, 0.0),), 1.0, references=((1, 10.0, 0.0),))
    assert stored(sky, tmp_path).path.name == "0001"
    assert stored(replace(sky, references=((1, 10.0, 0.0), (2, 20.0, 0.0))), tmp_path).path.name == "0002"


# Runs that were interrupted, and other schedulers.


@pytest.mark.parametrize(
    ("by", "stage"),
    [
        ("position", "settle_wide"),
        ("reference", "reduce_pixels"),
        pytest.param("reference", "index_reference", marks=pytest.mark.long),
        pytest.param("reference", "map_batch", marks=pytest.mark.long),
        pytest.param("position", "check_pixels", marks=pytest.mark.long),
    ],
)
def test_an_interrupted_run_goes_on_and_gives_the_same_bytes(
    tmp_path: Path, by: str, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "BATCH_BYTES", 10_000)
    references = ((7, *moved((10.0, 20.0), 60, 4.1)), (9, 200.0, 1.0)) if by == "reference" else None
    survey = Sky(crossing((10.0, 20.0)), 1.0, leaf_rows=10.0, references=references).write(tmp_path)
    undisturbed = fingerprint(ingest(survey, into=tmp_path / "a").path)
    done: list[object] = []

    def stops(item: object, *shared: Any) -> Any:
        if done:
            raise KeyboardInterrupt
        done.append(item)
        return real(item, *shared)

    real = getattr(stages, stage)
    with monkeypatch.context() as patch:
        patch.setattr(stages, stage, stops)
        done += [0] if stage in ("index_reference", "settle_wide") else []
        with pytest.raises(KeyboardInterrupt):
            ingest(survey, into=tmp_path / "b")
    finished = {path: path.stat().st_ino for path in (tmp_path / "b" / "work").rglob("*.json")}
    assert finished
    kept: dict[Path, int] = {}

    def before_the_end(*arguments: Any, **options: Any) -> Any:
        kept.update({path: path.stat().st_ino for path in finished})
        return commit(*arguments, **options)

    commit = stages.commit_version
    monkeypatch.setattr(stages, "commit_version", before_the_end)
    assert fingerprint(ingest(survey, into=tmp_path / "b").path) == undisturbed
    assert kept == finished


@pytest.mark.parametrize("by", ["position", pytest.param("reference", marks=pytest.mark.long)])
def test_threads_give_the_same_bytes(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "BATCH_BYTES", 10_000)
    monkeypatch.setattr(ingest_plan, "TASK_BYTES", 1)
    references = ((7, *moved((10.0, 20.0), 60, 4.1)),) if by == "reference" else None
    survey = Sky(crossing((10.0, 20.0)), 1.0, leaf_rows=10.0, references=references).write(tmp_path)
    alone = fingerprint(ingest(survey, into=tmp_path / "a").path)
    with dask.config.set(scheduler="threads", num_workers=4):
        assert fingerprint(ingest(survey, into=tmp_path / "b").path) == alone


# Skies whose objects are known.


def without_ids(description: Path, grouping: str, column: str = "StarID") -> Survey:
    """Return a survey whose ids are plain values."""
    text = description.read_text()
    assert f"{column}: {{role: object_id" in text
    description.write_text(
        text.replace(f"{column}: {{role: object_id", f"{column}: {{role: value") + f"grouping: {{{grouping}}}\n"
    )
    return open_survey(description)


def test_the_objects_of_a_synthetic_sky_are_recovered_when_their_ids_are_dropped(tmp_path: Path) -> None:
    sky = make_sky(SkySpec(seed=8, fields=2, stars_per_field=250, bands=("J", "Ks"), epochs=4, jitter_arcsec=0.1))
    survey = without_ids(write_tables(sky, tmp_path / "s"), "by: position, radius_arcsec: 0.6")
    found = ingest(survey, into=tmp_path / "store")
    rows = pa.concat_tables(read_member(found, "detections").values())
    pairs = set(zip(rows["object_id"].to_pylist(), rows["StarID"].to_pylist(), strict=True))
    assert len(pairs) == len({number for number, _ in pairs}) == len({star for _, star in pairs}) == found.accounting["objects"]
    assert found.accounting["rejected"] == 0


def test_the_truth_of_a_synthetic_sky_as_reference_gives_its_ids_back(tmp_path: Path) -> None:
    sky = make_sky(SkySpec(seed=8, fields=1, stars_per_field=250, bands=("J", "Ks"), epochs=3, jitter_arcsec=0.1))
    description = write_tables(sky, tmp_path / "s")
    write_fits(sky.stars.select(["star_id", "ra_deg", "dec_deg"]).slice(0, 200), tmp_path / "s" / "stars.fits", {})
    where = "by: reference, radius_arcsec: 1, reference: stars.fits, id: star_id, ra: ra_deg, dec: dec_deg"
    found = ingest(without_ids(description, where), into=tmp_path / "store")
    rows = pa.concat_tables(read_member(found, "detections").values())
    ids, stars = rows["object_id"].to_numpy(), rows["StarID"].to_numpy()
    known = np.isin(stars, sky.stars["star_id"].to_numpy()[:200])
    assert 0 < known.sum() < len(known)
    assert (ids[known] == stars[known]).all()
    assert (ids[~known] < 0).all()
    assert found.accounting["matched"] == known.sum()
    assert found.accounting["unmatched"] == (~known).sum()


def vvv_survey(data: Path, folder: Path, grouping: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Survey:
    monkeypatch.setenv("SCALABLE_DATA", str(data))
    survey = open_survey(EXAMPLE)
    description = survey.model_dump(mode="json", by_alias=True)
    description["columns"]["StarID"]["role"] = "value"
    return Survey.model_validate(description | {"grouping": grouping})


def vvv_rows(data: Path) -> tuple[Ints, Ints, Vectors]:
    """Return observation id, row and vector of every detection of the real tables, as astropy reads them."""
    pieces = []
    with (data / "vvv" / "file_info_for_problem.csv").open() as file:
        header, *lines = [line.strip().split(",") for line in file if line.strip()]
    entries = [dict(zip(header, line, strict=True)) for line in lines]
    for entry in entries:
        group = [e for e in entries if (e["FieldID"], e["Filter"]) == (entry["FieldID"], entry["Filter"])]
        rank = sorted(group, key=lambda e: float(e["MJD"])).index(entry) + 1
        epoch = f"-E{rank:03d}" if entry["Filter"] == "Ks" else ""
        columns = surveys.read_by_astropy(data / "vvv" / f"Field-{entry['FieldID']}-{entry['Filter']}{epoch}.fits")
        at = surveys.vectors(*(np.rad2deg(columns[name].astype(np.float64)) for name in ("Ra", "Dec")))
        pieces.append((np.full(len(at), int(entry["ID"])), np.arange(len(at)), at))
    observation, row, at = (np.concatenate(column) for column in zip(*pieces, strict=True))
    return observation, row, at


def test_real_detections_by_position_are_the_components_that_a_tree_finds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    survey = vvv_survey(data, tmp_path, {"by": "position", "radius_arcsec": 0.5}, monkeypatch)
    found = ingest(survey, into=tmp_path / "store")
    observation, row, at = vvv_rows(data)
    pairs = cKDTree(at).query_pairs(2 * np.sin(np.deg2rad(0.5 / 3600) / 2), output_type="ndarray")
    graph = coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(at), len(at)))
    _, component = connected_components(graph, directed=False)
    keys = observation * 2**33 + row
    least = np.full(component.max() + 1, 2**63 - 1)
    np.minimum.at(least, component, keys)
    expected = dict(zip(keys.tolist(), least[component].tolist(), strict=True))
    columns = ["observation_id", "source_row", "object_id"]
    tables = [table.select(columns) for table in read_member(found, "detections").values()]
    every = pa.concat_tables([*tables, found.rejected.select(columns)])
    given_ids = every["observation_id"].to_numpy() * 2**33 + every["source_row"].to_numpy()
    assert dict(zip(given_ids.tolist(), every["object_id"].to_pylist(), strict=True)) == expected


@pytest.mark.long
def test_real_detections_by_the_first_ks_epoch_as_reference_are_those_nearest_to_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns = {"reference": "Field-1-Ks-E001.fits", "id": "StarID", "ra": "Ra", "dec": "Dec"}
    survey = vvv_survey(data, tmp_path, {"by": "reference", "radius_arcsec": 0.5} | columns, monkeypatch)
    found = ingest(survey, into=tmp_path / "store")
    first = surveys.read_by_astropy(data / "vvv" / "Field-1-Ks-E001.fits")
    there = surveys.vectors(*(np.rad2deg(first[name].astype(np.float64)) for name in ("Ra", "Dec")))
    observation, row, at = vvv_rows(data)
    chord = 2 * np.sin(np.deg2rad(0.5 / 3600) / 2)
    distance, nearest = cKDTree(there).query(at, k=2)
    clear = distance[:, 1] - distance[:, 0] > 1e-12
    expected = np.where(distance[:, 0] <= chord, first["StarID"][nearest[:, 0]], -1)
    names = ["observation_id", "source_row", "object_id"]
    tables = [table.select(names) for table in read_member(found, "detections").values()]
    every = pa.concat_tables([*tables, found.rejected.select(names)])
    place = dict(
        zip(
            (every["observation_id"].to_numpy() * 2**33 + every["source_row"].to_numpy()).tolist(), range(len(every)), strict=True
        )
    )
    ids = every["object_id"].to_numpy()[[place[key] for key in (observation * 2**33 + row).tolist()]]
    assert ((ids >= 0) == (expected >= 0)).all()
    assert (ids[clear & (expected >= 0)] == expected[clear & (expected >= 0)]).all()
    assert clear.mean() > 0.99
    assert found.accounting["reference_unseen"] == len(there) - len(np.unique(ids[ids >= 0]))
