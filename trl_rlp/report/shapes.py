"""The shapes of the files that a report reads, and the check that a value has its shape."""

from collections.abc import Iterable
from functools import cache
from typing import Annotated, Any, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError


MAX_LEVELS = 100
"""Largest number of levels of lists and objects inside each other."""

MAX_NUMBER = 1e100
"""Largest absolute value of a finite number. Plots cannot show much larger ones."""


def require_shape(value: Any, shape: Any, name: str = "") -> Any:
    """
    Checks that a value has a shape.

    Args:
        value:
            What was read from a file.
        shape (`type`):
            A model of this file, or another type that pydantic knows. Values are not converted: a number in quotes is
            no number. Keys that the model does not have are not checked.
        name (`str`, *optional*, defaults to `""`):
            Name of the value, for error messages.

    Returns:
        The value, unchanged.

    Raises:
        ValueError: If it has another shape. The message names the first place that is wrong.

    Example:

    ```python
    >>> from trl_rlp.report.shapes import require_shape

    >>> require_shape({"scores": [1, 2.5]}, dict[str, list[float]])
    {'scores': [1, 2.5]}

    ```
    """
    _require_limits(value)
    try:
        _build_adapter(shape).validate_python(value, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, [name, *first["loc"]] if name else first["loc"]))
        reason = first["msg"].removeprefix("Value error, ").replace("Input should be", "not").split(" or instance")[0]
        found = "missing" if first["type"] == "missing" else f"{repr(first['input'])[:40]}, {reason}"
        raise ValueError(f"`{place}` is {found}" if place else f"it is {found}") from None
    return value


@cache
def _build_adapter(shape: Any) -> TypeAdapter:
    return TypeAdapter(shape)


def _require_limits(value: Any) -> None:
    """Checks sizes of numbers and the number of levels, without a recursion, which Python limits too."""
    level = [value]
    for _ in range(MAX_LEVELS):
        for item in level:
            if isinstance(item, int | float) and MAX_NUMBER < abs(item) < float("inf"):
                raise ValueError(f"a number has an absolute value above {MAX_NUMBER:g}")
        level = [part for item in level for part in _list_parts(item)]
        if not level:
            return
    raise ValueError(f"it has more than {MAX_LEVELS} levels of lists and objects")


def _list_parts(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def field_shape(model: type[BaseModel], name: str) -> Any:
    """
    Returns the shape of a field of a model.

    Args:
        model (`type[BaseModel]`):
            The model.
        name (`str`):
            Name of the field.

    Returns:
        Its type with the checks of its values. `Any` for a name that the model does not have.
    """
    return get_type_hints(model, include_extras=True).get(name, Any)


def _require_text(value: Any) -> Any:
    """Accepts what is shown as text: anything, if the parts of messages that are read have their types."""
    for message in value if isinstance(value, list) else ():
        if isinstance(message, dict):
            if not isinstance(message.get("role", ""), str):
                raise ValueError("a message whose `role` is not text")
            if not isinstance(message.get("tool_calls"), list | None):
                raise ValueError("a message whose `tool_calls` are not a list")
    return value


def _require_completion(value: Any) -> Any:
    messages = value if isinstance(value, list) else []
    if not isinstance(value, str) and not messages:
        raise ValueError("neither text nor messages")
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise ValueError("not a list of messages with a `role`")
        if not isinstance(message.get("content"), str | None):
            raise ValueError("a message whose `content` is not text")
    return _require_text(value)


def _require_answers(value: Any) -> Any:
    if not isinstance(value, str) and not (isinstance(value, list) and all(isinstance(text, str) for text in value)):
        raise ValueError("neither text nor a list of texts")
    return value


Text = Annotated[Any, AfterValidator(_require_text)]
Completion = Annotated[Any, AfterValidator(_require_completion)]
Answers = Annotated[Any, AfterValidator(_require_answers)]
Interval = Annotated[list[float], Field(min_length=2, max_length=2)]


class Settings(BaseModel):
    """`run.json`: the settings that a report reads."""

    method: str = ""
    rounds: int = Field(1, ge=0, le=1000)
    trainer_method: str = Field("", alias="args.rlp_method")
    trainer_rounds: int = Field(1, alias="args.rlp_rounds", ge=0, le=1000)
    threshold: FiniteFloat | None = None


class Stage(BaseModel):
    """`stage.json`: the result of a stage."""

    metrics: dict[str, Any] = {}
    seconds: FiniteFloat | None = None
    peak_memory_gib: float | None = None


class PairMetrics(BaseModel):
    """Metrics of a reward model on one set of pairs in the gate."""

    pairs: int = Field(gt=0)
    accuracy: Annotated[FiniteFloat, Field(ge=0, le=1)]
    calibration_error: FiniteFloat
    length_accuracy: float | None


class Difference(BaseModel):
    """Difference between two reward models on the same pairs."""

    accuracy: float
    standard_error: float | None


class Comparison(BaseModel):
    """Comparison of two reward models on one set of pairs."""

    before: PairMetrics
    after: PairMetrics
    difference: Difference


class Gate(BaseModel):
    """Metrics of the stage `gate`."""

    passed: bool
    problems: list[str]
    comparisons: dict[str, Comparison]


class Groups(BaseModel):
    """Metrics of the stage `groups`."""

    threshold: FiniteFloat | None = None


class PolicyMetrics(BaseModel):
    """Metrics of a policy in the stage `evaluation`."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, FiniteFloat | None]

    accuracy_standard_error: Annotated[FiniteFloat, Field(ge=0)] | None = None


STAGE_METRICS: dict[str, Any] = {
    "gate": Gate,
    "groups": Groups,
    "synthetic_preferences": dict[str, int],
    "evaluation": dict[str, PolicyMetrics],
}
"""Shapes of the metrics of those stages whose metrics a report reads by name."""


class TrainerState(BaseModel):
    """`trainer_state.json`: the state of a trainer."""

    log_history: list[dict[str, Any]]


class SampledRow(BaseModel):
    """A prompt with completions of a policy."""

    prompt: Text
    completions: list[Completion]
    finished: list[bool | None] | None = None


class SampleRow(SampledRow):
    """The same, with groups if they were grouped, and with known answers."""

    cluster_ids: list[int] | None = None
    confidence: float | None = None
    confidence_upper: float | None = None
    answers: Answers | None = None


class PreferenceRow(BaseModel):
    """A pair, or in shards also the reason why a prompt has no pair."""

    prompt: Text
    chosen: Completion | None
    rejected: Completion | None
    confidence: float | None = None
    confidence_upper: float | None = None
    reason: str | None = None
    chosen_reward: float | None = None
    rejected_reward: float | None = None
    sample_row: Annotated[int, Field(ge=0)] | None = None


class AnswersRow(BaseModel):
    """Known answers of a prompt, in the stage `gate`."""

    answers: Answers


class AnchorRow(BaseModel):
    """A prompt with its anchor."""

    prompt: Text
    anchor: Text = None
    confidence: float | None = None
    reason: str | None = None
    members: list[Text] | None = None


class LoggedRow(BaseModel):
    """A completion that a trainer logged."""

    prompt: Text = None
    completion: Text


class AnnotationRow(BaseModel):
    """An annotation of a judge."""

    instruction: Text
    output_1: Text
    output_2: Text
    preference: FiniteFloat | None


class DiscreteWinRate(BaseModel):
    """The metrics of AlpacaEval's leaderboard."""

    discrete_win_rate: float | None = None


class LengthControlled(BaseModel):
    """A win rate at equal length."""

    length_controlled_win_rate: float | None = None


class WinRate(BaseModel):
    """Win rate of one policy."""

    win_rate: float | None = None
    interval: Interval | None = None
    prompts: int | None = None
    wins: int | None = None
    draws: int | None = None
    losses: int | None = None
    missing: int | None = None
    alpaca_eval: DiscreteWinRate = DiscreteWinRate()
    length_controlled: LengthControlled | None = None


class WinRateDifference(BaseModel):
    """Difference of two win rates."""

    difference: float
    interval: Interval | None
    prompts: int


class JudgeCounts(BaseModel):
    """Counts of the answers of a judge."""

    asked: int
    unreadable: int
    cut: int
    refused: int


class LabeledPairs(BaseModel):
    """Metrics of a reward model on labeled pairs."""

    accuracy_interval: Interval | None = None
    sections: dict[str, float | None] = {}
    subsets: dict[str, float | None] = {}


class Evaluation(BaseModel):
    """`metrics.json` of `trl-rlp evaluate`."""

    win_rate: WinRate | None = None
    other_win_rate: WinRate | None = None
    comparison: WinRateDifference | None = None
    judge: JudgeCounts | None = None
    reward_model: LabeledPairs | None = None
    policy: dict[str, FiniteFloat | None] | None = None
