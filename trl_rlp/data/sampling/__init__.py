"""Sampling of completions from a policy, in process or from a server."""

from trl_rlp.data.sampling.in_process import sample_completions
from trl_rlp.data.sampling.server import sample_from_server


__all__ = ["sample_completions", "sample_from_server"]
