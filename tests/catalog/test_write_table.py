"""`write_table`: any lazy result as one file, with its units and what was done to it."""

from __future__ import annotations

import json
from pathlib import Path

import dask
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from astropy.io import fits
from astropy.table import Table

from scalable.catalog import export
from scalable.catalog.bands import join_bands
from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.catalog.export import write_table
from scalable.catalog.search import cone_search
from scalable.catalog.sql import sql
from scalable.errors import ColumnError, StoreError
from scalable.testing import no_compute

CONE = {"ra_deg": 268.7, "dec_deg": -30.0, "radius_arcsec": 360.0}
QUERY = "SELECT band, avg(Mag1) AS mean, count(*) AS n FROM detections WHERE in_cone(268.7, -30, 0.25) GROUP BY band"


@pytest.mark.parametrize(
    "ending", [".fits", *(pytest.param(e, marks=pytest.mark.long) for e in (".parquet", ".ecsv", ".vot", ".csv"))]
)
def test_rows_of_several_partitions_and_combined_ones_are_written(synthetic: Collection, tmp_path: Path, ending: str) -> None:
    bands = join_bands(cone_search(synthetic.detections, **CONE).repartition(3), values=["Mag1"])
    with dask.config.set(scheduler="threads"):
        for name, lazy in {"bands": bands, "means": sql(synthetic, QUERY)}.items():
            path = tmp_path / f"{name}{ending}"
            table = lazy.compute()
            assert write_table(lazy, path) == table.num_rows > 0
            if ending == ".parquet":
                assert pq.read_table(path).equals(table)
                continue
            found = Table.read(path, format="ascii.csv" if ending == ".csv" else None)
            assert found.colnames == table.column_names
            assert len(found) == table.num_rows
            for column in lazy.columns:
                assert ending == ".csv" or str(found[column.name].unit or "") == column.unit
    assert sorted(path.stem for path in tmp_path.iterdir()) == ["bands", "means"]


def test_the_file_says_which_query_made_it(synthetic: Collection, tmp_path: Path) -> None:
    with dask.config.set(scheduler="threads"):
        for name in ("answer.fits", "answer.ecsv", "answer.parquet"):
            write_table(sql(synthetic, QUERY), tmp_path / name)
    assert json.loads(fits.getheader(tmp_path / "answer.fits", 1)["STEP1"]) == {"step": "sql", "query": QUERY}
    assert Table.read(tmp_path / "answer.ecsv").meta["history"] == [{"step": "sql", "query": QUERY}]
    about = json.loads(pq.read_schema(tmp_path / "answer.parquet").metadata[b"scalable"])
    assert about["history"] == [{"step": "sql", "query": QUERY}]


def test_what_cannot_be_written_is_refused_before_anything_is_computed(synthetic: Collection, tmp_path: Path) -> None:
    path = tmp_path / "answer.fits"
    path.write_text("mine")
    with no_compute():
        with pytest.raises(StoreError, match="exists already"):
            write_table(synthetic.objects, path)
        with pytest.raises(StoreError, match="no format"):
            write_table(synthetic.objects, tmp_path / "answer.doc")
        with pytest.raises(ColumnError, match=r"only \.parquet holds columns like lightcurve"):
            write_table(synthetic.detections.nest(), tmp_path / "answer.vot")
    assert path.read_text() == "mine"


def test_a_few_partitions_are_in_memory_at_a_time(synthetic: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "CPU_COUNT", 2)
    computed: list[int] = []
    compute = dask.compute

    def counted(*parts: Catalog) -> tuple[pa.Table, ...]:
        computed.append(len(parts))
        return tuple(compute(*parts, scheduler="sync"))

    lazy = synthetic.objects.repartition(5)
    monkeypatch.setattr(dask, "compute", counted)
    assert write_table(lazy, tmp_path / "answer.parquet") == lazy.rows
    assert computed == [2, 2, 1]
