"""The models that a run makes: taught with the rows that the survey names, judged on others, and not made twice."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.table import Table

from scalable.catalog.catalog import open_catalog
from scalable.catalog.ingest import ingest
from scalable.errors import SurveyError
from scalable.pipeline import run
from scalable.survey.description import Survey
from scalable.survey.products import PhotoZ
from scalable.survey.read import open_survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import add_mixture, write_tables
from scalable.train.batches import fold_of
from scalable.train.components import Standardizer
from scalable.train.metrics import metrics_of
from scalable.train.model import open_model
from scalable.train.photoz import WORDS
from scalable.train.predict import sample_mixture
from scalable.train.products import mixture_rows, teach_photoz
from scalable.train.tables import batches_of, left_out

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(autouse=True)
def _here() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


def with_products(survey: Survey, **products: Any) -> Survey:
    """The same survey, which asks for other models."""
    asked = survey.products.model_dump() | products
    return Survey.model_validate({**survey.model_dump(by_alias=True), "products": asked})


@pytest.mark.long
def test_a_run_fits_the_colours_of_stars_and_draws_from_them_once(tmp_path: Path) -> None:
    sky = make_sky(SkySpec(seed=3, fields=1, stars_per_field=500, epochs=1, bands=("Y", "J", "H"), epoch_bands=()))
    path = write_tables(sky, tmp_path)
    add_mixture(tmp_path)
    survey = with_products(
        open_survey(path), mixture={"bands": tuple("YJH"), "components": (1, 2), "classes": (-1,), "rule": "Y", "rows": 2000}
    )
    bands = {}
    for band in "YJH":
        table = Table.read(tmp_path / "tables" / f"Field-1-{band}.fits")
        bands[band] = {row["StarID"]: (row["Mag1"], row["Class"]) for row in table}
    both = set.intersection(*(set(rows) for rows in bands.values()))
    stars = [i for i in both if bands["Y"][i][1] == -1 and all(np.isfinite(bands[band][i][0]) for band in bands)]
    first = run(survey, into=tmp_path / "store")
    folder = tmp_path / "store" / "products" / "0001"
    model = open_model(folder / "mixture.h5")
    assert model.about["rows"] == len(stars) > 300
    assert model.about["left_out"]["class"] == sum(bands["Y"][i][1] != -1 for i in both)
    assert [row["components"] for row in model.about["criteria"]] == [1, 2]
    assert set(model.about["tests"]["ks"]) == {"Y_Mag1 - J_Mag1", "J_Mag1 - H_Mag1"}
    sample = pq.read_table(folder / "mixture_sample.parquet")
    assert sample.equals(sample_mixture(model, 2000).compute())
    assert {"mixture.h5", "mixture_sample.parquet"} <= {product.name for product in first.products}
    page = first.page.read_text()
    for text in (
        "Mixture: how many components",
        "Mixture: data and samples",
        "Kolmogorov-Smirnov distance of Y_Mag1 - J_Mag1",
        "energy distance",
    ):
        assert text in page
    again = run(survey, into=tmp_path / "store", only="products")
    assert "mixture.h5" in again.skipped
    more = with_products(survey, mixture={**survey.products.mixture.model_dump(), "components": (3,)})
    run(more, into=tmp_path / "store", only="products")
    assert open_model(folder / "mixture.h5").estimator.n_components == 3


def galaxies(folder: Path, *, positions: bool) -> Survey:
    """400 galaxies, ten of them without a redshift, in a Parquet file."""
    rng = np.random.default_rng(5)
    z = rng.uniform(0, 0.5, 400)
    columns: dict[str, Any] = {
        band: 20 + slope * z + 0.02 * rng.normal(size=400) for band, slope in zip("gri", (3, 1, 0.2), strict=True)
    }
    columns["z"] = np.where(np.arange(400) < 10, np.nan, z)
    rules: dict[str, Any] = {band: {"role": "mag", "unit": "mag"} for band in "gri"} | {"z": {"unit": ""}}
    described: dict[str, Any] = {"survey": "galaxies", "root": ".", "files": {"glob": "*.parquet", "format": "parquet"}}
    if positions:
        columns |= {"id": np.arange(1000, 1400), "ra": rng.uniform(10, 12, 400), "dec": rng.uniform(-1, 1, 400)}
        rules |= {"id": {"role": "object_id"}, "ra": {"role": "ra", "unit": "deg"}, "dec": {"role": "dec", "unit": "deg"}}
        described |= {"bands": ["gri"], "observations": {"band": {"value": "gri"}, "mjd": {"value": 57000.0}}}
    folder.mkdir()
    pq.write_table(pa.table(columns), folder / "galaxies.parquet")
    wanted = {"photoz": {"magnitudes": ["g", "r", "i"], "target": "z", "reference": "r", "estimator": "ridge", "held_out": 0.25}}
    (folder / "survey.yaml").write_text(json.dumps({**described, "columns": rules, "products": wanted}))
    return open_survey(folder / "survey.yaml")


def test_a_run_teaches_redshifts_judges_them_on_objects_unseen_and_predicts_every_row(tmp_path: Path) -> None:
    survey = galaxies(tmp_path / "sky", positions=True)
    first = run(survey, into=tmp_path / "store")
    folder = tmp_path / "store" / "products" / "0001"
    model = open_model(folder / "photoz.h5")
    found = open_catalog(folder / "redshifts").compute()
    assert found.num_rows == 400
    assert found["z_phot"].null_count == 0
    known = ~np.isnan(found["z"].fill_null(np.nan).to_numpy())
    held = fold_of(found["object_id"].to_numpy().astype(np.uint64), 4, 0) == 0
    assert model.about["rows"] == np.count_nonzero(known & ~held)
    assert model.about["left_out"] == {"used": 390, "no target or weight": 10}
    z_phot, z = found["z_phot"].to_numpy(), found["z"].to_numpy()
    for metrics, rows in ((model.about["metrics"]["train"], known & ~held), (model.about["metrics"]["folds"][0], known & held)):
        assert metrics == pytest.approx(metrics_of(z_phot[rows], z[rows]), rel=1e-9, abs=1e-12)
    page = first.page.read_text()
    assert "Photometric against spectroscopic redshift" in page
    assert "left out: 10 no target or weight." in page
    made = (folder / "photoz.h5").read_bytes()
    (folder / "photoz.h5").unlink()
    run(survey, into=tmp_path / "store", only="products")
    assert (folder / "photoz.h5").read_bytes() == made


def test_when_all_rows_are_on_one_side_the_survey_is_told(tmp_path: Path) -> None:
    survey = galaxies(tmp_path / "sky", positions=True)
    one_pixel = with_products(survey, photoz={**survey.products.photoz.model_dump(), "sky_order": 0})
    with pytest.raises(SurveyError, match=r"0.25 of the pixels of order 0 are held out; take more rows, or finer pixels"):
        teach_photoz(one_pixel.products.photoz, ingest(survey, into=tmp_path / "store"), checkpoint=tmp_path / "state")


def test_tables_without_positions_teach_too(tmp_path: Path) -> None:
    run(galaxies(tmp_path / "rows", positions=False), into=tmp_path / "store")
    model = open_model(tmp_path / "store" / "products" / "0001" / "photoz.h5")
    assert 0.7 * 390 < model.about["rows"] < 0.8 * 390
    assert model.about["metrics"]["folds"][0]["median_abs"] < 0.02


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"photoz": {"magnitudes": ["g", "q"], "target": "z"}}, "products.photoz: no column 'q'"),
        ({"photoz": {"magnitudes": ["g", "r"], "target": "z", "reference": "i"}}, "'i' is none of the magnitudes"),
        ({"mixture": {"bands": ["gri", "J"]}, "magnitude": "g"}, "products.mixture.bands: no band 'J'"),
        ({"mixture": {"bands": ["gri", "gri"]}}, "the colours are those of products.magnitude"),
        ({"mixture": {"bands": ["gri", "gri"], "classes": [1]}, "magnitude": "g"}, "no column has the role class"),
        ({"mixture": {"bands": ["gri", "gri"], "rule": "most"}, "magnitude": "g"}, "no rule 'most'"),
    ],
)
def test_what_cannot_be_learnt_is_refused_with_the_description(tmp_path: Path, wrong: dict[str, Any], said: str) -> None:
    galaxies(tmp_path / "sky", positions=True)
    path = tmp_path / "sky" / "survey.yaml"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"products": wrong}))
    with pytest.raises(SurveyError, match=said):
        open_survey(path)


def test_a_survey_may_name_every_estimator() -> None:
    assert set(get_args(PhotoZ.model_fields["estimator"].annotation)) == set(WORDS)


@pytest.mark.long
def test_the_stars_of_the_real_survey_are_those_that_were_counted_by_hand(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCALABLE_DATA", str(data))
    survey = open_survey(EXAMPLES / "vvv" / "survey.yaml")
    with dask.config.set(scheduler="threads"):
        stars = batches_of(*mixture_rows(survey, survey.products.mixture, ingest(survey, into=tmp_path / "store")))
        found = Standardizer().fit(stars)
    assert left_out(stars) == {"used": 21_196, "class": 30_000 - 21_212, "non_detection": 16}
    np.testing.assert_allclose(found.centre_, (-0.1516, 1.3375), atol=5e-5)
    np.testing.assert_allclose(found.scale_, (0.1711, 0.3889), atol=5e-5)


@pytest.mark.long
def test_a_run_teaches_the_real_galaxies_and_judges_by_pixels_unseen(data: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLES / "des_dnf", tmp_path / "des")
    shutil.copy(data / "photoz" / "des_dnf" / "valid.fits", tmp_path / "des")
    survey = open_survey(tmp_path / "des" / "survey.yaml")
    with dask.config.set(scheduler="threads"):
        run(survey, into=tmp_path / "store")
    model = open_model(tmp_path / "store" / "products" / "0001" / "photoz.h5")
    assert model.about["left_out"]["not_observed"] == 46
    assert 0.01 < model.about["metrics"]["folds"][0]["median_abs"] < 0.02
