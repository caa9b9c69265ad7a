"""Files on object storage and other servers, named by URL: the one door to fsspec.

Credentials and endpoints come from the environment and from fsspec's configuration alone (``AWS_*``, ``FSSPEC_*``), in each
process for itself: a URL is all that a task, a log or a manifest ever holds. Interrupted transfers are tried again by the client
of the protocol, not here.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from scalable.errors import ExtraMissingError, InputError, MissingInputError, ScalableError, StoreError, require
from scalable.survey.root import is_remote

SINGLE_PUT_BYTES = 64 << 20
"""Up to this size a file is sent in one request, together with the digest that the server holds it against."""
HEAD_BYTES = 1 << 19
"""How much of an object is fetched at first where only headers are wanted."""
_FEW = 4
"""So many files of one folder are asked for one by one; more of them by listing it."""
_TAGS = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "created")
"""What protocols call that which changes with an object's content, the best first."""


@dataclass(frozen=True)
class Url:
    """An address on a server: the part of `pathlib.Path` that readers of a store use."""

    text: str

    def __truediv__(self, below: str | PurePosixPath) -> Url:  # noqa: D105
        return Url(f"{self.text}/{below}")

    def __str__(self) -> str:  # noqa: D105
        return self.text

    @property
    def name(self) -> str:
        """Last part of the address."""
        return self.text.rpartition("/")[2]

    @property
    def parent(self) -> Url:
        """Address without its last part."""
        return Url(self.text.rpartition("/")[0])

    @property
    def parents(self) -> tuple[Url, ...]:
        """All addresses above this one, the nearest first, that of the server or bucket last."""
        above = self.parent
        return (above, *above.parents) if not above.text.endswith("/") else ()

    def is_file(self) -> bool:
        """Return whether there is such an object."""
        with _speaking(self.text):
            system, path = _connect(self.text)
            return bool(system.isfile(path))

    exists = is_file

    def read_bytes(self) -> bytes:
        """Return the whole object."""
        with _speaking(self.text):
            system, path = _connect(self.text)
            return bytes(system.cat_file(path))

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return the whole object as text."""
        return self.read_bytes().decode(encoding)


Place = Path | Url
"""Where a store, or a file of one, is."""


def place(path: str | Path | Url) -> Place:
    """Return the absolute path, or the address, that a user's text names.

    Raises
    ------
    StoreError
        If the address holds a password: addresses are written into graphs and pages.
    """
    if isinstance(path, Url):
        return path
    if not is_remote(path):
        return Path(path).absolute()
    if urlsplit(str(path)).password is not None:
        raise StoreError("the URL of a store holds a password; credentials stand in the environment (AWS_*, FSSPEC_*)")
    return Url(str(path).rstrip("/"))


def local_place(path: str | Path) -> Path:
    """Return the absolute path that a user's text names, where a URL cannot be worked on."""
    found = place(path)
    if isinstance(found, Url):
        raise StoreError(f"{found}: lies on a server; this is done on this machine only: give a folder")
    return found


@contextmanager
def opened(path: Place) -> Iterator[Any]:
    """Give what pyarrow reads a file from: the path itself, or an open object of which only the parts asked for are fetched."""
    if isinstance(path, Path):
        yield path
        return
    with _speaking(path.text):
        system, inner = _connect(path.text)
        # Without a cache of its own: pyarrow asks for whole column chunks, and readahead would fetch their neighbours too.
        with system.open(inner, "rb", cache_type="none") as file:
            yield file


def states(paths: Sequence[str]) -> dict[str, tuple[int, object]]:
    """Return size [bytes] and time of change, or on a server the tag of the content, of every file that is there."""
    found: dict[str, tuple[int, object]] = {}
    folders: dict[str, list[str]] = {}
    for path in paths:
        if is_remote(path):
            folders.setdefault(path.rpartition("/")[0], []).append(path)
        elif Path(path).exists():
            stat = Path(path).stat()
            found[path] = (stat.st_size, stat.st_mtime_ns)
    for folder, members in folders.items():
        with _speaking(folder):
            found |= _states_in(folder, members)
    return found


def _states_in(folder: str, members: Sequence[str]) -> dict[str, tuple[int, object]]:
    system, inner = _connect(folder)
    listed: dict[str, dict[str, Any]] = {}
    if len(members) > _FEW:
        try:
            listed = {entry["name"]: entry for entry in system.ls(inner, detail=True)}
        except FileNotFoundError:
            return {}
    found: dict[str, tuple[int, object]] = {}
    for url in members:
        path = _connect(url)[1]
        entry = listed.get(path)
        if entry is None or entry.get("size") is None:
            try:
                entry = system.info(path)
            except FileNotFoundError:
                continue
        if entry["type"] == "file":
            found[url] = (int(entry["size"] or 0), next((str(entry[tag]) for tag in _TAGS if entry.get(tag)), ""))
    return found


def find_files(root: str, pattern: str) -> list[str]:
    """Return the paths below ``root`` of all objects that fit a glob; ``**`` stands for any folders."""
    with _speaking(root):
        fixed = list(takewhile(lambda part: not re.search(r"[*?\[]", part), pattern.split("/")))
        system, top = _connect(root)
        names = system.find("/".join([top, *fixed]))
        fits = re.compile(require("fsspec.utils", "s3").glob_translate(pattern))
        below = (name.removeprefix(f"{top}/") for name in names)
        return [name for name in below if fits.fullmatch(name)]


@contextmanager
def local_copy(path: str, folder: Path | None = None) -> Iterator[str]:
    """Give the path of a file itself, or of a copy of one object in a temporary folder, which goes when the body ends.

    What the body raises names the object, not the copy.

    Parameters
    ----------
    path : str
        A path or a URL.
    folder : Path, optional
        Where to put the copy; by default the system's folder of temporary files.

    Raises
    ------
    MissingInputError, InputError
        If the object is not there, or did not arrive whole; names the URL.
    """
    if not is_remote(path):
        yield path
        return
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with _beside(path, folder) as copy:
        fetch(path, copy)
        yield copy


@contextmanager
def local_head(url: str) -> Iterator[str]:
    """Give the path of a temporary file with the size of an object and its first `HEAD_BYTES`; zeros, not stored, follow."""
    with _beside(url) as copy:
        with _speaking(url):
            system, path = _connect(url)
            size = system.info(path)["size"] or 0
            data = system.cat_file(path, start=0, end=min(size, HEAD_BYTES)) if size else b""
        with open(copy, "wb") as file:
            file.write(data)
            file.truncate(size)
        yield copy


@contextmanager
def _beside(url: str, folder: Path | None = None) -> Iterator[str]:
    """Give the path of a temporary file to make; what the body raises names the object, not that file."""
    with tempfile.TemporaryDirectory(prefix=".tmp-", dir=folder) as temporary:
        copy = os.path.join(temporary, "copy")
        try:
            yield copy
        except Exception as error:
            error.args = tuple(arg.replace(copy, url) if isinstance(arg, str) else arg for arg in error.args)
            if isinstance(error, OSError) and error.filename == copy:
                error.filename = url
            raise


def fetch(url: str, copy: str) -> None:
    """Copy an object to a local file."""
    with _speaking(url):
        system, path = _connect(url)
        system.get_file(path, copy)
        size, there = os.path.getsize(copy), system.info(path)["size"]
        if there is not None and size != there:
            raise InputError(f"{url}: {size} of {there} bytes arrived: the connection was cut; run again")


def send(file: Path, url: Url) -> None:
    """Copy a local file to an object; the server holds what arrives against its digest."""
    with _speaking(url.text):
        system, path = _connect(url.text)
        # Larger files go in parts, each of which the client gives a checksum.
        one = file.stat().st_size <= SINGLE_PUT_BYTES
        system.put_file(str(file), path, **({"ContentMD5": base64.b64encode(_md5(file).digest()).decode()} if one else {}))


def arrived(url: Url) -> dict[str, tuple[int, str]]:
    """Return size [bytes] and tag of every object below a URL, by path below it; for writers, readers have manifests."""
    with _speaking(url.text):
        system, top = _connect(url.text)
        found = system.find(top, detail=True)
        return {name.removeprefix(f"{top}/"): (int(entry["size"]), str(entry["ETag"])) for name, entry in found.items()}


def is_sent(file: Path, state: tuple[int, str] | None) -> bool:
    """Return whether an object of this size and tag holds the bytes of a local file, as far as the tag is their MD5."""
    return state is not None and state[0] == file.stat().st_size and state[1].strip('"') == _md5(file).hexdigest()


def _md5(file: Path) -> Any:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False))


def read_pointer(url: Url) -> tuple[str, str] | None:
    """Return the text of a small object and the tag of this very content, or None where there is no such object."""
    with _speaking(url.text):
        system, path = _connect(url.text)
        while True:
            try:
                tag = system.info(path)["ETag"]
                text = bytes(system.cat_file(path)).decode()
                if system.info(path)["ETag"] == tag:
                    return text, tag
            except FileNotFoundError:
                return None


def replace_pointer(url: Url, text: str, before: tuple[str, str] | None) -> bool:
    """Write a small object if it still is as it was ``before``, and return whether it is written: of two writers one is told.

    Raises
    ------
    StoreError
        If the object cannot be written for another reason.
    """
    condition = {"IfMatch": before[1]} if before else {"mode": "create"}
    try:
        with _speaking(url.text):
            system, path = _connect(url.text)
            system.pipe_file(path, text.encode(), **condition)
    except StoreError:
        # The answer to a request that succeeded may be lost, and its repetition refused: the object itself tells.
        now = read_pointer(url)
        if now == before:
            raise
        return now is not None and now[0] == text
    return True


def _connect(url: str) -> tuple[Any, str]:
    """Return the file system of a URL and the path in it; made anew only where the process has none for this server yet."""
    # Listings are not kept: another writer may have changed what they say.
    system, path = require("fsspec", "s3").url_to_fs(url, use_listings_cache=False)
    return system, path


@contextmanager
def _speaking(url: str) -> Iterator[None]:
    """Turn whatever the client of a protocol raises into our errors, which name the URL."""
    try:
        yield
    except ScalableError:
        raise
    except FileNotFoundError as error:
        raise MissingInputError(f"{url}: no such object; check the address") from error
    except ImportError as error:
        raise ExtraMissingError(f"{url}: {error}; for s3:// run: pip install 'scalable-sky[s3]'") from error
    except Exception as error:
        raise StoreError(
            f"{url}: cannot be read or written ({type(error).__name__}: {error}); check the address, the credentials in the "
            "environment and AWS_ENDPOINT_URL"
        ) from error
