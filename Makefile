# Everything from a fresh clone: `make demo` shows it at work, `make test` proves it.
# CONSTRAINTS names a pip constraints file; ours pins torch, so that every machine tests with the same.

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
WORKERS ?= auto

.PHONY: help setup demo test lint bench gpu docs clean

help:            ## this list
	@grep -hE '^[a-z]+: .*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

setup: $(STAMP)  ## make the virtual environment

$(STAMP): setup.cfg constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '.[test,lint]'
	touch $(STAMP)

demo: setup      ## the whole pipeline on synthetic faces, in a few minutes
	PATH="$(abspath $(BIN)):$$PATH" sh examples/demo.sh

test: setup      ## all tests
	$(BIN)/python -m pytest -n $(WORKERS)

lint: setup      ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup     ## benchmarks on the processor; figures go to docs/performance.md by hand
	$(BIN)/python benchmarks/pipeline.py
	$(BIN)/python benchmarks/align.py
	$(BIN)/python benchmarks/index.py --rows 1000000 --files 50000
	$(BIN)/python benchmarks/importing.py
	$(BIN)/python benchmarks/cache.py
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/backbones.py
	$(BIN)/python benchmarks/mining.py
	$(BIN)/python benchmarks/head.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/protocols.py
	$(BIN)/python benchmarks/compile_kernels.py

gpu:             ## GPU tests and benchmarks, with the environment there is; says so where there is no GPU
	$(if $(wildcard $(STAMP)),$(BIN)/python,$(PYTHON)) benchmarks/gpu.py

docs: setup      ## generate the command reference
	$(BIN)/python docs/generate.py

clean:           ## remove what the targets above made
	rm -rf $(VENV) demo build *.egg-info
