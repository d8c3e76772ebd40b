"""Options that select a version on the Hub and allow its code, for what a trainer loads by name."""

from typing import Any

from trl import GRPOConfig, RewardConfig, RLOOConfig

from trl_rlp.storage.artifacts import HUB_OPTIONS


def hub_options(args: GRPOConfig | RewardConfig | RLOOConfig) -> dict[str, Any]:
    """
    Returns the options with which a trainer loads tokenizers and reward models by name, as in TRL.

    Args:
        args ([`~trl.GRPOConfig`] or [`~trl.RewardConfig`] or [`~trl.RLOOConfig`]):
            Configuration of the trainer. `model_init_kwargs` may set `revision` and `trust_remote_code`. The default
            is the field `trust_remote_code`.

    Returns:
        `dict`: Options of `from_pretrained`: `trust_remote_code`, and `revision` if it is set.
    """
    given = args.model_init_kwargs or {}
    options = {name: given[name] for name in HUB_OPTIONS if name in given}
    return {"trust_remote_code": args.trust_remote_code, **options}
