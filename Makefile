# Everything a fresh machine needs: Python 3.11 or newer, pip and make.
# CONTRIBUTING.md says which tests belong to which tier, and how long each tier takes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# Test files run whole, one file a process; files that take minutes come first.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder
COVERED := --cov --cov-append
# Tests start many processes: each would compile the package anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install demo check test test-all gpu-check docs lint clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/fedit run --config configs/demo.toml

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

# Before every commit: no real Flower process, no real model.
check: lint
	$(PYTEST) -m "not slow and not integration and not long and not gpu"

# What shows that the product works: `check`, the real model, Flower's simulation engine, and real
# nodes over TLS.
test: lint
	rm -f .coverage
	$(PYTEST) -m "not slow and not gpu" --durations=25 $(COVERED) --cov-report=

# What `test` leaves out. The coverage is that of both where `test` has run before.
test-all: $(INSTALLED)
	$(PYTEST) -m "slow and not gpu" --durations=25 $(COVERED) --cov-report=term

gpu-check: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu --numprocesses 0 --durations=25

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) .coverage .mypy_cache runs site
