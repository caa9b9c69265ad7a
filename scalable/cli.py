"""`scalable <verb>`: parse, call one public function, show what it gave."""

from __future__ import annotations

import importlib
import json
import math
import os
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

import scalable
from scalable import cli_release
from scalable.errors import ClusterError, ColumnError, QueryError, ScalableError, SurveyError, nearest

FAULT, USAGE, QUARANTINED, INTERRUPTED = 1, 2, 3, 130

_LAZY = {
    "SkySpec": "scalable.synthetic.sky",
    "make_sky": "scalable.synthetic.sky",
    "write_tables": "scalable.synthetic.tables",
    "add_mixture": "scalable.synthetic.tables",
    "add_images": "scalable.synthetic.images",
    "add_release": "scalable.synthetic.tables",
    "WRITERS": "scalable.io.export",
    "input_bytes": "scalable.catalog.ingest",
    "model_at": "scalable.survey",
    "field_names": "scalable.survey",
    "is_remote": "scalable.survey",
    "set": "dask.config",
}
"""What a verb needs beyond the public names, loaded when the verb runs: `scalable --help` answers at once."""


def _lazy(name: str) -> Any:
    return getattr(importlib.import_module(_LAZY[name]), name)


console = Console(stderr=True, highlight=False)
out = Console(highlight=False)

SMALL_BYTES = 512 << 20
"""With less input than this, starting worker processes takes longer than the work: it is done in threads."""

SHOWN_PIXELS = 10

scheduler_options = [
    click.option(
        "--scheduler",
        metavar="ADDR",
        help="threads, processes, or tcp://HOST:PORT of a Dask scheduler; without it, by size.",
    ),
    click.option("--workers", type=click.IntRange(1), help="Worker processes of the local cluster."),
]


def _place(text: str) -> Path | str:
    """Return the path, or the URL, that was typed."""
    return text if _lazy("is_remote")(text) else Path(text)


store_option = click.option("--store", type=_place, metavar="PATH", default="out", show_default=True, help="The store.")
into_option = click.option("--into", type=_place, metavar="PATH", default="out", show_default=True, help="The store, or its URL.")


class Main(click.Group):
    """The verbs, grouped by what one wants, and errors without a traceback."""

    groups = {
        "Data": ("demo", "init", "check", "plan", "run", "append", "query", "cube"),
        "Release": ("release", "verify", "diff", "to-fits"),
        "Learn": ("train", "evaluate", "predict", "sample"),
        "Store": ("log", "clean"),
        "Help": ("help",),
    }

    def list_commands(self, ctx: click.Context) -> list[str]:
        """List the verbs in the order of work."""
        return [name for names in self.groups.values() for name in names]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the verbs by group."""
        for group, names in self.groups.items():
            with formatter.section(group):
                formatter.write_dl([(name, self.commands[name].get_short_help_str(80)) for name in names])

    def invoke(self, ctx: click.Context) -> Any:
        """Turn errors into a message and an exit code."""
        try:
            return super().invoke(ctx)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except KeyboardInterrupt:
            console.print("interrupted; run the same command again to go on where it stopped")
            sys.exit(INTERRUPTED)
        except Exception as error:
            if ctx.params.get("debug"):
                raise
            console.print("[bold red]error:[/] ", end="")
            # Not wrapped: a path in it is to be copied.
            message = str(error) if isinstance(error, (ScalableError, OSError)) else _fault(error)
            console.print(message, markup=False, soft_wrap=True)
            if isinstance(error, ClusterError):
                console.print(f"go on with: scalable {shlex.join(sys.argv[1:])}", markup=False, soft_wrap=True)
            sys.exit(USAGE if isinstance(error, (SurveyError, QueryError, ColumnError)) else FAULT)


def _fault(error: Exception) -> str:
    """Return the message for an error that is no fault of the user, and keep its traceback in a file."""
    log = Path(tempfile.gettempdir()) / f"scalable-{os.getpid()}.log"
    log.write_text(traceback.format_exc())
    return f"{type(error).__name__}: {error}\nthis is our fault; please report it with {log} (--debug shows the same here)"


@click.group(
    cls=Main,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="""\b
Examples:
  scalable demo
  scalable run survey.yaml --into out
  scalable query "SELECT band, count(*) AS n FROM detections GROUP BY band" --store out""",
)
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.version_option(scalable.__version__, prog_name="scalable")
def main(debug: bool) -> None:
    """Process the catalogues of a large sky survey: ingest, join, measure, ask."""


def with_scheduler(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where tasks run."""
    for option in reversed(scheduler_options):
        command = option(command)
    return command


@main.command()
@click.argument("folder", default="demo", type=click.Path(path_type=Path))
@click.option("--seed", default=1, show_default=True, help="Seed of the sky.")
@with_scheduler
def demo(folder: Path, seed: int, scheduler: str | None, workers: int | None) -> None:
    """Make a small synthetic sky in FOLDER and run everything on it; about a minute, offline."""
    survey_file = folder / "survey.yaml"
    if not survey_file.exists():
        console.print(f"making a synthetic sky from seed {seed} in {folder}")
        sky = _lazy("make_sky")(_lazy("SkySpec")(seed=seed))
        _lazy("write_tables")(sky, folder)
        _lazy("add_images")(sky, folder)
        _lazy("add_mixture")(folder)
        _lazy("add_release")(folder)
    _run(survey_file, folder / "store", None, scheduler, workers, as_json=False)


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--into", type=click.Path(path_type=Path), default=Path("survey.yaml"), show_default=True, help="The description.")
@click.option("--force", is_flag=True, help="Overwrite a description and an index that are there.")
def init(files: tuple[Path, ...], into: Path, force: bool) -> None:
    """Write a commented first survey.yaml, and observations.csv beside it, from the headers of FILES."""
    draft = scalable.draft_survey(files, into=into, force=force)
    out.print(f"{draft.path} and {draft.index}: {draft.files} files, {draft.columns} columns", markup=False, soft_wrap=True)
    if draft.to_fill:
        out.print(f"fill in {len(draft.to_fill)} lines, then run: scalable check {into}", markup=False, soft_wrap=True)
        for line in draft.to_fill:
            out.print(f"  {line}", markup=False, soft_wrap=True)
    else:
        out.print(f"roles and bands are guesses: look at them, then run: scalable check {into}", markup=False, soft_wrap=True)


@main.command()
@click.argument("survey", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def check(survey: Path, as_json: bool) -> None:
    """Read headers and a sample only: what would be read, and what contradicts itself."""
    found = _check(survey)
    if as_json:
        click.echo(json.dumps(_check_values(found)))
    else:
        _show_check(found)


def _check(survey: Path) -> Any:
    with _display() as tell:
        return scalable.check(scalable.open_survey(survey), on_file=lambda done, total: tell("check", done, total, 0))


def _check_values(found: Any) -> dict[str, Any]:
    findings = [vars(finding) for finding in found.findings]
    return {"files": found.files, "rows": found.rows, "bytes": found.size_bytes, "findings": findings}


def _show_check(found: Any) -> None:
    out.print(f"{found.files} files, {found.rows:,} rows, {found.size_bytes / 1e6:,.1f} MB, {len(found.schema)} columns")
    for finding in found.findings:
        out.print(f"[yellow]{finding.name}[/]", end="")
        out.print(str(finding).removeprefix(finding.name), markup=False)
    if not found.findings:
        out.print("no contradiction found")


@main.command()
@click.argument("survey", type=click.Path(path_type=Path))
@into_option
@click.option("--workers", type=click.IntRange(1), help="Workers on this machine; by default one a core.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def plan(survey: Path, into: Path | str, workers: int | None, as_json: bool) -> None:
    """Predict rows, tiling, tasks, memory and disk of a run from headers and a sample; write nothing."""
    found = _plan(survey, into, workers)
    if as_json:
        click.echo(json.dumps(asdict(found)))
    else:
        _show_plan(found)


def _plan(survey: Path, into: Path | str, workers: int | None) -> Any:
    described = scalable.open_survey(survey)
    with _display() as tell:
        return scalable.plan_ingest(
            described, into=into, workers=workers, on_file=lambda done, total: tell("plan", done, total, 0)
        )


def _show_plan(found: Any) -> None:
    tiling = ", ".join(f"{count} of order {order}" for order, count in found.leaves.items())
    basis = "as the headers say" if found.exact else "scaled from one counted file by size"
    sample = f"from {found.sampled_rows:,} positions of {found.sampled_files} files"
    sizes = {name: f"{getattr(found, name) / 1e6:,.0f} MB" for name in vars(found) if name.endswith("_bytes")}
    lines = {
        "input": f"{found.files} files, {sizes['input_bytes']}; {found.unusable} would be set aside",
        "rows": f"{found.rows:,}, {basis}",
        "leaves": f"about {sum(found.leaves.values())} ({tiling}), {sample}",
        "tasks": f"{found.batches} to read, about {found.reduce_tasks} to write",
        "memory": f"{sizes['worker_bytes']} a worker, {found.workers} workers; {sizes['free_memory_bytes']} free",
        "disk": f"{sizes['runs_bytes']} while it runs and {sizes['version_bytes']} to stay; {sizes['free_disk_bytes']} free",
    }
    for name, line in lines.items():
        out.print(f"{name:<8}{line}", markup=False, soft_wrap=True)
    for warning in found.warnings:
        out.print(f"warning {warning}", style="yellow", markup=False, soft_wrap=True)


@main.command()
@click.argument("survey", type=click.Path(path_type=Path))
@into_option
@click.option("--only", metavar="STAGE", help="Run one stage: check, ingest, products or report.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="Where a store for a URL is built; without it, in the user's cache."
)
@click.option("--dry-run", is_flag=True, help="Say what would be read and needed; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_scheduler
def run(
    survey: Path,
    into: Path | str,
    only: str | None,
    work: Path | None,
    dry_run: bool,
    as_json: bool,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Ingest a survey, compute its products, and write one page about it; resumes where it was interrupted."""
    if dry_run:
        checked = _check(survey)
        if as_json:
            click.echo(json.dumps(_check_values(checked) | {"plan": asdict(_plan(survey, into, workers))}))
        else:
            _show_check(checked)
            _show_plan(_plan(survey, into, workers))
        return
    _run(survey, into, only, scheduler, workers, as_json=as_json, work=work)


def _sized(survey: Path, scheduler: str | None, workers: int | None) -> tuple[Any, str | None]:
    """Open a survey and choose threads for a small one, where nothing else is asked for."""
    described = scalable.open_survey(survey)
    small = scheduler is None and workers is None and _lazy("input_bytes")(described) < SMALL_BYTES
    return described, "threads" if small else scheduler


def _run(
    survey: Path,
    into: Path | str,
    only: str | None,
    scheduler: str | None,
    workers: int | None,
    *,
    as_json: bool,
    work: Path | None = None,
) -> None:
    described, scheduler = _sized(survey, scheduler, workers)
    with _connected(scheduler, workers), _display() as tell:
        report = scalable.run(described, into=into, only=only, progress=tell, work=work)
    for finding in report.findings:
        console.print(f"{finding.name}: {finding.message}", style="yellow", markup=False)
    if as_json:
        products = [{"name": p.name, "path": str(p.path), "rows": p.rows, "bytes": p.size_bytes} for p in report.products]
        accounting = report.collection.accounting if report.collection else None
        click.echo(
            json.dumps({"accounting": accounting, "products": products, "left_out": report.left_out, "seconds": report.seconds})
        )
    else:
        _summary(report)
    if report.quarantined:
        sys.exit(QUARANTINED)


@main.command()
@click.argument("survey", type=click.Path(path_type=Path))
@click.option("--into", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="The store.")
@click.option("--dry-run", is_flag=True, help="Say which files would be added and which leaves they touch; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_scheduler
def append(survey: Path, into: Path, dry_run: bool, as_json: bool, scheduler: str | None, workers: int | None) -> None:
    """Add a survey's new files to a store in a new version; what they do not touch is linked, not copied."""
    described, scheduler = _sized(survey, scheduler, workers)
    if dry_run:
        with _connected(scheduler, workers), _display() as tell:
            found = scalable.plan_append(described, into=into, on_file=lambda done, total: tell("read", done, total, 0))
        _show_addition(found, as_json=as_json)
        return
    told: set[str] = set()
    with _connected(scheduler, workers), _display() as tell:

        def note(stage: str, *counts: int) -> None:
            told.add(stage)
            tell(stage, *counts)

        collection = scalable.append(described, into=into, progress=note)
    count = collection.accounting
    # Without a stage nothing was new, and the version is the one that was there.
    added = count["stored"] - collection.manifest["parent"]["stored"] if told else 0
    leaves, linked = collection.leaves_linked() if told else (0, 0)
    if as_json:
        answer = {"version": collection.path.name, "added": added, "leaves_written": leaves - linked, "leaves_linked": linked}
        click.echo(json.dumps(answer | {"quarantined": count["quarantined"]}))
    elif not told:
        out.print(f"nothing to add to {collection.path}", markup=False, soft_wrap=True)
    else:
        done = f"{added:,} rows added; {leaves - linked:,} leaves written, {linked:,} linked"
        out.print(f"{done}: {collection.path}", markup=False, soft_wrap=True)
        out.print(f"products and page  scalable run {survey} --into {into}", markup=False, soft_wrap=True)
    if count["quarantined"]:
        if not as_json:
            _show_quarantined(collection)
        sys.exit(QUARANTINED)


def _show_addition(found: Any, *, as_json: bool) -> None:
    touched = [f"{pixel.order}/{pixel.index}" for pixel in found.touched]
    if as_json:
        click.echo(json.dumps(asdict(found) | {"touched": touched}))
        return
    out.print(f"files to add: {len(found.files)}, rows: {sum(found.files.values()):,}; to set aside: {len(found.unusable)}")
    for path, rows in found.files.items():
        out.print(f"  {path}  {rows:,} rows", markup=False, soft_wrap=True)
    for path, reason in found.unusable.items():
        out.print(f"  {path}  set aside: {reason}", markup=False, soft_wrap=True)
    more = f": {', '.join(touched[:SHOWN_PIXELS])}" + (", ..." if len(touched) > SHOWN_PIXELS else "") if touched else ""
    out.print(f"at most {len(touched)} of {found.leaves} leaves written anew{more}", markup=False, soft_wrap=True)


def _show_quarantined(collection: Any) -> None:
    out.print(f"[yellow]{collection.accounting['quarantined']} files set aside, see[/] {collection.path / 'quarantine.csv'}")


def _summary(report: Any) -> None:
    collection = report.collection
    if collection is not None:
        count = collection.accounting
        out.print(
            f"{count['read']:,} rows read = {count['stored']:,} stored + {count['rejected']:,} rejected; "
            f"{count['files'] - count['quarantined']} of {count['files']} files"
            + (f"; {count['objects']:,} objects" if collection.has_positions else "")
        )
        if count["quarantined"]:
            _show_quarantined(collection)
    if report.how:
        out.print(report.how, style="dim", markup=False, soft_wrap=True)
    if report.skipped:
        out.print(f"there already: {', '.join(report.skipped)}", style="dim")
    for name, why in report.left_out.items():
        out.print(f"left out           {name}: {why}", style="yellow", markup=False, soft_wrap=True)
    if report.products:
        table = Table("product", Column("rows", justify="right"), Column("MB", justify="right"), Column("path", overflow="fold"))
        for product in report.products:
            rows = "" if product.rows is None else f"{product.rows:,}"
            here = product.path.is_relative_to(Path.cwd())
            path = product.path.relative_to(Path.cwd()) if here else product.path
            table.add_row(product.name, rows, f"{product.size_bytes / 1e6:,.1f}", str(path))
        out.print(table)
        out.print(f"digest of the survey {collection.manifest['survey_digest'][:16]}", style="dim")
    if report.url:
        out.print(f"published at       {report.url}", soft_wrap=True, markup=False)
    if report.page:
        out.print(f"\nopen the page      {report.page.as_uri()}", soft_wrap=True)
        view = "objects" if collection.has_positions else "rows"
        out.print(
            f'ask a question     scalable query "SELECT count(*) FROM {view}" --store {report.url or report.store}',
            soft_wrap=True,
        )
        if collection.has_positions:
            out.print(f'with LSDB          lsdb.open_catalog("{collection.path / view}")', soft_wrap=True)
        out.print(f'with pandas        pandas.read_parquet("{collection.path / "observations.parquet"}")', soft_wrap=True)
    out.print("seconds            " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items()))


@main.command()
@click.argument("statement", default="")
@store_option
@click.option(
    "-o", "--to", type=click.Path(path_type=Path), help="Write the answer to a .parquet, .fits, .vot, .ecsv or .csv file."
)
@click.option("--force", is_flag=True, help="Replace a file that is there.")
@click.option("--views", is_flag=True, help="List what can be asked: views, columns, units.")
@click.option("--rows", default=50, show_default=True, help="Rows to show.")
@with_scheduler
def query(
    statement: str,
    store: Path | str,
    to: Path | None,
    force: bool,
    views: bool,
    rows: int,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Ask a store in SQL: objects, detections, observations, and one view per file; EXPLAIN SELECT … says how it is done."""
    endings = _lazy("WRITERS")
    if to is not None and to.suffix.lower() not in endings:
        raise click.BadParameter(f"{to.suffix or 'no ending'}: choose {', '.join(endings)}", param_hint="--to")
    if not statement.strip() and not views:
        raise click.UsageError("give a SELECT statement, or --views to see what can be asked")
    collection = scalable.open_collection(store)
    if views:
        _show_views(scalable.list_views(collection))
        return
    if statement.split(None, 1)[0].upper() == "EXPLAIN":
        out.print(str(scalable.explain_sql(collection, statement)), markup=False, soft_wrap=True)
        return
    answer = scalable.sql(collection, statement)
    with _connected(scheduler, workers, default="threads"):
        if to is not None:
            written = scalable.write_table(answer, to, overwrite=force)
            console.print(f"{written:,} rows written to {to}", markup=False, soft_wrap=True)
        else:
            _show_rows(answer.compute(), rows)


def _show_rows(answer: Any, rows: int) -> None:
    units = [(field.metadata or {}).get(b"unit", b"").decode() for field in answer.schema]
    table = Table(*(f"{name} [{unit}]".replace("[]", "").strip() for name, unit in zip(answer.column_names, units, strict=True)))
    for row in answer.slice(0, rows).to_pylist():
        table.add_row(*("null" if value is None else str(value) for value in row.values()))
    out.print(table, markup=False)
    if answer.num_rows > rows:
        out.print(f"{answer.num_rows - rows:,} more rows; write them with --to answer.parquet")


def _show_views(views: Any) -> None:
    shown: dict[tuple[str, ...], str] = {}
    for view in views:
        rows = "" if view.rows is None else f", {view.rows:,} rows"
        out.print(f"{view.name}: one row per {view.row}{rows}", markup=False, soft_wrap=True)
        names = tuple(view.columns.names)
        if names in shown:
            out.print(f"  columns of {shown[names]}")
            continue
        shown[names] = view.name
        table = Table("column", "type", "unit", "description", box=None, pad_edge=False, show_header=False)
        for column in view.columns:
            table.add_row(f"  {column.name}", str(column.dtype), column.unit, column.description)
        out.print(table, markup=False)


@main.command()
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
    with _connected(scheduler, workers, default="threads"), _display() as tell:
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


def _listed(_: Any, __: Any, text: str | None) -> tuple[str, ...]:
    """Split a comma-separated list."""
    return tuple(part.strip() for part in text.split(",") if part.strip()) if text else ()


def _bins(_: Any, __: Any, texts: tuple[str, ...]) -> dict[str, list[float]]:
    """Read NAME=EDGE,EDGE,... options."""
    found = {}
    for text in texts:
        name, _, edges = text.partition("=")
        try:
            found[name] = [float(edge) for edge in edges.split(",")]
        except ValueError:
            raise click.BadParameter(f"{text!r} is not NAME=EDGE,EDGE,...") from None
        if len(found[name]) < 2 or sorted(set(found[name])) != found[name]:
            raise click.BadParameter(f"{text!r}: give two edges or more, ascending")
    return found


def _missing(_: Any, __: Any, texts: tuple[str, ...]) -> dict[str, str | float]:
    """Read STATE=VALUE options."""
    found: dict[str, str | float] = {}
    for text in texts:
        state, _, value = text.partition("=")
        try:
            found[state] = value if value in ("drop", "keep") else float(value)
        except ValueError:
            raise click.BadParameter(f"{text!r} is not STATE=NUMBER, STATE=drop or STATE=keep") from None
    return found


def _edges(_: Any, __: Any, text: str | None) -> list[float]:
    """Read LOW,HIGH,BINS as the edges of so many equal bins."""
    if not text:
        return []
    try:
        low, high, bins = (float(part) for part in text.split(","))
        count = int(bins)
    except ValueError:
        raise click.BadParameter(f"{text!r} is not LOW,HIGH,BINS") from None
    if not (low < high and 1 < count == bins):
        raise click.BadParameter(f"{text!r}: give a range and a whole number of bins, two or more")
    return [low + (high - low) * n / count for n in range(count + 1)]


def _rules(survey: Path | None) -> dict[str, Any]:
    return dict(scalable.open_survey(survey).columns) if survey else {}


data_argument = click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
split_option = click.option("--split", default="", metavar="NAME", help="Of a release: the rows of this split alone.")
rules_option = click.option(
    "--survey", type=click.Path(path_type=Path), help="Survey description whose null rules and units the columns of files have."
)


@main.command()
@data_argument
@click.option(
    "--magnitudes", callback=_listed, metavar="A,B,...", help="Columns in the order of the bands; neighbours make colours."
)
@click.option("--reference", default="", metavar="A", help="One of them that is a feature itself.")
@click.option("--others", callback=_listed, metavar="A,B,...", help="Further columns, taken as they are.")
@click.option(
    "--missing",
    callback=_missing,
    multiple=True,
    metavar="STATE=VALUE",
    help="What stands for values of a state, such as non_detection=28; drop leaves the row out, keep takes what was imputed.",
)
@click.option("--target", default="", metavar="COLUMN", help="Redshifts to learn; without it a mixture is fitted.")
@click.option("--estimator", default="boosting", show_default=True, help="linear, ridge, lasso, boosting, forest, network, ...")
@click.option("--pdf", callback=_edges, metavar="LOW,HIGH,BINS", help="Bins of the p(z) that a network or a forest is to give.")
@click.option("--components", callback=_listed, metavar="K,K,...", help="Of a mixture; the least BIC is taken. [default: 5]")
@click.option("--test", multiple=True, type=click.Path(path_type=Path, exists=True), help="Files to judge on; repeat for more.")
@click.option("--compare", "compare_all", is_flag=True, help="Fit every estimator, in several ways, and judge each on --test.")
@click.option("--folds", default=5, show_default=True, help="Folds that the error is measured on; 0 for none.")
@click.option("--key", default="", help="Column that identifies a row.")
@click.option("--sky-order", type=int, help="Keep pixels of this HEALPix order together in folds.")
@click.option("--seed", default=0, show_default=True)
@split_option
@rules_option
@click.option("--model", type=click.Path(path_type=Path), default=Path("model.h5"), show_default=True, help="The file to write.")
@click.option("--page", type=click.Path(path_type=Path), help="Write a page with plots.")
@with_scheduler
def train(
    data: tuple[Path, ...],
    magnitudes: tuple[str, ...],
    reference: str,
    others: tuple[str, ...],
    missing: dict[str, str | float],
    target: str,
    estimator: str,
    pdf: list[float],
    components: tuple[str, ...],
    test: tuple[Path, ...],
    compare_all: bool,
    folds: int,
    key: str,
    sky_order: int | None,
    seed: int,
    split: str,
    survey: Path | None,
    model: Path,
    page: Path | None,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Teach a model redshifts, or fit a mixture, from a store, a catalogue, a release or files (DATA) of any size."""
    if split and test:
        raise click.UsageError("--split is of the rows to learn from: judge the model with scalable evaluate --split test")
    features = scalable.Features(magnitudes, reference=reference, others=others, missing={"imputed": "keep", **missing})
    how: dict[str, Any] = {"key": key, "sky_order": sky_order, "rules": _rules(survey), "split": split}
    table = scalable.open_rows(data)
    with _connected(scheduler, workers, default="threads"):
        if compare_all:
            if not (target and test):
                raise click.UsageError("--compare needs --target and --test")
            whole = replace(features, missing={})
            tables = (table, scalable.open_rows(test))
            train, judge = (scalable.batches_of(side, features, target=target, **how) for side in tables)
            sides = [scalable.batches_of(side, whole, target=target, **how) for side in tables]
            variants = scalable.usual_variants(train, judge)
            if sides[0].count() < train.count():
                variants.append(scalable.Variant("taught and judged on whole rows", *sides))
            _show_comparison(scalable.compare(train, judge, features, variants=variants, seed=seed))
            return
        if target:
            learner = scalable.estimator_of(estimator, **({"bins": pdf} if pdf else {}))
            found = scalable.fit_photoz(table, features, target=target, estimator=learner, folds=folds, seed=seed, **how)
            _show_metrics(found)
        else:
            counts = [int(text) for text in components or ("5",)]
            found = scalable.fit_mixture(table, features, components=counts, seed=seed, **how)
            _show_criteria(found)
        found.save(model)
        if page is not None:
            scalable.write_training_page(page, found, table, test=scalable.open_rows(test) if test else None, **how)
    out.print(repr(found), markup=False, soft_wrap=True)
    verb = f"scalable predict {model} DATA --to OUT" if target else f"scalable sample {model} --rows 100000 --to sample.parquet"
    out.print(f"saved in {model}; use it with: {verb}", markup=False, soft_wrap=True)


def _show_metrics(model: Any) -> None:
    found = model.about["metrics"]
    table = Table("metric", "training rows", *(["unseen folds", "spread"] if found["folds"] else []))
    for name, value in found["train"].items():
        unseen = [fold[name] for fold in found["folds"]]
        mean = sum(unseen) / len(unseen) if unseen else 0.0
        spread = (sum((one - mean) ** 2 for one in unseen) / max(len(unseen) - 1, 1)) ** 0.5
        table.add_row(name, f"{value:.5f}", *([f"{mean:.5f}", f"{spread:.5f}"] if unseen else []))
    out.print(table)


def _show_criteria(model: Any) -> None:
    table = Table("components", "log likelihood", "held out", "BIC", "AIC", "passes")
    for row in model.about["criteria"]:
        held = "" if row["held_out"] is None else f"{row['held_out']:.4f}"
        numbers = (f"{row['train']:.4f}", held, f"{row['bic']:,.0f}", f"{row['aic']:,.0f}", str(row["passes"]))
        table.add_row(str(row["components"]), *numbers)
    out.print(table)


def _show_comparison(found: Any) -> None:
    table = Table("estimator", "variant", "rows", "train", "test", "best", "seconds", "chosen", "note")
    for row in found.to_pylist():
        numbers = [f"{row['rows']:,}", *(f"{row[name]:.4f}" for name in ("train", "test", "test_best"))]
        table.add_row(row["estimator"], row["variant"], *numbers, f"{row['seconds']:.1f}", row["chosen"], row["note"])
    out.print(table)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@data_argument
@click.option("--bins", multiple=True, callback=_bins, metavar="NAME=A,B,...", help="Edges of bins of a feature or the target.")
@split_option
@rules_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_scheduler
def evaluate(
    model: Path,
    data: tuple[Path, ...],
    bins: dict[str, list[float]],
    split: str,
    survey: Path | None,
    as_json: bool,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Measure MODEL on rows with known redshifts: every metric by its id, overall and in bins, and those of its p(z)."""
    judged, table, how = scalable.open_model(model), scalable.open_rows(data), {"rules": _rules(survey), "split": split}
    with _connected(scheduler, workers, default="threads"):
        found = scalable.evaluate(judged, table, bins=bins, **how).to_pylist()
        if getattr(judged.estimator, "bins", None) is not None:
            densities = scalable.evaluate_pdf(judged, table, **how)
            found = [{**row, **{name: math.nan if row["by"] else value for name, value in densities.items()}} for row in found]
    if as_json:
        click.echo(json.dumps([{name: None if value != value else value for name, value in row.items()} for row in found]))
        return
    heads = ["all" if not row["by"] else f"{row['by']}\n{row['low']:g} to {row['high']:g}" for row in found]
    table = Table("metric", *heads)
    for name in found[0]:
        if name not in ("by", "low", "high"):
            cells = ("" if math.isnan(row[name]) else f"{row[name]:,}" if name == "rows" else f"{row[name]:.5f}" for row in found)
            table.add_row(name, *cells)
    out.print(table)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@data_argument
@click.option("--to", type=click.Path(path_type=Path), required=True, help="A catalogue to write; for files, a .parquet file.")
@click.option("--pdf", is_flag=True, help="Add the probability of each bin, from a model that gives one.")
@rules_option
@with_scheduler
def predict(
    model: Path, data: tuple[Path, ...], to: Path, pdf: bool, survey: Path | None, scheduler: str | None, workers: int | None
) -> None:
    """Predict with MODEL for every row of a store, a catalogue or files (DATA)."""
    found, table = scalable.open_model(model), scalable.open_rows(data)
    with _connected(scheduler, workers, default="threads"):
        if isinstance(table, list):
            rows = scalable.predict_files(table, found, to, pdf=pdf, rules=_rules(survey))
        else:
            rows = scalable.write_catalog(scalable.predict(table, found, pdf=pdf), to).rows
    out.print(f"{rows:,} rows written to {to}", markup=False, soft_wrap=True)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--rows", default=100_000, show_default=True, type=click.IntRange(1))
@click.option("--seed", default=0, show_default=True)
@click.option("--to", type=click.Path(path_type=Path), required=True, help="The .parquet file to write.")
def sample(model: Path, rows: int, seed: int, to: Path) -> None:
    """Draw rows from the mixture in MODEL; the same rows for the same seed, whatever the machine's size."""
    drawn = scalable.write_sample(scalable.sample_mixture(scalable.open_model(model), rows, seed=seed), to)
    out.print(f"{drawn:,} rows written to {to}", markup=False, soft_wrap=True)


@main.command("log")
@store_option
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def log_versions(store: Path | str, as_json: bool) -> None:
    """List the versions of a store, newest first, and what each holds and added."""
    versions = scalable.list_versions(store)
    if as_json:
        click.echo(json.dumps([asdict(version) for version in versions]))
        return
    numbers = (
        Column(name, justify="right", overflow="fold") for name in ("rows", "rows\nadded", "objects", "files", "MB\nadded")
    )
    table = Table("version", "date (UTC)", *numbers, "run", box=None, pad_edge=False)
    for version in versions:
        number = f"{version.number:04d}{' current' if version.current else ''}"
        files = f"{version.files - version.quarantined} of {version.files}" if version.quarantined else str(version.files)
        sizes = (f"{version.stored:,}", f"{version.added:,}", f"{version.objects:,}", files, f"{version.added_bytes / 1e6:,.1f}")
        table.add_row(number, version.date[:16], *sizes, version.run_id[:8])
    out.print(table)


@main.command()
@store_option
@click.option("--keep", default=1, show_default=True, type=click.IntRange(1), help="Newest versions to keep.")
@click.option("--dry-run", is_flag=True, help="Say what would go; remove nothing.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def clean(store: Path | str, keep: int, dry_run: bool, as_json: bool) -> None:
    """Remove old versions of a store with their products; the current one always stays."""
    found = scalable.expire_versions(store, keep=keep, dry_run=dry_run)
    if as_json:
        click.echo(json.dumps(asdict(found) | {"dry_run": dry_run}))
        return
    numbers = ", ".join(f"{number:04d}" for number in found.versions) or "none"
    said = ("would be removed", "would come free") if dry_run else ("removed", "came free")
    out.print(f"versions {said[0]}: {numbers}; {found.freed_bytes / 1e6:,.1f} MB {said[1]}")


@main.command("help")
@click.argument("field", default="")
def explain(field: str) -> None:
    """Explain one field of survey.yaml, for example: scalable help columns.Ra.unit."""
    location = tuple(part for part in field.split(".") if part)
    part = _lazy("model_at")(location)
    if part is None:
        parent = _lazy("model_at")(location[:-1])
        fields = {info.alias or name: info for name, info in parent.model_fields.items()} if parent else {}
        if location[-1] not in fields:
            raise SurveyError(f"no field {field!r}; {nearest(location[-1], _lazy('field_names')(location[:-1]))}")
        out.print(f"{field}: {fields[location[-1]].description or 'see the example in the README'}", markup=False)
        return
    out.print((part.__doc__ or "").strip(), markup=False)
    for name, info in part.model_fields.items():
        needed = " (required)" if info.is_required() else ""
        out.print(f"  {info.alias or name}{needed}: {info.description or ''}", markup=False)


@contextmanager
def _connected(scheduler: str | None, workers: int | None, default: str = "") -> Iterator[None]:
    """Run tasks in this process, on a cluster at an address, or on a cluster of this machine."""
    wanted = scheduler or default
    if wanted in ("threads", "processes", "sync"):
        with _lazy("set")(scheduler=wanted):
            yield
        return
    with scalable.connect(wanted or None, workers=workers) as client:
        port = client.dashboard_link.rsplit(":", 1)[-1].split("/")[0]
        console.print(f"dashboard {client.dashboard_link} (from afar: ssh -L {port}:127.0.0.1:{port} HOST)", style="dim")
        yield


@contextmanager
def _display() -> Iterator[Callable[[str, int, int, int], None]]:
    """Show progress: bars on a terminal, a plain line now and then elsewhere."""
    bars = Progress(
        TextColumn("{task.description:<9}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(), TimeRemainingColumn(), console=console,
    )  # fmt: skip
    tasks: dict[str, Any] = {}
    started: dict[str, float] = {}
    said: dict[str, tuple[float, float]] = {}

    def tell(stage: str, done: int, total: int, size: int) -> None:
        begun = started.setdefault(stage, time.monotonic())
        seconds = time.monotonic() - begun
        rate = "" if not done or seconds < 0.1 else f"{size / 1e6 / seconds:,.0f} MB/s" if size else f"{done / seconds:,.1f}/s"
        if console.is_terminal:
            task = tasks.get(stage)
            if task is None:
                task = tasks[stage] = bars.add_task(stage, total=total, rate="")
            bars.update(task, completed=done, total=total, rate=rate)
            return
        share, at = said.get(stage, (-1.0, begun))
        now = done / max(total, 1)
        if now - share >= 0.05 and (now == 1 or seconds > 2) or time.monotonic() - at >= 60:
            said[stage] = (now, time.monotonic())
            left = f", {seconds / now - seconds:.0f} s left" if 0 < now < 1 else f" in {seconds:.1f} s"
            console.print(f"{stage}: {done} of {total} {rate}{left}", markup=False)

    with bars if console.is_terminal else nullcontext():
        yield tell


cli_release.register(main, with_scheduler, _connected, _display)

if __name__ == "__main__":
    main()
