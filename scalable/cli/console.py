"""What every verb shares: where text and progress go, where tasks run, options that several verbs have."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

import scalable
from scalable.survey.root import is_remote

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
    "model_at": "scalable.survey.read",
    "field_names": "scalable.survey.read",
    "set": "dask.config",
}
"""What a verb needs beyond the public names, loaded when the verb runs: `scalable --help` answers at once."""


def lazy(name: str) -> Any:
    """Return what the table names, loaded now."""
    return getattr(importlib.import_module(_LAZY[name]), name)


console = Console(stderr=True, highlight=False)
out = Console(highlight=False)

scheduler_options = [
    click.option(
        "--scheduler",
        metavar="ADDR",
        help="threads, processes, or tcp://HOST:PORT of a Dask scheduler; without it, by size.",
    ),
    click.option("--workers", type=click.IntRange(1), help="Worker processes of the local cluster."),
]


def place(text: str) -> Path | str:
    """Return the path, or the URL, that was typed."""
    return text if is_remote(text) else Path(text)


store_option = click.option("--store", type=place, metavar="PATH", default="out", show_default=True, help="The store.")
into_option = click.option("--into", type=place, metavar="PATH", default="out", show_default=True, help="The store, or its URL.")


def with_scheduler(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say where tasks run."""
    for option in reversed(scheduler_options):
        command = option(command)
    return command


@contextmanager
def connected(scheduler: str | None, workers: int | None, default: str = "") -> Iterator[None]:
    """Run tasks in this process, on a cluster at an address, or on a cluster of this machine."""
    wanted = scheduler or default
    if wanted in ("threads", "processes", "sync"):
        with lazy("set")(scheduler=wanted):
            yield
        return
    with scalable.connect(wanted or None, workers=workers) as client:
        port = client.dashboard_link.rsplit(":", 1)[-1].split("/")[0]
        console.print(f"dashboard {client.dashboard_link} (from afar: ssh -L {port}:127.0.0.1:{port} HOST)", style="dim")
        yield


@contextmanager
def display() -> Iterator[Callable[[str, int, int, int], None]]:
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
