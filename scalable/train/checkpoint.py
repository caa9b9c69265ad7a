"""Where a fit goes on after it was killed: its state after a pass, in one file that is whole or not there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import scalable
from scalable.errors import StoreError
from scalable.io.arrays import read_arrays, write_arrays
from scalable.train.batches import Batches

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """The state of one fit in a file.

    Attributes
    ----------
    path : Path
    recipe : str
        Digest of everything that decides the result; the state of another fit is not gone on with.
    """

    path: Path
    recipe: str

    @classmethod
    def of(cls, path: str | Path | None, batches: Batches, **recipe: Any) -> Checkpoint | None:
        """Return the checkpoint of a fit to ``batches`` that ``recipe`` describes, or None without a path.

        Takes one pass over the rows: their digest is part of what decides the result, and so are their parts.
        """
        if path is None:
            return None
        recipe |= {"rows": batches.digest(identity=True), "parts": len(batches.parts), "version": scalable.__version__}
        text = json.dumps(recipe, sort_keys=True, default=_said)
        return cls(Path(path), hashlib.sha256(text.encode()).hexdigest())

    def load(self) -> tuple[Arrays, dict[str, Any]] | None:
        """Return the state that was saved last, or None if there is none.

        Raises
        ------
        StoreError
            If the file is damaged or belongs to another fit.
        """
        if not self.path.exists():
            return None
        arrays, said, _ = read_arrays(self.path)
        if said.get("recipe") != self.recipe:
            raise StoreError(
                f"{self.path}: holds the state of another fit (other data, features, weights, parameters or version); "
                "remove it to start anew"
            )
        return arrays, said["state"]

    def save(self, arrays: Arrays, state: Mapping[str, Any]) -> None:
        """Replace the state in one rename."""
        write_arrays(self.path, arrays, {"recipe": self.recipe, "state": state})


def _said(value: Any) -> str:
    """Return all of an array, which its text would abbreviate."""
    return f"{value.dtype} {value.shape} {value.tobytes().hex()}" if isinstance(value, np.ndarray) else str(value)
