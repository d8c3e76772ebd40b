import io

from rich.console import Console

from trl_rlp.cli.run import _build_policy_table


def test_a_metric_that_is_not_finite_is_printed_as_a_dash():
    """With a single prompt there is no standard error, which a stage stores as `None`."""
    console = Console(file=io.StringIO(), width=100)
    console.print(_build_policy_table({"sft": {"accuracy": 0.5, "accuracy_standard_error": None}}))
    text = console.file.getvalue()
    assert "0.500" in text and "-" in text.split("accuracy_standard_error")[1]
