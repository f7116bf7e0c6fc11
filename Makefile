# From a bare Python (3.11 preferred) and pip: each target sets up what it needs in .venv.
PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
IMAGE ?= examples/mountain_path.jpg
CHECKPOINT ?= svd.safetensors
CONFIG ?=
MODELS ?= checkpoints
SIDE_BY_SIDE := -n logical --maxprocesses=4 --dist=worksteal
CONSTRAINTS := $(wildcard constraints.txt)
# In the environment a file's name is its own, whatever the shell and make do with its characters.
override IMAGE := $(value IMAGE)
override CHECKPOINT := $(value CHECKPOINT)
override CONFIG := $(value CONFIG)
override MODELS := $(value MODELS)
export IMAGE CHECKPOINT CONFIG MODELS

.PHONY: setup setup-dev demo video page test test-slow ascend-dry-run lint bench clean

setup: $(VENV)/.run-time
setup-dev: $(VENV)/.development

demo: setup
	@echo "Animating $$IMAGE with svd_tiny, about a minute; the video:"
	@start=$$(date +%s); $(BIN)/python image_to_video.py --image="$$IMAGE" && echo "It took $$(($$(date +%s) - start)) \
	seconds. A picture of yours: make demo IMAGE=photo.jpg; Stable Video Diffusion's own weights: see README.md."

video: setup
	$(BIN)/python image_to_video.py $${CONFIG:+"--SVD.config=$$CONFIG"} --SVD.checkpoint="$$CHECKPOINT" --image="$$IMAGE"

page: $(VENV)/.page
	$(BIN)/python svd_tools/page.py --models="$$MODELS"

test: lint
	$(BIN)/python -m pytest -q $(SIDE_BY_SIDE)

test-slow: lint
	$(BIN)/python -m pytest -q --slow

ascend-dry-run: setup-dev
	$(BIN)/python -m pytest -q --slow tests/svd_tools/test_ascend_dry_run.py

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
$(VENV)/.run-time: requirements.txt $(CONSTRAINTS) | $(BIN)/python
	@echo "Installing what requirements.txt names into $(VENV), about 1 GB; pip says what it does:"
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check $(CONSTRAINTS:%=-c %) -r requirements.txt
	touch $@

$(VENV)/.page: requirements.txt requirements-page.txt $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --no-compile --disable-pip-version-check $(CONSTRAINTS:%=-c %) -r requirements-page.txt
	touch $@ $(VENV)/.run-time

$(VENV)/.development: requirements.txt requirements-page.txt requirements-dev.txt $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --no-compile $(CONSTRAINTS:%=-c %) -r requirements-dev.txt
	touch $@ $(VENV)/.run-time $(VENV)/.page

$(BIN)/python:
	@echo "Making a virtual environment in $(VENV) with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)
