"""The part of a checkpoint that holds a refined reward: the reward model, the recorded completions, the schedule."""

import json
import shutil
from pathlib import Path
from typing import Any

from datasets import Dataset
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from transformers import TrainerState, TrainingArguments

from trl_rlp.rewards.refinable_reward import RefinableReward
from trl_rlp.storage.json_files import name_failed_write, read_json, write_json
from trl_rlp.trainer.checkpoints import TRAINER_STATE, load_state


FOLDER = "reward_refinement"
"""Folder in a checkpoint. It has a subfolder for each refined reward, with the reward's name."""

WEIGHTS = "reward_model.safetensors"
VALUES = "values.json"


def save_refinement(folder: Path, reward: RefinableReward, windows: list[Dataset], values: dict[str, Any]) -> None:
    """
    Writes a refined reward into a checkpoint. Only the main process calls this, just before the trainer writes its
    own state, which marks the checkpoint as complete.

    The weights are saved in the dtype of the reward model, so a checkpoint grows by the size of the reward model.

    Args:
        folder (`Path`):
            The checkpoint.
        reward ([`RefinableReward`]):
            The reward. Saved are its weights, its scale, its buffer, and the metrics that are not yet logged.
        windows (`list[Dataset]`):
            Datasets of the refinements so far, such as the pairs of each window.
        values (`dict`):
            Plain JSON values, such as counters.
    """
    part = _find_part(folder, reward)
    # An earlier run may have left a checkpoint in the same folder. It is incomplete from now on.
    (folder / TRAINER_STATE).unlink(missing_ok=True)
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    # Copies, because safetensors refuses tensors that share memory.
    state = reward.plain_model.state_dict()
    weights = {name: weight.detach().to("cpu", copy=True).contiguous() for name, weight in state.items()}
    with name_failed_write(part):
        save_file(weights, part / WEIGHTS)
        for number, window in enumerate(windows):
            parquet.write_table(window.with_format("arrow")[:], part / _window_file(number))
    contents = {
        "mean": reward.mean,
        "standard_deviation": reward.standard_deviation,
        "num_rollouts": reward.num_rollouts,
        "pending_metrics": reward.pending_metrics,
        "buffer": reward.buffer.state(),
        "num_windows": len(windows),
        "values": values,
    }
    write_json(part / VALUES, contents)


def restore_refinement(folder: Path, reward: RefinableReward) -> tuple[list[Dataset], dict[str, Any]]:
    """
    Restores in place what [`save_refinement`] wrote. All processes must call this.

    Args:
        folder (`Path`):
            The checkpoint, on a disk that all processes share.
        reward ([`RefinableReward`]):
            The reward of the new run. The functions of [`RefinableReward.subscribe`] are called with a shift of 0.

    Returns:
        `tuple[list[Dataset], dict]`: The windows, in memory, and the values.

    Raises:
        ValueError: If the checkpoint has no refined reward of this name, or a reward model of another shape.
    """
    part = _find_part(folder, reward)
    if not (part / VALUES).is_file():
        raise ValueError(
            f"`resume_from_checkpoint`={str(folder)!r} has no refined reward '{reward.__name__}', so it was written "
            "without `RewardRefinementCallback` or with `save_only_model`. To start from its weights, pass the folder "
            "as `model`."
        )
    contents = read_json(part / VALUES)
    reward.collect()  # forgets rollouts of a run that failed in this program
    reward.replace_weights(load_file(part / WEIGHTS), contents["mean"], contents["standard_deviation"], shift=0.0)
    reward.buffer.restore(contents["buffer"])
    reward.num_rollouts, reward.pending_metrics = contents["num_rollouts"], contents["pending_metrics"]
    # The checkpoint may be deleted while the run goes on, so nothing is read from its files later.
    paths = [part / _window_file(number) for number in range(contents["num_windows"])]
    return [Dataset(parquet.read_table(path, memory_map=False)) for path in paths], contents["values"]


def find_checkpoint(args: TrainingArguments, state: TrainerState, saved_in: str) -> Path:
    """
    Finds the checkpoint that a run resumes from, because the trainer does not tell its callbacks.

    Args:
        args (`TrainingArguments`):
            Configuration of the run.
        state (`TrainerState`):
            State that the trainer has read from the checkpoint.
        saved_in (`str`):
            Folder that the checkpoint was written to.

    Returns:
        `Path`: The folder in `args.output_dir`, or else `saved_in`.

    Raises:
        ValueError: If neither is a checkpoint with the same state.
    """
    folders = [Path(args.output_dir) / f"checkpoint-{state.global_step}", Path(saved_in)]
    for folder in folders:
        if (folder / TRAINER_STATE).is_file() and _log(load_state(folder)) == _log(state):
            return folder
    raise ValueError(
        f"The refined reward of step {state.global_step} was not found, because the checkpoint was moved: looked in "
        f"{', '.join(repr(str(folder)) for folder in folders)}. Move it to `output_dir`={args.output_dir!r}."
    )


def _log(state: TrainerState) -> str:
    """Returns the history of a run as text, in which NaN equals NaN."""
    return json.dumps([state.global_step, state.log_history])


def _find_part(folder: Path, reward: RefinableReward) -> Path:
    return folder / FOLDER / reward.__name__.replace("/", "_")


def _window_file(number: int) -> str:
    return f"window_{number}.parquet"
