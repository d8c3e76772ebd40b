"""
Runs the commands of the skill on tiny models.

`make wheel` runs `python -m tests.skill_runs` in an empty folder, with a copy of the tests and an installed package.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import trl_rlp
from tests.tiny_models import save, tiny_causal_lm, tiny_reward_model, tiny_tokenizer


SKILL = Path(trl_rlp.__file__).parent / ".agents/skills/trl-rlp/SKILL.md"
TRAINING = {"use_cpu": True, "bf16": False, "max_steps": 1, "per_device_train_batch_size": 4, "report_to": "none"}
REWARD_ARGS = json.dumps({**TRAINING, "view_prompts_per_device": 2})
POLICY_ARGS = json.dumps({**TRAINING, "num_generations": 2, "max_completion_length": 4})
SMALL = {
    "sample": "--num_generations 2 --max_new_tokens 4",
    "prefer": "--equivalence exact",
    "reward": "--use_cpu true --bf16 false --max_steps 1 --per_device_train_batch_size 2 --report_to none",
    "evaluate": "",
    "anchors": "--equivalence exact",
    # The random policy has no groups of equal meaning, so that SPG would have no pair.
    "run": "--method uml --num_generations 2 --max_new_tokens 4 --heldout_share 0.25 "
    f"--reward_args '{REWARD_ARGS}' --policy_args '{POLICY_ARGS}'",
    "report": "",
    "quickstart": "--help",
}
"""What makes each command small. A later option overrides the same option of the skill."""


def find_blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", SKILL.read_text(encoding="utf-8"), flags=re.M | re.S)


def list_commands() -> list[list[str]]:
    """Returns the words of each command, in the order of the skill."""
    lines = "".join(find_blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def write_inputs(folder: Path) -> None:
    """Writes what the commands read, under the names that the skill uses."""
    tokenizer = tiny_tokenizer()
    for name in ("my-sft-model", "my-policy"):
        save(tiny_causal_lm(tokenizer), tokenizer, folder / name)
    save(tiny_reward_model(tokenizer, seed=3), tokenizer, folder / "my-reward-model")
    pairs = [{"prompt": f"{row} + 1 = ", "chosen": str(row + 1), "rejected": "no idea"} for row in range(8)]
    for name, rows in {"preferences": pairs, "heldout": pairs[:4], "prompts": [{"prompt": "2 + 2 = "}] * 4}.items():
        _write_rows(folder / f"{name}.jsonl", rows)


def shrink_commands(folder: Path) -> Iterator[list[str]]:
    """Yields each command with tiny settings. After `sample`, it writes samples whose majority is clear."""
    for words in list_commands():
        yield [*words, *shlex.split(SMALL[words[1]])]
        if words[1] == "sample":
            rows = [
                {"prompt": f"{row} + 2 = ", "completions": ["4", "4.", "5"], "finished": [True] * 3}
                for row in range(4)
            ]
            _write_rows(folder / "samples/samples.jsonl", rows)


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def main() -> None:
    """Runs each command of the skill as a program."""
    folder = Path.cwd()
    write_inputs(folder)
    for words in shrink_commands(folder):
        subprocess.run(words, check=True)


if __name__ == "__main__":
    main()
