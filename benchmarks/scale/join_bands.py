"""One row per star from five bands, side by side with what a user would pick instead: polars, DuckDB, Dask, pandas.

python -m benchmarks.scale.join_bands FOLDER [--fields 20 --stars 500000] makes the input once (by default ten million stars, each
seen once in each of five bands), ingests it, stores its bands side by side, and writes a Parquet file a band for the peers.
Each gives ids and five magnitudes as one table in memory, of the stars that all bands have; answers are compared before times
are printed. Ours reads what ingest left; the peers start from tables that are decoded and typed already. With --files a second
table begins at the FITS files: our ingest (every column, sorted, checked, stored) and join, against astropy and pandas, which
read two columns.
"""

from __future__ import annotations

import argparse
import functools
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import dask
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from astropy.table import Table
from dask import dataframe as dd
from dask.distributed import Client

import scalable
from benchmarks.measure import compare, show
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables

VALUE = "Mag1"


def main() -> None:
    """Make the input, check the answers, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fields", type=int, default=20)
    parser.add_argument("--stars", type=int, default=500_000, help="stars per field")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--files", action="store_true", help="also time both ways from the FITS files on")
    args = parser.parse_args()
    collection = prepare(args.folder, args.fields, args.stars)
    bands = collection.bands
    files = {band: str(args.folder / "bands" / f"{band}.parquet") for band in bands}
    stored = scalable.open_catalog(args.folder / "joined")
    leaves = sorted((args.folder / "joined" / "dataset").glob("Norder=*/Dir=*/*.parquet"))
    columns = [f"{band}_{VALUE}" for band in bands]

    def ours_stored() -> pa.Table:
        return threads(stored.select("object_id", *columns))

    def reading() -> list[pa.Table]:
        with ThreadPoolExecutor(2) as pool:
            return list(pool.map(lambda leaf: pq.read_table(leaf, columns=["object_id", *columns], use_threads=False), leaves))

    dask.config.set({"dataframe.shuffle.method": "p2p", "distributed.logging.distributed": "error"})
    with Client(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as client:
        contenders: dict[str, Callable[[], Any]] = {
            "scalable, stored band columns": ours_stored,
            "scalable, on the fly": functools.partial(on_the_fly, collection),
            "merely reading the stored columns": reading,
            "polars": functools.partial(by_polars, files),
            "DuckDB": functools.partial(by_duckdb, files),
            "pandas": functools.partial(by_pandas, files),
            "Dask p2p merge": functools.partial(by_dask, files, client),
        }
        expected = None
        for name, work in contenders.items():
            if work is reading:
                continue
            answer = digest(work(), columns)
            expected = expected or answer
            assert answer == expected, f"{name}: {answer} is not {expected}"
        megabytes = sum(leaf.rows for leaf in stored.leaves) * (8 + 4 * len(bands)) / 1e6
        show(compare(f"{expected[0]:,} stars in {len(bands)} bands", contenders, megabytes=megabytes, repeats=args.repeats))
    if args.files:
        from_files(args.folder, args.repeats)


def from_files(folder: Path, repeats: int) -> None:
    """Check and time both ways from the FITS files to the joined table."""
    survey = described(folder)
    columns = [f"{band}_{VALUE}" for band in survey.bands]
    contenders = {
        "scalable, ingest and join": functools.partial(by_ingest, survey, folder / "again"),
        "astropy and pandas": functools.partial(by_astropy, survey),
    }
    answers = {name: digest(work(), columns) for name, work in contenders.items()}
    assert len(set(answers.values())) == 1, answers
    megabytes = sum(path.stat().st_size for path in (folder / "tables").glob("*.fits")) / 1e6
    show(compare("the same, from FITS files", contenders, megabytes=megabytes, repeats=repeats))


def described(folder: Path) -> scalable.Survey:
    """Return the description of the input, with leaves of a useful size."""
    survey = scalable.open_survey(folder / "survey.yaml")
    return survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 128})})


def on_the_fly(collection: scalable.Collection) -> pa.Table:
    """Join as stored detections are read."""
    measured = collection.detections.where(f"{VALUE} is not null")
    joined = scalable.join_bands(measured, values=[VALUE], pick="first", how="inner")
    return threads(joined.select("object_id", *(f"{band}_{VALUE}" for band in collection.bands)))


def by_ingest(survey: scalable.Survey, store: Path) -> pa.Table:
    """Ingest on two workers and join."""
    shutil.rmtree(store, ignore_errors=True)
    with scalable.connect(workers=2):
        return on_the_fly(scalable.ingest(survey, into=store))


def by_astropy(survey: scalable.Survey) -> pd.DataFrame:
    """Read the files of each band with astropy, keep what is measured, and merge."""
    frames = []
    for band in survey.bands:
        files = sorted(Path(survey.root, "tables").glob(f"*-{band}*.fits"))
        pieces = [Table.read(file)["StarID", VALUE].to_pandas() for file in files]
        frames.append(pd.concat(pieces).dropna().rename(columns={"StarID": "object_id", VALUE: f"{band}_{VALUE}"}))
    return merged(frames)


def prepare(folder: Path, fields: int, stars: int) -> scalable.Collection:
    """Make, ingest and join the input, unless it is there."""
    if not (folder / "survey.yaml").exists():
        spec = SkySpec(seed=1, fields=fields, stars_per_field=stars, epochs=1, field_radius_deg=0.5)
        write_tables(make_sky(spec), folder)
    survey = described(folder)
    with scalable.connect(workers=2):
        collection = scalable.ingest(survey, into=folder / "store")
        if not (folder / "joined").exists():
            measured = collection.detections.where(f"{VALUE} is not null")
            joined = scalable.join_bands(measured, values=[VALUE], pick="first", how="inner")
            scalable.write_catalog(joined, folder / "joined")
    (folder / "bands").mkdir(exist_ok=True)
    for band in collection.bands:
        path = folder / "bands" / f"{band}.parquet"
        if not path.exists():
            rows = threads(collection.detections.where(f"band = '{band}' and {VALUE} is not null").select("object_id", VALUE))
            # Not in the order of ids or of the sky: a peer gets no head start from ours.
            mixed = rows.take(np.random.default_rng(1).permutation(rows.num_rows)).combine_chunks()
            pq.write_table(mixed, path, row_group_size=1_000_000, use_dictionary=False)
    return collection


def threads(catalog: scalable.Catalog) -> pa.Table:
    """Compute on two threads."""
    return catalog.compute(scheduler="threads", num_workers=2)


def by_polars(files: dict[str, str]) -> pa.Table:
    """Join with polars' streaming engine or not, as it decides."""
    frames = [pl.scan_parquet(path).select("object_id", pl.col(VALUE).alias(f"{b}_{VALUE}")) for b, path in files.items()]
    joined = functools.reduce(lambda left, right: left.join(right, on="object_id"), frames)
    return joined.collect().to_arrow()


def by_duckdb(files: dict[str, str]) -> pa.Table:
    """Join with DuckDB on two threads."""
    with duckdb.connect(config={"threads": 2}) as connection:
        columns = ", ".join(f"{b}.{VALUE} as {b}_{VALUE}" for b in files)
        (first, path), *others = files.items()
        joins = " ".join(f"join '{other}' {b} using (object_id)" for b, other in others)
        return connection.sql(f"select object_id, {columns} from '{path}' {first} {joins}").arrow().read_all()


def by_pandas(files: dict[str, str]) -> pd.DataFrame:
    """Join with pandas."""
    frames = [pd.read_parquet(path).rename(columns={VALUE: f"{b}_{VALUE}"}) for b, path in files.items()]
    return merged(frames)


def by_dask(files: dict[str, str], client: Client) -> pd.DataFrame:
    """Join with Dask's p2p shuffle on two workers."""
    frames = [dd.read_parquet(path, split_row_groups=1).rename(columns={VALUE: f"{b}_{VALUE}"}) for b, path in files.items()]
    joined = functools.reduce(lambda left, right: left.merge(right, on="object_id", shuffle_method="p2p"), frames)
    return client.compute(joined).result()


def merged(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """Merge one frame after another."""
    first, *others = frames
    for other in others:
        first = first.merge(other, on="object_id")
    return first


def digest(table: Any, columns: list[str]) -> tuple[int, ...]:
    """Return the number of rows, and for each column a sum that depends on which value stands beside which id, exactly."""
    ids = np.asarray(table["object_id"]).astype(np.uint64)
    bits = [np.asarray(table[name]).astype(np.float32).view(np.uint32).astype(np.uint64) for name in columns]
    return len(ids), *(int(((ids * np.uint64(0x9E3779B97F4A7C15)) ^ (b * np.uint64(0xC2B2AE3D27D4EB4F))).sum()) for b in bits)


if __name__ == "__main__":
    main()
