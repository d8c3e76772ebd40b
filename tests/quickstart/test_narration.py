import io
import logging
import sys

from rich.console import Console

from trl_rlp.quickstart.narration import narrate
from trl_rlp.storage.run_folder import RunFolder


def test_known_stages_are_printed_and_all_other_output_goes_to_the_log(tmp_path, caplog):
    caplog.set_level(logging.WARNING, logger="transformers")
    screen = io.StringIO()
    run = RunFolder(tmp_path / "run", {})
    with narrate(tmp_path / "log.txt", Console(file=screen), 0.0):
        run.stage("policy", lambda folder: None)
        run.stage("plan_algorithm", lambda folder: None)
        sys.stdout.write("loss 0.1\n")
        sys.stderr.write("progress\n")
        assert logging.getLogger("transformers").level == logging.ERROR
    run.stage("gate", lambda folder: None)
    assert "Step 3: policy π by PPO against r" in screen.getvalue()
    assert len(screen.getvalue().splitlines()) == 1
    log = (tmp_path / "log.txt").read_text()
    assert "loss 0.1" in log and "progress" in log
    assert logging.getLogger("transformers").level == logging.WARNING
