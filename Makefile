# Every target sets up what it needs first; a set-up that is current costs a fraction of a second.
# PYTHON=/path/to/python3.12   the interpreter of .venv (else the first fitting one on the PATH)
# ACCEL=cpu|cuda|tpu           what jax runs on
# TORCH=cpu|none               none: no torch for the tests; those that need it are skipped
PYTHON ?=
VENV ?= .venv
ACCEL ?= cpu
TORCH ?= cpu
ARGS ?=
export PYTHON VENV ACCEL TORCH

.PHONY: help quickstart test test-all lint setup clean
.DEFAULT_GOAL := help

help:
	@echo 'make quickstart   set up, train a small model, test it, write runs/quickstart/report.html'
	@echo 'make test         set up, run the tests (ARGS="-k name" selects)'
	@echo 'make test-all     the slow, gpu and browser tests too; writes docs/results/tests.md'
	@echo 'make lint         formatting, lint, types, spelling'
	@echo 'make setup        the environment only (.venv), then sgqlm doctor'
	@echo 'make clean        remove .venv and caches; runs/ stays'

setup:
	@scripts/setup_env.sh core
	@$(VENV)/bin/python -m sgqlm doctor

quickstart:
	@scripts/setup_env.sh core
	@$(VENV)/bin/python -m sgqlm quickstart $(ARGS)

test:
	@scripts/setup_env.sh dev
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

test-all:
	@scripts/setup_env.sh dev
	@$(VENV)/bin/python scripts/test_all.py $(ARGS)

lint:
	@scripts/setup_env.sh dev
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/codespell
	@$(VENV)/bin/pyright

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
