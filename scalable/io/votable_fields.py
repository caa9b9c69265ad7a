"""The columns of a VOTable: what a FIELD declares, and Arrow values of its cells, written as text or as bytes.

===============  ============================================  ===========================================================
datatype         Arrow type                                    null where, besides an empty TD and a null bit of BINARY2
===============  ============================================  ===========================================================
boolean          bool                                          neither true nor false: ``?``, blank, NUL
bit              bool                                          never
unsignedByte     uint8                                         the number of VALUES null
short int long   int16 int32 int64                             the number of VALUES null
float double     float double                                  NaN, or the number of VALUES null
floatComplex     fixed_size_list[2] of float                   (items) NaN
doubleComplex    fixed_size_list[2] of double                  (items) NaN
char             string; UTF-8, or Latin-1 where it is not     it is empty
unicodeChar      string                                        it is empty
arraysize n      fixed_size_list[n]; of n x m flat, the        (items) as above
                 column's ``shape`` is ``m,n``
arraysize *      list; of n x * flat                           (items) as above
===============  ============================================  ===========================================================
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from scalable.errors import nearest
from scalable.io.text_cells import Bytes, convert, null_nan
from scalable.schema import Column

Ints = npt.NDArray[np.int64]

_KINDS = {
    "boolean": (pa.bool_(), "u1"), "bit": (pa.bool_(), "u1"), "unsignedByte": (pa.uint8(), "u1"),
    "short": (pa.int16(), ">i2"), "int": (pa.int32(), ">i4"), "long": (pa.int64(), ">i8"),
    "float": (pa.float32(), ">f4"), "double": (pa.float64(), ">f8"),
    "floatComplex": (pa.float32(), ">f4"), "doubleComplex": (pa.float64(), ">f8"),
    "char": (pa.string(), "u1"), "unicodeChar": (pa.string(), "u2"),
}  # fmt: skip
_SIZE = re.compile(r"\s*((?:\d+x)*)(\d+|\d*\*)\s*$")
_LOGICALS = pa.array(["true", "t", "1", "false", "f", "0", "?", ""])
_LONGEST = 1 << 20  # items of a fixed array


@dataclass(frozen=True)
class VoField:
    """One FIELD.

    Attributes
    ----------
    column : Column
        What it becomes.
    datatype : str
        As declared.
    count : int or None
        Items in a cell, the characters of a text and the two parts of a complex number counted; None is any number.
    several : bool
        Whether a cell is an array.
    step : int
        Items in each of what the length of a variable array counts.
    null : str
        Text of the item that means null, or empty.
    """

    column: Column
    datatype: str
    count: int | None
    several: bool
    step: int
    null: str

    @property
    def item_bytes(self) -> int:
        """Bytes of an item in a binary stream; for bits, those of eight."""
        return np.dtype(_KINDS[self.datatype][1]).itemsize

    @property
    def is_text(self) -> bool:
        """Whether a cell is a text."""
        return self.datatype in ("char", "unicodeChar")

    def from_text(self, cells: pa.Array) -> pa.Array:
        """Make values of the texts of TD elements; null where a text is empty.

        Raises
        ------
        CellError
            Naming the first cell that is not as declared.
        """
        if self.is_text:
            return pc.if_else(pc.equal(cells, ""), pa.scalar(None, pa.string()), cells)
        return convert(pc.utf8_trim_whitespace(cells), self._from_words)

    def _from_words(self, cells: pa.Array) -> pa.Array:
        valid = pc.not_equal(cells, "")
        if self.count == 1 and not self.several:
            return self._numbers(pc.if_else(valid, cells, pa.scalar(None, pa.string())))
        if self.datatype == "bit":
            cells = pc.utf8_trim_whitespace(pc.replace_substring_regex(cells, r"([01])", r"\1 "))
        words = pc.utf8_split_whitespace(pc.if_else(valid, cells, pa.scalar(None, pa.string())))
        counts = pc.fill_null(pc.list_value_length(words), 0).to_numpy().astype(np.int64)
        flags = valid.to_numpy(zero_copy_only=False)
        if self.count is None:
            if (counts % self.step).any():
                raise ValueError("not a multiple of the fixed dimensions")
        elif (counts[flags] != self.count).any():
            raise ValueError("not as many items as arraysize says")
        return self._cells(self._numbers(words.flatten()), counts, flags)

    def _numbers(self, words: pa.Array) -> pa.Array:
        """Parse words, each one item."""
        dtype = _KINDS[self.datatype][0]
        if pa.types.is_boolean(dtype):
            places = pc.index_in(pc.utf8_lower(words), _LOGICALS)
            if pc.any(pc.and_(pc.is_null(places), pc.is_valid(words))).as_py():
                raise ValueError("neither true nor false")
            known = pc.less(places, 6)
            return pc.if_else(pc.fill_null(known, False), pc.less(places, 3), pa.scalar(None, pa.bool_()))
        if self.null:
            words = pc.if_else(pc.equal(words, self.null), pa.scalar(None, pa.string()), words)
        if pa.types.is_integer(dtype):
            words = pc.replace_substring_regex(words, r"^\+", "")
        return self._without_null(pc.cast(words, dtype))

    def _without_null(self, values: pa.Array) -> pa.Array:
        values = null_nan(values)
        if not self.null:
            return values
        try:
            null = pc.cast(pa.scalar(self.null.strip().removeprefix("+")), values.type)
        except pa.ArrowInvalid:
            return values  # no item can equal it
        return pc.if_else(pc.equal(values, null), pa.scalar(None, values.type), values)

    def _cells(self, items: pa.Array, counts: Ints, valid: npt.NDArray[np.bool_]) -> pa.Array:
        """Lay cells over flat items; fixed cells that are not valid have none."""
        dtype, whole = self.column.dtype, bool(valid.all())
        if pa.types.is_nested(dtype.value_type):
            items, counts = pa.FixedSizeListArray.from_arrays(items, 2), counts // 2
        if pa.types.is_fixed_size_list(dtype):
            size = dtype.list_size
            if not whole:
                place = np.cumsum(valid) - 1
                index = (place[:, None] * size + np.arange(size)).ravel()
                items = items.take(pa.array(index, mask=~np.repeat(valid, size)))
            mask = None if whole else pa.array(~valid)
            return pa.FixedSizeListArray.from_arrays(items, type=dtype, mask=mask)
        edges = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        return pa.ListArray.from_arrays(pa.array(edges), items, type=dtype, mask=None if whole else pa.array(~valid))

    def from_bytes(self, raw: Bytes, counts: Ints, valid: npt.NDArray[np.bool_]) -> pa.Array:
        """Make values of the bytes of some cells, one behind the other, of ``counts`` items each; null where not ``valid``.

        Raises
        ------
        ValueError
            If text is not as declared.
        """
        if self.is_text:
            return self._texts(raw, counts, valid)
        dtype, stored = _KINDS[self.datatype]
        if self.datatype == "bit" and self.count == 1 and not self.several:
            # The standard has a bit in the top of a byte, astropy writes it into the middle.
            items = pa.array(raw & 0x88 != 0)
        elif self.datatype == "bit":
            starts = np.cumsum((counts + 7) // 8 * 8) - (counts + 7) // 8 * 8
            before = np.cumsum(counts) - counts
            bits = np.unpackbits(raw)[np.repeat(starts - before, counts) + np.arange(counts.sum())]
            items = pa.array(bits.astype(np.bool_))
        elif self.datatype == "boolean":
            yes, no = np.isin(raw, list(b"Tt1")), np.isin(raw, list(b"Ff0"))
            items = pa.array(yes, mask=~(yes | no))
        else:
            native = np.frombuffer(raw, stored)
            items = self._without_null(pa.array(native.astype(native.dtype.newbyteorder("="))))
        if self.count == 1 and not self.several:
            return items if valid.all() else pc.if_else(pa.array(valid), items, pa.scalar(None, dtype))
        if self.count is not None and not valid.all():
            items = items.filter(pa.array(np.repeat(valid, self.count)))
        return self._cells(items, counts, valid)

    def _texts(self, raw: Bytes, counts: Ints, valid: npt.NDArray[np.bool_]) -> pa.Array:
        edges = np.concatenate(([0], np.cumsum(counts * self.item_bytes)))
        data = raw.tobytes()
        if self.datatype == "char" and data.isascii() and b"\0" not in data:
            ends = pa.py_buffer(edges.astype(np.int32))
            return _filled(pa.Array.from_buffers(pa.string(), len(counts), [None, ends, pa.py_buffer(data)]), valid)
        cells = [data[a:b] for a, b in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)]
        decode = _latin if self.datatype == "char" else _utf16
        return _filled(pa.array([decode(cell) for cell in cells], pa.string()), valid)


def _filled(text: pa.Array, valid: npt.NDArray[np.bool_]) -> pa.Array:
    """Make null what is empty or not valid."""
    return pc.if_else(pc.and_(pa.array(valid), pc.not_equal(text, "")), text, pa.scalar(None, pa.string()))


def _latin(cell: bytes) -> str:
    cell = cell.split(b"\0", 1)[0]
    try:
        return cell.decode()
    except UnicodeDecodeError:
        return cell.decode("latin-1")


def _utf16(cell: bytes) -> str:
    return cell.decode("utf-16-be").split("\0", 1)[0]


def vo_field(attributes: Mapping[str, str], null: str, description: str, number: int) -> VoField:
    """Read a FIELD and what stands in it.

    Raises
    ------
    ValueError
        Saying what is wrong.
    """
    name = attributes.get("name") or attributes.get("ID") or f"col{number}"
    datatype, size = attributes.get("datatype", ""), attributes.get("arraysize", "")
    if datatype not in _KINDS:
        raise ValueError(f"column {name!r}: datatype {datatype!r} is none of VOTable; {nearest(datatype, _KINDS)}")
    match = _SIZE.match(size)
    if size and match is None:
        raise ValueError(f"column {name!r}: arraysize {size!r} is none; it is written 3, 3x4, * or 3x*")
    fixed = tuple(int(part) for part in match[1].split("x")[:-1]) if match else ()
    last = None if match and "*" in match[2] else int(match[2]) if match else 1
    dims = (*fixed, last)
    count = math.prod(n or 1 for n in dims)
    if 0 in dims or count > _LONGEST:
        raise ValueError(f"column {name!r}: arraysize {size!r}: a cell can have 1 to {_LONGEST} items")
    text = datatype in ("char", "unicodeChar")
    if text and len(dims) > 1:
        raise ValueError(f"column {name!r}: arraysize {size!r}: arrays of texts are not read; write a column for each text")
    parts = 2 if datatype.endswith("Complex") else 1
    several = not text and dims != (1,)
    kind = pa.list_(_KINDS[datatype][0], 2) if parts == 2 else _KINDS[datatype][0]
    if several:
        kind = pa.list_(kind) if last is None else pa.list_(kind, count)
    unit = attributes.get("unit", "")
    column = Column(
        name,
        kind,
        unit=unit,
        source_unit=unit,
        ucd=attributes.get("ucd", ""),
        description=" ".join(description.split()),
        shape=",".join(map(str, reversed(dims))) if several and fixed and last is not None else "",
    )
    return VoField(column, datatype, None if last is None else count * parts, several or parts == 2, count * parts, null)
