"""PPO on replayed completions, in one process or in two."""

import sys
from collections import Counter
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch.nn.parallel import DistributedDataParallel

from tests.ppo_runs import logged, ppo_config, ppo_trainer, prompts
from trl_rlp.storage.processes import leave_process_group
from trl_rlp.trainer.ppo.ppo_trainer import PPOTrainer


ROLLOUT = 4
SETTINGS = {
    "gradient_accumulation_steps": 1,
    "num_ppo_epochs": 2,
    "whiten_rewards": True,
    "normalize_rewards": True,
    "adaptive_kl": True,
    "learning_rate": 1e-3,
    "max_grad_norm": 0.5,
    "optim": "sgd",  # Adam takes steps of the same size for all gradients, also for rounding errors
    "shuffle_dataset": False,
}


def replay(trainer: PPOTrainer) -> None:
    """Replaces generation by completions of 1 to 4 tokens that depend only on the prompt."""

    def generate(prompt_ids, *args, **kwargs):
        return [[40 + (sum(ids) + place) % 50 for place in range(1 + sum(ids) % 4)] for ids in prompt_ids], None

    trainer._generate_single_turn = generate


def replicate_critic(trainer: PPOTrainer) -> None:
    """Uses the critic as under DeepSpeed: without a wrapper, so `CriticOptimizer` averages its gradients."""
    optimizer = trainer._critic_optimizer
    optimizer.critic = trainer._models.critic = trainer.accelerator.unwrap_model(optimizer.critic)
    trainer._checkpoints.critic = optimizer.critic
    optimizer._is_replicated = True


def run(folder: Path, processes: int, is_replicated: bool = False) -> PPOTrainer:
    trainer = ppo_trainer(folder, prompts(12), per_device_train_batch_size=ROLLOUT // processes, **SETTINGS)
    if is_replicated:
        replicate_critic(trainer)
    replay(trainer)
    trainer.train()
    return trainer


def count_reductions(folder: Path) -> dict[str, int]:
    """Trains with eight micro-batches per step. Returns how often DDP reduces the gradients of each model."""
    counts, wrap = Counter(), DistributedDataParallel.__init__

    def wrap_and_count(self, *args, **kwargs):
        wrap(self, *args, **kwargs)

        def reduce(name, bucket):
            counts[name] += bucket.is_last()
            buffer = bucket.buffer().div_(2)
            return torch.distributed.all_reduce(buffer, async_op=True).get_future().then(lambda done: done.value()[0])

        self.register_comm_hook(type(self.module).__name__, reduce)

    DistributedDataParallel.__init__ = wrap_and_count
    try:
        settings = {"gradient_accumulation_steps": 8, "num_ppo_epochs": 1, "num_mini_batches": 1, "total_episodes": 32}
        ppo_trainer(folder, prompts(32), per_device_train_batch_size=1, **settings).train()
    finally:
        DistributedDataParallel.__init__ = wrap
    return dict(counts)


def weights(trainer: PPOTrainer) -> list[torch.Tensor]:
    models = (trainer.policy_model, trainer.value_model)
    return [parameter.detach().clone() for model in models for parameter in model.parameters()]


def main(folder: Path, is_replicated: bool) -> None:
    torch.set_num_threads(1)
    smallest = ppo_config(folder, per_device_train_batch_size=1, gradient_accumulation_steps=1)
    assert smallest.generation_batch_size == 2  # one completion on each process can be whitened
    trainer = run(folder, 2, is_replicated)
    state = PartialState()
    assert state.num_processes == 2 and type(trainer.model_wrapped).__name__ == "DistributedDataParallel"
    mine, theirs = gather_object([[weight.tolist() for weight in weights(trainer)]])
    assert mine == theirs, "policy or critic differ between the processes"
    if state.is_main_process:
        torch.save({"log": logged(trainer), "weights": weights(trainer)}, folder / "two.pt")
    if not is_replicated:
        # Two steps: the critic's gradients are reduced once per step, as the policy's are.
        assert count_reductions(folder / "reductions") == {"LlamaForCausalLM": 2, "Critic": 2}
    sys.stdout.write("both processes agree\n")
    leave_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), is_replicated="replicated" in sys.argv[2:])
