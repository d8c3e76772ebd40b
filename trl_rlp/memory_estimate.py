"""An estimate of the memory that each stage of Algorithm 1 needs on one device, by formula."""

import copy
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import str_to_bool
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    TrainingArguments,
)

from trl_rlp.data.batching import TOKENS_PER_FORWARD
from trl_rlp.data.sampling.token_budget import LOGIT_BYTES
from trl_rlp.data.turns import prompt_token_ids
from trl_rlp.pipeline_config import RefinementSettings, RLPConfig
from trl_rlp.rewards.reward_sources import shares_token_ids
from trl_rlp.storage.adapters import find_adapter
from trl_rlp.storage.artifacts import HUB_OPTIONS, explain_missing_model, load_tokenizer
from trl_rlp.storage.device_memory import GIB
from trl_rlp.storage.processes import process_state
from trl_rlp.storage.run_folder import round_name
from trl_rlp.storage.whole_weights import whole_weights
from trl_rlp.trainer.ppo.ppo_config import PPOConfig


NUM_PROMPTS = 256
"""Number of prompts that are tokenized to find the longest one."""

SCORED_TOKENS = 8192
"""Tokens of a forward pass of a reward model that scores, the default of [`score_rows`]."""

SAVED_BYTES = {"float32": (32, 8, 16), "bfloat16": (20, 4, 8), "autocast": (30, 4, 8)}
"""
Bytes per token that a layer keeps for the backward pass, per unit of its hidden size, of the width of its keys, and of
the width of its MLP. They were counted on Llama with `scaled_dot_product_attention`. `autocast` is bf16 autocast with
weights in fp32.
"""


@dataclass(frozen=True)
class ModelSize:
    """
    Sizes of a model that decide its memory.

    Args:
        parameters (`int`):
            Number of parameters, with adapters.
        trainable (`int`):
            Number of parameters that training changes: all of them, or those of the adapter.
        hidden_size (`int`):
            Width of the layers.
        intermediate_size (`int`):
            Width of the MLP.
        key_value_size (`int`):
            Width of the keys of a token, and of its values, in all heads together.
        num_layers (`int`):
            Number of layers.
        vocabulary_size (`int`):
            Number of logits of a token.
    """

    parameters: int
    trainable: int
    hidden_size: int
    intermediate_size: int
    key_value_size: int
    num_layers: int
    vocabulary_size: int


@dataclass(frozen=True)
class StageMemory:
    """
    Memory of a stage on one device, in bytes. All values are estimates.

    Args:
        weights (`float`, *optional*, defaults to `0.0`):
            Weights of all models that are in memory together.
        gradients (`float`, *optional*, defaults to `0.0`):
            Gradients of the trained weights. With DDP, also their copies that the processes exchange.
        optimizer (`float`, *optional*, defaults to `0.0`):
            Both moments of AdamW.
        activations (`float`, *optional*, defaults to `0.0`):
            Tensors of forward and backward passes, with logits and with copies of the weights in bf16.
        sampling (`float`, *optional*, defaults to `0.0`):
            KV cache and logits of sampling, which do not exist at the same time as `activations`.
    """

    weights: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    sampling: float = 0.0

    @property
    def peak(self) -> float:
        """Largest memory at one time, in bytes."""
        return self.weights + self.gradients + self.optimizer + max(self.activations, self.sampling)

    def __add__(self, other: "StageMemory") -> "StageMemory":
        """Returns the memory of two models that are in memory and at work together."""
        return StageMemory(**{entry.name: vars(self)[entry.name] + vars(other)[entry.name] for entry in fields(self)})


def measure_model(
    config: PreTrainedConfig,
    is_classifier: bool = False,
    peft_config: LoraConfig | None = None,
    trust_remote_code: bool = False,
) -> ModelSize:
    """
    Reads the sizes of a model from its config. The model is built without weights.

    Args:
        config (`transformers.PreTrainedConfig`):
            Config of the model.
        is_classifier (`bool`, *optional*, defaults to `False`):
            Whether the model is a sequence classifier. Otherwise it is a causal LM.
        peft_config (`LoraConfig`, *optional*):
            Configuration of the adapter that is trained.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to allow the code of a model on the Hub.

    Returns:
        [`ModelSize`]: The sizes.
    """
    auto_class = AutoModelForSequenceClassification if is_classifier else AutoModelForCausalLM
    with whole_weights(), torch.device("meta"):
        model = auto_class.from_config(copy.deepcopy(config), trust_remote_code=trust_remote_code)
        if peft_config is not None:
            model = get_peft_model(model, copy.deepcopy(peft_config))
    text = config.get_text_config()
    num_heads = getattr(text, "num_attention_heads", None) or 1  # Mamba has none
    head_size = getattr(text, "head_dim", None) or text.hidden_size // num_heads
    return ModelSize(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        trainable=sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad),
        hidden_size=text.hidden_size,
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        key_value_size=head_size * (getattr(text, "num_key_value_heads", None) or num_heads),
        num_layers=text.num_hidden_layers,
        vocabulary_size=text.vocab_size,
    )


@dataclass(frozen=True)
class Training:
    """
    How a model is trained.

    Args:
        num_tokens (`int`):
            Tokens of a micro-batch, with padding.
        weight_bytes (`int`, *optional*, defaults to `4`):
            Bytes of a weight: 4 in fp32, 2 in bf16. Adapters are in fp32.
        uses_autocast (`bool`, *optional*, defaults to `True`):
            Whether `bf16` is set.
        checkpoints (`bool`, *optional*, defaults to `True`):
            Whether `gradient_checkpointing` is set.
        num_processes (`int`, *optional*, defaults to `1`):
            Number of processes, each with a device.
        is_sharded (`bool`, *optional*, defaults to `False`):
            Whether the model is spread over the processes (FSDP, DeepSpeed ZeRO-3). Otherwise each has a copy.
    """

    num_tokens: int
    weight_bytes: int = 4
    uses_autocast: bool = True
    checkpoints: bool = True
    num_processes: int = 1
    is_sharded: bool = False

    def estimate(self, size: ModelSize) -> StageMemory:
        """
        Estimates the memory of one model in training.

        Args:
            size ([`ModelSize`]):
                The model.

        Returns:
            [`StageMemory`]: Its memory. The logits of a causal LM are not included.
        """
        frozen = size.parameters - size.trainable
        trained_bytes = 4 if frozen else self.weight_bytes
        gradients = size.trainable * trained_bytes
        shards = self.num_processes if self.is_sharded else 1
        is_copied = self.num_processes > 1 and not self.is_sharded  # DDP exchanges copies of the gradients
        return StageMemory(
            weights=(frozen * self.weight_bytes + gradients) / shards + self._gathered(size),
            gradients=gradients * (2 if is_copied else 1) / shards,
            optimizer=2 * gradients / shards,
            activations=self._activations(size) + self._copies(size) / shards,
        )

    def _activations(self, size: ModelSize) -> float:
        is_half = self.weight_bytes == 2
        kind = "bfloat16" if is_half else "autocast" if self.uses_autocast else "float32"
        widths = (size.hidden_size, size.key_value_size, size.intermediate_size)
        layer = self.num_tokens * sum(count * width for count, width in zip(SAVED_BYTES[kind], widths, strict=True))
        if not self.checkpoints:
            return size.num_layers * layer
        return layer + size.num_layers * self.num_tokens * size.hidden_size * (2 if is_half else 4)

    def _copies(self, size: ModelSize) -> float:
        """Autocast keeps copies of trained weights. Copies of frozen weights stay only for the backward pass."""
        if self.weight_bytes == 2 or not self.uses_autocast:
            return 0.0
        frozen = size.parameters - size.trainable
        return 2 * (size.trainable + (frozen / size.num_layers if self.checkpoints else frozen))

    def _gathered(self, size: ModelSize) -> float:
        """Two layers and the embedding, which sharding gathers for a moment."""
        if not self.is_sharded:
            return 0.0
        embedding = size.vocabulary_size * size.hidden_size
        whole = embedding + 2 * (size.parameters - embedding) / size.num_layers
        return whole * (2 if self.uses_autocast else self.weight_bytes)


def estimate_inference(size: ModelSize, weight_bytes: int, num_tokens: int = 0) -> StageMemory:
    """
    Estimates the memory of a model that only infers. One layer at a time has activations.

    Args:
        size ([`ModelSize`]):
            The model.
        weight_bytes (`int`):
            Bytes of a weight: 4 in fp32, 2 in bf16.
        num_tokens (`int`, *optional*, defaults to `0`):
            Tokens of a forward pass.

    Returns:
        [`StageMemory`]: Its memory.
    """
    layer = 4 * size.hidden_size + 3 * size.intermediate_size
    return StageMemory(weights=size.parameters * weight_bytes, activations=num_tokens * layer * weight_bytes)


def estimate_sampling(size: ModelSize, cache_bytes: int, num_sequences: int, length: int) -> StageMemory:
    """
    Estimates the memory that sampling needs besides the weights.

    Args:
        size ([`ModelSize`]):
            The policy.
        cache_bytes (`int`):
            Bytes of an entry of the KV cache: 4 in fp32, 2 in bf16.
        num_sequences (`int`):
            Number of completions that are sampled together.
        length (`int`):
            Length of a prompt and its completion, in tokens.

    Returns:
        [`StageMemory`]: KV cache and logits.
    """
    cache = 2 * size.num_layers * size.key_value_size * length * cache_bytes
    return StageMemory(sampling=num_sequences * (cache + LOGIT_BYTES * size.vocabulary_size))


@dataclass(frozen=True)
class RunShape:
    """
    What the estimate of a run needs to know besides its settings.

    Args:
        policy (`transformers.PreTrainedConfig`):
            Config of `sft_model`.
        reward_base (`transformers.PreTrainedConfig`):
            Config of the model that both reward models start from.
        prompt_length (`int`):
            Length of a prompt, in tokens.
        equivalence (`transformers.PreTrainedConfig`, *optional*):
            Config of the NLI classifier, if the run uses one.
        has_evaluation (`bool`, *optional*, defaults to `False`):
            Whether the policies are evaluated at the end.
        device (`torch.device`, *optional*, defaults to `torch.device("cuda")`):
            Kind of device. On an accelerator, models that only infer are in bf16, and PPO uses TRL's fused LM head.
        num_processes (`int`, *optional*, defaults to `1`):
            Number of processes, each with a device.
        is_sharded (`bool`, *optional*, defaults to `False`):
            Whether the trained models are spread over the processes.
        trust_remote_code (`bool`, *optional*, defaults to `False`):
            Whether to allow the code of a model on the Hub.
        reward_reads_policy_tokens (`bool`, *optional*, defaults to `True`):
            Whether the reward model reads the policy's tokens, so that PPO's value model can start from it.
    """

    policy: PreTrainedConfig
    reward_base: PreTrainedConfig
    prompt_length: int
    equivalence: PreTrainedConfig | None = None
    has_evaluation: bool = False
    device: torch.device = torch.device("cuda")
    num_processes: int = 1
    is_sharded: bool = False
    trust_remote_code: bool = False
    reward_reads_policy_tokens: bool = True

    def measure(
        self, config: PreTrainedConfig, is_reward_model: bool = False, peft_config: LoraConfig | None = None
    ) -> ModelSize:
        """
        Reads the sizes of a policy, or of a reward model or critic with the same body.

        Args:
            config (`transformers.PreTrainedConfig`):
                Config of the body.
            is_reward_model (`bool`, *optional*, defaults to `False`):
                Whether the model is a classifier with one label.
            peft_config (`LoraConfig`, *optional*):
                Configuration of the adapter that is trained.

        Returns:
            [`ModelSize`]: The sizes.
        """
        if is_reward_model:
            config = copy.deepcopy(config)
            config.num_labels = 1
        return measure_model(config, is_reward_model, peft_config, self.trust_remote_code)


def read_run_shape(
    config: RLPConfig, prompt_dataset: Dataset, equivalence_model: str | None = None, has_evaluation: bool = False
) -> RunShape:
    """
    Reads what the estimate of a run needs: configs of models, prompts and the launch of the processes.

    Args:
        config ([`RLPConfig`]):
            Settings of the run.
        prompt_dataset ([`~datasets.Dataset`]):
            Prompts U. The longest one of the first 256 counts.
        equivalence_model (`str`, *optional*):
            Folder or Hub name of the NLI classifier, if the run uses one.
        has_evaluation (`bool`, *optional*, defaults to `False`):
            Whether the policies are evaluated at the end.

    Returns:
        [`RunShape`]: Its values.
    """
    state = process_state()
    hub_options = {name: value for name, value in config.model_options().items() if name in HUB_OPTIONS}
    processing_class = load_tokenizer(config.sft_model, **hub_options)
    policy, reward_path = _load_config(config.sft_model, hub_options), config.reward_base_model or config.sft_model
    reads_tokens = reward_path == config.sft_model or shares_token_ids(
        load_tokenizer(reward_path, **hub_options), processing_class, policy.get_text_config().vocab_size
    )
    prompts = prompt_dataset["prompt"][:NUM_PROMPTS]
    zero_stage = os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE", "0")
    return RunShape(
        policy=policy,
        reward_base=_load_config(reward_path, hub_options),
        prompt_length=max(len(prompt_token_ids(prompt, processing_class)) for prompt in prompts),
        equivalence=None if equivalence_model is None else _load_config(equivalence_model, {}),
        has_evaluation=has_evaluation,
        device=state.device,
        num_processes=state.num_processes,
        is_sharded=str_to_bool(os.environ.get("ACCELERATE_USE_FSDP", "false")) == 1 or zero_stage == "3",
        trust_remote_code=hub_options.get("trust_remote_code", False),
        reward_reads_policy_tokens=reads_tokens,
    )


def _load_config(path: str | Path, hub_options: dict[str, Any]) -> PreTrainedConfig:
    """Loads the config of a model. An adapter has that of its base model."""
    with explain_missing_model(path):
        adapter = find_adapter(path, hub_options.get("revision"))
        if adapter is not None:
            path, hub_options = adapter.base_model_name_or_path, {**hub_options, "revision": adapter.revision}
        return AutoConfig.from_pretrained(path, **hub_options)


def estimate_memory(config: RLPConfig, shape: RunShape) -> dict[str, StageMemory]:
    """
    Estimates the memory of each stage of a run, on each device.

    The context of the device, the buffers of its libraries and fragments are not included. They take about 1 GiB.
    Heads of the multi-view loss are small and left out. Sampling with vLLM or a server is not included. Layers with a
    smaller cache, such as sliding windows, are counted as full attention, and all weights of a mixture of experts are
    counted.

    Args:
        config ([`RLPConfig`]):
            Settings of the run.
        shape ([`RunShape`]):
            The models, the length of the prompts and the devices.

    Returns:
        `dict[str, StageMemory]`: Memory by name of the stage, in the order of the stages.
    """
    policy, reward = shape.measure(shape.policy), shape.measure(shape.reward_base, is_reward_model=True)
    reward_bytes = _count_inference_bytes(config, shape, shape.reward_base)
    policy_bytes = _count_inference_bytes(config, shape, shape.policy)
    scoring = estimate_inference(reward, reward_bytes, SCORED_TOKENS)
    trained_reward = shape.measure(shape.reward_base, is_reward_model=True, peft_config=config.lora("reward"))
    training = _estimate_policy_training(config, shape, policy, estimate_inference(reward, reward_bytes))
    inference = estimate_inference(policy, policy_bytes)
    sampling = StageMemory()
    if config.engine == "transformers":
        length = shape.prompt_length + config.max_new_tokens
        num_sequences = max(config.num_generations, (config.tokens_per_batch or 0) // length)
        sampling = inference + estimate_sampling(policy, policy_bytes, num_sequences, length)
    settings, refinement = config.refinement_settings(), config.reward_config()
    groups = _estimate_groups(config, shape)
    steps = {"policy_samples": sampling}
    if refinement.needs_groups:
        steps["groups"] = groups
    stages: dict[str, StageMemory] = {}
    if settings.is_in_loop:
        anchors = {"anchors": groups} if settings.needs_anchors else {}
        stages = {**({"anchor_samples": sampling} if settings.trains_first_policy else steps), **anchors}
    stages["reward_model"] = _estimate_reward_training(config, shape, trained_reward, uses_views=False)
    if settings.trains_first_policy:
        stages["policy"] = training
    refined = _estimate_reward_training(config, shape, trained_reward, refinement.uses_views)
    if refinement.uses_synthetic_pairs:
        steps["synthetic_preferences"] = scoring
    steps |= {"refined_reward_model": refined, "gate": scoring}
    steps["retrained_policy"] = _add_in_loop(settings, shape, training, refined, groups)
    for number in range(1, config.rounds + 1):
        stages |= {round_name(name, number): memory for name, memory in steps.items()}
    if shape.has_evaluation:
        # The KL divergence needs two policies, and the logits of both in fp32 for the completions of a prompt.
        logits = 2 * 4 * config.num_generations * config.max_new_tokens * policy.vocabulary_size
        stages["evaluation"] = StageMemory(2 * inference.weights, activations=logits, sampling=sampling.sampling)
    return stages


def _add_in_loop(
    settings: RefinementSettings, shape: RunShape, training: StageMemory, refined: StageMemory, groups: StageMemory
) -> StageMemory:
    """Adds the equivalence's model, and a refinement, when the policy has no gradients and no activations."""
    if settings.needs_anchors:
        training = replace(training, weights=training.weights + groups.weights)
    if settings.refine_every is None:
        return training
    # DDP keeps the copies of gradients that the processes exchange.
    copies = training.gradients / 2 if shape.num_processes > 1 and not shape.is_sharded else 0.0
    waiting = StageMemory(weights=training.weights, gradients=copies, optimizer=training.optimizer)
    return max(training, waiting + refined, key=lambda memory: memory.peak)


def _estimate_groups(config: RLPConfig, shape: RunShape) -> StageMemory:
    if shape.equivalence is None:
        return StageMemory()
    size = measure_model(shape.equivalence, is_classifier=True, trust_remote_code=shape.trust_remote_code)
    weight_bytes = _count_inference_bytes(config, shape, shape.equivalence, dtype_on_cpu="float32")
    return estimate_inference(size, weight_bytes, TOKENS_PER_FORWARD)


def _estimate_reward_training(config: RLPConfig, shape: RunShape, size: ModelSize, uses_views: bool) -> StageMemory:
    args = config.reward_config()
    rows = 2 * args.per_device_train_batch_size + (2 * args.view_prompts_per_device if uses_views else 0)
    length = args.max_length or shape.prompt_length + config.max_new_tokens
    return _build_training(args, shape, shape.reward_base, rows * length).estimate(size)


def _estimate_policy_training(
    config: RLPConfig, shape: RunShape, policy: ModelSize, reward_model: StageMemory
) -> StageMemory:
    """Estimates policy, reference policy, critic and reward model. Policy and critic share a backward pass."""
    args, peft_config = config.policy_config(), config.lora("policy")
    given = config.policy_arguments()["args"]
    completion = given.get("max_completion_length") or given["response_length"]
    length, rows = shape.prompt_length + completion, args.per_device_train_batch_size
    training = _build_training(args, shape, shape.policy, rows * length)
    is_ppo = isinstance(args, PPOConfig)
    total = training.estimate(shape.measure(shape.policy, peft_config=peft_config)) + reward_model
    if is_ppo:
        value_peft_config = None if peft_config is None else replace(peft_config, task_type="SEQ_CLS")
        total += training.estimate(shape.measure(_find_critic_body(args, shape), True, value_peft_config))
    if peft_config is None and (is_ppo or args.beta):
        shards = shape.num_processes if shape.is_sharded else 1
        total += StageMemory(weights=policy.parameters * training.weight_bytes / shards)
    if not (is_ppo and shape.device.type != "cpu"):
        # Logits in fp32 and their gradient. In bf16, both also exist in bf16. The fused LM head has neither.
        total += StageMemory(activations=rows * completion * policy.vocabulary_size * (12 if args.bf16 else 8))
    num_sequences = args.per_device_train_batch_size * args.steps_per_generation
    cache_bytes = 2 if args.bf16 or training.weight_bytes == 2 else 4
    return total + estimate_sampling(policy, cache_bytes, num_sequences, length)


def _find_critic_body(args: PPOConfig, shape: RunShape) -> PreTrainedConfig:
    """Returns the config of the model that PPO's critic starts from, as `init_value_model` selects it."""
    is_policy = args.value_model_init == "policy" or not shape.reward_reads_policy_tokens
    return shape.policy if is_policy else shape.reward_base


def _build_training(
    args: TrainingArguments, shape: RunShape, model_config: PreTrainedConfig, num_tokens: int
) -> Training:
    dtype = (args.model_init_kwargs or {}).get("dtype", "float32")
    return Training(
        num_tokens=num_tokens,
        weight_bytes=_count_bytes(dtype, model_config),
        uses_autocast=bool(args.bf16 or args.fp16),
        checkpoints=args.gradient_checkpointing,
        num_processes=shape.num_processes,
        is_sharded=shape.is_sharded,
    )


def _count_inference_bytes(
    config: RLPConfig, shape: RunShape, model_config: PreTrainedConfig, dtype_on_cpu: str = "auto"
) -> int:
    chosen = None if config.inference_dtype == "auto" else config.inference_dtype
    is_cpu = shape.device.type == "cpu"
    return _count_bytes(chosen or (dtype_on_cpu if is_cpu else "bfloat16"), model_config)


def _count_bytes(dtype: str | torch.dtype, model_config: PreTrainedConfig) -> int:
    """Returns the bytes of a weight. `"auto"` is the dtype of the checkpoint, which its config names."""
    if dtype == "auto":
        dtype = model_config.dtype or "float32"
    return (getattr(torch, dtype) if isinstance(dtype, str) else dtype).itemsize


def format_gib(memory: StageMemory) -> dict[str, str]:
    """
    Formats the memory of a stage.

    Args:
        memory ([`StageMemory`]):
            The memory.

    Returns:
        `dict[str, str]`: GiB with one decimal, by kind, and `peak`.
    """
    return {name: f"{value / GIB:.1f}" for name, value in {**vars(memory), "peak": memory.peak}.items()}
