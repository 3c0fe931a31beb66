# Every target sets up what it needs from a fresh clone and costs little when there is nothing to do.
#
#   make setup HOLDFAST_HOST=path/to/wheel   puts another CPU build of the host in the default one's place
#   make test PYTEST_ARGS="-k name"          passes arguments to pytest
#   make test HOST=0.33                      any target on 0.33's Python over 0.32's operators, in .venv-0.33
#   make demo TOPOLOGY=tp2                   many ranks: tp2, pp2, dp2, moe or moe-ep
#   make demo FAULT=kill-worker              kills a worker process instead of raising in it; kill-engine an engine core;
#                                            stop, hang, spin or deadlock silence it; oom takes its memory; slow delays it;
#                                            poison is a request that makes every step fail
#   make demo DEMO_ARGS="--help"             passes arguments to the demo
#   make nightly PART=matrix                 runs what has no row yet, for 95 minutes at most (NIGHTLY_ARGS="--minutes 20")
#   make bench BENCH_TOPOLOGIES="tp2 moe"    measures recovery of these only

.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.PHONY: help setup tools demo test test-servers nightly nightly-status check contract-wheels host-report bench features figures settings metrics constraints clean
.PHONY: check-tests check-core check-host check-links check-front check-other check-ruff check-format check-mypy check-imports
.PHONY: format mutate hops release-check gpu-check

# Some shells export HOST, so it counts only from make's own command line.
DEFAULT_HOST := 0.32
RELEASE := $(if $(filter command,$(origin HOST)),$(filter-out $(DEFAULT_HOST),$(HOST)))
BIN := .venv$(addprefix -,$(RELEASE))/bin
export HOLDFAST_HOST
ifneq ($(RELEASE),)
# Without it 0.33 takes the number of a data-parallel rank for that of a NUMA node, and most machines have one node.
export VLLM_CPU_SIM_MULTI_NUMA := 0
endif
# Compiled once, into __pycache__, and not again by every process that a test starts.
unexport PYTHONDONTWRITEBYTECODE

# A name on the path may be a shim without a Python behind it, so each is tried.
ifndef PYTHON
export PYTHON := $(shell for p in python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
endif

FAULT ?= exception
PART ?= matrix
WORKERS ?= 2
BENCH_TOPOLOGIES ?= one tp2 pp2 dp2 moe moe-ep
# Five runs of pytest, four jobs at a time: a run imports only what its own tests need, and some tests mostly wait.
CORE_TESTS := tests/unit/core tests/unit/sentinel
LINK_TESTS := $(addprefix tests/contract/,communicators wire progress)
HOST_TESTS := tests/unit/hosts $(filter-out $(LINK_TESTS) %/__pycache__ %/__init__.py,$(wildcard tests/contract/*))
FRONT_TESTS := tests/unit/api tests/unit/cli
OTHER_TESTS := $(filter-out $(CORE_TESTS) $(HOST_TESTS) $(FRONT_TESTS) %/__pycache__,$(wildcard tests/unit/*)) tests/simulation
SERVER_TESTS := $(wildcard tests/browser tests/integration tests/e2e)

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | column -t -s '|'

setup: ## make .venv with the host's CPU build and everything pinned; HOST=0.33 makes .venv-0.33 beside it
	@command -v "$(PYTHON)" >/dev/null || { echo "setup: no Python 3.11 or newer was found; set PYTHON=/its/path" >&2; exit 1; }
	@$(PYTHON) scripts/setup $(RELEASE)

tools: ## install what some tests need beside .venv: Prometheus with promtool, Chromium, axe-core
	@$(PYTHON) scripts/tools $(TOOLS)

demo: setup ## hurt a real server in the middle of eight answers and watch it carry on; TOPOLOGY=tp2 for many ranks
	@$(BIN)/holdfast demo $(addprefix --topology ,$(TOPOLOGY)) --fault $(FAULT) $(DEMO_ARGS)

test: setup ## the whole suite, with real servers
ifdef PYTEST_ARGS
	$(BIN)/python -m pytest $(PYTEST_ARGS)
else
	@$(MAKE) --no-print-directory --keep-going --jobs=4 --output-sync=target check-tests
	@$(MAKE) --no-print-directory test-servers
endif

test-servers: setup ## the part of the suite that starts real servers; WORKERS=1 runs one test at a time
	$(BIN)/python -m pytest $(if $(filter-out 1,$(WORKERS)),-n $(WORKERS) --dist loadgroup) $(SERVER_TESTS) $(PYTEST_ARGS)

nightly: setup ## what `make test` leaves out, in parts that resume: PART=matrix, features, simulation, fuzz, mutation, tools or soak
	-@$(PYTHON) scripts/tools
	@$(BIN)/python scripts/nightly $(PART) $(NIGHTLY_ARGS)

nightly-status: setup ## what the committed rows of every nightly part cover
	@$(BIN)/python scripts/nightly status

check: setup ## ruff, mypy, import-linter, unit, contract and simulation tests: under a minute
	@$(MAKE) --no-print-directory --keep-going --jobs=4 --output-sync=target \
		check-tests check-mypy check-ruff check-format check-imports

check-tests: check-host check-core check-other check-front check-links
check-host: # without the list of what Triton's modules leak when Python ends
	$(BIN)/python -m pytest -q $(HOST_TESTS) 2> >(sed '/^nanobind: leaked/,$$d' >&2)
check-links: # processes and sockets that wait for each other
	$(BIN)/python -m pytest -q $(LINK_TESTS)
check-core: # all branches of holdfast.core are covered
	$(BIN)/python -m pytest -q --cov --cov-report=term $(CORE_TESTS)
check-front: # HTTP and commands: real servers without a model
	$(BIN)/python -m pytest -q $(FRONT_TESTS)
check-other:
	$(BIN)/python -m pytest -q $(OTHER_TESTS)
check-ruff:
	$(BIN)/ruff check .
check-format:
	$(BIN)/ruff format --check .
check-mypy:
	$(BIN)/mypy
check-imports:
	$(BIN)/lint-imports --no-logo

format: setup ## put imports and layout in order
	$(BIN)/ruff check --fix --select I .
	$(BIN)/ruff format .

mutate: setup ## mutation tests of the pure core; resumes where it stopped
	$(BIN)/python scripts/mutate $(MUTATE_ARGS)

hops: setup ## count the source files that an exception, and a killed engine core, cross on a real server
	$(BIN)/python scripts/hops --fault exception
	$(BIN)/python scripts/hops --fault kill-engine

release-check: setup ## build the wheel, install it into a clean environment, and try it there
	$(BIN)/python -m pytest -q tests/e2e/test_release.py

gpu-check: ## say what of the code for GPUs is seen on this machine: under 10 minutes, no network; 77 without a GPU
	@$(or $(GPU_PYTHON),$(wildcard $(BIN)/python),$(PYTHON)) scripts/gpu-check $(GPU_CHECK_ARGS)

contract-wheels: setup ## check every hook against the sources of each supported release of the host
	$(BIN)/python scripts/host-sources
	$(BIN)/python -m pytest -q tests/contract/test_touchpoints_wheels.py $(PYTEST_ARGS)

host-report: ## what a release of the host changes for Holdfast, compared with the newest supported: HOST=0.34.0
	@[ "$(origin HOST)" = "command line" ] || { echo "host-report: name a release: make host-report HOST=0.34.0" >&2; exit 1; }
	@$(MAKE) --no-print-directory setup HOST=$(DEFAULT_HOST) >&2
	@.venv/bin/python scripts/host-report $(HOST) $(addprefix --against ,$(AGAINST))

bench: setup ## measure recovery and overhead into docs/benchmarks
	@mkdir -p docs/benchmarks .cache
	for bench in recovery overhead; do \
		arguments=""; [ $$bench = overhead ] || arguments="$(addprefix --topology ,$(BENCH_TOPOLOGIES))"; \
		$(BIN)/holdfast bench $$bench $$arguments --json > .cache/$$bench.json; \
		mv .cache/$$bench.json docs/benchmarks/$$bench.json; done

settings: setup ## write the reference of the settings from the flags, and the schema of incidents
	@$(BIN)/python scripts/settings-reference

metrics: setup ## write the reference of the metrics from their catalog
	@$(BIN)/python scripts/metrics-reference

features: setup ## write the matrix of features and faults into the failure model
	@$(BIN)/python scripts/features-table

figures: setup ## write the page of figures from the documents in docs/benchmarks
	@$(BIN)/python scripts/figures

constraints: setup ## pin what is installed now
	$(BIN)/python -m pip freeze --exclude-editable | grep -vE '^(torch|vllm)|@' > constraints$(addprefix -,$(RELEASE)).txt

clean: ## remove everything that was made, the environment too
	rm -rf .venv .venv-* .cache mutants .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis build dist
	find . -name __pycache__ -prune -exec rm -rf {} +
	rm -rf src/*.egg-info
