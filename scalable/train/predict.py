"""`predict` and `sample_mixture`: what a model says of every row of a catalogue, and rows drawn from one; both lazy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from scalable.catalog.catalog import Catalog
from scalable.catalog.light_curves import nullable
from scalable.catalog.steps import Chain
from scalable.errors import ColumnError, InputError, require
from scalable.io.export import write_tables
from scalable.io.layout import LeafInfo
from scalable.kernels.mixture import draw_rows, log_density, responsibilities
from scalable.schema import Column, Schema
from scalable.survey.tables import ColumnRule
from scalable.train.model import Model
from scalable.train.rows import rows_of_files
from scalable.train.tables import Data, columns_of

Float = NDArray[np.float64]

BLOCK_ROWS = 1 << 18
"""Rows of a partition of a sample."""
CUT_ROWS = 1 << 13
"""Rows that are predicted at once: what layers, trees and bins say of a row takes more memory than the row."""


@dataclass(frozen=True)
class Prediction:
    """Add what a model predicts; null where a row lacks a feature."""

    name: ClassVar[str] = "predict"
    model: Model
    column: str
    pdf: bool

    @property
    def added(self) -> list[Column]:
        """The columns that are added."""
        model = self.model
        if not model.target:
            return [
                Column(self.column, pa.float64(), role="value", description="Log density of the features in the mixture"),
                Column(f"{self.column}_component", pa.int32(), role="value", description="Likeliest component, from 0"),
            ]
        text = f"{model.target} predicted by {model.kind} {model.digest[:12]}"
        found = [Column(self.column, pa.float64(), role="value", unit=model.target_unit, description=text)]
        if self.pdf:
            bins = len(model.estimator.bins) - 1
            text = "Probability of each bin of " + model.target
            found.append(Column(f"{self.column}_pdf", pa.list_(pa.float32(), bins), role="value", description=text))
        return found

    def parameters(self) -> dict[str, Any]:
        """Return the model's kind and digest, and what is added."""
        return {"model": self.model.kind, "digest": self.model.digest, "added": [column.name for column in self.added]}

    def output(self, schema: pa.Schema) -> pa.Schema:
        """Return the columns with the new ones."""
        return pa.schema([*schema, *(column.to_field() for column in self.added)], schema.metadata)

    def needs(self, wanted: Sequence[str]) -> list[str]:
        """Return what is wanted, and what the features are made of if a prediction is."""
        mine = {column.name for column in self.added}
        rest = [name for name in wanted if name not in mine]
        return rest if len(rest) == len(wanted) else [*rest, *self.read]

    @property
    def read(self) -> list[str]:
        """Columns that the features are made of."""
        states = self.model.about.get("states", [])
        return [*self.model.features.columns, *states]

    def apply(self, table: pa.Table) -> pa.Table:
        """Predict."""
        if not set(self.read) <= set(table.column_names):
            return table
        columns, kept = self.model.table_features(table)
        if not self.model.target:
            mixture = self.model.estimator.parameters
            density = _spread(lambda some: log_density(self.model.inputs(some), mixture), columns, kept)
            table = table.append_column(self.column, nullable(density, pa.float64()))
            component = _spread(lambda some: responsibilities(self.model.inputs(some), mixture).argmax(axis=1), columns, kept)
            return table.append_column(f"{self.column}_component", nullable(component, pa.int32()))
        found = _spread(self.model.predict_columns, columns, kept)
        table = table.append_column(self.column, nullable(found, pa.float64()))
        if self.pdf:
            estimator = self.model.estimator
            shares = np.zeros((len(kept), len(estimator.bins) - 1), np.float32)
            _spread(lambda some: estimator.predict_pdf_columns(self.model.inputs(some)), columns, kept, shares)
            values = pa.FixedSizeListArray.from_arrays(shares.ravel(), shares.shape[1], mask=pa.array(~kept))
            table = table.append_column(f"{self.column}_pdf", values)
        return table

    def __str__(self) -> str:
        """Show what is pending."""
        return f"{self.column} by {self.model.kind} {self.model.digest[:12]}"


def _spread(of: Callable[[Float], Any], columns: Float, kept: NDArray[np.bool_], out: Any = None) -> Any:
    """Return what is said of the features of the rows that are kept, a cut of them at a time; NaN, or what ``out`` has, else."""
    out = np.full(len(kept), np.nan) if out is None else out
    rows = np.flatnonzero(kept)
    for start in range(0, len(rows), CUT_ROWS):
        cut = slice(start, start + CUT_ROWS)
        out[rows[cut]] = of(np.ascontiguousarray(columns[:, cut]))
    return out


def predict(data: Catalog | pa.Table, model: Model, *, column: str = "", pdf: bool = False) -> Any:
    """Return a catalogue with what a model predicts for every row; nothing is computed.

    Parameters
    ----------
    data : Catalog or pyarrow.Table
        With the columns and units that the model was taught with; a table is predicted at once.
    model : Model
        From `fit_photoz`, `fit_mixture` or `open_model`.
    column : str
        Name of the new column; by default ``z_phot``, or ``log_density`` for a mixture, which also gives the likeliest component.
    pdf : bool
        Add ``{column}_pdf``, the probability of each bin of the target, from a model that gives one; see `to_qp`.

    Raises
    ------
    ColumnError
        If a column is missing or has another unit, the new one is there already, or the model gives no p(z).
    """
    schema = data.columns if isinstance(data, Catalog) else Schema.from_arrow(data.schema)
    title = data.title if isinstance(data, Catalog) else "the table"
    model.check(schema, title)
    if pdf and getattr(model.estimator, "bins", None) is None:
        raise ColumnError(f"{model.kind} gives no p(z); train a network or a forest with bins of the target")
    step = Prediction(_seen(model, schema), column or ("z_phot" if model.target else "log_density"), pdf)
    for new in step.added:
        if new.name in schema:
            raise ColumnError(f"{title} has a column {new.name!r} already; give another name with column=")
    if isinstance(data, Catalog):
        return data.then(step)
    return step.apply(data).cast(step.output(data.schema))


def _seen(model: Model, schema: Schema) -> Model:
    """Return the model with the columns of states that this table has: the policy on missing values goes by them."""
    states = [name for name in columns_of(schema, model.features) if name not in model.features.columns]
    about = {**model.about, "states": states}
    return Model(model.estimator, model.features, model.units, model.target, model.target_unit, model.transform, about)


def to_qp(table: pa.Table, model: Model, *, column: str = "z_phot") -> Any:
    """Return the p(z) of a computed prediction as a ``qp`` ensemble of histograms; rows without one are left out.

    Raises
    ------
    ExtraMissingError
        If ``qp`` is not installed.
    """
    qp = require("qp", "qp")
    found = table[f"{column}_pdf"].drop_null().combine_chunks()
    edges = np.asarray(model.estimator.bins, dtype=np.float64)
    shares = found.flatten().to_numpy().reshape(-1, len(edges) - 1)
    return qp.Ensemble(qp.hist, data={"bins": edges, "pdfs": shares.astype(np.float64)})


@dataclass(frozen=True)
class Draw:
    """Where rows of a sample come from: numbers by counter, so that a row is a function of seed and row number alone."""

    pending: ClassVar[tuple[object, ...]] = ()
    model: Model
    seed: int

    def load(self, leaf: LeafInfo, columns: Sequence[str]) -> pa.Table:
        """Draw the rows that a block names."""
        start, stop = (int(text) for text in leaf.path.split("=")[1].split(":"))
        rows, component = draw_rows(self.model.estimator.parameters, start, stop, self.seed)
        if self.model.transform is not None:
            rows = self.model.transform.inverse_transform(rows.T).T
        every = {"row": np.arange(start, stop), "component": component.astype(np.int32)}
        every |= dict(zip(self.model.features.names, rows, strict=True))
        return pa.table({name: every[name] for name in columns})


def sample_mixture(model: Model, rows: int, *, seed: int = 0, blocks: int | None = None) -> Catalog:
    """Return rows drawn from a mixture as a catalogue without positions; nothing is computed.

    Parameters
    ----------
    model : Model
        From `fit_mixture`.
    rows : int
    seed : int
        With the row's number, all that a row depends on: any number of blocks gives the same rows.
    blocks : int, optional
        Partitions.

    Returns
    -------
    Catalog
        Columns ``row``, ``component`` and the features.
    """
    if model.target:
        raise InputError(f"{model.kind} predicts {model.target} and has no density to draw from; give a model of fit_mixture")
    if rows < 1:
        raise InputError(f"{rows} rows: draw at least one")
    count = blocks or -(-rows // BLOCK_ROWS)
    edges = [rows * n // count for n in range(count + 1)]
    units = model.about.get("feature_units", [""] * len(model.features.names))
    columns = [
        Column("row", pa.int64(), description="Number of the row, from 0"),
        Column("component", pa.int32(), role="value", description="Component it was drawn from, from 0"),
        *(Column(name, pa.float64(), role="value", unit=unit) for name, unit in zip(model.features.names, units, strict=True)),
    ]
    schema = Schema(tuple(columns))
    leaves = [
        LeafInfo(f"rows={a}:{b}", b - a, int((b - a) * schema.row_bytes)) for a, b in zip(edges, edges[1:], strict=False) if b > a
    ]
    return Catalog(Chain(Draw(model, seed)), tuple((leaf,) for leaf in leaves), schema.to_arrow(), "sample")


def predict_files(
    paths: Data, model: Model, to: str | Path, *, pdf: bool = False, rules: Mapping[str, ColumnRule] | None = None
) -> int:
    """Predict for the rows of files, a block in memory at a time, into one Parquet file with all their columns; computes.

    Returns
    -------
    int
        Rows written.
    """
    schema, parts = rows_of_files(paths, rules)
    tables = (table for part in parts for table in part.tables(schema.names))
    out = predict(schema.to_arrow().empty_table(), model, pdf=pdf).schema
    return write_tables((predict(table.cast(schema.to_arrow()), model, pdf=pdf) for table in tables), out, Path(to))


def write_sample(sample: Catalog, to: str | Path) -> int:
    """Draw a sample of `sample_mixture` into one Parquet file, a block in memory at a time; computes; return the rows."""
    return write_tables((sample.on_leaves([leaf]).compute() for leaf in sample.leaves), sample.schema, Path(to))
