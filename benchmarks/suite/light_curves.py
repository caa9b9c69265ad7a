"""Statistics of ten thousand light curves of a hundred points each, in memory, on one core."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from benchmarks.measure import Measured, compare
from scalable.kernels.statistic import evaluate
from scalable.kernels.variability import ALL, DEFAULT

STARS, POINTS = 10_000, 100
SHARED = ("Mean", "Sigma", "ReducedChi2", "Amplitude")


def run() -> list[Measured]:
    """Compare four statistics with the package ``light-curve`` on one core each; the default set stands beside them."""
    import light_curve

    rng = np.random.default_rng(1)
    err = rng.uniform(5, 40, STARS * POINTS)
    flux = rng.normal(1000, 30, STARS * POINTS)
    mjd = np.sort(rng.uniform(56000, 58000, (STARS, POINTS)), axis=1).ravel()
    offsets = np.arange(STARS + 1) * POINTS
    nested = pa.LargeListArray.from_arrays(pa.array(offsets), pa.StructArray.from_arrays([mjd, flux, err], ["t", "m", "sigma"]))
    four = (light_curve.WeightedMean(), light_curve.StandardDeviation(), light_curve.ReducedChi2(), light_curve.Amplitude())
    extractor, wanted = light_curve.Extractor(*four), tuple(ALL[name] for name in SHARED)

    def peer() -> np.ndarray:
        fields = {"t": "t", "m": "m", "sigma": "sigma"}
        return np.asarray(extractor.many(nested, arrow_fields=fields, sorted=True, check=False, n_jobs=1))

    def ours() -> dict[str, np.ndarray]:
        return evaluate(wanted, flux, err, mjd, offsets)

    for column, (name, values) in enumerate(ours().items()):
        np.testing.assert_allclose(values, peer()[:, column], rtol=1e-6, err_msg=name)
    megabytes = 3 * flux.nbytes / 1e6
    title, both = "statistics of 10,000 light curves", {"scalable, four": ours, "light-curve (Arrow), four": peer}
    whole = {"scalable, default set": lambda: evaluate(DEFAULT, flux, err, mjd, offsets)}
    return [*compare(title, both, megabytes=megabytes), *compare(title, whole, megabytes=megabytes)]
