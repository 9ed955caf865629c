# Everything a contributor runs. The first target makes a virtual environment; nothing is compiled.
#   make PYTHON=python3.12 check     another interpreter (>= 3.11)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= 2
AREA ?=
COVER_CORE ?= 100
COVER_REST ?= 95
PYTEST_FLAGS ?=
TORTURE ?= .torture
unexport PYTHONDONTWRITEBYTECODE  # a start of wald takes twice as long where byte code is not kept

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-times check format-check lint types contracts units coverage fix bench torture lock clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP) ## make .venv with everything in it

$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "wald needs Python 3.11 or newer; try: make PYTHON=python3.11 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
	  { echo "$(PYTHON) lacks its venv module; on Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-input \
	  --constraint requirements.lock --editable '.[dev]'
	@touch $@

demo: $(STAMP) ## 28,298 real records through kill -9 of every process, into SQLite
	$(BIN)/wald demo

test: $(STAMP) ## all tests, on two cores; AREA=core|ingest|delivery|targets|crash|house: those of one area
	files="$$($(BIN)/python -m tests.areas $(AREA))" && \
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_FLAGS) $$files

test-times: $(STAMP) ## each area by itself (or AREA=...), with its time, its budget, its slowest tests
	$(BIN)/python -m tests.areas --times --workers $(WORKERS) $(AREA)

check: format-check lint types contracts test ## what must hold before a commit: format, lint, types, import contracts, tests

format-check: $(STAMP)
	$(BIN)/ruff format --check .

lint: $(STAMP)
	$(BIN)/ruff check --output-format concise .

types: $(STAMP)
	$(BIN)/mypy

contracts: $(STAMP)
	$(BIN)/lint-imports --no-cache

units: ## verify the systemd units and their exposure
	sh systemd/verify

coverage: $(STAMP) ## branch coverage: all of core, most of the rest
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov=wald --cov-branch --cov-report= $(PYTEST_FLAGS)
	$(BIN)/coverage report --include='wald/core/*' --fail-under=$(COVER_CORE)
	$(BIN)/coverage report --omit='wald/core/*' --fail-under=$(COVER_REST)

fix: $(STAMP) ## format, and mend what the linter can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(STAMP) ## speed and size, as ratios within one run; needs gcc and redis-server
	$(BIN)/python -m pytest benchmarks -p no:xdist
	$(BIN)/python -m benchmarks

torture: $(STAMP) ## crash safety at length, for hours, as root; begun again it goes on where it was stopped (TORTURE=DIR)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check atheris
	$(BIN)/python -m tests.crash.torture $(TORTURE)

lock: $(STAMP) ## write requirements.lock from what is installed
	@{ echo "# The versions that this project is developed and tested with; used with 'pip install -c'."; \
	   echo "# Made anew by 'make lock'."; \
	   $(BIN)/python -m pip freeze --exclude-editable; } > requirements.lock
	@touch $(STAMP)

clean: ## remove what was built
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.*
