"""The stages of a run: in order, resumable, and answers that the truth confirms."""

from __future__ import annotations

from pathlib import Path

import dask
import numpy as np
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from scalable.catalog.catalog import open_catalog
from scalable.errors import StoreError, SurveyError
from scalable.pipeline import RunReport, run
from scalable.survey import Survey, open_survey
from scalable.synthetic.sky import Sky, SkySpec, make_sky
from scalable.synthetic.tables import write_tables


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
    for heading in ("Accounting", "Partitions on the sky", "Colour J", "Variable objects in Ks", "Well measured", "How to open"):
        assert heading in page


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
