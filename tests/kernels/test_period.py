"""Periods: what astropy's periodograms give at every frequency, and real and synthetic periods found again."""

from __future__ import annotations

import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from astropy.timeseries import LombScargle, LombScargleMultiband

from scalable.kernels.cross_band import Pairing
from scalable.kernels.period import multiband_periodogram, periodogram
from scalable.kernels.statistic import Float, evaluate
from scalable.testing import check_statistic

SEARCH = {"shortest_days": 0.2, "longest_days": 1.2}


def sine(period: float, seed: int, *, points: int = 80, noise: float = 0.1) -> tuple[Float, Float, Float]:
    rng = np.random.default_rng(seed)
    mjd = 57000 + np.sort(rng.uniform(0, 300, points))
    return 20 + np.sin(2 * np.pi * mjd / period) + rng.normal(0, noise, points), np.full(points, noise), mjd


def found_by(flux: Float, err: Float, mjd: Float, **options: float) -> dict[str, float]:
    found = evaluate(periodogram(**{**SEARCH, **options}), flux, err, mjd, np.array([0, len(flux)]))
    return {name: float(values[0]) for name, values in found.items()}


@pytest.mark.parametrize("period", [0.2345, 0.61, 1.17])
def test_the_period_of_a_sine_is_found_to_a_small_part_of_a_peak(period: float) -> None:
    found = found_by(*sine(period, 1))
    # A tenth of the peak's width 1/300 d is 0.0003 in frequency.
    assert 1 / found["Period"] == pytest.approx(1 / period, abs=1e-4)
    assert found["PeriodPower"] > 0.95
    assert found["PeriodFap"] < 1e-20
    two = found_by(*sine(period, 1), terms=2)
    assert set(two) == {"Period", "PeriodPower"}


def test_the_highest_peak_is_the_highest_of_astropys_periodogram() -> None:
    flux, err, mjd = sine(0.61, 2, points=40, noise=0.8)
    found = found_by(flux, err, mjd)
    fine = np.linspace(1 / 1.2, 1 / 0.2, 50_000)
    search = LombScargle(mjd, flux, err)
    power = search.power(fine, method="cython")
    assert found["PeriodPower"] == pytest.approx(power.max(), rel=1e-3)
    assert 1 / found["Period"] == pytest.approx(fine[power.argmax()], abs=3e-4)
    assert found["PeriodPower"] == pytest.approx(float(search.power(1 / found["Period"])), rel=1e-9)
    chance = search.false_alarm_probability(found["PeriodPower"], method="baluev", maximum_frequency=5.0)
    assert found["PeriodFap"] == pytest.approx(float(chance), rel=1e-6)


def test_several_bands_have_the_power_of_astropys_multi_phase_model() -> None:
    bands = [sine(0.61, seed, points=30, noise=0.7) for seed in (1, 2)]
    flux, err, mjd = (np.concatenate([band[column] for band in bands]) for column in range(3))
    curves, offsets = np.array([[0], [1]]), np.array([0, 30, 60, 60])
    period, power = (
        float(s.finalize(s.chunk(flux, err, mjd, offsets, curves, Pairing(0.0, False)))[0])
        for s in multiband_periodogram(**SEARCH)
    )
    search = LombScargleMultiband(mjd, flux, np.repeat([0, 1], 30), err, nterms_base=0, nterms_band=1, reg_band=None)
    assert power == pytest.approx(float(search.power(np.array([1 / period]), method="flexible")[0]), rel=1e-6)
    assert 1 / period == pytest.approx(1 / 0.61, abs=5e-4)


def test_noise_has_a_likely_peak_and_what_cannot_vary_has_none() -> None:
    rng = np.random.default_rng(5)
    flux, err, mjd = rng.normal(size=50), np.ones(50), np.sort(rng.uniform(0, 100, 50))
    assert found_by(flux, err, mjd)["PeriodFap"] > 1e-3
    for curve in ((np.ones(50), err, mjd), (flux, err, np.full(50, 3.0)), (flux[:5], err[:5], mjd[:5]), (flux[:0],) * 3):
        assert all(math.isnan(value) for value in found_by(*curve).values())


def test_a_periodogram_keeps_the_contract_of_statistics() -> None:
    check_statistic(periodogram(shortest_days=2, longest_days=30)[1], rtol=1e-6)


@pytest.mark.parametrize("options", [{"shortest_days": 0}, {"shortest_days": 200}, {"terms": 0}, {"longest_days": math.inf}])
def test_a_search_that_makes_no_sense_is_refused(options: dict[str, float]) -> None:
    for make in (periodogram, multiband_periodogram):
        with pytest.raises(ValueError, match="give 0 < shortest_days < longest_days"):
            make(**options)


def test_periods_of_real_rr_lyrae_are_the_published_ones_or_their_aliases(data: Path) -> None:
    published = dict(np.loadtxt(data / "lightcurves" / "table2.dat.gz", usecols=(0, 2), skiprows=1).tolist())
    stars = [int(number) for number in list(published)[:8]]
    right = alias = 0
    with tarfile.open(data / "lightcurves" / "table1.tar.gz") as archive:
        for star in stars:
            mjd, mag, err = np.loadtxt(archive.extractfile(f"table1/{star}.dat"), usecols=(5, 6, 7), unpack=True)
            order = np.argsort(mjd)[(mag > 0)[np.argsort(mjd)]]
            off = abs(1 / found_by(mag[order], err[order], mjd[order])["Period"] - 1 / published[star])
            right += off < 2e-4
            # A cycle per year or per day more or less fits the nights nearly as well.
            alias += off >= 2e-4 and min(abs(off - cycles) for cycles in (0, 1, 2)) < 4e-3
    assert right + alias == len(stars)
    assert right >= 4
