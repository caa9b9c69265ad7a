"""How much may come out of a compressed file: one rule for all formats."""

from __future__ import annotations

_TIMES = 200
_FREE = 1 << 26  # so that small files of many equal rows, which compress well, are not suspect


def most_expanded(stored: int) -> int:
    """Return how many bytes may come out of ``stored`` compressed ones: 200 times as many, besides 64 MiB.

    What swells further is a bomb or next to one: catalogues swell two to twenty times.
    """
    return _TIMES * max(stored, 0) + _FREE
