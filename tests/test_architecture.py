"""The layer rule, as one table: a file imports only from lower floors, or without a circle from its own folder."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import scalable
from scalable.cli import console

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "scalable"

FLOORS = {
    "errors": 0,
    "schema": 1,
    "sky": 1,
    "survey": 2,
    "cluster": 2,
    "kernels": 3,
    "io": 3,
    "synthetic": 3,
    "catalog": 4,
    "cube": 4,
    "release": 5,
    "train": 6,
    "report": 7,
    "pipeline": 8,
    "cli": 9,
    "testing": 9,
    "__init__": 9,
}

NEVER = {
    "errors": {"dask", "distributed", "numpy", "pyarrow"},
    "schema": {"dask", "distributed"},
    "sky": {"dask", "distributed", "pyarrow"},
    "survey": {"dask", "distributed"},
    "kernels": {"dask", "distributed", "pyarrow", "pandas", "time", "datetime", "random", "pathlib", "os", "io"},
    "io": {"dask", "distributed", "threading", "concurrent"},
    "synthetic": {"dask", "distributed"},
    "catalog": {"pandas", "matplotlib"},
    "cube": {"pandas", "matplotlib"},
    "release": {"pandas", "matplotlib"},
    "train": {"pandas", "matplotlib", "h5py", "astropy"},
    "report": {"dask", "distributed"},
}
"""What a folder never imports, whatever its floor."""

FILES = sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    """Return the folder, or the file on the top level, that has a floor."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def module(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                is_module = (ROOT / Path(*inner.split("."))).with_suffix(".py").exists()
                yield (inner if is_module else str(node.module)), node


def own(name: str) -> bool:
    return name.split(".")[0] == "scalable"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_file_imports_only_from_lower_floors_or_its_own_folder(path: Path) -> None:
    here = room(path)
    assert here in FLOORS, f"{here} has no floor: add it to the table and say why it is needed"
    for name, node in imports(path):
        if own(name) and name != "scalable":
            there = name.split(".")[1]
            allowed = there == here or FLOORS[there] < FLOORS[here]
            assert allowed, f"{path}:{node.lineno}: {here} (floor {FLOORS[here]}) imports {name} (floor {FLOORS[there]})"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_a_folder_never_imports_what_is_forbidden_to_it(path: Path) -> None:
    for name, node in imports(path):
        top = name.split(".")[0]
        assert top not in NEVER.get(room(path), set()), f"{path}:{node.lineno}: {room(path)} must not import {top}"
        if top == "cdshealpix":
            assert path == PACKAGE / "sky" / "healpix.py", f"{path}: only sky/healpix.py opens the HEALPix library"
        if top in ("lsdb", "hats", "pickle", "joblib"):
            raise AssertionError(f"{path}:{node.lineno}: {top} is never imported at run time")


def test_no_folder_has_a_circle_of_imports() -> None:
    graph = {module(path): {name for name, _ in imports(path) if own(name) and name != module(path)} for path in FILES}
    order = list(TopologicalSorter(graph).static_order())
    assert set(graph) <= set(order)


@pytest.mark.parametrize("path", FILES, ids=module)
def test_nothing_is_imported_inside_a_function(path: Path) -> None:
    tree = ast.parse(path.read_text())
    for function in ast.walk(tree):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)):
            for node in ast.walk(function):
                assert not isinstance(node, (ast.Import, ast.ImportFrom)), f"{path}:{node.lineno}: import inside {function.name}"


@pytest.mark.parametrize("path", FILES, ids=module)
def test_nothing_evaluates_text_or_asserts_on_user_input(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ("eval", "exec", "compile", "__import__"), f"{path}:{node.lineno}: {node.func.id}"
        if room(path) != "testing":
            assert not isinstance(node, ast.Assert), f"{path}:{node.lineno}: raise an error that says what to do instead"


def test_inner_packages_hold_a_docstring_only() -> None:
    for path in PACKAGE.glob("*/__init__.py"):
        body = ast.parse(path.read_text()).body
        assert len(body) == 1, f"{path} holds code"
        assert isinstance(body[0], ast.Expr), f"{path} holds no docstring"


def test_every_lazy_name_exists_where_its_table_says() -> None:
    for table in (scalable._PUBLIC, console._LAZY):
        for name, where in table.items():
            assert hasattr(importlib.import_module(where), name), f"{where} has no {name}"


def test_only_the_command_line_reaches_the_synthetic_sky() -> None:
    for path in FILES:
        if room(path) not in ("synthetic", "cli"):
            assert not [name for name, _ in imports(path) if name.startswith("scalable.synthetic")], path


def test_jobs_and_benchmarks_use_public_names_only() -> None:
    for path in (ROOT / "jobs").glob("*.py"):
        for name, node in imports(path):
            assert not own(name) or name == "scalable", f"{path}:{node.lineno}: {name}"
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "scalable":
                assert node.attr in scalable.__all__, f"{path}:{node.lineno}: scalable.{node.attr} is not public"
