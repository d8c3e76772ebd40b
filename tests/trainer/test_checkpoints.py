import pytest

from tests.ppo_runs import ppo_trainer
from trl_rlp.trainer.checkpoints import CHECKPOINTS, last_checkpoint, resolve_checkpoint, train_to_end


def make_checkpoint(folder, step: int) -> None:
    (folder / f"checkpoint-{step}").mkdir()
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")


def test_the_last_checkpoint_is_the_whole_one_of_the_most_steps(tmp_path):
    for step in (9, 10):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "checkpoint-9") is None
    assert last_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, None),
        (False, None),
        ("false", None),
        (True, "checkpoint-4"),
        ("True", "checkpoint-4"),
        ("other", "other"),
    ],
)
def test_a_run_goes_on_from_what_it_was_told(tmp_path, given, expected):
    make_checkpoint(tmp_path, 4)
    resumed = resolve_checkpoint(given, str(tmp_path))
    assert resumed == (str(tmp_path / expected) if expected == "checkpoint-4" else expected)


def test_a_missing_checkpoint_is_named(tmp_path):
    with pytest.raises(
        ValueError, match="`resume_from_checkpoint` is True, but '.*' holds no checkpoint. Leave it out"
    ):
        resolve_checkpoint(True, str(tmp_path))


def test_a_stage_that_was_stopped_goes_on(tmp_path):
    """Its second call finds the last rollout's checkpoint, and so trains no more."""
    settings = {"save_strategy": "steps", "save_steps": 1, "total_episodes": 8}
    figures = train_to_end(ppo_trainer(tmp_path / CHECKPOINTS, **settings), tmp_path)
    assert figures["episode"] == 8 and (tmp_path / "model.safetensors").is_file()
    again = ppo_trainer(tmp_path / CHECKPOINTS, **settings)
    again.compute_loss = None
    assert train_to_end(again, tmp_path)["objective/kl"] == figures["objective/kl"]
