# Everything sets itself up: the first `make` of anything creates .venv and installs what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --constraint constraints.txt

.PHONY: help serve test test-up test-page test-cluster test-all check image-check bench constraints configuration screenshots swagger-ui clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s%s\n", $$1, $$2 }' Makefile

serve: $(VENV)/.runtime  ## start the service on http://localhost:4000 (or BACKEND_PORT)
	$(BIN)/aura up

# Two processes share the test folders, each file in one of them, in the order that tests/conftest.py
# gives: long files first. Tests with Ray come after them.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder
CORE  := tests/core $(PARALLEL) --cov --cov-report=term:skip-covered
ROOMS := tests --ignore=tests/core --ignore=tests/page --ignore=tests/e2e $(PARALLEL)

test: $(VENV)/.dev  ## core with full branch coverage, then the other rooms, then Ray over HTTP and the page
	$(BIN)/python -m pytest $(CORE) -q
	$(BIN)/python -m pytest $(ROOMS) -q -m "not long"
	+$(MAKE) --no-print-directory -j2 --output-sync test-cluster test-up test-page

# What `aura up` does, and then the page in a browser, needs no cluster, so these run beside the
# tests that share one.
test-up: $(VENV)/.dev
	$(BIN)/python -m pytest tests/e2e/test_up.py -q -m "not long"

test-page: $(VENV)/.dev
	$(BIN)/python -m pytest tests/page -q -m "not long"

test-cluster: $(VENV)/.dev
	$(BIN)/python -m pytest tests/e2e --ignore=tests/e2e/test_up.py -q -m "not long"

test-all: $(VENV)/.dev  ## the same with the long tests
	$(BIN)/python -m pytest $(CORE) -q
	$(BIN)/python -m pytest $(ROOMS) -q
	$(BIN)/python -m pytest tests/page -q
	$(BIN)/python -m pytest tests/e2e -q

check: $(VENV)/.dev  ## style and types
	$(BIN)/ruff format --check serve_app tests scripts
	$(BIN)/ruff check serve_app tests scripts
	$(BIN)/mypy
	$(BIN)/hadolint Dockerfile

image-check: $(VENV)/.dev  ## build the image without Docker and try it; needs root, buildah, debootstrap
	$(BIN)/python scripts/check_image.py

bench: $(VENV)/.bench  ## measure the engine, the service, overhead, predictions, PNG, the demo, routing and scaling
	$(BIN)/aura bench engine
	$(BIN)/aura bench cost
	$(BIN)/aura bench serve
	$(BIN)/aura bench overhead
	$(BIN)/aura bench png
	$(BIN)/aura bench demo
	$(BIN)/aura bench step-options
	$(BIN)/aura bench previews
	$(BIN)/aura bench refiner
	$(BIN)/aura bench routing
	$(BIN)/aura bench scaling

# One version of every dependency for Python 3.11 and later on every platform. PyTorch, what it
# brings along and what is built against it are left out: a GPU machine keeps its own build.
BUILT_FOR_A_DEVICE := (torch|torchvision|triton|xformers|nvidia-[a-z0-9-]+|cuda-[a-z-]+)==

constraints:  ## remake constraints.txt from pyproject.toml; needs uv
	@uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade \
	  --no-header --no-annotate pyproject.toml > $(VENV)-constraints
	@{ echo "# Made by 'make constraints'. PyTorch is bounded by range alone: a GPU machine keeps its own build."; \
	  echo "torch>=2.13,<2.14"; \
	  grep -Ev '^$(BUILT_FOR_A_DEVICE)' $(VENV)-constraints; } > constraints.txt
	@rm $(VENV)-constraints

configuration: $(VENV)/.runtime  ## remake the table of settings in docs/configuration.md
	$(BIN)/python -m serve_app.config.settings_reference docs/configuration.md

screenshots: $(VENV)/.dev  ## remake docs/screenshots from the page and the demo; needs chromium
	$(BIN)/python -m tests.page.screenshots

swagger-ui: $(VENV)/.runtime  ## fetch the files of /docs again, or VERSION of them; needs npm
	$(BIN)/python -m scripts.vendor_swagger_ui $(VERSION)

clean:  ## remove .venv and all caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .coverage

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[plots]'
	touch $@

$(VENV)/.bench: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[plots,bench]'
	touch $@ $(VENV)/.runtime

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.runtime $(VENV)/.bench
