"""The verbs that bring files into a store: demo, init, check, plan, run, append."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.table import Column, Table

import scalable
from scalable.cli.console import QUARANTINED, connected, console, display, into_option, lazy, out, with_scheduler

SMALL_BYTES = 512 << 20
"""With less input than this, starting worker processes takes longer than the work: it is done in threads."""

SHOWN_PIXELS = 10


@click.command()
@click.argument("folder", default="demo", type=click.Path(path_type=Path))
@click.option("--seed", default=1, show_default=True, help="Seed of the sky.")
@with_scheduler
def demo(folder: Path, seed: int, scheduler: str | None, workers: int | None) -> None:
    """Make a small synthetic sky in FOLDER and run everything on it; about a minute, offline."""
    survey_file = folder / "survey.yaml"
    if not survey_file.exists():
        console.print(f"making a synthetic sky from seed {seed} in {folder}")
        sky = lazy("make_sky")(lazy("SkySpec")(seed=seed))
        lazy("write_tables")(sky, folder)
        lazy("add_images")(sky, folder)
        lazy("add_mixture")(folder)
        lazy("add_release")(folder)
    _run(survey_file, folder / "store", None, scheduler, workers, as_json=False)


@click.command()
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


@click.command()
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
    with display() as tell:
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


@click.command()
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
    with display() as tell:
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


@click.command()
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
    small = scheduler is None and workers is None and lazy("input_bytes")(described) < SMALL_BYTES
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
    with connected(scheduler, workers), display() as tell:
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


@click.command()
@click.argument("survey", type=click.Path(path_type=Path))
@click.option("--into", type=click.Path(path_type=Path), default=Path("out"), show_default=True, help="The store.")
@click.option("--dry-run", is_flag=True, help="Say which files would be added and which leaves they touch; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="For machines.")
@with_scheduler
def append(survey: Path, into: Path, dry_run: bool, as_json: bool, scheduler: str | None, workers: int | None) -> None:
    """Add a survey's new files to a store in a new version; what they do not touch is linked, not copied."""
    described, scheduler = _sized(survey, scheduler, workers)
    if dry_run:
        with connected(scheduler, workers), display() as tell:
            found = scalable.plan_append(described, into=into, on_file=lambda done, total: tell("read", done, total, 0))
        _show_addition(found, as_json=as_json)
        return
    told: set[str] = set()
    with connected(scheduler, workers), display() as tell:

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
            show_quarantined(collection)
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


def show_quarantined(collection: Any) -> None:
    """Say how many files were set aside, and where the reasons are."""
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
            show_quarantined(collection)
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


VERBS = (demo, init, check, plan, run, append)
