"""The reader protocol of images: what every format gives to cubes, and the fake that tests it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from scalable.errors import InputError, MissingInputError

Pixels = NDArray[Any]


@dataclass(frozen=True)
class Window:
    """A rectangle of pixels: rows ``y0`` to ``y1`` and columns ``x0`` to ``x1``, from 0, the ends not included."""

    y0: int
    y1: int
    x0: int
    x1: int

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.y1 - self.y0, self.x1 - self.x0


@dataclass(frozen=True)
class ImageHdu:
    """What one HDU of a file is, from its header alone.

    Attributes
    ----------
    number : int
        From 0, the primary.
    name : str
        EXTNAME, or empty.
    header : bytes
        Raw header, byte for byte as in the file, padding included.
    shape : tuple of int
        Planes, rows and columns in C order; empty where the HDU holds no image.
    dtype : numpy.dtype
        Of its pixels as `ImageFile.read` returns them, in native byte order.
    """

    number: int
    name: str
    header: bytes
    shape: tuple[int, ...] = ()
    dtype: np.dtype[Any] = np.dtype(np.float32)

    @property
    def is_image(self) -> bool:
        """Whether it holds rows and columns of pixels."""
        return len(self.shape) >= 2 and 0 not in self.shape


class ImageFile(Protocol):
    """An open file of images."""

    @property
    def hdus(self) -> tuple[ImageHdu, ...]:
        """Every HDU in order, tables and empty ones too."""

    def read(self, hdu: int, window: Window | None = None, *, plane: int = 0) -> Pixels:
        """Return the pixels of a window, shape (rows, columns), of a plane counted in C order; NaN where there is no value."""


class ImageReader(Protocol):
    """What a format must give."""

    def opened(self, path: str) -> AbstractContextManager[ImageFile]:
        """Open a file; all its headers are read, and that it holds the pixels they promise is known, no pixel is read."""


@dataclass(frozen=True)
class FakeImages:
    """A reader over arrays in memory, for tests: path to HDUs, each a raw header and its pixels or None; counts what it opens."""

    files: Mapping[str, list[tuple[bytes, Pixels | None]]]
    opens: dict[str, int]

    @contextmanager
    def opened(self, path: str) -> Iterator[ImageFile]:
        """Open what stands for a file."""
        if path not in self.files:
            raise MissingInputError(f"{path}: no such file")
        self.opens[path] = self.opens.get(path, 0) + 1
        yield _FakeFile(path, self.files[path])


@dataclass(frozen=True)
class _FakeFile:
    path: str
    content: list[tuple[bytes, Pixels | None]]

    @property
    def hdus(self) -> tuple[ImageHdu, ...]:
        return tuple(
            ImageHdu(n, "", header) if pixels is None else ImageHdu(n, "", header, pixels.shape, pixels.dtype)
            for n, (header, pixels) in enumerate(self.content)
        )

    def read(self, hdu: int, window: Window | None = None, *, plane: int = 0) -> Pixels:
        info = checked_hdu(self, self.path, hdu, plane)
        pixels = self.content[hdu][1]
        flat = np.asarray(pixels).reshape(-1, *info.shape[-2:])[plane]
        window = checked_window(self.path, info, window)
        return flat[window.y0 : window.y1, window.x0 : window.x1]


def checked_hdu(file: ImageFile, path: str, hdu: int, plane: int) -> ImageHdu:
    """Return an HDU that holds the plane asked for.

    Raises
    ------
    InputError
        If there is no such HDU, it holds no image, or has fewer planes.
    """
    if not 0 <= hdu < len(file.hdus):
        raise InputError(f"{path}: HDU {hdu} does not exist: the file holds HDU 0 to {len(file.hdus) - 1}")
    info = file.hdus[hdu]
    if not info.is_image:
        images = [other.number for other in file.hdus if other.is_image]
        raise InputError(f"{path}: HDU {hdu} holds no image; HDUs that do: {', '.join(map(str, images)) or 'none'}")
    planes = int(np.prod(info.shape[:-2], dtype=np.int64))
    if not 0 <= plane < planes:
        raise InputError(f"{path}: HDU {hdu} has planes 0 to {planes - 1}, not {plane}")
    return info


def checked_window(path: str, info: ImageHdu, window: Window | None) -> Window:
    """Return the window, or the whole plane where there is none; a window that leaves the plane is refused."""
    rows, columns = info.shape[-2:]
    if window is None:
        return Window(0, rows, 0, columns)
    if not (0 <= window.y0 <= window.y1 <= rows and 0 <= window.x0 <= window.x1 <= columns):
        raise InputError(f"{path}: HDU {info.number}: {window} leaves the image of {rows} rows and {columns} columns")
    return window
