"""What an ingest needs of memory and disk, by formula: pure, and apart from the work, so that both can be measured."""

from __future__ import annotations

import math

from scalable.catalog import ingest_map
from scalable.catalog.ingest_reduce import detections_schema
from scalable.schema import Schema
from scalable.sky.healpix import SIDE_ARCSEC

WORK_ROW_BYTES = 44
"""What a run holds of a row beside the stored columns: pixel, position, observation, id and source row."""
BOX_BYTES = 64
"""One object's box in the table beside a run, at most one a row."""
FOOTER_BYTES = 2000
"""What a leaf's footers, its margin's and their copies take for each column of detections (measured, 24 and 29 columns)."""
SORT_ROW_BYTES = 160
"""What a map task holds of a row while it finds the boxes of a run's objects: order, vector and box."""
CHECK_ROW_BYTES = 300
"""What a task of the spread check holds of each box: as read, in order of ids, and merged."""
CHECK_BYTES = 512 << 20
"""What a task of the spread check may hold."""
GROUP_ROW_BYTES = 250
"""What a reduce task holds of each row of its pixel and ring to group them: keys, order, vectors; not the payload."""

LEAF_COPIES = 6
"""How often a reduce task holds its leaf: as read from runs, taken, as columns, encoded, and in a buffer that doubles."""


def worker_memory_bytes(schema: Schema, *, rows: int, batch_bytes: int, leaf_rows: int, gathered_rows: float) -> int:
    """Return the memory that one worker needs beside its program: that of the largest task, however long the input is.

    A map task holds a run twice, to sort it, with the boxes of its objects, and a few blocks. A task of the spread check holds
    `CHECK_BYTES`. A reduce task holds the keys of all rows that it gathers, and its leaf `LEAF_COPIES` times.

    Parameters
    ----------
    schema : Schema
        The stored columns of the source.
    rows : int
        Rows of the input.
    batch_bytes : int
        Input of the largest map task.
    leaf_rows : int
        Rows of the largest leaf of detections.
    gathered_rows : float
        Rows of the pixel and its ring where these are most; see `ring_overhead`.
    """
    row = schema.row_bytes + WORK_ROW_BYTES
    held = min((ingest_map.RUN_BYTES + ingest_map.BLOCK_BYTES) / row, batch_bytes / schema.row_bytes)
    mapping = held * (2 * row + SORT_ROW_BYTES) + 2 * min(ingest_map.BLOCK_BYTES, batch_bytes)
    checking = min(CHECK_BYTES, CHECK_ROW_BYTES * rows)
    reducing = LEAF_COPIES * leaf_rows * detections_schema(schema).row_bytes + GROUP_ROW_BYTES * gathered_rows
    return int(max(mapping, checking, reducing))


def ring_overhead(order: int, margin_arcsec: float) -> float:
    """Return how many rows a reduce task gathers for each row of a pixel, where they lie evenly.

    The ring is two margins wide. Pixels are never narrower than two margins, so this is below 9.
    """
    return (1 + 4 * margin_arcsec * 2**order / SIDE_ARCSEC) ** 2


def bucket_count(schema: Schema, input_bytes: int) -> int:
    """Return into how many buckets the spread check divides objects, so that each stays within `CHECK_BYTES`.

    In the worst case every row is an object of its own. Of compressed input the rows are not known yet; it may take more.
    """
    return max(1, math.ceil(input_bytes / schema.row_bytes * CHECK_ROW_BYTES / CHECK_BYTES))


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
