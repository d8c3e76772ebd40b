"""
Runs TRL's own tests of its reward trainer on ours, to show that `RLPRewardTrainer` is a drop-in for `RewardTrainer`.

The tests are read from a checkout of TRL (https://github.com/huggingface/trl) and stay there. They run twice, each
time in a process of its own: once with TRL's classes and once with `RLPRewardTrainer` and `RLPRewardConfig` in their
place. A test that passes with TRL's must pass with ours, else the script lists it and exits with 1.

What the tests load from the Hub is made small and local: a folder holds each repository under its name, and the tests
run in that folder, where `from_pretrained` and `load_dataset` find it. The stand-ins have the architectures and
columns of the originals, not their weights or texts. The model with remote code has none.

Pytest does not collect this file. Run it by hand, on TRL's revision for the installed version or one near it:

```bash
git clone https://github.com/huggingface/trl ../trl
python tests/trl_suite.py ../trl
```
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
import torch
import transformers
import trl
from tiny_models import save, tiny_tokenizer  # from this folder: as `tests.tiny_models` it would hide TRL's `tests`
from trl import import_utils

import trl_rlp


SIDES = ("trl", "trl_rlp")
SUITE = Path("tests", "test_reward_trainer.py")
PASSED = "passed"

MODELS: dict[str, tuple[str, dict]] = {
    "tiny-Qwen2ForCausalLM-2.5": ("Qwen2ForCausalLM", {}),
    "tiny-Qwen2ForSequenceClassification-2.5": ("Qwen2ForSequenceClassification", {"num_labels": 1}),
    "tiny-Qwen3MoeForCausalLM": (
        "Qwen3MoeForCausalLM",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "head_dim": 8},
    ),
    "tiny-LlamaForCausalLM-3.2": ("LlamaForCausalLM", {}),
    "tiny-GPTNeoXForCausalLM": ("GPTNeoXForCausalLM", {}),
}
"""Class and own settings of each model of `trl-internal-testing` that the tests load."""

WITHOUT_PAD_TOKEN = {"tiny-LlamaForCausalLM-3.2", "tiny-GPTNeoXForCausalLM"}
WITHOUT_CHAT_TEMPLATE = {"tiny-GPTNeoXForCausalLM"}

TOOL_TEMPLATE = (
    "{% for tool in tools or [] %}<|system|>{{ tool | tojson }}{% endfor %}"
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] or '' }}"
    "{% for call in message['tool_calls'] or [] %}{{ call['function'] | tojson }}{% endfor %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

OPPOSITES = (
    "hot cold, big small, old young, wet dry, near far, light dark, fast slow, hard soft, high low, rich poor, "
    "full empty, open shut, loud quiet, early late, sweet sour, thick thin, clean dirty, strong weak, true false"
)
TEST_ROWS = 2
"""Rows of a data set that are for tests. The 17 others make the nine steps whose checkpoint a test looks for."""


# Stand-ins for what the tests load from the Hub


def write_stand_ins(folder: Path) -> None:
    """Writes each repository that the tests load from the Hub to `folder`, under its name there."""
    organization = folder / "trl-internal-testing"
    for name in MODELS:
        _write_model(organization / name)
    chat_tokenizer = _tokenizer("Qwen3-4B")
    chat_tokenizer.add_tokens(["<think>"])  # a token that the model without a template has yet to learn
    chat_tokenizer.save_pretrained(folder / "Qwen" / "Qwen3-4B")
    _write_datasets(organization / "zen", _zen())
    _write_datasets(organization / "toolcall", {"preference": list(_tool_calls())})


def _tokenizer(name: str) -> transformers.PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(chat=False)
    if name not in WITHOUT_CHAT_TEMPLATE:
        tokenizer.chat_template = TOOL_TEMPLATE
    if name in WITHOUT_PAD_TOKEN:
        tokenizer.pad_token = None
    return tokenizer


def _write_model(folder: Path) -> None:
    class_name, settings = MODELS[folder.name]
    tokenizer = _tokenizer(folder.name)
    model_class = getattr(transformers, class_name)
    config = model_class.config_class(
        vocab_size=len(tokenizer),
        hidden_size=8,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **settings,
    )
    torch.manual_seed(0)
    save(model_class(config), tokenizer, folder)


def _write_datasets(folder: Path, configs: dict[str, list[dict]]) -> None:
    """Writes a data set as the Hub holds it: a file for each split, and a card that names the configurations."""
    card = ["---", "configs:"]
    for name, rows in configs.items():
        (folder / name).mkdir(parents=True)
        card += [f"- config_name: {name}", "  data_files:"]
        for split, part in {"train": rows[:-TEST_ROWS], "test": rows[-TEST_ROWS:]}.items():
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
            card += [f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))


def _zen() -> dict[str, list[dict]]:
    """Preferences in both formats, with the prompt apart and with the prompt within."""
    rows = []
    for pair in OPPOSITES.split(", "):
        word, opposite = pair.split()
        rows.append((f"The opposite of {word} is", f" {opposite}.", f" {word}, as ever."))
    explicit = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in rows]
    implicit = [{"chosen": prompt + chosen, "rejected": prompt + rejected} for prompt, chosen, rejected in rows]
    turns = [(_message("user", prompt), *(_message("assistant", text) for text in texts)) for prompt, *texts in rows]
    return {
        "standard_preference": explicit,
        "standard_implicit_prompt_preference": implicit,
        "conversational_preference": [
            {"prompt": [asked], "chosen": [chosen], "rejected": [rejected]} for asked, chosen, rejected in turns
        ],
        "conversational_implicit_prompt_preference": [
            {"chosen": [asked, chosen], "rejected": [asked, rejected]} for asked, chosen, rejected in turns
        ],
    }


def _message(role: str, content: str | None, **fields) -> dict:
    return {"role": role, "content": content, **fields}


def _tool_calls() -> Iterator[dict]:
    """Preferences in which the chosen side calls a tool, and the tools stand beside as JSON text."""
    for pair in OPPOSITES.split(", ")[:8]:
        word, opposite = pair.split()
        parameters = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
        function = {"name": f"look_up_{word}", "description": "Finds the opposite.", "parameters": parameters}
        call = {"type": "function", "function": {"name": function["name"], "arguments": {"word": word}}}
        yield {
            "prompt": [_message("user", f"What is not {word}?")],
            "chosen": [
                _message("assistant", None, tool_calls=[call]),
                _message("tool", opposite, name=function["name"]),
                _message("assistant", f"What is {opposite}."),
            ],
            "rejected": [_message("assistant", "I do not know.")],
            "tools": json.dumps([{"type": "function", "function": function}]),
        }


# One side: TRL's tests with one pair of classes


class Outcomes:
    """A pytest plugin that checks which classes are tested, and notes how each test ends and why."""

    def __init__(self):
        self.by_test: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for module in {item.module for item in items}:
            if (module.RewardTrainer, module.RewardConfig) != (trl.RewardTrainer, trl.RewardConfig):
                raise pytest.UsageError(f"{module.__file__} does not test the classes that `trl` offers.")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo) -> Generator:
        report = yield
        if report.when == "call" or report.outcome != PASSED:
            test = item.nodeid.split("::", maxsplit=1)[1]
            reason = call.excinfo.exconly() if call.excinfo else ""
            self.by_test[test] = report.outcome, textwrap.shorten(reason, 120)
        return report

    @pytest.fixture
    def lazy_shared_datadir(self, request: pytest.FixtureRequest) -> Path:
        """The folder of test files, as the plugin `pytest-datadir` gives it to TRL."""
        return request.path.parent / "data"


def run_side(checkout: Path, side: str, outcomes_file: Path) -> None:
    """Runs the tests of `checkout` with the classes of `side` and writes how each one ends."""
    if side == "trl_rlp":
        trl.RewardTrainer, trl.RewardConfig = trl_rlp.RLPRewardTrainer, trl_rlp.RLPRewardConfig
    elif not torch.accelerator.is_available():
        _default_to_fp32(trl.RewardConfig)
    import_utils.__getattr__ = _missing_check
    outcomes = Outcomes()
    options = ["-q", "--tb=no", "--disable-warnings", "-p", "no:cacheprovider"]
    basetemp = outcomes_file.with_suffix(".folders")
    pytest.main([str(checkout / SUITE), *options, f"--basetemp={basetemp}"], plugins=[outcomes])
    outcomes_file.write_text(json.dumps(outcomes.by_test))


def _missing_check(name: str) -> Callable[[], bool]:
    """Stands for a check of `trl.import_utils` that the checkout's tests import and the installed TRL has not."""
    if not (name.startswith("is_") and name.endswith("_available")):
        raise AttributeError(f"module 'trl.import_utils' has no attribute {name!r}")
    return lambda: False


def _default_to_fp32(config_class: type) -> None:
    """Lets TRL's configuration, which takes bf16 by default, be made on a machine without an accelerator."""
    post_init = config_class.__post_init__

    def fp32_post_init(self):
        self.bf16 = bool(self.bf16)
        post_init(self)

    config_class.__post_init__ = fp32_post_init


# Both sides, and the comparison


def compare(checkout: Path) -> tuple[str, bool]:
    """Runs both sides on one set of stand-ins; gives the report, and whether ours passes all that TRL's does."""
    with tempfile.TemporaryDirectory() as folder:
        write_stand_ins(Path(folder))
        trls, ours = (_outcomes(checkout, side, Path(folder)) for side in SIDES)
    if not any(outcome == PASSED for outcome, _ in trls.values()):
        raise RuntimeError(f"No test of {checkout / SUITE} passes with TRL's own classes; see pytest's output above.")
    ours = {test: ours.get(test, ("not run", "")) for test in trls}
    lost = [test for test, (outcome, _) in trls.items() if outcome == PASSED and ours[test][0] != PASSED]
    return _report(trls, ours, lost), not lost


def _outcomes(checkout: Path, side: str, folder: Path) -> dict[str, tuple[str, str]]:
    outcomes_file = folder / f"outcomes-{side}.json"
    command = [sys.executable, __file__, str(checkout), "--side", side, "--output", str(outcomes_file)]
    hub = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    subprocess.run(command, cwd=folder, env={**os.environ, **hub, "PYTHONDONTWRITEBYTECODE": "1"}, check=True)
    return json.loads(outcomes_file.read_text())


def _report(trls: dict, ours: dict, lost: list[str]) -> str:
    lines = [f"trl {trl.__version__}, trl_rlp {trl_rlp.__version__}, {len(trls)} tests of {SUITE}", ""]
    lines += ["| classes | passed | failed | skipped |", "|---|---|---|---|"]
    for side, outcomes in zip(SIDES, (trls, ours), strict=True):
        ends = [outcome for outcome, _ in outcomes.values()]
        lines.append(f"| {side} | {ends.count(PASSED)} | {ends.count('failed')} | {ends.count('skipped')} |")
    lines += ["", f"Pass with trl, not with trl_rlp: {len(lost) or 'none'}"]
    lines += [f"- {test}: {': '.join(ours[test])}" for test in lost]
    rest = {test: end for test, end in trls.items() if end[0] != PASSED}
    lines += ["", f"Do not pass with trl: {len(rest) or 'none'}"]
    lines += [f"- {test}: {': '.join(end)} ({ours[test][0]} with trl_rlp)" for test, end in rest.items()]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(description="Run TRL's tests of its reward trainer on trl_rlp's.")
    parser.add_argument("checkout", type=Path, help="folder of a checkout of TRL")
    parser.add_argument("--output", type=Path, help="file for the report")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # for the process of one side
    args = parser.parse_args()
    checkout = args.checkout.resolve()
    if args.side:
        run_side(checkout, args.side, args.output)
        return 0
    report, is_drop_in = compare(checkout)
    sys.stdout.write(report)
    if args.output:
        args.output.write_text(report)
    return 0 if is_drop_in else 1


if __name__ == "__main__":
    sys.exit(main())
