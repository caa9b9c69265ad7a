"""The command line: its verbs by group, and errors without a traceback."""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

import click

import scalable
from scalable.cli import data, images, learn, lookup, release, store
from scalable.cli.console import FAULT, INTERRUPTED, USAGE, console
from scalable.errors import ClusterError, ColumnError, QueryError, ScalableError, SurveyError


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


for command in (*data.VERBS, *lookup.VERBS, *images.VERBS, *release.VERBS, *learn.VERBS, *store.VERBS):
    main.add_command(command)
