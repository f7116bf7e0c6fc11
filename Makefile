# From a bare Python (3.11 preferred) and pip: each target sets up what it needs in .venv.
PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
IMAGE ?= examples/mountain_path.jpg
CHECKPOINT ?= svd.safetensors
CONFIG ?=

.PHONY: setup setup-dev demo video test test-slow lint bench clean

setup: $(VENV)/.run-time
setup-dev: $(VENV)/.development

demo: setup
	$(BIN)/python image_to_video.py --image=$(IMAGE)

video: setup
	$(BIN)/python image_to_video.py $(if $(CONFIG),"--SVD.config=$(CONFIG)") --SVD.checkpoint=$(CHECKPOINT) --image=$(IMAGE)

test: lint
	$(BIN)/python -m pytest -q

test-slow: lint
	$(BIN)/python -m pytest -q --slow

lint: setup-dev
	$(BIN)/ruff check

bench: setup-dev
	$(BIN)/python benchmarks/unet_step.py --contenders pynative diffusers
	$(BIN)/python benchmarks/stages.py --stage=decode
	$(BIN)/python benchmarks/stages.py --stage=encode
	$(BIN)/python benchmarks/sampling_run.py
	$(BIN)/python benchmarks/train_step.py --contenders graph diffusers

clean:
	rm -rf rank_0 kernel_meta .pytest_cache .ruff_cache
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# The stamps are older than the requirements files after these change; pip then does what is missing. Python compiles what
# it imports when it does (--no-compile): a third of the time less.
$(VENV)/.run-time: requirements.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile -r requirements.txt
	touch $@

$(VENV)/.development: requirements.txt requirements-dev.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile -r requirements-dev.txt
	touch $@ $(VENV)/.run-time

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
