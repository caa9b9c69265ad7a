"""The family of errors: each is also the built-in one, survives the wire, and says what it was given."""

from __future__ import annotations

import json
import pickle

import pytest
from tblib import pickling_support

from scalable import errors
from scalable.errors import ExtraMissingError, ScalableError, nearest, require

FAMILY = {
    errors.SurveyError: ValueError,
    errors.InputError: ValueError,
    errors.MissingInputError: FileNotFoundError,
    errors.ColumnError: KeyError,
    errors.QueryError: ValueError,
    errors.StoreError: OSError,
    errors.AdditionError: OSError,
    errors.AccountingError: AssertionError,
    errors.ClusterError: RuntimeError,
    errors.ExtraMissingError: ImportError,
}


def test_every_error_of_the_module_is_in_the_family() -> None:
    public = {value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)}
    assert public == {ScalableError, *FAMILY}


@pytest.mark.parametrize(("error", "builtin"), FAMILY.items(), ids=lambda kind: kind.__name__)
def test_an_error_is_also_the_builtin_that_its_caller_would_catch(error: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(error, ScalableError)
    assert issubclass(error, builtin)


@pytest.mark.parametrize("error", FAMILY)
def test_an_error_shows_its_message_as_written_on_both_sides_of_the_wire(error: type[Exception]) -> None:
    # A Dask worker teaches pickle to send causes and tracebacks along, in another way than pickle's own.
    message = "no column 'Flx'; did you mean 'Flux'?"
    given = error(message)
    given.__cause__ = KeyError("Flx")
    pickling_support.install(given)
    there = pickle.loads(pickle.dumps(given))
    assert type(there) is error
    assert str(there) == str(given) == message
    assert repr(there.__cause__) == "KeyError('Flx')"


def test_a_column_error_without_a_message_is_empty() -> None:
    assert str(errors.ColumnError()) == ""


def test_require_imports_what_is_there() -> None:
    assert require("json", "hats") is json


def test_require_names_the_command_that_installs_what_is_not() -> None:
    with pytest.raises(ExtraMissingError, match=r"no_such_module is needed .* pip install 'scalable-sky\[hats\]'") as caught:
        require("no_such_module", "hats")
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


@pytest.mark.parametrize(
    ("name", "choices", "message"),
    [
        ("fluxx", ["ra", "flux"], "did you mean 'flux'? choices: ra, flux"),
        ("FLUX", ["ra", "flux"], "did you mean 'flux'? choices: ra, flux"),
        ("Dec", ["RA", "DEC"], "did you mean 'DEC'? choices: RA, DEC"),
        ("xyz", ["ra", "dec"], "choices: ra, dec"),
        ("xyz", [], "choices: none"),
    ],
)
def test_nearest_offers_a_close_name_and_always_the_choices(name: str, choices: list[str], message: str) -> None:
    assert nearest(name, choices) == message
    assert nearest(name, iter(choices)) == message
