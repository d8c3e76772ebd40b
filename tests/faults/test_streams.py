"""Streams, data-loader workers and passes: what is numbered or drawn must be as with a data set in memory."""

import logging
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import RewardConfig, RewardTrainer

from tests.ppo_runs import ppo_trainer, prompts
from tests.reward_runs import (
    SETTINGS,
    get_logged,
    policy_samples,
    preferences,
    rlp_trainer,
    trl_trainer,
)
from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.preferences.collator import RECORD, SyntheticPreferenceCollator
from trl_rlp.trainer.reward.stream_passes import number_stream


SAMPLES = Dataset.from_dict(
    {
        "prompt": [f"Sea {i}: " for i in range(16)],
        "completions": [list("abcdef")] * 16,
        "finished": [[True] * 6] * 16,
    }
)


def stream(size=16, num_shards=4):
    return preferences(size).to_iterable_dataset(num_shards=num_shards)


@pytest.mark.parametrize(
    ("num_shards", "workers", "persistent"), [(4, 0, False), (4, 2, False), (4, 2, True), (1, 2, False), (2, 3, False)]
)
def test_each_prompt_gives_views_once_per_pass_with_any_number_of_workers(num_shards, workers, persistent, tmp_path):
    """
    A user trains with UML on a stream of 16 pairs, with 16 prompts and two views per step for each pair. In each pass,
    each prompt gives views once, as with a data set. With two workers, half of the prompts gave views, each twice.
    """
    trainer = rlp_trainer(
        tmp_path,
        data=stream(num_shards=num_shards),
        policy_samples=SAMPLES,
        view_prompts_per_device=2,
        dataloader_num_workers=workers,
        dataloader_persistent_workers=persistent,
    )
    loader = trainer.get_train_dataloader()
    for _ in range(2):
        seen = Counter(index for batch in loader for index in batch["view_prompt_indices"].tolist())
        assert seen == dict.fromkeys(range(16), 1)


@pytest.mark.parametrize(("num_shards", "num_processes"), [(4, 2), (1, 2), (3, 3), (2, 3)])
@pytest.mark.parametrize("workers", [0, 2])
def test_processes_share_the_numbers_of_a_pass(workers, num_shards, num_processes):
    """
    A user trains on several processes. accelerate gives each its own shards, or its rows of each batch. No two
    processes draw the views of the same record. Each process numbered its rows from 0.
    """
    rows = Dataset.from_dict({"row": list(range(12))}).to_iterable_dataset(num_shards=num_shards)
    numbers = []
    for process in range(num_processes):
        processes = {"num_processes": num_processes, "process_index": process}
        accelerator = SimpleNamespace(**processes, split_batches=False, parallelism_config=None)
        loader = DataLoader(number_stream(rows, accelerator), batch_size=2, collate_fn=list, num_workers=workers)
        loader = prepare_data_loader(loader, **processes, put_on_device=False)
        numbers += [row[RECORD] for batch in loader for row in batch]
    assert sorted(numbers) == list(range(12))


def record_batches(trainer):
    """Records the pairs and the views of each training step."""
    batches, compute_loss = [], trainer.compute_loss

    def compute(model, inputs, *args, **kwargs):
        views = inputs.get("view_input_ids", torch.empty(0))
        batches.append((inputs["input_ids"].tolist(), views.tolist()))
        return compute_loss(model, inputs, *args, **kwargs)

    trainer.compute_loss = compute
    trainer.train()
    return batches


@pytest.mark.parametrize("workers", [0, 2])
def test_a_later_pass_has_other_views_of_the_same_pairs(workers, tmp_path):
    """A user trains for three passes over a stream. The pairs are TRL's. The views of the second were the first's."""
    loading = {"dataloader_num_workers": workers, "max_steps": 9}
    data = stream(6, num_shards=3)
    batches = record_batches(rlp_trainer(tmp_path, data=data, policy_samples=SAMPLES, **loading))
    assert [pairs for pairs, _ in batches] == [
        pairs for pairs, _ in record_batches(trl_trainer(tmp_path, data=data, **loading))
    ]
    passes = [[views for _, views in batches[start : start + 3]] for start in (0, 3, 6)]
    assert passes[0] != passes[1] != passes[2] != passes[0]


@pytest.mark.parametrize(("step", "accumulation"), [(2, 1), (3, 1), (4, 1), (6, 1), (2, 2), (3, 2)])
def test_a_resumed_run_continues_in_the_pass_in_which_it_stopped(step, accumulation, tmp_path):
    """
    A user resumes on a shuffled stream. The remaining steps see the pairs and the views of the run that did not stop,
    also in a later pass. The trainer took the batches of all passes for those of the first, and began a pass again.
    """
    settings: dict = {
        "policy_samples": SAMPLES,
        "max_steps": 8 // accumulation,
        "save_strategy": "steps",
        "save_steps": step,
    }
    settings |= {"gradient_accumulation_steps": accumulation, "view_prompts_per_device": 3}

    def build():
        return rlp_trainer(tmp_path, data=stream(6, num_shards=3).shuffle(seed=3, buffer_size=4), **settings)

    whole = build()
    expected = record_batches(whole)
    resumed = build()
    resumed.train = lambda train=resumed.train: train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    # Three batches per pass. With an accumulation of 2, a pass has one step, and the third batch counts for the next.
    read = step if accumulation == 1 else 3 * (step - 1) + 2
    assert record_batches(resumed) == expected[read:]
    for name, weights in whole.model.state_dict().items():
        assert torch.equal(weights, resumed.model.state_dict()[name])


def candidate_trainer(collator, folder, data, callbacks, **settings):
    """Builds TRL's own trainer, with our collator."""
    tokenizer = tiny_tokenizer()
    return RewardTrainer(
        tiny_reward_model(tokenizer),
        RewardConfig(str(folder), **{**SETTINGS, "remove_unused_columns": False, **settings}),
        data_collator=collator,
        train_dataset=data,
        processing_class=tokenizer,
        callbacks=callbacks,
    )


@pytest.fixture
def candidates():
    """Pairs with candidates. The rejected side of each is drawn from five token ids."""
    return Dataset.from_dict(
        {
            "chosen_ids": [[row + 10] for row in range(6)],
            "rejected_ids": [[20]] * 6,
            "candidate_ids": [[[20 + i] for i in range(5)]] * 6,
        }
    )


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("as_stream", [False, True])
def test_the_collator_draws_again_in_each_pass_of_an_unmodified_trainer(as_stream, workers, candidates, tmp_path):
    """A user plugs the collator into TRL's trainer. Over a stream, the second pass had the draws of the first."""
    collator = SyntheticPreferenceCollator(pad_token_id=0)
    trainer = candidate_trainer(
        collator,
        tmp_path,
        candidates.to_iterable_dataset(num_shards=3) if as_stream else candidates,
        [collator.epoch_callback],
        max_steps=9,
        dataloader_num_workers=workers,
    )
    drawn = [
        tuple(sorted((w[0], y[0]) for w, y in zip(p[:2], p[2:], strict=True))) for p, _ in record_batches(trainer)
    ]
    passes = [sorted(sum(drawn[start : start + 3], ())) for start in (0, 3, 6)]
    assert all([chosen for chosen, _ in drawn_pass] == list(range(10, 16)) for drawn_pass in passes)
    assert passes[0] != passes[1] != passes[2] != passes[0]


def test_a_trainer_that_removes_the_candidates_is_refused(candidates, tmp_path):
    """TRL removes columns that it does not know by default, so the collator never got candidates, without a word."""
    collator = SyntheticPreferenceCollator(pad_token_id=0)
    with pytest.raises(ValueError, match="`remove_unused_columns` is True.*Set it to False"):
        candidate_trainer(collator, tmp_path, candidates, [collator.epoch_callback], remove_unused_columns=True)


@pytest.fixture
def warnings(tmp_path):
    """Returns a function that reads the collator's warnings, also those of data-loader workers."""
    handler = logging.FileHandler(tmp_path / "warnings.txt")
    logger = logging.getLogger("trl_rlp.data.preferences.collator")
    logger.addHandler(handler)
    yield (tmp_path / "warnings.txt").read_text
    logger.removeHandler(handler)


@pytest.mark.parametrize(("removes", "workers"), [(False, 0), (True, 0), (False, 2)])
def test_a_collator_without_its_callback_warns_once(removes, workers, candidates, tmp_path, warnings):
    """A user forgets the callback, so the epoch never reaches the collator. It said nothing."""
    collator = SyntheticPreferenceCollator(pad_token_id=0)
    trainer = candidate_trainer(
        collator, tmp_path, candidates, [], remove_unused_columns=removes, max_steps=6, dataloader_num_workers=workers
    )
    trainer.train()
    count = warnings().count("No trainer has the `epoch_callback` of this")
    assert 1 <= count <= max(1, workers)  # two workers may look at the same time


def test_a_collator_with_its_callback_does_not_warn(candidates, tmp_path, warnings):
    """The warning is for a mistake only: our trainer and a trainer with the callback are silent."""
    collator = SyntheticPreferenceCollator(pad_token_id=0)
    candidate_trainer(collator, tmp_path, candidates, [collator.epoch_callback], max_steps=1).train()
    trainer = rlp_trainer(tmp_path, eval_dataset=preferences(2), max_steps=1)
    trainer.evaluate()
    trainer.train()
    assert warnings() == ""


def test_a_callback_that_is_passed_twice_counts_each_epoch_once(tmp_path):
    """A user passes the collator of views and its callback to our trainer, which adds the callback itself."""
    built = rlp_trainer(tmp_path, policy_samples=policy_samples())
    collator = built.data_collator
    trainer = rlp_trainer(tmp_path, data_collator=collator, callbacks=[collator.epoch_callback], max_steps=8)
    assert trainer.callback_handler.callbacks.count(collator.epoch_callback) == 1
    trainer.train()
    assert collator.epoch_callback.epoch.item() == 1  # 8 steps of 2 of 8 pairs are two epochs
    assert len(get_logged(trainer, "loss")) == 8


@pytest.mark.parametrize("workers", [0, 2])
def test_ppo_sees_each_prompt_of_a_stream_as_often_as_of_a_dataset(workers, tmp_path):
    """A user trains a policy on a stream with workers. In two passes, each prompt is sampled twice."""
    seen = Counter()

    def score(prompts, completions, **kwargs):
        seen.update(prompts)
        return [1.0] * len(completions)

    data = prompts(8).to_iterable_dataset(num_shards=4)
    trainer = ppo_trainer(
        tmp_path, data, reward_funcs=[score], total_episodes=16, dataloader_num_workers=workers, shuffle_dataset=False
    )
    trainer.train()
    assert seen == {row["prompt"]: 2 for row in prompts(8)}
