"""`where_class`: objects by what their bands say of their class, under a rule, as a lazy verb over a join of bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from scalable.catalog.catalog import Catalog
from scalable.errors import ColumnError, nearest
from scalable.kernels.bands import CLASS_RULES, class_holds


@dataclass(frozen=True)
class ClassFilter:
    """Keep the objects that are of a class under a rule."""

    name: ClassVar[str] = "where_class"
    wanted: float | str
    rule: str
    columns: tuple[str, ...]

    def parameters(self) -> dict[str, Any]:
        """Return the class, the rule and the columns that were asked."""
        return {"class": self.wanted, "rule": self.rule, "columns": self.columns}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the same columns."""
        return schema

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return what is wanted and the columns of classes."""
        return [*wanted, *self.columns]

    def apply(self, table: pa.Table) -> pa.Table:
        """Keep rows."""
        says = [pc.equal(table[name], pa.scalar(self.wanted).cast(table[name].type)).combine_chunks() for name in self.columns]
        votes = np.array([np.where(said.is_valid(), said.fill_null(False), False) for said in says], dtype=bool)
        voting = np.array([said.is_valid() for said in says], dtype=bool)
        return table.filter(pa.array(class_holds(votes, voting, self.rule)))

    def __str__(self) -> str:
        """Show what is pending."""
        return f"class {self.wanted} by {self.rule} of {', '.join(self.columns)}"


def where_class(
    joined: Catalog, wanted: float | str, *, rule: str, bands: Sequence[str] | None = None, column: str = ""
) -> Catalog:
    """Return the objects that are of a class, where bands may differ over it; nothing is computed.

    A band votes if its class is there; one without a detection, or with a null, does not. An object on which nobody votes is of
    no class under any rule.

    Parameters
    ----------
    joined : Catalog
        One row per object with ``{band}_{column}``, from `join_bands` with the class among its values.
    wanted : float or str
        The class, for example -1 for a star.
    rule : str
        ``any``: at least one band says so; ``all``: every band that votes; ``majority``: more than half of them; or the name of
        one band, which decides alone.
    bands : sequence of str, optional
        Bands that may vote; by default all that the join holds.
    column : str, optional
        The column of classes as it was called before the join; by default the one with the role class.

    Raises
    ------
    ColumnError, ValueError
        If no column holds a class, a band has none, or the rule is unknown.

    Examples
    --------
    ``where_class(join_bands(detections, values=["Mag1", "Class"], pick="first"), -1, rule="majority")``
    """
    known = _class_columns(joined, column)
    asked = list(known) if bands is None else list(bands)
    if rule in known and bands is None:
        asked, how = [rule], "all"
    elif rule in CLASS_RULES:
        how = rule
    else:
        raise ValueError(f"rule: {nearest(rule, [*CLASS_RULES, *known])}")
    for band in asked:
        if band not in known:
            raise ColumnError(f"no class of band {band!r} in {joined.title}; {nearest(band, known)}")
    return joined.then(ClassFilter(wanted, how, tuple(known[band] for band in asked)))


def _class_columns(joined: Catalog, column: str) -> dict[str, str]:
    """Return the column of classes of each band."""
    found = {}
    for band in joined.bands:
        classes = [c.name for c in joined.columns if c.name.startswith(f"{band}_") and (c.role == "class" or column)]
        names = [name for name in classes if not column or name == f"{band}_{column}"]
        if names:
            found[band] = names[0]
    if not found:
        what = f"column {column!r}" if column else "column with role class"
        raise ColumnError(f"{joined.title} has no {what} of any band; name the class among the values of join_bands")
    return found
