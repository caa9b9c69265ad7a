"""Versions that are computed: what changed between two releases, row by row, decides the number."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

FIRST = "1.0.0"
KEYS = ("object_id", "source_id", "source_row")
SHOWN = 1000
"""Most rows of each kind that a diff lists."""


@dataclass(frozen=True)
class Diff:
    """Rows of a release against those of another: added, removed and changed, by key, and how many stayed as they were."""

    added: pa.Table
    removed: pa.Table
    changed: pa.Table
    same: int

    def to_json(self) -> dict[str, Any]:
        """Return counts, and the first rows of each kind."""
        kinds = {"added": self.added, "removed": self.removed, "changed": self.changed}
        return {
            "same": self.same,
            **{name: table.num_rows for name, table in kinds.items()},
            "rows": {name: table.slice(0, SHOWN).to_pylist() for name, table in kinds.items()},
        }


def keys_of(rows: str) -> tuple[str, ...]:
    """Return what tells rows of a kind apart: detections by where they came from, objects by their id."""
    return KEYS if rows == "detections" else KEYS[:1]


def compare_rows(new: pa.Table, old: pa.Table, rows: str) -> Diff:
    """Compare two indexes by key and digest."""
    keys = list(keys_of(rows))
    both = (
        _sides(new, keys, "new")
        .join(_sides(old, keys, "old"), keys, join_type="full outer")
        .sort_by([(k, "ascending") for k in keys])
    )
    is_new, is_old = pc.is_valid(both["new"]), pc.is_valid(both["old"])
    equal = pc.fill_null(pc.equal(both["new"], both["old"]), False)
    shared = pc.and_(is_new, is_old)
    pick = {
        "added": pc.and_(is_new, pc.invert(is_old)),
        "removed": pc.and_(is_old, pc.invert(is_new)),
        "changed": pc.and_(shared, pc.invert(equal)),
    }
    found = {name: both.filter(mask).select(keys) for name, mask in pick.items()}
    return Diff(**found, same=int(pc.sum(pc.and_(shared, equal)).as_py() or 0))


def _sides(index: pa.Table, keys: list[str], name: str) -> pa.Table:
    # A join takes no fixed-size binary.
    return index.select(keys).append_column(name, index["row_digest"].cast(pa.binary()))


def next_version(parent: str, diff: Diff) -> str:
    """Return PATCH for the same rows, MINOR where rows were added and none changed, else MAJOR."""
    major, minor, patch = (int(part) for part in parent.split("."))
    if diff.removed.num_rows or diff.changed.num_rows:
        return f"{major + 1}.0.0"
    return f"{major}.{minor + 1}.0" if diff.added.num_rows else f"{major}.{minor}.{patch + 1}"


def content_digest(index: pa.Table, rows: str) -> str:
    """Return one digest of all rows, whatever shards they lie in."""
    order = pc.sort_indices(index, [(key, "ascending") for key in keys_of(rows)])
    digests = index["row_digest"].combine_chunks()
    flat = np.frombuffer(digests.buffers()[1], np.uint8).reshape(-1, 32)[digests.offset : digests.offset + len(digests)]
    return hashlib.sha256(flat[order.to_numpy()].tobytes()).hexdigest()
