# Every target works on a machine that has only Python 3.11 or later and make: it makes its own virtual environment in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-all lint bench clean
.DEFAULT_GOAL := test

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed; run: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --editable ".[hats,s3,qp]" --group dev
	touch $(READY)

demo: $(READY)
	$(BIN)/scalable demo demo

test: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadscope

test-all: $(READY)
	$(BIN)/python -m pytest -n auto --dist loadscope -m ""

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) demo .mypy_cache .ruff_cache .pytest_cache
