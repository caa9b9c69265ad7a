"""`scalable <verb>`: parse, call one public function, show what it gave."""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column, Table

import scalable
from scalable.errors import ColumnError, QueryError, ScalableError, SurveyError, nearest

FAULT, USAGE, QUARANTINED, INTERRUPTED = 1, 2, 3, 130

_LAZY = {
    "SkySpec": "scalable.synthetic.sky",
    "make_sky": "scalable.synthetic.sky",
    "write_tables": "scalable.synthetic.tables",
    "write_table": "scalable.io.export",
    "input_bytes": "scalable.catalog.ingest",
    "model_at": "scalable.survey",
    "field_names": "scalable.survey",
    "set": "dask.config",
}
"""What a verb needs beyond the public names, loaded when the verb runs: `scalable --help` answers at once."""


def _lazy(name: str) -> Any:
    return getattr(importlib.import_module(_LAZY[name]), name)


console = Console(stderr=True, highlight=False)
out = Console(highlight=False)

SMALL_BYTES = 512 << 20
"""With less input than this, starting worker processes takes longer than the work: it is done in threads."""

scheduler_options = [
    click.option(
        "--scheduler",
        metavar="ADDR",
        help="threads, processes, or tcp://HOST:PORT of a Dask scheduler; without it, by size.",
    ),
    click.option("--workers", type=click.IntRange(1), help="Worker processes of the local cluster."),
]


class Main(click.Group):
    """The verbs, grouped by what one wants, and errors without a traceback."""

    groups = {"Data": ("demo", "check", "run", "query"), "Help": ("help",)}

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
            console.print(str(error) if isinstance(error, (ScalableError, OSError)) else _fault(error), markup=False)
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
        _lazy("write_tables")(_lazy("make_sky")(_lazy("SkySpec")(seed=seed)), folder)
    _run(survey_file, folder / "store", None, scheduler, workers, as_json=False)


@main.command()
@click.argument("survey", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For machines.")
def check(survey: Path, as_json: bool) -> None:
    """Read headers and a sample only: what would be read, and what contradicts itself."""
    with _display() as tell:
        found = scalable.check(scalable.open_survey(survey), on_file=lambda done, total: tell("check", done, total, 0))
    if as_json:
        findings = [vars(finding) for finding in found.findings]
        click.echo(json.dumps({"files": found.files, "rows": found.rows, "bytes": found.size_bytes, "findings": findings}))
        return
    out.print(f"{found.files} files, {found.rows:,} rows, {found.size_bytes / 1e6:,.1f} MB, {len(found.schema)} columns")
    for finding in found.findings:
        out.print(f"[yellow]{finding.name}[/]", end="")
        out.print(str(finding).removeprefix(finding.name), markup=False)
    if not found.findings:
        out.print("no contradiction found")


@main.command()
@click.argument("survey", type=click.Path(path_type=Path))
@click.option("--into", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="The store.")
@click.option("--only", metavar="STAGE", help="Run one stage: check, ingest, products or report.")
@click.option("--dry-run", is_flag=True, help="Say what would be read; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_scheduler
@click.pass_context
def run(
    ctx: click.Context,
    survey: Path,
    into: Path,
    only: str | None,
    dry_run: bool,
    as_json: bool,
    scheduler: str | None,
    workers: int | None,
) -> None:
    """Ingest a survey, compute its products, and write one page about it; resumes where it was interrupted."""
    if dry_run:
        ctx.invoke(check, survey=survey, as_json=as_json)
        return
    _run(survey, into, only, scheduler, workers, as_json=as_json)


def _run(survey: Path, into: Path, only: str | None, scheduler: str | None, workers: int | None, *, as_json: bool) -> None:
    described = scalable.open_survey(survey)
    if scheduler is None and workers is None and _lazy("input_bytes")(described) < SMALL_BYTES:
        scheduler = "threads"
    with _connected(scheduler, workers), _display() as tell:
        report = scalable.run(described, into=into, only=only, progress=tell)
    for finding in report.findings:
        console.print(f"{finding.name}: {finding.message}", style="yellow", markup=False)
    if as_json:
        products = [{"name": p.name, "path": str(p.path), "rows": p.rows, "bytes": p.size_bytes} for p in report.products]
        accounting = report.collection.accounting if report.collection else None
        click.echo(json.dumps({"accounting": accounting, "products": products, "seconds": report.seconds}))
    else:
        _summary(report)
    if report.quarantined:
        sys.exit(QUARANTINED)


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
            out.print(f"[yellow]{count['quarantined']} files set aside, see[/] {collection.path / 'quarantine.csv'}")
    if report.skipped:
        out.print(f"there already: {', '.join(report.skipped)}", style="dim")
    if report.products:
        table = Table("product", Column("rows", justify="right"), Column("MB", justify="right"), Column("path", overflow="fold"))
        for product in report.products:
            rows = "" if product.rows is None else f"{product.rows:,}"
            here = product.path.is_relative_to(Path.cwd())
            path = product.path.relative_to(Path.cwd()) if here else product.path
            table.add_row(product.name, rows, f"{product.size_bytes / 1e6:,.1f}", str(path))
        out.print(table)
        out.print(f"digest of the survey {collection.manifest['survey_digest'][:16]}", style="dim")
    if report.page:
        out.print(f"\nopen the page      {report.page.as_uri()}", soft_wrap=True)
        view = "objects" if collection.has_positions else "rows"
        out.print(f'ask a question     scalable query "SELECT count(*) FROM {view}" --store {report.store}', soft_wrap=True)
        if collection.has_positions:
            out.print(f'with LSDB          lsdb.open_catalog("{collection.path / view}")', soft_wrap=True)
        out.print(f'with pandas        pandas.read_parquet("{collection.path / "observations.parquet"}")', soft_wrap=True)
    out.print("seconds            " + ", ".join(f"{name} {seconds:.1f}" for name, seconds in report.seconds.items()))


@main.command()
@click.argument("statement")
@click.option("--store", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="The store to ask.")
@click.option("--to", type=click.Path(path_type=Path), help="Write the answer to a .parquet or .csv file.")
@click.option("--rows", default=50, show_default=True, help="Rows to show.")
@with_scheduler
def query(statement: str, store: Path, to: Path | None, rows: int, scheduler: str | None, workers: int | None) -> None:
    """Ask a store in SQL: objects, detections, observations, and one view per file."""
    if to is not None and to.suffix not in (".parquet", ".csv"):
        raise click.BadParameter(f"{to.suffix or 'no ending'}: choose .parquet or .csv", param_hint="--to")
    with _connected(scheduler, workers, default="threads"):
        answer = scalable.sql(scalable.open_collection(store), statement).compute()
    if to is not None:
        _lazy("write_table")(answer, to)
        console.print(f"{answer.num_rows:,} rows written to {to}")
        return
    units = [(field.metadata or {}).get(b"unit", b"").decode() for field in answer.schema]
    table = Table(*(f"{name} [{unit}]".replace("[]", "").strip() for name, unit in zip(answer.column_names, units, strict=True)))
    for row in answer.slice(0, rows).to_pylist():
        table.add_row(*("null" if value is None else str(value) for value in row.values()))
    out.print(table, markup=False)
    if answer.num_rows > rows:
        out.print(f"{answer.num_rows - rows:,} more rows; write them with --to answer.parquet")


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
        rate = f"{size / 1e6 / seconds:,.0f} MB/s" if size and seconds > 0 else ""
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


if __name__ == "__main__":
    main()
