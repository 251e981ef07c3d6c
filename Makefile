# `make demo` and `make test` are all a fresh machine needs: each makes the virtual environment where it is missing.
PYTHON ?= python3
VENV ?= .venv
PEERS ?= .peers
ANOMALIB ?= 2.7.0
ARGS ?=
# Processes that the tests are spread over, one thread of torch each.
WORKERS ?= 2
SOAK_SECONDS ?= 1800

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz soak peers-env check lint types contract format venv

help:  ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

demo: $(STAMP)  ## synthesise a product, learn it, serve it, score two parts; ARGS=--no-serve to end there
	$(BIN)/plumbline demo $(ARGS)

test: check  ## everything CI runs: the checks below, then the tests; ARGS goes to pytest
	OMP_NUM_THREADS=1 $(BIN)/pytest -rs -n $(WORKERS) --dist worksteal $(ARGS)

fuzz: $(STAMP)  ## 10,000 mutated images and many requests of every kind, 20 minutes
	PLUMBLINE_FUZZ_IMAGES=10000 PLUMBLINE_FUZZ_EXAMPLES=200 $(BIN)/pytest -s --timeout 3600 \
		tests/service/test_fuzz_images.py tests/service/test_fuzz_api.py $(ARGS)

soak: $(STAMP)  ## a service under mixed load for 30 minutes; memory and handles must stay; SOAK_SECONDS shortens it
	$(BIN)/python -m benchmarks.soak --seconds $(SOAK_SECONDS) --out soak.json

# It sees the packages of the environment above behind its own, so that both have the same torch.
peers-env: $(STAMP)  ## an environment with anomalib, for python -m benchmarks.peers
	$(PYTHON) -m venv $(PEERS)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(PEERS)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/plumbline.pth"
	$(PEERS)/bin/pip install anomalib==$(ANOMALIB)

check: lint types contract  ## all checks that run no test

lint: $(STAMP)  ## style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)  ## mypy, strict
	$(BIN)/mypy

contract: $(STAMP)  ## which room may import which
	$(BIN)/lint-imports

format: $(STAMP)  ## rewrite the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

venv: $(STAMP)  ## only make the virtual environment

# Written last, so that an interrupted install is begun again.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Plumbline needs Python 3.11 or newer; name one: make PYTHON=python3.12" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -c constraints.txt -e '.[dev]'
	@touch $@
