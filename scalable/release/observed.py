"""What it means that an object has no detection in a band: it was looked for and not seen, or nobody looked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from scalable.schema import State

ABSENT = "__absent_"
"""Before the name of a band: the column of rows in the making that says why it has no detection, 0 where it has."""


@dataclass(frozen=True)
class Observed:
    """Which field each observation shows, and which bands each field was observed in.

    Attributes
    ----------
    bands : tuple of str
        Of the survey.
    observations, fields : tuple of int
        Ids, ascending, and the number of the field of each.
    covered : tuple of tuple of bool
        For each field, whether an observation of each band shows it.
    """

    bands: tuple[str, ...]
    observations: tuple[int, ...]
    fields: tuple[int, ...]
    covered: tuple[tuple[bool, ...], ...]

    def absent(self, table: pa.Table, edges: NDArray[np.int64]) -> pa.Table:
        """Return a column for each band with the `State` of what is missing in it, a row for each object.

        Parameters
        ----------
        table : pyarrow.Table
            Detections with ``band`` and ``observation_id``, object after object.
        edges : ndarray of int64, shape (objects + 1,)
            Where each object begins and ends.
        """
        band = pc.index_in(table["band"].combine_chunks().cast(pa.string()), pa.array(self.bands)).fill_null(-1).to_numpy()
        seen = band[:, None] == np.arange(len(self.bands))
        field = np.array(self.fields)[np.searchsorted(np.array(self.observations), table["observation_id"].to_numpy())]
        covered = np.array(self.covered, np.bool_)[field]
        found = {}
        for number, name in enumerate(self.bands):
            here, looked = (np.logical_or.reduceat(what[:, number], edges[:-1]) for what in (seen, covered))
            states = np.where(looked, np.uint8(State.NON_DETECTION), np.uint8(State.NOT_OBSERVED))
            found[f"{ABSENT}{name}"] = pa.array(np.where(here, np.uint8(0), states))
        return pa.table(found)


def observed(rows: Iterable[tuple[int, str, str]], bands: Sequence[str]) -> Observed:
    """Learn from observations, as (id, field, band); where no field is known, none says that nothing was seen."""
    listed = sorted(rows)
    names = sorted({field for _, field, _ in listed})
    seen = {(field, band) for _, field, band in listed if field}
    covered = tuple(tuple((name, band) in seen for band in bands) for name in names)
    return Observed(tuple(bands), tuple(i for i, _, _ in listed), tuple(names.index(field) for _, field, _ in listed), covered)
