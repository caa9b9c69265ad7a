"""Small random skies where the sphere is awkward: poles, RA 0, corners of pixels, objects across borders or too wide."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import dask
import numpy as np
import pyarrow.parquet as pq
import pytest
import surveys
from astropy import units as u
from cdshealpix import nested
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from surveys import Observation, detections, read_member, write_survey

from scalable.catalog import ingest as stages
from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest

FILES = 6
ROW_BYTES = 8 * 6 + 64 + 8 * 3 + 4
"""About one row of detections here; the limits on leaves below are chosen by it."""

Position = tuple[float, float]


@dataclass(frozen=True)
class Sky:
    """Rows (object, file, right ascension, declination [deg]) in the order of the files, and how the store is to be cut."""

    rows: tuple[tuple[int, int, float, float], ...]
    margin_arcsec: float
    leaf_rows: float

    @property
    def observations(self) -> list[Observation]:
        files = []
        for number in range(FILES):
            mine = [row for row in self.rows if row[1] == number]
            ids, ra, dec = [row[0] for row in mine], [row[2] for row in mine], [row[3] for row in mine]
            files.append(
                Observation(number + 1, "JK"[number % 2].replace("K", "Ks"), float(number // 2), detections(ids, ra, dec))
            )
        return files


def corner(order: int, index: int, vertex: int) -> Position:
    """Return one of the four corners of a pixel."""
    lon, lat = nested.vertices(np.array([index % (12 << 2 * order)], dtype=np.uint64), order, step=1)
    return float(lon.to_value(u.deg)[0, vertex]), float(lat.to_value(u.deg)[0, vertex])


def moved(position: Position, angle_deg: float, distance_arcsec: float) -> Position:
    """Return the position at a distance and an angle from another, also at the poles."""
    at = surveys.vectors([position[0]], [position[1]])[0]
    side = np.cross(at, [0.0, 0.0, 1.0] if abs(at[2]) < 0.9 else [1.0, 0.0, 0.0])
    side /= np.linalg.norm(side)
    angle, distance = np.deg2rad(angle_deg), np.deg2rad(distance_arcsec / 3600)
    x, y, z = np.cos(distance) * at + np.sin(distance) * (np.cos(angle) * side + np.sin(angle) * np.cross(at, side))
    return float(np.rad2deg(np.arctan2(y, x)) % 360.0), float(np.rad2deg(np.arctan2(z, np.hypot(x, y))))


declinations = st.floats(-90, 90, allow_subnormal=False)
anchors = st.one_of(
    st.sampled_from([(0.0, 90.0), (123.0, 90.0), (0.0, -90.0), (270.0, -90.0)]),
    st.tuples(st.sampled_from([0.0, 359.9999999, 1e-9]), declinations),
    st.builds(corner, st.just(0), st.integers(0, 11), st.integers(0, 3)),
    st.builds(corner, st.integers(1, 14), st.integers(0, 12 << 28), st.integers(0, 3)),
    st.tuples(st.floats(0, 359.99, allow_subnormal=False), declinations),
)


@st.composite
def skies(draw: st.DrawFn) -> Sky:
    """Draw few places with several objects each, so that pixels fill up and are cut."""
    margin = draw(st.sampled_from([0.5, 5.0, 60.0]))
    places = draw(st.lists(anchors, min_size=1, max_size=4))
    rows = []
    for number in range(draw(st.integers(1, 12))):
        place = draw(st.sampled_from(places))
        place = moved(place, draw(st.integers(0, 359)), margin * draw(st.sampled_from([0, 0.3, 2, 40])))
        # Detections within half a margin of one point are within a margin of each other.
        reach = margin * draw(st.sampled_from([0.0, 0.1, 0.499, 0.499, 1.5]))
        members = draw(
            st.lists(st.tuples(st.integers(0, FILES - 1), st.integers(0, 359), st.floats(0, 1)), min_size=1, max_size=6)
        )
        for file, angle, share in members:
            rows.append((number + 1, file, *moved(place, angle, reach * share)))
    order = draw(st.permutations(range(len(rows))))
    return Sky(tuple(rows[i] for i in order), margin, draw(st.sampled_from([1.0, 1.0, 3.0, 12.0, 1e6])))


def check(sky: Sky, folder: Path) -> Collection:
    """Ingest a sky and hold every promise about objects, leaves and wide objects against the rows themselves."""
    survey = write_survey(folder, sky.observations, margin_arcsec=sky.margin_arcsec, leaf_mb=sky.leaf_rows * ROW_BYTES / 1e6)
    # No power fails here, and waiting for the disk is most of the time.
    with dask.config.set(scheduler="sync"), mock.patch.object(os, "fsync"), mock.patch.object(stages, "BATCH_BYTES", 20_000):
        found = ingest(survey, into=folder / "store")
    kept, repeated = split(sky)
    leaves = read_member(found, "detections")
    pairs = [
        (entry["observation_id"] - 1, entry["source_row"], entry["object_id"])
        for table in leaves.values()
        for entry in table.select(["observation_id", "source_row", "object_id"]).to_pylist()
    ]
    assert sorted(pairs) == sorted(kept)
    listed = found.rejected.to_pylist()
    assert sorted((e["observation_id"] - 1, e["source_row"], e["object_id"]) for e in listed) == sorted(repeated)
    check_objects(found, kept)
    check_wide(found, sky)
    return found


def split(sky: Sky) -> tuple[dict[tuple[int, int, int], NDArray[np.float64]], list[tuple[int, int, int]]]:
    """Return (file, row, object) of the rows that must be stored, with their vectors, and of the duplicates."""
    kept, repeated, seen = {}, [], set()
    counts: Counter[int] = Counter()
    for number, file, ra, dec in sky.rows:
        key = (file, counts[file], number)
        counts[file] += 1
        if (number, file) in seen:
            repeated.append(key)
        else:
            kept[key] = surveys.vectors([ra], [dec])[0]
        seen.add((number, file))
    return kept, repeated


def check_objects(found: Collection, kept: dict[tuple[int, int, int], NDArray[np.float64]]) -> None:
    """Check that every object is in one leaf, the right one, whole, with its mean position and counts."""
    leaves, siblings = read_member(found, "objects"), read_member(found, "detections")
    assert list(leaves) == list(siblings)
    objects = [(name, entry) for name, table in leaves.items() for entry in table.to_pylist()]
    assert Counter(entry["object_id"] for _, entry in objects) == Counter({key[2] for key in kept})
    ranges = []
    for name in leaves:
        order, index = (int(part.split("=")[1].removesuffix(".parquet")) for part in (name.split("/")[1], name.split("/")[3]))
        ranges.append((index << 2 * (29 - order), (index + 1) << 2 * (29 - order)))
    assert all(earlier[1] <= later[0] for earlier, later in zip(sorted(ranges), sorted(ranges)[1:], strict=False))
    bounds = dict(zip(leaves, ranges, strict=True))
    for name, entry in objects:
        members = {key: at for key, at in kept.items() if key[2] == entry["object_id"]}
        mean = np.sum(list(members.values()), axis=0)
        given_at = surveys.vectors([entry["object_ra"]], [entry["object_dec"]])[0]
        assert surveys.separation_arcsec(given_at, mean / np.linalg.norm(mean)) < 1e-6
        lon, lat = entry["object_ra"] * u.deg, entry["object_dec"] * u.deg
        pixel = int(nested.lonlat_to_healpix(np.atleast_1d(lon), np.atleast_1d(lat), 29)[0])
        assert entry["_healpix_29"] == pixel
        assert bounds[name][0] <= pixel < bounds[name][1]
        rows = siblings[name].slice(entry["detection_offset"], entry["detection_count"])
        slices = sorted(zip(rows["observation_id"].to_pylist(), rows["source_row"].to_pylist(), strict=True))
        assert slices == sorted((file + 1, row) for file, row, _ in members)
        bands = Counter("J" if file % 2 == 0 else "Ks" for file, _, _ in members)
        assert (entry["n_J"], entry["n_Ks"]) == (bands["J"], bands["Ks"])
    for name, table in siblings.items():
        names = ("_healpix_29", "object_id", "band", "mjd", "observation_id", "source_row")
        keys = list(zip(*(table[column].to_pylist() for column in names), strict=True))
        assert keys == sorted(keys)
        assert leaves[name]["detection_count"].to_numpy().sum() == table.num_rows


def check_wide(found: Collection, sky: Sky) -> None:
    """Check that those objects are listed, with their spread, whose detections are further apart than the margin."""
    listed = {entry["object_id"]: entry for entry in pq.ParquetFile(found.path / "wide_objects.parquet").read().to_pylist()}
    assert found.manifest["wide_objects"] == len(listed)
    pixels = {e["object_id"]: e["_healpix_29"] for table in read_member(found, "objects").values() for e in table.to_pylist()}
    for number in {row[0] for row in sky.rows}:
        at = surveys.vectors(*zip(*[row[2:] for row in sky.rows if row[0] == number], strict=True))
        spread = max(float(surveys.separation_arcsec(at, one).max()) for one in at)
        if abs(spread - sky.margin_arcsec) < 1e-6:
            continue
        assert (number in listed) == (spread > sky.margin_arcsec)
        if number in listed:
            assert listed[number]["spread_arcsec"] == pytest.approx(spread, abs=1e-6)
            assert listed[number]["owner"] == pixels[number]


def check_in_a_folder_of_its_own(sky: Sky) -> Collection:
    with tempfile.TemporaryDirectory() as folder:
        return check(sky, Path(folder))


def around(place: Position, distance_arcsec: float, objects: Sequence[int], margin: float, leaf_rows: float) -> Sky:
    """Return objects each of which has six detections in a circle about one place."""
    rows = [(number, file, *moved(place, 60 * file + number, distance_arcsec)) for number in objects for file in range(FILES)]
    return Sky(tuple(rows), margin, leaf_rows)


@pytest.mark.parametrize(
    "leaf_rows",
    [
        pytest.param(1.0, id="tiny leaves"),
        pytest.param(10.0, id="small leaves", marks=pytest.mark.long),
        pytest.param(1e6, id="one leaf", marks=pytest.mark.long),
    ],
)
@pytest.mark.parametrize(
    "place",
    [
        (0.0, 90.0),
        (77.0, -90.0),
        (0.0, 0.0),
        (0.0, 33.0),
        corner(0, 0, 0),
        corner(0, 5, 2),
        corner(0, 9, 1),
        corner(0, 3, 3),
        (45.0, float(np.rad2deg(np.arcsin(2 / 3)))),
        corner(10, 7_000_001, 1),
        corner(13, 300_000_000, 2),
    ],
    ids=[
        "north pole",
        "south pole",
        "RA 0 on the equator",
        "RA 0",
        "south corner of 0",
        "north corner of 5",
        "corner of 9",
        "corner of 3",
        "cap",
        "order 10",
        "order 13",
    ],
)
def test_objects_around_an_awkward_place_are_stored_once_and_whole(tmp_path: Path, place: Position, leaf_rows: float) -> None:
    found = check(around(place, 2.4, range(1, 8), margin=5.0, leaf_rows=leaf_rows), tmp_path)
    assert found.accounting == found.accounting | {"read": 42, "stored": 42, "rejected": 0, "objects": 7}
    assert found.manifest["wide_objects"] == 0


@pytest.mark.parametrize("place", [(0.0, 90.0), (0.0, -20.0), corner(0, 4, 0)], ids=["pole", "RA 0", "corner"])
def test_objects_wider_than_the_margin_are_stored_whole_and_listed(tmp_path: Path, place: Position) -> None:
    found = check(around(place, 7.4, range(1, 8), margin=5.0, leaf_rows=10.0), tmp_path)
    assert found.accounting["stored"] == 42
    assert found.manifest["wide_objects"] == 7
    table = pq.ParquetFile(found.path / "wide_objects.parquet").read()
    np.testing.assert_allclose(table["spread_arcsec"].to_numpy(), 14.8, atol=1e-6)
    assert table["detections"].to_pylist() == [6] * 7


def test_a_spread_of_just_the_margin_is_not_wide_and_a_little_more_is(tmp_path: Path) -> None:
    rows = [(1, 0, 10.0, 0.0), (1, 1, 10.0, 4.999999 / 3600), (2, 0, 20.0, 0.0), (2, 1, 20.0, 5.000001 / 3600)]
    found = check(Sky(tuple(rows), 5.0, 1e6), tmp_path)
    assert pq.ParquetFile(found.path / "wide_objects.parquet").read()["object_id"].to_pylist() == [2]


def test_an_object_whose_mean_lies_in_a_leaf_that_holds_none_of_its_rows_is_found_there(tmp_path: Path) -> None:
    # About the corner of a pixel: detections left and right of it, the mean above or below.
    place = corner(6, 20_000, 0)
    sides = [moved(place, angle, 2.4) for angle in (0, 180)]
    up, down = moved(place, 90, 1.0), moved(place, 270, 1.0)
    rows = [(1, file, *moved(sides[file % 2], 90, 0.4)) for file in range(4)]
    rows += [(2, file, *moved(sides[file % 2], 270, 0.4)) for file in range(4)]
    rows += [(number, file, *(up if number % 2 else down)) for number in range(3, 9) for file in range(4)]
    check(Sky(tuple(rows), 6.0, 8.0), tmp_path)


@settings(max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(skies())
def test_in_any_small_sky_every_row_is_stored_once_and_every_object_is_whole(sky: Sky) -> None:
    check_in_a_folder_of_its_own(sky)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(skies())
def test_in_any_small_sky_of_many_every_row_is_stored_once_and_every_object_is_whole(sky: Sky) -> None:
    check_in_a_folder_of_its_own(sky)
