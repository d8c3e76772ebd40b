"""Metrics for Hugging Face `evaluate`, each in a folder with its card: `evaluate.load(metric_path("win_rate"))`."""

from pathlib import Path


FOLDER = Path(__file__).parent
METRICS = ("best_of_n", "length_controlled_win_rate", "preference_accuracy", "win_rate")


def metric_path(name: str) -> str:
    """
    Gives what `evaluate.load` takes for one of this package's metrics.

    Args:
        name (`str`):
            One of [`METRICS`].

    Returns:
        `str`: a folder.

    Raises:
        ValueError: if there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"There is no metric {name!r}. Choose one of {list(METRICS)}.")
    return str(FOLDER / name)
