"""Every statistic of light curves that a name can ask for, and those that are computed by default."""

from __future__ import annotations

from scalable.kernels.curve_order import ORDER
from scalable.kernels.curve_series import SERIES
from scalable.kernels.curve_sums import SUMS

ALL = {statistic.name: statistic for statistic in (*SUMS, *ORDER, *SERIES)}
"""Statistics by name."""

DEFAULT = tuple(
    ALL[name]
    for name in (
        "Ndata",
        "Mean",
        "MeanErr",
        "Sigma",
        "ErrMean",
        "Min",
        "Max",
        "Percentile05",
        "Percentile25",
        "Percentile50",
        "Percentile75",
        "Percentile95",
        "MAD",
        "Skew",
        "Chi2",
        "StetsonJ",
        "MaxSlope",
        "LinearSlope",
        "LinearIntercept",
    )
)
"""The summary statistics of Rubin's DP1 ``DiaObject``, under its names."""
