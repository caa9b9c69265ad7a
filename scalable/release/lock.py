"""What made a release: versions of the libraries, and a digest of our own code, which a version number alone does not tell."""

from __future__ import annotations

import hashlib
import platform
from importlib import metadata
from pathlib import Path

import scalable

LIBRARIES = (
    "astropy", "cdshealpix", "dask", "distributed", "duckdb", "h5py", "numba", "numpy", "pyarrow", "pydantic", "scipy", "sqlglot",
    "xarray", "zarr",
)  # fmt: skip


def code_digest() -> str:
    """Return the SHA-256 of every source file of this package, as it is installed."""
    root = Path(scalable.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def lock_file() -> str:
    """Return the versions in use, one a line, as pip reads them; our code's digest as a comment."""
    lines = [
        f"# Python {platform.python_version()}",
        f"# scalable-sky {scalable.__version__}, sha256 of its code {code_digest()}",
    ]
    lines += [f"{name}=={version}" for name, version in libraries().items()]
    return "\n".join(lines) + "\n"


def libraries() -> dict[str, str]:
    """Return the versions of the libraries in use."""
    return {name: metadata.version(name) for name in LIBRARIES}
