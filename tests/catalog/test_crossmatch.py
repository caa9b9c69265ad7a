"""Crossmatch: the pairs of all pairs of the sky, whatever the tilings, the partitions and the place."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from surveys import nested_pixels, separation_arcsec, vectors

from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.collection import Collection
from scalable.catalog.match import HOWS, crossmatch
from scalable.catalog.search import cone_search
from scalable.catalog.write import write_catalog
from scalable.errors import ColumnError, StoreError
from scalable.io.layout import HEALPIX_COLUMN, finish_catalog
from scalable.io.parquet import read_leaf, write_leaf
from scalable.kernels.partition import split_pixels
from scalable.schema import Column, Schema
from scalable.sky.pixel import Pixel
from scalable.testing import no_compute

Float = NDArray[np.float64]
Pair = tuple[int | None, int | None]

COLUMNS = Schema(
    (
        Column(HEALPIX_COLUMN, pa.int64()),
        Column("object_id", pa.int64(), role="object_id"),
        Column("object_ra", pa.float64(), role="ra", unit="deg"),
        Column("object_dec", pa.float64(), role="dec", unit="deg"),
        Column("flux", pa.float32(), role="flux", unit="adu", error="flux_err"),
        Column("flux_err", pa.float32(), role="flux_err", unit="adu"),
        Column("name", pa.string()),
    )
)
SKY = (HEALPIX_COLUMN, "object_ra", "object_dec")
CELLS = 14
"""Order of the smallest leaves of these tests."""


def place(folder: Path, ra: Sequence[float], dec: Sequence[float], *, leaf_rows: int) -> Catalog:
    """Write positions as a HATS catalogue of leaves of at most ``leaf_rows`` rows, with holes where there is no row."""
    ra, dec = np.asarray(ra, dtype=np.float64), np.asarray(dec, dtype=np.float64)
    pixel = nested_pixels(ra, dec, 29)
    order = np.argsort(pixel, kind="stable")
    n = np.arange(len(ra))
    values = [pixel[order], 1000 + n, ra[order], dec[order], n / 7, n / 70, [f"row {i}" for i in n]]
    table = pa.table([pa.array(v).cast(c.dtype) for v, c in zip(values, COLUMNS, strict=True)], schema=COLUMNS.to_arrow())
    cells, counts = np.unique(pixel >> 2 * (29 - CELLS), return_counts=True)
    leaves = []
    for level, index, _ in split_pixels(cells, counts, CELLS, limit=leaf_rows, max_order=CELLS):
        at = Pixel(level, index)
        rows = np.flatnonzero((pixel[order] >= at.start) & (pixel[order] < at.stop))
        leaves.append(write_leaf(table.take(rows), folder, at.hats_path))
    position, date = ("object_ra", "object_dec"), "2020-01-01T00:00:00Z"
    finish_catalog(folder, leaves, schema=table.schema, name=folder.name, product="object", position=position, date=date)
    return open_catalog(folder)


def truth(left: Catalog, right: Catalog, radius: float, *, k: int = 1, how: str = "inner", mutual: bool = False) -> list[Pair]:
    """Return the ids of all rows that a crossmatch must have, from the table of all separations."""
    mine, others = left.compute(scheduler="sync"), right.compute(scheduler="sync")
    a, b = (vectors(t["object_ra"].to_numpy(), t["object_dec"].to_numpy()) for t in (mine, others))
    squared = ((a[:, None, :] - b[None, :, :]) ** 2).sum(axis=2)
    near = squared <= (2 * np.sin(np.deg2rad(radius / 3600) / 2)) ** 2
    pairs: list[tuple[int, int]] = []
    for row in range(len(a)):
        nearest = [int(other) for other in np.argsort(squared[row], kind="stable") if near[row, other]][:k]
        pairs += [(row, other) for other in nearest if not mutual or np.argmin(squared[:, other]) == row]
    ids, other_ids = mine["object_id"].to_pylist(), others["object_id"].to_pylist()
    found: list[Pair] = [(ids[row], other_ids[other]) for row, other in pairs]
    if how != "inner":
        found += [(i, None) for row, i in enumerate(ids) if row not in {pair[0] for pair in pairs}]
    if how == "outer":
        found += [(None, i) for row, i in enumerate(other_ids) if row not in {pair[1] for pair in pairs}]
    return sorted(found, key=str)


def ids(table: pa.Table) -> list[Pair]:
    return list(zip(table["object_id"].to_pylist(), table["object_id_2"].to_pylist(), strict=True))


def check(left: Catalog, right: Catalog, radius: float, **options: Any) -> pa.Table:
    """Hold a crossmatch against all pairs, and every row against the two it is made of; return it."""
    lazy = crossmatch(left, right, radius_arcsec=radius, **options)
    # Each row lies in the leaf that gives it: so any of them can be written.
    pieces = [lazy.on_leaves([leaf]).compute(scheduler="sync") for leaf in lazy.leaves]
    for leaf, piece in zip(lazy.leaves, pieces, strict=True):
        inside = piece[HEALPIX_COLUMN].to_numpy()
        assert ((inside >= leaf.pixel.start) & (inside < leaf.pixel.stop)).all()
        assert (np.diff(inside) >= 0).all()
    found = pa.concat_tables(pieces)
    mutual = options.pop("one_to_one", False)
    assert sorted(ids(found), key=str) == truth(left, right, radius, mutual=mutual, **options)
    mine = {row["object_id"]: row for row in left.compute(scheduler="sync").to_pylist()}
    others = {row["object_id"]: row for row in right.compute(scheduler="sync").to_pylist()}
    for row in found.to_pylist():
        one, other = mine.get(row["object_id"]), others.get(row["object_id_2"])
        assert {name: row[f"{name}_2"] for name in COLUMNS.names} == (other or dict.fromkeys(COLUMNS.names))
        stands = one or {name: other[name] if other and name in SKY else None for name in COLUMNS.names}
        assert {name: row[name] for name in COLUMNS.names} == stands
        if one and other:
            a, b = (vectors([r["object_ra"]], [r["object_dec"]]) for r in (one, other))
            assert row["separation_arcsec"] == pytest.approx(separation_arcsec(a, b)[0], rel=1e-6, abs=1e-9)
        else:
            assert row["separation_arcsec"] is None
    return found


PLACES = [(0.0, 90.0), (0.0, -90.0), (0.0, 0.0), (0.0, 45.0), (45.0, 41.8103149), (90.0, -41.8103149), (213.7, -61.2)]
"""Poles, right ascension 0, corners of base pixels, and a place like any other."""


def around(rng: np.random.Generator, at: tuple[float, float], size_arcsec: float, n: int) -> tuple[Float, Float]:
    points = vectors([at[0]], [at[1]]) + np.deg2rad(size_arcsec / 3600) * rng.normal(size=(n, 3))
    x, y, z = points.T
    return np.rad2deg(np.arctan2(y, x)) % 360.0, np.rad2deg(np.arctan2(z, np.hypot(x, y)))


@st.composite
def matches(draw: st.DrawFn) -> dict[str, Any]:
    """Draw two catalogues about the same places, some rows at the same position, tilings of any size, and what to ask."""
    radius = draw(st.sampled_from([0.01, 2.0, 100.0, 20_000.0]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    spots = draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=3, unique=True))
    pool = [around(rng, at, radius * draw(st.sampled_from([0.5, 2.0, 10.0])), draw(st.integers(1, 15))) for at in spots]
    ra, dec = np.concatenate([p[0] for p in pool]), np.concatenate([p[1] for p in pool])
    sides = []
    for _ in range(2):
        rows = rng.integers(0, len(ra), draw(st.integers(1, 20)))
        shift = rng.normal(size=len(rows)) * radius / 3600 * draw(st.sampled_from([0.0, 0.5]))
        sides.append((ra[rows], np.clip(dec[rows] + shift, -90, 90), draw(st.sampled_from([2, 5, 100]))))
    how, one_to_one = draw(st.sampled_from(HOWS)), draw(st.booleans())
    k = 1 if one_to_one else draw(st.sampled_from([1, 2, 50]))
    return {"sides": sides, "radius": radius, "how": how, "one_to_one": one_to_one, "k": k}


@settings(max_examples=8, deadline=None, derandomize=True)
@given(matches())
def test_on_any_small_sky_the_rows_are_those_of_all_pairs(drawn: dict[str, Any]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        sides = [place(Path(folder) / str(i), ra, dec, leaf_rows=n) for i, (ra, dec, n) in enumerate(drawn.pop("sides"))]
        check(sides[0], sides[1], drawn.pop("radius"), **drawn)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Catalog, Catalog]:
    """Two catalogues of one field at right ascension 0, of unlike tilings; the right one reaches beyond the left."""
    folder = tmp_path_factory.mktemp("pair")
    rng = np.random.default_rng(7)
    left = around(rng, (0.0, 20.0), 400.0, 250)
    further = around(rng, (0.2, 20.2), 400.0, 200)
    # Some near each left row, some elsewhere.
    ra = np.concatenate([left[0][:150] + rng.normal(size=150) / 3600, further[0]])
    dec = np.concatenate([left[1][:150] + rng.normal(size=150) / 3600, further[1]])
    return place(folder / "left", *left, leaf_rows=30), place(folder / "right", ra % 360, dec, leaf_rows=70)


ASKED: list[dict[str, Any]] = [
    {"radius_arcsec": 2.0},
    {"radius_arcsec": 2.0, "how": "left"},
    {"radius_arcsec": 2.0, "how": "outer"},
    {"radius_arcsec": 60.0, "k": 3, "how": "outer"},
    {"radius_arcsec": 200.0, "one_to_one": True, "how": "outer"},
    {"radius_arcsec": 200.0, "one_to_one": True},
]


@pytest.mark.parametrize(
    "asked", [pytest.param(asked, id=str(asked), marks=[] if n in (2, 3) else pytest.mark.long) for n, asked in enumerate(ASKED)]
)
def test_one_three_and_twelve_partitions_give_the_rows_of_all_pairs(pair: tuple[Catalog, Catalog], asked: dict[str, Any]) -> None:
    left, right = pair
    assert len(left.leaves) > 12
    assert len(right.leaves) > 4
    options = dict(asked)
    whole = check(left, right, options.pop("radius_arcsec"), **options)
    assert whole.num_rows > 100
    for partitions in (1, 3, 12):
        cut = crossmatch(left.repartition(partitions), right.repartition(3), **asked)
        assert cut.compute(scheduler="threads").equals(whole)


def test_nothing_is_computed_before_it_is_asked_for_and_tasks_are_partitions(pair: tuple[Catalog, Catalog]) -> None:
    left, right = pair
    before = [(side.chain, side.partitions, side.schema) for side in pair]
    with no_compute():
        lazy = crossmatch(left.where("flux > 10").repartition(5), right, radius_arcsec=2.0).where("separation_arcsec < 1")
        assert "pending: inner crossmatch with right (1 nearest within 2 arcsec)" in repr(lazy)
        assert "done" not in repr(lazy)
    assert len(lazy.__dask_graph__()) == lazy.npartitions == 5
    assert pickle.loads(pickle.dumps(lazy)).compute(scheduler="processes").equals(lazy.compute(scheduler="sync"))
    assert "done: crossmatch: with right, radius_arcsec 2" in repr(lazy.persist(scheduler="sync"))
    assert [(side.chain, side.partitions, side.schema) for side in pair] == before


def test_the_columns_say_what_they_are_without_data(pair: tuple[Catalog, Catalog]) -> None:
    with no_compute():
        columns = crossmatch(*pair, radius_arcsec=1.0, suffix="_r").columns
    assert columns.names == [*COLUMNS.names, *(f"{name}_r" for name in COLUMNS.names), "separation_arcsec"]
    apart = columns["separation_arcsec"]
    assert (apart.unit, apart.ucd, apart.dtype) == ("arcsec", "pos.angDistance", pa.float64())
    assert (columns["flux_r"].unit, columns["flux_r"].error, columns["flux_r"].role) == ("adu", "flux_err_r", "flux")
    for role, name in (("ra", "object_ra"), ("dec", "object_dec"), ("object_id", "object_id")):
        assert [column.name for column in columns.by_role(role)] == [name]


def test_payload_is_read_for_wanted_columns_and_leaves_with_pairs_alone(
    pair: tuple[Catalog, Catalog], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[tuple[str, tuple[str, ...]]] = []

    def recorded(path: Path, columns: Sequence[str]) -> pa.Table:
        read.append((path.parts[-5], tuple(columns)))
        return read_leaf(path, columns)

    monkeypatch.setattr("scalable.catalog.steps.read_leaf", recorded)
    left, right = pair
    found = crossmatch(left, right, radius_arcsec=1.0).select("flux_2", "separation_arcsec").compute(scheduler="sync")
    assert found.num_rows > 50
    assert set(read) == {("left", SKY), ("right", SKY), ("right", ("flux",))}
    read.clear()
    assert crossmatch(left, right.where("flux < 0"), radius_arcsec=1.0).compute(scheduler="sync").num_rows == 0
    assert {columns for side, columns in read if side == "left"} == {SKY}
    assert {columns for side, columns in read if side == "right"} == {(*SKY, "flux")}


def test_filters_before_it_decide_who_is_there_to_match(pair: tuple[Catalog, Catalog]) -> None:
    left, right = (side.where("flux > 20") for side in pair)
    found = check(left, right, 2.0, how="outer")
    assert pc.all(pc.greater(found["flux"].drop_null(), 20.0)).as_py()
    nothing = right.where("flux < 0")
    assert check(left, nothing, 2.0, how="left").num_rows == left.compute().num_rows
    assert check(nothing, left, 2.0, how="outer").num_rows == left.compute().num_rows
    assert crossmatch(left.on_leaves([]), right, radius_arcsec=2.0).compute().num_rows == 0
    assert check(left.on_leaves([]), right, 2.0, how="outer").num_rows == right.compute().num_rows


@pytest.mark.parametrize("how", HOWS)
def test_the_result_is_written_opened_and_matched_again(pair: tuple[Catalog, Catalog], tmp_path: Path, how: str) -> None:
    left, right = pair
    lazy = crossmatch(left, right, radius_arcsec=2.0, how=how)
    written = write_catalog(lazy, tmp_path / "pairs")
    assert written.compute().equals(lazy.compute())
    assert [record["step"] for record in written.history] == ["crossmatch"]
    cone = {"ra_deg": 0.1, "dec_deg": 20.1, "radius_arcsec": 500.0}
    assert cone_search(written, **cone).compute().equals(cone_search(lazy, **cone).compute())
    chained = crossmatch(lazy, right, radius_arcsec=2.0, suffix="_3", how="left")
    assert chained.columns["separation_arcsec_3"].unit == "arcsec"
    table = chained.compute()
    both = table.filter(pc.and_(pc.is_valid(table["object_id"]), pc.is_valid(table["object_id_2"])))
    assert both["object_id_3"].equals(both["object_id_2"])
    assert both["separation_arcsec_3"].equals(both["separation_arcsec"])


def test_each_object_of_a_store_is_its_own_nearest_and_the_next_is_a_neighbour(synthetic: Collection) -> None:
    objects = synthetic.objects
    itself = crossmatch(objects, objects, radius_arcsec=1.0).compute()
    assert itself["object_id"].equals(itself["object_id_2"])
    assert itself.num_rows == objects.rows
    assert not np.any(itself["separation_arcsec"].to_numpy())
    # Far beyond the margin of the store: nothing across a border is lost.
    radius = 12 * synthetic.manifest["margin_arcsec"]
    table = objects.select(*SKY, "object_id").compute()
    at = vectors(table["object_ra"].to_numpy(), table["object_dec"].to_numpy())
    apart = separation_arcsec(at[:, None, :], at[None, :, :])
    found = crossmatch(objects, objects, radius_arcsec=radius, k=1000).select("object_id", "object_id_2").compute()
    near = np.argwhere(apart <= radius)
    every = table["object_id"].to_numpy()
    assert sorted(ids(found)) == sorted(zip(every[near[:, 0]].tolist(), every[near[:, 1]].tolist(), strict=True))
    assert len(near) > 2 * len(table)
    with dask.config.set(scheduler="threads"):
        curves = crossmatch(synthetic.detections, objects, radius_arcsec=0.001).compute()
    assert curves["object_id"].equals(curves["object_id_2"])
    assert curves.num_rows == synthetic.detections.rows


def test_what_cannot_be_matched_is_said_before_anything_is_read(pair: tuple[Catalog, Catalog]) -> None:
    left, right = pair
    with no_compute():
        for radius in (0.0, -1.0, float("nan"), 700_000.0):
            with pytest.raises(ValueError, match="radius_arcsec"):
                crossmatch(left, right, radius_arcsec=radius)
        with pytest.raises(ValueError, match="inner, left, outer"):
            crossmatch(left, right, radius_arcsec=1.0, how="right")
        with pytest.raises(ValueError, match="at least 1"):
            crossmatch(left, right, radius_arcsec=1.0, k=0)
        with pytest.raises(ValueError, match="exactly 1"):
            crossmatch(left, right, radius_arcsec=1.0, k=2, one_to_one=True)
        with pytest.raises(ColumnError, match="two columns '_healpix_29'; choose another suffix than ''"):
            crossmatch(left, right, radius_arcsec=1.0, suffix="")
        with pytest.raises(ColumnError, match="_healpix_29 of right; keep it"):
            crossmatch(left, right.select("object_ra", "object_dec"), radius_arcsec=1.0)
        with pytest.raises(ColumnError, match="crossmatch needs positions, and left has none"):
            crossmatch(left.select("flux"), right, radius_arcsec=1.0)
    with pytest.raises(StoreError, match="left comes from earlier tasks"):
        crossmatch(left.persist(scheduler="sync"), right, radius_arcsec=1.0)


@pytest.mark.parametrize(
    "options",
    [
        {"how": "left", "k": 2},
        {"one_to_one": True, "how": "outer"},
        *(pytest.param(how, marks=pytest.mark.long) for how in ({}, {"k": 4}, {"how": "outer"}, {"one_to_one": True})),
    ],
)
def test_margins_give_the_rows_that_neighbouring_leaves_give(
    options: dict[str, Any], synthetic: Collection, tmp_path: Path
) -> None:
    shutil.copytree(synthetic.path / "detections" / "detections", tmp_path / "bare")
    objects, detections, bare = synthetic.objects, synthetic.detections, open_catalog(tmp_path / "bare")
    for left, rights in ((objects, (detections, bare)), (detections, (detections, bare))):
        radius = synthetic.manifest["margin_arcsec"] / 2
        with_margin, without = (crossmatch(left, right, radius_arcsec=radius, **options) for right in rights)
        paths = [{leaf.path for match in result.leaves for leaf in match.right} for result in (with_margin, without)]
        assert any("_margin" in path for path in paths[0])
        assert not any("_margin" in path for path in paths[1])
        assert with_margin.compute(scheduler="sync").equals(without.compute(scheduler="sync"))


def test_a_margin_is_not_read_beyond_its_threshold_nor_where_leaves_were_left_out(synthetic: Collection) -> None:
    detections, margin = synthetic.detections, synthetic.manifest["margin_arcsec"]
    some = detections.on_leaves(detections.leaves[1:])
    for right, radius in ((detections, margin * 1.01), (some, margin)):
        pairs = crossmatch(synthetic.objects, right, radius_arcsec=radius)
        assert not any("_margin" in leaf.path for match in pairs.leaves for leaf in match.right)
