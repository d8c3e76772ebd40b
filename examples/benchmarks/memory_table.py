"""
Prints the tables of docs/memory.md: the memory of each stage with models of 1B, 3B and 8B parameters, by formula.

Example:

```bash
python examples/benchmarks/memory_table.py
```
"""

from transformers import LlamaConfig

from trl_rlp.memory_estimate import RunShape, StageMemory, estimate_memory, format_gib
from trl_rlp.pipeline_config import RLPConfig


SIZES = {
    "1B": {"hidden_size": 2048, "num_hidden_layers": 16, "intermediate_size": 8192, "head_dim": 64},
    "3B": {"hidden_size": 3072, "num_hidden_layers": 28, "intermediate_size": 8192, "num_attention_heads": 24},
    "8B": {"hidden_size": 4096, "num_hidden_layers": 32, "intermediate_size": 14336, "tie_word_embeddings": False},
}
"""Sizes of Llama 3.2 1B and 3B and of Llama 3.1 8B."""

SHARED = {"vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": True}

NLI = LlamaConfig(vocab_size=50265, hidden_size=1024, intermediate_size=2730, num_attention_heads=16)
"""A body of 0.4 billion parameters, like DeBERTa-large."""

ARGS = {"bf16": True, "use_cpu": True, "gradient_checkpointing": True}
"""`use_cpu` only allows `bf16` on a machine without an accelerator. The estimate is for an accelerator."""

ADAPTER = {"r": 16, "target_modules": "all-linear"}
LORA = {"model_args": {"dtype": "bfloat16"}, "reward_peft": ADAPTER, "policy_peft": ADAPTER}
PROMPT_LENGTH = 212


def estimate_column(name: str, settings: dict, **shape: object) -> dict[str, StageMemory]:
    """Returns the memory of every stage for a model."""
    model = LlamaConfig(**{**SHARED, **SIZES[name]}, pad_token_id=0)
    config = RLPConfig(
        output_dir="unused", sft_model="unused", method="uml+spg", reward_args=ARGS, policy_args=ARGS, **settings
    )
    return estimate_memory(config, RunShape(model, model, PROMPT_LENGTH, NLI, has_evaluation=True, **shape))


def estimate_columns() -> dict[str, dict[str, StageMemory]]:
    """Returns the memory of every stage, for every column of the tables."""
    columns = {}
    for name in SIZES:
        columns[f"{name}, LoRA"] = estimate_column(name, LORA)
        columns[f"{name}, full"] = estimate_column(name, {})
    columns["8B, full, 8 devices"] = estimate_column("8B", {}, num_processes=8, is_sharded=True)
    return columns


def format_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def build_tables() -> str:
    """Returns the peak of every stage, and the kinds of memory of the policy stage, as Markdown."""
    columns = estimate_columns()
    stages = next(iter(columns.values()))
    peaks = [[f"`{stage}`", *(format_gib(column[stage])["peak"] for column in columns.values())] for stage in stages]
    policies = {name: format_gib(column["policy"]) for name, column in columns.items()}
    kinds = [[kind, *(policy[kind] for policy in policies.values())] for kind in next(iter(policies.values()))]
    rule = ["---"] * (len(columns) + 1)
    tables = [["stage", *columns], rule, *peaks], [["in `policy`", *columns], rule, *kinds]
    return "\n\n".join("\n".join(format_row(row) for row in table) for table in tables)


if __name__ == "__main__":
    print(build_tables())
