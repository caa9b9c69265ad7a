"""Coverage maps (MOC, IVOA recommendation 2.0) from files and from text, read by mocpy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from scalable.errors import InputError, require
from scalable.sky.pixel import MAX_ORDER
from scalable.sky.region import Moc

_FORMATS = {".fits": "fits", ".fit": "fits", ".json": "json", ".txt": "ascii", ".moc": "ascii"}


def read_moc(path: Path) -> Moc:
    """Read a coverage map from a file: FITS, JSON or ASCII, by the ending of its name; needs the extra ``moc``.

    Raises
    ------
    InputError
        If it cannot be read as that.
    """
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"{path}: no format of coverage maps ends in {path.suffix!r}; choose {', '.join(_FORMATS)}")
    mocpy = require("mocpy", "moc")
    try:
        return _moc(mocpy.MOC.load(path, format=_FORMATS[path.suffix.lower()]))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a coverage map ({error})") from error


def parse_moc(text: str) -> Moc:
    """Read a coverage map from its text: ASCII (``"4/30-33 38 5/"``) or JSON (``'{"4": [30]}'``); needs the extra ``moc``.

    Raises
    ------
    InputError
        If it is neither.
    """
    mocpy = require("mocpy", "moc")
    try:
        # mocpy takes an order that no map has for another one.
        if any(int(order) > MAX_ORDER for order in re.findall(r'(\d+)"?\s*[/:]', text)):
            raise ValueError(f"orders go to {MAX_ORDER}")
        return _moc(mocpy.MOC.from_string(text, format="json" if text.lstrip().startswith("{") else "ascii"))
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise InputError(f"{text[:60]!r} is no coverage map ({reason}); write for example '4/30-33 38'") from error


def _moc(found: Any) -> Moc:
    return Moc(np.asarray(found.to_depth29_ranges, dtype=np.uint64).astype(np.int64).reshape(-1, 2))
