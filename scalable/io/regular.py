"""The one way in which readers open a file of somebody else, by descriptor and never waiting, and feed it to a digest."""

from __future__ import annotations

import os
import stat

from scalable.errors import InputError, MissingInputError
from scalable.io.reader import Hash

_PIECE = 1 << 18


def open_regular(path: str, what: str) -> int:
    """Open a regular file for reading and return its descriptor, which the caller closes.

    Parameters
    ----------
    path : str
        The file.
    what : str
        What it should be, for the message if it is no file at all.

    Raises
    ------
    MissingInputError
        If there is no such file.
    InputError
        If it is something else than a file, or may not be read.
    """
    try:
        # Without O_NONBLOCK a named pipe would wait for a writer for ever.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingInputError(f"{path}: no such file; check the path in the survey's list of files") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be opened: {error}") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InputError(f"{path}: not a {what}: it is not a regular file")
    return descriptor


def feed(digest: Hash | None, path: str, descriptor: int, start: int, stop: int) -> None:
    """Give the bytes from ``start`` to ``stop`` to a digest, if there is one.

    Raises
    ------
    InputError
        If the file ends before.
    """
    while digest is not None and start < stop:
        try:
            piece = os.pread(descriptor, min(_PIECE, stop - start), start)
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from error
        if not piece:
            raise InputError(f"{path}: file ends at byte {start}, it had {stop}: it was cut while it was read; fetch it again")
        digest.update(piece)
        start += len(piece)
