"""`sql`: a query over a collection or a catalogue, one task per partition, results combined."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import ClassVar

import pyarrow as pa

from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.catalog.duck import execute
from scalable.catalog.sql_plan import BROADCAST, PARTIALS, SqlPlan, plan_sql
from scalable.catalog.steps import Chain
from scalable.io.layout import LeafInfo


@dataclass(frozen=True)
class QueryLoader:
    """Rows of a query on one leaf of every view it reads."""

    pending: ClassVar[tuple[object, ...]] = ()
    plan: SqlPlan
    views: tuple[tuple[str, Chain], ...]
    observations: pa.Table | None

    def load(self, leaf: LeafInfo, columns: Sequence[str]) -> pa.Table:
        """Load the columns that the query reads, and run its mapped part."""
        tables = {name: chain.load(leaf, self.plan.columns[name]) for name, chain in self.views}
        if self.observations is not None:
            tables[BROADCAST] = self.observations
        return execute(self.plan.map_sql, tables).select(list(columns))


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
        object, and count, sum, min, max, avg with GROUP BY over everything.

    Returns
    -------
    Catalog
        Still partitioned where every row comes from one object; one partition where results are combined.

    Raises
    ------
    QueryError, ColumnError
        With the reason, before anything is read.
    """
    if isinstance(source, Collection):
        names_of = ("objects", "detections") if source.has_positions else ("rows",)
        views = {name: getattr(source, name) for name in names_of}
        observations: pa.Table | None = source.observations
        files = file_views(source.observations)
    else:
        views, observations, files = {"catalog": source}, None, {}
    names: dict[str, Sequence[str]] = {name: catalog.schema.names for name, catalog in views.items()}
    if observations is not None:
        names[BROADCAST] = observations.column_names
    plan = plan_sql(query, names, files)
    used = {name: catalog for name, catalog in views.items() if name in plan.columns}
    if observations is not None and BROADCAST in plan.columns:
        observations = observations.select(list(plan.columns[BROADCAST]))
    else:
        observations = None
    return _wire(plan, used, observations)


def file_views(observations: pa.Table) -> dict[str, int]:
    """Return a view name for every file: its name without ending, with underscores, and the id of its observation."""
    paths, ids = observations["path"].to_pylist(), observations["observation_id"].to_pylist()
    names = [re.sub(r"\W", "_", PurePath(path).stem) for path in paths]
    return {name: i for name, i in zip(names, ids, strict=True) if names.count(name) == 1}


def _wire(plan: SqlPlan, views: Mapping[str, Catalog], observations: pa.Table | None) -> Catalog:
    """Put one task on each partition and, where something is to be combined, one behind them."""
    empty = {name: catalog.schema.empty_table().select(list(plan.columns[name])) for name, catalog in views.items()}
    if observations is not None:
        empty[BROADCAST] = observations.slice(0, 0)
    mapped = execute(plan.map_sql, empty).schema
    fields = {name: catalog.schema for name, catalog in views.items()}
    if observations is not None:
        fields[BROADCAST] = observations.schema
    if not plan.partitioned:
        loader = QueryLoader(plan, (), observations)
        return Catalog(Chain(loader), ((None,),), _described(mapped, plan, fields), "query")
    first = next(iter(views.values()))
    chains = tuple((name, catalog.chain) for name, catalog in views.items())
    chain = Chain(QueryLoader(plan, chains, observations))
    if not plan.combine_sql:
        return Catalog(chain, first.partitions, _described(mapped, plan, fields), "query", first.graph)
    partial = Catalog(chain, first.partitions, mapped, "partial query", first.graph)
    schema = _described(execute(plan.combine_sql, {PARTIALS: mapped.empty_table()}).schema, plan, fields)
    return partial.combined(combine, plan.combine_sql, schema, schema=schema)


def combine(tables: list[pa.Table], statement: str, schema: pa.Schema) -> pa.Table:
    """Run the combining statement on the partial results, which come in the order of the leaves."""
    return execute(statement, {PARTIALS: pa.concat_tables(tables)}).cast(schema)


def _described(schema: pa.Schema, plan: SqlPlan, fields: Mapping[str, pa.Schema]) -> pa.Schema:
    """Give columns that are a view's own their stored type, unit and meaning back."""
    described = []
    for column in schema:
        view, name = plan.origins.get(column.name, ("", ""))
        described.append(fields[view].field(name).with_name(column.name).with_nullable(True) if view else column)
    return pa.schema(described)
