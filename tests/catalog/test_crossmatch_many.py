"""Many catalogues at once: each row of each is in one object, and objects are those of all pairs, whatever the tilings."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from surveys import vectors
from test_crossmatch import COLUMNS, place

from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.match import crossmatch
from scalable.catalog.match_many import crossmatch_many
from scalable.catalog.search import cone_search
from scalable.catalog.steps import Chain, LeafLoader
from scalable.catalog.write import write_catalog
from scalable.errors import ColumnError
from scalable.io.layout import LeafInfo
from scalable.sky.pixel import Pixel
from scalable.testing import no_compute

Object = tuple[int | None, ...]

PLACES = [(10.0, 20.0), (0.0, 0.0), (45.0, 90.0), (300.0, -89.9999), (359.9999, -41.0)]


def sky(rng: np.random.Generator, centre: tuple[float, float], rows: int, radius_arcsec: float) -> tuple[NDArray, NDArray]:
    """Return crowded positions within some radii of a place."""
    scale = 4 * radius_arcsec / 3600
    dec = np.clip(centre[1] + rng.uniform(-scale, scale, rows), -90.0, 90.0)
    return (centre[0] + rng.uniform(-scale, scale, rows) / max(np.cos(np.deg2rad(centre[1])), 1e-9)) % 360.0, dec


def truth(catalogs: Sequence[Catalog], radius_arcsec: float) -> Counter[Object]:
    """Return the ids of all objects, from the tables of all separations, catalogue by catalogue."""
    chord = 2 * np.sin(np.deg2rad(radius_arcsec / 3600) / 2)
    founded, objects = np.zeros((0, 3)), list[list[int | None]]()
    for number, catalog in enumerate(catalogs):
        table = catalog.compute(scheduler="sync")
        here = vectors(table["object_ra"].to_numpy(), table["object_dec"].to_numpy())
        ids = table["object_id"].to_pylist()
        squared = ((founded[:, None, :] - here[None, :, :]) ** 2).sum(axis=2)
        new = list(range(len(here)))
        if len(founded) and len(here):
            best_row, best_object = squared.argmin(axis=1), squared.argmin(axis=0)
            for entry in range(len(founded)):
                row = int(best_row[entry])
                mutual = best_object[row] == entry and squared[entry, row] <= chord**2
                objects[entry].append(ids[row] if mutual else None)
                if mutual:
                    new.remove(row)
        else:
            for entry in objects:
                entry.append(None)
        objects += [[None] * number + [ids[row]] for row in new]
        founded = np.concatenate([founded, here[new]])
    return Counter(map(tuple, objects))


def found(many: Catalog, names: Sequence[str]) -> Counter[Object]:
    table = many.compute(scheduler="sync")
    return Counter(zip(*(table[f"object_id_{name}"].to_pylist() for name in names), strict=True))


@given(
    seed=st.integers(0, 2**32 - 1),
    centre=st.sampled_from(PLACES),
    counts=st.lists(st.integers(1, 25), min_size=2, max_size=4),
    radius=st.sampled_from([0.1, 1.0, 30.0]),
)
@settings(max_examples=8, deadline=None)
def test_objects_are_those_of_all_pairs_whatever_the_tilings(
    seed: int, centre: tuple[float, float], counts: list[int], radius: float
) -> None:
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        catalogs = {
            f"c{n}": place(Path(folder, f"c{n}"), *sky(rng, centre, rows, radius), leaf_rows=int(rng.integers(2, 20)))
            for n, rows in enumerate(counts)
        }
        expected = truth(list(catalogs.values()), radius)
        with no_compute():
            many = crossmatch_many(catalogs, radius_arcsec=radius)
            inner = crossmatch_many(catalogs, radius_arcsec=radius, how="inner")
        assert found(many, list(catalogs)) == expected
        assert found(inner, list(catalogs)) == Counter({ids: n for ids, n in expected.items() if None not in ids})
        assert found(many.repartition(1), list(catalogs)) == expected


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Catalog]:
    """Return 300 stars in three bands, each seen within 0.2 arcsec of its place by most."""
    rng, folder = np.random.default_rng(3), tmp_path_factory.mktemp("three")
    ra, dec = 150 + rng.uniform(-0.2, 0.2, 300), 2 + rng.uniform(-0.2, 0.2, 300)
    catalogs = {}
    for band, limit in (("Y", 7), ("J", 20), ("Ks", 60)):
        seen = rng.random(300) < 0.9
        jitter = rng.uniform(-0.1, 0.1, (2, 300)) / 3600
        catalogs[band] = place(folder / band, (ra + jitter[0])[seen], (dec + jitter[1])[seen], leaf_rows=limit)
    return catalogs


def test_every_row_of_every_catalogue_is_in_exactly_one_object(three: dict[str, Catalog]) -> None:
    table = crossmatch_many(three, radius_arcsec=1.0).compute(scheduler="sync")
    for band, catalog in three.items():
        ids = table[f"object_id_{band}"].drop_null().to_pylist()
        assert sorted(ids) == sorted(catalog.compute(scheduler="sync")["object_id"].to_pylist())
    assert table.num_rows <= 300
    assert table["n_catalogs"].to_pylist() == [
        sum(value is not None for value in row) for row in zip(*(table[f"object_id_{b}"].to_pylist() for b in three), strict=True)
    ]


def test_two_catalogues_give_the_pairs_of_a_one_to_one_crossmatch(three: dict[str, Catalog]) -> None:
    pair = {band: three[band] for band in ("Y", "J")}
    many = crossmatch_many(pair, radius_arcsec=1.0, how="inner").compute(scheduler="sync")
    two = crossmatch(three["Y"], three["J"], radius_arcsec=1.0, one_to_one=True).compute(scheduler="sync")
    assert many["object_id_Y"].to_pylist() == two["object_id"].to_pylist()
    assert many["object_id_J"].to_pylist() == two["object_id_2"].to_pylist()
    assert many["separation_arcsec_J"].to_pylist() == two["separation_arcsec"].to_pylist()
    assert set(many["separation_arcsec_Y"].to_pylist()) == {0.0}


def test_an_object_stands_where_it_was_seen_first_with_the_meaning_of_each_column(three: dict[str, Catalog]) -> None:
    many = crossmatch_many(three, radius_arcsec=1.0)
    row = many.where("object_id_Y is null and object_id_J is not null").head(1).to_pylist()[0]
    assert (row["object_ra"], row["object_dec"]) == (row["object_ra_J"], row["object_dec_J"])
    assert row["flux_Y"] is None
    assert row["separation_arcsec_Y"] is None
    assert row["_healpix_29"] == row["_healpix_29_J"]
    assert many.columns["flux_Ks"].unit == "adu"
    assert many.columns["flux_Ks"].error == "flux_err_Ks"
    assert many.columns["separation_arcsec_Ks"].unit == "arcsec"
    assert [column.name for column in many.columns.by_role("ra")] == ["object_ra"]


def test_only_asked_columns_are_read_and_the_result_is_a_catalogue_like_any_other(
    three: dict[str, Catalog], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = crossmatch_many(three, radius_arcsec=1.0)
    written = write_catalog(many, tmp_path / "many")
    assert written.compute(scheduler="sync").sort_by("object_ra").equals(many.compute(scheduler="sync").sort_by("object_ra"))
    assert open_catalog(tmp_path / "many").history[-1]["step"] == "crossmatch_many"
    near = cone_search(many, ra_deg=150.0, dec_deg=2.0, radius_arcsec=200)
    assert 0 < near.compute(scheduler="sync").num_rows < 40
    wanted: set[str] = set()
    load = LeafLoader.load
    monkeypatch.setattr(LeafLoader, "load", lambda self, leaf, columns: (wanted.update(columns), load(self, leaf, columns))[1])
    many.select("flux_J").compute(scheduler="sync")
    assert wanted == {"_healpix_29", "object_ra", "object_dec", "flux"}


def test_a_whole_sky_in_12288_leaves_is_declared_in_a_moment() -> None:
    def leaves(name: str) -> Catalog:
        pieces = tuple((LeafInfo(Pixel(5, index).hats_path, 1000, 40_000),) for index in range(12 * 4**5))
        return Catalog(Chain(LeafLoader(f"/{name}")), pieces, COLUMNS.to_arrow(), name)

    left, right = leaves("a"), leaves("b")
    start = time.process_time()
    pairs = crossmatch(left, right, radius_arcsec=1.0)
    graph = dict(pairs.__dask_graph__())
    seconds = time.process_time() - start
    assert len(graph) == pairs.npartitions == 12_288
    assert seconds < 3.0
    assert len(cloudpickle.dumps(graph)) < 10e6


def test_what_cannot_be_matched_is_said(three: dict[str, Catalog]) -> None:
    with pytest.raises(ValueError, match="1 given, at least 2"):
        crossmatch_many({"Y": three["Y"]}, radius_arcsec=1.0)
    with pytest.raises(ValueError, match="not between 0"):
        crossmatch_many(three, radius_arcsec=0.0)
    with pytest.raises(ValueError, match="how: .*outer"):
        crossmatch_many(three, radius_arcsec=1.0, how="out")
    with pytest.raises(ColumnError, match="crossmatch_many needs _healpix_29"):
        crossmatch_many(three | {"H": three["Y"].select("object_id", "object_ra", "object_dec")}, radius_arcsec=1.0)
