"""A release many times larger than the memory of its workers: their peak beside the formula, and the shards that came of it.

python -m benchmarks.scale.release_memory FOLDER [--objects N] [--limit-mb M] [--carry]

Two workers that Dask kills beyond the limit release objects with cutouts, whose pixels are noise and do not compress. The cutouts
of some simulated stars are given to all objects in turn: what a release does with them does not depend on what they show.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from pathlib import Path

import dask
import xarray as xr
import yaml
from distributed import Client

import scalable
from benchmarks.measure import peak_bytes
from scalable.synthetic.images import add_images
from scalable.synthetic.sky import SkySpec, make_sky
from scalable.synthetic.tables import RECIPE, write_tables

SIZE, LEAF_MB, SHARD_MB = 64, 8.0, 500.0
FIELD_STARS = 5_000
"""Stars of a simulated field: the work of making one grows with their square."""


def prepare(folder: Path, objects: int) -> tuple[Path, Path]:
    """Return a store of so many objects, and a cube with cutouts of them all."""
    store, cube = folder / "store", folder / "cube.zarr"
    if cube.exists():
        return store, cube
    few = make_sky(SkySpec(seed=3, fields=1, stars_per_field=64, epochs=1, field_radius_deg=0.03))
    write_tables(few, folder / "few")
    add_images(few, folder / "few")
    fields = -(-objects // FIELD_STARS)
    many = SkySpec(seed=4, fields=fields, stars_per_field=objects // fields, epochs=2, missing_fraction=0.0, field_radius_deg=0.5)
    write_tables(make_sky(many), folder / "many")
    survey = scalable.open_survey(folder / "many/survey.yaml")
    small = survey.model_copy(update={"store": survey.store.model_copy(update={"leaf_mb": LEAF_MB})})
    ids = scalable.ingest(small, into=store).objects.select("object_id").compute()["object_id"].to_numpy()
    # In several leaves, so that both workers get some.
    little = scalable.open_survey(folder / "few/survey.yaml")
    little = little.model_copy(update={"store": little.store.model_copy(update={"leaf_mb": 0.03})})
    seen = scalable.ingest(little, into=folder / "few-store").objects.compute()
    own = scalable.stack_images(little, seen, size=SIZE).compute()
    scalable.write_cube(own.chunk({"object": 256}), folder / "few.zarr")
    # Lazily: all of them together are larger than this machine's memory too.
    rounds = [own.chunk()] * -(-len(ids) // own.sizes["object"])
    dealt = xr.concat(rounds, "object", data_vars="minimal", coords="minimal", compat="override", join="override")
    dealt = dealt.isel(object=slice(len(ids))).chunk({"object": 256})
    scalable.write_cube(dealt.assign({"object_id": ("object", ids, own["object_id"].attrs)}), cube)
    return store, cube


def peak_mb() -> float:
    """Return the most memory that this process ever held, its program and mapped pages included [MB]."""
    return peak_bytes() / 1e6


def main() -> None:
    """Prepare, release, and say what it took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--objects", type=int, default=40_000)
    parser.add_argument("--limit-mb", type=float, default=600)
    parser.add_argument("--carry", action="store_true", help="carry the cube's chunks instead of deflating them")
    args = parser.parse_args()
    store, cube = prepare(args.folder, args.objects)
    values = yaml.safe_load(RECIPE.read_text()) | {"shard_mb": SHARD_MB, "select": []}
    values |= {"codec": "carry" if args.carry else "deflate"}
    values["split"] |= {"order": 7, "guard_arcsec": 60}
    (args.folder / "release.yaml").write_text(yaml.safe_dump(values))
    recipe = scalable.open_recipe(args.folder / "release.yaml")
    collection, into = scalable.open_collection(store), args.folder / "release"
    shutil.rmtree(into, ignore_errors=True)
    dask.config.set({"distributed.worker.memory.spill": False, "distributed.worker.memory.pause": False})
    with Client(n_workers=2, threads_per_worker=1, host="127.0.0.1", memory_limit=int(args.limit_mb * 1e6)) as client:
        # Two small releases before, so that both workers have loaded and compiled all that a release needs.
        few, own = scalable.open_collection(args.folder / "few-store"), args.folder / "few.zarr"
        for name in ("first", "second"):
            shutil.rmtree(args.folder / name, ignore_errors=True)
            scalable.write_release(few, recipe, into=args.folder / name, cube=own)
        before = max(client.run(peak_mb).values())
        start = time.perf_counter()
        scalable.write_release(collection, recipe, into=into, cube=cube)
        seconds = time.perf_counter() - start
        peaks = list(client.run(peak_mb).values())
        died = len(peaks) != 2
    leaf = max(leaf.rows for leaf in collection.detections.leaves) * collection.detections.columns.row_bytes / 1e6
    sizes = [path.stat().st_size / 1e6 for path in (into / "data").rglob("Npix=*.h5") if "light" not in path.name]
    formula = before + 128 + 8 * leaf
    found = {
        "rows": collection.accounting["objects"], "release_mb": sum(sizes), "limit_mb": args.limit_mb,
        "times_the_limit": sum(sizes) / args.limit_mb, "program_mb": before, "largest_leaf_mb": leaf, "formula_mb": formula,
        "peak_mb": max(peaks), "shards": len(sizes), "largest_shard_mb": max(sizes), "seconds": seconds,
        "mb_per_s": sum(sizes) / seconds,
    }  # fmt: skip
    print(json.dumps({name: round(value, 1) for name, value in found.items()}, indent=1))
    if died or max(peaks) > formula:
        raise SystemExit("a worker held more than the formula says")


if __name__ == "__main__":
    main()
