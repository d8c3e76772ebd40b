"""The estimate of memory, compared with tensors that are in memory."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model
from torch.autograd.graph import saved_tensors_hooks
from transformers import AutoModelForSequenceClassification, LlamaConfig

from tests.tiny_models import save, tiny_causal_lm, tiny_nli, tiny_tokenizer
from trl_rlp.data.sampling.token_budget import LOGIT_BYTES
from trl_rlp.memory_estimate import (
    RunShape,
    StageMemory,
    Training,
    estimate_inference,
    estimate_memory,
    estimate_sampling,
    format_gib,
    measure_model,
    read_run_shape,
)
from trl_rlp.pipeline_config import RLPConfig
from trl_rlp.storage.device_memory import GIB
from trl_rlp.trainer.score_head import keep_trained_head_in_fp32


ON_CPU = {"use_cpu": True, "bf16": False, "gradient_checkpointing": False}
LORA = {"r": 2, "target_modules": ["q_proj"]}


def llama_config(**sizes):
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    defaults = {"hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 3, "vocab_size": 128}
    return LlamaConfig(**{**heads, **defaults, "pad_token_id": 0, "num_labels": 1, **sizes})


def count_bytes(tensors):
    return sum({tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}.values())


@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_weights_gradients_and_adam_are_those_in_memory(dtype, peft):
    """The one number of an optimizer state that is left out is the step, 4 bytes per tensor."""
    config = llama_config()
    peft_config = None if peft is None else LoraConfig(task_type="SEQ_CLS", **peft)
    size = measure_model(config, is_classifier=True, peft_config=peft_config)
    model = AutoModelForSequenceClassification.from_config(config, dtype=dtype)
    if peft_config is not None:
        model = get_peft_model(model, peft_config)
        keep_trained_head_in_fp32(model)  # as the trainers do
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        model(input_ids=torch.ones(1, 4, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    estimate = Training(4, dtype.itemsize, dtype == torch.bfloat16).estimate(size)
    assert size.trainable == sum(parameter.numel() for parameter in trained)
    assert estimate.weights == count_bytes(model.parameters())
    assert estimate.gradients == count_bytes(parameter.grad for parameter in trained)
    states = [tensor for state in optimizer.state.values() for tensor in state.values()]
    assert estimate.optimizer == count_bytes(states) - 4 * len(trained)


@pytest.mark.parametrize("checkpoints", [False, True], ids=["kept", "checkpoints"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "autocast"])
def test_activations_are_close_to_those_that_autograd_saves(kind, checkpoints):
    """Counts every tensor that is saved for the backward pass of all layers but one, without the weights."""
    dtype = torch.bfloat16 if kind == "bfloat16" else torch.float32
    counted, estimated = [], []
    for num_layers in (1, 4):
        config = llama_config(num_hidden_layers=num_layers)
        size = measure_model(config, is_classifier=True)
        model = AutoModelForSequenceClassification.from_config(config, dtype=dtype).train()
        if checkpoints:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        ids = torch.randint(1, 128, (2, 128))
        counted.append(count_saved_bytes(model, ids, kind == "autocast"))
        training = Training(ids.numel(), dtype.itemsize, kind == "autocast", checkpoints)
        copies = 0 if checkpoints or kind != "autocast" else 2 * size.parameters
        estimated.append(training.estimate(size).activations - training._copies(size) + copies)
    assert estimated[1] - estimated[0] == pytest.approx(counted[1] - counted[0], rel=0.05)


def count_saved_bytes(model, ids, uses_autocast):
    weights, saved = {weight.untyped_storage().data_ptr() for weight in model.parameters()}, []

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            saved.append(tensor)
        return tensor

    autocast = torch.autocast("cpu", torch.bfloat16, enabled=uses_autocast)
    with saved_tensors_hooks(pack, lambda tensor: tensor), autocast:
        # The scores stay alive until the tensors are counted.
        scores = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return count_bytes(saved) + 0 * len(scores)


def test_the_kv_cache_is_that_of_generation():
    tokenizer = tiny_tokenizer()
    model = tiny_causal_lm(tokenizer)
    cache = model(torch.ones(3, 7, dtype=torch.long), use_cache=True).past_key_values
    tensors = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]
    size = measure_model(model.config)
    logits = 3 * LOGIT_BYTES * size.vocabulary_size
    assert estimate_sampling(size, 4, 3, 7).sampling == count_bytes(tensors) + logits
    assert estimate_inference(size, 4).weights == count_bytes(model.parameters())


def test_the_peak_has_either_activations_or_sampling():
    memory = StageMemory(weights=GIB, gradients=GIB, activations=GIB) + StageMemory(optimizer=GIB, sampling=3 * GIB)
    assert memory.peak == 6 * GIB and format_gib(memory)["peak"] == "6.0"


def test_processes_share_or_copy():
    """Four processes keep a quarter each, and gather two layers. Without sharding they exchange copied gradients."""
    size = measure_model(llama_config(vocab_size=1, num_hidden_layers=100), is_classifier=True)
    one, copied, sharded = (
        Training(8, num_processes=processes, is_sharded=is_sharded).estimate(size)
        for processes, is_sharded in ((1, False), (4, False), (4, True))
    )
    assert (copied.weights, copied.gradients, copied.optimizer) == (one.weights, 2 * one.gradients, one.optimizer)
    assert (sharded.gradients, sharded.optimizer) == (one.gradients / 4, one.optimizer / 4)
    assert one.weights / 4 < sharded.weights < one.weights / 3


def run_config(**settings):
    args = {"reward_args": ON_CPU, "policy_args": {**ON_CPU, "per_device_train_batch_size": 2}}
    return RLPConfig(
        output_dir="unused", sft_model="unused", num_generations=4, max_new_tokens=8, **{**args, **settings}
    )


def estimate(device="cuda", has_evaluation=False, **settings):
    shape = RunShape(llama_config(), llama_config(), 8, has_evaluation=has_evaluation, device=torch.device(device))
    return estimate_memory(run_config(**settings), shape)


def test_a_policy_stage_holds_policy_reference_critic_and_reward_model():
    weights = measure_model(llama_config()).parameters
    body = measure_model(llama_config(), is_classifier=True).parameters
    full, lora = estimate("cpu"), estimate("cpu", policy_peft=LORA)
    assert full["policy"].weights == 4 * (2 * weights + 2 * body) and full["policy"] == full["retrained_policy"]
    assert full["policy"].gradients == 4 * (weights + body) == full["policy"].optimizer / 2
    assert 4 * (weights + 2 * body) < lora["policy"].weights < full["policy"].weights
    assert lora["policy"].gradients < full["policy"].gradients / 50
    without_reference = estimate("cpu", policy_trainer="grpo", policy_args={**ON_CPU, "num_generations": 2})
    assert without_reference["policy"].weights == 4 * (weights + body)


@pytest.mark.parametrize("peft", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize(
    ("init", "reads_policy_tokens", "is_reward"),
    [(None, True, True), ("reward", True, True), ("policy", True, False), (None, False, False)],
)
def test_the_critic_has_the_body_of_the_model_that_it_starts_from(init, reads_policy_tokens, is_reward, peft):
    policy, reward = llama_config(), llama_config(hidden_size=128)
    body = measure_model(reward if is_reward else policy, is_classifier=True).parameters
    weights = measure_model(policy).parameters
    scorer = measure_model(reward, is_classifier=True).parameters
    shape = RunShape(policy, reward, 8, device=torch.device("cpu"), reward_reads_policy_tokens=reads_policy_tokens)
    config = run_config(policy_args={**ON_CPU, "value_model_init": init}, policy_peft=peft)
    memory = estimate_memory(config, shape)["retrained_policy"]
    if peft is None:
        assert memory.weights == 4 * (2 * weights + scorer + body)
        assert memory.gradients == 4 * (weights + body)
    else:  # with two small adapters
        assert memory.weights == pytest.approx(4 * (weights + scorer + body), rel=0.02)


def test_on_an_accelerator_models_that_only_infer_are_in_bf16_and_the_lm_head_is_fused():
    cpu, accelerator = estimate("cpu"), estimate("cuda")
    assert accelerator["gate"].weights == cpu["gate"].weights / 2
    assert estimate("cuda", inference_dtype="float32")["gate"] == cpu["gate"]
    size = measure_model(llama_config())
    logits = 8 * 2 * 8 * size.vocabulary_size  # 8 bytes, 2 rows, 8 tokens
    assert cpu["policy"].activations - accelerator["policy"].activations == logits


def test_a_server_samples_elsewhere():
    address = {"base_url": "http://localhost:8000/v1", "model": "policy"}
    server = estimate(engine="server", engine_args=address, has_evaluation=True)
    transformers = estimate(has_evaluation=True)
    assert server["policy_samples"] == StageMemory() and server["policy"] == transformers["policy"]
    assert server["evaluation"].sampling == 0 < transformers["evaluation"].sampling


@pytest.mark.parametrize("method", ["uml", "spg", "uml+spg"])
@pytest.mark.parametrize("has_evaluation", [False, True])
def test_the_stages_are_those_of_the_run(method, has_evaluation):
    stages = estimate(method=method, has_evaluation=has_evaluation)
    assert ("synthetic_preferences" in stages) == ("spg" in method) and ("evaluation" in stages) == has_evaluation
    views = stages["refined_reward_model"].activations > stages["reward_model"].activations
    assert views == ("uml" in method)


def test_the_shape_of_a_run_is_read_from_folders(tmp_path):
    tokenizer = tiny_tokenizer()
    policy, nli = tiny_causal_lm(tokenizer), tiny_nli(tokenizer)
    path, nli_path = save(policy, tokenizer, tmp_path / "policy"), save(nli, tokenizer, tmp_path / "nli")
    policy.name_or_path = path
    get_peft_model(policy, LoraConfig(task_type="CAUSAL_LM", **LORA)).save_pretrained(tmp_path / "adapter")
    settings = run_config()
    settings.sft_model, settings.reward_base_model = path, str(tmp_path / "adapter")
    prompts = Dataset.from_dict({"prompt": ["a", "abc"]})
    shape = read_run_shape(settings, prompts, nli_path, has_evaluation=True)
    assert shape.policy.to_dict() == shape.reward_base.to_dict() and shape.prompt_length == 3
    assert shape.equivalence.num_labels == 3 and not shape.is_sharded and shape.num_processes == 1
    assert shape.reward_reads_policy_tokens
    groups = estimate_memory(settings, shape)["groups"]
    assert groups.weights == count_bytes(nli.parameters())
    settings.reward_base_model = save(nli, tiny_tokenizer(offset=1), tmp_path / "other tokens")
    assert not read_run_shape(settings, prompts).reward_reads_policy_tokens
    settings.sft_model = "no-such/model"
    with pytest.raises(OSError, match="No model could be loaded from 'no-such/model'"):
        read_run_shape(settings, prompts)


def test_every_round_has_its_stages():
    plain, loop = estimate(rounds=2), estimate(rounds=2, anchor_weight=3.0)
    anchors = ["anchor_samples", "anchors"]
    assert list(loop) == [*anchors, *plain]
    two = {**ON_CPU, "num_generations": 2}
    assert list(estimate(method="uml", refine_every=8, policy_args=two))[:2] == ["anchor_samples", "reward_model"]
    sft = {"sample_from": "sft", "anchor_weight": 3.0}
    assert list(estimate(**sft))[:4] == ["policy_samples", "groups", "anchors", "reward_model"]
    assert list(estimate(sample_from="sft"))[:3] == ["reward_model", "policy_samples", "groups"]
    assert estimate(rounds=2, **sft) == {name: loop[name] for name in estimate(rounds=2, **sft)}
    assert loop.keys() - estimate(rounds=2, **sft).keys() == {"anchor_samples", "policy"}
    one_round = list(estimate())
    assert list(plain) == [*one_round, *(f"{name}_2" for name in one_round[2:])]
    assert plain["retrained_policy_2"] == plain["retrained_policy"] == plain["policy"] == loop["policy"]


@pytest.mark.parametrize("num_processes", [1, 2])
def test_step_5_has_room_for_a_refinement(num_processes):
    """
    A refinement comes when the policy has weights and AdamW states only. DDP keeps a copy of its gradients. With a
    large batch, the policy's own training needs more.
    """
    shape = RunShape(llama_config(), llama_config(), 8, num_processes=num_processes)
    small = {**ON_CPU, "per_device_train_batch_size": 2, "num_generations": 2}
    stages = estimate_memory(run_config(refine_every=8, policy_trainer="rloo", policy_args=small), shape)
    policy, reward = stages["policy"], stages["refined_reward_model"]
    refinement = reward + StageMemory(policy.weights, (num_processes - 1) * policy.gradients / 2, policy.optimizer)
    assert stages["retrained_policy"] == refinement and refinement.peak > policy.peak
    large = {"policy_args": {**ON_CPU, "per_device_train_batch_size": 512}}
    large["reward_args"] = {**ON_CPU, "max_length": 16}
    assert estimate(refine_every=8, **large)["retrained_policy"] == estimate(**large)["policy"]


def test_the_model_that_compares_with_anchors_is_in_memory_in_step_5():
    shape = RunShape(llama_config(), llama_config(), 8, equivalence=llama_config(num_labels=3))
    stages = estimate_memory(run_config(anchor_weight=3.0), shape)
    assert stages["retrained_policy"].weights - stages["policy"].weights == stages["groups"].weights > 0


@pytest.mark.parametrize(("inference_dtype", "bytes_per_weight"), [("auto", 4), ("bfloat16", 2)])
def test_an_equivalence_on_a_cpu_computes_in_fp32_unless_a_dtype_is_given(inference_dtype, bytes_per_weight):
    """The checkpoint has 16 bits. A reward model of the same config has 2 bytes per weight on a CPU, or as given."""
    half = llama_config(num_labels=3)
    half.dtype = torch.bfloat16
    shape = RunShape(llama_config(), llama_config(), 8, equivalence=half, device=torch.device("cpu"))
    weights = estimate_memory(run_config(inference_dtype=inference_dtype), shape)["groups"].weights
    assert weights == bytes_per_weight * measure_model(half, is_classifier=True).parameters
