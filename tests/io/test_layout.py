"""The HATS layout: what is written beside the leaves, read back by us and by the reference implementation."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalable.errors import StoreError
from scalable.io.layout import finish_catalog, finish_collection, finish_index, read_layout, read_properties
from scalable.io.parquet import Leaf, write_leaf
from scalable.schema import Column, Schema
from scalable.sky.healpix import to_pixels
from scalable.sky.pixel import Pixel

SCHEMA = Schema(
    (
        Column("_healpix_29", pa.int64(), description="HEALPix index"),
        Column("object_ra", pa.float64(), "ra", unit="deg"),
        Column("object_dec", pa.float64(), "dec", unit="deg"),
    )
).to_arrow()
ROWS = {Pixel(1, 5): 3, Pixel(0, 0): 100_002, Pixel(3, 400): 1}
"""Leaves in no order; the large one has two row groups."""


def rows_in(pixel: Pixel, rows: int) -> pa.Table:
    """Return rows whose positions lie in a pixel, sorted along the sky."""
    rng = np.random.default_rng(pixel.index)
    ra, dec = rng.uniform(0, 360, 400_000), np.degrees(np.arcsin(rng.uniform(-1, 1, 400_000)))
    at = to_pixels(ra, dec)
    inside = np.flatnonzero((at >= pixel.start) & (at < pixel.stop))[:rows]
    inside = np.resize(inside, rows)[np.argsort(at[np.resize(inside, rows)], kind="stable")]
    return pa.table([at[inside], ra[inside], dec[inside]], schema=SCHEMA)


def finish(folder: Path, leaves: list[Leaf], name: str = "demo") -> None:
    finish_catalog(
        folder,
        leaves,
        schema=SCHEMA,
        name=name,
        product="object",
        position=("object_ra", "object_dec"),
        date="2026-01-02T03:04:05Z",
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Leaf]]:
    folder = tmp_path_factory.mktemp("layout") / "catalog"
    leaves = [write_leaf(rows_in(pixel, rows), folder, pixel.hats_path) for pixel, rows in ROWS.items()]
    finish(folder, leaves)
    return folder, leaves


@pytest.fixture
def catalog(written: tuple[Path, list[Leaf]], tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(written[0], tmp_path / "catalog"))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_a_catalogue_says_what_it_holds_in_order_along_the_sky(written: tuple[Path, list[Leaf]]) -> None:
    layout = read_layout(written[0])
    assert (layout.path, layout.name) == (written[0], "demo")
    assert [(leaf.pixel, leaf.rows) for leaf in layout.leaves] == [(pixel, ROWS[pixel]) for pixel in sorted(ROWS)]
    assert layout.schema.equals(SCHEMA)
    assert Schema.from_arrow(layout.schema) == Schema.from_arrow(SCHEMA)
    for leaf in layout.leaves:
        assert pq.read_metadata(layout.path / leaf.pixel.hats_path).num_rows == leaf.rows


def test_properties_are_those_of_the_hats_note(written: tuple[Path, list[Leaf]]) -> None:
    properties = read_properties(written[0] / "hats.properties")
    assert properties == read_properties(written[0] / "properties") == read_layout(written[0]).properties
    assert properties["obs_collection"] == "demo"
    assert properties["dataproduct_type"] == "object"
    assert (properties["hats_col_ra"], properties["hats_col_dec"]) == ("object_ra", "object_dec")
    assert properties["hats_nrows"] == str(sum(ROWS.values()))
    assert properties["hats_order"] == "3"
    assert properties["hats_creation_date"] == "2026-01-02T03:04:05Z"
    assert float(properties["moc_sky_fraction"]) == 81 / 768
    assert int(properties["hats_estsize"]) == sum(leaf.size_bytes for leaf in written[1]) // 1024


def test_the_partition_list_goes_by_order_then_index(written: tuple[Path, list[Leaf]]) -> None:
    assert (written[0] / "partition_info.csv").read_text() == "Norder,Npix\n0,0\n1,5\n3,400\n"


def test_the_order_in_which_leaves_arrive_leaves_no_trace(written: tuple[Path, list[Leaf]], catalog: Path) -> None:
    finish(catalog, written[1][::-1])
    assert contents(catalog) == contents(written[0])


@pytest.mark.parametrize("listed", ["0,0\n1,5\n", "0,0\n1,5\n3,400\n3,401\n", "0,0\n1,5\n3,401\n"])
def test_metadata_that_name_other_leaves_are_refused(catalog: Path, listed: str) -> None:
    (catalog / "partition_info.csv").write_text(f"Norder,Npix\n{listed}")
    with pytest.raises(StoreError, match="partition_info.csv and _metadata name different leaves; the catalogue is damaged"):
        read_layout(catalog)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hats.properties", "hats.properties: cannot be read .* is this a HATS catalogue"),
        ("dataset/_metadata", "metadata of the catalogue cannot be read"),
        ("dataset/_common_metadata", "metadata of the catalogue cannot be read"),
    ],
)
def test_what_is_missing_from_a_catalogue_is_said(catalog: Path, name: str, message: str) -> None:
    os.remove(catalog / name)
    with pytest.raises(StoreError, match=message):
        read_layout(catalog)


@pytest.mark.parametrize("name", ["dataset/_metadata", "dataset/_common_metadata"])
def test_damaged_metadata_are_refused(catalog: Path, name: str) -> None:
    (catalog / name).write_bytes((catalog / name).read_bytes()[:-5])
    with pytest.raises(StoreError, match="metadata of the catalogue cannot be read"):
        read_layout(catalog)


def test_a_folder_that_is_no_catalogue_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is this a HATS catalogue"):
        read_layout(tmp_path)


def test_no_leaf_is_opened(catalog: Path) -> None:
    before = read_layout(catalog)
    for pixel in ROWS:
        os.remove(catalog / pixel.hats_path)
    assert read_layout(catalog) == before


def test_a_collection_stands_for_its_primary_catalogue(catalog: Path) -> None:
    finish_collection(catalog.parent, name="demo", primary="catalog", indexes={"object_id": "id_index"})
    assert read_layout(catalog.parent) == read_layout(catalog)
    assert read_properties(catalog.parent / "collection.properties") == {
        "obs_collection": "demo",
        "hats_primary_table_url": "catalog",
        "all_indexes": "object_id id_index",
        "default_index": "object_id",
    }


def test_properties_are_read_as_other_tools_write_them(tmp_path: Path) -> None:
    (tmp_path / "p").write_text("# a comment\n! another\n\nobs_collection = a name \nurl=http://x/?a=b\n  key=\n")
    assert read_properties(tmp_path / "p") == {"obs_collection": "a name", "url": "http://x/?a=b", "key": ""}


def test_the_reference_implementation_reads_the_catalogue_and_finds_it_valid(written: tuple[Path, list[Leaf]]) -> None:
    hats = pytest.importorskip("hats")
    validation = pytest.importorskip("hats.io.validation")
    found = hats.read_hats(written[0])
    assert found.catalog_name == "demo"
    assert found.catalog_info.total_rows == sum(ROWS.values())
    assert {(pixel.order, pixel.pixel) for pixel in found.get_healpix_pixels()} == {(p.order, p.index) for p in ROWS}
    assert found.schema.names == SCHEMA.names
    assert validation.is_valid_catalog(written[0], strict=True)


def test_the_reference_implementation_reads_the_collection_and_its_index(catalog: Path) -> None:
    hats = pytest.importorskip("hats")
    index = pa.table({"object_id": [1, 2, 3], "Norder": [1, 1, 1], "Dir": [0, 0, 0], "Npix": [5, 5, 5]})
    leaf = write_leaf(index, catalog.parent / "id_index", "dataset/index/part.0.parquet")
    finish_index(
        catalog.parent / "id_index",
        [leaf],
        schema=index.schema,
        name="demo",
        primary="catalog",
        date="2026-01-02T03:04:05Z",
    )
    finish_collection(catalog.parent, name="demo", primary="catalog", indexes={"object_id": "id_index"})
    found = hats.read_hats(catalog.parent)
    assert found.main_catalog.catalog_info.total_rows == sum(ROWS.values())
    assert found.default_index_field == "object_id"
    assert found.all_indexes == {"object_id": "id_index"}
    pixels = hats.read_hats(catalog.parent / "id_index").loc_partitions([2])
    assert [(pixel.order, pixel.pixel) for pixel in pixels] == [(1, 5)]


@pytest.mark.parametrize("text", [None, "a,b\n1,2\n", "Norder,Npix\n0,-1\n", "Norder,Npix\n0,x\n"])
def test_a_partition_list_that_cannot_be_read_is_said(catalog: Path, text: str | None) -> None:
    (catalog / "partition_info.csv").unlink()
    if text is not None:
        (catalog / "partition_info.csv").write_text(text)
    with pytest.raises(StoreError, match="partition_info.csv cannot be read"):
        read_layout(catalog)


def test_properties_that_say_too_little_are_refused(catalog: Path) -> None:
    (catalog / "hats.properties").write_text("x=y\n")
    with pytest.raises(StoreError, match="hats.properties: does not say obs_collection"):
        read_layout(catalog)
    (catalog.parent / "collection.properties").write_text("x=y\n")
    with pytest.raises(StoreError, match="collection.properties: does not say hats_primary_table_url"):
        read_layout(catalog.parent)


def test_properties_that_are_no_text_are_refused(catalog: Path) -> None:
    (catalog / "hats.properties").write_bytes(b"\xff")
    with pytest.raises(StoreError, match="is this a HATS catalogue"):
        read_layout(catalog)
