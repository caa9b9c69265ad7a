"""The field's own client opens what we write, and agrees."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import pytest
from astropy.table import Table
from surveys import Observation, detections, write_survey
from test_check_real import desi, gaia

from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest
from scalable.catalog.match import crossmatch
from scalable.catalog.search import cone_search, id_search
from scalable.errors import StoreError
from scalable.survey.description import Survey

DESI, GAIA = "tables/zall-pix-iron_10rows.fits", "tables/gaia_epoch.ecsv"

# Warnings inside these packages are theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize("member", ["objects", "detections"])
def test_lsdb_opens_a_member_and_its_searches_agree_with_ours(vvv: Collection, member: str) -> None:
    lsdb = pytest.importorskip("lsdb", reason="the extra `hats` is not installed")
    theirs, ours = lsdb.open_catalog(str(vvv.path / member)), getattr(vvv, member)
    cone = {"radius_arcsec": 900.0}
    ids = [5, 170_005, 309_999]
    with dask.config.set(scheduler="threads"):
        assert len(theirs) == len(theirs.compute()) == ours.rows
        found = theirs.cone_search(ra=269.6, dec=-30.3, **cone).compute()
        mine = cone_search(ours, ra_deg=269.6, dec_deg=-30.3, **cone).compute()
        assert len(found) == mine.num_rows > 1000
        assert np.array_equal(np.sort(found["object_id"].to_numpy()), np.sort(mine["object_id"].to_numpy()))
        found = theirs.id_search(values={"object_id": ids}).compute()
        mine = id_search(ours, ids).compute()
        assert sorted(found["object_id"]) == sorted(mine["object_id"].to_pylist())
        assert set(found["object_id"]) == set(ids)


@pytest.mark.parametrize(("describe", "path", "name"), [(desi, DESI, "COEFF"), (gaia, GAIA, "bp_flux")])
def test_lsdb_opens_detections_with_arrays(
    data: Path, tmp_path: Path, describe: Callable[[Path, Path], Survey], path: str, name: str
) -> None:
    lsdb = pytest.importorskip("lsdb", reason="the extra `hats` is not installed")
    with dask.config.set(scheduler="threads"):
        found = ingest(describe(data, tmp_path), into=tmp_path / "store")
        frame = lsdb.open_catalog(str(found.path / "detections")).compute().sort_values("source_row")
    expected = Table.read(data / path)[name]
    assert len(frame) == len(expected)
    for cell, values in zip(frame[name], expected, strict=True):
        np.testing.assert_array_equal(np.array(cell, dtype=float), values)


@pytest.mark.long
def test_lsdb_crossmatches_two_of_our_catalogues_with_our_margins_and_finds_the_same_pairs(tmp_path: Path) -> None:
    lsdb = pytest.importorskip("lsdb", reason="the extra `hats` is not installed")
    rng = np.random.default_rng(2)
    # About a corner where four base pixels meet, so that many pairs lie across borders of leaves.
    ra, dec = 45.0 + rng.uniform(-0.06, 0.06, 1500), rng.uniform(-0.06, 0.06, 1500)
    stores = []
    for name, shift, leaf_mb in (("left", 0.0, 0.02), ("right", 1.5 / 3600, 0.05)):
        at = ra + shift * rng.normal(size=1500), dec + shift * rng.normal(size=1500)
        survey = write_survey(
            tmp_path / name, [Observation(1, "J", 1.0, detections(np.arange(1500), *at))], margin_arcsec=3.0, leaf_mb=leaf_mb
        )
        with dask.config.set(scheduler="threads"):
            stores.append(ingest(survey, into=tmp_path / name / "store"))
    left, right = (store.objects for store in stores)
    assert len(left.leaves) > len(right.leaves) >= 4
    theirs = [lsdb.open_catalog(str(store.path / "objects")) for store in stores]
    assert theirs[1].margin is not None
    with dask.config.set(scheduler="threads"):
        for k in (1, 2):
            mine = crossmatch(left, right, radius_arcsec=3.0, k=k).compute()
            found = theirs[0].crossmatch(theirs[1], radius_arcsec=3.0, n_neighbors=k, suffixes=("", "_2")).compute()
            pairs = {(a, b): s for a, b, s in zip(*(found[n] for n in ("object_id", "object_id_2", "_dist_arcsec")), strict=True)}
            ours = {tuple(row[:2]): row[2] for row in zip(*(mine[n].to_pylist() for n in PAIR), strict=True)}
            assert len(ours) == mine.num_rows > 1000
            assert pairs.keys() == ours.keys()
            assert max(abs(pairs[pair] - ours[pair]) for pair in pairs) < 1e-6


PAIR = ("object_id", "object_id_2", "separation_arcsec")


def test_a_catalogue_hands_itself_to_lsdb_unless_something_is_pending(vvv: Collection) -> None:
    pytest.importorskip("lsdb", reason="the extra `hats` is not installed")
    assert len(vvv.objects.to_lsdb()) == vvv.objects.rows
    with pytest.raises(StoreError, match="write_catalog"):
        vvv.objects.where("n_Ks > 1").to_lsdb()


@pytest.mark.parametrize("member", ["objects", "detections"])
def test_hats_strict_validation_passes(vvv: Collection, member: str, caplog: pytest.LogCaptureFixture) -> None:
    validation = pytest.importorskip("hats.io.validation", reason="the extra `hats` is not installed")
    assert validation.is_valid_collection(vvv.path / member, strict=True)
    assert validation.is_valid_catalog(vvv.path / member / member, strict=True)
    assert not [record for record in caplog.records if "differ" in record.message or "not exist" in record.message]


def test_astropy_reads_units_and_descriptions_from_the_common_metadata(vvv: Collection) -> None:
    table = pytest.importorskip("astropy.table")
    path: Path = vvv.path / "detections" / "detections" / "dataset" / "_common_metadata"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = table.Table.read(path, format="parquet.votable")
    units = {name: str(found[name].unit) for name in ("Mag1", "Ra", "object_ra", "Flux1", "X", "mjd")}
    assert units == {"Mag1": "mag", "Ra": "rad", "object_ra": "deg", "Flux1": "adu", "X": "pix", "mjd": "d"}
    assert found["Mag1"].description == "Magnitude in aperture 1"
    assert len(found) == 0
