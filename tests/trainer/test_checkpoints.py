import pytest

from tests.ppo_runs import ppo_trainer
from trl_rlp.trainer.checkpoints import CHECKPOINTS, checkpoint_to_resume, last_checkpoint, train_to_end


def test_the_last_checkpoint_is_that_of_the_most_steps(tmp_path):
    for step in (9, 10):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "checkpoint-9") is None
    assert last_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize("given, expected", [(None, None), (False, None), (True, "checkpoint-4"), ("other", "other")])
def test_a_run_goes_on_from_what_it_was_told(tmp_path, given, expected):
    (tmp_path / "checkpoint-4").mkdir()
    resumed = checkpoint_to_resume(given, str(tmp_path))
    assert resumed == (str(tmp_path / expected) if given is True else expected)


def test_a_stage_that_was_stopped_goes_on(tmp_path):
    """Its second call finds the last rollout's checkpoint, and so trains no more."""
    settings = {"save_strategy": "steps", "save_steps": 1, "total_episodes": 8}
    figures = train_to_end(ppo_trainer(tmp_path / CHECKPOINTS, **settings), tmp_path)
    assert figures["episode"] == 8 and (tmp_path / "model.safetensors").is_file()
    again = ppo_trainer(tmp_path / CHECKPOINTS, **settings)
    again.compute_loss = None
    assert train_to_end(again, tmp_path)["objective/kl"] == figures["objective/kl"]
