"""Ingest a synthetic survey of FITS tables, side by side with hats-import, on two workers each.

python -m benchmarks.scale.ingest_survey FOLDER [--fields 5 --stars 100000 --epochs 96] [--peer] makes the input once (about
50 million detections with the defaults), ingests it, and with --peer runs hats-import on the same files. Answers first: the rows
are compared before a rate is printed. The peer places each row by its own position and writes one catalogue of detections; ours
groups objects, writes objects and detections, margins and an index, and accounts for every row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from dask.distributed import Client

import scalable
from benchmarks.measure import peak_bytes
from scalable.io.parquet import read_leaf, write_leaf
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import write_tables


def main() -> None:
    """Make the input, run ours and perhaps the peer, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fields", type=int, default=5)
    parser.add_argument("--stars", type=int, default=100_000, help="stars per field")
    parser.add_argument("--epochs", type=int, default=96, help="epochs in the last band")
    parser.add_argument("--peer", action="store_true", help="run hats-import too (pip install hats-import)")
    args = parser.parse_args()
    survey_file = args.folder / "survey.yaml"
    if not survey_file.exists():
        spec = SkySpec(seed=1, fields=args.fields, stars_per_field=args.stars, epochs=args.epochs, field_radius_deg=0.5)
        write_tables(make_sky(spec), args.folder)
    paths = sorted((args.folder / "tables").glob("*.fits"))
    megabytes = sum(path.stat().st_size for path in paths) / 1e6
    figures = {"files": len(paths), "megabytes": megabytes, "scalable": _apart(ours, args.folder)}
    figures["writing"] = _apart(writing, args.folder)
    figures["speed_of_writing"] = figures["writing"]["seconds"] / figures["scalable"]["seconds"]
    if args.peer:
        figures["hats-import"] = _apart(peer, args.folder)
        assert figures["hats-import"]["rows"] == figures["scalable"]["rows"]
        figures["ratio"] = figures["hats-import"]["seconds"] / figures["scalable"]["seconds"]
    for name in ("scalable", "writing", "hats-import"):
        if name in figures:
            figures[name]["megabytes_per_second"] = megabytes / figures[name]["seconds"]
    print(json.dumps(figures, indent=1))


def _apart(work: Callable[[Path], dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Run one contender in a process of its own, so that neither finds the other's imports or memory."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, folder).result()


def ours(folder: Path) -> dict[str, Any]:
    """Ingest into a store; returns rows, leaves, seconds and the largest memory of a worker [MB]."""
    survey = scalable.open_survey(folder / "survey.yaml")
    survey = survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": 128})})
    store = folder / "store"
    shutil.rmtree(store, ignore_errors=True)
    stages: dict[str, float] = {}
    with scalable.connect(workers=2) as client:
        client.run(lambda: None)
        start = time.perf_counter()
        collection = scalable.ingest(
            survey, into=store, progress=lambda stage, *_: stages.update({stage: time.perf_counter() - start})
        )
        seconds = time.perf_counter() - start
        memory = max(client.run(_peak).values())
    leaves = len(collection.detections.leaves)
    return {"rows": collection.accounting["stored"], "leaves": leaves, "seconds": seconds, "worker_mb": memory, "until": stages}


def writing(folder: Path) -> dict[str, Any]:
    """Merely write the leaves that `ours` left, from memory, on two workers: the limit of any ingest into this layout."""
    leaves = sorted((folder / "store" / "current").glob("*/*/dataset/Norder=*/Dir=*/*.parquet"))
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        seconds = sum(pool.map(_write_again, leaves, (folder / "written" / str(number) for number in range(len(leaves)))))
    shutil.rmtree(folder / "written")
    return {"leaves": len(leaves), "seconds": seconds / 2}


def _write_again(leaf: Path, folder: Path) -> float:
    table = read_leaf(leaf)
    start = time.perf_counter()
    write_leaf(table, folder, leaf.name)
    return time.perf_counter() - start


def peer(folder: Path) -> dict[str, Any]:
    """Import the same files with hats-import; its documentation's settings, positions converted to degrees on reading."""
    from hats_import import ImportArguments, pipeline_with_client

    paths = sorted((folder / "tables").glob("*.fits"))
    shutil.rmtree(folder / "peer", ignore_errors=True)
    with Client(n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as client:
        arguments = ImportArguments(
            output_path=folder / "peer",
            output_artifact_name="detections",
            input_file_list=[str(path) for path in paths],
            file_reader=_reader(),
            ra_column="ra_deg",
            dec_column="dec_deg",
            catalog_type="source",
            pixel_threshold=1_000_000,
            progress_bar=False,
        )
        start = time.perf_counter()
        pipeline_with_client(arguments, client)
        seconds = time.perf_counter() - start
        memory = max(client.run(_peak).values())
    metadata = pq.read_metadata(folder / "peer" / "detections" / "dataset" / "_metadata")
    leaves = len(list((folder / "peer" / "detections" / "dataset").rglob("Npix=*.parquet")))
    return {"rows": metadata.num_rows, "leaves": leaves, "seconds": seconds, "worker_mb": memory}


def _reader() -> Any:
    from hats_import.catalog.file_readers import FitsReader

    class Degrees(FitsReader):  # type: ignore[misc,valid-type]
        """The peer's own reader, and the two columns in degrees that it needs."""

        def read(self, input_file: Any, read_columns: Any = None) -> Any:
            wanted = None if read_columns is None else ["Ra", "Dec"]
            for table in super().read(input_file, read_columns=wanted):
                for name, source in (("ra_deg", "Ra"), ("dec_deg", "Dec")):
                    table = table.append_column(name, [np.degrees(table[source].to_numpy())])
                yield table if read_columns is None else table.select(list(read_columns))

    return Degrees()


def _peak() -> float:
    return peak_bytes() / 1e6


if __name__ == "__main__":
    main()
