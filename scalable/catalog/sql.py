"""`sql`: a query over a collection or a catalogue, one task per partition, results combined."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath
from typing import Any, ClassVar

import pyarrow as pa

from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.catalog.duck import execute
from scalable.catalog.history import recorded
from scalable.catalog.leaves_in import in_regions
from scalable.catalog.sky_functions import memberships
from scalable.catalog.sql_local import KEY, View
from scalable.catalog.sql_plan import SqlPlan, plan_sql
from scalable.catalog.sql_split import PARTIALS
from scalable.catalog.steps import Chain
from scalable.errors import QueryError
from scalable.io.layout import LeafInfo
from scalable.schema import Column

BROADCAST = "observations"


@dataclass(frozen=True)
class QueryLoader:
    """Rows of a query on one leaf of every view it reads."""

    plan: SqlPlan
    views: tuple[tuple[str, Chain], ...]
    observations: pa.Table | None

    @property
    def pending(self) -> tuple[object, ...]:
        """Return what is pending on the first view, and the query."""
        return (*(self.views[0][1].pending if self.views else ()), self)

    def __str__(self) -> str:
        """Show what is pending."""
        return f"sql {self.plan.text}"

    def load(self, leaf: LeafInfo, columns: Sequence[str]) -> pa.Table:
        """Load the columns that the query reads, and run its mapped part."""
        tables = {name: chain.load(leaf, self.plan.columns[name]) for name, chain in self.views}
        if self.observations is not None:
            tables[BROADCAST] = self.observations
        return run_mapped(self.plan, tables).select(list(columns))


@dataclass(frozen=True)
class QueryStep:
    """A query on rows that earlier tasks made."""

    name: ClassVar[str] = "sql"
    plan: SqlPlan
    view: str
    schema: pa.Schema

    def parameters(self) -> dict[str, Any]:
        """Return the query."""
        return {"query": self.plan.text}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns that it gives."""
        return self.schema

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the columns that it reads."""
        return list(self.plan.columns[self.view])

    def apply(self, table: pa.Table) -> pa.Table:
        """Run the mapped part."""
        return run_mapped(self.plan, {self.view: table.select(list(self.plan.columns[self.view]))})

    def __str__(self) -> str:
        """Show what is pending."""
        return f"sql {self.plan.text}"


def run_mapped(plan: SqlPlan, tables: Mapping[str, pa.Table]) -> pa.Table:
    """Run the mapped part of a query on the tables of one leaf."""
    for view, key in plan.keys.items():
        if tables[view][key].null_count:
            raise QueryError(
                f"{view} has rows without {key}, which belong to no object; drop them first: where('{key} IS NOT NULL')"
            )
    return execute(plan.map_sql, tables, memberships(plan.regions))


def sql(source: Collection | Catalog, query: str) -> Catalog:
    """Return the result of a SELECT statement as a lazy catalogue; nothing is computed.

    Parameters
    ----------
    source : Collection or Catalog
        A collection gives the views ``objects``, ``detections``, ``observations`` and one view per file, named like it
        (``Field_1_H``); one of tables without positions gives ``rows`` instead of the first two; a catalogue gives the view
        ``catalog``.
    query : str
        One SELECT statement: joins of an object's own rows by ``object_id``, joins with observations, windows and groups per
        object, and count, sum, min, max, avg, stddev, variance with GROUP BY over everything. ``in_cone``, ``in_box``,
        ``in_polygon`` and ``in_moc`` ask for regions of the sky; leaves outside of them are not read.

    Returns
    -------
    Catalog
        Still partitioned where every row comes from one object; one partition where results are combined.

    Raises
    ------
    QueryError, ColumnError
        With the reason, before anything is read.
    """
    return wire(prepare(source, query))


@dataclass(frozen=True)
class Prepared:
    """A query with what it reads.

    ``views`` are those that it reads, on the leaves that may give rows; ``leaves`` is how many there were.
    """

    plan: SqlPlan
    views: Mapping[str, Catalog]
    observations: pa.Table | None
    leaves: int


def prepare(source: Collection | Catalog, query: str) -> Prepared:
    """Plan a query on a source, and drop the leaves that lie outside of the regions it asks for; nothing is computed."""
    catalogs, observations = views_of(source)
    files = file_views(observations) if observations is not None else {}
    views = {name: _view(catalog) for name, catalog in catalogs.items()}
    if observations is not None:
        views[BROADCAST] = View(observations.column_names, whole=True)
    plan = plan_sql(query, views, files)
    used = {name: catalog for name, catalog in catalogs.items() if name in plan.columns}
    leaves = len(next(iter(used.values())).leaves) if used else 0
    if plan.within and leaves:
        regions = [plan.regions[number] for number in plan.within]
        used = {name: catalog.on_leaves(in_regions(catalog.leaves, regions)) for name, catalog in used.items()}
    if observations is not None:
        observations = observations.select(list(plan.columns[BROADCAST])) if BROADCAST in plan.columns else None
    return Prepared(plan, used, observations, leaves)


def views_of(source: Collection | Catalog) -> tuple[dict[str, Catalog], pa.Table | None]:
    """Return the partitioned views of a source, and its observations where it has some."""
    if isinstance(source, Catalog):
        return {"catalog": source}, None
    names = ("objects", "detections") if source.has_positions else ("rows",)
    return {name: getattr(source, name) for name in names}, source.observations


def _view(catalog: Catalog) -> View:
    """Return what a query may take for granted of a catalogue: rows are by object only where they are placed on the sky."""
    ids, *position = (catalog.columns.by_role(role) for role in ("object_id", "ra", "dec"))
    placed = all(position) and all(leaf.on_sky for leaf in catalog.leaves)
    radians = tuple(column.name for column in catalog.columns if column.unit == "rad")
    if not placed:
        return View(catalog.schema.names, radians=radians)
    key = KEY if KEY in [column.name for column in ids] else ""
    return View(catalog.schema.names, key, tuple(columns[0].name for columns in position), radians=radians)


def file_views(observations: pa.Table) -> dict[str, int]:
    """Return a view name for every file: its name without ending, with underscores, and the id of its observation."""
    paths, ids = observations["path"].to_pylist(), observations["observation_id"].to_pylist()
    names = [re.sub(r"\W", "_", PurePath(path).stem) for path in paths]
    return {name: i for name, i in zip(names, ids, strict=True) if names.count(name) == 1}


def wire(query: Prepared) -> Catalog:
    """Put one task on each partition and, where something is to be combined, one behind them."""
    plan, views, observations = query.plan, query.views, query.observations
    empty = {name: catalog.schema.empty_table().select(list(plan.columns[name])) for name, catalog in views.items()}
    fields = {name: catalog.schema for name, catalog in views.items()}
    if observations is not None:
        empty[BROADCAST], fields[BROADCAST] = observations.slice(0, 0), observations.schema
    mapped = execute(plan.map_sql, empty, memberships(plan.regions)).schema
    if not plan.partitioned:
        schema = recorded(_described(mapped, plan, fields), (), "sql", {"query": plan.text})
        return Catalog(Chain(QueryLoader(plan, (), observations)), ((None,),), schema, "query")
    first = next(iter(views.values()))

    def declare(schema: pa.Schema) -> pa.Schema:
        # The text of a query is part of where its rows come from.
        meant = _described(schema, plan, fields).with_metadata(first.schema.metadata)
        return recorded(meant, first.history, "sql", {"query": plan.text})

    declared = mapped if plan.combine_sql else declare(mapped)
    if all(isinstance(partition, tuple) for partition in first.partitions):
        chain = Chain(QueryLoader(plan, tuple((name, catalog.chain) for name, catalog in views.items()), observations))
    else:
        step = QueryStep(plan, next(iter(views)), declared)
        chain = replace(first.chain, steps=(*first.chain.steps, step))
    if not plan.combine_sql:
        return Catalog(chain, first.partitions, declared, "query", first.graph)
    partial = Catalog(chain, first.partitions, mapped, "partial query", first.graph)
    schema = declare(execute(plan.combine_sql, {PARTIALS: mapped.empty_table()}, memberships(plan.regions)).schema)
    return replace(partial.combined(combine, plan, mapped, schema, schema=schema), title="query")


def combine(tables: list[pa.Table], plan: SqlPlan, mapped: pa.Schema, schema: pa.Schema) -> pa.Table:
    """Run the combining statement on the partial results, which come in the order of the leaves."""
    partials = pa.concat_tables([mapped.empty_table(), *tables])
    return execute(plan.combine_sql, {PARTIALS: partials}, memberships(plan.regions)).cast(schema)


def _described(schema: pa.Schema, plan: SqlPlan, fields: Mapping[str, pa.Schema]) -> pa.Schema:
    """Give columns that are a view's own their stored type, unit and meaning back, and others the unit they are measured in."""
    described = []
    for column in schema:
        view, name = plan.origins.get(column.name, ("", ""))
        if view:
            described.append(fields[view].field(name).with_name(column.name).with_nullable(True))
            continue
        made_of = [Column.from_field(fields[view].field(name)) for view, name in plan.measured_in.get(column.name, ())]
        units = {part.unit for part in made_of}
        described.append(Column(column.name, column.type, unit=units.pop()).to_field() if len(units) == 1 else column)
    return pa.schema(described)
