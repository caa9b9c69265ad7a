"""Periods of light curves on request: Lomb-Scargle periodograms by astropy, of one band or of several at once."""

from __future__ import annotations

from functools import partial
from typing import TypedDict

import numpy as np
from astropy.timeseries import LombScargle

from scalable.kernels.cross_band import CrossBandStatistic, Curves, Pairing
from scalable.kernels.curve_order import column
from scalable.kernels.statistic import Float, Offsets, Statistic

SAMPLES_PER_PEAK = 5
"""Frequencies per width of a peak, which is one over the time span."""
REFINED = 41
"""Frequencies, to the next ones on either side, that the best one is refined with."""


def lomb_scargle(
    flux: Float, err: Float, mjd: Float, offsets: Offsets, *, shortest_days: float, longest_days: float, terms: int
) -> Float:
    """Return period [d], power and false-alarm probability of each curve, shape (groups, 3).

    The power is the share of chi square about the mean that the best periodic curve explains (VanderPlas 2018), its probability
    in noise Baluev's (2008). NaN for a constant source, for fewer than three points more than the fit has parameters, and, of
    several terms, for the probability.
    """
    out = np.full((len(offsets) - 1, 3), np.nan)
    for g in range(len(out)):
        rows = slice(offsets[g], offsets[g + 1])
        out[g, :2], search = _highest_peak([(mjd[rows], flux[rows], err[rows])], shortest_days, longest_days, terms)
        if search and terms == 1:
            most = 1.0 / shortest_days
            out[g, 2] = search.false_alarm_probability(out[g, 1], method="baluev", maximum_frequency=most)
    return out


def multiband_lomb_scargle(
    flux: Float,
    err: Float,
    mjd: Float,
    offsets: Offsets,
    curves: Curves,
    pairing: Pairing,
    *,
    shortest_days: float,
    longest_days: float,
    terms: int,
) -> Float:
    """Return period [d] and power of each object from all bands at once, shape (objects, 2).

    Every band has its own mean, amplitude and phase, and all have one period: the multi-phase model of VanderPlas and Ivezić
    (2015), whose power is the share of the chi square of all bands that it explains. NaN as for `lomb_scargle`.
    """
    out = np.full((curves.shape[1], 2), np.nan)
    for g in range(len(out)):
        rows = [slice(offsets[curve], offsets[curve + 1]) for curve in curves[:, g]]
        bands = [(mjd[row], flux[row], err[row]) for row in rows]
        out[g], _ = _highest_peak(bands, shortest_days, longest_days, terms)
    return out


def _highest_peak(
    bands: list[tuple[Float, Float, Float]], shortest_days: float, longest_days: float, terms: int
) -> tuple[tuple[float, float], LombScargle | None]:
    """Return period and power of the highest peak, and the last band's periodogram; NaN and None where there is none."""
    used = [band for band in bands if len(band[0]) >= 2 * terms + 4 and np.ptp(band[1]) > 0]
    if not used:
        return (np.nan, np.nan), None
    first, last = min(mjd[0] for mjd, _, _ in used), max(mjd[-1] for mjd, _, _ in used)
    if first == last:
        return (np.nan, np.nan), None
    searches = [LombScargle(mjd - first, flux, err, nterms=terms) for mjd, flux, err in used]
    weights = [err**-2.0 for _, _, err in used]
    chi2 = sum(np.sum(w * (flux - np.average(flux, weights=w)) ** 2) for w, (_, flux, _) in zip(weights, used, strict=True))

    def power(grid: Float, method: str) -> Float:
        # This normalisation is half of what is explained of chi square, which adds up over bands.
        explained = [search.power(grid, method=method, normalization="psd", assume_regular_frequency=True) for search in searches]
        return np.asarray(2.0 * sum(explained) / chi2)

    step = 1.0 / (SAMPLES_PER_PEAK * (last - first))
    lowest = 1.0 / longest_days
    grid = lowest + step * np.arange(1 + max(1, int((1.0 / shortest_days - lowest) / step)))
    best = grid[np.argmax(power(grid, "fast" if terms == 1 else "fastchi2"))]
    near = np.clip(best + np.linspace(-step, step, REFINED), grid[0], grid[-1])
    exact = power(near, "chi2")
    return (1.0 / near[np.argmax(exact)], float(exact.max())), searches[-1]


class _Range(TypedDict):
    shortest_days: float
    longest_days: float
    terms: int


def _range(shortest_days: float, longest_days: float, terms: int) -> _Range:
    if not 0 < shortest_days < longest_days < np.inf or terms < 1:
        given = f"shortest_days={shortest_days}, longest_days={longest_days}, terms={terms}"
        raise ValueError(f"{given}: give 0 < shortest_days < longest_days and at least one term")
    return {"shortest_days": shortest_days, "longest_days": longest_days, "terms": terms}


def periodogram(*, shortest_days: float = 0.1, longest_days: float = 100.0, terms: int = 1) -> tuple[Statistic, ...]:
    """Return statistics ``Period``, ``PeriodPower`` and, of one term, ``PeriodFap``, for `scalable.variability`.

    They take milliseconds to seconds for each light curve, by far longer than all others.

    Parameters
    ----------
    shortest_days, longest_days : float
        Periods to look among [d].
    terms : int
        Sines at multiples of the frequency: more fit sharper curves, and halve or double periods less often.

    Examples
    --------
    >>> from scalable import periodogram
    >>> [statistic.name for statistic in periodogram(shortest_days=0.2, longest_days=1.2)]
    ['Period', 'PeriodPower', 'PeriodFap']
    """
    chunk = partial(lomb_scargle, **_range(shortest_days, longest_days, terms))
    needs = ("flux", "err", "mjd")
    of = f"of the Lomb-Scargle periodogram, {shortest_days:g} to {longest_days:g} d, {terms} terms, floating mean"
    found = [
        Statistic("Period", f"period of the highest peak {of}", partial(column, 0), "d", chunk, needs=needs, ucd="time.period"),
        Statistic(
            "PeriodPower", f"share of chi square explained at the highest peak {of}", partial(column, 1), "", chunk, needs=needs
        ),
    ]
    if terms == 1:
        text = f"probability that noise alone gives so high a peak (Baluev 2008) {of}"
        found.append(Statistic("PeriodFap", text, partial(column, 2), "", chunk, needs=needs, ucd="stat.probability"))
    return tuple(found)


def multiband_periodogram(
    *, shortest_days: float = 0.1, longest_days: float = 100.0, terms: int = 1
) -> tuple[CrossBandStatistic, ...]:
    """Return statistics ``Period`` and ``PeriodPower`` of all bands together, for `scalable.compare_bands`.

    Parameters
    ----------
    shortest_days, longest_days, terms
        As of `periodogram`. Several bands have no false-alarm probability: none is known that is exact.
    """
    chunk = partial(multiband_lomb_scargle, **_range(shortest_days, longest_days, terms))
    of = f"of the multiband Lomb-Scargle periodogram, {shortest_days:g} to {longest_days:g} d, {terms} terms of each band"
    period = f"period of the highest peak {of}"
    share = f"share of the chi square of all bands explained at the highest peak {of}"
    return (
        CrossBandStatistic("Period", period, chunk, partial(column, 0), "d", False, ucd="time.period"),
        CrossBandStatistic("PeriodPower", share, chunk, partial(column, 1), "", False, ucd="stat.value"),
    )
