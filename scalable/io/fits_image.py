"""FITS images: every header as it is in the file, and windows of pixels, of which only the rows needed are read.

What a pixel becomes is what astropy makes of it, in native byte order:

==================  =======================================  =====================================
BITPIX              plain or under the unsigned convention   scaled, or with a BLANK
==================  =======================================  =====================================
8 16                uint8 (int8), int16 (uint16)             float32
32 64               int32 (uint32), int64 (uint64)           float64
-32 -64             float32, float64                         float32, float64
==================  =======================================  =====================================

Pixels that are BLANK become NaN. Images compressed in tiles are decoded by astropy, only the tiles that a window touches, and
those of HCOMPRESS in a process of their own; files compressed with gzip or bzip2 are unpacked once into a temporary file.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from astropy.io import fits

from scalable.errors import InputError
from scalable.io.fits_header import FitsFile, Header, data_bytes, open_fits, parse_header
from scalable.io.image_reader import ImageFile, ImageHdu, Pixels, Window, checked_hdu, checked_window
from scalable.io.limits import most_expanded
from scalable.io.remote import local_copy
from scalable.io.tile_decoder import TileDecoder, decode

_STORED = {8: "u1", 16: ">i2", 32: ">i4", 64: ">i8", -32: ">f4", -64: ">f8"}
_OTHER_SIGN: dict[tuple[int, float], str] = {(8, -128): "i1", (16, 1 << 15): "u2", (32, 1 << 31): "u4", (64, 1 << 63): "u8"}
_APART = ("HCOMPRESS_1",)
"""Methods whose decoder writes beside its memory where the stream is damaged: it has a process of its own."""
_NARROW = 4
"""A window less wide than this part of the image is read row by row; a wider one with all columns at once."""


@dataclass(frozen=True)
class FitsImage:
    """Reads images in FITS files (`ImageReader`)."""

    @contextmanager
    def opened(self, path: str) -> Iterator[ImageFile]:
        """Open a file, unpacking it if it is compressed, and read all headers.

        Raises
        ------
        InputError
            If it is missing, cut, corrupt or no FITS file; names HDU and keyword.
        """
        with local_copy(path) as here, open_fits(here) as file:
            found = _FitsImages(file, tuple(_hdus(file)))
            try:
                yield found
            finally:
                found.close()


@dataclass(frozen=True)
class _Scale:
    """How stored numbers become values: ``dtype`` is theirs, ``flip`` the bits that make a number one of the other sign."""

    dtype: np.dtype[Any]
    flip: int = 0
    scale: float = 1.0
    zero: float = 0.0
    blank: int | None = None

    def apply(self, stored: Pixels) -> Pixels:
        """Return the values of stored, big-endian numbers, computed as astropy does."""
        native = stored.astype(stored.dtype.newbyteorder("="))
        if self.flip:
            return (native.view(f"u{native.itemsize}") ^ np.array(self.flip, f"u{native.itemsize}")).view(self.dtype)
        if (self.scale, self.zero, self.blank) == (1.0, 0.0, None):
            return native
        values = native.astype(self.dtype)
        if self.scale != 1:
            np.multiply(values, self.scale, values)
        if self.zero != 0:
            values += self.zero
        if self.blank is not None:
            values[native == self.blank] = np.nan
        return values


@dataclass(frozen=True)
class _FitsHdu(ImageHdu):
    """An HDU with where its pixels are and how they are stored; ``stored`` is empty for tiles."""

    data_at: int = 0
    stored: str = ""
    scaled: _Scale = _Scale(np.dtype(np.float32))
    apart: bool = False


def _hdus(file: FitsFile) -> Iterator[_FitsHdu]:
    """Read all headers; a file that is shorter than they promise is refused."""
    for number, (raw, data_at) in enumerate(file.walk()):
        header = parse_header(raw)
        name = header.text("EXTNAME")
        tiled = number > 0 and header.values.get("ZIMAGE") is True and header.text("XTENSION") == "BINTABLE"
        if not tiled and (header.text("XTENSION") not in ("", "IMAGE") or header.values.get("GROUPS") is True):
            yield _FitsHdu(number, name, raw)
            continue
        prefix = "Z" if tiled else ""
        try:
            axes = header.integer(f"{prefix}NAXIS")
            shape = tuple(header.integer(f"{prefix}NAXIS{n}") for n in range(min(axes, 999), 0, -1))
            bits = header.values.get(f"{prefix}BITPIX")
            if bits not in _STORED:
                raise ValueError(f"{prefix}BITPIX is {bits!r}, one of {', '.join(map(str, _STORED))} is needed")
            scaled = _scale(header, int(bits))
            if tiled:
                _check_tiles(header, shape, data_bytes(raw))
        except ValueError as error:
            raise InputError(f"{file.path}: HDU {number}: {error}") from error
        stored = "" if tiled else _STORED[int(bits)]
        apart = tiled and header.text("ZCMPTYPE") in _APART
        yield _FitsHdu(number, name, raw, shape, scaled.dtype, data_at, stored, scaled, apart)


def _check_tiles(header: Header, shape: tuple[int, ...], stored: int) -> None:
    """Refuse tiles that do not make the image, and such as swell beyond measure."""
    sizes = [(n, size) for n, size in enumerate(reversed(shape), 1) if size]
    tile = [max(1, min(header.integer(f"ZTILE{n}", size if n == 1 else 1), size)) for n, size in sizes]
    number = math.prod(-(-size // side) for (_, size), side in zip(sizes, tile, strict=True))
    if header.integer("NAXIS2") != number and 0 not in shape:
        raise ValueError(
            f"NAXIS2 is {header.integer('NAXIS2')}, but {number} tiles make an image of ZNAXIS and ZTILE as they are"
        )
    if (whole := 8 * math.prod(tile)) > (limit := most_expanded(stored)):
        raise ValueError(
            f"ZTILE: tiles of up to {whole} bytes in {stored}, at most {limit} are read: refused as a decompression bomb; if it "
            "is none, run funpack on the file first"
        )


def _scale(header: Header, bits: int) -> _Scale:
    """Read BSCALE, BZERO and BLANK."""
    numbers = []
    for keyword, default in (("BSCALE", 1), ("BZERO", 0)):
        value = header.values.get(keyword, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{keyword} is {value!r}, a number is needed")
        numbers.append(value)
    scale, zero = numbers
    blank = header.values.get("BLANK", header.values.get("ZBLANK")) if bits > 0 else None
    if blank is not None and (isinstance(blank, bool) or not isinstance(blank, int)):
        raise ValueError(f"BLANK is {blank!r}, a whole number is needed")
    plain = np.dtype(_STORED[bits]).newbyteorder("=")
    if scale == 1 and blank is None and (bits, zero) in _OTHER_SIGN:
        return _Scale(np.dtype(_OTHER_SIGN[bits, zero]), flip=1 << (bits - 1))
    if bits > 0 and (scale != 1 or zero != 0 or blank is not None):
        plain = np.dtype(np.float32 if bits <= 16 else np.float64)
    return _Scale(plain, scale=float(scale), zero=float(zero), blank=blank)


@dataclass(frozen=True)
class _FitsImages:
    """An open FITS file."""

    file: FitsFile
    hdus: tuple[_FitsHdu, ...]

    def read(self, hdu: int, window: Window | None = None, *, plane: int = 0) -> Pixels:
        """Return the pixels of a window, shape (rows, columns).

        Raises
        ------
        InputError
            If the HDU holds no such window, or its pixels are damaged.
        """
        info = self.hdus[checked_hdu(self, self.file.path, hdu, plane).number]
        window = checked_window(self.file.path, info, window)
        if 0 in window.shape:
            return np.empty(window.shape, info.dtype)
        return self._tiles(info, window, plane) if not info.stored else info.scaled.apply(self._plain(info, window, plane))

    def _plain(self, info: _FitsHdu, window: Window, plane: int) -> Pixels:
        rows, columns = info.shape[-2:]
        height, width = window.shape
        size = np.dtype(info.stored).itemsize
        start = info.data_at + (plane * rows + window.y0) * columns * size
        if width * _NARROW >= columns:
            whole = np.empty((height, columns), info.stored)
            self.file.read_into(_bytes(whole), start, info.number)
            return whole[:, window.x0 : window.x1]
        part = np.empty((height, width), info.stored)
        view, step = _bytes(part), width * size
        for row in range(height):
            at = start + (row * columns + window.x0) * size
            self.file.read_into(view[row * step : (row + 1) * step], at, info.number)
        return part

    def _tiles(self, info: _FitsHdu, window: Window, plane: int) -> Pixels:
        where: list[int | slice] = [int(axis) for axis in np.unravel_index(plane, info.shape[:-2])]
        where += [slice(window.y0, window.y1), slice(window.x0, window.x1)]
        try:
            pixels = self._decoder.decode(info.number, where) if info.apart else decode(self._astropy, info.number, where)
            if pixels.shape != window.shape:
                raise ValueError(f"{pixels.shape} pixels instead of {window.shape}: its header contradicts itself")
            return pixels
        except Exception as error:  # of several decoders, none of which says what it raises
            raise InputError(
                f"{self.file.path}: HDU {info.number}: its tiles cannot be decoded ({error}): corrupt; fetch the file again"
            ) from error

    @cached_property
    def _decoder(self) -> TileDecoder:
        return TileDecoder(self.file.descriptor)

    @cached_property
    def _astropy(self) -> fits.HDUList:
        # A descriptor of its own: astropy moves its position, and closes it.
        stream = io.BufferedReader(io.FileIO(os.dup(self.file.descriptor), "rb"))
        stream.seek(0)
        return fits.open(stream, memmap=False, lazy_load_hdus=True)

    def close(self) -> None:
        """Close what astropy opened, and end the process that decodes."""
        if "_decoder" in self.__dict__:
            self._decoder.close()
        if "_astropy" in self.__dict__:
            self._astropy.close()


def _bytes(pixels: Pixels) -> memoryview:
    return memoryview(pixels).cast("B")  # type: ignore[arg-type]
