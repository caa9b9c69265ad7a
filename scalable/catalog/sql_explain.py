"""What `sql` would do, and on what it can be asked: read from metadata, nothing is computed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass

from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.catalog.sql import BROADCAST, file_views, prepare, views_of, wire
from scalable.schema import Schema


@dataclass(frozen=True)
class Explanation:
    """How a query is carried out.

    Attributes
    ----------
    mapped, combined : str
        The statement that runs on each leaf, and the one that combines their results; empty if there is nothing to combine.
    columns : dict
        Columns read, by view.
    regions : tuple of str
        Regions of the sky that all results lie in.
    leaves, pruned : int
        Leaves of the sky, and those of them that are not read.
    rows : int
        Rows in the leaves that are read, of the view with the most.
    tasks : int
        Dask tasks.
    """

    mapped: str
    combined: str
    columns: Mapping[str, tuple[str, ...]]
    regions: tuple[str, ...]
    leaves: int
    pruned: int
    rows: int
    tasks: int

    def __str__(self) -> str:
        """Show it line by line."""
        where = f"on each of {self.leaves - self.pruned} leaves" if self.leaves else "once"
        lines = [f"mapped    {where}:", textwrap.indent(self.mapped, "  ")]
        lines += ["combined  once:", textwrap.indent(self.combined, "  ")] if self.combined else ["combined  nothing"]
        lines += [f"reads     {view}: {', '.join(names)}" for view, names in self.columns.items()]
        lines += [f"within    {region}" for region in self.regions]
        lines += [f"leaves    {self.leaves}, {self.pruned} of them not read; at most {self.rows:,} rows"] if self.leaves else []
        return "\n".join([*lines, f"tasks     {self.tasks}"])


@dataclass(frozen=True)
class ViewInfo:
    """Something that can stand after FROM: its name, what a row is, how many there are, and its columns with their units."""

    name: str
    row: str
    rows: int | None
    columns: Schema


def explain_sql(source: Collection | Catalog, query: str) -> Explanation:
    """Return how `sql` would carry out a query: what is mapped, combined, read and left out; nothing is computed.

    Parameters
    ----------
    source : Collection or Catalog
        As `sql` takes it.
    query : str
        A SELECT statement, or one with EXPLAIN before it.
    """
    first, _, rest = query.strip().partition(" ")
    query = rest if first.upper() == "EXPLAIN" else query
    prepared = prepare(source, query)
    plan = prepared.plan
    kept = [catalog.leaves for catalog in prepared.views.values()]
    regions = (plan.regions[number] for number in plan.within)
    return Explanation(
        plan.map_sql,
        plan.combine_sql,
        plan.columns,
        tuple(f"{type(region).__name__.lower()} {region.parameters()}" for region in regions),
        prepared.leaves,
        prepared.leaves - len(kept[0]) if kept else 0,
        max((sum(leaf.rows for leaf in leaves) for leaves in kept), default=0),
        len(wire(prepared).__dask_graph__()),
    )


def list_views(source: Collection | Catalog) -> tuple[ViewInfo, ...]:
    """Return what can stand after FROM in a query on a source; nothing is computed."""
    catalogs, observations = views_of(source)
    found = [ViewInfo(name, _ROWS[name], catalog.rows, catalog.columns) for name, catalog in catalogs.items()]
    if observations is not None:
        found.append(ViewInfo(BROADCAST, _ROWS[BROADCAST], observations.num_rows, Schema.from_arrow(observations.schema)))
        stored = dict(zip(*(observations[name].to_pylist() for name in ("observation_id", "rows_stored")), strict=True))
        kind = list(catalogs)[-1]
        for name, number in file_views(observations).items():
            found.append(ViewInfo(name, f"{_ROWS[kind]} of one file", stored[number], catalogs[kind].columns))
    return tuple(found)


_ROWS = {
    "objects": "object",
    "detections": "detection",
    "rows": "row of a table",
    "observations": "catalogue file",
    "catalog": "row of the catalogue",
}
