# make demo         train standard and FGR on the bundled digits, attack both, draw the pictures
# make test         lint, types, and all tests but the slowest
# make test-all     the slowest tests too
# make test-quick   lint, types, and the tests in which this package meets JAX, Flax, Orbax and the file system most
# make wheel        build the package, install it alone, and train, attack and report with it in an empty folder
# make docs         the documentation site, build/docs/index.html; runs its notebooks
# make constraints  pin the newest version of everything that `make` installs
# make audit        known vulnerabilities of the pinned versions, and those that have newer ones
# Another Python, in an environment of its own: make test PYTHON=python3.13
PYTHON ?= python3
VERSION := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV = .venv$(if $(filter-out file default,$(origin PYTHON)),-$(VERSION))
BIN = $(VENV)/bin
# uv installs in a fifth of pip's time.
INSTALL = $(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt
# Lint what git knows: scratch files and the folders that runs leave are the user's own.
SOURCES = $(or $(shell git ls-files '*.py' 2>/dev/null),.)

.PHONY: demo lint test test-quick test-all docs wheel constraints audit clean

demo: $(VENV)/installed
	$(BIN)/python train.py --config=digits_standard --workdir=runs/digits_standard
	$(BIN)/python train.py --config=digits_fgr --workdir=runs/digits_fgr
	$(BIN)/python eval.py --workdir=runs/digits_standard,runs/digits_fgr

lint: $(VENV)/installed-test
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

test: lint
	$(BIN)/pytest --numprocesses=2 --dist=worksteal --durations=15 -m "not slow"

test-quick: lint
	$(BIN)/pytest --numprocesses=2 --dist=worksteal -m "not slow" tests/attacks/test_pgd.py tests/training/test_objects.py \
	  tests/workdir tests/test_cli.py tests/test_imports.py

wheel: $(VENV)/installed-test
	rm -rf build/wheel build/bare
	$(BIN)/python -m build --outdir build/wheel .
	$(BIN)/twine check --strict build/wheel/*
	$(BIN)/uv venv --quiet --python $(BIN)/python build/bare
	$(BIN)/uv pip install --quiet --python build/bare/bin/python --constraint constraints.txt build/wheel/*.whl
	ROBUST_JAX_PROGRAM=$(CURDIR)/build/bare/bin/robust-jax $(BIN)/pytest tests/test_own_folder.py

test-all: $(VENV)/installed-test
	$(BIN)/pytest --numprocesses=2 --dist=worksteal

docs: $(VENV)/installed-docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --quiet --jobs=auto -d build/doctrees docs build/docs
	@echo "Built build/docs/index.html"

constraints: $(VENV)/bin/python
	$(BIN)/uv pip compile --quiet --universal --upgrade --python-version 3.11 --extra test --extra docs setup.cfg \
	  --no-emit-index-url --no-annotate --custom-compile-command "make constraints" --output-file constraints.txt

audit: $(VENV)/installed-test
	$(BIN)/uv pip install --quiet --python $(BIN)/python pip-audit
	-$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip --progress-spinner=off
	$(BIN)/python -m pip list --outdated

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "robust_jax needs Python 3.11 or later, $(PYTHON) is older: make PYTHON=python3.13 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv

$(VENV)/installed: setup.cfg pyproject.toml constraints.txt $(VENV)/bin/python
	$(INSTALL) --editable .
	touch $@

$(VENV)/installed-test: setup.cfg pyproject.toml constraints.txt $(VENV)/bin/python
	$(INSTALL) --editable '.[test]'
	touch $@ $(VENV)/installed

$(VENV)/installed-docs: setup.cfg pyproject.toml constraints.txt $(VENV)/bin/python
	$(INSTALL) --editable '.[docs]'
	touch $@ $(VENV)/installed

clean:
	rm -rf .venv .venv-* build runs
