# make run | test | ...: each makes what it needs. PYTHON picks the interpreter; PIP_FLAGS is passed to every pip install.
PYTHON ?= python3
PIP_FLAGS ?=
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt

.PHONY: run test test-oldest tables bench clean

run: $(VENV)/.installed
	$(BIN)/python -m harness.run

test: $(VENV)/.tested
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

# The model tests against the oldest transformers that pyproject allows, in an environment of its own.
test-oldest:
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install -q $(PIP_FLAGS) -c constraints-oldest.txt -e '.[test]'
	.venv-oldest/bin/python -m pytest tests/models

# Rewrite the tables in README.md and docs/ from the committed records.
tables: $(VENV)/.installed
	$(BIN)/python -m harness.tables

bench: $(VENV)/.installed
	$(BIN)/python -m kernels.bench --device cpu

$(VENV)/.installed: $(INPUTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q $(PIP_FLAGS) -c constraints.txt -e .
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(BIN)/pip install -q $(PIP_FLAGS) -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf $(VENV) .venv-oldest build *.egg-info
