"""Sampling of completions from a policy: with transformers, with vLLM, or from a server."""

from trl_rlp.data.sampling.engines import sample_completions
from trl_rlp.data.sampling.server_engine import sample_from_server


__all__ = ["sample_completions", "sample_from_server"]
