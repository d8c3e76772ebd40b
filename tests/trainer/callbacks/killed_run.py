"""Run by test_resumed_refinements.py: it kills itself with signal 9 while it writes its fourth checkpoint."""

import os
import signal
import sys
from pathlib import Path

import torch

from tests.trainer.callbacks.test_resumed_refinements import make_run
from trl_rlp.trainer.callbacks import refinement_state


def main(folder: Path) -> None:
    save = refinement_state.save_file

    def save_and_die(weights: dict[str, torch.Tensor], path: Path) -> None:
        save(weights, path)
        if "checkpoint-4" in str(path):
            os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    refinement_state.save_file = save_and_die
    make_run(folder, "grpo")[0].train()


if __name__ == "__main__":
    torch.set_num_threads(int(sys.argv[2]))  # those of the run that it is compared with
    main(Path(sys.argv[1]))
