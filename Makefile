# `make run` and `make test` set up everything they need in .venv; nothing else on the machine is touched.
PYTHON ?= python3
# What pip installs as torch. A GPU machine takes its own build: make run TORCH=torch
TORCH ?= torch==2.13.0
ARGS ?=
BIN := .venv/bin

.PHONY: run test check bench zoo clean
.DEFAULT_GOAL := run

run: .venv/.run
	@$(BIN)/headway demo $(ARGS)

test: .venv/.dev
	@$(BIN)/python -m pytest

check: .venv/.dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports

bench: .venv/.dev
	@$(BIN)/python -m benchmarks

.venv/.torch:
	@echo "headway: creating .venv and installing torch ($(TORCH))" >&2
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --disable-pip-version-check $(TORCH)
	@touch $@

.venv/.run: .venv/.torch pyproject.toml
	@echo "headway: installing the gateway and the engine" >&2
	@$(BIN)/pip install --disable-pip-version-check -e '.[engine,demo]'
	@touch $@

.venv/.dev: .venv/.run pyproject.toml
	@echo "headway: installing what tests and checks need" >&2
	@$(BIN)/pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info .mypy_cache .ruff_cache .pytest_cache
