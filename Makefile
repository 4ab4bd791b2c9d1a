# Each target sets up what it needs on a machine with python3 (3.11 or newer) and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := torch==2.13.0
CPU_WHEELS := https://download.pytorch.org/whl/cpu
GPU := $(shell nvidia-smi -L 2>/dev/null | grep -c GPU)
PIP := $(BIN)/python -m pip install -q

.PHONY: demo test test-avx2 resolve check bench lines setup clean

demo: $(VENV)/.installed
	$(BIN)/layerwise demo

test: $(VENV)/.tests
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Again with the instruction set held down. Compiled code is kept apart: it does not run everywhere.
HELD_DOWN := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 \
  TORCHINDUCTOR_CACHE_DIR=$(abspath $(VENV))/inductor-avx2
test-avx2: $(VENV)/.tests
	@has=$$($(BIN)/python -c 'import torch; print(torch.backends.cpu.get_cpu_capability())') || exit 1; \
	case $$has in \
	  AVX512*) echo "this processor has $$has: once more with AVX2 alone"; $(HELD_DOWN) $(BIN)/python \
	    -m pytest -n 2 --dist worksteal tests/layers tests/adapt tests/models tests/train ;; \
	  *) echo "this processor has $$has: there is nothing to hold down to AVX2" ;; \
	esac

resolve: $(VENV)/.installed  # wheels of the lock for every Python that is promised
	PIP='$(BIN)/python -m pip' .ci/resolve

check: $(VENV)/.tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/python -m pytest -q tests/test_house.py
	$(BIN)/python bench/lines.py

bench: $(VENV)/.tests
	for b in linear loader watch plan diagnosis training inference tables resume tokenising; do \
	  $(BIN)/python bench/$$b.py || exit 1; done

lines:
	@$(PYTHON) bench/lines.py

setup: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "python 3.11 or newer is needed")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
ifeq ($(GPU),0)  # the CPU build where there is one: the default on Linux brings gigabytes of CUDA
	$(PIP) '$(TORCH)+cpu' 2>/dev/null || $(PIP) '$(TORCH)+cpu' --extra-index-url $(CPU_WHEELS) || $(PIP) '$(TORCH)'
endif
	$(PIP) -r requirements.lock
	$(PIP) --no-deps -e .
	touch $@

$(VENV)/.tests: $(VENV)/.installed requirements-test.lock
	$(PIP) -r requirements-test.lock
	$(PIP) --no-deps -r requirements-oracles.lock || \
	  echo "no oracles: the parity tests that need them are skipped"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
