# Every command of the README. Bare machine needed: Python >= 3.11 and make (client-test: Node too).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
.DEFAULT_GOAL := help
.PHONY: help run test client-test stack-test check bench lock clean

help:            ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/run.stamp: requirements.lock requirements-fast.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "claude-proxy needs Python 3.11 or newer: make run PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --require-hashes -r requirements-fast.lock >/dev/null 2>&1 \
	  || echo "no C compiler or Python headers: gunicorn's Python HTTP parser is used instead of its C one"
	@touch $@

$(VENV)/dev.stamp: $(VENV)/run.stamp requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements-dev.lock
	@touch $@

run: $(VENV)/run.stamp   ## start the gateway (and, without a provider key, the simulator)
	@$(BIN)/claude-proxy serve --simulate-without-key

test: $(VENV)/dev.stamp  ## Python tests: no server to install
	$(BIN)/python -m pytest tests --ignore=tests/clients --ignore=tests/stack --ignore=tests/bench

client-test: $(VENV)/dev.stamp  ## real SDKs in their own environments, against a real gateway
	$(BIN)/python -m pytest tests/clients

stack-test: $(VENV)/dev.stamp  ## real Prometheus and Jaeger
	$(BIN)/python -m pytest tests/stack

check: $(VENV)/dev.stamp  ## lint, format, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/dev.stamp  ## throughput, latency and memory beside a bare pass-through
	$(BIN)/python -m tests.bench

lock: $(VENV)/dev.stamp  ## renew the locks (hashes, no index address)
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra build pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev pyproject.toml -o requirements-dev.lock
	printf 'gunicorn-h1c>=0.6.9,<0.7\n' | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --no-deps - -o requirements-fast.lock

clean:           ## remove what make made
	rm -rf $(VENV) build *.egg-info
