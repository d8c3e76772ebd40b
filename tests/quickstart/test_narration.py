import io
import logging
import sys

from rich.console import Console

import trl_rlp.storage.run_folder as run_folder
from trl_rlp.quickstart.narration import narrate


def test_stages_are_told_and_the_rest_goes_to_the_log(tmp_path):
    screen = io.StringIO()
    level, handlers = run_folder.logger.level, list(run_folder.logger.handlers)
    with narrate(tmp_path / "log.txt", Console(file=screen), 0.0):
        run_folder.logger.info("%s: started", "policy")
        run_folder.logger.info("%s: started", "plan_algorithm")
        sys.stdout.write("loss 0.1\n")
        sys.stderr.write("progress\n")
    assert "Step 3: policy π by PPO against r" in screen.getvalue()
    assert len(screen.getvalue().splitlines()) == 1
    log = (tmp_path / "log.txt").read_text()
    assert "loss 0.1" in log and "progress" in log
    assert (run_folder.logger.level, run_folder.logger.handlers) == (level, handlers)
    assert logging.getLogger("transformers").level != logging.ERROR
