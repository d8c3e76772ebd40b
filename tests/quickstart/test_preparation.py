import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.quickstart.preparation import train_sft
from trl_rlp.quickstart.quickstart_config import DEMONSTRATIONS, lora
from trl_rlp.report.training_log import read_training_log


def test_sft_saves_a_plain_model_that_has_learned(tmp_path):
    tokenizer = tiny_tokenizer(chat=False)
    base = save(tiny_causal_lm(tokenizer), tokenizer, tmp_path / "base")
    rows = Dataset.from_list([{"prompt": f"Question: {i}?\nAnswer:", "completion": " yes"} for i in range(8)])
    (tmp_path / "sft").mkdir()
    args = {**DEMONSTRATIONS, "learning_rate": 1e-2, "max_steps": 8, "use_cpu": True}
    metrics = train_sft(tmp_path / "sft", base, rows, args, lora(base, 1.0))
    assert metrics["train_loss"] > 0
    assert read_training_log(tmp_path / "sft").last("train_loss") == metrics["train_loss"]
    before, after = (AutoModelForCausalLM.from_pretrained(path) for path in (base, tmp_path / "sft"))
    batch = tokenizer(["Question: 3?\nAnswer: yes<eos>"], return_tensors="pt")
    losses = [model(**batch, labels=batch["input_ids"]).loss for model in (before, after)]
    assert losses[1] < losses[0]
    assert all("lora" not in name for name in after.state_dict())
    assert not torch.equal(before.model.layers[-1].mlp.up_proj.weight, after.model.layers[-1].mlp.up_proj.weight)
