"""Files that appear whole or not at all: write aside, fsync, rename."""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from scalable.errors import StoreError


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Give a temporary path beside ``path``; at the end it is synced and renamed to ``path`` in one step.

    If the body raises, nothing appears and the temporary file is removed. A killed process leaves at most a file whose name
    starts with ``.tmp-``, which no reader looks at.

    Raises
    ------
    StoreError
        If the disk is full, or the file cannot be written for another reason.
    """
    temporary = path.parent / f".tmp-{secrets.token_hex(6)}-{path.name}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(f"{path}: cannot be written ({error}); make room or mend that, then run again") from error


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write a whole file atomically."""
    with aside(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: Path, text: str) -> None:
    """Write a whole UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def point(link: Path, target: str) -> None:
    """Make ``link`` a symbolic link to ``target``, replacing the old one in one rename."""
    temporary = link.parent / f".tmp-{secrets.token_hex(6)}-{link.name}"
    try:
        temporary.symlink_to(target)
        os.replace(temporary, link)
    finally:
        temporary.unlink(missing_ok=True)
    sync(link.parent)


def link(old: Path, new: Path) -> None:
    """Make ``new`` the same file as ``old``; a copy where the file system has no hard links, or no more of this file."""
    new.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(old, new)
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP):
            raise
        with aside(new) as temporary:
            shutil.copyfile(old, temporary)


def publish(folder: Path, destination: Path) -> None:
    """Sync a finished folder with all it holds, then move it to ``destination``, which must not exist, in one rename."""
    for directory, _, names in os.walk(folder):
        for name in names:
            sync(Path(directory) / name)
        sync(Path(directory))
    destination.parent.mkdir(parents=True, exist_ok=True)
    os.rename(folder, destination)
    sync(destination.parent)


@contextmanager
def holding(folder: Path, *, unwritable: str, instead: str, busy: str) -> Iterator[None]:
    """Hold the lock of a folder, made if need be; a killed process loses it by itself.

    Raises
    ------
    StoreError
        With ``unwritable``, the system's reason and what to do ``instead``; with ``busy`` if another process holds it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise StoreError(f"{unwritable} ({error}); {instead}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(busy) from None
        yield


def sync(path: Path) -> None:
    """Force a file's bytes, or a directory's entries, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
