"""The same survey in another format gives the same catalogue."""

from __future__ import annotations

from pathlib import Path

import dask
import pyarrow as pa
import pytest
from astropy.table import Table

from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest
from scalable.survey.read import open_survey
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables

SPEC = SkySpec(seed=2, fields=1, stars_per_field=60, epochs=2)
COLUMNS = ["object_id", "observation_id", "source_row", "band", "mjd", "Flux1", "dFlux1", "Mag1", "object_ra", "StarID"]


def stored(folder: Path, name: str, ending: str, writer: str) -> Collection:
    survey = write_tables(make_sky(SPEC), folder)
    for path in (folder / "tables").glob("*.fits") if writer else ():
        # astropy would write a mask of NaN beside the values into Parquet.
        Table.read(path, mask_invalid=writer != "parquet").write(path.with_suffix(ending), format=writer)
        path.unlink()
    text = survey.read_text().replace(".fits", ending).replace("format: fits", f"format: {name}")
    survey.write_text(text)
    with dask.config.set(scheduler="sync"):
        return ingest(open_survey(survey), into=folder / "store")


@pytest.fixture(scope="module")
def from_fits(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    return stored(tmp_path_factory.mktemp("fits"), "fits", ".fits", "")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "ending", "writer"),
    [
        ("csv", ".csv", "ascii.csv"),
        ("ecsv", ".ecsv", "ascii.ecsv"),
        ("votable", ".xml", "votable"),
        ("parquet", ".parquet", "parquet"),
    ],
)
def test_another_format_gives_the_same_catalogue(
    from_fits: Collection, tmp_path: Path, name: str, ending: str, writer: str
) -> None:
    found = stored(tmp_path, name, ending, writer)
    assert found.accounting["stored"] == from_fits.accounting["stored"] > 0
    assert found.accounting["quarantined"] == 0
    mine, theirs = (c.detections.select(*COLUMNS).compute(scheduler="sync") for c in (found, from_fits))
    # Text has no single precision; the digits that were written are the number.
    wide = pa.schema([f.with_type(pa.float64()) if pa.types.is_floating(f.type) else f for f in theirs.schema])
    mine, theirs = mine.cast(wide), theirs.cast(wide)
    for column in COLUMNS:
        assert mine[column].null_count == theirs[column].null_count
        for a, b in zip(mine[column].to_pylist(), theirs[column].to_pylist(), strict=True):
            assert a == b or a == pytest.approx(b, rel=2.0**-23)
    assert found.detections.columns["Mag1"].unit == "mag"
