# /// script
# requires-python = ">=3.11"
# dependencies = []
# ///
"""
Cost of RLP's stages: GPU-seconds per prompt from floating-point operations, memory traffic and utilization.

    python examples/scale/cost.py --prompts 1000000

prints the table of docs/scale.md. N is the number of parameters outside the embeddings. A forward pass takes 2N
floating-point operations per token, and training takes 6N. A decoding step reads all weights once for the whole batch,
and the keys and values of every row, so memory bandwidth bounds it unless the batch is very large. The operations of
attention are left out: below a few thousand tokens they are less than a tenth.

The model counts useful tokens. It leaves out loading, compilation, padding, and GPUs that wait for each other.
"""

import argparse
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Device:
    """
    Speed of a GPU, and the share of it that each kind of work reaches.

    Args:
        name (`str`):
            Name of the card.
        flops (`float`):
            Floating-point operations per second of a large bf16 matrix product.
        bandwidth (`float`):
            Bytes per second that the memory moves.
        forward_utilization (`float`, *optional*, defaults to `0.4`):
            Share of `flops` in forward passes (prefill and scoring), in (0, 1].
        nli_utilization (`float`, *optional*, defaults to `0.25`):
            Share of `flops` of the NLI classifier, in (0, 1]. Its pairs are short.
        training_utilization (`float`, *optional*, defaults to `0.35`):
            Share of `flops` in training, in (0, 1].
        bandwidth_utilization (`float`, *optional*, defaults to `0.5`):
            Share of `bandwidth` in decoding, in (0, 1].
    """

    name: str
    flops: float
    bandwidth: float
    forward_utilization: float = 0.4
    nli_utilization: float = 0.25
    training_utilization: float = 0.35
    bandwidth_utilization: float = 0.5


H100 = Device("H100", flops=800e12, bandwidth=3.0e12)
"""Assumed, not measured by this project. gpu_check.py measures all six numbers."""


@dataclass(frozen=True)
class Workload:
    """
    Sizes of a refinement, with the defaults of an 8B policy.

    Args:
        policy (`float`, *optional*, defaults to `7.5e9`):
            Parameters of the policy, with its LM head and without its embedding.
        reward_model (`float`, *optional*, defaults to `7.0e9`):
            Parameters of the reward model outside its embeddings.
        nli (`float`, *optional*, defaults to `0.35e9`):
            Parameters of the NLI classifier outside its embeddings, about those of DeBERTa-large.
        num_generations (`int`, *optional*, defaults to `10`):
            Completions per prompt (n in the paper).
        prompt_tokens (`int`, *optional*, defaults to `128`):
            Tokens of a prompt.
        completion_tokens (`int`, *optional*, defaults to `256`):
            Tokens of a completion.
        pairs_per_prompt (`float`, *optional*, defaults to `35`):
            Pairs of completions that the NLI classifier reads per prompt. All pairs in both directions are 90. The
            default is the share of them that docs/clustering.md measured on long completions.
        pair_tokens (`int`, *optional*, defaults to `512`):
            Tokens of an NLI pair.
        synthetic_share (`float`, *optional*, defaults to `0.5`):
            Share of the prompts that give a synthetic pair, in [0, 1].
        epochs (`float`, *optional*, defaults to `1`):
            Passes over the synthetic pairs and the views in the training of the reward model.
        cache_bytes (`float`, *optional*, defaults to `131072`):
            Bytes of keys and values per token of the policy, in bf16.
        decoding_rows (`int`, *optional*, defaults to `256`):
            Completions that are decoded together on a GPU.
    """

    policy: float = 7.5e9
    reward_model: float = 7.0e9
    nli: float = 0.35e9
    num_generations: int = 10
    prompt_tokens: int = 128
    completion_tokens: int = 256
    pairs_per_prompt: float = 35
    pair_tokens: int = 512
    synthetic_share: float = 0.5
    epochs: float = 1
    cache_bytes: float = 131_072
    decoding_rows: int = 256


def compute_stage_seconds(work: Workload, device: Device) -> dict[str, float]:
    r"""
    Computes the GPU-seconds per prompt of each data stage, and of the training on its results.

    $$\text{decode} = \frac{n\,T}{R} \max\left(\frac{2N + R\,c\,(P + T/2)}{\text{bandwidth} \cdot u},
    \frac{2N R}{\text{flops} \cdot u'}\right)$$

    n completions of T tokens follow a prompt of P tokens. R rows are decoded together, and c are the bytes of a token
    in the cache. In bf16, the weights have 2N bytes. Each other stage is its operations divided by the speed that it
    reaches. A prompt is read once for its n completions. Training reads two completions per synthetic pair and two
    views per prompt.

    Args:
        work ([`Workload`]):
            Sizes.
        device ([`Device`]):
            Speed of one GPU.

    Returns:
        `dict[str, float]`: Seconds of one GPU per prompt, for `prefill`, `decode`, `nli`, `score` and `train`.

    Example:

    ```python
    >>> list(compute_stage_seconds(Workload(), H100))
    ['prefill', 'decode', 'nli', 'score', 'train']
    ```
    """
    n, text_tokens = work.num_generations, work.prompt_tokens + work.completion_tokens
    forward = device.flops * device.forward_utilization
    cache = work.decoding_rows * work.cache_bytes * (work.prompt_tokens + work.completion_tokens / 2)
    memory_seconds = (2 * work.policy + cache) / (device.bandwidth * device.bandwidth_utilization)
    step_seconds = max(memory_seconds, 2 * work.policy * work.decoding_rows / forward)
    trained_tokens = work.epochs * (2 * work.synthetic_share + 2) * text_tokens
    return {
        "prefill": 2 * work.policy * work.prompt_tokens / forward,
        "decode": n * work.completion_tokens / work.decoding_rows * step_seconds,
        "nli": 2 * work.nli * work.pairs_per_prompt * work.pair_tokens / (device.flops * device.nli_utilization),
        "score": 2 * work.reward_model * n * text_tokens / forward,
        "train": 6 * work.reward_model * trained_tokens / (device.flops * device.training_utilization),
    }


def compute_gpu_hours(prompts: int, seconds_per_prompt: float) -> float:
    """
    Converts GPU-seconds per prompt to GPU-hours.

    Args:
        prompts (`int`):
            Number of prompts.
        seconds_per_prompt (`float`):
            Seconds of one GPU per prompt.

    Returns:
        `float`: Hours of one GPU.
    """
    return prompts * seconds_per_prompt / 3600


EXAMPLES = {
    "1B": Workload(policy=1.2e9, reward_model=1.0e9, cache_bytes=32_768),
    "3B": Workload(policy=3.2e9, reward_model=2.8e9, cache_bytes=114_688),
    "8B": Workload(),
    "8B, 64 rows": replace(Workload(), decoding_rows=64),
}
"""Policies of the shapes of Llama 3.2 1B and 3B and Llama 3.1 8B, with a reward model of the same shape."""


def build_table(device: Device, prompts: tuple[int, ...]) -> str:
    """
    Builds the table of docs/scale.md.

    Args:
        device ([`Device`]):
            Speed of one GPU.
        prompts (`tuple[int, ...]`):
            Numbers of prompts, one column of GPU-hours each.

    Returns:
        `str`: A Markdown table with a row for each of `EXAMPLES`.
    """
    stages = list(compute_stage_seconds(Workload(), device))
    header = ["policy", *(f"{name} (ms)" for name in stages), *(f"{count:,} prompts (GPU-hours)" for count in prompts)]
    lines = [header, ["---"] * len(header)]
    for name, work in EXAMPLES.items():
        seconds = compute_stage_seconds(work, device)
        hours = [compute_gpu_hours(count, sum(seconds.values())) for count in prompts]
        milliseconds = [f"{1000 * value:.1f}" for value in seconds.values()]
        lines.append([name, *milliseconds, *(f"{value:.3g}" for value in hours)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PROMPTS = (10_000, 100_000, 1_000_000)
"""Numbers of prompts of the table in docs/scale.md."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, nargs="+", default=list(PROMPTS), help="numbers of prompts")
    for name in ("flops", "bandwidth", "forward_utilization", "nli_utilization"):
        parser.add_argument(f"--{name}", type=float, default=vars(H100)[name])
    for name in ("training_utilization", "bandwidth_utilization"):
        parser.add_argument(f"--{name}", type=float, default=vars(H100)[name])
    arguments = vars(parser.parse_args())
    prompts = tuple(arguments.pop("prompts"))
    print(build_table(replace(H100, **arguments), prompts))


if __name__ == "__main__":
    main()
