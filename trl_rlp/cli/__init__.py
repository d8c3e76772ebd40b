"""The command line: argument parsing only, the work is done by the packages below."""

from trl_rlp.cli.main import main


__all__ = ["main"]
