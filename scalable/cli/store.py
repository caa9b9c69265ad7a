"""The verbs that look after a store: log, clean."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click
from rich.table import Column, Table

import scalable
from scalable.cli.console import out, store_option


@click.command("log")
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


@click.command()
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


VERBS = (log_versions, clean)
