# make demo: set up what a search needs, and search the embedded model; make test, make check: what CI runs, with what that needs besides; make test-all: slow tests besides, before a release; make bench, make bench-full: timings; make families: docs/FAMILIES.md written anew; make soak: searches killed at random
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all check format bench bench-full families soak clean

demo: $(VENV)/.installed
	$(BIN)/python -m seed.search

test: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-all: $(VENV)/.dev-installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m ''

check: $(VENV)/.dev-installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev-installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/.dev-installed
	$(BIN)/python -m benchmarks

bench-full: $(VENV)/.dev-installed
	$(BIN)/python -m benchmarks --full

families: $(VENV)/.dev-installed
	$(BIN)/python -m tests.models.families_table

soak: $(VENV)/.dev-installed
	$(BIN)/python -m benchmarks.soak --minutes 10

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	touch $@

$(VENV)/.dev-installed: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
