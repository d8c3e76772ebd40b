"""Between the stages of a run, no model stays in memory."""

import gc

import pytest
import torch
from datasets import Dataset

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp import RLPConfig, run_rlp
from trl_rlp.storage.run_folder import RunFolder


def count_bytes(device: torch.device) -> int:
    """Counts what is allocated on a GPU. On the CPU, it counts the parameters that are alive."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated()
    return sum(value.nbytes for value in gc.get_objects() if isinstance(value, torch.nn.Parameter))


@pytest.fixture
def workspaces(device) -> None:
    """Makes cuBLAS take its workspaces, one for this thread and one for backward passes. They are never freed."""
    layer = torch.nn.Linear(8, 8, device=device)
    layer(torch.ones(1, 8, device=device)).sum().backward()


def test_no_model_stays_on_the_device_between_stages(tmp_path, device, workspaces, record_property):
    tokenizer = tiny_tokenizer()
    policy = tiny_causal_lm(tokenizer, hidden_size=128)
    size = sum(parameter.nbytes for parameter in policy.parameters())
    sft_model = save(policy, tokenizer, tmp_path / "sft")
    del policy
    gc.collect()
    before, measured = count_bytes(device), {}

    def measure(run: RunFolder, name: str, arguments: dict) -> None:
        measured[name] = count_bytes(device) - before

    training = {"per_device_train_batch_size": 4, "max_steps": 1, "report_to": "none", "use_cpu": device.type == "cpu"}
    config = RLPConfig(
        output_dir=str(tmp_path / "run"),
        sft_model=sft_model,
        method="uml",
        num_generations=4,
        max_new_tokens=4,
        heldout_share=0.25,
        reward_args={**training, "view_prompts_per_device": 2},
        policy_args={**training, "response_length": 4, "num_sample_generations": 0},
    )
    pairs = Dataset.from_list([{"prompt": f"{row}?", "chosen": "yes", "rejected": "no"} for row in range(12)])
    with RunFolder.on_start(measure):
        run_rlp(config, pairs, pairs.select_columns("prompt"))
    record_property("bytes", str(measured))
    assert len(measured) == 6
    assert max(measured.values()) < size / 4, measured  # in bf16, a model has half of the size
