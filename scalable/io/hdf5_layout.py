"""Which tables an HDF5 file holds, found without ever following what leads out of the file; only the child process imports this.

A table is a group whose datasets have equally many rows, its columns; or a dataset of compound type, whose members are. Single
values beside the columns are passed over; so are PyTables' indices. What astropy says of a table is handed on as it stands.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import h5py
import numpy as np
import pyarrow as pa

from scalable.errors import nearest
from scalable.io.hdf5_values import Cell, cell_of
from scalable.io.limits import most_expanded

MAX_BLOCK = 1 << 28
"""No chunk and no row is larger: it has to be held as a whole."""
_MEANINGS = {"unit": ("unit", "units"), "ucd": ("ucd",), "description": ("description", "long_name", "comment")}
"""Attributes that say what a column means, by what they say."""
_MOST_OBJECTS = 20_000
_MOST_HOPS = 16
_MOST_SHOWN = 50
_LONGEST_HEADER = 1 << 22
_META = ".__table_column_meta__"
_ADVICE = "copy the data into one file first (h5repack, h5copy)"


class Refused(ValueError):
    """The file cannot be used as it is; the message lacks only the file's path."""


@dataclass(frozen=True)
class Hdf5Column:
    """One column: the dataset that holds it, its member there if that is a compound, and what a cell is."""

    name: str
    dataset: h5py.Dataset
    member: str
    cell: Cell
    meaning: dict[str, str]

    @property
    def arrow(self) -> pa.Field:
        """The Arrow field with the column's meaning."""
        shape = {"shape": ",".join(map(str, self.cell.shape))} if len(self.cell.shape) > 1 else {}
        return pa.field(self.name, self.cell.arrow, metadata={**self.meaning, **shape} or None)


@dataclass(frozen=True)
class FoundTable:
    """One table: where it is, its rows, its columns by name, attributes, and the header that astropy wrote beside it."""

    name: str
    rows: int
    columns: dict[str, Hdf5Column]
    keywords: dict[str, object]
    header: str

    @property
    def row_bytes(self) -> int:
        """Bytes of a row as it is read."""
        return sum(column.cell.bytes for column in self.columns.values())


@dataclass
class _Search:
    """A walk through the groups of a file: tables, what is none and why, and what leads out of the file or cannot be read."""

    tables: list[FoundTable] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    seen: set[Any] = field(default_factory=set)

    def walk(self, group: h5py.Group, where: str) -> None:
        """Collect the tables in a group and below it."""
        datasets: dict[str, h5py.Dataset] = {}
        groups: dict[str, h5py.Group] = {}
        refused = len(self.refused)
        for name in group:
            try:
                thing = _member(group, name, f"{where}/{name}")
                if isinstance(thing, h5py.Dataset):
                    _check_storage(thing, f"{where}/{name}")
                    datasets[name] = thing
            except Refused as error:
                self.refused.append(str(error))
                continue
            if isinstance(thing, h5py.Group) and not name.startswith("_i_") and thing.id not in self.seen:
                groups[name] = thing
                self.seen.add(thing.id)
            if len(self.seen) + len(datasets) + len(self.refused) > _MOST_OBJECTS:
                raise Refused(f"more than {_MOST_OBJECTS} groups and datasets: no table file")
        if len(self.refused) == refused:  # else the table would lack a column
            self.look(group, where, datasets)
        for name, inner in groups.items():
            self.walk(inner, f"{where}/{name}")

    def look(self, group: h5py.Group, where: str, datasets: dict[str, h5py.Dataset]) -> None:
        """Collect the tables that the datasets of one group are."""
        columns: dict[str, h5py.Dataset] = {}
        known = True
        for name, dataset in datasets.items():
            if name.endswith(_META) or not dataset.shape:
                continue
            try:
                members = dataset.dtype.names
            except TypeError as error:
                self.others.append(f"{where}/{name}: of a type that NumPy does not know ({error})")
                known = False  # without it, what is left would lack a column
                continue
            if members:
                parts: list[Any] = [(n, dataset, n, dataset.dtype[n], dataset.shape[1:], {}) for n in members]
                self.add(f"{where}/{name}", dataset, parts, _header(datasets.get(name + _META)))
            else:
                columns[name] = dataset
        lengths = sorted({dataset.shape[0] for dataset in columns.values()})
        if len(lengths) > 1:
            self.others.append(f"{where or '/'}: datasets of {' and '.join(map(str, lengths))} rows")
        elif columns and known:
            parts = [(n, d, "", d.dtype, d.shape[1:], _meaning(d.attrs)) for n, d in columns.items()]
            self.add(where or "/", group, parts)

    def add(self, name: str, thing: Any, parts: list[Any], header: str = "") -> None:
        """Add a table of the given columns, or say why it is none."""
        columns = {}
        for column, dataset, member, dtype, shape, meaning in parts:
            try:
                cell = cell_of(dtype, shape)
            except ValueError as error:
                self.others.append(f"{name}: column {column!r} {error}")
                return
            if cell.items:
                columns[column] = Hdf5Column(column, dataset, member, cell, meaning)
        if columns:
            rows = parts[0][1].shape[0]
            keywords = _keywords(thing.file.attrs) | _keywords(thing.attrs)
            self.tables.append(FoundTable(name, rows, columns, keywords, header))


def find_table(file: h5py.File, path: str) -> FoundTable:
    """Return the table of that path in the file, or its only one if the path is empty.

    Raises
    ------
    Refused
        If there is none, or if there are several and no path; lists what there is.
    """
    search = _Search()
    search.walk(file, "")
    found = {table.name: table for table in search.tables}
    refused = "; ".join(search.refused[:_MOST_SHOWN])
    if not found:
        others = "; ".join(filter(None, [refused, *search.others[:_MOST_SHOWN]])) or "no datasets"
        raise Refused(f"no table in it ({others}); needed is a group of equally long datasets, or a compound dataset")
    shown = [f"{name} ({table.rows} rows)" for name, table in sorted(found.items())]
    listed = ", ".join(shown[:_MOST_SHOWN]) + (f" and {len(shown) - _MOST_SHOWN} more" if len(shown) > _MOST_SHOWN else "")
    if not path and (len(found) > 1 or refused):
        raise Refused(f"say with files.table which one to read: {listed}" + (f"; not readable: {refused}" if refused else ""))
    name = f"/{path.strip('/')}" if path else next(iter(found))
    if name not in found:
        reasons = [reason for reason in (*search.refused, *search.others) if reason.startswith(name)]
        why = f"; not readable: {'; '.join(reasons[:_MOST_SHOWN])}" if reasons else ""
        raise Refused(f"files.table: no table {path!r}; {nearest(name, sorted(found)[:_MOST_SHOWN])}{why}")
    if (table := found[name]).row_bytes > MAX_BLOCK:
        raise Refused(f"{name}: rows of {table.row_bytes} bytes, at most {MAX_BLOCK} can be read")
    return table


def _member(group: h5py.Group, name: str, where: str) -> Any:
    """Return what a name in a group stands for; soft links are followed within the file only, all others never."""
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.SoftLink):
        return _hard(group, name, where)
    thing = _follow(group, link.path, where, _MOST_HOPS)
    return thing if isinstance(thing, h5py.Dataset) else None  # a group is found under its own name


def _hard(group: h5py.Group, name: str, where: str) -> Any:
    link = group.get(name, getlink=True)
    if not isinstance(link, h5py.HardLink):
        target = f"{link.filename}:{link.path}" if isinstance(link, h5py.ExternalLink) else "elsewhere"
        raise Refused(f"{where} is a link out of the file, to {target}; it is not followed: {_ADVICE}")
    return group[name]


def _follow(group: h5py.Group, path: str, where: str, hops: int) -> Any:
    """Walk a soft link's path step by step, so that no step leaves the file unseen."""
    at: Any = group.file if path.startswith("/") else group
    for step in (step for step in path.split("/") if step not in ("", ".")):
        link = at.get(step, getlink=True) if isinstance(at, h5py.Group) and step in at.keys() else None  # noqa: SIM118
        if link is None or not hops:
            raise Refused(f"{where} is a link to {path}, which leads nowhere: remove it, or fetch the file again")
        is_soft = isinstance(link, h5py.SoftLink)
        at = _follow(at, link.path, where, hops - 1) if is_soft else _hard(at, step, f"{where} by way of {path}")
    return at


def _check_storage(dataset: h5py.Dataset, where: str) -> None:
    """Refuse data that lie in other files, or that would not fit in memory piece by piece."""
    if dataset.external or dataset.is_virtual:
        what = "in external storage" if dataset.external else "virtual"
        raise Refused(f"{where} is {what}: its values lie in other files, which are not opened: {_ADVICE}")
    plan = dataset.id.get_create_plist()
    for n in range(plan.get_nfilters()):
        code, _, _, name = plan.get_filter(n)
        if not h5py.h5z.filter_avail(code):
            shown = name.decode("utf-8", "replace") or "no name"
            raise Refused(f"{where} is compressed with filter {code} ({shown}), which is not there: h5repack it with gzip")
    item = dataset.id.get_type().get_size()
    chunk = math.prod(dataset.chunks or ()) * item
    if chunk > MAX_BLOCK:
        raise Refused(f"{where}: chunks of {chunk} bytes, at most {MAX_BLOCK} can be read: h5repack it with smaller ones")
    declared, stored = math.prod(dataset.shape or ()) * item, dataset.id.get_storage_size()
    if declared > (limit := most_expanded(stored)):
        raise Refused(
            f"{where}: declares {declared} bytes and stores {stored}, at most {limit} are read: refused as a decompression bomb; "
            "if it is not one, h5repack it without compression"
        )


def _meaning(attributes: Any) -> dict[str, str]:
    """Return what a column's attributes say of it, whatever their case."""
    names = {name.lower(): name for name in attributes}
    found = {}
    for key, spellings in _MEANINGS.items():
        for spelling in spellings:
            if spelling in names and (text := _scalar(attributes, names[spelling])) not in (None, ""):
                found[key] = str(text).strip()
                break
    return {**found, "source_unit": found["unit"]} if "unit" in found else found


def _keywords(attributes: Any) -> dict[str, object]:
    return {name: value for name in attributes if (value := _scalar(attributes, name)) is not None}


def _scalar(attributes: Any, name: str) -> str | int | float | bool | None:
    """Return an attribute that is one text, number or truth value, else None."""
    try:
        if attributes.get_id(name).get_storage_size() > 1 << 16:
            return None
        value = attributes[name]
    except (OSError, TypeError, ValueError, KeyError, RuntimeError):  # of a type that h5py cannot read: it says nothing to us
        return None
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(-1)[0]
    value = value.item() if isinstance(value, np.generic) else value
    value = value.decode("utf-8", "replace") if isinstance(value, bytes) else value
    return value if isinstance(value, str | int | float) else None


def _header(meta: h5py.Dataset | None) -> str:
    """Return what astropy wrote beside a compound dataset."""
    if meta is None or meta.dtype.kind != "S" or meta.id.get_storage_size() > _LONGEST_HEADER:
        return ""
    return b"\n".join(np.reshape(meta[()], -1).tolist()).decode("utf-8", "replace")


def select(table: FoundTable, names: list[str]) -> FoundTable:
    """Return a table of the named columns only."""
    return replace(table, columns={name: table.columns[name] for name in names})
