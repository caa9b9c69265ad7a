"""Imputation: typical values measured from the catalogue itself, and the lazy verb that fills nulls with them and says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.catalog.catalog import Catalog
from scalable.catalog.collection import Collection
from scalable.catalog.history import kept_name
from scalable.catalog.light_curves import floats
from scalable.catalog.medians import exact_medians
from scalable.errors import ColumnError, nearest
from scalable.io.rules import state_column
from scalable.schema import State

FILL_VALUE = "fill_value"


@dataclass(frozen=True)
class GroupSums:
    """Sums and numbers of the finite values of one column by group, a row per leaf and group."""

    name: ClassVar[str] = "count"
    column: str
    per: str
    dtype: pa.DataType

    def parameters(self) -> dict[str, Any]:
        """Return nothing: sums are made and used at once."""
        return {}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns of the sums."""
        return pa.schema([("group", self.dtype), ("total", pa.float64()), ("rows", pa.int64())])

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the column and its group."""
        return [self.column, *([self.per] if self.per else [])]

    def apply(self, table: pa.Table) -> pa.Table:
        """Sum; a group whose values are all null counts 0 rows."""
        values = floats(table, self.column)
        finite = pa.array(values, mask=~np.isfinite(values))
        return _sums(pa.table({"group": _groups(table, self.per), "total": finite, "rows": pc.is_valid(finite).cast(pa.int64())}))


@dataclass(frozen=True)
class GroupValues:
    """The finite values of one column, each with the index of its group."""

    column: str
    per: str
    groups: tuple[Any, ...]

    @property
    def columns(self) -> list[str]:
        """The column and its group."""
        return [self.column, *([self.per] if self.per else [])]

    def of(self, table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return groups and values."""
        values = floats(table, self.column)
        place = _place(table, self.per, self.groups).to_numpy(zero_copy_only=False)
        finite = np.isfinite(values)
        return place[finite].astype(np.int64), values[finite]


@dataclass(frozen=True)
class Imputation:
    """Fill the nulls of one column, say in its states which they are, and keep both columns as they were."""

    name: ClassVar[str] = "impute"
    column: str
    per: str
    groups: tuple[Any, ...]
    fill: tuple[float | None, ...]
    by: str
    null_state: State
    has_states: bool

    @property
    def states(self) -> str:
        """Name of the column with the states."""
        return f"{self.column}_state"

    @property
    def kept(self) -> dict[str, str]:
        """Names under which the columns that change are kept."""
        return {n: kept_name(n, self.name) for n in (self.column, *([self.states] if self.has_states else []))}

    def parameters(self) -> dict[str, Any]:
        """Return the column, the fill value of each group and how it was found, and what is kept."""
        added = [] if self.has_states else [self.states]
        how = {"by": self.by, "per": self.per, "groups": self.groups, "fill": self.fill}
        return {"column": self.column, **how, "kept": self.kept, "added": added}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the same columns, the states, and the kept ones."""
        fields = [*schema, *(schema.field(name).with_name(kept) for name, kept in self.kept.items())]
        return pa.schema(fields if self.has_states else [*fields, state_column(self.column).to_field()], schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the column, its states and its group where one of them is wanted."""
        mine = {self.column, self.states, *self.kept.values()}
        rest = [name for name in wanted if name not in mine]
        if len(rest) == len(wanted):
            return rest
        return [*rest, self.column, *([self.states] if self.has_states else []), *([self.per] if self.per else [])]

    def apply(self, table: pa.Table) -> pa.Table:
        """Fill; a null whose group has no fill value stays one."""
        if self.column not in table.column_names:
            return table
        before = table[self.column]
        fill = pa.array(self.fill, pa.float64()).cast(before.type).take(_place(table, self.per, self.groups))
        after = pc.coalesce(before, fill)
        null = pc.if_else(pc.is_null(before), pa.scalar(int(self.null_state), pa.uint8()), pa.scalar(0, pa.uint8()))
        states = table[self.states] if self.has_states else null
        imputed = pc.and_(pc.is_null(before), pc.is_valid(after))
        states = pc.if_else(imputed, pa.scalar(int(State.IMPUTED), pa.uint8()), states)
        for name, kept in self.kept.items():
            table = table.append_column(kept, table[name])
        for name, column in ((self.column, after), (self.states, states)):
            if name in table.column_names:
                table = table.set_column(table.column_names.index(name), name, column)
            else:
                table = table.append_column(name, column)
        return table

    def __str__(self) -> str:
        """Show what is pending."""
        return f"nulls of {self.column} filled by {self.by}{f' per {self.per}' if self.per else ''}"


def fit_fill_values(source: Collection | Catalog, column: str, *, by: str = "median", per: str | None = "band") -> pa.Table:
    """Measure what the nulls of a column may be filled with; computes, in one pass over it, for the median in five.

    Neither depends on the partitioning: the mean is summed leaf by leaf along the sky, and the median is exact.

    Parameters
    ----------
    source : Collection or Catalog
        A collection stands for its detections.
    column : str
        A column of numbers; NaN, infinities and nulls are left out.
    by : str
        ``median`` or ``mean``.
    per : str, optional
        Column whose values each get a fill value of their own, for example ``observation_id``; None for one over all.

    Returns
    -------
    pyarrow.Table
        The groups, under the name ``per``, ``fill_value`` in the unit of the column (null without any value) and ``rows``.
    """
    catalog = source.detections if isinstance(source, Collection) else source
    _check(catalog, column, per or "")
    if by not in ("median", "mean"):
        raise ValueError(f"by: {nearest(by, ('median', 'mean'))}; a constant needs no fit, give the number to impute()")
    dtype = catalog.schema.field(per).type if per else pa.bool_()
    sums = _sums(catalog.then(GroupSums(column, per or "", dtype)).compute().combine_chunks()).sort_by("group")
    groups, rows = sums["group"], sums["rows"].to_numpy()
    if by == "mean":
        with np.errstate(divide="ignore", invalid="ignore"):
            values = sums["total"].fill_null(0.0).to_numpy() / rows
    else:
        values, rows = exact_medians(catalog, GroupValues(column, per or "", tuple(groups.to_pylist())), len(groups))
    found = {FILL_VALUE: pa.array(values, mask=rows == 0), "rows": pa.array(rows)}
    return pa.table({per: groups, **found} if per else found).replace_schema_metadata({"by": by})


def impute(catalog: Catalog, column: str, fill: pa.Table | float) -> Catalog:
    """Return a catalogue in which the nulls of a column are filled and say that they are; nothing is computed.

    ``{column}_state`` is 5 (imputed) where a value was filled in, and is added where there was none. The column and its states
    are kept as they were under ``{name}_before_impute``, so that ``undo(catalog, "impute")`` brings them back. The error
    column is left as it is.

    Parameters
    ----------
    catalog : Catalog
        Any, with the column and its group.
    column : str
        A column of numbers.
    fill : pyarrow.Table or float
        From `fit_fill_values`, or one constant [unit of the column]. A null whose group has no fill value stays null.

    Raises
    ------
    ColumnError
        If a column is not there, cannot hold its fill values, or is imputed already.
    """
    if isinstance(fill, pa.Table):
        if FILL_VALUE not in fill.column_names:
            raise ColumnError(f"fill: no column {FILL_VALUE!r}; take the table from fit_fill_values")
        per = fill.column_names[0] if fill.column_names[0] != FILL_VALUE else ""
        groups = tuple(fill[per].to_pylist()) if per else (True,)
        values = tuple(fill[FILL_VALUE].to_pylist())
        by = (fill.schema.metadata or {}).get(b"by", b"table").decode()
    else:
        per, groups, values, by = "", (True,), (float(fill),), "constant"
    _check(catalog, column, per)
    dtype = catalog.schema.field(column).type
    try:
        pa.array(values, pa.float64()).cast(dtype)
    except pa.ArrowInvalid as error:
        raise ColumnError(f"{column} holds {dtype} and not its fill values ({error}); round them in the table") from error
    if kept_name(column, Imputation.name) in catalog.columns:
        raise ColumnError(f"{column} is imputed already; undo(catalog, 'impute') first")
    null_state = State[(catalog.columns[column].null_state or "sentinel").upper()]
    step = Imputation(column, per, groups, values, by, null_state, f"{column}_state" in catalog.columns)
    return catalog.then(step)


def _check(catalog: Catalog, column: str, per: str) -> None:
    dtype = catalog.columns[column].dtype
    if not (pa.types.is_floating(dtype) or pa.types.is_integer(dtype)):
        raise ColumnError(f"column {column!r} holds {dtype}; only numbers are imputed")
    if per and per not in catalog.columns:
        raise ColumnError(f"no column {per!r} in {catalog.title}; {nearest(per, catalog.columns.names)}")


def _groups(table: pa.Table, per: str) -> pa.ChunkedArray | pa.Array:
    """Return the group of each row; without a column, one for all."""
    return table[per] if per else pa.repeat(True, table.num_rows)


def _place(table: pa.Table, per: str, groups: tuple[Any, ...]) -> pa.Array:
    """Return the index of each row's group, null for one that is not listed."""
    found = _groups(table, per)
    place = pc.index_in(found, pa.array(groups, found.type))
    return place.combine_chunks() if isinstance(place, pa.ChunkedArray) else place


def _sums(rows: pa.Table) -> pa.Table:
    """Return one row per group, added in the order of the rows."""
    sums = rows.group_by("group", use_threads=False).aggregate([("total", "sum"), ("rows", "sum")])
    return sums.select(["group", "total_sum", "rows_sum"]).rename_columns(["group", "total", "rows"])
