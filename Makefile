# Everything sets itself up: the first `make` of anything creates .venv and installs what it needs.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: serve test test-all check bench clean

serve: $(VENV)/.runtime  ## start the service on http://localhost:4000 (or BACKEND_PORT)
	$(BIN)/aura up

# Two processes share the rooms, each file in one of them. Not Ray, whose tests take time and want
# the machine to themselves; and not what bears one name for many tests, of which they would run one.
ALONE := tests/ingress/test_fuzz.py tests/e2e
ROOMS := tests --ignore=tests/core $(ALONE:%=--ignore=%) -n 2 --dist loadfile

test: $(VENV)/.dev  ## core with full branch coverage, then the other rooms, then Ray over HTTP
	$(BIN)/python -m pytest tests/core --cov --cov-report=term:skip-covered -q
	$(BIN)/python -m pytest $(ROOMS) -q -m "not long"
	$(BIN)/python -m pytest $(ALONE) -q -m "not long"

test-all: $(VENV)/.dev  ## the long forms too
	$(BIN)/python -m pytest tests/core --cov --cov-report=term:skip-covered -q
	$(BIN)/python -m pytest $(ROOMS) -q
	$(BIN)/python -m pytest $(ALONE) -q

check: $(VENV)/.dev  ## style and types
	$(BIN)/ruff format --check serve_app tests
	$(BIN)/ruff check serve_app tests
	$(BIN)/mypy

bench: $(VENV)/.runtime  ## the engine, its predictions, a request outside it, the PNG encoders
	$(BIN)/aura bench engine
	$(BIN)/aura bench cost
	$(BIN)/aura bench http
	$(BIN)/aura bench png
	$(BIN)/aura bench demo
	$(BIN)/aura bench refiner
	$(BIN)/aura bench routing
	$(BIN)/aura bench scaling

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .coverage

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.runtime: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.runtime
