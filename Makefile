# A fresh machine needs Python 3.11 or newer and make. `make PYTHON=python3.12 test` picks another interpreter.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
RUN ?= runs/quickstart

.PHONY: help install quickstart test test-torchvision fuzz kill newest lowest check docs format wheel browser clean
help:
	@echo "make quickstart   train, evaluate and report in the embedded world: $(RUN)/report.html"
	@echo "make test         the whole test suite"
	@echo "make test-torchvision   the tests of other models that need torchvision, and of timm's: 5.6 GB the first time"
	@echo "make fuzz         10,000 damaged inputs: each ends in one line (NUM=, SEED=)"
	@echo "make kill         work ended at random moments, and on full disks: what goes on is whole (MOMENTS=)"
	@echo "make newest       install the newest of every dependency and run the quick tests: does a release break us?"
	@echo "make lowest       the same with the lowest versions that pyproject.toml declares"
	@echo "make check        linters, types, import contracts, spelling"
	@echo "make docs         build the site, strictly: site/index.html"
	@echo "make format       put the code into shape"
	@echo "make wheel        build dist/agevlm-*.whl"
	@echo "make browser      fetch the Chromium that drives the server's page; without one these tests are skipped"
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

# Both say what came of it as a table; docs/reliability.md has the last ones. Their small share is in `make test`.
NUM ?= 10000
SEED ?= 0
MOMENTS ?= 20

fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/fuzz_harness.py --num $(NUM) --seed $(SEED)

kill: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/kills.py --moments $(MOMENTS)

# Some processors of transformers, and timm, need torchvision, which has builds for CUDA only beside this torch: an environment of its
# own, which runs on CPUs too. Not for CI: 5.6 GB.
test-torchvision: $(INSTALLED)
	test -d .venv-torchvision || $(PYTHON) -m venv .venv-torchvision
	.venv-torchvision/bin/pip install --quiet torch==2.14.1 torchvision==0.29.1
	.venv-torchvision/bin/pip install --quiet --editable '.[timm]' pytest pytest-xdist
	OMP_NUM_THREADS=1 .venv-torchvision/bin/python -m pytest -rs --numprocesses 2 --dist worksteal --quiet tests/vlms \
		tests/modeling/test_timm.py

# What most depends on the libraries around us. Nothing is given but torch, for its CPU build; extras come after the wheel
# has shown that it trains and looks without them.
QUICK := tests/modeling tests/guidance tests/data tests/evaluation/test_runner.py tests/evaluation/test_any_model.py tests/test_quiet.py \
	tests/training/test_trainer.py tests/training/test_resume.py tests/training/test_stages.py
TORCH := $(shell grep '^torch==' constraints.txt)
PYTEST := -m pytest --numprocesses 2 --dist worksteal --quiet

newest: wheel
	test -d .venv-newest || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/pip uninstall --quiet --yes agevlm
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager $(TORCH) dist/agevlm-*.whl pytest pytest-xdist
	OMP_NUM_THREADS=1 .venv-newest/bin/python -m pytest --quiet tests/test_installed.py
	.venv-newest/bin/pip install --quiet --upgrade --upgrade-strategy eager $(TORCH) peft spacy datasets gguf
	.venv-newest/bin/python tools/drift.py
	OMP_NUM_THREADS=1 .venv-newest/bin/python $(PYTEST) $(QUICK)

lowest: wheel
	test -d .venv-lowest || $(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip uninstall --quiet --yes agevlm
	.venv-lowest/bin/pip install --quiet --constraint constraints-lowest.txt dist/agevlm-*.whl pytest pytest-xdist \
		peft spacy datasets gguf
	OMP_NUM_THREADS=1 .venv-lowest/bin/python $(PYTEST) $(QUICK)

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
	rm -rf dist
	$(BIN)/python -m build --wheel --no-isolation

# Playwright's own, or where that is not to be had the system's.
browser: $(INSTALLED)
	command -v chromium chromium-browser google-chrome || timeout 300 $(BIN)/playwright install chromium || \
		{ timeout 300 apt-get -qq update && timeout 300 apt-get -qq install --yes --no-install-recommends chromium; }

clean:
	rm -rf $(VENV) .venv-newest .venv-lowest .venv-torchvision build dist site .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
