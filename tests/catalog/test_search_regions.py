"""Regions as verbs, in SQL and in conditions: the same rows, found without reading leaves that lie elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from test_catalog import record_reads

from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.catalog.search import box_search, cone_search, moc_search, polygon_search
from scalable.catalog.sql import sql
from scalable.catalog.sql_explain import explain_sql, list_views
from scalable.errors import ColumnError, InputError, QueryError
from scalable.sky.healpix import to_pixels
from scalable.sky.region import Box, Cone, Moc, Region, polygon
from scalable.testing import no_compute

TRIANGLE = ((268.6, -30.1), (269.2, -30.0), (268.8, -29.7))
CELLS = sorted({int(p) for p in to_pixels(np.linspace(268.6, 269.0, 9), np.full(9, -29.95), 8)})
MOC = f"8/{' '.join(map(str, CELLS))}"

FORMS: dict[str, tuple[Region, Callable[[Catalog], Catalog], str]] = {
    "cone": (
        Cone(268.7, -30.0, 720.0),
        lambda c: cone_search(c, ra_deg=268.7, dec_deg=-30.0, radius_arcsec=720.0),
        "in_cone(268.7, -30.0, 0.2)",
    ),
    "box": (
        Box((268.5, 268.9), (-30.1, -29.9)),
        lambda c: box_search(c, ra_deg=(268.5, 268.9), dec_deg=(-30.1, -29.9)),
        "in_box(268.5, 268.9, -30.1, -29.9)",
    ),
    "polygon": (
        polygon(TRIANGLE),
        lambda c: polygon_search(c, vertices_deg=TRIANGLE),
        "in_polygon(268.6, -30.1, 269.2, -30.0, 268.8, -29.7)",
    ),
    "map": (
        Moc(np.array([[cell << 42, cell + 1 << 42] for cell in CELLS])),
        lambda c: moc_search(c, moc=MOC),
        f"in_moc('{MOC}')",
    ),
}


@pytest.fixture(autouse=True)
def _mocpy(request: pytest.FixtureRequest) -> None:
    if "map" in request.node.name:
        pytest.importorskip("mocpy", reason="the extra `moc` is not installed")


@pytest.fixture(scope="module")
def whole(synthetic: Collection) -> pa.Table:
    return synthetic.detections.compute(scheduler="threads")


@pytest.mark.parametrize("form", [pytest.param(f, marks=pytest.mark.long if f == "box" else []) for f in FORMS])
def test_a_region_gives_the_same_rows_as_verb_as_condition_and_in_sql(
    synthetic: Collection, whole: pa.Table, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    region, verb, function = FORMS[form]
    detections = synthetic.detections
    expected = whole.filter(pa.array(region.contains(whole["object_ra"].to_numpy(), whole["object_dec"].to_numpy())))
    assert 50 < expected.num_rows < whole.num_rows / 2
    long = function.replace("(", "(object_ra, object_dec, ", 1)
    with no_compute():
        found = [
            verb(detections),
            detections.where(function),
            sql(synthetic, f"SELECT * FROM detections WHERE {function} AND mjd > 0"),
            sql(synthetic, f"SELECT d.* FROM objects o JOIN detections d USING (object_id) WHERE {function}"),
            sql(synthetic, f"WITH d AS (SELECT * FROM detections WHERE {long}) SELECT * FROM d"),
        ]
    read = record_reads(monkeypatch)
    for number, catalog in enumerate(found):
        read.clear()
        assert len(catalog.leaves) == len(found[0].leaves) < len(detections.leaves) / 2
        assert catalog.compute(scheduler="sync").equals(expected)
        assert len(read) == len(catalog.leaves) * (2 if number == 3 else 1)


def test_a_region_beside_or_and_under_not_leaves_no_leaf_out(synthetic: Collection, whole: pa.Table) -> None:
    region, _, function = FORMS["cone"]
    inside = region.contains(whole["object_ra"].to_numpy(), whole["object_dec"].to_numpy())
    bright = np.asarray(whole["Mag1"].to_numpy() < 13)
    for condition, rows in [(f"NOT {function}", ~inside), (f"{function} OR Mag1 < 13", inside | bright)]:
        found = sql(synthetic, f"SELECT count(*) AS n FROM detections WHERE {condition}")
        assert explain_sql(synthetic, f"SELECT count(*) AS n FROM detections WHERE {condition}").pruned == 0
        assert found.compute(scheduler="threads")["n"][0].as_py() == rows.sum()
    assert len(synthetic.detections.where(f"{function} OR Mag1 < 13").leaves) == len(synthetic.detections.leaves)
    of_partner = function.replace("(", "(d.object_ra, d.object_dec, ", 1)
    joined = f"objects o LEFT JOIN detections d ON o.object_id = d.object_id AND {of_partner}"
    assert explain_sql(synthetic, f"SELECT o.object_id FROM {joined}").pruned == 0


def test_adql_asks_for_the_same_circle_and_polygon(synthetic: Collection) -> None:
    for adql, ours in [
        ("CONTAINS(POINT('ICRS', object_ra, object_dec), CIRCLE('ICRS', 268.7, -30, 0.2)) = 1", "in_cone(268.7, -30, 0.2)"),
        ("1 = CONTAINS(POINT(object_ra, object_dec), CIRCLE(POINT(268.7, -30), 0.2))", "in_cone(268.7, -30, 0.2)"),
        ("CONTAINS(POINT('', object_ra, object_dec), CIRCLE('', 268.7, -30, 0.2)) = 0", "NOT in_cone(268.7, -30, 0.2)"),
        (
            "CONTAINS(POINT('ICRS', object_ra, object_dec), POLYGON('ICRS', 268.6, -30.1, 269.2, -30.0, 268.8, -29.7)) = 1",
            FORMS["polygon"][2],
        ),
    ]:
        theirs, mine = (sql(synthetic, f"SELECT object_id FROM objects WHERE {text}") for text in (adql, ours))
        assert len(theirs.leaves) == len(mine.leaves)
        table = theirs.compute(scheduler="threads")
        assert table.equals(mine.compute(scheduler="threads"))
        assert table.num_rows > 20


def test_a_region_of_the_detections_own_position_is_asked_in_degrees(synthetic: Collection) -> None:
    query = "SELECT count(*) AS n FROM detections WHERE in_cone({}, 268.7, -30, 0.2)"
    with pytest.raises(QueryError, match=r"Ra is in radians.*degrees\(Ra\)"):
        sql(synthetic, query.format("Ra, Dec"))
    with pytest.raises(QueryError, match="Ra is in radians"):
        synthetic.detections.where("in_cone(Ra, Dec, 268.7, -30, 0.2)")
    own = sql(synthetic, query.format("degrees(Ra), degrees(Dec)"))
    objects = sql(synthetic, query.format("object_ra, object_dec"))
    # Leaves are placed by objects, so the position of a detection leaves none out.
    assert explain_sql(synthetic, query.format("degrees(Ra), degrees(Dec)")).pruned == 0
    n, m = (found.compute(scheduler="threads")["n"][0].as_py() for found in (own, objects))
    assert n == pytest.approx(m, abs=20)
    assert n > 100


def test_a_region_is_a_value_that_can_be_grouped_by_and_asked_of_a_mean(synthetic: Collection, whole: pa.Table) -> None:
    region, _, function = FORMS["cone"]
    inside = int(region.contains(whole["object_ra"].to_numpy(), whole["object_dec"].to_numpy()).sum())
    groups = sql(synthetic, f"SELECT {function} AS near, count(*) AS n FROM detections GROUP BY {function} ORDER BY n")
    assert groups.compute(scheduler="threads").to_pylist() == [
        {"near": True, "n": inside},
        {"near": False, "n": whole.num_rows - inside},
    ]
    mean = sql(synthetic, "SELECT in_box(avg(object_ra), avg(object_dec), 268, 270, -31, -29) AS near FROM objects")
    assert mean.compute(scheduler="threads").to_pylist() == [{"near": True}]


def test_a_region_without_any_object_reads_nothing_and_counts_zero(synthetic: Collection) -> None:
    query = "SELECT count(*) AS n, avg(Mag1) AS m, stddev(Mag1) AS s FROM detections WHERE in_cone(10, 80, 1)"
    assert explain_sql(synthetic, query).pruned == len(synthetic.detections.leaves)
    assert sql(synthetic, query).compute(scheduler="threads").to_pylist() == [{"n": 0, "m": None, "s": None}]
    assert sql(synthetic, "SELECT object_id FROM objects WHERE in_cone(10, 80, 1)").compute(scheduler="threads").num_rows == 0


@pytest.mark.parametrize("name", ["map.fits", "map.json", "map.txt"])
def test_a_coverage_map_is_read_from_a_file(synthetic: Collection, tmp_path: Path, name: str) -> None:
    mocpy = pytest.importorskip("mocpy", reason="the extra `moc` is not installed")
    path = tmp_path / name
    form = {".fits": "fits", ".json": "json", ".txt": "ascii"}[path.suffix]
    mocpy.MOC.from_string(MOC, format="ascii").save(path, format=form)
    found = moc_search(synthetic.objects, moc=path)
    assert found.compute(scheduler="threads").equals(moc_search(synthetic.objects, moc=MOC).compute(scheduler="threads"))
    assert found.history[-1]["sky_fraction"] == pytest.approx(len(CELLS) / (12 * 4**8))
    path.write_bytes(b"\x00nothing")
    with pytest.raises(InputError, match=f"{name}: cannot be read as a coverage map"):
        moc_search(synthetic.objects, moc=str(path))
    with pytest.raises(InputError, match="no format of coverage maps"):
        moc_search(synthetic.objects, moc=tmp_path / "map.png")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("in_cone(1, 2)", r"write in_cone\(ra, dec, centre_ra"),
        ("in_cone(1, 2, n_J)", "numbers for the region"),
        ("in_cone(1, 91, 1)", "no cone"),
        ("in_box(1, 2, 4, 3)", "no box"),
        ("in_polygon(1, 2, 3, 4)", "at least three corners"),
        ("in_polygon(1, 2, 3)", "write in_polygon"),
        ("in_moc('x')", "no coverage map"),
        ("in_moc('99/1')", "orders go to 29"),
        ("in_moc(object_ra, object_dec, 3)", "write in_moc"),
        ("contains('abc', 'b')", r"write CONTAINS\(POINT"),
        ("point(1, 2) = 1", r"write CONTAINS\(POINT"),
        ("CONTAINS(POINT('GALACTIC', object_ra, object_dec), CIRCLE(1, 2, 3)) = 1", "ICRS"),
        ("CONTAINS(POINT(object_ra, object_dec), CIRCLE(1, 2, 3)) > 0", r"write CONTAINS|= 1"),
        ("CONTAINS(POINT(object_ra, object_dec), CIRCLE(1, 2, 3)) = 2", "= 1, or = 0"),
    ],
)
def test_a_function_of_the_sky_says_how_it_is_written(synthetic: Collection, call: str, message: str) -> None:
    if "moc" in call:
        pytest.importorskip("mocpy", reason="the extra `moc` is not installed")
    with pytest.raises(QueryError, match=message):
        sql(synthetic, f"SELECT object_id FROM objects WHERE {call}")


def test_where_rows_have_no_position_the_sky_is_not_asked_for(synthetic: Collection) -> None:
    table = sql(synthetic, "SELECT band, count(*) AS n FROM detections GROUP BY band")
    with pytest.raises(ColumnError, match="box_search needs positions"):
        box_search(table, ra_deg=(0, 1), dec_deg=(0, 1))
    with pytest.raises(QueryError, match="no position of their own"):
        table.where("in_cone(1, 2, 3)")


def test_explain_says_what_is_mapped_combined_read_and_left_out(synthetic: Collection) -> None:
    query = "SELECT band, avg(Mag1) AS m FROM detections WHERE in_cone(268.7, -30, 0.2) GROUP BY band ORDER BY m LIMIT 2"
    with no_compute():
        found = explain_sql(synthetic, f"EXPLAIN {query}")
        lazy = sql(synthetic, query)
    assert found.columns == {"detections": ("band", "Mag1", "object_ra", "object_dec")}
    assert "sum" in found.mapped.lower()
    assert "LIMIT" not in found.mapped
    assert found.combined.endswith("LIMIT 2")
    assert found.tasks == len(lazy.__dask_graph__())
    assert found.leaves == len(synthetic.detections.leaves) > found.pruned > 0
    near = cone_search(synthetic.detections, ra_deg=268.7, dec_deg=-30.0, radius_arcsec=720.0).leaves
    assert found.rows == sum(leaf.rows for leaf in near)
    shown = str(found)
    assert f"on each of {len(near)} leaves" in shown
    assert f"{found.pruned} of them not read" in shown
    assert "'radius_arcsec': 720.0" in shown
    assert str(explain_sql(synthetic, "SELECT n_J FROM objects")).count("combined  nothing") == 1
    assert "once" in str(explain_sql(synthetic, "SELECT count(*) AS n FROM observations"))


def test_views_are_listed_with_columns_and_units(synthetic: Collection) -> None:
    with no_compute():
        views = {view.name: view for view in list_views(synthetic)}
    assert list(views)[:3] == ["objects", "detections", "observations"]
    assert len(views) == 3 + synthetic.observations.num_rows
    assert views["detections"].columns["Mag1"].unit == "mag"
    assert views["detections"].rows == synthetic.detections.rows
    counted = sql(synthetic, "SELECT count(*) AS n FROM Field_1_J").compute(scheduler="threads")
    assert views["Field_1_J"].rows == counted["n"][0].as_py()
    for name in ("Field_1_J", "detections", "observations"):
        assert set(sql(synthetic, f"SELECT * FROM {name}").schema.names) == set(views[name].columns.names)
    assert [view.name for view in list_views(synthetic.objects)] == ["catalog"]
