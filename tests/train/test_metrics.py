"""Metrics: equal to their definitions written with NumPy, astropy and SciPy, whatever the chunking."""

from __future__ import annotations

import tracemalloc

import dask
import numpy as np
import pytest
from astropy.stats import biweight_location, biweight_scale
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from scalable.errors import InputError
from scalable.kernels.metrics import DEFINITIONS, PdfSums, bin_cde, bin_crps, bin_pit
from scalable.train.batches import arrays
from scalable.train.metrics import metrics_of, pdf_metrics, point_metrics
from scalable.train.quantiles import exact_quantiles


def written_out(zp: np.ndarray, zs: np.ndarray) -> dict[str, float]:
    dz = (zp - zs) / (1 + zs)
    q25, q50, q75 = np.quantile(dz, (0.25, 0.5, 0.75))
    location, scale = biweight_location(dz), biweight_scale(dz)
    return {
        "median_abs": np.median(np.abs(dz)),
        "sigma_nmad": 1.4826 * np.median(np.abs(dz - q50)),
        "sigma_iqr": (q75 - q25) / 1.349,
        "bias_mean": dz.mean(),
        "bias_median": q50,
        "bias_biweight": location,
        "scatter_biweight": scale,
        "outlier_015": (np.abs(dz) > 0.15).mean(),
        "outlier_rail": (np.abs(dz) > max(0.06, 3 * (q75 - q25) / 1.349)).mean(),
        "outlier_2s_biweight": (np.abs(dz - location) > 2 * scale).mean(),
        "outlier_cat1": (np.abs(zp - zs) > 1).mean(),
        "hsc_loss": (1 - 1 / (1 + (dz / 0.15) ** 2)).mean(),
    }


@settings(max_examples=4, deadline=None)
@given(st.integers(40, 600), st.integers(0, 2**32 - 1))
def test_every_metric_is_its_definition_overall_and_in_bins(part_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    zs, mag = rng.uniform(0, 2, 500), rng.uniform(18, 24, 500)
    zp = zs + 0.05 * rng.standard_t(1.5, 500)
    edges = np.array([18.0, 20.0, 23.0])
    with dask.config.set(scheduler="sync"):
        found = point_metrics(arrays(np.column_stack([zp, zs, mag]), part_rows=part_rows), {"mag": edges}).to_pylist()
    members = [np.ones(500, bool), mag < 20, (mag >= 20) & (mag <= 23)]
    for row, mine in zip(found, members, strict=True):
        assert row["rows"] == mine.sum()
        for name, value in written_out(zp[mine], zs[mine]).items():
            assert row[name] == pytest.approx(value, rel=1e-10, abs=1e-14), name
        assert row["median_abs"] == written_out(zp[mine], zs[mine])["median_abs"]  # to the bit
    assert [row["by"] for row in found] == ["", "mag", "mag"]


def test_perfect_redshifts_have_no_error_and_an_empty_bin_no_number() -> None:
    z = np.linspace(0, 1, 11)
    assert set(metrics_of(z, z).values()) == {0.0}
    found = point_metrics(arrays(np.column_stack([z, z, z])), {"z": np.array([0.0, 2.0, 3.0])}).to_pylist()
    assert found[2]["rows"] == 0
    assert np.isnan([found[2][name] for name in DEFINITIONS]).all()


def test_no_row_at_all_is_said_and_not_measured() -> None:
    with pytest.raises(InputError, match="no row to learn from"):
        point_metrics(arrays(np.zeros((0, 2))))


def test_quantiles_are_those_of_numpy_to_the_bit() -> None:
    values = np.random.default_rng(0).normal(size=(777, 2))
    levels = (0.0, 0.01, 0.3, 0.5, 0.99, 1.0)
    found, rows = exact_quantiles(
        arrays(values, part_rows=50), lambda b: (b.columns.ravel(), np.repeat([0, 1], len(b))), 2, levels
    )
    np.testing.assert_array_equal(found.T, np.quantile(values, levels, axis=0))
    assert rows.tolist() == [777, 777]


def test_quantiles_of_many_parts_do_not_keep_the_counts_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scalable.train.quantiles.MOST_COUNTS", 1 << 16)
    monkeypatch.setattr("scalable.train.batches._wave", lambda: 4)
    # So wide a range that nearly every value has a digit of its own.
    values = 10.0 ** np.random.default_rng(0).uniform(-300, 300, (400_000, 1))
    batches = arrays(values, part_rows=2000)
    with dask.config.set(scheduler="sync"):
        tracemalloc.start()
        found, _ = exact_quantiles(batches, lambda b: (b.columns[0], np.zeros(len(b), np.int64)), 1, (0.5,))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found[0, 0] == np.median(values)
    assert peak < 10e6


def test_metrics_of_densities_are_those_of_scipy_and_of_fine_sums() -> None:
    rng = np.random.default_rng(0)
    edges = np.array([0.0, 0.1, 0.3, 0.6, 1.0])
    shares = rng.dirichlet(np.ones(4), 300)
    z = np.append(rng.uniform(0, 1, 298), [-0.2, 1.3])
    grid = np.linspace(-1, 2, 300_001)
    for i in (*range(5), 298, 299):
        cdf = np.interp(grid, edges, np.append(0, np.cumsum(shares[i])))
        fine = np.trapezoid((cdf - (grid > z[i])) ** 2, grid)
        assert bin_crps(shares, edges, z)[i] == pytest.approx(fine, abs=1e-4)
        assert bin_pit(shares, edges, z)[i] == pytest.approx(np.interp(z[i], grid, cdf), abs=1e-9)
        density = stats.rv_histogram((shares[i], edges), density=False)
        loss = (density.pdf((edges[1:] + edges[:-1]) / 2) ** 2 * np.diff(edges)).sum() - 2 * density.pdf(z[i])
        assert bin_cde(shares, edges, z)[i] == pytest.approx(loss, rel=1e-9)
    parts = [PdfSums.of(shares[cut], edges, z[cut]) for cut in (slice(0, 7), slice(7, 200), slice(200, 300))]
    found = pdf_metrics(parts[1].merge(parts[0]).merge(parts[2]))
    pit = bin_pit(shares, edges, z)
    assert found["pit_ks"] == pytest.approx(stats.kstest(pit, "uniform").statistic, abs=4e-6)
    assert found["pit_cvm"] == pytest.approx(stats.cramervonmises(pit, "uniform").statistic, rel=1e-6)
    order = np.sort(np.clip(pit, 1e-6, 1 - 1e-6))
    i = np.arange(1, 301)
    assert found["crps"] == pytest.approx(bin_crps(shares, edges, z).mean())
    assert found["cde_loss"] == pytest.approx(bin_cde(shares, edges, z).mean())
    assert found["pit_ad"] == pytest.approx(-300 - np.mean((2 * i - 1) * (np.log(order) + np.log(1 - order[::-1]))), rel=1e-6)
