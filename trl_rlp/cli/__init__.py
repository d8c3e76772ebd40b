"""The command line `trl-rlp`. It parses arguments and prints results. The other packages do the work."""

from trl_rlp.cli.main import main


__all__ = ["main"]
