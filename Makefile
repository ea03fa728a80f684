# Everything a fresh machine needs: Python 3.11, git, make. `make help` lists the targets.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
ifeq (, $(shell command -v $(PYTHON) 2>/dev/null))
PYTHON := python3
endif
BIN := .venv/bin
KEEP ?=
# Tests wait for servers and for each other far more than they compute.
WORKERS ?= 4
ARGS ?=

.PHONY: help setup demo stop test heavy check format lock benchmark clean

help: ## List the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 18

setup: .venv/.installed ## Create .venv and install everything from the lock

.venv/.installed: requirements.lock pyproject.toml scripts/setup.sh
	@PYTHON=$(PYTHON) scripts/setup.sh

demo: .venv/.installed ## Run the main job on a real Airflow, from a git push to a deployed model (KEEP=1 leaves it up)
	@$(BIN)/deepseek-ops demo $(if $(KEEP),--keep) $(ARGS)

stop: ## End what `make demo KEEP=1` left up
	@if [ -x $(BIN)/deepseek-ops ]; then $(BIN)/deepseek-ops stop; fi

check: .venv/.installed ## Format, lint, types, import contracts, unit and contract tests (under a minute)
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache
	@$(BIN)/mypy
	@$(BIN)/hadolint Dockerfile docker/*.Dockerfile
	@$(BIN)/pytest -q -n 3 --dist loadfile -m "not slow and not e2e" tests/unit tests/contract $(ARGS)

test: .venv/.installed ## Run the whole test suite: check, integration, DAGs, and the live end-to-end run
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports --no-cache >/dev/null || $(BIN)/lint-imports --no-cache
	@$(BIN)/mypy
	@$(BIN)/hadolint Dockerfile docker/*.Dockerfile
	@$(BIN)/pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m "not e2e and not heavy" $(ARGS)
	@$(BIN)/pytest -q -m e2e $(ARGS)

heavy: .venv/.installed ## Run what needs a quiet machine: real clusters, their trainings, the death matrix
	@$(BIN)/pytest -q -m heavy $(ARGS)

format: .venv/.installed ## Format the code and sort the imports
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

lock: .venv/.installed ## Resolve the dependencies again and write requirements.lock
	@scripts/lock.sh

clean: stop ## Remove what set-up and runs have made
	@rm -rf .venv .deepseek-ops .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
