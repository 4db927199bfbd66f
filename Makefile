# The habits of this repository, one target each; `make` alone lists them.
#
# A fresh checkout needs nothing first: what a target needs is installed into .venv, from the
# locked versions, whenever the locks or pyproject.toml are newer than the last installation.

HERE := $(dir $(lastword $(MAKEFILE_LIST)))
ifneq ($(HERE),./)

# Called as `make -f some/where/Makefile`: every path below is relative to this file.
.DEFAULT_GOAL := help
.PHONY: $(or $(MAKECMDGOALS),help)
$(or $(MAKECMDGOALS),help):
	@$(MAKE) --no-print-directory -C "$(HERE)" $@

else

# The first Python on PATH that is new enough. Another one: `make install PYTHON=/path/to/python3.12`.
IS_NEW = import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	"$$p" -c '$(IS_NEW)' 2>/dev/null && echo "$$p" && exit; done; echo python3)

VENV = .venv
RUN = $(VENV)/bin/python -m
PIP = $(RUN) pip install -qq --no-compile --no-input --disable-pip-version-check
LOCKS = requirements-build.txt requirements.txt requirements-dev.txt

# More options for pytest: `make test PYTEST="-k resume -x"`.
PYTEST ?=
# How long `make fuzz` looks for trouble in each fuzz test.
FUZZ_ROUNDS ?= 1000000
# `make lock UPGRADE=--upgrade` takes the newest versions; without it only what must move moves.
UPGRADE ?=

ifeq ($(shell uname -s),Darwin)
# The compiler of macOS does not look where Homebrew puts gmp.
GMP := $(shell brew --prefix gmp 2>/dev/null)
export CFLAGS += $(if $(GMP),-I$(GMP)/include)
export LDFLAGS += $(if $(GMP),-L$(GMP)/lib)
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test check bench fuzz soak compat-live lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

install: $(VENV)/installed ## create .venv with the locked dependencies and this package (about a minute)

demo: $(VENV)/installed ## start two nodes on this computer and share real files between them
	@$(VENV)/bin/python bootstrap/demo.py

test: tests-setup $(VENV)/installed ## run the tests
	@sh tests/run.sh $(VENV)/bin/python $(PYTEST)

check: $(VENV)/installed ## check format, style, types and the imports between rooms
	@$(RUN) ruff format --check .
	@$(RUN) ruff check .
	@$(RUN) mypy
	@$(VENV)/bin/lint-imports

bench: $(VENV)/installed ## measure the speeds that README.md promises
	@$(VENV)/bin/python tests/benchmarks/run.py

fuzz: $(VENV)/installed ## look for trouble in whatever reads bytes from strangers (FUZZ_ROUNDS=N)
	@FUZZ_ROUNDS=$(FUZZ_ROUNDS) $(RUN) pytest -m fuzz --timeout=0 $(PYTEST)

soak: $(VENV)/installed ## let real nodes work, fail and restart for a long time
	@$(RUN) pytest -m soak --timeout=0 $(PYTEST)

compat-live: $(VENV)/installed ## check against the published older packages and npm's IPFS importer
	@$(VENV)/bin/python tests/compat/live/run.py

lock: ## write the locks anew from pyproject.toml (needs uv; UPGRADE=--upgrade takes the newest)
	@sh bootstrap/lock.sh $(UPGRADE)

clean: ## remove .venv and everything else that can be made again
	rm -rf $(VENV) build dist .demo .bench .pytest_cache .mypy_cache .ruff_cache \
		.import_linter_cache .hypothesis
	find kachery_p2p tests bootstrap -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: tests-setup
tests-setup:
	@sh tests/setup.sh

# Three steps, because nothing may be downloaded that is not locked: pip would otherwise fetch what
# builds fastecdsa and this package by itself, in whatever version is newest that day. Bytecode is
# written afterwards on every core: pip, on one, takes 12 s longer.
$(VENV)/installed: $(LOCKS) pyproject.toml bootstrap/preflight.sh
	@sh bootstrap/preflight.sh "$(PYTHON)"
	@echo "installing into $(VENV) (about a minute)" >&2
	@"$(PYTHON)" -m venv $(VENV)
	@$(PIP) --require-hashes -r requirements-build.txt
	@$(PIP) --require-hashes --no-build-isolation -r requirements-dev.txt
	@$(PIP) --no-deps --no-build-isolation -e .
	@$(RUN) compileall -qq -j 0 $(VENV)/lib >/dev/null || true # some packages carry broken examples
	@# A dependency of libp2p's brings stubs of an old trio, which mypy would prefer to trio's types.
	@rm -rf $(VENV)/lib/python3*/site-packages/trio-stubs
	@touch $@

endif
