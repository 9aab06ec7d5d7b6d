# `make demo` and `make test` work from a fresh clone: each makes .venv and installs what it needs first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py requirements.lock src/questlm/ops/cpu/kernels.c
# Two test processes on two cores: one thread each, or they would fight over both.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -q -n $(JOBS)

.PHONY: demo test lint test-gpu clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/quest demo

test: $(VENV)/.installed-dev
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# On a machine with a CUDA device and torch in its own Python; installs nothing. Most of the time is compiling, which
# several processes do at once where pytest-xdist is there.
GPU_JOBS ?= 6
TEST_OPTIONS ?= $(shell $(PYTHON) -c 'import importlib.util as u; print("-n $(GPU_JOBS)" * bool(u.find_spec("xdist")))')
test-gpu:
	PYTHONPATH=src $(PYTHON) -m pytest -q -p no:benchmark -m gpu tests/gpu $(TEST_OPTIONS)

clean:
	rm -rf $(VENV) build *.egg-info src/*.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[plots]'
	touch $@

$(VENV)/.installed-dev: $(SOURCES) | $(VENV)/bin/python
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[dev]'
	touch $@ $(VENV)/.installed
