"""Run by `torchrun --nproc_per_node 2`: refines on two processes and checks that they stay equal."""

import sys
from pathlib import Path

import pytest
import torch
from accelerate.utils import gather_object

from tests.reward_runs import SameText, get_logged, policy_samples, preferences, rlp_trainer
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups.label_cache import LabelCache
from trl_rlp.data.judges.answer_cache import AnswerCache
from trl_rlp.data.preferences.collator import SyntheticPreferenceCollator
from trl_rlp.data.preferences.views import ViewSampler
from trl_rlp.storage.processes import leave_process_group, process_state, run_on_main, share_work


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


def record_noise(heads: torch.nn.Module) -> list[torch.Tensor]:
    """Returns a list of the noise of each batch: the latents of the first views in units of the head's Gaussian."""
    gaussians, noise = [], []
    heads.head.register_forward_hook(lambda module, inputs, outputs: gaussians.append(outputs))

    def store(module, inputs):
        mean, deviation = (values.chunk(2)[0] for values in gaussians[-1])
        noise.append(((inputs[0] - mean) / deviation).detach())

    heads.critic.register_forward_pre_hook(store)
    return noise


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
    noise = record_noise(heads)
    trainer.train()
    first, second = gather_object([noise[0].flatten()[:8].tolist()])
    assert all(abs(one - other) > 1e-4 for one, other in zip(first, second, strict=True))
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


def share(folder: Path) -> None:
    """Results come in the order of the items, and an error of one process reaches the other."""
    index = process_state().process_index
    assert share_work([5, 3, 4], lambda own: [(item, index) for item in own]) == [(5, 0), (3, 1), (4, 0)]
    assert share_work([1], lambda own: [item * 2 for item in own]) == [2]
    assert run_on_main(lambda: index) == 0

    def fail(items):
        if index == 1:
            raise Unpicklable("no", "preference")
        return items

    with pytest.raises((Unpicklable, RuntimeError), match="no preference"):
        share_work([1, 2], fail)
    with pytest.raises(RuntimeError, match=r"The processes share \[2, 3\] items. Call the function with"):
        share_work(range(2 + index), list)
    for cache_class, store in ((LabelCache, store_label), (AnswerCache, store_answer)):
        path = folder / cache_class.__name__
        store(cache_class(path), index)
        run_on_main(lambda: None)  # both have stored
        found = cache_class(path)
        if cache_class is LabelCache:
            assert found.find([b"0", b"1", b"2"]) == {b"0": 0, b"1": 1}
        else:
            assert [found.find(key) for key in range(3)] == [{"text": "0"}, {"text": "1"}, None]
        assert path.is_file() and path.with_name(f"{path.name}.1").is_file()


class Unpicklable(Exception):
    """It cannot be loaded from a pickle, because it has two arguments and one message."""

    def __init__(self, first, second):
        super().__init__(f"{first} {second}")


def store_label(cache: LabelCache, index: int) -> None:
    cache.store({str(index).encode(): index})


def store_answer(cache: AnswerCache, index: int) -> None:
    cache.store(index, answer={"text": str(index)})


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    refine(folder / "joint", joint_forward=True)
    refine(folder / "separate", joint_forward=False)
    synthesize(folder / "synthesis")
    share(folder)
    sys.stdout.write("both processes agree\n")
    leave_process_group()
