# make run | test | ...: each makes what it needs. PYTHON picks the interpreter; PIP_FLAGS is passed to every pip install,
# JOBS files of tests run at a time (three on two cores, since some of them wait), OUT is the folder of `make gpu`, and
# RESULTS the store of `make verdict`.
PYTHON ?= python3
PIP_FLAGS ?=
JOBS ?= 3
OUT ?= build/gpu
RESULTS ?= results
VENV := .venv
BIN := $(VENV)/bin
INPUTS := pyproject.toml constraints.txt

.PHONY: run report test types test-interpreter test-oldest test-newest faults odd fuzz tables verdict bench gpu clean

# The page's address goes to stderr: the last line of stdout stays the run's JSON document.
run: $(VENV)/.installed
	$(BIN)/python -m harness.run
	@$(BIN)/python -m harness.report > /dev/null

# The page of results/ anew: report/index.html.
report: $(VENV)/.installed
	$(BIN)/python -m harness.report

test: $(VENV)/.tested
	$(BIN)/ruff check .
	$(MAKE) --no-print-directory types
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder
	$(MAKE) --no-print-directory test-interpreter

# What [tool.mypy] in pyproject.toml names, by its types.
types: $(VENV)/.tested
	$(BIN)/mypy

# The Triton kernels in Triton's interpreter: a process of its own, since Triton decides at its import whether it
# interprets.
test-interpreter: $(VENV)/.tested
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n $(JOBS) --dist load --timeout 600 tests/interpreter

# The tests of what other packages' versions decide, and a run of the embedded model, with the oldest and the newest
# releases that pyproject allows, each in an environment of its own.
test-oldest test-newest: test-%:
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install -q $(PIP_FLAGS) -c constraints-$*.txt -e '.[test]'
	.venv-$*/bin/python -m pytest -n $(JOBS) --dist loadfile tests/models tests/tasks/lmeval tests/analysis/test_versions.py \
		tests/kernels/test_aot.py

# Break 1,000 runs in every way that a machine, W&B and Slurm know, and write docs/results/faults.json; half an hour.
faults: $(VENV)/.tested
	$(BIN)/python -m tests.faults

# Run odd checkpoints, tokenizers, configurations and data, and write docs/results/odd.json; three minutes.
odd: $(VENV)/.tested
	$(BIN)/python -m tests.odd

# Draw 10,000 odd command lines, checkpoints and stores, and write docs/results/fuzz.json; a quarter of an hour.
fuzz: $(VENV)/.tested
	$(BIN)/python -m tests.fuzz

# What is to be known of a GPU, in nine minutes, into the folder OUT; again with the same folder, what was left.
gpu: $(VENV)/.installed
	$(BIN)/python -m kernels.gpu --minutes 9 --out $(OUT)

# Rewrite the tables in README.md and docs/ from the committed records.
tables: $(VENV)/.installed
	$(BIN)/python -m tests.measure.tables README.md docs/*.md

# The record, the picture and the pages of who wins, from the store RESULTS of the three sweeps/pareto*.yaml.
verdict: $(VENV)/.installed
	$(BIN)/python -m harness.pareto $(RESULTS) --record docs/results/pareto.json --picture docs/pictures/pareto.svg
	$(BIN)/python -m tests.measure.tables README.md docs/verdict.md

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
	rm -rf $(VENV) .venv-oldest .venv-newest build *.egg-info
