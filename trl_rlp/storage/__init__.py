"""What is kept on disk: run folders, shards, models and datasets, and the fingerprints that identify them."""

from trl_rlp.storage.artifacts import load_data, load_policy, load_reward_model, save_data, save_model
from trl_rlp.storage.loading import load_rows
from trl_rlp.storage.run_folder import RunFolder


__all__ = ["RunFolder", "load_data", "load_policy", "load_reward_model", "load_rows", "save_data", "save_model"]
