# Two environments: .venv (orchestration, training, quantization, evaluation) and .venv-vllm (the engine).
SHELL := /bin/bash
.DEFAULT_GOAL := help

UV_VERSION := 0.13.8
UV := $(shell command -v uv || echo .uv/bin/uv)
PYTHON_VERSION := 3.11
ENGINE ?= $(shell if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then echo cuda; else echo cpu; fi)

ifdef PIP_FIND_LINKS # a locally provided CPU build of torch, where there is one
export UV_FIND_LINKS := $(PIP_FIND_LINKS)
endif
export DAGSTER_HOME ?= $(CURDIR)
export DAGSTER_DISABLE_TELEMETRY := true
export MLFLOW_DISABLE_TELEMETRY := true
export LLM_ASSETS_HOME ?= $(CURDIR)/.llm_assets
# Two OpenMP threads that spin against each other on a busy small machine are slower than one.
export OMP_NUM_THREADS ?= 1
export GOMP_SPINCOUNT ?= 0

BENCHES := $(patsubst benchmarks/%.py,bench-%,$(filter-out benchmarks/_%.py,$(wildcard benchmarks/*.py)))

.PHONY: help docs env engine-env demo dev mlflow-ui test test-fast lint format lock bench clean $(BENCHES)

help: ## List the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/  make \1|\2/' | column -t -s '|'

demo: env engine-env ## Materialize the whole sql_demo lineage through Dagster and print a report
	@.venv/bin/python -m llm_assets.demo.rows
	@.venv/bin/python -m llm_assets.demo.run

dev: env engine-env ## Open the Dagster UI on http://localhost:3000
	@.venv/bin/python -m llm_assets.demo.rows
	PYTHONWARNINGS=ignore .venv/bin/dagster dev --workspace workspace.yaml --port $${PORT:-3000}

mlflow-ui: env ## Open the MLflow UI on http://localhost:5000
	.venv/bin/mlflow server --backend-store-uri sqlite:///$(LLM_ASSETS_HOME)/mlflow.db --port $${PORT:-5000} --workers 1

test: env engine-env ## Run every test; the demo is materialized once, beside the other tests
	@mkdir -p .pytest_cache; \
	.venv/bin/python -m pytest tests/end_to_end > .pytest_cache/end_to_end.log 2>&1 & demo=$$!; trap 'kill $$demo' INT TERM; \
	.venv/bin/python -m pytest --ignore tests/end_to_end; others=$$?; \
	wait $$demo; demo=$$?; cat .pytest_cache/end_to_end.log; exit $$((others + demo))

test-fast: env engine-env ## Run the tests that do not need the materialized demo
	.venv/bin/python -m pytest --ignore tests/end_to_end

lint: env ## Check style, types and import contracts
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/basedpyright
	.venv/bin/lint-imports

format: env ## Rewrite the code in the project's format
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: env ## Write docs/lineage.md from the schema
	.venv/bin/python -m llm_assets.components.reference > docs/lineage.md

bench: $(BENCHES) ## Run every benchmark against what a user would pick instead, and write README's table
	.venv/bin/python -m benchmarks._readme

$(BENCHES): bench-%: env engine-env
	.venv/bin/python -m benchmarks.$* $(ARGS)

env: .venv/.ready ## Make the orchestration and training environment

engine-env: .venv-vllm/.ready ## Make the engine environment (ENGINE=cpu or cuda)

.venv/.ready: pyproject.toml environments/constraints.txt | $(UV)
	@echo "Making .venv (orchestration, training, quantization, evaluation)"
	$(UV) venv --quiet --allow-existing --python $(PYTHON_VERSION) .venv
	$(UV) pip install --python .venv/bin/python --constraints environments/constraints.txt --group dev --editable .
	@touch $@

.venv-vllm/.ready: $(wildcard environments/engine*) | $(UV)
	@echo "Making .venv-vllm (the engine, $(ENGINE))"
	$(UV) venv --quiet --allow-existing --python $(PYTHON_VERSION) .venv-vllm
ifeq ($(ENGINE),cuda)
	$(UV) pip install --python .venv-vllm/bin/python --constraints environments/engine-cuda-constraints.txt \
		--requirements environments/engine-cuda.in
else
	$(UV) pip install --python .venv-vllm/bin/python --constraints environments/engine-constraints.txt \
		--overrides environments/engine-overrides.txt --requirements environments/engine.in
endif
	@touch $@

.uv/bin/uv:
	python3 -m venv .uv
	.uv/bin/pip install --quiet uv==$(UV_VERSION)

lock: | $(UV) ## Resolve the environments again and write their constraints
	$(UV) pip compile --quiet --python-version $(PYTHON_VERSION) --group dev pyproject.toml --no-annotate --no-header -o environments/constraints.txt
	$(UV) pip compile --quiet --python-version $(PYTHON_VERSION) --override environments/engine-overrides.txt environments/engine.in --no-annotate --no-header -o environments/engine-constraints.txt
	env -u UV_FIND_LINKS $(UV) pip compile --quiet --python-version $(PYTHON_VERSION) --python-platform x86_64-unknown-linux-gnu environments/engine-cuda.in --no-annotate --no-header -o environments/engine-cuda-constraints.txt
	@sed -i -E '/^--find-links/d; s/^(torch==[0-9.]+)\+cpu$$/\1/' environments/constraints.txt environments/engine-constraints.txt

clean: ## Delete everything the project made here: artifacts, Dagster and MLflow storage, environments
	rm -rf .llm_assets .venv .venv-vllm .uv .pytest_cache .ruff_cache
