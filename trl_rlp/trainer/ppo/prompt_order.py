"""The order of the prompts, which a resumed run repeats."""

from collections.abc import Callable, Iterator

from datasets import Dataset, IterableDataset
from torch.utils.data import Sampler

from trl_rlp.trainer.ppo.ppo_config import PPOConfig


def get_data_seed(args: PPOConfig) -> int:
    """
    Returns the seed of the order of the prompts.

    Args:
        args ([`PPOConfig`]):
            Provides `data_seed`, or `seed` if it is not set.

    Returns:
        `int`: The seed.
    """
    return args.seed if args.data_seed is None else args.data_seed


def repeat_stream(prompts: Dataset | IterableDataset, seed: int | None) -> Dataset | IterableDataset:
    """
    Repeats a stream endlessly. Other datasets are returned unchanged.

    TRL's loop treats a stream as a single epoch, and a resumed run skips the rows that it has read.

    Args:
        prompts ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]):
            Prompts.
        seed (`int`, *optional*):
            Seed that shuffles the stream, the same way in each pass. `None` keeps its order.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`: Prompts.
    """
    if not isinstance(prompts, IterableDataset):
        return prompts
    return (prompts if seed is None else prompts.shuffle(seed=seed)).repeat(None)


class RolloutSampler(Sampler):
    """
    Orders the prompts of each epoch. The order depends only on the seed and the epoch.

    TRL's sampler uses one generator for all epochs. A run that resumes in a later epoch would see the order of the
    first epoch.

    Args:
        sampler (`trl.trainer.utils.RepeatSampler`):
            TRL's sampler, with its own `generator` if it shuffles.
        seed (`int`):
            Seed of the data.
        epoch (`Callable[[], int]`):
            Returns the current epoch.
    """

    def __init__(self, sampler: Sampler, seed: int, epoch: Callable[[], int]):
        self.sampler, self.seed, self.epoch = sampler, seed, epoch

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.seed + self.epoch())
        yield from self.sampler

    def __len__(self) -> int:
        return len(self.sampler)
