import pytest
from datasets import Dataset

from trl_rlp.data.preferences.holdout import hold_out


def as_text(role: str, content: str) -> str:
    return content


def as_chat(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def build_pairs(prompts: list[str], convert=as_text) -> Dataset:
    rows = range(len(prompts))
    return Dataset.from_dict(
        {
            "prompt": [convert("user", prompt) for prompt in prompts],
            "chosen": [convert("assistant", f"yes {i}") for i in rows],
            "rejected": [convert("assistant", f"no {i}") for i in rows],
        }
    )


def collect_prompts(dataset: Dataset) -> set[str]:
    return {str(prompt) for prompt in dataset["prompt"]}


@pytest.mark.parametrize("convert", [as_text, as_chat])
@pytest.mark.parametrize("seed", range(5))
def test_pairs_of_one_prompt_stay_in_one_set(convert, seed):
    """Four prompts have 5, 1, 3 and 1 pairs. At most half of the pairs are held out."""
    data = build_pairs(list("aabaccadac"), convert)
    train, heldout = hold_out(data, 0.5, seed)
    assert not collect_prompts(train) & collect_prompts(heldout) and 2 <= len(heldout) <= 5
    assert train.to_list() == [row for row in data.to_list() if str(row["prompt"]) in collect_prompts(train)]
    assert heldout.to_list() == [row for row in data.to_list() if str(row["prompt"]) in collect_prompts(heldout)]


def test_the_split_depends_on_the_seed():
    data = build_pairs([str(number) for number in range(20)])
    assert hold_out(data, 0.2, seed=1)[1].to_list() == hold_out(data, 0.2, seed=1)[1].to_list()
    assert hold_out(data, 0.2, seed=1)[1].to_list() != hold_out(data, 0.2, seed=2)[1].to_list()


@pytest.mark.parametrize(("share", "num_heldout"), [(0.01, 1), (0.25, 1), (0.99, 3)])
def test_neither_set_is_empty(share, num_heldout):
    train, heldout = hold_out(build_pairs(["a", "b", "c", "d"]), share, seed=0)
    assert (len(train), len(heldout)) == (4 - num_heldout, num_heldout)


def test_a_prompt_with_nearly_all_pairs_stays_in_the_training_set():
    for seed in range(5):
        train, heldout = hold_out(build_pairs(["a"] * 19 + ["b"]), 0.05, seed)
        assert collect_prompts(heldout) == {"b"} and len(train) == 19
        train, heldout = hold_out(build_pairs(["a"] * 16 + ["b"] * 4), 0.05, seed)
        assert collect_prompts(heldout) == {"b"} and len(train) == 16


def test_implicit_prompts_are_the_common_beginning_of_both_sides():
    data = Dataset.from_dict(
        {
            "chosen": ["Q: one A: yes", "Q: one A: 1", "Q: two A: yes", "Q: two A: 2"],
            "rejected": ["Q: one A: no", "Q: one A: 0", "Q: two A: no", "Q: two A: 0"],
        }
    )
    for dataset in hold_out(data, 0.5, seed=0):
        assert len({text.split(" A:")[0] for text in dataset["chosen"]}) == 1 and len(dataset) == 2


@pytest.mark.parametrize(
    "sides", [[("ab", "cd")] * 19 + [("xa", "xb")], [("", "b")] * 10 + [("a", "")] * 10], ids=["no prefix", "empty"]
)
def test_pairs_without_a_prompt_are_placed_one_by_one(sides):
    data = Dataset.from_dict({"chosen": [chosen for chosen, _ in sides], "rejected": [side for _, side in sides]})
    train, heldout = hold_out(data, 0.2, seed=0)
    assert (len(train), len(heldout)) == (16, 4)


def test_pairs_are_placed_one_by_one_if_all_share_one_prompt():
    train, heldout = hold_out(build_pairs(["a"] * 4), 0.25, seed=0)
    assert (len(train), len(heldout)) == (3, 1)


def test_a_single_pair_raises():
    with pytest.raises(ValueError, match="`preference_dataset` has only one row, so no pair is left for the gate"):
        hold_out(build_pairs(["a"]), 0.5, seed=0)
