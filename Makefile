# Two commands to know: `make run` and `make test`. Everything is installed into .venv, pinned by constraints.txt.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check --constraint constraints.txt
NEEDS := pyproject.toml constraints.txt CMakeLists.txt $(shell find native -type f -not -path 'native/tests/*')
# Warnings of the kernels' compiler are errors here, and not where people install it with a compiler of their own.
EDITABLE := $(INSTALL) --no-build-isolation --config-settings=cmake.define.LISSOME_WERROR=ON --editable
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.PHONY: run test test-all check docs bench clean
.DELETE_ON_ERROR:

run: $(VENV)/installed-run ## the main job on the demo model: SmolLM2-135M, latency=85%
	$(BIN)/lissome fit

test: $(VENV)/installed-test ## everything that needs no other program: style, types, layers, docs, tests
	$(MAKE) --no-print-directory style docs
	$(PYTEST) -n 2

test-all: $(VENV)/installed-peers ## also real models, llama.cpp, a browser, faults and fuzzing
	$(MAKE) --no-print-directory style docs
	$(PYTEST) -n 2 -m "not slow and not peer and not gpu"
	$(PYTEST) -n 2 --dist worksteal -m "(slow or peer) and not alone and not gpu"
	$(PYTEST) -m "alone and not gpu"
	$(MAKE) --no-print-directory flower-ends

.PHONY: flower-ends
flower-ends: $(VENV)/installed-peers ## the oldest and the newest release of Flower that pyproject.toml allows
	for release in 1.40.0 1.42.0; do \
		$(BIN)/python -m pip install -qq --no-deps --upgrade --target $(VENV)/flwr-$$release flwr==$$release && \
		PYTHONPATH=$(CURDIR)/$(VENV)/flwr-$$release $(PYTEST) tests/engine/federate/test_flower.py || exit 1; \
	done

check: $(VENV)/installed-test style ## the quick inner loop: no whole jobs
	$(PYTEST) -n 2 -q -m "not long and not slow and not peer and not gpu and not network"

docs: $(VENV)/installed-test ## the pages, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(VENV)/installed-test ## every claim of the method pages, on real models; results are stored as JSON
	$(BIN)/python -m benchmarks

clean: ## remove the environment and what tools left
	rm -rf $(VENV) build site .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: style
style: $(VENV)/installed-test
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo > $(VENV)/layers.txt || { cat $(VENV)/layers.txt; exit 1; }

# Each stamp is newer than the files that say what to install; a second run installs nothing.
$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-run: $(NEEDS) | $(VENV)/bin/python
	$(INSTALL) cmake nanobind ninja scikit-build-core
	$(EDITABLE) '.[gguf,report,serve]'
	touch $@

$(VENV)/installed-test: $(VENV)/installed-run
	$(EDITABLE) '.[bench,dev,eval,federate,gguf,images,report,serve,tensorboard]'
	touch $@

# llama.cpp is compiled here (some minutes, without its picture part; GCC 12 needs help with AMX); Chromium looks at the
# report page; PostgreSQL and optuna-dashboard open the trials of a search; Ray runs Flower's simulation.
$(VENV)/installed-peers: $(VENV)/installed-test
	which chromium cmake g++ > /dev/null || { apt-get update -qq && apt-get install -qq -y chromium cmake g++; }
	ls /usr/lib/postgresql/*/bin/initdb > /dev/null 2>&1 || { apt-get update -qq && apt-get install -qq -y postgresql; }
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_CXX_FLAGS=-include$(CURDIR)/tools/amx_fences.h" $(INSTALL) llama-cpp-python
	$(INSTALL) openai optuna-dashboard 'psycopg[binary]' 'flwr[simulation]' ray
	touch $@
