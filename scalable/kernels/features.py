"""What a model learns from: colours, a reference magnitude, which rows count and which values stand for missing ones."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scalable.errors import ColumnError, InputError, nearest
from scalable.schema import State

Float = NDArray[np.float64]
States = NDArray[np.uint8]

CLASS_RULES = ("any", "all", "majority")
DROP, KEEP = "drop", "keep"


@dataclass(frozen=True)
class ClassRule:
    """Which rows count by their class, where every band gives a class of its own and they do not agree.

    Attributes
    ----------
    columns : tuple of str
        Columns with the class, one for each band.
    wanted : tuple of float
        Classes that count.
    rule : str
        ``any``, ``all`` or ``majority`` of the columns, or the name of one of them. A missing class is no wanted one, and does
        not count for the majority either way.
    """

    columns: tuple[str, ...]
    wanted: tuple[float, ...]
    rule: str = "any"

    def __post_init__(self) -> None:
        """Refuse a rule that is none."""
        if self.rule not in CLASS_RULES and self.rule not in self.columns:
            raise ColumnError(f"class rule {self.rule!r}; {nearest(self.rule, (*CLASS_RULES, *self.columns))}")

    def keep(self, values: Mapping[str, Float]) -> NDArray[np.bool_]:
        """Return which rows count."""
        if self.rule in self.columns:
            return np.isin(values[self.rule], self.wanted)
        wanted = np.array([np.isin(values[name], self.wanted) for name in self.columns])
        if self.rule == "any":
            return np.asarray(wanted.any(axis=0))
        if self.rule == "all":
            return np.asarray(wanted.all(axis=0))
        known = np.array([np.isfinite(values[name]) for name in self.columns])
        return 2 * wanted.sum(axis=0) > known.sum(axis=0)


@dataclass(frozen=True)
class Features:
    """How columns of a table become the numbers that a model sees.

    Attributes
    ----------
    magnitudes : tuple of str
        Columns in the order of the bands, blue to red; neighbours make the colours.
    reference : str
        A magnitude that is itself a feature, before the colours; empty for colours alone.
    others : tuple of str
        Further columns, taken as they are, after the colours.
    missing : mapping of str to (str or float)
        What is done with a value by its state (names of `State` in lower case): ``drop`` leaves the row out, a number is taken
        for the value, for example a limiting magnitude for ``non_detection``; ``keep`` (for ``imputed``) takes it as it is. A
        state that is not named drops the row.
    classes : ClassRule, optional
        Which rows count by class.
    """

    magnitudes: tuple[str, ...] = ()
    reference: str = ""
    others: tuple[str, ...] = ()
    missing: Mapping[str, str | float] = field(default_factory=lambda: {"imputed": "keep"}, hash=False)
    classes: ClassRule | None = None

    def __post_init__(self) -> None:
        """Refuse states and columns that do not exist, and what is no value."""
        for name, action in self.missing.items():
            if name.upper() not in State.__members__ or name == "measured":
                raise ColumnError(f"missing: no state {name!r}; {nearest(name, [s.name.lower() for s in State][1:])}")
            if not (action in (DROP, KEEP) or (isinstance(action, int | float) and math.isfinite(action))):
                raise InputError(f"missing: {name} is {action!r}: give a finite number, {DROP!r} or {KEEP!r}")
        if self.reference and self.reference not in self.magnitudes:
            raise ColumnError(
                f"reference {self.reference!r} is not a magnitude of the features; {nearest(self.reference, self.magnitudes)}"
            )
        if len(self.names) == 0:
            raise ColumnError("no feature: give two magnitudes or more, or other columns")

    @property
    def names(self) -> list[str]:
        """Names of the features, in order: reference magnitude, colours, others."""
        colours = [f"{a} - {b}" for a, b in zip(self.magnitudes, self.magnitudes[1:], strict=False)]
        return [*([self.reference] if self.reference else []), *colours, *self.others]

    @property
    def values(self) -> list[str]:
        """Columns whose values are used."""
        return list(dict.fromkeys([*self.magnitudes, *self.others]))

    @property
    def columns(self) -> list[str]:
        """All columns that are read, without those of states."""
        return list(dict.fromkeys([*self.values, *(self.classes.columns if self.classes else ())]))

    def build(self, values: Mapping[str, Float], states: Mapping[str, States]) -> tuple[Float, NDArray[np.bool_], dict[str, int]]:
        """Return the features of the rows that count, which rows these are, and how many were left out and why.

        Parameters
        ----------
        values : mapping of str to ndarray, shape (n,)
            The columns; NaN where there is no measured value.
        states : mapping of str to ndarray of uint8, shape (n,)
            The state of each value; without an entry, NaN is a ``sentinel`` and the rest is measured.

        Returns
        -------
        features : ndarray, shape (features, rows that count)
        kept : ndarray of bool, shape (n,)
        left_out : dict
            Number of rows by reason: ``class``, or a state; the first column that leaves a row out decides.
        """
        rows = len(next(iter(values.values())))
        kept = np.ones(rows, dtype=bool)
        left_out: dict[str, int] = {}
        if self.classes is not None:
            kept = self.classes.keep(values)
            left_out["class"] = int(rows - np.count_nonzero(kept))
        clean: dict[str, Float] = {}
        for name in self.values:
            column, finite = values[name], np.isfinite(values[name])
            state = states.get(name)
            if finite.all() and (state is None or not state.any()):
                clean[name] = column
                continue
            state = np.where(finite, State.MEASURED, State.SENTINEL) if state is None else state
            for member in State:
                mine = (state == member) if member else (state == member) & ~finite
                if not mine.any():
                    continue
                # A measured value that is not finite has lost its state on the way.
                word = member.name.lower() if member else "not_finite"
                action = self.missing.get(word, DROP)
                if isinstance(action, (int, float)):
                    column = np.where(mine, float(action), column)
                elif action != KEEP or not finite[mine].all():
                    gone = mine & kept if action != KEEP else mine & kept & ~finite
                    left_out[word] = left_out.get(word, 0) + int(np.count_nonzero(gone))
                    kept = kept & ~gone
            clean[name] = column
        every = bool(kept.all())
        part = {name: column if every else column[kept] for name, column in clean.items()}
        return self._matrix(part, int(np.count_nonzero(kept))), kept, left_out

    def _matrix(self, part: Mapping[str, Float], rows: int) -> Float:
        out = np.empty((len(self.names), rows))
        row = 0
        if self.reference:
            out[0], row = part[self.reference], 1
        for a, b in zip(self.magnitudes, self.magnitudes[1:], strict=False):
            np.subtract(part[a], part[b], out=out[row])
            row += 1
        for name in self.others:
            out[row] = part[name]
            row += 1
        return out

    @property
    def given(self) -> list[str]:
        """Columns that follow from the features alone: without a reference magnitude, colours give no magnitude."""
        return list(dict.fromkeys([*(self.magnitudes if self.reference else ()), *self.others]))

    def columns_of(self, features: Float) -> dict[str, Float]:
        """Return the columns that features of shape (features, rows) follow from, where they say what these are: see `given`."""
        found = dict(zip(self.others, features[len(features) - len(self.others) :], strict=True))
        if self.reference:
            # How much brighter each magnitude is than the first, from the colours between them.
            steps = [np.zeros(features.shape[1]), *features[1 : len(self.magnitudes)]]
            fainter = dict(zip(self.magnitudes, np.cumsum(steps, axis=0), strict=True))
            zero = features[0] + fainter[self.reference]
            found = {name: zero - step for name, step in fainter.items()} | {self.reference: features[0]} | found
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the rule as JSON can hold it."""
        classes = self.classes and {"columns": self.classes.columns, "wanted": self.classes.wanted, "rule": self.classes.rule}
        return {
            "magnitudes": list(self.magnitudes),
            "reference": self.reference,
            "others": list(self.others),
            "missing": dict(self.missing),
            "classes": classes,
        }

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> Features:
        """Read the rule back from `to_dict`."""
        rule = said["classes"]
        classes = rule and ClassRule(tuple(rule["columns"]), tuple(rule["wanted"]), rule["rule"])
        return cls(tuple(said["magnitudes"]), said["reference"], tuple(said["others"]), dict(said["missing"]), classes)


def units_of(features: Features, units: Mapping[str, str]) -> Sequence[str]:
    """Return the unit of each feature, where a colour has the unit of its magnitudes."""
    colours = [units.get(a, "") for a in features.magnitudes[:-1]]
    return [
        *([units.get(features.reference, "")] if features.reference else []),
        *colours,
        *(units.get(n, "") for n in features.others),
    ]
