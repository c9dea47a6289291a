# `make` alone prints this help; `make demo` is the shortest way to see the package at work.
.DEFAULT_GOAL := help
.PHONY: help setup demo check test test-slow parity bench docs

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

# Two test workers with one thread each: threads of many processes on few cores only wait for each other.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

help:  ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(READY)  ## create .venv and install the package with its development tools

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = "%d.%d" % sys.version_info[:2]; sys.version_info >= (3, 11) or sys.exit(f"unmask needs Python >= 3.11, this is {v}; say make setup PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(READY)  ## pre-train, evaluate and draw on real photographs; results in demo/
	$(BIN)/unmask demo --out demo

check: $(READY)  ## format, lint, types for Python 3.11 to 3.13, import layers
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --pythonpath $(BIN)/python --pythonversion 3.12
	$(BIN)/pyright --pythonpath $(BIN)/python --pythonversion 3.13
	$(PYTEST) -q tests/test_layers.py

test: $(READY)  ## the default tests, under eight minutes on two cores
	$(PYTEST) -q -n 2 -m "not slow and not network"

test-slow: $(READY)  ## the tests that take longer
	$(PYTEST) -q -n 2 -m "slow and not network"

parity: $(READY)  ## golden vectors of the official code, and other libraries with the same weights
	$(PYTEST) -q -k "golden or parity" tests
	OMP_NUM_THREADS=1 $(BIN)/python -m unmask.testing goldens tests/golden

# memory.py prints formulas, worlds.py takes minutes, precision.py and random_tokenizer.py train, waits.py is for a GPU
BENCHMARKS := step input end_to_end

bench: $(READY)  ## the benchmarks of speed at sizes of seconds; python benchmarks/step.py measures
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@for name in $(BENCHMARKS); do echo "== benchmarks/$$name.py"; $(BIN)/python benchmarks/$$name.py --quick || exit 1; done

docs: $(READY)  ## build the documentation into site/
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	$(BIN)/mkdocs build --strict
