"""Tables without positions on disk: blocks of rows in Parquet, with the metadata that a HATS catalogue's ``dataset`` holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from scalable.errors import StoreError
from scalable.io.layout import META_KEY, Layout, LeafInfo, read_footers
from scalable.io.parquet import Leaf, write_common_metadata, write_footers
from scalable.io.remote import Place
from scalable.schema import Schema


def finish_blocks(folder: Path, blocks: Sequence[Leaf], *, schema: pa.Schema) -> None:
    """Write what stands beside the blocks: their schema and, in the order given, their footers."""
    write_common_metadata(schema, folder / "_common_metadata")
    write_footers([block.footer for block in blocks], folder / "_metadata")


def holds_blocks(folder: Place) -> bool:
    """Return whether a folder is a table of blocks; a HATS catalogue has its metadata one level below."""
    return (folder / "_metadata").is_file()


def read_blocks(folder: Place) -> Layout:
    """Read what a table of blocks says about itself; no block is opened.

    Raises
    ------
    StoreError
        If its metadata cannot be read.
    """
    try:
        schema, metadata = read_footers(folder)
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{folder}: metadata of the table cannot be read ({error})") from error
    rows: dict[str, int] = {}
    for index in range(metadata.num_row_groups):
        group = metadata.row_group(index)
        path = group.column(0).file_path
        rows[path] = rows.get(path, 0) + group.num_rows
    row_bytes = Schema.from_arrow(schema).row_bytes
    schema = schema.with_metadata({k: v for k, v in (schema.metadata or {}).items() if k == META_KEY})
    blocks = tuple(LeafInfo(path, n, int(n * row_bytes)) for path, n in rows.items())
    return Layout(folder, folder.name, {}, schema, blocks)
