"""The stages of a run: in order, resumable, and answers that the truth confirms."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from scalable.catalog.catalog import open_catalog
from scalable.catalog.collection import open_collection
from scalable.catalog.write import write_catalog
from scalable.catalog.zero_points import calibrate
from scalable.cube.contract import open_cube
from scalable.errors import MissingInputError, StoreError, SurveyError
from scalable.io.runs import read_json
from scalable.pipeline import RunReport, list_products, run
from scalable.release.read import open_release
from scalable.release.verify import verify_release
from scalable.report.release import release_sections
from scalable.survey.description import Survey
from scalable.survey.read import open_survey
from scalable.synthetic.images import add_images
from scalable.synthetic.sky import Sky, SkySpec, make_sky
from scalable.synthetic.tables import add_release, write_tables


@pytest.fixture(scope="module")
def sky() -> Sky:
    return make_sky(SkySpec(seed=6, fields=2, stars_per_field=300, epochs=5, variable_fraction=0.1))


@pytest.fixture(scope="module")
def survey(sky: Sky, tmp_path_factory: pytest.TempPathFactory) -> Survey:
    return open_survey(write_tables(sky, tmp_path_factory.mktemp("pipeline")))


@pytest.fixture(scope="module")
def report(survey: Survey) -> RunReport:
    with dask.config.set(scheduler="threads"):
        return run(survey, into=Path(survey.root) / "store")


def test_a_run_makes_every_product_and_one_page(report: RunReport) -> None:
    assert {product.name for product in report.products} == {
        "objects",
        "detections",
        "observations.parquet",
        "bands",
        "variability",
        "variability_calibrated",
        "zero_points.parquet",
        "objects_preview.fits",
        "report.html",
    }
    assert all(product.path.exists() and product.size_bytes > 0 for product in report.products)
    assert set(report.seconds) == {"check", "ingest", "products", "report"}
    assert report.page is not None
    page = report.page.read_text()
    headings = ["Accounting", "Versions", "Values and nulls", "Partitions on the sky", "Colour J", "Variable objects in Ks"]
    for heading in (*headings, "Well measured", "How to open"):
        assert heading in page


def test_the_page_counts_nulls_and_leaves_as_parquet_does(report: RunReport) -> None:
    files = sorted((report.store / "current" / "detections" / "detections").rglob("Npix=*.parquet"))
    nulls = Counter({name: 0 for name in pq.read_schema(files[0]).names})
    for file in files:
        table = pq.read_table(file, partitioning=None)
        nulls.update({name: table[name].null_count for name in table.column_names})
    page = report.page.read_text()
    rows = re.findall(r'<tr><td>(\w+)</td><td class="n">[\d,]+</td><td class="n">([\d,]+)</td></tr>', page)
    listed = {name: int(n.replace(",", "")) for name, n in rows}
    assert any(nulls.values())
    assert {name: n for name, n in nulls.items() if n} == {name: n for name, n in listed.items() if name in nulls}
    orders = Counter(re.search(r"Norder=(\d+)", str(file))[1] for file in files)
    for order, count in orders.items():
        assert re.search(rf'<td class="n">{order}</td><td class="n">[\d.]+</td><td class="n">{count}</td>', page)


def test_a_second_run_takes_up_what_is_there(report: RunReport, survey: Survey) -> None:
    made = {product.path: product.path.stat().st_mtime_ns for product in report.products if product.name != "report.html"}
    with dask.config.set(scheduler="threads"):
        again = run(survey, into=report.store)
    assert set(again.skipped) == {"ingest", "bands", "variability", "variability_calibrated"}
    assert {path: path.stat().st_mtime_ns for path in made} == made


def test_a_changed_recipe_makes_the_products_anew(report: RunReport, survey: Survey) -> None:
    other = survey.model_copy(update={"products": survey.products.model_copy(update={"magnitude": "Mag2"})})
    with dask.config.set(scheduler="threads"):
        again = run(other, into=report.store, only="products")
    assert again.skipped == []
    folder = report.store / "products" / "0001"
    assert "J_Mag2" in open_catalog(folder / "bands").columns
    with dask.config.set(scheduler="threads"):
        run(survey, into=report.store, only="products")
    assert "J_Mag1" in open_catalog(folder / "bands").columns


def test_the_survey_names_its_statistics_and_a_wrong_name_stops_before_any_work(report: RunReport, survey: Survey) -> None:
    def naming(*names: str) -> Survey:
        return survey.model_copy(update={"products": survey.products.model_copy(update={"statistics": names})})

    with pytest.raises(SurveyError, match="products.statistics: no statistic 'StetsonI'; did you mean 'Stetson"):
        run(naming("Mean", "StetsonI"), into=report.store)
    with dask.config.set(scheduler="threads"):
        run(naming("MAD", "EtaE"), into=report.store, only="products")
    folder = report.store / "products" / "0001"
    columns = open_catalog(folder / "variability").columns
    # The page shows the largest deviation, so that it is computed whatever the survey names.
    assert [name for name in columns.names if name.startswith("Ks_")] == ["Ks_Flux1MAD", "Ks_Flux1EtaE", "Ks_Flux1MaxDeviation"]
    with dask.config.set(scheduler="threads"):
        run(survey, into=report.store, only="products")
    assert "Ks_Flux1StetsonJ" in open_catalog(folder / "variability").columns


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A survey in a store with small leaves and its products, made before and after the last J file of one of its fields."""
    folder = tmp_path_factory.mktemp("nights")
    write_tables(make_sky(SkySpec(seed=8, fields=2, stars_per_field=300, epochs=3)), folder)
    text = (folder / "survey.yaml").read_text()
    (folder / "survey.yaml").write_text(text.replace("leaf_mb: 0.25", "leaf_mb: 0.03"))
    index = folder / "observations.csv"
    lines = index.read_text().splitlines(keepends=True)
    last = next(line for line in reversed(lines) if ",J," in line)
    with dask.config.set(scheduler="threads"):
        for how, rows in (("", [line for line in lines if line != last]), ("appended", lines)):
            index.write_text("".join(rows))
            assert run(open_survey(folder / "survey.yaml"), into=folder / "store", only="ingest").how.startswith(how)
            run(open_survey(folder / "survey.yaml"), into=folder / "store", only="products")
    return folder


def leaves(catalog: Path) -> dict[str, Path]:
    return {path.relative_to(catalog).as_posix(): path for path in catalog.rglob("Npix=*.parquet")}


def test_a_run_on_a_store_whose_survey_gained_a_file_appends(nights: Path) -> None:
    manifest = json.loads((nights / "store" / "current" / "manifest.json").read_text())
    assert manifest["parent"]["version"] == "0001"
    with dask.config.set(scheduler="threads"):
        again = run(open_survey(nights / "survey.yaml"), into=nights / "store", only="ingest")
    assert again.skipped == ["ingest"]
    assert again.how == ""


@pytest.mark.parametrize("name", ["bands", "variability", "variability_calibrated"])
def test_products_of_untouched_pixels_are_links_and_all_is_as_if_computed(nights: Path, name: str) -> None:
    folder = nights / "store" / "products"
    source = "detections/detections"
    before, now = (leaves(nights / "store" / "versions" / version / source) for version in ("0001", "0002"))
    touched = {path for path in now if path not in before or not before[path].samefile(now[path])}
    earlier, found = leaves(folder / "0001" / name), leaves(folder / "0002" / name)
    # The zero points are those of Ks, which the new file does not change.
    assert {path for path in found if path not in earlier or not earlier[path].samefile(found[path])} == touched
    assert 0 < len(touched) < len(found)


def test_reused_products_equal_computed_ones_byte_by_byte(nights: Path) -> None:
    reused = nights / "store" / "products" / "0002"
    kept = shutil.move(reused, nights / "reused")
    shutil.move(nights / "store" / "products" / "0001", nights / "earlier")
    with dask.config.set(scheduler="threads"):
        run(open_survey(nights / "survey.yaml"), into=nights / "store", only="products")
    names = {path.relative_to(reused) for path in reused.rglob("*") if path.is_file()}
    assert names == {path.relative_to(kept) for path in Path(kept).rglob("*") if path.is_file()}
    for name in names:
        first, second = ((folder / name).read_bytes().splitlines() for folder in (reused, Path(kept)))
        if name.name in ("hats.properties", "properties"):
            # The day of writing is all that may differ.
            first, second = ([line for line in lines if b"creation_date" not in line] for lines in (first, second))
        assert first == second, name
    shutil.move(nights / "earlier", nights / "store" / "products" / "0001")


def test_other_zero_points_or_rules_are_no_reason_to_reuse(nights: Path) -> None:
    old, new = nights / "store" / "versions" / "0001", nights / "store" / "versions" / "0002"
    detections = [open_collection(version).detections for version in (old, new)]
    ids = open_collection(new).observations["observation_id"]
    ratios = [pa.table({"observation_id": ids, "flux_ratio": pa.array([ratio] * len(ids))}) for ratio in (1.0, 1.1)]
    calibrated = [calibrate(catalog, ratio, values=["Flux1"]) for catalog, ratio in zip(detections, ratios, strict=True)]
    with dask.config.set(scheduler="threads"):
        first = write_catalog(calibrated[0], nights / "first")
        second = write_catalog(calibrated[1], nights / "second", reuse=nights / "first")
        again = write_catalog(calibrated[1], nights / "again", reuse=nights / "second")
    one, other, same = (leaves(nights / name) for name in ("first", "second", "again"))
    assert not [path for path in set(one) & set(other) if one[path].samefile(other[path])]
    assert all(path.samefile(same[name]) for name, path in other.items())
    assert first.rows <= second.rows == again.rows


def test_other_rules_make_a_run_ingest_anew_and_say_why(nights: Path) -> None:
    survey = open_survey(nights / "survey.yaml")
    other = survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 1.0})})
    with dask.config.set(scheduler="threads"):
        report = run(other, into=nights / "store", only="ingest")
    assert report.how.startswith("ingested anew, not appended: ")
    assert "was made under other rules" in report.how
    assert report.collection.parent is None


def test_one_stage_alone_needs_the_ones_before(survey: Survey, tmp_path: Path) -> None:
    with pytest.raises(SurveyError, match="did you mean 'report'"):
        run(survey, into=tmp_path, only="reprot")
    with pytest.raises(StoreError, match="no committed version"):
        run(survey, into=tmp_path / "empty", only="products")


def test_calibration_finds_the_gain_of_every_epoch_and_then_the_variable_stars(report: RunReport, sky: Sky) -> None:
    folder = report.store / "products" / "0001"
    zero_points = pq.read_table(folder / "zero_points.parquet")
    truth = {row["ID"]: row["ZeroPoint"] for row in sky.calibration.to_pylist()}
    for row in zero_points.to_pylist():
        expected = 10 ** (0.4 * (truth[row["observation_id"]] - truth[row["reference_id"]]))
        assert row["flux_ratio"] == pytest.approx(expected, rel=0.02)
    variable = dict(zip(sky.stars["star_id"].to_pylist(), sky.stars["variable"].to_pylist(), strict=True))

    def rate(name: str) -> tuple[float, float]:
        table = open_catalog(folder / name, columns=["object_id", "Ks_Flux1Chi2", "Ks_Flux1Ndata"]).compute(scheduler="threads")
        chi2 = table["Ks_Flux1Chi2"].to_numpy() / np.maximum(table["Ks_Flux1Ndata"].to_numpy() - 1, 1)
        is_variable = np.array([variable[i] for i in table["object_id"].to_pylist()])
        return float(np.mean(chi2[is_variable] > 10)), float(np.mean(chi2[~is_variable] > 10))

    raw, calibrated = rate("variability"), rate("variability_calibrated")
    assert raw[1] > 0.5, "raw fluxes of epochs with other gains make constant stars look variable"
    assert calibrated[0] > 0.5
    assert calibrated[1] < 0.02


def test_the_preview_opens_in_astropy_with_units(report: RunReport) -> None:
    preview = Table.read(report.store / "products" / "0001" / "objects_preview.fits")
    assert str(preview["object_ra"].unit) == "deg"
    assert len(preview) == report.collection.accounting["objects"]


@pytest.mark.long
def test_a_run_without_its_images_stops_at_once_and_if_that_is_accepted_makes_the_rest_and_later_the_cutouts(
    tmp_path: Path,
) -> None:
    sky = make_sky(SkySpec(seed=2, fields=1, stars_per_field=400, epochs=1, bands=("J", "H"), epoch_bands=()))
    survey_file = write_tables(sky, tmp_path)
    add_images(sky, tmp_path)
    (tmp_path / "images").rename(tmp_path / "elsewhere")
    needed = (
        rf"products\.cutouts needs images: images\.glob: 'images/\*\.fits' finds no file below {tmp_path}; correct the glob or "
    )
    with pytest.raises(MissingInputError, match=needed + r"root, .* absent by intention, add accept: \[missing-images\]"):
        run(open_survey(survey_file), into=tmp_path / "store")
    assert not (tmp_path / "store").exists(), "nothing is read before"
    survey_file.write_text(survey_file.read_text().replace("accept: []", "accept: [missing-images]"))
    with dask.config.set(scheduler="threads"):
        without = run(open_survey(survey_file), into=tmp_path / "store")
        assert list(without.left_out) == ["cutouts.zarr"]
        assert "finds no file below" in without.left_out["cutouts.zarr"]
        assert without.page is not None
        assert "no image was there" in without.page.read_text()
        (tmp_path / "elsewhere").rename(tmp_path / "images")
        first = run(open_survey(survey_file), into=tmp_path / "store")
        again = run(open_survey(survey_file), into=tmp_path / "store", only="products")
    assert "bands" in first.skipped
    assert {product.name for product in first.products} - {product.name for product in without.products} == {"cutouts.zarr"}
    [product] = [product for product in first.products if product.name == "cutouts.zarr"]
    cube = open_cube(product.path)
    assert product.rows == cube.sizes["object"] > 3
    assert cube["band"].values.tolist() == ["J", "H"]
    stars = {row["star_id"]: row for row in sky.stars.to_pylist()}
    for n, thing in enumerate(cube["object_id"].values.tolist()):
        assert abs(float(cube["dec"][n]) - stars[thing]["dec_deg"]) < 1 / 3600
        image = cube["image"].values[n]
        if float(cube["pad_fraction"][n].max()) == 0 and stars[thing]["mag_H"] < 17:
            row, column = np.unravel_index(np.nanargmax(image[1]), image[1].shape)
            bad = cube["state"].values[n, 1, 13:19, 13:19].any()
            assert bad or max(abs(row - 15.5), abs(column - 15.5)) <= 1.5, "the star is in the middle"
    assert first.page is not None
    assert "Depth of the pixels" in first.page.read_text()
    assert "cutouts.zarr" in again.skipped


RESAMPLED = "{size: 32, combine: mean, resampling: adaptive}"


def releasing(folder: Path, cutouts: str) -> Survey:
    """Make a small survey with images that asks for a release."""
    sky = make_sky(SkySpec(seed=3, fields=1, stars_per_field=80, epochs=3, field_radius_deg=0.03))
    path = write_tables(sky, folder)
    add_images(sky, folder)
    add_release(folder)
    assert RESAMPLED in path.read_text()
    path.write_text(path.read_text().replace(RESAMPLED, cutouts))
    return open_survey(path)


def test_a_run_releases_what_the_survey_asks_for_and_makes_it_anew_for_another_recipe(tmp_path: Path) -> None:
    survey = releasing(tmp_path, "{size: 16, objects: 30}")
    with dask.config.set(scheduler="threads"):
        for stage in ("ingest", "products"):
            run(survey, into=tmp_path / "store", only=stage)
        again = run(survey, into=tmp_path / "store", only="products")
        [product] = [product for product in list_products(tmp_path / "store") if product.name == "release"]
        checked = verify_release(product.path, level=2)
    assert checked.passed, checked
    assert {"cutouts.zarr", "release"} <= set(again.skipped)
    release = open_release(product.path)
    books = release.manifest["accounting"]
    assert product.rows == books["released"] == books["in"] - books["rejected"] > 0
    assert release.manifest["images"]["objects_with_image"] > 10
    assert release.manifest["origins"]["simulated"] == books["released"]
    assert all(str(tmp_path) not in path.read_text() for path in (product.path / "code").iterdir())
    first, lost, sheet = release_sections(product.path)
    assert f"{books['in']:,} objects in = {books['released']:,} released + {books['rejected']:,} rejected" in first.text
    assert lost.table is not None
    assert sheet.table is not None
    assert dict(zip(lost.table["of"].to_pylist(), lost.table["released"].to_pylist(), strict=True))["rows"] == books["released"]
    assert sheet.table.num_rows == len(read_json(product.path / "datasheet.json"))
    recipe = tmp_path / "release.yaml"
    recipe.write_text(recipe.read_text().replace("folds: 4", "folds: 3"))
    with dask.config.set(scheduler="threads"):
        run(survey, into=tmp_path / "store", only="products")
    assert open_release(product.path).manifest["split"]["folds"] == 3


@pytest.mark.long
def test_the_page_shows_the_release_and_resampled_images_come_out_of_their_sources(tmp_path: Path) -> None:
    with dask.config.set(scheduler="threads"):
        report = run(releasing(tmp_path, RESAMPLED), into=tmp_path / "store")
        [product] = [product for product in report.products if product.name == "release"]
        checked = verify_release(product.path, level=3, sources=tmp_path)
    assert checked.passed, checked
    assert report.page is not None
    for heading in ("Release", "What the release left out", "Datasheet"):
        assert f">{heading}<" in report.page.read_text()
