"""Catalogues that LSDB and hats-import made open as ours, and the verbs work on them as on our own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.collection import Collection
from scalable.catalog.match import crossmatch
from scalable.catalog.search import box_search, cone_search, id_search
from scalable.catalog.sql import sql
from scalable.catalog.write import write_catalog
from scalable.errors import QueryError, StoreError
from scalable.kernels.partition import unit_vectors
from scalable.testing import no_compute

lsdb = pytest.importorskip("lsdb", reason="the extra `hats` is not installed")

# Warnings inside these packages are theirs to mend.
pytestmark = pytest.mark.filterwarnings("ignore")

ROWS = 900
METADATA, LEAVES = ("dataset/_metadata",), ("partition_info.csv",)


def gaia_frame() -> pd.DataFrame:
    """Rows of uneven density, with NaN, nulls and letters beyond ASCII."""
    rng = np.random.default_rng(7)
    ra = np.concatenate([rng.uniform(0, 360, 400), rng.normal(0, 3, 500) % 360])
    dec = np.concatenate([np.degrees(np.arcsin(rng.uniform(-1, 1, 400))), rng.normal(40, 3, 500)])
    parallax = rng.normal(0, 2, ROWS).astype("float32")
    parallax[::7] = np.nan
    return pd.DataFrame(
        {
            "source_id": np.arange(ROWS) + 10**15,
            "ra": ra,
            "dec": dec,
            "parallax": pd.Series(parallax, dtype=pd.ArrowDtype(pa.float32())),
            "größe": rng.normal(15, 2, ROWS),
            "name": [f"Gaia {number} λ" for number in range(ROWS)],
        }
    )


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return gaia_frame()


@pytest.fixture(scope="module")
def gaia(frame: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection with mixed orders and a margin, as LSDB writes it."""
    folder = tmp_path_factory.mktemp("lsdb") / "gaia"
    made = lsdb.from_dataframe(frame, catalog_name="gaia", partition_rows=150, highest_order=8, margin_threshold=3600)
    with dask.config.set(scheduler="threads"):
        made.write_catalog(folder, catalog_name="gaia", progress_bar=False)
    return folder


def variant(gaia: Path, folder: Path, **options: Any) -> Path:
    with dask.config.set(scheduler="threads"):
        lsdb.open_catalog(gaia).write_catalog(
            folder / "made", catalog_name="made", progress_bar=False, as_collection=False, **options
        )
    return folder / "made"


def check_verbs(catalog: Catalog, frame: pd.DataFrame) -> None:
    """Hold every verb to the data frame that the catalogue was made from."""
    with no_compute():
        bright = catalog.where("parallax > 1")
        near = cone_search(catalog, ra_deg=0.0, dec_deg=40.0, radius_arcsec=7200.0)
        box = box_search(catalog, ra_deg=(358, 2), dec_deg=(38, 42))
        sums = sql(catalog, "SELECT count(*) AS n, count(parallax) AS p, avg(parallax) AS m FROM catalog WHERE in_cone(0, 40, 2)")
        pairs = crossmatch(catalog, catalog.select("_healpix_29", "source_id", "ra", "dec"), radius_arcsec=3600.0, k=2)
    with dask.config.set(scheduler="threads"):
        whole = catalog.compute()
        assert sorted(whole["name"].to_pylist()) == sorted(frame["name"])
        index = whole["_healpix_29"].to_numpy()
        assert (index[1:] >= index[:-1]).all()
        assert catalog.head(3).equals(whole.slice(0, 3))
        values = frame["parallax"].to_numpy(dtype=float, na_value=np.nan)
        ids = frame["source_id"].to_numpy()
        assert set(bright.compute()["source_id"].to_pylist()) == set(ids[values > 1])
        centre = unit_vectors(np.array([0.0]), np.array([40.0]))[0]
        vectors = unit_vectors(frame["ra"].to_numpy(), frame["dec"].to_numpy())
        inside = vectors @ centre > np.cos(np.radians(2.0))
        assert 20 < inside.sum() < 300
        assert set(near.compute()["source_id"].to_pylist()) == set(ids[inside])
        assert len(near.leaves) < len(catalog.leaves)
        ra, dec = frame["ra"].to_numpy(), frame["dec"].to_numpy()
        assert set(box.compute()["source_id"].to_pylist()) == set(ids[((ra >= 358) | (ra <= 2)) & (dec >= 38) & (dec <= 42)])
        known = values[inside & np.isfinite(values)]
        expected = {"n": inside.sum(), "p": len(known), "m": pytest.approx(known.mean(), rel=1e-6)}
        assert sums.compute().to_pylist() == [expected]
        found = pairs.compute()
        near_pairs = (vectors @ vectors.T > np.cos(np.radians(1.0))).sum(axis=1)
        assert found.num_rows == np.minimum(near_pairs, 2).sum() > ROWS
        first = found.filter(pa.array(found["separation_arcsec"].to_numpy() < 1e-6))
        assert first["source_id"].equals(first["source_id_2"])


def test_leaves_whose_rows_lie_in_any_order_are_put_along_the_sky(synthetic: Collection, tmp_path: Path) -> None:
    # What LSDB leaves to be desired, without LSDB: no metadata files, and rows as they came.
    shutil.copytree(synthetic.path / "objects" / "objects", tmp_path / "theirs")
    for name in ("dataset/_metadata", "dataset/_common_metadata"):
        (tmp_path / "theirs" / name).unlink()
    properties = tmp_path / "theirs" / "hats.properties"
    properties.write_text(properties.read_text().replace("hats_builder=scalable", "hats_builder=somebody"))
    for leaf in (tmp_path / "theirs").glob("dataset/*/*/*.parquet"):
        table = pq.read_table(leaf, partitioning=None)
        pq.write_table(table.take(list(range(table.num_rows))[::-1]), leaf)
    ours, theirs = synthetic.objects.compute(scheduler="threads"), open_catalog(tmp_path / "theirs")
    assert theirs.compute(scheduler="threads").equals(ours)
    assert theirs.select("object_id").compute(scheduler="threads")["object_id"].equals(ours["object_id"])
    # Nobody says that their rows lie by object.
    with pytest.raises(QueryError, match="window over the whole sky"):
        sql(theirs, "SELECT row_number() OVER (PARTITION BY object_id) AS n FROM catalog")
    found = sql(theirs, "SELECT count(*) AS n FROM catalog WHERE n_Ks > 3").compute(scheduler="threads")
    assert found["n"][0].as_py() == sum(n > 3 for n in ours["n_Ks"].to_pylist())


@pytest.mark.long
def test_a_collection_of_mixed_orders_with_a_margin_works_as_ours(gaia: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    catalog = open_catalog(gaia)
    assert len({leaf.pixel.order for leaf in catalog.leaves}) > 1
    assert catalog.rows == ROWS
    assert catalog.columns["ra"].unit == "deg"
    check_verbs(catalog, frame)
    with dask.config.set(scheduler="threads"):
        written = write_catalog(catalog.where("parallax > 1"), tmp_path / "bright")
        assert len(lsdb.open_catalog(tmp_path / "bright")) == written.rows == catalog.where("parallax > 1").compute().num_rows


@pytest.mark.long
@pytest.mark.parametrize("missing", [(), METADATA, LEAVES, METADATA + LEAVES], ids=len)
@pytest.mark.parametrize("options", [{}, {"npix_suffix": "/"}], ids=["files", "folders"])
def test_what_a_tool_did_not_write_is_found_elsewhere(
    gaia: Path, frame: pd.DataFrame, tmp_path: Path, missing: tuple[str, ...], options: dict[str, Any]
) -> None:
    folder = variant(gaia, tmp_path, **options)
    for name in missing:
        (folder / name).unlink()
    catalog = open_catalog(folder)
    assert catalog.rows == ROWS
    with dask.config.set(scheduler="threads"):
        found = catalog.select("name", "source_id").compute()
    assert sorted(found["name"].to_pylist()) == sorted(frame["name"])
    if len(missing) == 2:
        (folder / "dataset" / "_common_metadata").unlink()
        assert open_catalog(folder).schema.names == catalog.schema.names


@pytest.mark.long
def test_leaves_that_are_folders_of_several_files_are_read_whole(gaia: Path, frame: pd.DataFrame, tmp_path: Path) -> None:
    folder = variant(gaia, tmp_path, npix_suffix="/", create_parquet_metadata=False)
    for leaf in list(folder.glob("dataset/*/*/*/*.parquet")):
        table = pq.read_table(leaf, partitioning=None)
        pq.write_table(table.slice(table.num_rows // 2), leaf.with_name("a.parquet"))
        pq.write_table(table.slice(0, table.num_rows // 2), leaf.with_name("b.parquet"))
        leaf.unlink()
    check_verbs(open_catalog(folder), frame)


@pytest.mark.long
@pytest.mark.parametrize("name", ["spatial_index", None])
def test_an_index_of_another_name_or_none_is_made_known(
    gaia: Path, frame: pd.DataFrame, tmp_path: Path, name: str | None
) -> None:
    folder = variant(gaia, tmp_path, create_parquet_metadata=False)
    for leaf in folder.glob("dataset/*/*/*.parquet"):
        table = pq.read_table(leaf, partitioning=None)
        index = table["_healpix_29"]
        table = table.drop_columns(["_healpix_29"])
        pq.write_table(table.append_column(name, index) if name else table, leaf)
    text = (folder / "hats.properties").read_text()
    (folder / "hats.properties").write_text(text.replace("hats_col_healpix=_healpix_29", f"hats_col_healpix={name or ''}"))
    (folder / "dataset" / "_common_metadata").unlink(missing_ok=True)
    catalog = open_catalog(folder)
    assert catalog.schema.names[0] == "_healpix_29"
    check_verbs(catalog, frame)


@pytest.mark.long
def test_light_curves_of_objects_nested_by_lsdb_come_through(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    ra, dec = rng.uniform(0, 360, 80), rng.uniform(-60, 60, 80)
    objects = pd.DataFrame({"objectid": np.arange(80), "objra": ra, "objdec": dec})
    ids, mjd, mag = rng.integers(0, 80, 900), rng.uniform(58000, 59000, 900), rng.normal(18, 1, 900)
    sources = pd.DataFrame({"objectid": ids, "mjd": mjd, "mag": mag})
    position = {"ra_column": "objra", "dec_column": "objdec"}
    left = lsdb.from_dataframe(objects, catalog_name="ztf", partition_rows=40, highest_order=6, **position)
    right = lsdb.from_dataframe(
        sources.merge(objects, on="objectid"), catalog_name="source", partition_rows=300, highest_order=6, **position
    )
    with dask.config.set(scheduler="threads"):
        nested = left.join_nested(right, left_on="objectid", right_on="objectid", nested_column_name="lc")
        nested.write_catalog(tmp_path / "ztf", catalog_name="ztf", progress_bar=False)
        catalog = open_catalog(tmp_path / "ztf")
        found = catalog.where("objdec > 0").compute()
        curves = {row["objectid"]: sorted(row["lc"]["mag"]) for row in found.to_pylist()}
        expected = {i: sorted(sources["mag"][sources["objectid"] == i]) for i in objects["objectid"][objects["objdec"] > 0]}
        assert curves == {i: mags for i, mags in expected.items() if mags}
        table = sql(catalog, "SELECT objectid, lc FROM catalog WHERE objdec > 0").compute()
        assert {row["objectid"]: sorted(row["lc"]["mag"]) for row in table.to_pylist()} == curves
        written = write_catalog(catalog.where("objdec > 0"), tmp_path / "north")
        assert written.compute()["lc"].to_pylist() == found["lc"].to_pylist()
        assert len(lsdb.open_catalog(tmp_path / "north").compute()) == found.num_rows


def test_our_light_curves_nest_for_nested_pandas_and_for_lsdb(synthetic: Collection, tmp_path: Path) -> None:
    detections = synthetic.detections.select("_healpix_29", "object_id", "object_ra", "object_dec", "band", "mjd", "Mag1")
    detections = cone_search(detections, ra_deg=268.7, dec_deg=-30.0, radius_arcsec=900.0)
    with dask.config.set(scheduler="threads"):
        flat = detections.compute()
        with no_compute():
            lazy = detections.nest()
            only_ids = lazy.select("object_id")
        table = lazy.compute()
        assert table.num_rows == len(set(flat["object_id"].to_pylist())) == only_ids.compute().num_rows
        members = table.schema.field("lightcurve").type
        assert members.field("Mag1").metadata[b"unit"] == b"mag"
        for name in ("band", "mjd", "Mag1"):
            lists = [row[name] for row in table["lightcurve"].to_pylist()]
            assert [value for cell in lists for value in cell] == flat[name].to_pylist()
        frame = detections.to_nested()
        assert frame["lightcurve.mjd"].tolist() == flat["mjd"].to_pylist()
        write_catalog(lazy, tmp_path / "nested")
        theirs = lsdb.open_catalog(tmp_path / "nested").compute().sort_values("object_id")
        assert "nested" in str(theirs["lightcurve"].dtype)
        assert sorted(theirs["lightcurve.Mag1"].dropna()) == sorted(m for m in flat["Mag1"].to_pylist() if m is not None)


@pytest.mark.long
def test_a_catalogue_of_hats_import_opens_as_ours(frame: pd.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("hats_import", reason="hats-import is not installed")
    (tmp_path / "input").mkdir()
    frame.to_parquet(tmp_path / "input" / "part.parquet")
    script = f"""
from dask.distributed import Client
from hats_import.catalog.arguments import ImportArguments
from hats_import.pipeline import pipeline_with_client
arguments = ImportArguments(
    ra_column="ra", dec_column="dec", input_path={str(tmp_path / "input")!r}, file_reader="parquet",
    output_artifact_name="imported", output_path={str(tmp_path)!r}, catalog_type="object",
    pixel_threshold=150, highest_healpix_order=8, progress_bar=False,
)
if __name__ == "__main__":
    with Client(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=":0") as client:
        pipeline_with_client(arguments, client)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, capture_output=True)
    catalog = open_catalog(tmp_path / "imported")
    assert catalog.rows == ROWS
    check_verbs(catalog, frame)


@pytest.mark.long
def test_what_is_damaged_or_has_no_index_is_said(gaia: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no index on object_id"):
        id_search(open_catalog(gaia), [1])
    folder = variant(gaia, tmp_path)
    (folder / "partition_info.csv").write_text("Norder,Npix\n0,0\n")
    with pytest.raises(StoreError, match="name different leaves"):
        open_catalog(folder)
    shutil.rmtree(folder / "dataset")
    with pytest.raises(StoreError, match="metadata of the catalogue cannot be read"):
        open_catalog(folder)


@pytest.mark.long
def test_properties_with_escapes_are_read_as_java_means_them(gaia: Path, tmp_path: Path) -> None:
    folder = variant(gaia, tmp_path)
    text = (folder / "hats.properties").read_text()
    (folder / "hats.properties").write_text(text.replace("obs_collection=made", r"obs_collection=Gro\u00dfe\: Karte"))
    assert open_catalog(folder).title == "Große: Karte"
    (folder / "hats.properties").unlink()
    assert open_catalog(folder).title == "made"
