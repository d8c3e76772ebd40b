"""Seeds of single prompts and samples, so that a draw depends on no other prompt."""

import numpy as np


def derive_seed(*numbers: int, bits: int = 62) -> int:
    """
    Derives a seed from the seed of a call and the position of a draw.

    Args:
        numbers (`int`):
            Seed of the call, then for example the row of the prompt. At least 0.
        bits (`int`, *optional*, defaults to `62`):
            Size of the result. Some servers read an int32, and vLLM adds the number of the sample to an int64.

    Returns:
        `int`: Number in [0, 2**bits).

    Example:

    ```python
    >>> from trl_rlp.data.sampling.seeds import derive_seed

    >>> derive_seed(42, 0) == derive_seed(42, 0), derive_seed(42, 0) == derive_seed(42, 1)
    (True, False)

    ```
    """
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> (64 - bits)
