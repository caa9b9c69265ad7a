"""The footer of a Parquet file, as far as sizes go.

Arrow's own objects for column chunks end the process on a footer that contradicts itself (a C++ exception that Cython does not
catch: 5 of 1,200 damaged files), so the few numbers that are needed before anything is decoded are read here, from Thrift's
compact protocol.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

_MAGIC = b"PAR1"
_DEEPEST = 32


@dataclass(frozen=True)
class Chunk:
    """One column of a row group, as it lies in the file."""

    physical: int
    values: int
    uncompressed: int
    compressed: int
    start: int
    coded: bool


@dataclass(frozen=True)
class Group:
    """A row group; chunks are in the order of the schema's leaves."""

    rows: int
    chunks: list[Chunk]

    @property
    def bytes(self) -> int:
        """Size of all pages once decompressed."""
        return sum(chunk.uncompressed for chunk in self.chunks)

    @property
    def end(self) -> int:
        """Where the last chunk ends."""
        return max((chunk.start + chunk.compressed for chunk in self.chunks), default=0)


def read_footer(descriptor: int, size: int) -> bytes:
    """Return the raw footer with its length and magic behind it.

    Raises
    ------
    ValueError
        If there is none.
    """
    tail = os.pread(descriptor, 8, max(size - 8, 0))
    if tail[4:] != _MAGIC or os.pread(descriptor, 4, 0) != _MAGIC:
        raise ValueError("it does not begin and end with PAR1")
    length = int.from_bytes(tail[:4], "little")
    if length + 12 > size:
        raise ValueError(f"a footer of {length} bytes in a file of {size}")
    return os.pread(descriptor, length + 8, size - 8 - length)


def row_groups(footer: bytes, leaves: int) -> list[Group]:
    """Return the row groups of a file whose schema has so many leaves.

    Raises
    ------
    ValueError
        If the footer is damaged, or puts columns into other files.
    """
    try:
        said = _Compact(footer[:-8]).struct(0)
        groups = [Group(_count(group[3]), [_chunk(chunk) for chunk in group.get(1, ())]) for group in said.get(4, ())]
    except (IndexError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"its footer is damaged: {type(error).__name__} {error}") from error
    for number, group in enumerate(groups):
        if len(group.chunks) != leaves:
            raise ValueError(f"row group {number} has {len(group.chunks)} columns, the schema {leaves}")
    return groups


def _chunk(said: dict[int, Any]) -> Chunk:
    if said.get(1):
        raise ValueError(f"a column lies in another file, {said[1]!r}, which is not opened")
    meta = said[3]
    start, coded = meta[9], 11 in meta
    if coded and 0 < meta[11] < start:
        start = meta[11]
    return Chunk(_count(meta[1]), _count(meta[5]), _count(meta[6]), _count(meta[7]), _count(start), coded)


def _count(value: object) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError(f"its footer is damaged: {value!r} where a whole number from 0 is needed")
    return value


class _Compact:
    """Reads Thrift's compact protocol into dictionaries by field number, lists, bytes and numbers."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def struct(self, depth: int) -> dict[int, Any]:
        """Read fields up to the stop."""
        if depth > _DEEPEST:
            raise ValueError("its footer is damaged: nested too deeply")
        fields: dict[int, Any] = {}
        number = 0
        while head := self._byte():
            step = head >> 4
            number = number + step if step else self._signed()
            kind = head & 15
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind, depth + 1)
        return fields

    def _value(self, kind: int, depth: int) -> Any:
        if kind in (4, 5, 6):
            return self._signed()
        if kind == 8:
            return self._take(self._unsigned())
        if kind == 12:
            return self.struct(depth)
        if kind in (9, 10):
            head = self._byte()
            return self._items(head >> 4 if head >> 4 != 15 else self._unsigned(), (head & 15,), depth)
        if kind == 11:
            size = self._unsigned()
            kinds = self._byte() if size else 0
            return self._items(size, (kinds >> 4, kinds & 15), depth)
        sizes = {1: 1, 2: 1, 3: 1, 7: 8, 13: 16}
        return self._take(sizes[kind])

    def _items(self, size: int, kinds: tuple[int, ...], depth: int) -> list[Any]:
        if size > len(self._data) - self._at or depth > _DEEPEST:
            raise ValueError(f"its footer is damaged: a list of {size} items")
        return [self._value(kind, depth + 1) for _ in range(size) for kind in kinds]

    def _take(self, size: int) -> bytes:
        if size > len(self._data) - self._at:
            raise ValueError(f"its footer is damaged: {size} bytes beyond its end")
        self._at += size
        return self._data[self._at - size : self._at]

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            if (shift := shift + 7) > 63:
                raise ValueError("its footer is damaged: a number of more than 64 bits")

    def _signed(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
