"""Crossmatch of two catalogues with their payload, from disk, side by side with LSDB and astropy.

python -m benchmarks.scale.crossmatch FOLDER [--rows 4000000] makes two catalogues once (the second holds nine tenths of the stars
of the first, moved by some tenths of an arcsecond, and as many others), ingests both, and matches each row of the first with the
nearest of the second within an arcsecond. The pairs are compared before times are printed. LSDB reads the same leaves and
margins, on two workers; astropy gets whole tables, read with pyarrow.
"""

from __future__ import annotations

import argparse
import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lsdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from astropy import units as u
from astropy.coordinates import SkyCoord
from dask.distributed import Client

import scalable
from benchmarks.measure import compare, show

RADIUS_ARCSEC = 1.0
PAYLOAD = [f"value{n}" for n in range(8)]
SURVEY = """
survey: {name}
description: Positions and payload
root: .
files: {{format: parquet, glob: {name}-r-60000.parquet}}
observations: {{pattern: '-(?P<band>[a-z])-(?P<mjd>[0-9]+)'}}
bands: [r]
columns:
  id: {{role: object_id}}
  ra: {{role: ra, unit: deg}}
  dec: {{role: dec, unit: deg}}
store: {{leaf_mb: 128, margin_arcsec: 5}}
"""


def main() -> None:
    """Make the input, check the answers, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, default=4_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    left, right = prepare(args.folder, args.rows)
    warnings.simplefilter("ignore")
    with Client(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None):
        contenders: dict[str, Callable[[], Any]] = {
            "scalable": functools.partial(ours, left, right),
            "LSDB": functools.partial(by_lsdb, left, right),
            "astropy": functools.partial(by_astropy, left, right),
        }
        answers = {name: digest(work()) for name, work in contenders.items()}
        assert len(set(answers.values())) == 1, answers
        megabytes = 2 * args.rows * (16 + 8 + 8 * len(PAYLOAD)) / 1e6
        workload = f"{args.rows:,} x {args.rows:,} rows"
        show(compare(workload, contenders, megabytes=megabytes, repeats=args.repeats))


def prepare(folder: Path, rows: int) -> tuple[scalable.Collection, scalable.Collection]:
    """Make and ingest both catalogues, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(1)
    ra, dec = rng.uniform(150, 180, rows), np.rad2deg(np.arcsin(rng.uniform(0.0, 0.5, rows)))
    moved = int(0.9 * rows)
    noise = rng.normal(0, 0.2 / 3600, (2, moved))
    other = rng.uniform(150, 180, rows - moved), np.rad2deg(np.arcsin(rng.uniform(0.0, 0.5, rows - moved)))
    near = ra[:moved] + noise[0] / np.cos(np.deg2rad(dec[:moved])), dec[:moved] + noise[1]
    stores = []
    for name, places in (("first", (ra, dec)), ("second", tuple(np.concatenate(pair) for pair in zip(near, other, strict=True)))):
        path = folder / f"{name}-r-60000.parquet"
        if not path.exists():
            payload = {column: rng.random(rows) for column in PAYLOAD}
            pq.write_table(pa.table({"id": np.arange(rows), "ra": places[0], "dec": places[1], **payload}), path)
            (folder / f"{name}.yaml").write_text(SURVEY.format(name=name))
        with scalable.connect(workers=2):
            stores.append(scalable.ingest(scalable.open_survey(folder / f"{name}.yaml"), into=folder / f"{name}-store"))
    return stores[0], stores[1]


def ours(left: scalable.Collection, right: scalable.Collection) -> pa.Table:
    """Match on two threads."""
    pairs = scalable.crossmatch(wanted(left), wanted(right), radius_arcsec=RADIUS_ARCSEC)
    return pairs.compute(scheduler="threads", num_workers=2)


def wanted(store: scalable.Collection) -> scalable.Catalog:
    """Return the detections with their payload."""
    return store.detections.select("_healpix_29", "object_id", "object_ra", "object_dec", *PAYLOAD)


def by_lsdb(left: scalable.Collection, right: scalable.Collection) -> Any:
    """Match with LSDB on the client in use; its nearest neighbour within the radius."""
    columns = ["object_id", "object_ra", "object_dec", *PAYLOAD]
    first, second = (lsdb.open_catalog(str(store.path / "detections"), columns=columns) for store in (left, right))
    return first.crossmatch(second, radius_arcsec=RADIUS_ARCSEC, n_neighbors=1, suffixes=("", "_2")).compute()


def by_astropy(left: scalable.Collection, right: scalable.Collection) -> pa.Table:
    """Read both, match with a k-d tree, and take what lies within the radius."""
    first, second = (read(store) for store in (left, right))
    places = [SkyCoord(t["object_ra"].to_numpy() * u.deg, t["object_dec"].to_numpy() * u.deg) for t in (first, second)]
    index, apart, _ = places[0].match_to_catalog_sky(places[1])
    near = np.flatnonzero(apart.arcsec <= RADIUS_ARCSEC)
    mine, other = first.take(near), second.take(index[near])
    return pa.table({**{n: mine[n] for n in mine.column_names}, **{f"{n}_2": other[n] for n in other.column_names}})


def read(store: scalable.Collection) -> pa.Table:
    """Read the columns that are matched and carried."""
    leaves = sorted(Path(store.path, "detections", "detections", "dataset").glob("Norder=*/Dir=*/*.parquet"))
    columns = ["object_id", "object_ra", "object_dec", *PAYLOAD]
    return pa.concat_tables([pq.read_table(leaf, columns=columns) for leaf in leaves])


def digest(table: Any) -> tuple[int, int, float]:
    """Return the number of pairs, a sum that depends on which ids are paired, exactly, and one of the payload."""
    left, right = (np.asarray(table[name]).astype(np.uint64) for name in ("object_id", "object_id_2"))
    paired = int((left * np.uint64(0x9E3779B97F4A7C15) ^ right * np.uint64(0xC2B2AE3D27D4EB4F)).sum())
    values = np.sort(np.asarray(table["value0"]) * np.asarray(table["value7_2"]))
    return len(left), paired, float(values.sum())


if __name__ == "__main__":
    main()
