"""The verbs of a release: release, verify, diff, to-fits."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

import scalable
from scalable.cli.console import connected, display, out, with_scheduler

_folder = click.Path(path_type=Path)


@click.command()
@click.argument("store", type=_folder)
@click.argument("recipe", type=_folder)
@click.option("--into", type=_folder, required=True, help="Folder to make.")
@click.option("--parent", type=_folder, help="The release that this one follows: it decides the version.")
@click.option("--cube", type=_folder, help="Cutouts of the objects, for a recipe with images.")
@click.option("--model", type=_folder, help="Mixture to draw from, for a recipe that simulates rows.")
@click.option("--dry-run", is_flag=True, help="Check store and recipe, say what would be released; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_scheduler
def release(
    store: Path,
    recipe: Path,
    into: Path,
    parent: Path | None,
    cube: Path | None,
    model: Path | None,
    dry_run: bool,
    as_json: bool,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Write an HDF5 data set of STORE that can prove itself, as RECIPE says."""
    opened = scalable.open_recipe(recipe)
    if dry_run:
        plan = scalable.plan_release(scalable.open_collection(store), opened, parent=parent, cube=cube, model=model)
        _show_plan(plan, as_json)
        return
    with connected(scheduler, workers), display() as tell:
        collection, given = scalable.open_collection(store), {"parent": parent, "cube": cube, "model": model}
        scalable.write_release(
            collection, opened, into=into, **given, on_done=lambda stage, done, total: tell(stage, done, total, 0)
        )
    found = scalable.open_release(into)
    facts = {key: found.manifest[key] for key in ("version", "accounting", "split", "content")}
    if as_json:
        click.echo(json.dumps(facts | {"path": str(into)}))
        return
    _show_release(found, into)


@click.command()
@click.argument("release", type=_folder)
@click.option("--level", type=click.IntRange(1, 4), default=2, show_default=True, help="1 checksums, 2 all that it says of "
              "itself, 3 sampled rows from the sources, 4 everything made again.")  # fmt: skip
@click.option("--sources", type=_folder, help="Folder of the source files, for levels 3 and 4.")
@click.option("--samples", type=click.IntRange(1), default=100, show_default=True, help="Rows that level 3 samples.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_scheduler
def verify(
    release: Path, level: int, sources: Path | None, samples: int, as_json: bool, scheduler: str | None, workers: int | None
) -> None:
    """Check a release; exit code 4 if anything is not as it should be."""
    if level > 2 and sources is None:
        raise click.UsageError("levels 3 and 4 read the sources: add --sources FOLDER")
    with connected(scheduler, workers):
        found = scalable.verify_release(release, level=level, sources=sources, samples=samples)
    if as_json:
        checked = [{"level": at, "check": name, "count": count} for at, name, count in found.checked]
        findings = [vars(finding) for finding in found.findings]
        click.echo(json.dumps({"passed": found.passed, "checked": checked, "findings": findings}))
    else:
        out.print(str(found), markup=False, soft_wrap=True)
    sys.exit(found.exit_code)


@click.command()
@click.argument("old", type=_folder)
@click.argument("new", type=_folder)
@click.option("--json", "as_json", is_flag=True, help="For machines, with the rows.")
def diff(old: Path, new: Path, as_json: bool) -> None:
    """Compare two releases row by row."""
    found = scalable.diff_releases(old, new)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    out.print(f"{found.same:,} rows the same")
    for name in ("added", "removed", "changed"):
        rows = getattr(found, name)
        shown = "; ".join(" ".join(map(str, row.values())) for row in rows.slice(0, 10).to_pylist())
        out.print(f"{rows.num_rows:,} {name}" + (f": {shown}" if shown else ""), markup=False, soft_wrap=True)


@click.command(name="to-fits")
@click.argument("release", type=_folder)
@click.argument("into", type=_folder)
def to_fits(release: Path, into: Path) -> None:
    """Write back the source files that a release holds whole, and the raw headers of the others."""
    written = scalable.to_fits(release, into)
    whole = sum(path.suffix != ".hdr" for path in written)
    out.print(f"{whole} files bit for bit and headers of {len(written) - whole}: {into}", markup=False, soft_wrap=True)


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(plan))
        return
    rules = f"{len(plan['rules'])} rules ({', '.join(plan['rules'])})" if plan["rules"] else "no rule"
    out.print(f"{plan['rows_in']:,} rows in, {rules}; about {plan['shards']} shards", markup=False, soft_wrap=True)
    for name in ("columns", "light_curves", "images"):
        if plan[name]:
            out.print(f"{name.replace('_', ' ')}: {', '.join(plan[name])}", markup=False, soft_wrap=True)
    out.print(f"{plan['decoded_bytes'] / 1e6:,.1f} MB before compression; headers of {plan['sources']:,} source files")


def _show_release(release: Any, path: Path) -> None:
    """Say what was released, where everything is, and how to open it."""
    m = release.manifest
    books, split, rate = m["accounting"], m["split"], release.loader_rate()
    shard = path / m["shards"][0]["path"]
    balance = f"{books['in']:,} rows in = {books['released']:,} released + {books['rejected']:,} rejected"
    balance += f", and {books['simulated']:,} simulated beside them" if "simulated" in books else ""
    lines = [
        f"{balance}; version {release.version}",
        ", ".join(f"{count:,} {name}" for name, count in split["rows"].items()),
        f"within {split['guard_arcsec']:g} arcsec of another split: {split['leaks']} rows; "
        f"of a random split {split['random_leaks']}",
        f"{m['bytes_per_row']:,.0f} bytes a row; {rate['rows_per_second']:,.0f} rows/s, {rate['epoch_seconds']:.1f} s an epoch",
        f"data         {path / 'data'} ({len(m['shards'])} shards), index.parquet",
        f"about it     {path / 'README.txt'}, datasheet.json, croissant.json, provenance.h5, code/",
        f"check it     scalable verify {path} --level 2",
        f'open it      scalable.open_release("{path}").pandas()',
        f'with xarray  xarray.open_dataset("{shard}", engine="h5netcdf", phony_dims="access")',
    ]
    for line in lines:
        out.print(line, markup=False, soft_wrap=True)


VERBS = (release, verify, diff, to_fits)
