"""Metrics for Hugging Face `evaluate`. Each has a folder with its card: `evaluate.load(metric_path("win_rate"))`."""

from pathlib import Path


FOLDER = Path(__file__).parent
METRICS = ("best_of_n", "length_controlled_win_rate", "preference_accuracy", "win_rate")


def metric_path(name: str) -> str:
    """
    Returns the path of a metric of this package, for `evaluate.load`.

    Args:
        name (`str`):
            One of [`METRICS`].

    Returns:
        `str`: Folder of the metric.

    Raises:
        ValueError: If there is no metric with this name.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}. Choose one of {list(METRICS)}.")
    return str(FOLDER / name)
