"""Imputed and calibrated columns say what they are, are listed in the history, and go back bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from surveys import leaf_paths

from scalable.catalog.catalog import Catalog, open_catalog
from scalable.catalog.collection import Collection
from scalable.catalog.impute import fit_fill_values, impute
from scalable.catalog.steps import columns_needed
from scalable.catalog.undo import undo
from scalable.catalog.variability import variability
from scalable.catalog.write import write_catalog
from scalable.catalog.zero_points import calibrate
from scalable.errors import ColumnError
from scalable.schema import State
from scalable.testing import no_compute

ZERO_POINTS = pa.table({"observation_id": range(1, 20), "flux_ratio": np.linspace(0.5, 2, 19)})


@pytest.fixture(scope="module")
def table(synthetic: Collection) -> pa.Table:
    return synthetic.detections.compute(scheduler="threads")


def by_hand(table: pa.Table, column: str, average: Callable[[np.ndarray], float], per: str | None) -> dict[object, float]:
    """Average the values that are there, by NumPy alone."""
    values = table[column].to_numpy().astype(np.float64)
    groups = np.array(table[per].to_pylist()) if per else np.zeros(len(values))
    good = np.isfinite(values)
    return {group.item(): average(values[good & (groups == group)]) for group in np.unique(groups)}


@pytest.mark.parametrize("per", ["band", "observation_id", None])
def test_fill_values_are_those_of_numpy_and_do_not_depend_on_the_partitioning(
    synthetic: Collection, table: pa.Table, per: str | None
) -> None:
    for by, average in {"median": np.median, "mean": np.mean}.items():
        fits = [fit_fill_values(synthetic.detections.repartition(n), "Mag1", by=by, per=per) for n in (1, 3, 12)]
        assert fits[1].equals(fits[0])
        assert fits[2].equals(fits[0])
        found = dict(zip(fits[0][per].to_pylist() if per else [0.0], fits[0]["fill_value"].to_pylist(), strict=True))
        expected = by_hand(table, "Mag1", average, per)
        if by == "median":
            assert found == expected
        else:
            assert found == pytest.approx(expected, rel=1e-13)
        assert sum(fits[0]["rows"].to_pylist()) == len(table) - table["Mag1"].null_count


def test_a_collection_stands_for_its_detections(synthetic: Collection) -> None:
    assert fit_fill_values(synthetic, "Mag1").equals(fit_fill_values(synthetic.detections, "Mag1"))


def test_a_group_without_any_value_has_no_fill_value_and_keeps_its_nulls(synthetic: Collection) -> None:
    detections = impute(synthetic.detections, "Mag1", pa.table({"band": ["none"], "fill_value": [1.0]}))
    assert detections.compute()["Mag1"].equals(synthetic.detections.compute()["Mag1"])
    assert State.IMPUTED not in detections.compute()["Mag1_state"].to_pylist()
    empty = synthetic.detections.where("Mag1 is null")
    for by in ("median", "mean"):
        fill = fit_fill_values(empty, "Mag1", by=by)
        assert fill["fill_value"].null_count == len(fill) > 0
        assert fill["rows"].to_pylist() == [0] * len(fill)


@pytest.mark.parametrize("npartitions", [1, 3, 12])
def test_nulls_are_filled_and_say_so_and_nothing_else_changes(synthetic: Collection, table: pa.Table, npartitions: int) -> None:
    medians = by_hand(table, "Mag1", np.median, "band")
    fill = fit_fill_values(synthetic, "Mag1")
    with no_compute():
        lazy = impute(synthetic.detections.repartition(npartitions), "Mag1", fill)
        back = undo(lazy, "impute")
    found = lazy.compute(scheduler="threads")
    null = table["Mag1"].is_null().to_numpy()
    assert null.any()
    expected = table["Mag1"].fill_null(0).to_numpy().copy()
    expected[null] = np.array([medians[band] for band in table["band"].to_pylist()], dtype=expected.dtype)[null]
    assert found["Mag1"].type == table["Mag1"].type
    assert found["Mag1"].to_numpy().tobytes() == expected.tobytes()
    assert np.array_equal(found["Mag1_state"].to_numpy() == State.IMPUTED, null)
    assert set(found["Mag1_state"].to_numpy()[~null]) == {State.MEASURED}
    assert found.select(table.column_names).drop_columns("Mag1").equals(table.drop_columns("Mag1"))
    assert back.compute(scheduler="threads").equals(table)
    assert back.columns == synthetic.detections.columns


def test_states_that_are_there_already_are_kept_and_come_back(synthetic: Collection) -> None:
    with_states = impute(synthetic.detections, "Mag1", pa.table({"band": ["J"], "fill_value": [15.5]}))
    before = with_states.persist(scheduler="threads")
    renamed = without_kept(before)
    lazy = impute(renamed, "Mag1", 99.5)
    after, was = lazy.compute(), renamed.compute()
    still_null = was["Mag1"].is_null().to_numpy()
    assert still_null.any()
    assert set(was["Mag1_state"].to_numpy()[still_null]) == {State.SENTINEL}
    assert np.array_equal(after["Mag1_state"].to_numpy()[still_null], np.full(still_null.sum(), State.IMPUTED))
    assert after["Mag1_state"].filter(pa.array(~still_null)).equals(was["Mag1_state"].filter(pa.array(~still_null)))
    assert undo(lazy, "impute").compute().equals(was)


def without_kept(catalog: Catalog) -> Catalog:
    """Return a catalogue that has states but no kept column, as ingest makes it from a rule with a state."""
    return catalog.select(*(name for name in catalog.schema.names if not name.endswith("_before_impute")))


def test_a_calibrated_flux_goes_back_bit_for_bit(synthetic: Collection, table: pa.Table) -> None:
    with no_compute():
        calibrated = calibrate(synthetic.detections, ZERO_POINTS, values=["Flux1"])
        back = undo(calibrated, "calibrate")
    found = calibrated.compute()
    ratios = dict(zip(*(ZERO_POINTS[name].to_pylist() for name in ("observation_id", "flux_ratio")), strict=True))
    ratio = np.array([ratios[number] for number in table["observation_id"].to_pylist()])
    assert np.array_equal(found["Flux1"].to_numpy(), table["Flux1"].to_numpy().astype(np.float64) / ratio, equal_nan=True)
    assert back.compute().equals(table)
    assert back.columns == synthetic.detections.columns
    # Undoing reads the raw column alone, and only where it is wanted.
    assert set(columns_needed(back.chain.steps, ["Flux1"])) == {"Flux1", "observation_id"}
    assert set(columns_needed(back.chain.steps, ["Mag1"])) == {"Mag1", "observation_id"}


def test_the_history_lists_every_step_and_is_written_and_read_with_the_catalogue(
    synthetic: Collection, table: pa.Table, tmp_path: Path
) -> None:
    fill = fit_fill_values(synthetic, "Mag1", by="mean")
    lazy = calibrate(synthetic.detections.where("Class = -1"), ZERO_POINTS, values=["Flux1"])
    lazy = impute(lazy, "Mag1", fill)
    assert synthetic.detections.history == ()
    assert [record["step"] for record in lazy.history] == ["where", "calibrate", "impute"]
    assert lazy.history[0] == {"step": "where", "condition": "Class = -1"}
    assert lazy.history[1]["ratios"] == ZERO_POINTS["flux_ratio"].to_pylist()
    assert (lazy.history[2]["by"], lazy.history[2]["per"]) == ("mean", "band")
    assert dict(zip(lazy.history[2]["groups"], lazy.history[2]["fill"], strict=True)) == dict(
        zip(fill["band"].to_pylist(), fill["fill_value"].to_pylist(), strict=True)
    )
    assert "pending: nulls of Mag1 filled by mean per band" in repr(lazy)
    assert "done:" not in repr(lazy)
    with dask.config.set(scheduler="threads"):
        written = write_catalog(lazy, tmp_path / "filled")
        assert open_catalog(tmp_path / "filled").history == lazy.history == lazy.persist().history
        assert "done: where: condition Class = -1" in repr(written)
        assert "impute" in written._repr_html_()
        assert written.bands == synthetic.detections.bands
        stars = synthetic.detections.where("Class = -1").compute()
        assert undo(undo(written, "impute"), "calibrate").compute().equals(stars)
        assert undo(undo(written, "calibrate"), "impute").compute().equals(stars)
        # Once, not with every leaf.
        assert {len(pq.read_schema(path).metadata or {}) for path in leaf_paths(tmp_path / "filled")} == {0}


def test_what_cannot_be_undone_says_why(synthetic: Collection) -> None:
    detections = synthetic.detections
    once = calibrate(detections, ZERO_POINTS, values=["Flux1"])
    with pytest.raises(ColumnError, match=r"no step 'calibrat' whose columns are kept here; did you mean 'calibrate'\?"):
        undo(once, "calibrat")
    with pytest.raises(ColumnError, match="no step 'calibrate' whose columns are kept here; choices: none"):
        undo(variability(once, bands=["Ks"]), "calibrate")
    with pytest.raises(ColumnError, match="no step 'calibrate'"):
        undo(once.select("object_id", "Flux1"), "calibrate")
    with pytest.raises(ColumnError, match=r"Flux1 is calibrated already; undo\(catalog, 'calibrate'\) first"):
        calibrate(once, ZERO_POINTS, values=["Flux1"])
    filled = impute(once, "Flux1", 0.5)
    with pytest.raises(ColumnError, match="'impute' changed the columns of 'calibrate' after it; undo that first"):
        undo(filled, "calibrate")
    with pytest.raises(ColumnError, match="imputed already"):
        impute(filled, "Flux1", 0.5)
    assert undo(undo(filled, "impute"), "calibrate").compute().equals(detections.compute())
    again = calibrate(undo(once, "calibrate"), ZERO_POINTS, values=["Flux1"])
    assert [record["step"] for record in again.history] == ["calibrate", "undo", "calibrate"]
    assert undo(again, "calibrate").compute().equals(detections.compute())


def test_what_cannot_be_imputed_is_refused_at_once(synthetic: Collection) -> None:
    detections = synthetic.detections
    with pytest.raises(ColumnError, match="did you mean 'Mag1'"):
        impute(detections, "mag1", 1.0)
    with pytest.raises(ColumnError, match="holds string; only numbers are imputed"):
        impute(detections, "band", 1.0)
    with pytest.raises(ColumnError, match=r"StarID holds int64 and not its fill values"):
        impute(detections, "StarID", 1.5)
    with pytest.raises(ColumnError, match="no column 'bands'.*did you mean 'band'"):
        fit_fill_values(detections, "Mag1", per="bands")
    with pytest.raises(ValueError, match="did you mean 'median'.*a constant needs no fit"):
        fit_fill_values(detections, "Mag1", by="medain")
    with pytest.raises(ColumnError, match="take the table from fit_fill_values"):
        impute(detections, "Mag1", pa.table({"band": ["J"]}))
