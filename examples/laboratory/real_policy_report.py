"""The report of the experiment with policies on a real model: tables over seeds."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from provenance import join
from real_claims import build_claims_table
from real_methods import METHODS, PICK_METHODS, name_result
from real_runs import DATA, LoadedRuns, load_runs
from real_seed_table import PARTS
from real_settings import SETTINGS, RealSettings
from real_tables import Runs, compare_right, format_over_seeds, select_metric
from tables import Value, format_table, subtract

from trl_rlp.storage.json_files import write_json


POLICY_COLUMNS = {
    "correct, trained questions": (("trained", "right"), 3),
    "correct, held-out questions": (("heldout", "right"), 3),
    "KL, nats": (("kl",), 2),
    "r": (("trained", "proxy"), 2),
    "finished": (("trained", "finished"), 3),
    "characters": (("trained", "characters"), 1),
    "seconds": (("seconds",), 0),
}
"""Columns of the table of policies: the keys of the metric, and its digits."""

CLAIMS_NOTE = (
    "Claims are about the share of correct answers, except those that name r. The verdict follows from the interval "
    "of its row. 'Before correction only' means that the p that is corrected for all rows does not support it at .05."
)
DIFFERENCE_NOTE = (
    "The intervals are not corrected for their number. Without any effect, one in twenty would exclude 0. "
    "`known_answers` is trained with the answers of the trained questions, so it is a ceiling there and not a method."
)
SELECTION_NOTE = (
    "The samples are drawn at T = 1, and the policies above answer at T = .7. Compare the columns of this table with "
    "each other, and not with the policies. Within the majority, unfinished completions cannot be picked. Best of n "
    "may pick them, and they count as wrong."
)

CURVES = {"r, or the r̂ of that time": "rewards/reward_model/mean", "correct": "rewards/mark_known_answers/mean"}
"""Metrics of the training by window of rollouts. With refinement in the loop, each window has another r̂."""

COLUMNS = {"accuracy": 3, "decided": 0, "pairs": 0}
"""Metrics of labels, and their digits in a table."""


def write_report(folder: Path, settings_name: str, data: Sequence[Path] = ()) -> str:
    """
    Checks the runs of a folder and of other machines, and writes the page with all tables and the metrics by seed.

    Args:
        folder (`Path`):
            Folder of the runs, which gets the files.
        settings_name (`str`):
            Name of the settings of all runs.
        data (sequence of `Path`):
            Files `policies.json` of other reports, whose seeds are added.

    Returns:
        `str`: The page.
    """
    loaded = load_runs(folder, settings_name, data)
    page = build_page(loaded, SETTINGS[settings_name], settings_name)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DATA, {"settings": asdict(SETTINGS[settings_name]), "seeds": loaded.runs})
    (folder / "policies.md").write_text(page + "\n", encoding="utf-8")
    return page


def list_finished(runs: Runs, settings: RealSettings) -> list[tuple[str, float | None]]:
    """Lists the results that every seed has, as pairs of name and β: π_SFT, policies by method and β, and picks."""
    return [pair for pair in list_all(settings) if all(name_result(*pair) in run for run in runs.values())]


def list_all(settings: RealSettings) -> list[tuple[str, float | None]]:
    """Lists all results in the order of the tables, as pairs of name and β."""
    with_kl_coef = [(name, kl_coef) for name in METHODS for kl_coef in settings.kl_coefs]
    return [("pi_sft", None), *with_kl_coef, *((name, None) for name in PICK_METHODS)]


def describe_unfinished(unfinished: dict[int, list[str]]) -> str:
    """Names the seeds that are left out, with the results that they lack."""
    listed = [f"{seed} (lacks {', '.join(f'`{name}`' for name in names)})" for seed, names in unfinished.items()]
    return f" Unfinished seeds, not included: {join(listed)}." if listed else ""


def build_page(loaded: LoadedRuns, settings: RealSettings, settings_name: str) -> str:
    """Builds the page with all tables."""
    runs, results = loaded.runs, list_finished(loaded.runs, settings)
    claims = build_claims_table(runs, results, has_one_kl_coef=len(settings.kl_coefs) == 1)
    return "\n\n".join(
        [
            f"{len(runs)} seeds: {join(runs)}.{describe_unfinished(loaded.unfinished)} Settings: `{settings_name}`. "
            f"Commit: `{loaded.commit}`. Machine: {loaded.machines}. Each cell is the mean ± half the width of the "
            "95% interval over seeds (Student's t). Differences are paired by seed and by question.",
            f"## Policies\n\n{build_policy_table(runs, results)}",
            f"## Claims\n\n{claims}\n\n{CLAIMS_NOTE}",
            f"## Differences\n\n{build_difference_table(runs, results)}\n\n{DIFFERENCE_NOTE}",
            f"## Selection without training\n\n{build_selection_table(runs, settings)}\n\n{SELECTION_NOTE}",
            f"## Rewards and answers during the training\n\n{build_curve_table(runs, results, settings)}",
            f"## Verdicts of the anchors\n\n{build_verdict_table(runs, results, settings)}",
            f"## Synthetic preferences and picks\n\n{build_label_table(runs, results)}",
        ]
    )


def build_policy_table(runs: Runs, results: list[tuple[str, float | None]]) -> str:
    """Builds the table of all policies."""
    rows = []
    for name, kl_coef in results:
        result = name_result(name, kl_coef)
        cells = [
            format_over_seeds(runs, select_metric(result, *keys), digits) for keys, digits in POLICY_COLUMNS.values()
        ]
        rows.append([name, format_kl_coef(kl_coef), *cells])
    return format_table(["policy", "β", *POLICY_COLUMNS], rows)


def build_difference_table(runs: Runs, results: list[tuple[str, float | None]]) -> str:
    """Builds the table of differences in the share of correct answers from π_SFT, and from PPO and SPG at equal β."""
    rows = []
    for name, kl_coef in results:
        if name == "pi_sft":
            continue
        cells = []
        for part in PARTS:
            for other in (("pi_sft", None), ("ppo", kl_coef), ("spg", kl_coef)):
                if other not in results or other == (name, kl_coef):
                    cells.append("–")
                    continue
                gain = compare_right(name_result(name, kl_coef), name_result(*other), part)
                cells.append(format_over_seeds(runs, gain))
        rows.append([name, format_kl_coef(kl_coef), *cells])
    others = ("π_SFT", "PPO", "SPG")
    return format_table(["policy", "β", *(f"{text}: − {other}" for text in PARTS.values() for other in others)], rows)


def format_kl_coef(kl_coef: float | None) -> str:
    return "–" if kl_coef is None else f"{kl_coef:g}"


def build_selection_table(runs: Runs, settings: RealSettings) -> str:
    """Builds the table of what π_SFT answers with best-of-n, among all completions and within the majority."""
    rows = []
    for part, text in PARTS.items():
        for picker in ("r", "refined"):
            key = f"{part}, {picker}"
            values = {name: select_metric("picks", key, name) for name in ("single", "best", "majority")}
            cells = [format_over_seeds(runs, value) for value in values.values()]
            gains = [subtract(values["majority"], values[name]) for name in ("single", "best")]
            gains.append(select_metric("picks", key, "best_finished"))
            rows.append([text, picker, *cells, *(format_over_seeds(runs, gain) for gain in gains)])
    header = ["questions", "reward model", "one sample", f"best of {settings.best_of}", "the same within the majority"]
    header += ["majority − one sample", "majority − best", f"best of {settings.best_of}, finished"]
    return format_table(header, rows)


def build_curve_table(runs: Runs, results: list[tuple[str, float | None]], settings: RealSettings) -> str:
    """Builds the table of the reward model's score and the share of correct answers, by window of rollouts."""
    windows = list_windows(settings)
    rows = []
    for name, kl_coef in results:
        if name not in METHODS:
            continue
        for text, metric in CURVES.items():
            values = [select_curve(name_result(name, kl_coef), metric, window) for window in windows]
            cells = [format_over_seeds(runs, value) for value in values]
            if set(cells) != {"–"}:
                rows.append([name, format_kl_coef(kl_coef), text, *cells])
    return format_table(["policy", "β", "mean of", *(f"rollouts {first + 1}–{last}" for first, last in windows)], rows)


def list_windows(settings: RealSettings) -> list[tuple[int, int]]:
    """Lists the windows of rollouts, each as its first index and the index after its last."""
    return [
        (first, min(first + settings.window, settings.rollouts))
        for first in range(0, settings.rollouts, settings.window)
    ]


def select_curve(result: str, metric: str, window: tuple[int, int]) -> Value:
    """Returns the function that averages a metric of one seed over a window of rollouts."""

    def value(run: dict[str, Any]) -> float | None:
        values = [row[metric] for row in run[result]["curve"] if metric in row][slice(*window)]
        return sum(values) / len(values) if values else None

    return value


def build_verdict_table(runs: Runs, results: list[tuple[str, float | None]], settings: RealSettings) -> str:
    """Builds the table of how often the known answers contradict an anchor's "same", by window of rollouts."""
    rows = []
    for name, kl_coef in results:
        if not all("verdicts" in run[name_result(name, kl_coef)] for run in runs.values()):
            continue
        for text, top, bottom in (
            ("wrong, of those called the same", "contradicted", "same"),
            ("called the same, of those with an anchor", "same", "anchored"),
        ):
            result, windows = name_result(name, kl_coef), range(len(list_windows(settings)))
            values = [select_verdicts(result, index, top, bottom) for index in windows]
            rows.append([name, format_kl_coef(kl_coef), text, *(format_over_seeds(runs, value) for value in values)])
    header = [f"rollouts {first + 1}–{last}" for first, last in list_windows(settings)]
    return format_table(["policy", "β", "share", *header], rows)


def select_verdicts(result: str, index: int, top: str, bottom: str) -> Value:
    """Returns the function that divides two counts of a window of one seed, with `None` for a share of nothing."""

    def value(run: dict[str, Any]) -> float | None:
        counts = run[result]["verdicts"][index]
        return counts[top] / counts[bottom] if counts[bottom] else None

    return value


def build_label_table(runs: Runs, results: list[tuple[str, float | None]]) -> str:
    """Builds the table of pairs that a policy or a reward model is trained on, compared with the known answers."""
    sources: dict[str, tuple[str, ...]] = {"D̂ from π_SFT": ("refined", "synthetic")}
    sources |= {
        f"D̂ from π, β {kl_coef:g}": (name_result(name, kl_coef), "synthetic")
        for name, kl_coef in results
        if name == "spg" and kl_coef is not None
    }
    sources |= {f"majority_best, by {picker}": ("picks", f"pairs, {picker}") for picker in ("r", "refined")}
    rows = [
        [text, *(format_over_seeds(runs, select_metric(*keys, key), digits) for key, digits in COLUMNS.items())]
        for text, keys in sources.items()
    ]
    for picker in ("r", "refined"):
        picks = [
            format_over_seeds(runs, select_metric("picks", f"picks, {picker}", key), digits)
            for key, digits in (("right", 3), ("picks", 0))
        ]
        rows.append([f"picks, by {picker}", picks[0], "–", picks[1]])
    return format_table(["data", "chosen side or pick correct", "pairs with one correct side", "pairs or picks"], rows)
