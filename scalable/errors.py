"""One family of errors, each also the built-in error its caller would catch, and the door to optional packages."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable
from types import ModuleType


class ScalableError(Exception):
    """Base of every error that ``scalable`` raises for a reason the user can act on."""


class SurveyError(ScalableError, ValueError):
    """The survey description is wrong; the message names file, line, field and the choices."""


class InputError(ScalableError, ValueError):
    """An input file cannot be used as it is; the message names file, HDU and column."""


class MissingInputError(InputError, FileNotFoundError):
    """A file that the survey lists is not there."""

    def __new__(cls, *args: object) -> MissingInputError:
        """Make it the way of the base with a layout of its own: so Dask's pickling can, which calls this alone."""
        return FileNotFoundError.__new__(cls, *args)


class ColumnError(ScalableError, KeyError):
    """A column, role or band that does not exist was asked for."""

    def __str__(self) -> str:
        """Return the message as written: ``KeyError`` would show it quoted."""
        return str(self.args[0]) if self.args else ""


class QueryError(ScalableError, ValueError):
    """A query or expression is not understood, not allowed, or cannot be split over partitions."""


class StoreError(ScalableError, OSError):
    """A store cannot be read or written, or is not what it says."""


class AdditionError(StoreError):
    """What a survey lists now is not what a store holds and more: it cannot be appended."""


class AccountingError(ScalableError, AssertionError):
    """Rows in and rows out do not balance: nothing is committed."""


class ClusterError(ScalableError, RuntimeError):
    """The cluster failed, not the task: workers died or the scheduler is gone; running again goes on."""


class ExtraMissingError(ScalableError, ImportError):
    """An optional package is needed; the message gives the command that installs it."""


def require(module: str, extra: str) -> ModuleType:
    """Import an optional ``module`` or say which extra of ``scalable-sky`` brings it.

    Raises
    ------
    ExtraMissingError
        If the module is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraMissingError(
            f"{module} is needed here and is not installed; run: pip install 'scalable-sky[{extra}]'"
        ) from error


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``did you mean …? choices: …`` for a name that is not one of ``choices``."""
    names = list(choices)
    by_lower = {choice.lower(): choice for choice in names}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.6)
    hint = f"did you mean {by_lower[close[0]]!r}? " if close else ""
    return f"{hint}choices: {', '.join(names) or 'none'}"
