import pytest
import torch
from accelerate import Accelerator
from datasets import Dataset
from tokenizers.processors import TemplateProcessing

from tests.reward_runs import SETTINGS, SameText, policy_samples, synthetic_preferences
from tests.tiny_models import save, tiny_reward_model, tiny_tokenizer
from trl_rlp.data.groups.clustering import cluster
from trl_rlp.data.preferences.collator import RECORD
from trl_rlp.data.preferences.pairing import NoPairsError
from trl_rlp.data.preferences.preferences import synthesize_preferences
from trl_rlp.data.scoring import scoring_ids
from trl_rlp.trainer.reward.refinement_data import (
    _keep_on,
    add_groups,
    add_record_numbers,
    add_synthetic_pairs,
    build_collator,
    drop_repeated_tokens,
    select_columns,
    synthesize_pairs,
)
from trl_rlp.trainer.reward.rlp_reward_config import RLPRewardConfig


CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("completions", "finished", "message"),
    [
        (["a", "b", "c", "d"], True, r"\{'below_threshold': 1\}. Lower `confidence_threshold`, or check"),
        (
            ["a", "a", "a", "d"],
            False,
            "or pass `allow_unfinished_chosen=True` to `synthesize_preferences` and train on",
        ),
    ],
)
def test_no_pairs_are_explained_with_the_fields_of_the_configuration(tmp_path, completions, finished, message):
    data = {"prompt": ["?"], "completions": [completions], "finished": [[finished] * 4]}
    config = build_config(tmp_path, chosen="random")
    with pytest.raises(NoPairsError, match=message):
        synthesize_pairs(Dataset.from_dict(data), SameText(), None, None, config, CPU)


def build_config(folder, **settings):
    return RLPRewardConfig(str(folder), **{"method": "spg", **SETTINGS, **settings})


# Groups and synthetic pairs


def test_groups_are_complete_and_existing_ones_are_kept(tmp_path):
    """Four completions with four meanings cannot reach the threshold, so incomplete grouping would stop early."""
    rows = {"prompt": ["1?"], "completions": [["red", "blue", "pink", "gray"]], "finished": [[True] * 4]}
    samples, config = Dataset.from_dict(rows), build_config(tmp_path, confidence_threshold=0.75)
    groups = add_groups(samples, SameText(), config)
    expected = cluster(samples, SameText(), threshold=0.75, complete_groups=True)
    assert groups.to_list() == expected.to_list() != cluster(samples, SameText(), threshold=0.75).to_list()
    assert add_groups(expected, None, config) is expected


@pytest.mark.parametrize("settings", [{}, {"redraw_rejected": True, "confidence_threshold": 0.3, "max_length": 3}])
def test_pairs_equal_those_of_synthesize_preferences(tmp_path, settings):
    """The labeler's tokenizer is loaded from its folder."""
    tokenizer = tiny_tokenizer()
    folder = save(tiny_reward_model(tokenizer, seed=3), tokenizer, tmp_path / "reward")
    model = type(tiny_reward_model(tokenizer)).from_pretrained(folder)
    config = build_config(tmp_path, seed=5, **settings)
    pairs = synthesize_pairs(policy_samples(), SameText(), model, None, config, CPU)
    expected, _ = synthesize_preferences(
        policy_samples(),
        "spg",
        equivalence=SameText(),
        reward_model=model,
        reward_processing_class=tokenizer,
        threshold=config.confidence_threshold,
        chosen=config.chosen,
        keep_candidates=config.redraw_rejected,
        max_length=config.max_length,
        seed=5,
    )
    assert pairs.to_list() == expected.to_list() and len(pairs) == 6


def test_random_pairs_need_no_reward_model(tmp_path):
    config = build_config(tmp_path, chosen="random")
    assert len(synthesize_pairs(policy_samples(), SameText(), None, None, config, CPU)) == 6


def test_groups_and_pairs_are_made_once_for_the_same_data(tmp_path):
    """Each kind of data has a folder of its own, so other data in the same `output_dir` are no error."""
    asked = []

    class CountingText(SameText):
        def are_equivalent(self, prompts, firsts, seconds):
            asked.append(len(prompts))
            return super().are_equivalent(prompts, firsts, seconds)

    config = build_config(tmp_path, chosen="random")
    groups = add_groups(policy_samples(), CountingText(), config)
    pairs = synthesize_pairs(policy_samples(), CountingText(), None, None, config, CPU)
    first = len(asked)
    assert first > 0
    assert add_groups(policy_samples(), CountingText(), config).to_list() == groups.to_list()
    assert synthesize_pairs(policy_samples(), CountingText(), None, None, config, CPU).to_list() == pairs.to_list()
    assert len(asked) == first
    add_groups(policy_samples(4), CountingText(), config)
    synthesize_pairs(
        policy_samples(), CountingText(), None, None, build_config(tmp_path, chosen="random", seed=9), CPU
    )
    assert len(asked) > first
    assert len(list((tmp_path / "_refinement").iterdir())) == 4


def test_the_labeling_model_is_on_the_device_only_while_it_labels(tmp_path):
    model = tiny_reward_model(tiny_tokenizer())
    moves, move = [], model.to
    model.to = lambda device: moves.append(device) or (move(device) if device == CPU else model)
    with _keep_on(torch.device("cuda", 1), model):
        assert moves == [torch.device("cuda", 1)]
    with _keep_on(CPU, model):
        pass
    assert moves == [torch.device("cuda", 1), CPU]

    class Spread(torch.nn.Module):
        hf_device_map = {"": 0}

    with _keep_on(CPU, Spread()), _keep_on(CPU, None):
        pass


# The training set

HUMAN = Dataset.from_dict({"chosen_ids": [[9, 1]] * 8, "rejected_ids": [[8, 1]] * 8, "prompt": ["a"] * 8})


def test_human_pairs_are_followed_by_tokenized_synthetic_pairs(tmp_path):
    tokenizer = tiny_tokenizer()
    mixture = add_synthetic_pairs(HUMAN, synthetic_preferences(), tokenizer, build_config(tmp_path, max_length=8))
    assert mixture.column_names == ["chosen_ids", "rejected_ids"]
    assert mixture[:8] == {"chosen_ids": [[9, 1]] * 8, "rejected_ids": [[8, 1]] * 8}
    first = synthetic_preferences()[0]
    assert mixture["chosen_ids"][8] == scoring_ids(tokenizer, first["prompt"], first["chosen"], max_length=8)
    assert all(len(ids) == 8 for ids in mixture["chosen_ids"][8:] + mixture["rejected_ids"][8:])


def test_tokenized_synthetic_pairs_are_not_tokenized_again(tmp_path):
    ready = Dataset.from_dict({"chosen_ids": [[5, 6]], "rejected_ids": [[7]], "confidence": [0.5]})
    mixture = add_synthetic_pairs(HUMAN, ready, None, build_config(tmp_path))
    assert mixture[8] == {"chosen_ids": [5, 6], "rejected_ids": [7]}


def test_the_share_of_synthetic_pairs_is_synthetic_share(tmp_path):
    """A share of 0.6 with 8 human pairs needs 12 synthetic pairs. There are 3, so each is repeated four times."""
    config = build_config(tmp_path, synthetic_share=0.6)
    mixture = add_synthetic_pairs(HUMAN, synthetic_preferences(), tiny_tokenizer(), config)
    chosen = [tuple(ids) for ids in mixture["chosen_ids"][8:]]
    assert len(chosen) == 12
    assert {chosen.count(ids) for ids in chosen} == {4}


def test_candidates_are_kept_only_for_redrawing(tmp_path):
    ready = Dataset.from_dict({"chosen_ids": [[5]], "rejected_ids": [[7]], "candidate_ids": [[[7], [6]]]})
    redrawn = add_synthetic_pairs(HUMAN, ready, None, build_config(tmp_path, redraw_rejected=True))
    assert redrawn["candidate_ids"][8] == [[7], [6]] and redrawn["candidate_ids"][0] is None
    assert "candidate_ids" not in add_synthetic_pairs(HUMAN, ready, None, build_config(tmp_path)).column_names
    with pytest.raises(ValueError, match="`redraw_rejected` is True, but `synthetic_dataset` has no `candidates`"):
        add_synthetic_pairs(
            HUMAN, synthetic_preferences(), tiny_tokenizer(), build_config(tmp_path, redraw_rejected=True)
        )


@pytest.mark.parametrize("as_stream", [False, True])
def test_rows_are_numbered_from_0(as_stream):
    dataset = Dataset.from_dict({"chosen_ids": [[1], [2], [3]], RECORD: [7, 7, 7]})
    accelerator = Accelerator(cpu=True)
    rows = add_record_numbers(dataset.to_iterable_dataset() if as_stream else dataset, accelerator)
    assert [row[RECORD] for row in rows] == [0, 1, 2]
    assert [row["chosen_ids"] for row in rows] == [[1], [2], [3]]


@pytest.mark.parametrize("as_stream", [False, True])
def test_only_known_columns_are_selected(as_stream):
    dataset = Dataset.from_dict({"chosen_ids": [[1]], "record": ["a"], "margin": [0.5]})
    if as_stream:
        dataset = dataset.to_iterable_dataset().map(lambda row: row)  # its columns are not known
    assert list(select_columns(dataset, ("chosen_ids", "rejected_ids", "margin"))) == [
        {"chosen_ids": [1], "margin": 0.5}
    ]


# The collator

ROWS = [{"chosen_ids": [9, 8, 7], "rejected_ids": [6], RECORD: index} for index in range(2)]


def test_the_collator_pads_as_the_configuration_says(tmp_path):
    config = build_config(tmp_path, pad_to_multiple_of=8)
    batch = build_collator(None, tiny_tokenizer(), config)(ROWS)
    assert batch["input_ids"].shape == (4, 8) and not any(name.startswith("view") for name in batch)


def test_the_collator_adds_views_of_the_samples(tmp_path):
    config = build_config(tmp_path, method="uml", view_prompts_per_device=3, max_length=5, seed=1)
    tokenizer = tiny_tokenizer()
    batch = build_collator(policy_samples(), tokenizer, config)(ROWS)
    assert batch["view_prompt_indices"].shape == (3,)
    assert batch["view_input_ids"].shape == (6, 5)  # two views of each prompt, each truncated to five tokens
    again = build_collator(policy_samples(), tokenizer, config)(ROWS)
    assert torch.equal(again["view_input_ids"], batch["view_input_ids"])
    config.seed = 2
    other = build_collator(policy_samples(), tokenizer, config)(ROWS)
    assert not torch.equal(other["view_input_ids"], batch["view_input_ids"])


@pytest.mark.parametrize("as_stream", [False, True])
def test_repeated_special_tokens_of_text_are_dropped_and_other_pairs_are_kept(as_stream):
    def prepare(rows, tokenizer):
        data = Dataset.from_dict({**rows, "chosen_ids": [[70, 1, 1]], "rejected_ids": [[71, 1]]})
        data = drop_repeated_tokens(data.to_iterable_dataset() if as_stream else data, tokenizer)
        return [(row["chosen_ids"], row["rejected_ids"]) for row in data]

    text = {"chosen": ["b<eos>"], "rejected": ["c"]}
    assert prepare(text, tiny_tokenizer()) == [([70, 1, 1], [71, 1])]
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    assert prepare(text, tokenizer) == [([70, 1], [71, 1])]
    assert prepare({}, tokenizer) == [([70, 1, 1], [71, 1])]
