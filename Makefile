# Everything starts here: `make demo` and `make test` create .venv from requirements/cpu.lock when it is missing or
# stale, and do nothing twice.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help

BIN := .venv/bin
LOCK := requirements/cpu.lock
TORCH_INDEX := https://download.pytorch.org/whl/cpu
PYTHON ?=
ARGS ?=

.PHONY: help install demo test check lock

help:  ## list the targets
	@sed -nE 's/^([a-z]+):.*## (.*)/make \1\t\2/p' Makefile | expand -t 16

install: .venv/.stamp  ## create .venv from the lock, if it is missing or stale

demo: .venv/.stamp  ## align a real chat model with PPO, offline, in some ten minutes on two cores
	@$(BIN)/rlhf-ray demo $(ARGS)

test: .venv/.stamp  ## run all tests but tests/gpu, or those that ARGS names: make test ARGS="-k kl"
	@$(BIN)/pytest --ignore=tests/gpu $(ARGS)

check: .venv/.stamp  ## lint, types, import layers
	@$(BIN)/ruff check rlhf_ray tests
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

lock:  ## resolve requirements/cpu.lock again (needs uv)
	@command -v uv >/dev/null || { echo "make lock needs uv: https://docs.astral.sh/uv/" >&2; exit 1; }
	uv pip compile pyproject.toml requirements/cpu.in --extra cpu --extra dev \
	  --override requirements/overrides.txt --python-version 3.11 --generate-hashes --no-header --no-annotate \
	  $(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS),--extra-index-url $(TORCH_INDEX) --index-strategy unsafe-best-match) \
	  -o $(LOCK)

# A new lock makes a new environment; a change of pyproject.toml alone only registers the package again.
.venv/.stamp: $(LOCK) pyproject.toml
	@if [[ " $? " == *" $(LOCK) "* ]]; then
	  python=""
	  for each in $(or $(PYTHON),python3.11 python3); do
	    if "$$each" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null; then python=$$each; break; fi
	  done
	  if [[ -z "$$python" ]]; then
	    echo "error: the locked environment needs CPython 3.11 (the hash of its torch wheel is of that build), and none" >&2
	    echo "of $(or $(PYTHON),python3.11 python3) is one. Install it and name it: make install PYTHON=/path/to/python3.11." >&2
	    echo "With Python 3.12, or a GPU, make an environment yourself: see Install in README.md." >&2
	    exit 1
	  fi
	  echo "creating .venv from $(LOCK) with $$($$python --version) (about three minutes, 4 GB)"
	  rm -f $@
	  "$$python" -m venv --clear .venv || { echo "error: '$$python -m venv' failed; on Debian: apt install python3.11-venv" >&2; exit 1; }
	  torch=$$(grep -oE '^torch==[^ ]+' $(LOCK))
	  index=""
	  if ! $(BIN)/pip install --quiet --dry-run --no-deps "$$torch" >/dev/null 2>&1; then
	    echo "$$torch is not on your package index: taking it from $(TORCH_INDEX)"
	    index="--extra-index-url $(TORCH_INDEX)"
	  fi
	  echo "installing $$(grep -c '^[a-z0-9]' $(LOCK)) packages, each checked against its hash"
	  $(BIN)/pip install --quiet --disable-pip-version-check --require-hashes --no-deps $$index -r $(LOCK)
	fi
	echo "registering rlhf-ray in .venv"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	# Packages that requirements/overrides.txt leaves out on purpose are the only ones that may be missing.
	absent=$$(sed -nE "s/^([a-z-]+) *; *sys_platform == 'never'.*/\1/p" requirements/overrides.txt | paste -sd '|')
	if report=$$($(BIN)/pip check 2>&1); then report=""; fi
	problems=$$(grep -vE " requires ($$absent), which is not installed\.$$" <<<"$$report" || true)
	if [[ -n "$$problems" ]]; then echo "error: pip check: $$problems" >&2; exit 1; fi
	touch $@
	echo ".venv is ready"
