"""Files compressed with bzip2, unpacked from front to back with a limit on what a small file may swell to."""

from __future__ import annotations

import bz2
from collections.abc import Iterator

from scalable.errors import InputError
from scalable.io.limits import most_expanded
from scalable.io.stream import ByteStream

BZIP2 = b"BZh"
"""How a file compressed with bzip2 begins."""

_PIECE = 1 << 20


def unpack_bzip2(stream: ByteStream) -> Iterator[bytes]:
    """Yield what the streams of a file unpack to; whatever else follows them is passed over, as bunzip2 does.

    Raises
    ------
    InputError
        If the file is corrupt, cut, or swells beyond the limit.
    """
    given, limit = 0, most_expanded(stream.size)
    unpack = bz2.BZ2Decompressor()
    while True:
        held = b""
        if unpack.eof:
            held = unpack.unused_data + stream.read(_PIECE)
            if not held.startswith(BZIP2):
                stream.drain()
                return
            unpack = bz2.BZ2Decompressor()
        elif unpack.needs_input:
            held = stream.read(_PIECE)
            if not held:
                raise InputError(f"{stream.path}: the bzip2 stream is cut after {given} bytes: truncated; fetch it again")
        try:
            piece = unpack.decompress(held, _PIECE)
        except OSError as error:
            raise InputError(f"{stream.path}: corrupt bzip2 behind byte {given} ({error}); fetch it again") from error
        given += len(piece)
        if given > limit:
            raise InputError(
                f"{stream.path}: {stream.size} bytes of bzip2 swell to more than {limit}: refused as a decompression bomb; "
                "if it is none, run bunzip2 on it first"
            )
        yield piece
