import pytest
from datasets import Dataset

from trl_rlp.data.preferences.holdout import hold_out


def text(role: str, content: str) -> str:
    return content


def chat(role: str, content: str) -> list[dict]:
    return [{"role": role, "content": content}]


def pairs(prompts: list[str], form=text) -> Dataset:
    rows = range(len(prompts))
    return Dataset.from_dict(
        {
            "prompt": [form("user", prompt) for prompt in prompts],
            "chosen": [form("assistant", f"yes {i}") for i in rows],
            "rejected": [form("assistant", f"no {i}") for i in rows],
        }
    )


def held_prompts(part: Dataset) -> set[str]:
    return {str(prompt) for prompt in part["prompt"]}


@pytest.mark.parametrize("form", [text, chat])
@pytest.mark.parametrize("seed", range(5))
def test_pairs_of_one_prompt_stay_together(form, seed):
    """Four prompts with 5, 1, 3 and 1 pairs; at most half of the pairs are held out."""
    data = pairs(list("aabaccadac"), form)
    train, heldout = hold_out(data, 0.5, seed)
    assert not held_prompts(train) & held_prompts(heldout) and 2 <= len(heldout) <= 5
    assert train.to_list() == [row for row in data.to_list() if str(row["prompt"]) in held_prompts(train)]
    assert heldout.to_list() == [row for row in data.to_list() if str(row["prompt"]) in held_prompts(heldout)]


def test_the_seed_decides():
    data = pairs([str(number) for number in range(20)])
    assert hold_out(data, 0.2, seed=1)[1].to_list() == hold_out(data, 0.2, seed=1)[1].to_list()
    assert hold_out(data, 0.2, seed=1)[1].to_list() != hold_out(data, 0.2, seed=2)[1].to_list()


@pytest.mark.parametrize("share, held", [(0.01, 1), (0.25, 1), (0.99, 3)])
def test_something_is_left_on_either_side(share, held):
    train, heldout = hold_out(pairs(["a", "b", "c", "d"]), share, seed=0)
    assert (len(train), len(heldout)) == (4 - held, held)


def test_a_prompt_of_nearly_all_pairs_is_trained_on():
    for seed in range(5):
        train, heldout = hold_out(pairs(["a"] * 19 + ["b"]), 0.05, seed)
        assert held_prompts(heldout) == {"b"} and len(train) == 19
        train, heldout = hold_out(pairs(["a"] * 16 + ["b"] * 4), 0.05, seed)
        assert held_prompts(heldout) == {"b"} and len(train) == 16


def test_implicit_prompts_are_what_both_sides_begin_with():
    data = Dataset.from_dict(
        {
            "chosen": ["Q: one A: yes", "Q: one A: 1", "Q: two A: yes", "Q: two A: 2"],
            "rejected": ["Q: one A: no", "Q: one A: 0", "Q: two A: no", "Q: two A: 0"],
        }
    )
    for part in hold_out(data, 0.5, seed=0):
        assert len({text.split(" A:")[0] for text in part["chosen"]}) == 1 and len(part) == 2


@pytest.mark.parametrize(
    "sides", [[("ab", "cd")] * 19 + [("xa", "xb")], [("", "b")] * 10 + [("a", "")] * 10], ids=["no prefix", "empty"]
)
def test_pairs_without_a_prompt_stand_for_themselves(sides):
    data = Dataset.from_dict({"chosen": [chosen for chosen, _ in sides], "rejected": [side for _, side in sides]})
    train, heldout = hold_out(data, 0.2, seed=0)
    assert (len(train), len(heldout)) == (16, 4)


def test_pairs_of_one_prompt_only_are_parted_singly():
    train, heldout = hold_out(pairs(["a"] * 4), 0.25, seed=0)
    assert (len(train), len(heldout)) == (3, 1)


def test_one_pair_cannot_be_parted():
    with pytest.raises(ValueError, match="`preference_dataset` has one row, none is left for the gate"):
        hold_out(pairs(["a"]), 0.5, seed=0)
