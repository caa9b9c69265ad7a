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
from scalable.sky.healpix import near_pixel
from scalable.sky.pixel import Pixel


def vectors(ra_deg: np.ndarray, dec_deg: np.ndarray) -> np.ndarray:
    ra, dec = np.radians(ra_deg), np.radians(dec_deg)
    return np.column_stack([np.cos(dec) * np.cos(ra), np.cos(dec) * np.sin(ra), np.sin(dec)])


def separation(pixel: Pixel, ra_deg: np.ndarray, dec_deg: np.ndarray, *, steps: int = 8000) -> tuple[np.ndarray, float]:
    """Return the distance to the nearest of many points on the border [arcsec], and how much nearer the border may be at most."""
    lon, lat = nested.vertices(np.array([pixel.index], dtype=np.uint64), pixel.order, step=steps)
    border = vectors(lon.to_value(u.deg).ravel(), lat.to_value(u.deg).ravel())
    # A straight line to the nearest of points that are spaced by ``gap``.
    gap = np.degrees(np.linalg.norm(border - np.roll(border, 1, axis=0), axis=1).max()) * 3600
    chord = np.array([np.sqrt(((point - border) ** 2).sum(axis=1)).min() for point in vectors(ra_deg, dec_deg)])
    return np.degrees(2 * np.arcsin(chord / 2)) * 3600, gap / 2


@pytest.mark.parametrize("radius_arcsec", [2.0, 5.0, 20.0])
@pytest.mark.parametrize(
    "pixel", [Pixel(0, 0), Pixel(0, 4), Pixel(0, 11), Pixel(1, 3), Pixel(3, 63), Pixel(6, 4095), Pixel(10, 12345)], ids=str
)
def test_near_a_pixel_is_what_lies_within_the_radius_of_its_border(pixel: Pixel, radius_arcsec: float) -> None:
    rng = np.random.default_rng(pixel.index)
    lon, lat = nested.vertices(np.array([pixel.index], dtype=np.uint64), pixel.order, step=8000)
    border = vectors(lon.to_value(u.deg).ravel(), lat.to_value(u.deg).ravel())
    point = border[rng.integers(0, len(border), 40)] + rng.normal(size=(40, 3)) * np.radians(radius_arcsec / 3600)
    point /= np.linalg.norm(point, axis=1)[:, None]
    ra, dec = np.degrees(np.arctan2(point[:, 1], point[:, 0])), np.degrees(np.arcsin(point[:, 2]))
    brute, gap = separation(pixel, ra, dec)
    found = near_pixel(pixel, ra, dec, radius_arcsec=radius_arcsec)
    least = np.sqrt(np.maximum(brute**2 - gap**2, 0))
    assert found[brute <= radius_arcsec - 1e-6].all()
    assert not found[least > radius_arcsec + 1e-3].any()
    assert 5 < found.sum() < 40


def test_a_margin_holds_exactly_the_objects_of_others_within_the_threshold(synthetic: Collection) -> None:
    objects = synthetic.objects.compute()
    ra, dec, at, ids = (objects[name].to_numpy() for name in ("object_ra", "object_dec", "_healpix_29", "object_id"))
    margin = open_catalog(synthetic.path / "objects" / "objects_margin")
    threshold = synthetic.manifest["margin_arcsec"]
    for leaf in synthetic.objects.leaves:
        outside = (at < leaf.pixel.start) | (at >= leaf.pixel.stop)
        brute, gap = separation(leaf.pixel, ra[outside], dec[outside], steps=1000)
        doubtful = (brute > threshold - 1e-6) & (np.sqrt(np.maximum(brute**2 - gap**2, 0)) <= threshold + 1e-3)
        assert not doubtful.any(), "the sky of this test leaves no doubt"
        held = margin.on_leaves([other for other in margin.leaves if other.pixel == leaf.pixel]).compute()
        assert sorted(held["object_id"].to_pylist()) == sorted(ids[outside][brute <= threshold].tolist())
    assert margin.rows


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
