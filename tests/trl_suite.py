"""
Runs TRL's own tests of its reward trainer on ours, to show that `RLPRewardTrainer` is a drop-in for `RewardTrainer`.

The tests are read from a checkout of TRL (https://github.com/huggingface/trl). The checkout is not changed. The tests
run twice, each time in its own process: once with TRL's classes, and once with `RLPRewardTrainer` and
`RLPRewardConfig` instead of them. Every test that passes with TRL's classes must pass with ours. Otherwise the script
lists the test and exits with 1.

The tests load models and datasets from the Hub. Here they load small local stand-ins: a folder contains each
repository under its name, and the tests run in that folder, where `from_pretrained` and `load_dataset` find them. The
stand-ins have the architectures and columns of the originals, but not their weights or texts. There is no stand-in for
the model with remote code.

Pytest does not collect this file. Run it by hand, on the TRL revision of the installed version or a similar one:

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
from tiny_models import save, tiny_tokenizer  # not `tests.tiny_models`, which would hide TRL's `tests`
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
"""Class and special settings of each model of `trl-internal-testing` that the tests load."""

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
"""Rows of the test split. The other 17 rows give nine training steps, and one test looks for their checkpoint."""


# Stand-ins for the repositories that the tests load from the Hub


def write_stand_ins(folder: Path) -> None:
    """Writes a stand-in for each repository that the tests load from the Hub, under its name in `folder`."""
    organization = folder / "trl-internal-testing"
    for name in MODELS:
        _write_model(organization / name)
    chat_tokenizer = _make_tokenizer("Qwen3-4B")
    chat_tokenizer.add_tokens(["<think>"])  # a token that the model without a chat template does not know yet
    chat_tokenizer.save_pretrained(folder / "Qwen" / "Qwen3-4B")
    _write_datasets(organization / "zen", _make_zen_rows())
    _write_datasets(organization / "toolcall", {"preference": list(_make_tool_rows())})


def _make_tokenizer(name: str) -> transformers.PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer(chat=False)
    if name not in WITHOUT_CHAT_TEMPLATE:
        tokenizer.chat_template = TOOL_TEMPLATE
    if name in WITHOUT_PAD_TOKEN:
        tokenizer.pad_token = None
    return tokenizer


def _write_model(folder: Path) -> None:
    class_name, settings = MODELS[folder.name]
    tokenizer = _make_tokenizer(folder.name)
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
    """Writes a dataset in the layout of the Hub: one file per split, and a card that lists the configurations."""
    card = ["---", "configs:"]
    for name, rows in configs.items():
        (folder / name).mkdir(parents=True)
        card += [f"- config_name: {name}", "  data_files:"]
        for split, part in {"train": rows[:-TEST_ROWS], "test": rows[-TEST_ROWS:]}.items():
            (folder / name / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
            card += [f"  - split: {split}", f"    path: {name}/{split}.jsonl"]
    (folder / "README.md").write_text("\n".join([*card, "---", ""]))


def _make_zen_rows() -> dict[str, list[dict]]:
    """Makes preferences in both formats, with an explicit and with an implicit prompt."""
    rows = []
    for pair in OPPOSITES.split(", "):
        word, opposite = pair.split()
        rows.append((f"The opposite of {word} is", f" {opposite}.", f" {word}, as ever."))
    explicit = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for prompt, chosen, rejected in rows]
    implicit = [{"chosen": prompt + chosen, "rejected": prompt + rejected} for prompt, chosen, rejected in rows]
    turns = [
        (_make_message("user", prompt), *(_make_message("assistant", text) for text in texts))
        for prompt, *texts in rows
    ]
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


def _make_message(role: str, content: str | None, **fields) -> dict:
    return {"role": role, "content": content, **fields}


def _make_tool_rows() -> Iterator[dict]:
    """Makes preferences whose chosen side calls a tool. The column `tools` contains the tools as JSON text."""
    for pair in OPPOSITES.split(", ")[:8]:
        word, opposite = pair.split()
        parameters = {"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]}
        function = {"name": f"look_up_{word}", "description": "Finds the opposite.", "parameters": parameters}
        call = {"type": "function", "function": {"name": function["name"], "arguments": {"word": word}}}
        yield {
            "prompt": [_make_message("user", f"What is not {word}?")],
            "chosen": [
                _make_message("assistant", None, tool_calls=[call]),
                _make_message("tool", opposite, name=function["name"]),
                _make_message("assistant", f"What is {opposite}."),
            ],
            "rejected": [_make_message("assistant", "I do not know.")],
            "tools": json.dumps([{"type": "function", "function": function}]),
        }


# One side: TRL's tests with one pair of classes


class Outcomes:
    """Pytest plugin that checks which classes are tested, and records the outcome of each test and its reason."""

    def __init__(self):
        self.by_test: dict[str, tuple[str, str]] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        for module in {item.module for item in items}:
            if (module.RewardTrainer, module.RewardConfig) != (trl.RewardTrainer, trl.RewardConfig):
                raise pytest.UsageError(f"{module.__file__} does not test the classes that `trl` exports.")

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
        """Replaces the fixture of the plugin `pytest-datadir`: returns the folder of TRL's test files."""
        return request.path.parent / "data"


def run_side(checkout: Path, side: str, outcomes_file: Path) -> None:
    """Runs the tests of `checkout` with the classes of `side` and writes the outcome of each test."""
    if side == "trl_rlp":
        trl.RewardTrainer, trl.RewardConfig = trl_rlp.RLPRewardTrainer, trl_rlp.RLPRewardConfig
    elif not torch.accelerator.is_available():
        _default_to_fp32(trl.RewardConfig)
    import_utils.__getattr__ = _replace_missing_check
    outcomes = Outcomes()
    options = ["-q", "--tb=no", "--disable-warnings", "-p", "no:cacheprovider"]
    basetemp = outcomes_file.with_suffix(".folders")
    pytest.main([str(checkout / SUITE), *options, f"--basetemp={basetemp}"], plugins=[outcomes])
    outcomes_file.write_text(json.dumps(outcomes.by_test))


def _replace_missing_check(name: str) -> Callable[[], bool]:
    """Replaces checks of `trl.import_utils` that the tests of the checkout import but the installed TRL lacks."""
    if not (name.startswith("is_") and name.endswith("_available")):
        raise AttributeError(f"module 'trl.import_utils' has no attribute {name!r}")
    return lambda: False


def _default_to_fp32(config_class: type) -> None:
    """Turns off the bf16 default of TRL's configuration, which fails on a machine without an accelerator."""
    post_init = config_class.__post_init__

    def fp32_post_init(self):
        self.bf16 = bool(self.bf16)
        post_init(self)

    config_class.__post_init__ = fp32_post_init


# Both sides, and the comparison


def compare(checkout: Path) -> tuple[str, bool]:
    """Runs both sides on the same stand-ins. Returns the report, and whether ours passes all that TRL's does."""
    with tempfile.TemporaryDirectory() as folder:
        write_stand_ins(Path(folder))
        theirs, ours = (_run_in_process(checkout, side, Path(folder)) for side in SIDES)
    if not any(outcome == PASSED for outcome, _ in theirs.values()):
        raise RuntimeError(
            f"No test of {checkout / SUITE} passes with TRL's own classes. See the output of pytest above."
        )
    ours = {test: ours.get(test, ("not run", "")) for test in theirs}
    lost = [test for test, (outcome, _) in theirs.items() if outcome == PASSED and ours[test][0] != PASSED]
    return _format_report(theirs, ours, lost), not lost


def _run_in_process(checkout: Path, side: str, folder: Path) -> dict[str, tuple[str, str]]:
    outcomes_file = folder / f"outcomes-{side}.json"
    command = [sys.executable, __file__, str(checkout), "--side", side, "--output", str(outcomes_file)]
    hub = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache")}
    subprocess.run(command, cwd=folder, env={**os.environ, **hub, "PYTHONDONTWRITEBYTECODE": "1"}, check=True)
    return json.loads(outcomes_file.read_text())


def _format_report(theirs: dict, ours: dict, lost: list[str]) -> str:
    lines = [f"trl {trl.__version__}, trl_rlp {trl_rlp.__version__}, {len(theirs)} tests of {SUITE}", ""]
    lines += ["| classes | passed | failed | skipped |", "|---|---|---|---|"]
    for side, outcomes in zip(SIDES, (theirs, ours), strict=True):
        results = [outcome for outcome, _ in outcomes.values()]
        lines.append(f"| {side} | {results.count(PASSED)} | {results.count('failed')} | {results.count('skipped')} |")
    lines += ["", f"Tests that pass with trl but not with trl_rlp: {len(lost) or 'none'}"]
    lines += [f"- {test}: {': '.join(ours[test])}" for test in lost]
    rest = {test: outcome for test, outcome in theirs.items() if outcome[0] != PASSED}
    lines += ["", f"Tests that do not pass with trl: {len(rest) or 'none'}"]
    lines += [f"- {test}: {': '.join(outcome)} ({ours[test][0]} with trl_rlp)" for test, outcome in rest.items()]
    return "\n".join([*lines, ""])


def main() -> int:
    parser = argparse.ArgumentParser(
        description="Runs TRL's tests of its reward trainer on the reward trainer of trl_rlp."
    )
    parser.add_argument("checkout", type=Path, help="folder with a checkout of TRL")
    parser.add_argument("--output", type=Path, help="file for the report")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)  # used by the process of one side
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
