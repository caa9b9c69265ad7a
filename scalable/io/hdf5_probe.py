"""Whether a damaged HDF5 file can be opened without harm: read in a process of its own, for the C library may crash on it.

``python -m scalable.io.hdf5_probe FILE`` reads everything that lies in the file; what is wrong with it is not its business.
"""

from __future__ import annotations

import contextlib
import math
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py

from scalable.io.hdf5_child import limit_memory, limit_time

_BLOCK = 16 << 20
_MOST_S = 300.0


def why_deadly(path: Path) -> str:
    """Return how a process that read the file died of it; nothing if it did not."""
    found = subprocess.run([sys.executable, "-m", __name__, str(path)], capture_output=True, check=False)
    if found.returncode >= 0:
        return ""
    if found.returncode == -signal.SIGPROF:
        return f"the HDF5 library did not come to an end in {_MOST_S:g} s"
    return f"the HDF5 library crashed ({signal.Signals(-found.returncode).name})"


def main() -> None:
    """Read the file that the command line names."""
    limit_memory(_BLOCK)
    limit_time(_MOST_S)
    with contextlib.suppress(Exception), h5py.File(sys.argv[1], "r") as file:
        dict(file.attrs)
        file.visititems(_read)


def _read(_: str, thing: Any) -> None:
    with contextlib.suppress(Exception):
        dict(thing.attrs)
    if isinstance(thing, h5py.Dataset) and not thing.is_virtual and not thing.external:
        rows = max(1, _BLOCK // max(1, thing.dtype.itemsize * math.prod(thing.shape[1:]))) if thing.ndim else 0
        for first in range(0, thing.shape[0], rows) if rows else ():
            with contextlib.suppress(Exception):
                thing[first : first + rows]


if __name__ == "__main__":
    main()
