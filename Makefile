# Every target is one readable line or two. `make run ONLY=02` runs a chapter.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ONLY ?=
SCALE ?= laptop
SEED ?= 0
EXTRAS ?= dev,operations,compression,retrieval,evaluation,finetuning,deploy

# On Linux the package index serves PyTorch with CUDA (gigabytes). A machine without an
# NVIDIA GPU takes the CPU build, unless pip was already told where to find one.
ifeq ($(shell uname -s)$(shell command -v nvidia-smi)$(PIP_FIND_LINKS),Linux)
TORCH_INDEX ?= --extra-index-url https://download.pytorch.org/whl/cpu
endif

.PHONY: setup run test lab site refresh models benchmark clean

setup: $(VENV)/.installed-$(EXTRAS)

$(VENV)/.installed-$(EXTRAS): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch $(TORCH_INDEX)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --editable '.[$(EXTRAS)]'
	touch $@

run: setup
	$(BIN)/python -m utils.runner run --only '$(ONLY)' --scale '$(SCALE)' --seed '$(SEED)'

# Executes the notebooks and writes the results back into the repository.
refresh: setup
	$(BIN)/python -m utils.runner refresh --only '$(ONLY)'

test: setup
	$(BIN)/ruff check . && $(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest

# Trains data/models again, in two to three hours on two cores; goes on after a stop.
models: setup
	$(BIN)/python -m projects.llama3_qlora.shipped.models $(SCALE)

# Our Llama beside transformers, LitGPT and llama.cpp, on this machine.
OTHERS := build/benchmark/others
benchmark: setup
	$(BIN)/pip install --quiet --no-deps --upgrade --target $(OTHERS) -r projects/llama3_qlora/benchmark/requirements.txt
	PYTHONPATH=$(OTHERS) $(BIN)/python -m projects.llama3_qlora.benchmark

lab: setup
	$(BIN)/jupyter lab notebooks/00_start_here.ipynb

site: setup
	$(BIN)/python -m utils.runner site

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
