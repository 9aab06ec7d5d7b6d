# `make demo` and `make test` work from a fresh clone: each makes .venv and installs what it needs first.
PYTHON ?= python3
VENV := .venv
NEW_VENV := -m venv --clear
VERSIONS := requirements.lock
DOWNLOAD := About 3 GB are downloaded where pip takes a CUDA build of torch, and 0.5 GB where it takes a CPU build.
# With SYSTEM_TORCH=1, the torch and all other packages of PYTHON are used, and only what is missing is installed. The
# lock names the versions that go with the torch that it names, so it does not apply.
ifeq ($(SYSTEM_TORCH),1)
VENV := .venv-system-torch
VERSIONS := $(VENV)/torch.txt
DOWNLOAD := The packages of $(PYTHON) are used, torch among them; what is missing is downloaded.
NEW_VENV := scripts/system_torch.py
endif
BIN := $(VENV)/bin
SOURCES := pyproject.toml setup.py requirements.lock $(wildcard $(addsuffix /*.[ch],src/questlm/ops/cpu src/questlm/ops/cpu/packed src/questlm/ops/cpu/llama))
# Two test processes on two cores: one thread each, or they would fight over both.
JOBS ?= $(shell getconf _NPROCESSORS_ONLN)

# The documentation as a site, in build/site; any warning, such as a broken link, is an error. The notebook is executed.
docs: $(VENV)/.installed-docs
	$(BIN)/python scripts/build_docs.py

.PHONY: demo docs test test-fast lint lock check-lock wheel wheel-check sanitize test-gpu clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/quest demo

# `python -m`, because a pytest among the packages of PYTHON has no command in the environment.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest -q -n $(JOBS)

# The tests of single source files, without those marked slow.
test-fast: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -P -m pytest -q -n $(JOBS) -m "not gpu and not slow" tests/unit tests/project

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# One set of versions that serves each of these Pythons. uv reads the metadata of the Python package index and
# downloads no package; it needs none of these Pythons here and knows nothing of this machine's settings of pip.
PYTHONS := 3.11 3.12 3.13
RESOLVE := $(BIN)/uv pip compile --quiet --no-config --no-annotate --extra dev --only-binary :all: \
	--python-platform x86_64-manylinux_2_28 pyproject.toml

lock: $(BIN)/uv
	$(RESOLVE) --python-version $(firstword $(PYTHONS)) --custom-compile-command 'make lock' --output-file requirements.lock
	$(MAKE) check-lock

check-lock: $(BIN)/uv
	@for version in $(PYTHONS); do \
		$(RESOLVE) --python-version $$version --constraint requirements.lock >/dev/null \
		&& echo "requirements.lock serves Python $$version on Linux x86-64." || exit 1; \
	done

# The source distribution, and a wheel built from it; then the wheel is installed in a fresh environment and used from
# another folder. WHEEL_OPTIONS=--packages-here downloads nothing and uses the packages of the environment of `make test`.
wheel: $(VENV)/.installed-dev
	rm -rf dist
	$(BIN)/python -m build --outdir dist

wheel-check: wheel
	$(BIN)/python scripts/check_wheel.py dist $(WHEEL_OPTIONS)

# The native products of packed weights under the address and undefined-behaviour sanitizers; two minutes or so.
sanitize:
	$(PYTHON) scripts/sanitize_kernels.py

# On a machine with a CUDA device and torch in its own Python; installs nothing. Most of the time is compiling, which
# several processes do at once where pytest-xdist is there.
GPU_JOBS ?= 6
TEST_OPTIONS ?= $(shell $(PYTHON) -c 'import importlib.util as u; print("-n $(GPU_JOBS)" * bool(u.find_spec("xdist")))')
test-gpu:
	PYTHONPATH=src $(PYTHON) -m pytest -q -p no:benchmark -m gpu tests/gpu $(TEST_OPTIONS)

clean:
	rm -rf .venv .venv-system-torch build dist *.egg-info src/*.egg-info

$(BIN)/python:
	$(PYTHON) $(NEW_VENV) $(VENV)

$(BIN)/uv: | $(BIN)/python
	$(BIN)/pip install --quiet --constraint requirements.lock uv

$(VENV)/.installed: EXTRA := plots
$(VENV)/.installed-dev: EXTRA := dev
$(VENV)/.installed-docs: EXTRA := docs
$(VENV)/.installed $(VENV)/.installed-dev $(VENV)/.installed-docs: $(SOURCES) | $(BIN)/python
	@echo "Installing questlm[$(EXTRA)] and what it needs into $(VENV), which takes minutes. $(DOWNLOAD)"
	@$(BIN)/pip install --constraint $(VERSIONS) --editable '.[$(EXTRA)]' || { echo "$$INSTALL_FAILED" >&2; exit 1; }
	@touch $@ $(VENV)/.installed

define INSTALL_FAILED
Installing into $(VENV) failed; the lines of pip above say why. pip needs the Python package index, or a mirror that it is
configured to use, and about 7 GB of free disk for a CUDA build of torch. README.md says how to take the CPU build, or a torch
that is installed already. After that, the same make command continues.
endef
export INSTALL_FAILED
