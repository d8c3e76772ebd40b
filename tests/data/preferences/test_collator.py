from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import DataCollatorForPreference

from tests.tiny_models import tiny_reward_model, tiny_tokenizer
from trl_rlp.data.preferences.collator import RECORD, SyntheticPreferenceCollator
from trl_rlp.data.preferences.views import ViewSampler


PLAIN = [{"chosen_ids": [1, 2, 3], "rejected_ids": [4, 5]}, {"chosen_ids": [6], "rejected_ids": [7, 8, 9, 1]}]


def build_records(rows=12, candidates=6, **columns):
    """Builds records. Record r has y_w [r + 10] and candidates [20, r], [21, r], ... The first of them is its y_l."""
    return Dataset.from_dict(
        {
            "chosen_ids": [[row + 10] for row in range(rows)],
            "rejected_ids": [[20, row] for row in range(rows)],
            "candidate_ids": [[[20 + index, row] for index in range(candidates)] for row in range(rows)],
            RECORD: list(range(rows)),
            **columns,
        }
    )


def read_rejected(batch):
    """Returns the index of the drawn candidate for each record of a batch."""
    chosen, rejected = batch["input_ids"].chunk(2)
    return {int(w[0]) - 10: int(y[0]) - 20 for w, y in zip(chosen, rejected, strict=True)}


def set_epoch(collator, epoch):
    collator.epoch_callback.on_epoch_begin(None, SimpleNamespace(epoch=epoch), None)


@pytest.mark.parametrize("pad_to_multiple_of", [None, 8])
@pytest.mark.parametrize("margin", [None, [0.5, 2.0]])
def test_records_without_candidates_are_collated_as_by_trl(pad_to_multiple_of, margin):
    examples = [dict(example) for example in PLAIN]
    if margin:
        examples = [{**example, "margin": value} for example, value in zip(examples, margin, strict=True)]
    expected = DataCollatorForPreference(pad_token_id=0, pad_to_multiple_of=pad_to_multiple_of)(examples)
    extra = [{**example, "prompt": "x", "candidate_ids": None} for example in examples]
    for rows in (examples, extra):
        batch = SyntheticPreferenceCollator(pad_token_id=0, pad_to_multiple_of=pad_to_multiple_of)(rows)
        assert set(batch) == set(expected)
        for name in expected:
            assert torch.equal(batch[name], expected[name]) and batch[name].dtype == expected[name].dtype


@pytest.mark.parametrize("has_numbers", [True, False])
def test_the_rejected_completion_is_drawn_again_in_each_epoch(has_numbers):
    rows = build_records() if has_numbers else build_records().remove_columns(RECORD)
    collator = SyntheticPreferenceCollator(pad_token_id=0, seed=3)
    epochs = []
    for epoch in (0, 1.0, 2.5):  # The trainer counts epochs in fractions.
        set_epoch(collator, epoch)
        epochs.append(read_rejected(collator(list(rows))))
        reversed_batch = collator(list(rows)[::-1])
        assert read_rejected(reversed_batch) == epochs[-1]  # A draw does not depend on other records.
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    again = SyntheticPreferenceCollator(pad_token_id=0, seed=3)
    set_epoch(again, 1)
    assert read_rejected(again(list(rows))) == epochs[1]
    assert read_rejected(SyntheticPreferenceCollator(pad_token_id=0, seed=4)(list(rows))) != epochs[0]


def test_draws_are_uniform():
    collator = SyntheticPreferenceCollator(pad_token_id=0)
    counts = torch.zeros(4)
    for epoch in range(100):
        set_epoch(collator, epoch)
        drawn = read_rejected(collator(list(build_records(rows=8, candidates=4))))
        counts += torch.bincount(torch.tensor(list(drawn.values())), minlength=4)
    assert all(150 < count < 250 for count in counts)  # The expected count is 200, with a standard deviation of 12.


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, False), (2, True)])
def test_draws_are_the_same_in_any_number_of_workers(workers, persistent):
    collator = SyntheticPreferenceCollator(pad_token_id=0)
    loader = DataLoader(
        build_records(), batch_size=4, collate_fn=collator, num_workers=workers, persistent_workers=persistent
    )
    reference = SyntheticPreferenceCollator(pad_token_id=0)
    for epoch in range(3):
        set_epoch(collator, epoch)
        set_epoch(reference, epoch)
        drawn = [pair for batch in loader for pair in read_rejected(batch).items()]
        assert dict(drawn) == read_rejected(reference(list(build_records())))


class RecordingCollator(SyntheticPreferenceCollator):
    """Records the epoch and the drawn candidates of each batch that the trainer gets."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.batches = []

    def __call__(self, examples):
        batch = super().__call__(examples)
        self.batches.append((int(self._epoch), read_rejected(batch)))
        return batch


def build_reward_trainer(collator, folder, epochs, save_steps=500, **overrides):
    tokenizer = tiny_tokenizer()
    args = RewardConfig(
        str(folder),
        bf16=False,
        use_cpu=True,
        report_to="none",
        per_device_train_batch_size=4,
        num_train_epochs=epochs,
        remove_unused_columns=False,
        save_steps=save_steps,
        **overrides,
    )
    return RewardTrainer(
        tiny_reward_model(tokenizer),
        args,
        data_collator=collator,
        train_dataset=build_records(),
        processing_class=tokenizer,
        callbacks=[collator.epoch_callback],
    )


def test_an_unmodified_reward_trainer_draws_again_in_each_epoch_and_after_a_resume(tmp_path):
    uninterrupted = RecordingCollator(pad_token_id=0, seed=1)
    build_reward_trainer(uninterrupted, tmp_path, epochs=3, save_steps=2).train()
    assert [epoch for epoch, _ in uninterrupted.batches] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    by_epoch = {epoch: {} for epoch in range(3)}
    for epoch, drawn in uninterrupted.batches:
        by_epoch[epoch] |= drawn
    for epoch, drawn in by_epoch.items():
        reference = SyntheticPreferenceCollator(pad_token_id=0, seed=1)
        set_epoch(reference, epoch)
        assert drawn == read_rejected(reference(list(build_records())))
    # An epoch has three steps. Step 4 is in the middle of the second epoch, and step 6 is at its end.
    for step in (4, 6):
        resumed = RecordingCollator(pad_token_id=0, seed=1)
        trainer = build_reward_trainer(resumed, tmp_path, epochs=3, save_steps=100)
        trainer.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
        assert trainer.state.global_step == 9
        assert resumed.batches[-(9 - step) :] == uninterrupted.batches[step:]


@pytest.mark.parametrize("persistent", [False, True])
def test_data_loader_workers_of_the_trainer_know_the_epoch(persistent, tmp_path):
    losses = []
    for workers in (0, 2):
        collator = SyntheticPreferenceCollator(pad_token_id=0, seed=1)
        trainer = build_reward_trainer(
            collator,
            tmp_path,
            epochs=3,
            logging_steps=1,
            learning_rate=1e-2,
            dataloader_num_workers=workers,
            dataloader_persistent_workers=persistent and workers > 0,
        )
        trainer.train()
        losses.append([log["loss"] for log in trainer.state.log_history if "loss" in log])
    assert len(losses[0]) == 9 and losses[0] == losses[1]


@pytest.fixture(scope="module")
def sampler():
    letters = "abcdefghij"
    samples = Dataset.from_dict(
        {
            "prompt": [f"{row}" for row in range(10)],
            "completions": [[letters[row], letters[row] * 2, letters[row] * 3] for row in range(10)],
            "finished": [[True] * 3] * 10,
        }
    )
    return ViewSampler(samples, tiny_tokenizer())


def test_a_batch_holds_all_first_views_and_then_all_second_views(sampler):
    collator = SyntheticPreferenceCollator(0, views=sampler, view_prompts_per_device=4, records_per_batch=4)
    set_epoch(collator, 2)
    batch = collator(list(build_records())[4:8])
    # Each record owns c = ceil(4 / 4) = 1 slot, so records 4 to 7 take the slots 4 to 7.
    views = sampler.views(2, [4, 5, 6, 7])
    assert batch["view_prompt_indices"].tolist() == [view.prompt_index for view in views]
    assert batch["view_input_ids"].shape == batch["view_attention_mask"].shape
    rows = [
        ids[mask.bool()].tolist()
        for ids, mask in zip(batch["view_input_ids"], batch["view_attention_mask"], strict=True)
    ]
    assert rows == [view.first for view in views] + [view.second for view in views]
    assert batch["input_ids"].shape[0] == 8


def test_a_small_batch_takes_more_slots_per_record_and_a_large_batch_is_limited(sampler):
    def collate_prompt_rows(batch_records, **settings):
        collator = SyntheticPreferenceCollator(0, views=sampler, **settings)
        return collator([build_records(20)[record] for record in batch_records])["view_prompt_indices"].tolist()

    def draw_prompt_rows(*slots):
        return [view.prompt_index for view in sampler.views(0, list(slots))]

    # V = 5 and 2 records per batch: each record owns c = 3 slots. Record 0 takes the slots 0 to 2 and record 1 takes
    # 3 to 5. Five of these six are kept.
    settings = {"view_prompts_per_device": 5, "records_per_batch": 2}
    assert collate_prompt_rows([0, 1], **settings) == draw_prompt_rows(0, 3, 1, 4, 2)
    # The last batch of an epoch has one record, which takes all five slots.
    assert collate_prompt_rows([1], **settings) == draw_prompt_rows(3, 4, 5, 6, 7)
    # V = 2 and 4 records per batch: each record owns one slot. Two of these four are kept.
    assert collate_prompt_rows([3, 4, 5, 6], view_prompts_per_device=2, records_per_batch=4) == draw_prompt_rows(3, 4)


def test_a_prompt_appears_once_per_batch_with_the_views_of_its_first_slot(sampler):
    # Slots 0 to 9 and slots 10 to 19 are two rounds of the ten prompts, so each prompt has two slots.
    collator = SyntheticPreferenceCollator(0, views=sampler, view_prompts_per_device=20, records_per_batch=2)
    batch = collator([build_records()[0], build_records()[1]])
    ids = batch["view_prompt_indices"].tolist()
    assert sorted(ids) == list(range(10))
    order = [slot for pair in zip(range(10), range(10, 20), strict=True) for slot in pair]
    first = {}
    for view in sampler.views(0, order):
        first.setdefault(view.prompt_index, view)
    assert ids == list(first)
    length = int(batch["view_attention_mask"][0].sum())
    assert batch["view_input_ids"][0, :length].tolist() == first[ids[0]].first


def test_records_without_a_number_add_no_views(sampler):
    collator = SyntheticPreferenceCollator(0, views=sampler, records_per_batch=2)
    assert set(collator(PLAIN)) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"seed": -1}, "`seed` must be at least 0, got -1"),
        ({"view_prompts_per_device": 1}, "`view_prompts_per_device` must be at least 2, got 1"),
    ],
)
def test_settings_out_of_range_raise(settings, match):
    with pytest.raises(ValueError, match=match):
        SyntheticPreferenceCollator(0, **settings)


@pytest.mark.parametrize("records_per_batch", [None, 0])
def test_views_need_records_per_batch(records_per_batch, sampler):
    with pytest.raises(ValueError, match="`records_per_batch` must be at least 1 with `views`, got (None|0). Pass"):
        SyntheticPreferenceCollator(0, views=sampler, records_per_batch=records_per_batch)


def test_candidates_without_token_ids_raise():
    record = {
        "chosen_ids": [1, 2],
        "rejected_ids": [3],
        "candidates": ["a", "b"],
        "candidates_finished": [True, True],
    }
    with pytest.raises(ValueError, match="no `candidate_ids` to draw from.* Call `tokenize_preferences`"):
        SyntheticPreferenceCollator(pad_token_id=0)([record])


def test_only_numbered_records_are_drawn_if_the_trainer_says_so():
    collator = SyntheticPreferenceCollator(pad_token_id=0)
    collator.draws_only_numbered = True
    rows = list(build_records())
    drawn = read_rejected(collator(rows))
    assert set(drawn.values()) != {0}
    kept = read_rejected(collator([{name: row[name] for name in row if name != RECORD} for row in rows]))
    assert set(kept.values()) == {0}


def test_the_epoch_follows_the_trainer_and_never_falls_behind_the_number_of_passes():
    """A trainer counts the epochs of a stream too slowly. A resumed run starts in the epoch in which it stopped."""
    collator = SyntheticPreferenceCollator(pad_token_id=0)
    callback = collator.epoch_callback
    assert callback.epoch.item() == -1
    callback.on_train_begin(None, None, None)
    for epoch, expected in ((0, 0), (0.3, 1), (1.3, 2)):
        set_epoch(collator, epoch)
        assert callback.epoch.item() == expected
    callback.on_train_begin(None, None, None)
    set_epoch(collator, 5.5)
    assert callback.epoch.item() == 5
