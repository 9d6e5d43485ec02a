# `make run` and `make test` set up everything they need in .venv, at the versions in requirements/; nothing else on the machine
# is touched.
PYTHON ?= python3
# What pip installs as torch, such as torch==2.12.0 or "torch --index-url URL". Not given: the build that suits the machine.
TORCH ?=
ARGS ?=
BIN := .venv/bin
PIP := pip --disable-pip-version-check
# The lock files are complete, and pip checks every file against their hashes.
LOCKED := install --require-hashes --no-deps -r
UV := uv==0.13.9

.PHONY: run test fuzz test-latest test-frameworks test-phoenix check check-web bench lock wheel zoo clean
.DEFAULT_GOAL := run

run: .venv/.run
	@$(BIN)/headway demo $(ARGS)

test: .venv/.dev
	@$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Every border with seeded inputs, SECONDS each; SEED repeats a run. `make test` does the same for two seconds each.
SECONDS ?= 60
SEED ?= 1
fuzz: .venv/.dev
	@HEADWAY_FUZZ_SECONDS=$(SECONDS) HEADWAY_FUZZ_SEED=$(SEED) $(BIN)/python -m pytest -s -o timeout=0 tests/fuzz

# With the newest releases that pyproject.toml allows in place of the locked ones. torch stays as it is in requirements/torch.txt.
test-latest:
	@$(MAKE) --no-print-directory .venv-latest/.torch
	@.venv-latest/bin/$(PIP) install --upgrade --upgrade-strategy eager -c requirements/torch.txt -e '.[dev]'
	@.venv-latest/bin/python -m pytest -n auto --maxprocesses 4 --dist loadfile

# Agent frameworks against the running gateway, from a venv of their own.
test-frameworks: .venv/.dev .venv-frameworks/.done
	@HEADWAY_PYTHON=$(abspath $(BIN)/python) .venv-frameworks/bin/python -m pytest -c tests/frameworks/pytest.ini tests/frameworks

# Traces of the demo in a real OTLP receiver: Arize Phoenix, from a venv of its own.
test-phoenix: .venv/.otlp .venv-phoenix/.done
	@HEADWAY_PHOENIX=$(abspath .venv-phoenix/bin/phoenix) $(BIN)/python -m pytest tests/observability

check: .venv/.dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports
	@$(MAKE) --no-print-directory check-web

# Format and lint of the dashboard's files. Nothing but this check needs Node.
CHECK_NODE := const [major, minor] = process.versions.node.split(".").map(Number); process.exit(100 * major + minor < 2019 ? 1 : 0)
check-web:
	@if command -v npm > /dev/null && node -e '$(CHECK_NODE)' 2> /dev/null; then \
		$(MAKE) --silent dashboards/node_modules/.done && npm --prefix dashboards run --silent check; \
	else echo "headway: without npm and Node 20.19 or newer, make check leaves out dashboards/web" >&2; fi

dashboards/node_modules/.done: dashboards/package-lock.json
	@npm --prefix dashboards ci --silent
	@touch $@

bench: .venv/.dev
	@$(BIN)/python -m benchmarks

# Renews the lock files in requirements/ to the newest releases that pyproject.toml and requirements/*.in allow.
lock: .venv-lock/.done
	@.venv-lock/bin/python requirements/lock.py .venv-lock/bin/uv

.venv/.python .venv-latest/.python .venv-lock/.python .venv-frameworks/.python .venv-phoenix/.python .venv-wheel/.python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2> /dev/null || { \
		echo "headway: $(PYTHON) is $$($(PYTHON) --version 2>&1 | tail -n 1), Python 3.11, 3.12 or 3.13 is needed: name one with make run PYTHON=python3.12" >&2; exit 1; }
	@echo "headway: creating $(@D)" >&2
	@$(PYTHON) -m venv $(@D)
	@touch $@

.venv/.locked: requirements/run.txt | .venv/.python
	@echo "headway: installing what the gateway and the engine need" >&2
	@$(BIN)/$(PIP) $(LOCKED) $<
	@touch $@

.venv/.torch: requirements/torch.txt | .venv/.locked
	@$(BIN)/python requirements/install_torch.py "$(TORCH)"
	@touch $@

.venv-latest/.torch: requirements/torch.txt | .venv-latest/.python
	@.venv-latest/bin/python requirements/install_torch.py "$(TORCH)"
	@touch $@

.venv/.run: .venv/.locked .venv/.torch pyproject.toml
	@$(BIN)/$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

.venv/.dev: .venv/.run requirements/dev.txt
	@echo "headway: installing what tests and checks need" >&2
	@$(BIN)/$(PIP) $(LOCKED) requirements/dev.txt
	@touch $@

.venv/.otlp: .venv/.dev requirements/otlp.txt
	@$(BIN)/$(PIP) $(LOCKED) requirements/otlp.txt
	@touch $@

.venv-frameworks/.done: requirements/frameworks.txt | .venv-frameworks/.python
	@.venv-frameworks/bin/$(PIP) $(LOCKED) $<
	@touch $@

.venv-phoenix/.done: requirements/phoenix.txt | .venv-phoenix/.python
	@.venv-phoenix/bin/$(PIP) $(LOCKED) $<
	@touch $@

.venv-lock/.done: Makefile | .venv-lock/.python
	@.venv-lock/bin/$(PIP) install $(UV)
	@touch $@

# Trains both shipped models from nothing: hours on two cores, resumable, the checkpoints stay in $(ZOO).
ZOO ?= $(HOME)/.cache/headway/zoo
zoo: .venv/.dev
	@$(BIN)/python -m backends.zoo.tokenizer $(ZOO)/tokenizer
	@$(BIN)/python -m backends.zoo.train nano --tokenizer $(ZOO)/tokenizer --checkpoint $(ZOO)/nano --short-steps 11300 --long-steps 1300 --decay-share 0.3
	@$(BIN)/python -m backends.zoo.train pico --tokenizer $(ZOO)/tokenizer --checkpoint $(ZOO)/pico --short-steps 9600 --long-steps 1100
	@$(BIN)/python -m backends.zoo.export nano --tokenizer $(ZOO)/tokenizer --checkpoint $(ZOO)/nano --out backends/zoo/nano
	@$(BIN)/python -m backends.zoo.export pico --tokenizer $(ZOO)/tokenizer --checkpoint $(ZOO)/pico --out backends/zoo/pico --int8

# Our wheel with the compiled CPU step for every kind of processor of this architecture, so that it needs no compiler.
wheel: .venv/.dev .venv-wheel/.done
	@rm -rf build dist kernels/cpu/lib
	@$(BIN)/python -m backends.runners.native_library kernels/cpu/lib
	@.venv-wheel/bin/$(PIP) wheel -q --no-deps --no-build-isolation --wheel-dir build/wheel .
	@PATH="$(abspath .venv-wheel/bin):$$PATH" .venv-wheel/bin/auditwheel -v repair --wheel-dir dist build/wheel/*.whl 2>&1 | tail -1
	@rm -rf kernels/cpu/lib && ls -l dist

.venv-wheel/.done: requirements/wheel.txt | .venv-wheel/.python
	@.venv-wheel/bin/$(PIP) $(LOCKED) $<
	@touch $@

clean:
	rm -rf .venv .venv-* dashboards/node_modules build dist kernels/cpu/lib *.egg-info .mypy_cache .ruff_cache .pytest_cache
