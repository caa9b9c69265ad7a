"""Statistics of light curves against what a user would pick instead, in memory and from disk, on two threads each.

python -m benchmarks.scale.statistics FOLDER [--detections 90000000] [--peers polars duckdb nested dask] makes a catalogue of
detections once (stars over the whole sky, one epoch in Z, Y, J, H and 91 in Ks) and prints a table: million detections a second
and how many times slower than ours. Answers come first: every peer's are compared with ours before its time is shown. Peers that
need a Python function for each light curve (nested-pandas, Dask groupby) get a part of the catalogue, named with their rate.
Polars and DuckDB compute the default set but for StetsonJ, which no expression of theirs can say; so do the others, in their
favour. Reading alone is what the verb reads, bands as dictionary codes.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
from rich.console import Console
from rich.table import Table

import scalable
from scalable.io.layout import META_KEY, finish_catalog
from scalable.io.parquet import read_leaf, write_leaf
from scalable.kernels.statistic import evaluate
from scalable.kernels.variability import ALL, DEFAULT
from scalable.schema import Column, Schema
from scalable.sky.healpix import to_pixels
from scalable.sky.pixel import Pixel

EPOCHS = {"Z": 1, "Y": 1, "J": 1, "H": 1, "Ks": 91}
ROWS_PER_LEAF = 2_000_000
VALUES = ["object_id", "band", "mjd", "Flux1", "dFlux1"]
ONE_PASS = ["Mean", "Sigma", "ReducedChi2", "Amplitude", "Skew", "Kurtosis", "LinearSlope", "VonNeumann", "StetsonK"]
SORTED = ["Percentile50", "MAD"]
PEERS = ("light-curve", "polars", "duckdb", "nested", "dask")
EXPRESSED = [statistic.name for statistic in DEFAULT if statistic.name != "StetsonJ"]
"""The default set but for the one that iterates."""

Points = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
Row = dict[str, Any]


def make_catalog(folder: Path, detections: int) -> Path:
    """Write a HATS catalogue of about so many detections, once."""
    path = folder / f"detections_{detections}"
    if (path / "hats.properties").exists():
        return path
    rng = np.random.default_rng(1)
    epochs = sum(EPOCHS.values())
    stars = max(detections // epochs, 48)
    order = max(0, int(np.ceil(np.log(max(detections / ROWS_PER_LEAF / 12, 1)) / np.log(4))))
    ra, dec = rng.uniform(0, 360, stars), np.degrees(np.arcsin(rng.uniform(-1, 1, stars)))
    cells = to_pixels(ra, dec)
    along = np.argsort(cells)
    columns = (
        Column("_healpix_29", pa.int64()),
        Column("object_id", pa.int64(), role="object_id"),
        Column("object_ra", pa.float64(), role="ra", unit="deg"),
        Column("object_dec", pa.float64(), role="dec", unit="deg"),
        Column("band", pa.string(), role="band"),
        Column("mjd", pa.float64(), role="time", unit="d"),
        Column("Flux1", pa.float32(), role="flux", unit="adu", error="dFlux1"),
        Column("dFlux1", pa.float32(), role="flux_err", unit="adu"),
    )
    schema = Schema(columns).to_arrow().with_metadata({META_KEY: json.dumps({"bands": list(EPOCHS)}).encode()})
    leaves = []
    for index in range(12 * 4**order):
        mine = along[(cells[along] >> 2 * (29 - order)) == index]
        if not len(mine):
            continue
        points = len(mine) * epochs
        flux = rng.gamma(2.0, 2000.0, len(mine)).repeat(epochs)
        err = np.sqrt(flux) + 20
        flux = flux * (1 + 0.05 * rng.standard_normal(points)) + err * rng.standard_normal(points)
        nights = np.sort(rng.uniform(56000, 58000, (len(mine), epochs)), axis=1)
        arrays = [cells[mine].repeat(epochs), mine.repeat(epochs), ra[mine].repeat(epochs), dec[mine].repeat(epochs)]
        bands = np.tile(np.repeat(list(EPOCHS), list(EPOCHS.values())), len(mine))
        table = pa.table([*arrays, bands, nights.ravel(), flux.astype("f4"), err.astype("f4")], schema=schema)
        leaves.append(write_leaf(table, path, Pixel(order, index).hats_path))
    finish_catalog(
        path,
        leaves,
        schema=schema,
        name=path.name,
        product="source",
        position=("object_ra", "object_dec"),
        date="2026-01-01T00:00:00Z",
    )
    return path


def light_curves(path: Path, limit: int) -> list[Points]:
    """Return flux, error, time and offsets of whole leaves, in double precision, of at least ``limit`` detections."""
    found, rows = [], 0
    for leaf in scalable.open_catalog(path).leaves:
        table = read_leaf(path / leaf.path, VALUES)
        ids, bands = table["object_id"].to_numpy(), table["band"].to_numpy()
        ends = np.flatnonzero((ids[1:] != ids[:-1]) | (bands[1:] != bands[:-1])) + 1
        flux, err, mjd = (table[name].to_numpy().astype(np.float64) for name in ("Flux1", "dFlux1", "mjd"))
        found.append((flux, err, mjd, np.concatenate([[0], ends, [len(ids)]]).astype(np.int64)))
        rows += len(ids)
        if rows >= limit:
            break
    return found


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of some runs."""
    times = []
    for _ in range(repeats):
        gc.collect()
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def in_memory(path: Path, limit: int, repeats: int) -> Iterator[Row]:
    """Compare the kernels with the package ``light-curve``, both on the same arrays: light curves of two points and more."""
    import light_curve

    leaves = [_varied(*leaf) for leaf in light_curves(path, limit)]
    theirs = {
        "Mean": light_curve.WeightedMean(),
        "Sigma": light_curve.StandardDeviation(),
        "ReducedChi2": light_curve.ReducedChi2(),
        "Amplitude": light_curve.Amplitude(),
        "Skew": light_curve.Skew(),
        "Kurtosis": light_curve.Kurtosis(),
        "LinearSlope": light_curve.LinearFit(),
        "VonNeumann": light_curve.Eta(),
        "StetsonK": light_curve.StetsonK(),
        "Percentile50": light_curve.Median(),
        "MAD": light_curve.MedianAbsoluteDeviation(),
    }
    rows = sum(len(leaf[0]) for leaf in leaves)
    nested = [_nested(*leaf) for leaf in leaves]
    fields = {"t": "t", "m": "m", "sigma": "sigma"}
    groups = {"one pass, four": ONE_PASS[:4], "one pass, nine": ONE_PASS, "sorting": SORTED}
    for title, names in groups.items():
        extractor = light_curve.Extractor(*(theirs[name] for name in names))
        wanted = tuple(ALL[name] for name in names)
        # A line fit gives three numbers; the slope is the first.
        columns = np.cumsum([0, *(len(theirs[name].names) for name in names)])[:-1]

        def peer(extractor: Any = extractor) -> list[np.ndarray]:
            return [extractor.many(leaf, arrow_fields=fields, sorted=True, check=False, n_jobs=2) for leaf in nested]

        def ours(wanted: Any = wanted) -> list[dict[str, np.ndarray]]:
            with ThreadPoolExecutor(2) as pool:
                return list(pool.map(lambda leaf: evaluate(wanted, *leaf), leaves))

        for mine, other in zip(ours(), peer(), strict=True):
            for name, column in zip(names, columns, strict=True):
                np.testing.assert_allclose(mine[name], other[:, column], rtol=1e-6, atol=1e-9, err_msg=name)
        base, slow = seconds(ours, repeats), seconds(peer, repeats)
        yield {"workload": f"in memory, {title}", "who": "scalable", "rows": rows, "seconds": base}
        yield {"workload": f"in memory, {title}", "who": "light-curve (Arrow)", "rows": rows, "seconds": slow}
    for title, wanted in (("default set", DEFAULT), ("default set but for StetsonJ", tuple(ALL[name] for name in EXPRESSED))):
        with ThreadPoolExecutor(2) as pool:
            base = seconds(lambda wanted=wanted: list(pool.map(lambda leaf: evaluate(wanted, *leaf), leaves)), repeats)
        yield {"workload": f"in memory, {title}", "who": "scalable", "rows": rows, "seconds": base}


def _varied(flux: np.ndarray, err: np.ndarray, mjd: np.ndarray, offsets: np.ndarray) -> Points:
    """Return the curves of at least five points: the peer has no answer for shorter ones."""
    keep = np.repeat(np.diff(offsets) >= 5, np.diff(offsets))
    lengths = np.diff(offsets)[np.diff(offsets) >= 5]
    return flux[keep], err[keep], mjd[keep], np.concatenate([[0], np.cumsum(lengths)])


def _nested(flux: np.ndarray, err: np.ndarray, mjd: np.ndarray, offsets: np.ndarray) -> pa.Array:
    struct = pa.StructArray.from_arrays([mjd, flux, err], ["t", "m", "sigma"])
    return pa.LargeListArray.from_arrays(pa.array(offsets), struct)


def from_disk(path: Path, peers: list[str], part: int, repeats: int) -> Iterator[Row]:
    """Compare the verb with merely reading its columns, and with engines that read the same leaves."""
    catalog = scalable.open_catalog(path)
    rows = int(catalog.rows or 0)
    keys = ["object_id", *(f"{band}_Flux1{name}" for band in EPOCHS for name in EXPRESSED)]
    sums = [s.name for s in DEFAULT if s.combine]

    def ours(names: list[str]) -> pa.Table:
        lazy = scalable.variability(catalog, names)
        return lazy.select("object_id", *(f"{band}_Flux1{name}" for band in EPOCHS for name in names)).compute()

    def reading() -> None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda leaf: read_leaf(path / leaf.path, VALUES, coded=["band"]).num_rows, catalog.leaves))

    with dask.config.set(scheduler="threads", num_workers=2):
        answer = ours(EXPRESSED).select(keys).to_pandas().set_index("object_id").sort_index()
        timed = {
            "default set but for StetsonJ": lambda: ours(EXPRESSED),
            "default set": lambda: ours([s.name for s in DEFAULT]),
            "those of the default that merge": lambda: ours(sums),
        }
        for title, work in timed.items():
            yield {"workload": f"from disk, {title}", "who": "scalable", "rows": rows, "seconds": seconds(work, repeats)}
        alone = seconds(reading, repeats)
    workload = "from disk, default set but for StetsonJ"
    yield {"workload": workload, "who": "reading alone", "rows": rows, "seconds": alone}
    files = [str(path / leaf.path) for leaf in catalog.leaves]
    few = files[: max(1, round(part / rows * len(files)))]
    engines: dict[str, tuple[Callable[[list[str]], Any], list[str]]] = {
        "polars": (_polars, files),
        "duckdb": (_duckdb, files),
        "nested": (_nested_pandas, few),
        "dask": (_dask, few),
    }
    for name, (engine, inputs) in engines.items():
        if name not in peers:
            continue
        start = time.perf_counter()
        theirs = engine(inputs)
        took = time.perf_counter() - start
        _compare(answer, theirs, name)
        read = sum(ds.dataset(file).count_rows() for file in inputs)
        yield {"workload": workload, "who": name, "rows": read, "seconds": took}


def _compare(answer: Any, theirs: Any, who: str) -> None:
    """Assert that a peer's table, one row per object and band, holds the same numbers."""
    for band in EPOCHS:
        other = theirs[theirs["band"] == band].set_index("object_id").sort_index()
        mine = answer.loc[other.index]
        for name in EXPRESSED:
            found, expected = other[name].astype(float).to_numpy(), mine[f"{band}_Flux1{name}"].astype(float).to_numpy()
            if EPOCHS[band] < 2 and name not in ("Ndata", "Mean", "Min", "Max", "Percentile50"):
                continue  # What one point gives, NaN, null or 0, is a matter of taste.
            # An intercept is extrapolated by 57,000 days, and engines sum squares without a shift.
            tolerance = 1e-4 if name in ("Skew", "LinearSlope", "LinearIntercept", "Chi2", "Sigma") else 1e-6
            scale = np.nanmax(np.abs(expected))
            np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance * scale, err_msg=f"{who} {band} {name}")


def _polars(files: list[str]) -> Any:
    import polars as pl

    flux, err = pl.col("Flux1").cast(pl.Float64), pl.col("dFlux1").cast(pl.Float64)
    weight, day = err.pow(-2), pl.col("mjd") - 57000.0
    total, mean, when = weight.sum(), (weight * flux).sum() / weight.sum(), (weight * day).sum() / weight.sum()
    slope = (weight * (day - when) * (flux - mean)).sum() / (weight * (day - when).pow(2)).sum()
    percentiles = [flux.quantile(p / 100, "linear").alias(f"Percentile{p:02d}") for p in (5, 25, 50, 75, 95)]
    scan = pl.scan_parquet(files).select(VALUES)
    grouped = scan.group_by("object_id", "band").agg(
        flux.count().alias("Ndata"),
        mean.alias("Mean"),
        total.pow(-0.5).alias("MeanErr"),
        flux.std().alias("Sigma"),
        err.mean().alias("ErrMean"),
        flux.min().alias("Min"),
        flux.max().alias("Max"),
        *percentiles,
        (flux - flux.median()).abs().median().alias("MAD"),
        flux.skew(bias=False).alias("Skew"),
        (weight * (flux - mean).pow(2)).sum().alias("Chi2"),
        (flux.diff() / pl.col("mjd").diff()).max().alias("MaxSlope"),
        slope.alias("LinearSlope"),
        (mean - slope * (when + 57000.0)).alias("LinearIntercept"),
    )
    return grouped.collect().to_pandas()


def _duckdb(files: list[str]) -> Any:
    import duckdb

    quantiles = ", ".join(f"q[{i + 1}] AS Percentile{p:02d}" for i, p in enumerate((5, 25, 50, 75, 95)))
    with duckdb.connect(config={"threads": 2}) as connection:
        return connection.execute(
            f"""
            WITH p AS (SELECT object_id, band, mjd, Flux1::DOUBLE AS f, dFlux1::DOUBLE AS e, dFlux1::DOUBLE ** -2 AS w
                       FROM read_parquet({files!r})),
            s AS (SELECT *, (f - lag(f) OVER o) / (mjd - lag(mjd) OVER o) AS slope,
                         mjd - 57000 AS d FROM p WINDOW o AS (PARTITION BY object_id, band ORDER BY mjd)),
            g AS (SELECT object_id, band, count(*) AS Ndata, sum(w * f) / sum(w) AS Mean, 1 / sqrt(sum(w)) AS MeanErr,
                         stddev_samp(f) AS Sigma, avg(e) AS ErrMean, min(f) AS Min, max(f) AS Max,
                         quantile_cont(f, [0.05, 0.25, 0.5, 0.75, 0.95]) AS q, mad(f) AS MAD, skewness(f) AS Skew,
                         sum(w * f * f) - sum(w * f) ** 2 / sum(w) AS Chi2, max(slope) AS MaxSlope,
                         (sum(w * d * f) - sum(w * d) * sum(w * f) / sum(w)) / (sum(w * d * d) - sum(w * d) ** 2 / sum(w))
                             AS LinearSlope, sum(w * d) / sum(w) + 57000 AS epoch
                  FROM s GROUP BY object_id, band)
            SELECT * EXCLUDE (q, epoch), {quantiles}, Mean - LinearSlope * epoch AS LinearIntercept FROM g
            """
        ).df()


def _one_curve(flux: np.ndarray, err: np.ndarray, mjd: np.ndarray) -> dict[str, float]:
    """Return the expressed default set of one light curve, as a user would write it with NumPy."""
    flux, err, n = flux.astype(float), err.astype(float), len(flux)
    weight = err**-2
    mean, when = np.average(flux, weights=weight), np.average(mjd, weights=weight)
    low, first, median, third, high = np.percentile(flux, (5, 25, 50, 75, 95))
    sigma, deviation = (flux.std(ddof=1), flux - flux.mean()) if n > 1 else (np.nan, flux)
    slope = (weight * (mjd - when) * (flux - mean)).sum() / (weight * (mjd - when) ** 2).sum() if n > 1 else np.nan
    skew = n / ((n - 1) * (n - 2)) * ((deviation / sigma) ** 3).sum() if n > 2 else np.nan
    values = (
        n, mean, weight.sum() ** -0.5, sigma, err.mean(), flux.min(), flux.max(), low, first, median, third, high,
        np.median(np.abs(flux - median)), skew, (weight * (flux - mean) ** 2).sum(),
        (np.diff(flux) / np.diff(mjd)).max() if n > 1 else np.nan, slope, mean - slope * when,
    )  # fmt: skip
    return dict(zip(EXPRESSED, map(float, values), strict=True))


def _nested_pandas(files: list[str]) -> Any:
    import nested_pandas
    import pandas as pd

    flat = pd.concat([pd.read_parquet(file, columns=VALUES) for file in files])
    flat["curve"] = flat["object_id"].astype(str) + " " + flat["band"]
    frame = nested_pandas.NestedFrame.from_flat(flat, base_columns=["object_id", "band"], on="curve", name="lc")
    found = frame.map_rows(_one_curve, columns=["lc.Flux1", "lc.dFlux1", "lc.mjd"], row_container="args")
    return pd.concat([frame[["object_id", "band"]], found], axis=1)


def _dask(files: list[str]) -> Any:
    import dask.dataframe as dd
    import pandas as pd

    meta = pd.DataFrame({name: pd.Series(dtype=float) for name in EXPRESSED})
    with dask.config.set(scheduler="processes", num_workers=2):
        frame = dd.read_parquet(files, columns=VALUES)
        grouped = frame.groupby(["object_id", "band"])
        return grouped.apply(_frame_of_curve, meta=meta).compute().reset_index()


def _frame_of_curve(rows: Any) -> Any:
    import pandas as pd

    return pd.Series(_one_curve(rows["Flux1"].to_numpy(), rows["dFlux1"].to_numpy(), rows["mjd"].to_numpy()))


def show(rows: list[Row]) -> None:
    """Print a line for each contender, with its rate and how many times slower than ours it is."""
    table = Table("workload", "who", "detections", "seconds", "million/s", "times ours")
    rates = {row["workload"]: row["rows"] / row["seconds"] for row in rows if row["who"] == "scalable"}
    for row in rows:
        rate = row["rows"] / row["seconds"]
        ratio = rates[row["workload"]] / rate
        figures = (f"{row['rows']:,}", f"{row['seconds']:.2f}", f"{rate / 1e6:,.1f}", f"{ratio:.2f}")
        table.add_row(row["workload"], row["who"], *figures)
    Console(width=140).print(table)


def main() -> None:
    """Make the input, compare answers, print the table and perhaps write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--detections", type=int, default=90_000_000)
    parser.add_argument("--in-memory", type=int, default=9_000_000, help="detections that the comparison in memory takes")
    parser.add_argument("--part", type=int, default=1_000_000, help="detections for peers that call Python for each light curve")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    args = parser.parse_args()
    path = make_catalog(args.folder, args.detections)
    rows: list[Row] = []
    if "light-curve" in args.peers:
        rows += in_memory(path, args.in_memory, args.repeats)
    rows += from_disk(path, args.peers, args.part, args.repeats)
    show(rows)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
