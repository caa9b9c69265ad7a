"""The root of a survey: a folder, or a URL."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from scalable.errors import SurveyError


def is_remote(path: str | Path) -> bool:
    """Return whether a path is the URL of a file or folder on a server."""
    return "://" in str(path)


def absolute(root: str, path: Path) -> str:
    """Return the root as it is used: a folder relative to the description made absolute, a URL checked."""
    if not is_remote(root):
        return str((path.parent.resolve() / root).resolve())
    url = urlsplit(root)
    if url.password is not None or url.query or url.fragment:
        raise SurveyError("the URL holds a password, ? or #; credentials stand in the environment (AWS_*, FSSPEC_*)")
    if url.scheme in ("file", "local") or "::" in root:
        raise SurveyError(f"{root!r}: write files of this machine as a plain path, and a URL without ::")
    return root.rstrip("/")


def expand(text: str) -> str:
    """Return a text with ${NAME:-default} replaced by what the environment says."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match["name"]) or match["default"]
        if found is None:
            raise SurveyError(f"the variable {match['name']} is not set; run: export {match['name']}=/path/to/data")
        return found

    return re.sub(r"\$\{(?P<name>\w+)(?::-(?P<default>[^}]*))?\}", value, text)
