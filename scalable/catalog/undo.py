"""`undo`: columns as they were before a named step that kept them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import pyarrow as pa

from scalable.catalog.catalog import Catalog
from scalable.errors import ColumnError, nearest


@dataclass(frozen=True)
class Undo:
    """Put kept columns back in their places, and drop what the step added."""

    name: ClassVar[str] = "undo"
    step: str
    columns: tuple[str, ...]
    kept: tuple[str, ...]
    """For each column the name under which it was kept."""
    added: tuple[str, ...]

    def parameters(self) -> dict[str, Any]:
        """Return which step was undone, on which columns."""
        return {"of": self.step, "columns": self.columns}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the schema as it was before the step."""
        back = dict(zip(self.columns, self.kept, strict=True))
        fields = [f for f in schema if f.name not in (*self.kept, *self.added)]
        return pa.schema([schema.field(back.get(f.name, f.name)).with_name(f.name) for f in fields], schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return the kept columns instead of the changed ones."""
        back = dict(zip(self.columns, self.kept, strict=True))
        return [back.get(name, name) for name in wanted]

    def apply(self, table: pa.Table) -> pa.Table:
        """Rename the kept columns."""
        forth = dict(zip(self.kept, self.columns, strict=True))
        table = table.select([name for name in table.column_names if name not in (*self.columns, *self.added)])
        return table.rename_columns([forth.get(name, name) for name in table.column_names])

    def __str__(self) -> str:
        """Show what is pending."""
        return f"undo {self.step} of {', '.join(self.columns)}"


def undo(catalog: Catalog, step: str) -> Catalog:
    """Return a catalogue with the columns that a step changed as they were before it, bit for bit; nothing is computed.

    It does not matter whether the step is pending, persisted or was written and opened again. What other steps did stays: rows
    that `where` dropped by the changed values are not brought back.

    Parameters
    ----------
    catalog : Catalog
        One that still has the columns that the step kept.
    step : str
        Name of a step that keeps what it changes, ``impute`` or ``calibrate``; the last one of this name is undone.

    Raises
    ------
    ColumnError
        If there is no such step, the columns it kept are gone, or a later step changed the same columns and is not undone yet.
    """
    here = catalog.schema.names
    changes = [record for record in catalog.history if "kept" in record and set(record["kept"].values()) <= set(here)]
    found = [number for number, record in enumerate(changes) if record["step"] == step]
    if not found:
        names = dict.fromkeys(record["step"] for record in changes)
        raise ColumnError(f"{catalog.title}: no step {step!r} whose columns are kept here; {nearest(step, names)}")
    record = changes[found[-1]]
    for later in changes[found[-1] + 1 :]:
        if not set(later["kept"]).isdisjoint(record["kept"]):
            raise ColumnError(f"{catalog.title}: {later['step']!r} changed the columns of {step!r} after it; undo that first")
    return catalog.then(Undo(step, tuple(record["kept"]), tuple(record["kept"].values()), tuple(record["added"])))
