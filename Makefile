# `make` prints this list. Every variable can be set on the command line: make serve PORT=9000
PYTHON ?= python3
VENV ?= .venv
# Not taken from the environment: some shells export HOST as the machine's name.
HOST = 127.0.0.1
PORT = 8000
# An extra package index for torch, for machines whose default index would bring CUDA along (or the wrong one):
#   make serve TORCH_INDEX=https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Extras of pyproject.toml; dev,deploy has the checks of the Helm chart too.
EXTRAS ?= dev
IMAGE ?= offramp
# The tool that builds the image: docker, podman or buildah.
BUILDER ?= $(firstword $(foreach tool,docker podman buildah,$(if $(shell command -v $(tool)),$(tool))))
BUILD_ARGS ?=
# How the tests are run: pytest's options, and their workers.
PYTEST_ARGS ?=
WORKERS ?= auto

# Without compiled files, every process compiles torch anew: some 6 seconds.
unexport PYTHONDONTWRITEBYTECODE

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help venv serve tree test check format docs wheels image clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP) ## Create the virtual environment with pinned versions (VENV, PYTHON, TORCH_INDEX, EXTRAS)

# torch goes first and by its pinned version alone: pip then takes a CPU build where the machine has one at hand,
# and every later install finds the requirement met. Python compiles what is imported, a small part of all.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile $(INDEX) -c constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --quiet --no-compile $(INDEX) -c constraints.txt -e '.[$(EXTRAS)]'
	$(BIN)/pip check
	@touch $@

serve: $(STAMP) ## Serve the embedded model (HOST, PORT)
	@exec $(BIN)/offramp serve --host $(HOST) --port $(PORT)

# The packages of this checkout under the names by which they are imported, as links. mypy needs them, and so does a
# second checkout beside the one that is installed (PYTHONPATH=build/tree).
tree:
	@mkdir -p build/tree/offramp
	@ln -sfn $(addprefix ../../../,$(wildcard offramp/*.py) models server training) build/tree/offramp/
	@ln -sfn ../../benchmarks ../../tests build/tree/

test: $(STAMP) tree ## Run the tests, on every core (WORKERS, PYTEST_ARGS)
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

check: $(STAMP) tree ## Check format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd build/tree && $(abspath $(BIN))/mypy --config-file ../../pyproject.toml

format: $(STAMP) ## Format the code and repair what lint can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(STAMP) ## Rebuild the command line reference and the tables of docs/performance.md
	COLUMNS=100 TERMINAL_WIDTH=100 $(BIN)/python -m typer offramp.cli utils docs --name offramp > docs/cli.md.new
	mv docs/cli.md.new docs/cli.md
	$(BIN)/python -m benchmarks.tables

wheels: ## Collect the pinned runtime wheels in wheels/, for image builds without a network (PYTHON: the image's version)
	$(PYTHON) -m pip wheel --quiet $(INDEX) -c constraints.txt --wheel-dir wheels "$$(grep '^torch==' constraints.txt)"
	$(PYTHON) -m pip wheel --quiet $(INDEX) -c constraints.txt --wheel-dir wheels --find-links wheels . setuptools
	rm -f wheels/offramp-*.whl

image: ## Build the container image (IMAGE, BUILDER, BUILD_ARGS)
	@test -n "$(BUILDER)" || { echo "no docker, podman or buildah found: install one, or set BUILDER"; exit 1; }
	$(BUILDER) build $(BUILD_ARGS) --tag $(IMAGE) .

clean: ## Remove the virtual environment, caches and build outputs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
