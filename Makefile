# `make demo` and `make test` do all the set-up on a fresh machine; both make .venv if there is none.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal
USUAL := not parity and not faults and not browser and not networks

# Tests start many processes, which else compile this package's sources each time.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-fast networks faults parity viewer lint types

demo: .venv/run.stamp  ## train and evaluate a small U-SAM on generated CT phantoms
	$(BIN)/python -m usam_jax.main --config=configs/phantom.py --workdir=runs/demo

test: .venv/dev.stamp  ## all tests that need no torch
	$(PYTEST) -m "optimised and $(USUAL)"
	QUICK_COMPILE=1 $(PYTEST) -m "not optimised and $(USUAL)"

test-fast: .venv/dev.stamp  ## the tests that start no processes and compile little: about a minute
	QUICK_COMPILE=1 $(PYTEST) -m "not slow and not optimised and $(USUAL)"

networks: .venv/dev.stamp  ## golden values and a whole run of each further network: some twenty minutes
	$(PYTEST) -m networks

faults: .venv/dev.stamp  ## several processes, kills and broken files (docs/reliability.md): some ten minutes
	$(BIN)/python -m pytest -m faults

parity: .venv/parity.stamp  ## the tests that compare with PyTorch
	$(BIN)/python -m pytest -m parity

viewer: .venv/browser.stamp  ## the tests of the viewer's page, in Chromium (apt-get install chromium)
	$(BIN)/python -m pytest -m browser

lint: .venv/dev.stamp  ## style, and which module may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: .venv/dev.stamp  ## types
	$(BIN)/mypy

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/run.stamp: requirements.txt | .venv/bin/python
	$(BIN)/pip install -r requirements.txt
	@touch $@

.venv/dev.stamp: requirements-dev.txt requirements.txt | .venv/bin/python
	$(BIN)/pip install -r requirements-dev.txt
	@touch $@

.venv/parity.stamp: requirements-parity.txt requirements-dev.txt requirements.txt | .venv/bin/python
	$(BIN)/pip install -r requirements-parity.txt
	@touch $@

.venv/browser.stamp: requirements-browser.txt requirements-dev.txt requirements.txt | .venv/bin/python
	$(BIN)/pip install -r requirements-browser.txt
	@touch $@
