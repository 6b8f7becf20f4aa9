# A fresh machine needs Python 3.11 or newer and make. `make PYTHON=python3.12 test` picks another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN ?= runs/quickstart

.PHONY: help install quickstart test check docs format wheel clean
help:
	@echo "make quickstart   train, evaluate and report in the embedded world: $(RUN)/report.html"
	@echo "make test         the whole test suite"
	@echo "make check        linters, types, import contracts, spelling"
	@echo "make docs         build the site, strictly: site/index.html"
	@echo "make format       put the code into shape"
	@echo "make wheel        build dist/agevlm-*.whl"
	@echo "make clean        remove the virtual environment and every cache"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than Python 3.11: name another one, as in make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

quickstart: $(INSTALLED)
	$(BIN)/agevlm train recipes/quickstart.yaml --out $(RUN) --resume

test: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal

check: $(INSTALLED)
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

format: $(INSTALLED)
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(INSTALLED)
	$(BIN)/python -m build --wheel --no-isolation

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
