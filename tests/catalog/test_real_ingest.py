"""Every real table goes into a store and comes back as another reader gives it: values, nulls, arrays, units and meanings."""

from __future__ import annotations

import csv
import gzip
import json
import re
import tarfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dask
import h5py
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from astropy import units as u
from astropy.io import fits
from astropy.table import Table
from numpy.typing import NDArray
from test_check_real import describe, desi, gaia, roles, summary

import scalable
from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.errors import ScalableError
from scalable.pipeline import run
from scalable.schema import State
from scalable.survey.description import Survey
from scalable.survey.read import open_survey

DESI = "tables/zall-pix-iron_10rows.fits"
TESS = "tables/tess_gam02_10rows.fits"


@pytest.fixture(autouse=True, scope="module")
def _here() -> Iterator[None]:
    with dask.config.set(scheduler="sync"):
        yield


# What another reader makes of them ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Known:
    """A column by a reader that is not ours: its cells, which items are null, and what it means."""

    cells: Sequence[Any]
    null: NDArray[np.bool_] | None = None
    unit: str = ""
    ucd: str = ""
    description: str = ""


def by_astropy(path: Path) -> dict[str, Known]:
    """Read a FITS table; a text is null where its first byte is NUL."""
    found = {}
    with fits.open(path) as hdus:
        header, data = hdus[1].header, hdus[1].data
        for n, name in enumerate(data.names, start=1):
            values = np.array(data[name])
            text = values.dtype.kind == "U"
            null = data.view(np.ndarray)[name] == b"" if text else None
            values = np.char.rstrip(values) if text else values.astype(values.dtype.newbyteorder("="))
            comment, ucd = header.comments[f"TTYPE{n}"], header.get(f"UCD__{n}", "")
            found[name] = Known(values, null, header.get(f"TUNIT{n}", ""), ucd, comment)
    return found


def ecsv_by_astropy(path: Path) -> dict[str, Known]:
    """Read an ECSV table; astropy takes every text for true, so arrays of "True" and "False" are read here."""
    with path.open(newline="") as file:
        names, *lines = csv.reader(line for line in file if not line.startswith("#"))
    found = {}
    for name, column in Table.read(path, format="ascii.ecsv").columns.items():
        cells = list(column)
        if np.asarray(cells[0]).dtype.kind == "b":
            texts = [json.loads(line[names.index(name)]) for line in lines]
            assert {text for cell in texts for text in cell} <= {"True", "False"}
            cells = [np.array(cell) == "True" for cell in texts]
        found[name] = Known(cells, None, str(column.unit or ""), column.meta.get("ucd", ""), column.description or "")
    return found


def parquet_by_arrow(path: Path) -> dict[str, Known]:
    table = pq.read_table(path)
    return {name: Known(table[name].to_numpy()) for name in table.column_names}


def text_by_numpy(path: Path) -> dict[str, Known]:
    with gzip.open(path, "rt") as lines:
        names = next(lines).lstrip("#").split()
        cells = np.array([line.split() for line in lines])
    kinds: list[type] = [int if all(re.fullmatch(r"[+-]?\d+", cell) for cell in column) else float for column in cells.T]
    return {
        name: Known(column if name == "type" else column.astype(kind))
        for name, kind, column in zip(names, kinds, cells.T, strict=True)
    }


# How they are described -----------------------------------------------------------------------------------------------------


def rubin(data: Path, folder: Path) -> Survey:
    source = data / "photoz/rail_dc2_sim/rubin_dm_dc2_example.pq"
    return describe(folder, source, roles("objectId", "ra", "decl", r_gaap1p0Flux="flux"), "parquet")


def rows_of(path: str, file_format: str, columns: dict[str, Any] | None = None) -> Callable[[Path, Path], Survey]:
    """Describe a file as a table without positions."""

    def describe_it(data: Path, folder: Path) -> Survey:
        described = {"survey": "real", "root": str((data / path).parent), "columns": columns or {}}
        described["files"] = {"glob": (data / path).name, "format": file_format}
        (folder / "survey.yaml").write_text(json.dumps(described))
        return open_survey(folder / "survey.yaml")

    return describe_it


ELECTRONS = {name: {"unit": "electron.s**-1"} for name in ("FLUX", "FLUX_ERR", "FLUX_BKG", "FLUX_BKG_ERR")}


@dataclass(frozen=True)
class Case:
    path: str
    describe: Callable[[Path, Path], Survey]
    read: Callable[[Path], dict[str, Known]]
    units: dict[str, str] = field(default_factory=dict)
    """Units that the file does not give so that astropy could read them."""


CASES = {
    "desi": Case(DESI, desi, by_astropy),
    "tess": Case(
        TESS,
        rows_of(TESS, "fits", ELECTRONS),
        by_astropy,
        {name: rule["unit"] for name, rule in ELECTRONS.items()} | {"TIME": ""},
    ),
    "gaia": Case("tables/gaia_epoch.ecsv", gaia, ecsv_by_astropy),
    "rr lyrae": Case("lightcurves/RRLyrae.fit", summary, by_astropy),
    "table2": Case("lightcurves/table2.dat.gz", rows_of("lightcurves/table2.dat.gz", "text"), text_by_numpy),
    "table3": Case("lightcurves/table3.dat.gz", rows_of("lightcurves/table3.dat.gz", "text"), text_by_numpy),
    "rubin": Case("photoz/rail_dc2_sim/rubin_dm_dc2_example.pq", rubin, parquet_by_arrow),
}


@dataclass(frozen=True)
class Stored:
    """A store and what must be in it."""

    case: Case
    survey: Survey
    collection: Collection
    known: dict[str, Known]

    @property
    def catalog(self) -> Catalog:
        return self.collection.detections if self.collection.has_positions else self.collection.rows


@pytest.fixture(scope="module")
def stored(request: pytest.FixtureRequest, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    case: Case = CASES[request.param]
    folder = tmp_path_factory.mktemp("real")
    survey = case.describe(data, folder)
    return Stored(case, survey, scalable.ingest(survey, into=folder / "store"), case.read(data / case.path))


every_table = pytest.mark.parametrize("stored", CASES, indirect=True)


def check_cells(found: pa.ChunkedArray, known: Known) -> None:
    """Hold a stored column against the cells that another reader gives: types, nulls, lengths and bits."""
    values = np.concatenate([np.ravel(cell) for cell in known.cells])
    nothing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
    null = nothing if known.null is None else known.null
    array = found.combine_chunks()
    if pa.types.is_nested(array.type):
        assert array.null_count == 0
        assert pc.list_value_length(array).to_pylist() == [np.size(cell) for cell in known.cells]
        array = array.flatten()
    assert np.array_equal(array.is_null().to_numpy(zero_copy_only=False), null)
    if values.dtype.kind == "U":
        assert array.drop_null().to_pylist() == values[~null].tolist()
    else:
        assert array.type == pa.from_numpy_dtype(values.dtype)
        assert array.drop_null().to_numpy(zero_copy_only=False).tobytes() == values[~null].tobytes()


@every_table
def test_every_cell_comes_back_as_another_reader_gives_it(stored: Stored) -> None:
    table = stored.catalog.compute().sort_by("source_row")
    rows = len(next(iter(stored.known.values())).cells)
    counts = stored.collection.accounting
    assert (counts["read"], counts["stored"], counts["rejected"], counts["quarantined"]) == (rows, rows, 0, 0)
    assert table["source_row"].to_pylist() == list(range(rows))
    assert table.column_names[-len(stored.known) :] == list(stored.known)
    for name, known in stored.known.items():
        check_cells(table[name], known)
        if isinstance(known.cells, np.ndarray) and known.cells.ndim > 1:
            assert stored.catalog.columns[name].shape == ",".join(map(str, known.cells.shape[1:]))


def in_words_of_astropy(unit: str) -> str:
    """Spell a unit as astropy does; quotes are how VOUnit spells a name that it does not know."""
    return str(u.Unit(unit.replace("'", "")))


@every_table
def test_units_and_meanings_come_back_and_reach_astropy(stored: Stored) -> None:
    folder = stored.collection.path
    folder /= "detections/detections/dataset" if stored.collection.has_positions else "rows"
    with warnings.catch_warnings():
        # Of units that no standard knows.
        warnings.simplefilter("ignore")
        theirs = Table.read(folder / "_common_metadata", format="parquet.votable")
        for name, known in stored.known.items():
            unit = in_words_of_astropy(stored.case.units.get(name, known.unit))
            ours = stored.catalog.columns[name]
            assert str(theirs[name].unit or "") == unit, name
            assert in_words_of_astropy(ours.unit) == unit, name
            if name in stored.case.units:
                assert ours.source_unit == known.unit
            assert (ours.ucd, ours.description) == (known.ucd, known.description)
            assert theirs[name].meta.get("ucd", "") == known.ucd
            # A VOTable breaks long lines.
            assert " ".join((theirs[name].description or "").split()) == known.description


def test_the_tables_hold_what_makes_them_worth_a_test(data: Path) -> None:
    desi, tess, gaia = (case.read(data / case.path) for case in map(CASES.get, ("desi", "tess", "gaia")) if case)
    assert len(desi) == 136
    assert np.shape(desi["COEFF"].cells) == (10, 10)
    assert sum(np.sum(column.null) for column in desi.values() if column.null is not None) > 0
    assert {name for name, column in tess.items() if np.shape(column.cells) == (10, 5, 5)} == {"RAW_CNTS", *ELECTRONS}
    assert [len(cell) for cell in gaia["bp_flux"].cells] == [16, 23, 23]
    assert [int(np.isnan(cell).sum()) for cell in gaia["bp_flux"].cells] == [4, 1, 1]


def test_every_cell_of_the_eighteen_fields_comes_back(vvv: Collection, data: Path) -> None:
    table = vvv.detections.compute().sort_by([("observation_id", "ascending"), ("source_row", "ascending")])
    files = vvv.observations.sort_by("observation_id")["path"].to_pylist()
    assert len(files) == 18
    for number, path in enumerate(files):
        own = table.slice(number * 10_000, 10_000)
        assert own["source_row"].to_pylist() == list(range(10_000))
        for name, known in by_astropy(data / "vvv" / path).items():
            check_cells(own[name], known)


# Light curves and simulated galaxies ----------------------------------------------------------------------------------------


MAGNITUDES, ERRORS = ([f"col{n}" for n in range(first, 18, 3)] for first in (4, 5))


@pytest.mark.parametrize("every", [16, pytest.param(1, marks=pytest.mark.long)])
def test_light_curves_of_many_files_come_back_with_missing_epochs_as_states(data: Path, tmp_path: Path, every: int) -> None:
    with tarfile.open(data / "lightcurves/table1.tar.gz") as archive:
        members = sorted((member for member in archive.getmembers() if member.name.endswith(".dat")), key=lambda m: m.name)
        for member in members[::every]:
            content = archive.extractfile(member)
            assert content is not None
            (tmp_path / member.name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / member.name).write_bytes(content.read())
    assert len(members) == 483
    missing = [{"value": -99.99, "state": "not_observed"}, {"value": 99.999, "state": "not_observed"}]
    described = {
        "survey": "stripe82",
        "root": str(tmp_path),
        "files": {"glob": "**/*.dat", "format": "text"},
        "observations": {"pattern": r"(?P<id>\d+)\.dat"},
        "columns": {name: {"unit": "mag", "nulls": missing} for name in (*MAGNITUDES, *ERRORS)},
    }
    (tmp_path / "survey.yaml").write_text(json.dumps(described))
    found = scalable.ingest(open_survey(tmp_path / "survey.yaml"), into=tmp_path / "store")
    table = found.rows.compute()
    expected = {int(path.stem): np.loadtxt(path, ndmin=2) for path in tmp_path.rglob("*.dat")}
    stars = sorted(expected)
    values = np.concatenate([expected[star] for star in stars])
    assert found.accounting["stored"] == found.accounting["read"] == len(values) == table.num_rows
    assert table["observation_id"].to_pylist() == [star for star in stars for _ in expected[star]]
    assert table["source_row"].to_pylist() == [row for star in stars for row in range(len(expected[star]))]
    assert values.shape[1] == 17
    nulls = {}
    for n, name in enumerate(f"col{n}" for n in range(1, 18)):
        absent = np.isin(values[:, n], [-99.99, 99.999]) & (name in described["columns"])
        check_cells(table[name], Known(np.where(absent, np.nan, values[:, n])))
        if name in described["columns"]:
            assert np.array_equal(table[f"{name}_state"], np.where(absent, State.NOT_OBSERVED, State.MEASURED))
        nulls[name] = int(absent.sum())
    assert found.manifest["nulls"] == {name: count for name, count in nulls.items() if count}
    assert len(found.manifest["nulls"]) >= 6


def test_simulated_galaxies_come_back_with_non_detections_as_states(data: Path, tmp_path: Path) -> None:
    rule = {"role": "mag", "unit": "mag", "nulls": [{"value": 99.0, "state": "non_detection"}]}
    described = {
        "survey": "dc2",
        "root": str(data / "photoz/rail_dc2_sim"),
        "files": {"glob": "*.hdf5", "format": "hdf5", "table": "photometry"},
        "columns": {f"mag_{band}_lsst": rule for band in "ugrizy"} | {"id": {"role": "object_id"}},
    }
    (tmp_path / "survey.yaml").write_text(json.dumps(described))
    found = scalable.ingest(open_survey(tmp_path / "survey.yaml"), into=tmp_path / "store")
    for path, observation, rows in zip(
        *found.observations.select(["path", "observation_id", "rows"]).to_pydict().values(), strict=True
    ):
        table = found.rows.where(f"observation_id = {observation}").compute()
        with h5py.File(data / "photoz/rail_dc2_sim" / path) as file:
            columns = {name: dataset[:] for name, dataset in file["photometry"].items()}
        assert rows == table.num_rows == len(columns["id"])
        for name, values in columns.items():
            absent = (values == 99) & (name != "id")
            check_cells(table[name], Known(values, absent))
            if name.startswith("mag_") and "err" not in name:
                assert np.array_equal(table[f"{name}_state"], np.where(absent, State.NON_DETECTION, State.MEASURED))
    assert found.manifest["nulls"] == {"mag_u_lsst": 714 + 1489 + 7, "mag_g_lsst": 2}


# What is made of such stores ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stored", ["desi", "tess"], indirect=True)
def test_a_run_over_tables_with_arrays_makes_its_page_and_preview(stored: Stored) -> None:
    store = stored.collection.path.parents[1]
    report = run(stored.survey, into=store)
    assert report.skipped == ["ingest"]
    assert report.page is not None
    page = report.page.read_text()
    assert "10 of 10 rows read" in page
    member = "objects" if stored.collection.has_positions else "rows"
    with fits.open(store / "products/0001" / f"{member}_preview.fits") as hdus:
        assert len(hdus[1].data) == 10


@pytest.mark.parametrize("stored", ["gaia"], indirect=True)
def test_a_statistic_of_an_array_is_refused(stored: Stored) -> None:
    with pytest.raises(ScalableError, match="g_transit_flux"):
        scalable.variability(stored.collection.detections, values=["g_transit_flux"])
