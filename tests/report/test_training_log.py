import json

import pytest

from tests.report.run_folders import write_log
from trl_rlp.report.training_log import read_training_log


def test_the_final_state_comes_before_the_last_checkpoint(tmp_path):
    assert read_training_log(tmp_path) is None
    write_log(tmp_path / "checkpoint-9", [{"step": 9, "loss": 9.0}])
    write_log(tmp_path / "checkpoints" / "checkpoint-10", [{"step": 10, "loss": 10.0}])
    write_log(tmp_path / "checkpoint-best", [{"step": 99, "loss": 99.0}])
    (tmp_path / "checkpoint-11").mkdir()  # not complete
    assert read_training_log(tmp_path).curve("loss") == [(10, 10.0)]
    write_log(tmp_path, [{"step": 12, "loss": 12.0}])
    log = read_training_log(tmp_path)
    assert log.curve("loss") == [(12, 12.0)] and log.path == tmp_path / "trainer_state.json"
    assert log.settings == {"global_step": 12, "max_steps": 3}


def test_the_state_of_a_training_before_does_not_hide_newer_checkpoints(tmp_path):
    """`train()`, `save_state()` after 3 steps, and a longer training into the same folder. At a tie, it is the end."""
    write_log(tmp_path, [*({"step": step, "loss": 1.0} for step in (1, 2, 3)), {"step": 3, "train_runtime": 5.0}])
    write_log(tmp_path / "checkpoint-3", [{"step": step, "loss": 1.0} for step in (1, 2, 3)])
    assert read_training_log(tmp_path).last("train_runtime") == 5.0
    write_log(tmp_path / "checkpoint-9", [{"step": step, "loss": 1.0} for step in range(1, 10)])
    log = read_training_log(tmp_path)
    assert log.path == tmp_path / "checkpoint-9" / "trainer_state.json"
    assert len(log.curve("loss")) == 9 and log.last("train_runtime") is None


def test_values_that_are_not_finite_are_left_out(tmp_path):
    entries = [{"step": 1, "loss": float("nan")}, {"step": 2, "loss": 0.5}, {"step": 3, "other": 1}, {"loss": 2.0}]
    write_log(tmp_path, entries)
    log = read_training_log(tmp_path)
    assert log.curve("loss") == [(2, 0.5)] and log.last("loss") == 0.5 and log.last("missing") is None
    assert log.keys() == {"step", "loss", "other"}


@pytest.mark.parametrize("text", ["{", "[]", '{"other": 1}', json.dumps({"log_history": [1]})])
def test_a_damaged_state_is_one_line(tmp_path, text):
    (tmp_path / "trainer_state.json").write_text(text)
    with pytest.raises(ValueError, match=r"trainer_state.json' is damaged \(.*\). Delete this checkpoint"):
        read_training_log(tmp_path)
