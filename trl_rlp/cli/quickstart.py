"""The command `trl-rlp quickstart`."""

from collections.abc import Sequence

from trl_rlp.cli.arguments import parse
from trl_rlp.quickstart.quickstart_config import QuickstartConfig
from trl_rlp.quickstart.quickstart_run import quickstart


def main(options: Sequence[str]) -> None:
    """
    Runs Algorithm 1 on SmolLM2-135M and prints the results.

    Args:
        options (`Sequence[str]`):
            Command-line arguments after `trl-rlp quickstart`.
    """
    (config,) = parse(
        "quickstart", "Runs all of RLP on SmolLM2-135M, within a time budget.", options, QuickstartConfig
    )
    quickstart(config)
