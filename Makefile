# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
SAMPLE ?= 330
SEED   ?= 1

.PHONY: env demo test lint format bench mutants clean
.DEFAULT_GOAL := env

env: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "perdure: $(PYTHON) must be Python 3.11 or newer, but got $$($(PYTHON) -V 2>&1). Try 'make PYTHON=python3.12'."; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
	  { echo "perdure: python3 must be able to make a virtual environment. Try 'apt-get install python3-venv'."; exit 2; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: env
	@sh scripts/get_fashion_mnist.sh .data
	@PERDURE_DATA="$${PERDURE_DATA:-.data/usr/share/datasets}" $(BIN)/python examples/demo.py

test: lint
	$(BIN)/python -m pytest -n 2 --cov --cov-fail-under=90

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: env
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: env
	$(BIN)/python -m benchmarks.caltech101
	$(BIN)/python -m benchmarks.overhead

mutants: env
	$(BIN)/python -m scripts.mutants --sample $(SAMPLE) --seed $(SEED) $(OPTIONS)

clean:
	rm -rf $(VENV) .data .mutants .mypy_cache .ruff_cache .pytest_cache .coverage*
