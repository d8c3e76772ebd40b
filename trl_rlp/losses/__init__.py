"""Floor 0: the arithmetic of the representation losses, in torch and nothing else."""

from trl_rlp.losses.mutual_information import (
    LOWER_BOUNDS,
    ZERO_INFORMATION,
    jsd_lower_bound,
    nce_lower_bound,
    nwj_lower_bound,
)


__all__ = [
    "LOWER_BOUNDS",
    "ZERO_INFORMATION",
    "jsd_lower_bound",
    "nce_lower_bound",
    "nwj_lower_bound",
]
