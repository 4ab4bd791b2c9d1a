# Each target sets up what it needs on a machine with python3 (3.10 or newer) and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HAS_GPU := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -c GPU)
LOCK := $(if $(filter-out 0,$(HAS_GPU)),requirements-cuda.lock,requirements.lock)

.PHONY: demo test check bench lines setup clean

demo: $(VENV)/.installed
	$(BIN)/layerwise demo

test: $(VENV)/.tests
	$(BIN)/python -m pytest

check: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest tests/test_house.py
	$(BIN)/python bench/lines.py

bench: $(VENV)/.tests
	for b in linear loader watch plan diagnosis training inference tables; do \
	  $(BIN)/python bench/$$b.py || exit 1; done

lines:
	@$(PYTHON) bench/lines.py

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "python 3.10 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q -r $(LOCK)
	$(BIN)/python -m pip install -q --no-deps -e .
	touch $@

$(VENV)/.tests: $(VENV)/.installed requirements-test.lock
	$(BIN)/python -m pip install -q -r requirements-test.lock
	$(BIN)/python -m pip install -q --no-deps -r requirements-oracles.lock || \
	  echo "no oracles: the parity tests that need them are skipped"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
