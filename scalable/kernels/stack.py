"""Pixels of many windows: cut from an image bit for bit, and combined over exposures; every pixel says what became of it."""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Pixels = NDArray[Any]


class PixelState(IntEnum):
    """What became of a pixel of a cube; the codes are part of its contract."""

    MEASURED = 0
    MASKED = 1
    OUTSIDE = 2
    NOT_OBSERVED = 3


METHODS = ("mean", "median", "ivar", "clipped")
CLIP_SIGMA = 3.0
CLIP_ROUNDS = 5


def window_start(centre: NDArray[np.float64], size: int) -> Ints:
    """Return the first pixel of windows of ``size`` pixels around positions, placed as `astropy.nddata.Cutout2D` places them.

    Parameters
    ----------
    centre : ndarray, shape (n,)
        Positions along an axis, from 0 [pixel]; finite.
    size : int
        Pixels along it.
    """
    return np.ceil(centre - size / 2).astype(np.int64)


ROW_PIXELS = 4096
"""What it costs to read one more row, in pixels that could be read in its time."""


def strips(
    y0: Ints, x0: Ints, size: int, shape: tuple[int, int], most_pixels: int
) -> Iterator[tuple[Ints, tuple[int, int, int, int]]]:
    """Group windows that are read together.

    The rectangle around windows is read at once if that costs no more than reading each by itself, and is no larger than
    ``most_pixels``; if not, the windows are parted in the middle of its longer side, and so on.

    Parameters
    ----------
    y0, x0 : ndarray of int, shape (n,)
        First row and column of each window; a window may leave the image.
    size : int
        Rows and columns of a window.
    shape : tuple of int
        Rows and columns of the image.
    most_pixels : int
        A bound on memory; a single window may exceed it.

    Yields
    ------
    ndarray of int, tuple of int
        Which windows, and the rectangle inside the image that holds them: first and end row, first and end column.
    """
    top, bottom = np.clip(y0, 0, shape[0]), np.clip(y0 + size, 0, shape[0])
    left, right = np.clip(x0, 0, shape[1]), np.clip(x0 + size, 0, shape[1])
    cost = (bottom - top) * (ROW_PIXELS + right - left)
    waiting = [np.flatnonzero((bottom > top) & (right > left))]
    while waiting:
        which = waiting.pop()
        if len(which) == 0:
            continue
        edges = int(top[which].min()), int(bottom[which].max()), int(left[which].min()), int(right[which].max())
        rows, columns = edges[1] - edges[0], edges[3] - edges[2]
        if len(which) == 1 or (rows * columns <= most_pixels and rows * (ROW_PIXELS + columns) <= cost[which].sum()):
            yield which, edges
            continue
        order = which[np.argsort((top if rows >= columns else left)[which], kind="stable")]
        waiting += [order[: len(order) // 2], order[len(order) // 2 :]]


@njit(cache=True, nogil=True)
def place(part, top, left, y0, x0, slots, out):  # type: ignore[no-untyped-def]
    """Copy windows from a part of an image, value for value; what they have outside of it is left as it is.

    Parameters
    ----------
    part : ndarray, shape (rows, columns)
        Pixels in native byte order.
    top, left : int
        Place of its first pixel in the image.
    y0, x0 : ndarray of int, shape (m,)
        First pixel of each window in the image.
    slots : ndarray of int, shape (m,)
        Which window of ``out`` each one fills.
    out : ndarray, shape (n, size, size)
        Windows, changed in place.
    """
    rows, columns = part.shape
    height, width = out.shape[1:]
    for n in range(len(slots)):
        down, over = y0[n] - top, x0[n] - left
        first, last = max(0, -down), min(height, rows - down)
        begin, end = max(0, -over), min(width, columns - over)
        for row in range(first, last):
            for column in range(begin, end):
                out[slots[n], row, column] = part[row + down, column + over]


@njit(cache=True, nogil=True)
def mark(image, ivar, weighted, bits, bad, shape, y0, x0, slots, state):  # type: ignore[no-untyped-def]
    """Set the `PixelState` of windows of an image: outside of it, masked, or measured.

    Parameters
    ----------
    image, ivar, bits : ndarray, shape (n, rows, columns)
        Values, their inverse variances and their masks. NaN, or an inverse variance that is no positive number, is masked.
    weighted : bool
        Whether to look at the inverse variances.
    bad : int
        Bits of the mask that make a pixel bad; 0 passes the mask over.
    shape : tuple of int
        Rows and columns of the image.
    y0, x0, slots : ndarray of int, shape (m,)
        As of `place`.
    state : ndarray of uint8, shape (n, rows, columns)
        Changed in place.
    """
    height, width = image.shape[1:]
    for n in range(len(slots)):
        slot = slots[n]
        for row in range(height):
            for column in range(width):
                if not (0 <= y0[n] + row < shape[0] and 0 <= x0[n] + column < shape[1]):
                    state[slot, row, column] = 2
                    continue
                good = np.isfinite(image[slot, row, column])
                if weighted and not ivar[slot, row, column] > 0:
                    good = False
                if bad and bits[slot, row, column] & bad:
                    good = False
                state[slot, row, column] = 0 if good else 1


def combine(
    image: Pixels, ivar: NDArray[np.float32], state: NDArray[np.uint8], method: str
) -> tuple[Pixels, NDArray[np.float32], NDArray[np.uint8], NDArray[np.uint16]]:
    """Combine the exposures of windows, pixel by pixel, over what is measured.

    ========  ================================================================  ================================
    method    value                                                             inverse variance
    ========  ================================================================  ================================
    mean      sum of x / n                                                      n^2 / sum of s^2
    median    median of x                                                       that of the mean times 2 / pi
    ivar      sum of x / s^2 over sum of 1 / s^2                                sum of 1 / s^2
    clipped   mean of what lies within 3 sigma of the median, sigma being       that of the mean of what is left
              1.4826 MAD, clipped again until nothing goes (at most 5 times)
    ========  ================================================================  ================================

    The factor of the median is that of many Gaussian values; of one or two, the median is the mean. With fewer than three values
    nothing is clipped.

    Parameters
    ----------
    image, ivar, state : ndarray, shape (epochs, n, rows, columns)
        Values, inverse variances (NaN where unknown), `PixelState`.
    method : str
        One of `METHODS`.

    Returns
    -------
    image, ivar, state, used : ndarray, shape (n, rows, columns)
        NaN where nothing is measured; then the state is masked if an exposure covers the pixel, else outside if there is an
        exposure, else not observed. ``used`` counts the values that went in.
    """
    shape = image.shape[1:]
    out = np.full(shape, np.nan, image.dtype)
    weight = np.full(shape, np.nan, np.float32)
    used = np.zeros(shape, np.uint16)
    # The best of the states that are there: measured, masked, outside, not observed.
    best = state.min(axis=0, initial=int(PixelState.NOT_OBSERVED))
    flat = (array.reshape(len(image), out.size) for array in (image, ivar, state))
    _combine(*flat, METHODS.index(method), out.reshape(-1), weight.reshape(-1), used.reshape(-1))
    return out, weight, best.astype(np.uint8), used


@njit(cache=True, nogil=True)
def _combine(image, ivar, state, method, out, weight, used):  # type: ignore[no-untyped-def]
    epochs, pixels = image.shape
    values, variances = np.empty(epochs), np.empty(epochs)
    for pixel in range(pixels):
        n = 0
        for epoch in range(epochs):
            if state[epoch, pixel] == 0:
                values[n] = image[epoch, pixel]
                variances[n] = 1.0 / ivar[epoch, pixel]
                n += 1
        if n == 0:
            continue
        if method == 3:
            n = _clip(values, variances, n)
        total, total_variance, total_weight, weighted = 0.0, 0.0, 0.0, 0.0
        for k in range(n):
            total += values[k]
            total_variance += variances[k]
            total_weight += 1.0 / variances[k]
            weighted += values[k] / variances[k]
        used[pixel] = n
        if method == 2:
            out[pixel] = weighted / total_weight
            weight[pixel] = total_weight
            continue
        out[pixel] = np.median(values[:n]) if method == 1 else total / n
        weight[pixel] = n * n / total_variance * (2 / np.pi if method == 1 and n > 2 else 1.0)


@njit(cache=True, nogil=True)
def _clip(values, variances, n):  # type: ignore[no-untyped-def]
    """Move what is kept to the front and return how many values that are."""
    for _ in range(CLIP_ROUNDS):
        if n < 3:
            break
        middle = np.median(values[:n])
        reach = CLIP_SIGMA * 1.4826 * np.median(np.abs(values[:n] - middle))
        kept = 0
        for k in range(n):
            if abs(values[k] - middle) <= reach:
                values[kept], variances[kept] = values[k], variances[k]
                kept += 1
        if kept == n:
            break
        n = kept
    return n
