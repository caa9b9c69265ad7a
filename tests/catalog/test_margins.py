"""Margins: for every leaf the objects of others within the threshold of its border, exactly, with their light curves."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pytest
from astropy import units as u
from cdshealpix import nested

from scalable.catalog.catalog import open_catalog
from scalable.catalog.collection import Collection
from scalable.io.layout import read_properties
from scalable.sky.healpix import separation_from_pixel
from scalable.sky.pixel import Pixel


def vectors(ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


@pytest.mark.parametrize(
    "pixel", [Pixel(0, 0), Pixel(0, 4), Pixel(0, 11), Pixel(1, 3), Pixel(3, 63), Pixel(6, 4095), Pixel(10, 12345)], ids=str
)
def test_the_separation_from_a_border_is_that_from_its_nearest_point(pixel: Pixel) -> None:
    rng = np.random.default_rng(pixel.index)
    lon, lat = nested.vertices(np.array([pixel.index], dtype=np.uint64), pixel.order, step=8000)
    border = vectors(lon.to_value(u.deg).ravel(), lat.to_value(u.deg).ravel())
    near = border[rng.integers(0, len(border), 100)] + rng.normal(size=(100, 3)) * np.radians(5 / 3600)
    near /= np.linalg.norm(near, axis=1)[:, None]
    ra, dec = np.degrees(np.arctan2(near[:, 1], near[:, 0])), np.degrees(np.arcsin(near[:, 2]))
    nearest = np.array([np.sqrt(((point - border) ** 2).sum(axis=1)).min() for point in vectors(ra, dec)])
    brute = np.degrees(2 * np.arcsin(nearest / 2)) * 3600
    # Between two neighbours of the brute force's border points the true border is closer by at most this.
    gap = np.degrees(np.linalg.norm(border - np.roll(border, 1, axis=0), axis=1).max()) * 3600 / 2
    found = separation_from_pixel(pixel, ra, dec)
    assert (found <= brute + 1e-7).all()
    assert (found >= np.sqrt(np.maximum(brute**2 - gap**2, 0)) - 1e-3).all()


def test_a_margin_holds_exactly_the_objects_of_others_within_the_threshold(synthetic: Collection) -> None:
    objects = synthetic.objects.compute()
    ra, dec, at, ids = (objects[name].to_numpy() for name in ("object_ra", "object_dec", "_healpix_29", "object_id"))
    margin = open_catalog(synthetic.path / "objects" / "objects_margin")
    threshold = synthetic.manifest["margin_arcsec"]
    found = 0
    for leaf in synthetic.objects.leaves:
        outside = (at < leaf.pixel.start) | (at >= leaf.pixel.stop)
        near = separation_from_pixel(leaf.pixel, ra[outside], dec[outside]) <= threshold
        held = margin.on_leaves([other for other in margin.leaves if other.pixel == leaf.pixel]).compute()
        assert sorted(held["object_id"].to_pylist()) == sorted(ids[outside][near].tolist())
        found += int(near.sum())
    assert found == margin.rows > 0


def test_an_object_of_a_margin_is_the_same_as_at_home_and_so_is_its_light_curve(synthetic: Collection) -> None:
    home = {row["object_id"]: row for row in synthetic.objects.compute().to_pylist()}
    margin = open_catalog(synthetic.path / "objects" / "objects_margin")
    detections = open_catalog(synthetic.path / "detections" / "detections_margin")
    curves = synthetic.detections.compute()
    for leaf in margin.leaves:
        rows = detections.on_leaves([other for other in detections.leaves if other.pixel == leaf.pixel]).compute()
        for entry in margin.on_leaves([leaf]).compute().to_pylist():
            mine = rows.slice(entry.pop("detection_offset"), entry["detection_count"])
            there = home[entry["object_id"]]
            assert entry == {name: value for name, value in there.items() if name != "detection_offset"}
            original = curves.filter(pa.compute.equal(curves["object_id"], entry["object_id"]))
            assert mine.equals(original)


def test_the_properties_name_the_threshold_and_the_primary(synthetic: Collection) -> None:
    for kind in ("objects", "detections"):
        folder: Path = synthetic.path / kind
        properties = read_properties(folder / f"{kind}_margin" / "hats.properties")
        assert properties["dataproduct_type"] == "margin"
        assert properties["hats_primary_table_url"] == kind
        assert float(properties["hats_margin_threshold"]) == synthetic.manifest["margin_arcsec"]
        assert read_properties(folder / "collection.properties")["default_margin"] == f"{kind}_margin"


@pytest.mark.filterwarnings("ignore")
def test_lsdb_opens_the_margins_with_the_catalogue(vvv: Collection) -> None:
    lsdb = pytest.importorskip("lsdb", reason="the extra `hats` is not installed")
    with dask.config.set(scheduler="threads"):
        for kind in ("objects", "detections"):
            theirs = lsdb.open_catalog(str(vvv.path / kind)).margin
            assert len(theirs.compute()) == open_catalog(vvv.path / kind / f"{kind}_margin").rows > 0
