"""Tiles of an image decoded in a process of their own: on a damaged file a C library may crash, and takes only this with it.

``python -m scalable.io.tile_decoder DESCRIPTOR`` reads a FITS file from a descriptor it inherits. Each line of its standard input
is JSON, an HDU and for each axis a number or first and end; it answers with a line of JSON and the bytes of the pixels.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from astropy.io import fits
from astropy.io.fits.verify import VerifyWarning
from numpy.typing import NDArray

Pixels = NDArray[Any]

_SECONDS = 60.0
"""What the tiles of one window may take to decode; what the process waits for a disk does not count."""


def decode(file: fits.HDUList, hdu: int, where: Sequence[int | slice]) -> Pixels:
    """Return a part of an image in tiles, in native byte order; raises whatever the decoders of the library raise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", VerifyWarning)
        pixels = np.asarray(file[hdu].section[tuple(where)])
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


class TileDecoder:
    """A process that decodes tiles of an open file; it starts with the first of them, which costs about half a second."""

    def __init__(self, descriptor: int) -> None:
        path = os.pathsep.join(place or os.getcwd() for place in sys.path)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "scalable.io.tile_decoder", str(descriptor)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[descriptor],
            env={**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
        )

    def decode(self, hdu: int, where: Sequence[int | slice]) -> Pixels:
        """Return what `decode` returns.

        Raises
        ------
        ValueError
            If that raises, or ends the process.
        """
        asked, said = self._process.stdin, self._process.stdout
        if asked is None or said is None:
            raise ValueError("the process that decodes has no pipes")
        axes = [[one.start, one.stop] if isinstance(one, slice) else one for one in where]
        try:
            asked.write(json.dumps([hdu, axes]).encode() + b"\n")
            asked.flush()
            answer = json.loads(said.readline() or b"{}")
        except BrokenPipeError:
            answer = {}
        if "error" in answer:
            raise ValueError(answer["error"])
        size = answer.get("bytes", -1)
        if size < 0 or len(raw := said.read(size)) != size:
            code = self._process.wait()
            raise ValueError(f"the decoder was ended by {signal.Signals(-code).name if code < 0 else f'exit code {code}'}")
        return np.frombuffer(raw, answer["dtype"]).reshape(answer["shape"])

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        with contextlib.suppress(BrokenPipeError), self._process:  # what it was never told goes with it
            pass


class _ByPosition(io.RawIOBase):
    """Reads from a descriptor whose position is another process's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._at = descriptor, 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that it has a position."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Move."""
        size = os.fstat(self._descriptor).st_size
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: size}[whence]
        return self._at

    def readinto(self, view: Any) -> int:
        """Read from the position on."""
        count = os.preadv(self._descriptor, [view], self._at)
        self._at += count
        return count


def main() -> None:
    """Answer the requests on standard input."""
    # Whatever a library writes to standard output must not get between the pixels.
    with os.fdopen(os.dup(1), "wb") as sink:
        os.dup2(2, 1)
        with fits.open(io.BufferedReader(_ByPosition(int(sys.argv[1]))), memmap=False, lazy_load_hdus=True) as file:
            for line in sys.stdin:
                hdu, axes = json.loads(line)
                signal.setitimer(signal.ITIMER_PROF, _SECONDS)
                raw = b""
                try:
                    pixels = decode(file, hdu, [slice(*one) if isinstance(one, list) else one for one in axes])
                    raw = pixels.tobytes()
                    answer = {"dtype": pixels.dtype.str, "shape": pixels.shape, "bytes": len(raw)}
                except Exception as error:  # of several decoders, none of which says what it raises
                    answer = {"error": str(error)}
                signal.setitimer(signal.ITIMER_PROF, 0)
                sink.write(json.dumps(answer).encode() + b"\n" + raw)
                sink.flush()


if __name__ == "__main__":
    main()
