"""Run by `torchrun --nproc_per_node 2`: refines on two processes and checks that they stay equal."""

import sys
from pathlib import Path

import torch
from accelerate.utils import gather_object

from tests.reward_runs import SameText, get_logged, policy_samples, preferences, rlp_trainer
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.preferences.collator import SyntheticPreferenceCollator
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.storage.processes import leave_process_group
from trl_rlp.trainer.reward.refinement_data import broadcast_from_main


class UnevenCollator(SyntheticPreferenceCollator):
    """Process 1 gets views of a single prompt in every other batch. Process 0 never does."""

    rank, batches = 0, 0

    def __call__(self, examples):
        batch = super().__call__(examples)
        self.batches += 1
        if self.rank == 1 and self.batches % 2:
            batch["view_prompt_indices"] = torch.zeros_like(batch["view_prompt_indices"])
        return batch


def assert_equal_on_both(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    weights = {name: weight.detach() for name, weight in module.named_parameters()}
    assert not any(torch.equal(weight, before[name]) for name, weight in weights.items())
    first, second = gather_object([weights])
    assert all(torch.equal(first[name], second[name]) for name in first)


def copy_weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.detach().clone() for name, weight in module.named_parameters()}


def refine(folder: Path, joint_forward: bool) -> None:
    tokenizer = tiny_tokenizer()
    collator = UnevenCollator(
        tokenizer.pad_token_id, views=ViewSampler(policy_samples(), tokenizer), records_per_batch=2
    )
    settings = {"gradient_accumulation_steps": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    trainer = rlp_trainer(
        folder, data_collator=collator, joint_forward=joint_forward, data=preferences(32), **settings
    )
    assert trainer.accelerator.num_processes == 2
    UnevenCollator.rank, UnevenCollator.batches = trainer.accelerator.process_index, 0
    heads = trainer.representation_term.heads_callback.heads
    model_before, heads_before = copy_weights(trainer.model), copy_weights(heads)
    trainer.train()
    assert_equal_on_both(trainer.model, model_before)
    assert_equal_on_both(heads, heads_before)
    # The two processes have four micro-batches per step. Process 1 skips one of its two.
    assert get_logged(trainer, "skipped_view_batches") == [1.0] * 4
    mi = get_logged(trainer, "mi")
    assert gather_object([mi]) == [mi, mi]
    resumed = rlp_trainer(
        folder, data_collator=collator, joint_forward=joint_forward, data=preferences(32), **settings
    )
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-2"))
    for key in ("loss", "mi", "grad_norm"):
        assert get_logged(resumed, key) == get_logged(trainer, key), key


def synthesize(folder: Path) -> None:
    trainer = rlp_trainer(
        folder,
        method="uml+spg",
        policy_samples=policy_samples(),
        equivalence=SameText(),
        labeling_reward_model=tiny_reward_model(tiny_tokenizer(), seed=5),
        labeling_processing_class=tiny_tokenizer(),
    )
    rejected_ids = list(trainer.train_dataset["rejected_ids"])
    assert gather_object([rejected_ids]) == [rejected_ids, rejected_ids]
    trainer.train()

    def fail():
        raise ValueError("no preference")

    try:
        broadcast_from_main(fail, trainer.accelerator)
    except ValueError as error:
        assert str(error) == "no preference"
    else:
        raise AssertionError("the error of process 0 did not reach this process")


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    refine(folder / "joint", joint_forward=True)
    refine(folder / "separate", joint_forward=False)
    synthesize(folder / "synthesis")
    sys.stdout.write("both processes agree\n")
    leave_process_group()
