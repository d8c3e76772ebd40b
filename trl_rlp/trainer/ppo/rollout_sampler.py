"""The order of the prompts, which a resumed run finds again."""

from collections.abc import Callable, Iterator

from datasets import Dataset, IterableDataset
from torch.utils.data import Sampler

from trl_rlp.trainer.ppo.rlp_ppo_config import RLPPPOConfig


def data_seed(args: RLPPPOConfig) -> int:
    """
    Gives the seed of the order of the data.

    Args:
        args ([`RLPPPOConfig`]):
            `data_seed` is read, or `seed` where it is not set.

    Returns:
        `int`.
    """
    return args.seed if args.data_seed is None else args.data_seed


def repeat_stream(prompts: Dataset | IterableDataset, seed: int | None) -> Dataset | IterableDataset:
    """
    Gives a stream that begins anew at its end, as often as it is asked to; other data as they are.

    TRL's loop takes a stream for one long pass, and a resumed run finds its place by skipping that many rows.

    Args:
        prompts (`datasets.Dataset` or `datasets.IterableDataset`):
            Prompts.
        seed (`int`, *optional*):
            Of the order, which all passes share; `None` keeps the stream's own.

    Returns:
        `datasets.Dataset` or `datasets.IterableDataset`.
    """
    if not isinstance(prompts, IterableDataset):
        return prompts
    return (prompts if seed is None else prompts.shuffle(seed=seed)).repeat(None)


class RolloutSampler(Sampler):
    """
    Draws the order of each pass over the prompts from the seed and the pass alone.

    TRL's sampler draws it from a generator that runs on from pass to pass, so a run that is resumed in a later pass
    would get the first one's order.

    Args:
        sampler (`trl.trainer.utils.RepeatSampler`):
            TRL's, with a `generator` of its own where it shuffles.
        seed (`int`):
            Seed of the data.
        epoch (`Callable[[], int]`):
            Gives the number of the pass.
    """

    def __init__(self, sampler: Sampler, seed: int, epoch: Callable[[], int]):
        self.sampler, self.seed, self.epoch = sampler, seed, epoch

    def __iter__(self) -> Iterator[int]:
        if self.sampler.shuffle:
            self.sampler.generator.manual_seed(self.seed + self.epoch())
        yield from self.sampler

    def __len__(self) -> int:
        return len(self.sampler)
