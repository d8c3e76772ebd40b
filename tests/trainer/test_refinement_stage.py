import pytest
from datasets import Dataset

from trl_rlp.trainer.refinement_stage import hold_out


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


@pytest.mark.parametrize("form", [text, chat])
def test_pairs_of_one_prompt_stay_together(form):
    """Four prompts with 5, 1, 3 and 1 pairs; half of the prompts are held out."""
    data = pairs(list("aabaccadac"), form)
    train, heldout = hold_out(data, 0.5, seed=0)
    assert len(train) + len(heldout) == len(data)
    of_train, of_heldout = ({str(prompt) for prompt in part["prompt"]} for part in (train, heldout))
    assert len(of_train) == len(of_heldout) == 2 and not of_train & of_heldout
    assert train.to_list() == [row for row in data.to_list() if str(row["prompt"]) in of_train]


def test_the_seed_decides():
    data = pairs([str(number) for number in range(20)])
    assert hold_out(data, 0.2, seed=1)[1].to_list() == hold_out(data, 0.2, seed=1)[1].to_list()
    assert hold_out(data, 0.2, seed=1)[1].to_list() != hold_out(data, 0.2, seed=2)[1].to_list()


@pytest.mark.parametrize("share, held", [(0.01, 1), (0.25, 1), (0.99, 3)])
def test_something_is_left_on_either_side(share, held):
    train, heldout = hold_out(pairs(["a", "b", "c", "d"]), share, seed=0)
    assert (len(train), len(heldout)) == (4 - held, held)


def test_implicit_prompts_are_what_both_sides_begin_with():
    data = Dataset.from_dict(
        {
            "chosen": ["Q: one A: yes", "Q: one A: 1", "Q: two A: yes", "Q: two A: 2"],
            "rejected": ["Q: one A: no", "Q: one A: 0", "Q: two A: no", "Q: two A: 0"],
        }
    )
    for part in hold_out(data, 0.5, seed=0):
        assert len({text.split(" A:")[0] for text in part["chosen"]}) == 1 and len(part) == 2


def test_pairs_of_one_prompt_only_are_parted_singly():
    train, heldout = hold_out(pairs(["a"] * 4), 0.25, seed=0)
    assert (len(train), len(heldout)) == (3, 1)


def test_one_pair_cannot_be_parted():
    with pytest.raises(ValueError, match="`preference_dataset` has one row, none is left for the gate"):
        hold_out(pairs(["a"]), 0.5, seed=0)
