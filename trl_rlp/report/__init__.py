"""The report of a run: what its folder holds, as one HTML file that is safe to open."""

from trl_rlp.report.run_report import write_report


__all__ = ["write_report"]
