import pytest

from tests.ppo_runs import ppo_trainer
from trl_rlp.storage.run_folder import CHECKPOINTS
from trl_rlp.trainer.checkpoints import last_checkpoint, resolve_checkpoint, train_to_end


def make_checkpoint(folder, step: int) -> None:
    (folder / f"checkpoint-{step}").mkdir()
    (folder / f"checkpoint-{step}" / "trainer_state.json").write_text("{}")


def test_the_last_checkpoint_is_the_complete_one_with_most_steps(tmp_path):
    for step in (9, 10):
        make_checkpoint(tmp_path, step)
    (tmp_path / "checkpoint-11").mkdir()
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")
    assert last_checkpoint(tmp_path / "checkpoint-9") is None
    assert last_checkpoint(tmp_path / "missing") is None


@pytest.mark.parametrize(
    "resume_from_checkpoint, expected",
    [
        (None, None),
        (False, None),
        ("false", None),
        (True, "checkpoint-4"),
        ("True", "checkpoint-4"),
        ("other", "other"),
    ],
)
def test_a_run_resumes_from_the_requested_checkpoint(tmp_path, resume_from_checkpoint, expected):
    make_checkpoint(tmp_path, 4)
    checkpoint = resolve_checkpoint(resume_from_checkpoint, str(tmp_path))
    assert checkpoint == (str(tmp_path / expected) if expected == "checkpoint-4" else expected)


def test_a_missing_checkpoint_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match="`resume_from_checkpoint` is True, but '.*' contains no checkpoint. Remove it"
    ):
        resolve_checkpoint(True, str(tmp_path))


def test_a_stopped_stage_resumes(tmp_path):
    """The second call finds the checkpoint of the last rollout, so it does not train."""
    settings = {"save_strategy": "steps", "save_steps": 1, "total_episodes": 8}
    metrics = train_to_end(ppo_trainer(tmp_path / CHECKPOINTS, **settings), tmp_path)
    assert metrics["episode"] == 8 and (tmp_path / "model.safetensors").is_file()
    second = ppo_trainer(tmp_path / CHECKPOINTS, **settings)
    second.compute_loss = None
    assert train_to_end(second, tmp_path)["objective/kl"] == metrics["objective/kl"]
