"""The bytes of a text file from front to back, gunzipped on the way, with a limit on what a small file may swell to."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from scalable.errors import InputError
from scalable.io.limits import most_expanded
from scalable.io.reader import Hash
from scalable.io.regular import open_regular

GZIP = b"\x1f\x8b"
"""How a file compressed with gzip begins."""

_PIECE = 1 << 17


class ByteStream:
    """An open file that gives its decompressed bytes in order, and its stored bytes to a digest; see `open_stream`."""

    def __init__(self, path: str, file: BinaryIO, digest: Hash | None) -> None:
        self.path = path
        self.size = os.fstat(file.fileno()).st_size
        self._file = file
        self._digest = digest
        self._given = 0
        self._held = self._stored()  # stored bytes that are not yet inflated, or not yet given
        self._inflate = zlib.decompressobj(wbits=31) if self._held.startswith(GZIP) else None

    def read(self, count: int) -> bytes:
        """Return the next bytes, ``count`` of them unless the file ends before; at least one of them unless it has ended.

        Raises
        ------
        InputError
            If compressed bytes are corrupt, cut, or swell beyond the limit.
        """
        pieces, needed = [], max(count, 1)
        while needed:
            piece = self._plain(needed) if self._inflate is None else self._inflated(needed)
            if not piece:
                break
            pieces.append(piece)
            needed -= len(piece)
            self._given += len(piece)
        return b"".join(pieces)

    def drain(self) -> None:
        """Read to the end of the file, so that the digest has all of it."""
        while self.read(_PIECE):
            pass

    def _stored(self) -> bytes:
        try:
            raw = self._file.read(_PIECE)
        except OSError as error:
            raise OSError(error.errno, error.strerror, self.path) from error
        if self._digest is not None:
            self._digest.update(raw)
        return raw

    def _plain(self, needed: int) -> bytes:
        piece = self._held or self._stored()
        self._held = piece[needed:]
        return piece[:needed]

    def _inflated(self, needed: int) -> bytes:
        """Return some inflated bytes, or none at the end of the last member."""
        while True:
            if self._inflate is None or (self._inflate.eof and not self._next_member()):
                return b""
            self._held = self._held or self._stored()
            if not self._held:
                raise InputError(f"{self.path}: the gzip stream is cut after {self._given} bytes: truncated; fetch it again")
            try:
                piece = self._inflate.decompress(self._held, needed)
            except zlib.error as error:
                raise InputError(f"{self.path}: corrupt gzip behind byte {self._given} ({error}); fetch it again") from error
            self._held = self._inflate.unconsumed_tail or self._inflate.unused_data
            self._check_size(len(piece))
            if piece:
                return piece

    def _next_member(self) -> bool:
        """Begin the next of several gzip members, behind zeros or not; whatever else follows is passed over, as gunzip does."""
        self._held = self._held.lstrip(b"\0")
        while len(self._held) < len(GZIP) and (more := self._stored()):
            self._held = (self._held + more).lstrip(b"\0")
        if self._held.startswith(GZIP):
            self._inflate = zlib.decompressobj(wbits=31)
            return True
        while self._held:
            self._held = self._stored()
        return False

    def _check_size(self, more: int) -> None:
        if self._given + more > (limit := most_expanded(self.size)):
            raise InputError(
                f"{self.path}: {self.size} bytes of gzip swell to more than {limit}: refused as a decompression bomb; "
                "if it is none, run gunzip on it first"
            )


@contextmanager
def open_stream(path: str, digest: Hash | None = None) -> Iterator[ByteStream]:
    """Open a file, compressed with gzip or not (its first bytes tell), for reading from front to back.

    Raises
    ------
    MissingInputError
        If there is no such file.
    InputError
        If it is something else than a file, or may not be read.
    """
    with open(open_regular(path, "table"), "rb", buffering=0) as file:
        yield ByteStream(path, file, digest)
