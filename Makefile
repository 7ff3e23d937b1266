# make demo    distil, export and generate with the bundled teacher (about ten minutes on two cores)
# make test    linters, types and tests
# make test-fast    the tests that take less than a few seconds each
# make coverage    all tests, and the share of the code that they and the processes they start run
# make lint    linters, types and spelling only
# make docs    the documentation as a site, in build/site
# make test-gpu    the tests that need a CUDA GPU, through .venv if it is there, else through PYTHON
#
# Each makes .venv and installs the locked dependencies first, once. To choose the interpreter:
# make demo PYTHON=/path/to/python3.12. PIP_ARGS goes to every pip install, ARGS to the command.
# `make test` runs JOBS test files at a time, each process with one thread for arithmetic; the longest
# files come first (tests/conftest.py), so that none is left at the end for one process alone.

VENV ?= .venv
JOBS ?= 2
SIDE_BY_SIDE := -n $(JOBS) --dist loadfile --no-loadscope-reorder
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))

# A name may exist and yet not run (version managers leave such shims), so each one is tried.
PYTHON ?= $(shell for name in python3.13 python3.12 python3.11 python3; do \
	"$$name" -c '$(NEW_ENOUGH)' >/dev/null 2>&1 && { echo "$$name"; break; }; done)

.PHONY: demo test test-fast coverage test-gpu lint docs venv

demo: venv
	$(BIN)/python -m lightx2v_sgmd demo $(ARGS)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(SIDE_BY_SIDE) $(ARGS)

test-fast: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not slow" $(ARGS)

# The floor is in pyproject.toml.
coverage: venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q $(SIDE_BY_SIDE) --cov \
	--cov-report=term:skip-covered --cov-report=html $(ARGS)

# On a GPU machine without network there may be no .venv: docs/gpu.md.
test-gpu:
	@python="$(BIN)/python"; test -x "$$python" || python="$(PYTHON)"; \
	"$$python" -m pytest -q -m gpu $(ARGS)

lint: venv
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m codespell_lib
	$(BIN)/python -m mypy

docs: venv
	$(BIN)/python -m sphinx -q -W --keep-going -b html docs build/site

venv: $(STAMP)

$(STAMP): setup.py pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: found no Python 3.11 or newer; install one, or name \
	it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; exit 2; }
	@"$(PYTHON)" -c '$(NEW_ENOUGH)' 2>/dev/null || { echo "error: PYTHON=$(PYTHON) is not Python 3.11 or \
	newer" >&2; exit 2; }
	@test -x $(BIN)/python || echo "making $(VENV) with $(PYTHON); installing takes some minutes"
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV) || { rm -rf $(VENV); exit 2; }
	$(PIP) -c constraints.txt torch==2.13.0
	$(PIP) -c constraints.txt -e '.[dev,zero3]'
	@touch $@
