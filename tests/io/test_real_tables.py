"""Real tables that no reader's own tests read: each equals what an independent reader makes of it."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scalable.io.delimited import DelimitedTable
from scalable.io.hdf5_table import Hdf5Table
from scalable.io.parquet_table import ParquetTable
from scalable.io.reader import Source
from scalable.testing import check_reader

TEXT = DelimitedTable("text")


def matrix(table: pa.Table, names: list[str]) -> np.ndarray:
    assert not any(table[name].null_count for name in names)
    return np.column_stack([table[name].to_numpy().astype(float) for name in names])


@pytest.mark.parametrize("name", ["table2", "table3"])
def test_compressed_tables_of_rr_lyrae_hold_what_numpy_reads(data: Path, name: str) -> None:
    path = data / "lightcurves" / f"{name}.dat.gz"
    found = check_reader(TEXT, Source(str(path)))
    with gzip.open(path, "rt") as lines:
        assert found.column_names == next(lines).lstrip("#").split()
        cells = np.array([line.split() for line in lines])
    assert len(cells) == 483
    assert len(set(found.column_names)) == cells.shape[1]
    texts = [n for n, field in enumerate(found.schema) if pa.types.is_string(field.type)]
    assert [found.column_names[n] for n in texts] == (["type"] if name == "table2" else [])
    for n in texts:
        assert found.column(n).to_pylist() == cells[:, n].tolist()
    numbers = [n for n in range(cells.shape[1]) if n not in texts]
    np.testing.assert_array_equal(matrix(found, [found.column_names[n] for n in numbers]), cells[:, numbers].astype(float))


@pytest.mark.parametrize(("every", "rows"), [(16, 1947), pytest.param(1, 28_449, marks=pytest.mark.long)])
def test_light_curves_without_a_header_hold_what_numpy_reads(data: Path, tmp_path: Path, every: int, rows: int) -> None:
    with tarfile.open(data / "lightcurves/table1.tar.gz") as archive:
        for member in archive:
            if (content := archive.extractfile(member)) is not None:
                (tmp_path / Path(member.name).name).write_bytes(content.read())
    paths = sorted(tmp_path.rglob("*.dat"))
    assert len(paths) == 483
    epochs = 0
    for path in paths[::every]:
        (found,) = TEXT.scan(Source(str(path)))
        np.testing.assert_array_equal(matrix(found, found.column_names), np.loadtxt(path, ndmin=2))
        epochs += found.num_rows
    assert epochs == rows


@pytest.mark.parametrize("name", ["test_dc2_training_9816", "test_dc2_validation_9816"])
def test_simulated_galaxies_come_through_the_reader_as_h5py_reads_them(data: Path, name: str) -> None:
    path = data / f"photoz/rail_dc2_sim/{name}.hdf5"
    found = pa.concat_tables(Hdf5Table().scan(Source(str(path), table="photometry")))
    with h5py.File(path) as file:
        assert found.column_names == list(file["photometry"])
        for column, dataset in file["photometry"].items():
            values = dataset[:]
            missing = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), bool)
            assert found[column].type == pa.from_numpy_dtype(values.dtype)
            np.testing.assert_array_equal(found[column].is_null().to_numpy(), missing)
            np.testing.assert_array_equal(found[column].filter(pa.array(~missing)).to_numpy(), values[~missing])
            assert found.schema.field(column).metadata is None  # there is no unit anywhere


def test_the_rubin_objects_hold_what_arrow_reads_with_nan_as_null(data: Path) -> None:
    path = data / "photoz/rail_dc2_sim/rubin_dm_dc2_example.pq"
    found, expected = check_reader(ParquetTable(), Source(str(path))), pq.read_table(path)
    assert found.column_names == expected.column_names
    for name in expected.column_names:
        values = [None if value != value else value for value in expected[name].to_pylist()]
        assert found[name].to_pylist() == values, name
