"""Periods of the 483 RR Lyrae stars of the sample (Sesar et al. 2010): the rate at which the published ones are found again.

Prints the rate, and aliases apart, for one band and for all bands together; then times the search of a few stars against astropy
called by hand with its own frequency grid. Stars: python -m benchmarks.suite.periods [--stars 483] [--terms 1]
"""

from __future__ import annotations

import argparse
import tarfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

import numpy as np
from astropy.timeseries import LombScargle
from rich.console import Console
from rich.table import Table

from benchmarks.measure import DATA, Measured, compare
from scalable.kernels.cross_band import Pairing
from scalable.kernels.period import multiband_periodogram, periodogram
from scalable.kernels.statistic import evaluate

BANDS = "ugriz"
SEARCH = {"shortest_days": 0.2, "longest_days": 1.2}
RIGHT = 2e-4
"""Largest difference of a right frequency [1/d]: two thirds of the width of a peak, one over the time span of ten years."""
ALIASES = {"a cycle per year": (1 / 365.25, 2 / 365.25), "a cycle per day": (1.0,), "two cycles per day": (2.0,)}
TIMED_STARS = 5

Curve = tuple[np.ndarray, np.ndarray, np.ndarray]


def read_stars() -> tuple[dict[int, float], dict[int, dict[str, Curve]]]:
    """Return published periods [d], and light curves by star and band: magnitude, error, time."""
    published = np.loadtxt(DATA / "lightcurves" / "table2.dat.gz", usecols=(0, 2), skiprows=1)
    periods = {int(star): float(period) for star, period in published}
    curves: dict[int, dict[str, Curve]] = {}
    with tarfile.open(DATA / "lightcurves" / "table1.tar.gz") as archive:
        for star in periods:
            rows = np.loadtxt(archive.extractfile(f"table1/{star}.dat"), ndmin=2)  # type: ignore[arg-type]
            curves[star] = {band: _curve(rows[:, 2 + 3 * number :][:, :3]) for number, band in enumerate(BANDS)}
    return periods, curves


def _curve(columns: np.ndarray) -> Curve:
    mjd, mag, err = columns[(columns[:, 1] > 0) & (columns[:, 2] > 0)].T
    order = np.argsort(mjd)
    return mag[order], err[order], mjd[order]


def one_band(curve: Curve, terms: int = 1) -> float:
    """Return the period of one light curve [d]."""
    mag, err, mjd = curve
    return float(evaluate(periodogram(**SEARCH, terms=terms)[:1], mag, err, mjd, np.array([0, len(mag)]))["Period"][0])


def all_bands(curves: dict[str, Curve], terms: int = 1) -> float:
    """Return the common period of light curves in several bands [d]."""
    mag, err, mjd = (np.concatenate([curve[column] for curve in curves.values()]) for column in range(3))
    ends = np.cumsum([0, *(len(curve[0]) for curve in curves.values())])
    period = multiband_periodogram(**SEARCH, terms=terms)[0]
    found = period.chunk(mag, err, mjd, np.append(ends, ends[-1]), np.arange(len(curves))[:, None], Pairing(0.0, True))
    return float(period.finalize(found)[0])


def kind(found: float, published: float) -> str:
    """Return what a period is: right, an alias of the published one, or something else."""
    off = abs(1 / found - 1 / published)
    if off < RIGHT:
        return "right"
    for name, cycles in ALIASES.items():
        if any(abs(off - by) < RIGHT + 2 / 365.25 * (by >= 1) for by in cycles):
            return name
    return "half or double" if min(abs(found * 2 / published - 1), abs(found / 2 / published - 1)) < RIGHT else "other"


def _both(job: tuple[dict[str, Curve], int]) -> tuple[float, float]:
    curves, terms = job
    return one_band(curves["g"], terms), all_bands({band: curves[band] for band in "gri"}, terms)


def rates(stars: int, terms: int) -> dict[str, dict[str, int]]:
    """Return how many periods of the first ``stars`` are of each kind, from g alone and from g, r and i together."""
    published, curves = read_stars()
    chosen: Sequence[int] = list(published)[:stars]
    with ProcessPoolExecutor(2) as pool:
        found = list(pool.map(_both, [(curves[star], terms) for star in chosen], chunksize=4))
    counts: dict[str, dict[str, int]] = {"g": {}, "g, r and i": {}}
    for star, pair in zip(chosen, found, strict=True):
        for how, period in zip(counts, pair, strict=True):
            what = kind(period, published[star])
            counts[how][what] = counts[how].get(what, 0) + 1
    return counts


def run() -> list[Measured]:
    """Time the search of a few stars after their periods were found to be astropy's own."""
    published, curves = read_stars()
    some = [curves[star]["g"] for star in list(published)[:TIMED_STARS]]

    def ours() -> list[float]:
        return [one_band(curve) for curve in some]

    def astropy() -> list[float]:
        found = []
        for mag, err, mjd in some:
            frequency, power = LombScargle(mjd, mag, err).autopower(minimum_frequency=1 / 1.2, maximum_frequency=5.0)
            found.append(1 / frequency[np.argmax(power)])
        return found

    np.testing.assert_allclose(1 / np.array(ours()), 1 / np.array(astropy()), atol=1e-4)
    megabytes = sum(column.nbytes for curve in some for column in curve) / 1e6
    return compare(
        f"periods of {TIMED_STARS} stars", {"scalable": ours, "astropy by hand": astropy}, megabytes=megabytes, repeats=3
    )


def main() -> None:
    """Print the rate at which the published periods are found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stars", type=int, default=483)
    parser.add_argument("--terms", type=int, default=1)
    args = parser.parse_args()
    counts = rates(args.stars, args.terms)
    kinds = list(dict.fromkeys(["right", *(what for of in counts.values() for what in sorted(of))]))
    table = Table("bands", "stars", *kinds)
    for how, of in counts.items():
        total = sum(of.values())
        table.add_row(how, str(total), *(f"{of.get(what, 0)} ({of.get(what, 0) / total:.0%})" for what in kinds))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
