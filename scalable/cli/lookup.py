"""The verbs that ask: query a store in SQL, help on a field of survey.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.table import Table

import scalable
from scalable.cli.console import connected, console, lazy, out, store_option, with_scheduler
from scalable.errors import SurveyError, nearest


@click.command()
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
    endings = lazy("WRITERS")
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
    with connected(scheduler, workers, default="threads"):
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


@click.command("help")
@click.argument("field", default="")
def explain(field: str) -> None:
    """Explain one field of survey.yaml, for example: scalable help columns.Ra.unit."""
    location = tuple(part for part in field.split(".") if part)
    part = lazy("model_at")(location)
    if part is None:
        parent = lazy("model_at")(location[:-1])
        fields = {info.alias or name: info for name, info in parent.model_fields.items()} if parent else {}
        if location[-1] not in fields:
            raise SurveyError(f"no field {field!r}; {nearest(location[-1], lazy('field_names')(location[:-1]))}")
        out.print(f"{field}: {fields[location[-1]].description or 'see the example in the README'}", markup=False)
        return
    out.print((part.__doc__ or "").strip(), markup=False)
    for name, info in part.model_fields.items():
        needed = " (required)" if info.is_required() else ""
        out.print(f"  {info.alias or name}{needed}: {info.description or ''}", markup=False)


VERBS = (query, explain)
