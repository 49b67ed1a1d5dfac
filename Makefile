# make demo: train standard and FGR on the bundled digits, attack both, draw the pictures. make test: all checks but
# the slowest tests, which make test-all runs too.
PYTHON ?= python3
BIN = .venv/bin

.PHONY: demo test test-all clean

demo: .venv/installed
	$(BIN)/python train.py --config=configs/digits_standard.py --workdir=runs/digits_standard
	$(BIN)/python train.py --config=configs/digits_fgr.py --workdir=runs/digits_fgr
	$(BIN)/python eval.py --workdir=runs/digits_standard,runs/digits_fgr

test: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest --numprocesses=2 --dist=worksteal --durations=15 -m "not slow"

test-all: .venv/installed-test
	$(BIN)/pytest --numprocesses=2 --dist=worksteal

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "robust_jax needs Python 3.11 or later, $(PYTHON) is older: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv .venv

.venv/installed: setup.cfg pyproject.toml .venv/bin/python
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/installed-test: setup.cfg pyproject.toml .venv/bin/python
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@ .venv/installed

clean:
	rm -rf .venv runs
