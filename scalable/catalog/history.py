"""What was done to a catalogue: every step under its name and with its parameters, carried in the schema and written with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from scalable.io.layout import META_KEY

SHOWN_CHARACTERS = 100


def about(schema: pa.Schema) -> dict[str, Any]:
    """Return what the schema's metadata say of the catalogue: survey, bands and history, as far as they are known."""
    meta = (schema.metadata or {}).get(META_KEY)
    return dict(json.loads(meta)) if meta else {}


def history_of(schema: pa.Schema) -> tuple[dict[str, Any], ...]:
    """Return the records of all steps so far, the first one first."""
    return tuple(about(schema).get("history", ()))


def recorded(schema: pa.Schema, history: tuple[dict[str, Any], ...], step: str, parameters: Mapping[str, Any]) -> pa.Schema:
    """Return the schema with one more step in its history."""
    meta = about(schema) | {"history": [*history, {"step": step, **parameters}]}
    return schema.with_metadata({**(schema.metadata or {}), META_KEY: json.dumps(meta).encode()})


def shown(record: Mapping[str, Any]) -> str:
    """Return a record as a short line for people."""
    text = ", ".join(f"{key} {value}" for key, value in record.items() if key != "step")
    return f"{record['step']}: {text[:SHOWN_CHARACTERS]}{'…' if len(text) > SHOWN_CHARACTERS else ''}"


def kept_name(column: str, step: str) -> str:
    """Return the name under which a step keeps a column as it was before."""
    return f"{column}_before_{step}"
