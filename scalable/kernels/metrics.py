"""How good photometric redshifts are: metrics by id, from exact quantiles and sums. dz = (z_phot - z_spec) / (1 + z_spec)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

DEFINITIONS = {
    "median_abs": "median |dz|",
    "sigma_nmad": "1.4826 median |dz - median dz|",
    "sigma_iqr": "(q75 - q25) / 1.349 of dz",
    "bias_mean": "mean dz",
    "bias_median": "median dz",
    "bias_biweight": "biweight location of dz, c = 6, one step from the median",
    "scatter_biweight": "biweight scale of dz, c = 9",
    "outlier_015": "share of |dz| > 0.15",
    "outlier_rail": "share of |dz| > max(0.06, 3 sigma_iqr)",
    "outlier_2s_biweight": "share of |dz - bias_biweight| > 2 scatter_biweight",
    "outlier_cat1": "share of |z_phot - z_spec| > 1",
    "hsc_loss": "mean of 1 - 1 / (1 + (dz / 0.15)^2), Tanaka et al. 2018",
}
"""Every metric by its id; the field gives several of them one name."""

PIT_CELLS = 1 << 18

PDF_DEFINITIONS = {
    "pit_ks": "Kolmogorov-Smirnov distance of the probability integral transforms from uniform, to 4e-6",
    "pit_cvm": "Cramer-von Mises statistic of the same",
    "pit_ad": "Anderson-Darling statistic of the same, transforms kept within 1e-6 of the ends",
    "crps": "mean integral of (CDF(z) - [z > z_spec])^2",
    "cde_loss": "mean integral of p(z)^2 - 2 mean p(z_spec), Izbicki and Lee 2017",
}


def relative(z_phot: Float, z_spec: Float) -> Float:
    """Return dz."""
    return (z_phot - z_spec) / (1.0 + z_spec)


def sums(z_phot: Float, z_spec: Float, median: Float, mad: Float, sigma_iqr: Float) -> Float:
    """Return what the metrics of one group need beyond quantiles, as sums that add up, shape (10,)."""
    dz = relative(z_phot, z_spec)
    step = dz - median
    with np.errstate(divide="ignore", invalid="ignore"):
        near, far = (np.where(mad > 0, step / (c * mad), np.where(step == 0, 0.0, np.inf)) for c in (6.0, 9.0))
    location = np.where(np.abs(near) < 1, (1 - near**2) ** 2, 0.0)
    inside = np.abs(far) < 1
    square = np.where(inside, far, 0.0) ** 2
    return np.array(
        [
            len(dz),
            dz.sum(),
            (location * step).sum(),
            location.sum(),
            np.where(inside, step**2 * (1 - square) ** 4, 0.0).sum(),
            np.where(inside, (1 - square) * (1 - 5 * square), 0.0).sum(),
            np.count_nonzero(np.abs(dz) > 0.15),
            np.count_nonzero(np.abs(dz) > max(0.06, 3 * float(sigma_iqr))),
            np.count_nonzero(np.abs(z_phot - z_spec) > 1),
            (1 - 1 / (1 + (dz / 0.15) ** 2)).sum(),
        ]
    )


def biweight(total: Float, median: float) -> tuple[float, float]:
    """Return biweight location and scale from `sums` (Beers, Flynn and Gebhardt 1990)."""
    rows, shift, weight, above, below = total[0], *total[2:6]
    location = median + shift / weight if weight > 0 else median
    scale = float(np.sqrt(rows * above) / abs(below)) if below != 0 else 0.0
    return float(location), scale


def bin_pit(shares: Float, edges: Float, z_spec: Float) -> Float:
    """Return the integral of each p(z), constant within bins, up to the true redshift, shape (rows,)."""
    bins = len(edges) - 1
    place = np.clip(np.searchsorted(edges, z_spec, side="right") - 1, 0, bins - 1)
    before = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, axis=1)], axis=1)
    within = np.clip((z_spec - edges[place]) / np.diff(edges)[place], 0.0, 1.0)
    rows = np.arange(len(shares))
    return np.clip(before[rows, place] + within * shares[rows, place], 0.0, 1.0)


def bin_crps(shares: Float, edges: Float, z_spec: Float) -> Float:
    """Return the continuous ranked probability score of each p(z), constant within bins, shape (rows,); unit of z."""
    width = np.diff(edges)
    low = np.concatenate([np.zeros((len(shares), 1)), np.cumsum(shares, axis=1)[:, :-1]], axis=1)
    high = low + shares
    # The CDF is linear in a bin: its square integrates to width (a^2 + ab + b^2) / 3, and so does that of 1 - CDF.
    below = width * (low**2 + low * high + high**2) / 3
    above = width * ((1 - low) ** 2 + (1 - low) * (1 - high) + (1 - high) ** 2) / 3
    share = np.clip((z_spec[:, None] - edges[:-1]) / width, 0.0, 1.0)
    middle = low + share * shares
    left = width * share * (low**2 + low * middle + middle**2) / 3
    right = width * (1 - share) * ((1 - middle) ** 2 + (1 - middle) * (1 - high) + (1 - high) ** 2) / 3
    whole = np.where(share == 1.0, below, np.where(share == 0.0, above, left + right)).sum(axis=1)
    # Beyond the grid the CDF is 0 or 1.
    return whole + np.maximum(edges[0] - z_spec, 0.0) + np.maximum(z_spec - edges[-1], 0.0)


def bin_cde(shares: Float, edges: Float, z_spec: Float) -> Float:
    """Return the loss of each conditional density, shape (rows,); 1 / unit of z."""
    width = np.diff(edges)
    inside = (z_spec >= edges[0]) & (z_spec < edges[-1])
    place = np.clip(np.searchsorted(edges, z_spec, side="right") - 1, 0, len(width) - 1)
    at = np.where(inside, shares[np.arange(len(shares)), place] / width[place], 0.0)
    return (shares**2 / width).sum(axis=1) - 2 * at


def bin_of(values: Float, edges: Float) -> NDArray[np.int64]:
    """Return the bin of each value; those beyond the ends are put into the last ones."""
    return np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)


def mean_of_bins(shares: Float, edges: Float) -> Float:
    """Return the mean of each p(z) that is constant within bins, shape (rows, bins); the same bits for a row in any company."""
    out = np.zeros(len(shares))
    for share, centre in zip(shares.T, (edges[1:] + edges[:-1]) / 2, strict=True):
        out += share * centre
    return out


class PdfSums(NamedTuple):
    """What metrics of p(z) are made of, as sums of rows; those of disjoint sets of rows add up.

    Attributes
    ----------
    counts, totals : ndarray, shape (PIT_CELLS,)
        Number and sum of the probability integral transforms in each of as many equal cells of [0, 1].
    logs, losses : ndarray, shape (2, PIT_CELLS) and (2,)
        Sums of the logarithms of the transforms and of 1 less these, kept within 1e-6 of the ends; of CRPS and CDE loss.
    """

    counts: Float
    totals: Float
    logs: Float
    losses: Float

    @classmethod
    def of(cls, shares: Float, edges: Float, z_spec: Float) -> PdfSums:
        """Return the sums of p(z) that are constant within bins, shape (rows, bins), and true redshifts, shape (rows,)."""
        pit = bin_pit(shares, edges, z_spec)
        cell = np.minimum((pit * PIT_CELLS).astype(np.int64), PIT_CELLS - 1)
        kept = np.clip(pit, 1e-6, 1 - 1e-6)
        weights = (None, pit, np.log(kept), np.log1p(-kept))
        by_cell = [np.bincount(cell, weight, PIT_CELLS).astype(np.float64, copy=False) for weight in weights]
        losses = np.array([bin_crps(shares, edges, z_spec).sum(), bin_cde(shares, edges, z_spec).sum()])
        return cls(by_cell[0], by_cell[1], np.array(by_cell[2:]), losses)

    def merge(self, other: PdfSums) -> PdfSums:
        """Return the sums over two disjoint sets of rows."""
        return PdfSums(*(a + b for a, b in zip(self, other, strict=True)))


def uniformity(found: PdfSums) -> dict[str, float]:
    """Return how far transforms are from uniform: ``pit_ks``, ``pit_cvm``, ``pit_ad``.

    As if those of a cell were equal, each in its sum of logarithms what it is: ``pit_ks`` is right to a cell's width, 4e-6.
    """
    some = found.counts > 0
    k, n = found.counts[some], found.counts.sum()
    u, after = found.totals[some] / k, np.cumsum(k)
    before = after - k
    # Ranks i of a cell run over (before, after]: these are sums over them in closed form.
    middle = (before + k / 2) / n
    ranks = 2 * before + k  # the mean of 2i - 1
    ad = (ranks * found.logs[0, some] + (2 * n - ranks) * found.logs[1, some]).sum()
    return {
        "pit_ks": float(max((after / n - u).max(), (u - before / n).max())),
        "pit_cvm": float(1 / (12 * n) + (k * (u - middle) ** 2 + (k**3 - k) / (12 * n * n)).sum()),
        "pit_ad": float(-n - ad / n),
    }
