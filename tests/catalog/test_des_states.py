"""The DES file, whose sentinels and negative errors are states by rules of its description: nothing lost, nothing changed."""

from __future__ import annotations

import shutil
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pytest
from surveys import read_by_astropy

from scalable.catalog.collection import Collection
from scalable.catalog.ingest import ingest
from scalable.schema import State
from scalable.survey.read import open_survey

EXAMPLE = Path(__file__).parents[2] / "examples" / "des_dnf"
BANDS = "GRIZY"


@pytest.fixture(scope="module")
def published(data: Path) -> dict[str, np.ndarray]:
    return read_by_astropy(data / "photoz" / "des_dnf" / "valid.fits")


@pytest.fixture(scope="module")
def collection(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """The example, with its input put beside it as it asks."""
    folder = shutil.copytree(EXAMPLE, tmp_path_factory.mktemp("des") / "des_dnf")
    shutil.copyfile(data / "photoz" / "des_dnf" / "valid.fits", folder / "valid.fits")
    with dask.config.set(scheduler="threads"):
        return ingest(open_survey(folder / "survey.yaml"), into=folder / "store")


@pytest.fixture(scope="module")
def stored(collection: Collection) -> pa.Table:
    """The detections in the order of the file."""
    return collection.detections.compute(scheduler="threads").sort_by("source_row")


def expected_states(name: str, values: np.ndarray) -> np.ndarray:
    """Say the state of every cell by hand, not by rule."""
    states = np.full(len(values), State.MEASURED)
    if name.startswith("MAG_ERR"):
        states[values <= 0] = State.REJECTED
        states[np.abs(values / -1.0857905e-05 - 1) < 1e-6] = State.NOT_OBSERVED
    elif name.startswith("MAG"):
        states[values < 0] = State.NOT_OBSERVED
    elif name == "ERR_Z":
        states[values <= 0] = State.REJECTED
        states[np.isin(values, [99.0, -9.999])] = State.SENTINEL
    return states


def test_rows_in_are_rows_stored_and_rejected(collection: Collection, published: dict[str, np.ndarray]) -> None:
    count = collection.accounting
    assert count["read"] == len(published["RA"]) == count["stored"] + count["rejected"]
    assert count["rejected"] == collection.rejected.num_rows == 0
    assert count["quarantined"] == 0


def test_every_sentinel_and_negative_error_has_its_state_and_every_other_value_its_bits(
    stored: pa.Table, published: dict[str, np.ndarray]
) -> None:
    for name, values in published.items():
        states = expected_states(name, values)
        measured = states == State.MEASURED
        column = stored[name].combine_chunks()
        assert np.array_equal(column.is_valid().to_numpy(zero_copy_only=False), measured), name
        assert column.drop_null().to_numpy().tobytes() == values[measured].tobytes(), name
        if measured.all():
            assert f"{name}_state" not in stored.column_names
        else:
            assert np.array_equal(stored[f"{name}_state"].to_numpy(), states), name


def test_the_counts_are_those_of_the_file_as_it_is_known(stored: pa.Table) -> None:
    counts = {
        name: {State(code): int(n) for code, n in zip(*np.unique(stored[name].to_numpy(), return_counts=True), strict=True)}
        for name in stored.column_names
        if name.endswith("_state")
    }
    good = 30_000 - 46
    magnitude = {State.MEASURED: good, State.NOT_OBSERVED: 46}
    rejected = {"G": 1, "Y": 14}
    expected = {f"MAG_{band}_state": magnitude for band in BANDS}
    for band in BANDS:
        bad = {State.REJECTED: rejected[band]} if band in rejected else {}
        expected[f"MAG_ERR_{band}_state"] = {State.MEASURED: good - sum(bad.values()), State.NOT_OBSERVED: 46} | bad
    expected["ERR_Z_state"] = {State.MEASURED: 30_000 - 26_930 - 1_462, State.SENTINEL: 26_930 + 1_427, State.REJECTED: 35}
    assert counts == expected
    any_bad = np.any([stored[f"MAG_ERR_{band}_state"].to_numpy() != 0 for band in BANDS], axis=0)
    assert any_bad.sum() == 61


def test_a_magnitude_whose_error_is_rejected_stays_and_units_are_declared(collection: Collection, stored: pa.Table) -> None:
    rejected = stored["MAG_ERR_Y_state"].to_numpy() == State.REJECTED
    assert stored["MAG_Y"].filter(pa.array(rejected)).null_count == 0
    units = {column.name: column.unit for column in collection.detections.columns}
    assert {units[name] for name in ("RA", "DEC")} == {"deg"}
    assert {units[f"{name}_{band}"] for name in ("MAG", "MAG_ERR") for band in BANDS} == {"mag"}
