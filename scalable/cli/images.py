"""The verb that stacks images around objects: cube."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

import scalable
from scalable.cli.console import QUARANTINED, connected, display, out, with_scheduler


@click.command()
@click.argument("survey", type=click.Path(path_type=Path))
@click.option("--objects", type=click.Path(path_type=Path), required=True, help="A table with ids and positions, or a store.")
@click.option("--out", "path", type=click.Path(path_type=Path), required=True, help="The cube to write.")
@click.option("--size", type=click.IntRange(1), help="Pixels on a side.")
@click.option("--arcsec", type=click.FloatRange(0, min_open=True), help="Side on the sky [arcsec].")
@click.option("--size-column", default="", help="Column of the objects with a length [arcsec] that the side is a multiple of.")
@click.option("--times", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="That multiple.")
@click.option("--bands", help="Bands with commas between; by default all.")
@click.option("--combine", type=click.Choice(["mean", "median", "ivar", "clipped"]), help="By default each exposure by itself.")
@click.option("--resampling", type=click.Choice(["native", "interp", "adaptive", "exact"]), default="native", show_default=True)
@click.option("--grid", help="With resampling: side of a pixel [arcsec], or a band whose pixels are taken.")
@with_scheduler
def cube(
    survey: Path,
    objects: Path,
    path: Path,
    size: int | None,
    arcsec: float | None,
    size_column: str,
    times: float,
    bands: str | None,
    combine: str | None,
    resampling: str,
    grid: str | None,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Stack images around objects into a Zarr cube, and write a page about it; resumes where it was interrupted."""
    described = scalable.open_survey(survey)
    with connected(scheduler, workers, default="threads"), display() as tell:
        lazy = scalable.stack_images(
            described,
            scalable.read_objects(objects, columns=[size_column] if size_column else []),
            size=scalable.CutoutSize(size, arcsec, size_column, times),
            bands=bands.split(",") if bands else None,
            combine=combine,
            resampling=resampling,
            grid=float(grid) if grid and grid.replace(".", "", 1).isdigit() else grid,
        )
        scalable.write_cube(lazy, path, on_done=lambda done, total: tell("cube", done, total, 0))
    found = scalable.open_cube(path)
    page = path.with_name(path.name + ".html")
    scalable.write_cube_page(found, page, opened_from=str(path))
    out.print(f"{dict(found.sizes)['object']:,} objects, {found.sizes['band']} bands, {found.sizes['exposures']:,} exposures")
    out.print(f"open the page      {page.absolute().as_uri()}", soft_wrap=True)
    out.print(f'open the cube      scalable.open_cube("{path}")', markup=False, soft_wrap=True)
    aside = json.loads(found.attrs["quarantine"])
    for entry in aside:
        out.print(f"set aside          {entry['file']}: {entry['reason']}", style="yellow", markup=False, soft_wrap=True)
    if aside:
        sys.exit(QUARANTINED)


VERBS = (cube,)
