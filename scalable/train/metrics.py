"""Metrics of photometric redshifts over batches: by id, overall and in bins, exact, whatever the chunking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.kernels.metrics import (
    DEFINITIONS,
    PDF_DEFINITIONS,
    PdfSums,
    biweight,
    relative,
    sums,
    uniformity,
)
from scalable.train.batches import ArrayPart, Batches, Block
from scalable.train.quantiles import exact_quantiles

Float = NDArray[np.float64]
Int = NDArray[np.int64]

PHOT, SPEC, FIRST_BINNED = range(3)
"""Columns of batches that are judged: z_phot, z_spec, then what bins are made of."""


def point_metrics(batches: Batches, bins: Mapping[str, Float] | None = None) -> pa.Table:
    """Compute every metric of `scalable.kernels.metrics.DEFINITIONS`, overall and in bins.

    Parameters
    ----------
    batches : Batches
        Features are z_phot, z_spec and the quantities of ``bins``, in this order.
    bins : mapping of str to ndarray
        Edges of the bins of each further quantity; a row on the last edge lies in the last bin.

    Returns
    -------
    pyarrow.Table
        One row per group: ``by`` (empty for all rows), ``low``, ``high``, ``rows``, and the metrics; NaN without rows.
    """
    edges = [np.asarray(found, dtype=np.float64) for found in (bins or {}).values()]
    groups = 1 + sum(len(own) - 1 for own in edges)
    quartiles, rows = exact_quantiles(batches, _dz, groups, (0.25, 0.5, 0.75), edges)
    absolute, _ = exact_quantiles(batches, _abs_dz, groups, (0.5,), edges)
    mad, _ = exact_quantiles(batches, _deviation, groups, (0.5,), edges, quartiles[:, 1])
    sigma_iqr = (quartiles[:, 2] - quartiles[:, 0]) / 1.349
    total = batches.over(_sums, np.add, edges, quartiles[:, 1], mad[:, 0], sigma_iqr)
    locations = [biweight(total[g], quartiles[g, 1]) for g in range(groups)]
    beyond = batches.over(_beyond, np.add, edges, np.array(locations))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {
            "median_abs": absolute[:, 0],
            "sigma_nmad": 1.4826 * mad[:, 0],
            "sigma_iqr": sigma_iqr,
            "bias_mean": total[:, 1] / rows,
            "bias_median": quartiles[:, 1],
            "bias_biweight": np.array([location for location, _ in locations]),
            "scatter_biweight": np.array([scale for _, scale in locations]),
            "outlier_015": total[:, 6] / rows,
            "outlier_rail": total[:, 7] / rows,
            "outlier_2s_biweight": beyond / rows,
            "outlier_cat1": total[:, 8] / rows,
            "hsc_loss": total[:, 9] / rows,
        }
    empty = rows == 0
    names = ["", *(name for name, own in zip(bins or {}, edges, strict=True) for _ in own[1:])]
    low = [np.nan, *(value for own in edges for value in own[:-1])]
    high = [np.nan, *(value for own in edges for value in own[1:])]
    columns = {name: np.where(empty, np.nan, found[name]) for name in DEFINITIONS}
    return pa.table({"by": names, "low": low, "high": high, "rows": rows, **columns})


def metrics_of(z_phot: Float, z_spec: Float) -> dict[str, float]:
    """Compute every metric of arrays in memory."""
    columns = np.vstack([np.asarray(z_phot, np.float64), np.asarray(z_spec, np.float64)])
    found = point_metrics(Batches((ArrayPart(columns),), ("z_phot", "z_spec")))
    return {name: found[name][0].as_py() for name in DEFINITIONS}


def pdf_metrics(found: PdfSums) -> dict[str, float]:
    """Return every metric of `PDF_DEFINITIONS` from the sums over all rows."""
    rows = float(found.counts.sum())
    values = uniformity(found) | dict(zip(("crps", "cde_loss"), (found.losses / rows).tolist(), strict=True))
    return {name: values[name] for name in PDF_DEFINITIONS}


def _members(block: Block, edges: list[Float]) -> list[tuple[int, Any]]:
    """Return each group that has rows here, with their indices."""
    members: list[tuple[int, Any]] = [(0, np.arange(len(block)))]
    first = 1
    for column, own in zip(block.columns[FIRST_BINNED:], edges, strict=True):
        place = np.searchsorted(own, column, side="right") - 1
        place = np.where(column == own[-1], len(own) - 2, place)
        members += [(first + b, np.flatnonzero(place == b)) for b in range(len(own) - 1)]
        first += len(own) - 1
    return [(group, rows) for group, rows in members if len(rows)]


def _grouped(block: Block, edges: list[Float], values: Float) -> tuple[Float, Int]:
    members = _members(block, edges)
    return np.concatenate([values[rows] for _, rows in members]), np.repeat([g for g, _ in members], [len(r) for _, r in members])


def _dz(block: Block, edges: list[Float]) -> tuple[Float, Int]:
    return _grouped(block, edges, relative(block.columns[PHOT], block.columns[SPEC]))


def _abs_dz(block: Block, edges: list[Float]) -> tuple[Float, Int]:
    return _grouped(block, edges, np.abs(relative(block.columns[PHOT], block.columns[SPEC])))


def _deviation(block: Block, edges: list[Float], medians: Float) -> tuple[Float, Int]:
    values, groups = _dz(block, edges)
    return np.abs(values - medians[groups]), groups


def _sums(block: Block, edges: list[Float], medians: Float, mads: Float, sigmas: Float) -> Float:
    out = np.zeros((len(medians), 10))
    for g, rows in _members(block, edges):
        out[g] = sums(block.columns[PHOT, rows], block.columns[SPEC, rows], medians[g], mads[g], sigmas[g])
    return out


def _beyond(block: Block, edges: list[Float], locations: Float) -> Float:
    out = np.zeros(len(locations))
    dz = relative(block.columns[PHOT], block.columns[SPEC])
    for g, rows in _members(block, edges):
        out[g] = np.count_nonzero(np.abs(dz[rows] - locations[g, 0]) > 2 * locations[g, 1])
    return out
