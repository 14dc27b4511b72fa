# Every command a developer or a newcomer needs. `make help` lists them.
PYTHON ?= python3
SECONDS ?= 30
TESTS ?=
PART ?= 1
CONFIG ?= tapeline.toml
DOCS ?=
PROFILE ?= light
DEMO ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# The extras that the image has.
EXTRAS := $(shell sed -n 's/^ARG EXTRAS="\(.*\)"/\1/p' deploy/docker/Dockerfile)
CORE := $(VENV)/.native
PAGE := src/tapeline/web/assets/index.html
PAGE_SOURCES := $(shell find web -type f -not -path "web/node_modules/*") docs/alerts.md
# Tests wait more than they work: several workers share the cores. Those that share a server stay together in one worker.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --dist loadgroup --durations 20

.DEFAULT_GOAL := help
.PHONY: help install page dist services demo image sbom up down backtest airflow prefect grafana formats test lint docs bench prove containers clean

help: ## list these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(CORE) ## install the locked versions into .venv, build the native core where Rust is, and the dashboard's page
	@$(MAKE) --silent --question $(PAGE) || $(BIN)/python web/build.py --if-possible build

page: $(PAGE) ## build the dashboard's page; Node.js comes from PyPI if it is missing

# The page's files are part of the package: an installed Tapeline and a wheel have them.
$(PAGE): $(READY) $(PAGE_SOURCES)
	@$(BIN)/python web/build.py build

dist: $(PAGE) ## build the wheel, which has the dashboard's page, the sdist, and where Rust is the native core's wheel, in dist/
	@$(BIN)/python -m hatchling build --directory dist
	@if command -v cargo > /dev/null; then $(BIN)/maturin build --quiet --release --locked --manifest-path native/Cargo.toml --out dist; fi

# uv, itself installed from PyPI into the environment, installs exactly what uv.lock names.
$(READY): pyproject.toml uv.lock
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "uv==0.13.9"
	@UV_PROJECT_ENVIRONMENT=$(VENV) UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1 $(BIN)/uv sync --frozen --all-extras --quiet --inexact --compile-bytecode
	@touch $@

# The native core makes Tapeline faster, and Tapeline works without it. So a missing Rust, or a build that fails, is one line.
$(CORE): $(READY) native/Cargo.toml native/Cargo.lock native/pyproject.toml $(wildcard native/src/*.rs)
	@if ! command -v cargo > /dev/null; then echo "Tapeline goes without its native core: Rust (cargo) is not installed."; \
	elif ! UV_SYSTEM_CERTS=1 $(BIN)/uv pip install --quiet --python $(BIN)/python --no-build-isolation --no-deps --reinstall ./native; then \
	echo "Tapeline goes without its native core: it could not be built. The reason is above."; fi
	@touch $@

services: $(CORE) ## Redis, PostgreSQL, Apache Kafka, Prometheus, Alertmanager, Chromium and systemd's programs for the tests: fetch those that are missing
	@$(BIN)/python -m services install

demo: install ## the whole pipeline against three local simulators, SECONDS=30
	@$(BIN)/tapeline demo --seconds $(SECONDS)

backtest: $(READY) ## run the notebook examples/backtest, in an environment of its own
	@$$($(BIN)/python tests/environments.py examples/backtest --tapeline) examples/backtest/run.py examples/backtest/backtest.ipynb
	@mv examples/backtest/backtest.png docs/images/backtest.png
	@echo "Open examples/backtest/backtest.ipynb"

airflow: $(READY) ## run the jobs of CONFIG=tapeline.toml in Airflow, in an environment of its own
	@$$($(BIN)/python tests/environments.py integrations/airflow) integrations/airflow/start.py --config $(CONFIG) --tapeline $(BIN)/tapeline

prefect: $(READY) ## serve the jobs of CONFIG=tapeline.toml in Prefect, in an environment of its own
	@PYTHONPATH=integrations/prefect $$($(BIN)/python tests/environments.py integrations/prefect) -m tapeline_prefect \
		--config $(CONFIG) --tapeline $(BIN)/tapeline

grafana: $(READY) ## write the dashboards for Grafana; the links to the documentation begin with DOCS=
	@cd deploy/grafana && $$(../../$(BIN)/python ../../tests/environments.py .) -m tapeline_grafana $(if $(DOCS),--docs $(DOCS))

formats: services ## make the archive of what this version leaves on disk, for the tests of the versions after it
	@PYTHONPATH=.:tests/pipeline $(BIN)/python tests/formats.py

image: ## build the image tapeline, and with PROFILE=full the other two; BASE= another Debian root, NATIVE=none without the native core, CA= certificate authorities
	@$(PYTHON) deploy/compose/stack.py image --profile $(PROFILE)

sbom: $(READY) ## write what the image contains to .cache/sbom.json, in CycloneDX
	@mkdir -p .cache
	@$(BIN)/uv export --frozen --quiet --no-dev $(EXTRAS) --format cyclonedx1.5 --output-file .cache/sbom.json

up: ## run Tapeline in containers: PROFILE=light, redis or full; DEMO=1 with simulators in place of the providers
	@$(PYTHON) deploy/compose/stack.py up --profile $(PROFILE) $(if $(DEMO),--demo)

down: ## stop these containers, with the same DEMO=; the data stays
	@$(PYTHON) deploy/compose/stack.py down $(if $(DEMO),--demo)

test: services $(PAGE) ## every test, or TESTS=tests/streams
	@$(if $(TESTS),,if command -v cargo > /dev/null; then cd native && cargo test --quiet --locked --no-default-features; fi)
	@$(PYTEST) $(TESTS)

lint: $(READY) ## ruff, mypy --strict, clippy and tsc
	@$(BIN)/ruff check src tests bench services examples docs integrations deploy web
	@$(BIN)/ruff format --check src tests bench services examples docs integrations deploy web
	@$(BIN)/mypy
	@if command -v cargo > /dev/null; then cd native && cargo fmt --check && cargo clippy --quiet --locked --no-default-features --all-targets; fi
	@$(BIN)/python web/build.py check
	@$(BIN)/mypy --python-executable $$($(BIN)/python tests/environments.py integrations/airflow) \
		integrations/airflow/dags integrations/airflow/start.py
	@$(BIN)/mypy --python-executable $$($(BIN)/python tests/environments.py integrations/prefect) integrations/prefect/tapeline_prefect
	@$(BIN)/mypy --python-executable $$($(BIN)/python tests/environments.py deploy/grafana) deploy/grafana/tapeline_grafana

docs: $(PAGE) ## the documentation as a site, in .cache/site; a broken link fails
	@UV_PROJECT_ENVIRONMENT=$(VENV) UV_PYTHON_DOWNLOADS=never UV_SYSTEM_CERTS=1 $(BIN)/uv sync --frozen --all-extras --group docs --quiet --inexact
	@$(BIN)/python docs/generate.py
	@$(BIN)/python docs/licences.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "Open .cache/site/index.html"

bench: services ## the benchmarks behind docs/performance.md
	@$(BIN)/python -m bench

prove: services $(PAGE) $(if $(filter 1 containers,$(PART)),containers) ## the long proofs: more crashes, more seeds, more data; or one part, PART=chaos
	@TAPELINE_PROVE=$(PART) $(PYTEST) --timeout 7200 $(TESTS)

# A Docker engine of the tests' own.
containers: $(READY)
	@$(BIN)/python -m services install docker

clean: ## remove the environments and caches
	@rm -rf $(VENV) .venvs .cache .mypy_cache .ruff_cache web/node_modules src/tapeline/web/assets
