"""What an ingest needs of memory and disk, by formula: pure, and apart from the work, so that both can be measured."""

from __future__ import annotations

from scalable.catalog.ingest_reduce import detections_schema
from scalable.schema import Schema

WORK_ROW_BYTES = 44
"""What a run holds of a row beside the stored columns: pixel, position, observation, id and source row."""
BOX_BYTES = 64
"""One object's box in the table beside a run, at most one a row."""
FOOTER_BYTES = 2000
"""What a leaf's footers, its margin's and their copies take for each column of detections (measured, 24 and 29 columns)."""


def worker_memory_bytes(*, batch_bytes: int, leaf_bytes: int) -> int:
    """Return the memory that one worker needs: several copies of what it holds at once, a map task's input or a leaf.

    Parameters
    ----------
    batch_bytes : int
        Input of the largest map task.
    leaf_bytes : int
        Decoded size of the largest leaf of detections.
    """
    return 6 * max(batch_bytes, leaf_bytes)


def runs_bytes(schema: Schema, rows: int, leaves: int) -> int:
    """Return the size of an ingest's intermediate files: uncompressed runs, boxes, and the records of its leaves.

    Parameters
    ----------
    schema : Schema
        The stored columns of the source.
    rows, leaves : int
        Rows of the input, and leaves of detections.
    """
    return int(rows * (schema.row_bytes + WORK_ROW_BYTES + BOX_BYTES)) + _footers(schema, leaves)


def version_bytes(schema: Schema, rows: int, leaves: int) -> int:
    """Return the size of a version: detections as decoded, as compression wins what objects, margins and indexes add.

    Parameters are those of `runs_bytes`.
    """
    return int(rows * detections_schema(schema).row_bytes) + _footers(schema, leaves)


def _footers(schema: Schema, leaves: int) -> int:
    return leaves * len(detections_schema(schema)) * FOOTER_BYTES
