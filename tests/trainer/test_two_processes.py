"""Two processes by `torchrun`, as the field launches them: `accelerate launch --cpu` would run only one."""

import os
import subprocess
import sys
from pathlib import Path


SCRIPT = Path(__file__).with_name("two_process_run.py")


def test_two_processes_refine_one_model(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(SCRIPT.parents[2])}
    run = subprocess.run(
        [*command, str(SCRIPT), str(tmp_path)], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.count("both processes agree") == 2
