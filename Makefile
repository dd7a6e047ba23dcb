# Everything a fresh machine needs: Python 3.11 or newer, pip and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.PHONY: install demo test fuzz lint clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/fedit run --config configs/demo.toml

test: lint
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
		--no-loadscope-reorder

# A quarter of an hour: first every parser and handler with inputs that are nearly right, then
# the parsers with inputs that reach new code, where atheris is installed.
FUZZ_EXAMPLES ?= 5000
FUZZ_RUNS ?= 10000

fuzz: $(INSTALLED)
	FEDIT_FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest tests/fuzz --timeout 0 \
		--hypothesis-show-statistics
	if $(BIN)/python -c "import atheris"; then \
		for test in $$($(BIN)/python -m tests.fuzz.guided); do \
			$(BIN)/python -m tests.fuzz.guided $$test $(FUZZ_RUNS) || exit 1; \
		done; \
	fi

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

clean:
	rm -rf $(VENV) runs
