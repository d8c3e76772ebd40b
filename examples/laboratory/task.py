"""
A world of 40 facts, whose gold reward is known: what one asks about it, what can be answered, and what that is worth.

An answer has an opener, one of eight statements and up to six fillers, so that one value has many surface forms. The
gold reward wants the right value, likes a few fillers and dislikes many, and takes off for hedging, for fillers that
come twice and for what is no answer at all.
"""

import hashlib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from datasets import Dataset


ANIMALS = "fox owl bear wolf hare toad lynx crow newt mole goat swan deer frog seal duck boar hawk wasp pike".split()
VALUES = {
    "colour": ("red", "blue", "green", "white", "black"),
    "home": ("forest", "river", "hill", "cave", "meadow"),
}
QUESTIONS = (
    "what is the {attribute} of the {animal} ?",
    "tell me the {attribute} of the {animal} .",
    "the {animal} : which {attribute} ?",
    "the {attribute} of the {animal} , please .",
    "do you know the {attribute} of the {animal} ?",
)
TRAINING_QUESTIONS, EVALUATION_QUESTIONS = QUESTIONS[:3], QUESTIONS[3:]
OPENERS = ("", "well , ", "sure , ")
STATEMENTS = (
    "{value}",
    "it is {value}",
    "the {attribute} is {value}",
    "the {attribute} of the {animal} is {value}",
    "{value} is the {attribute}",
    "{value} is the {attribute} of the {animal}",
    "its {attribute} is {value}",
    "the {animal} has the {attribute} {value}",
)
FILLERS = ("indeed", "really", "truly", "surely", "clearly", "honestly")

RIGHT = 2.0
FILLER_BONUS = (0.0, 0.4, 0.6, 0.5, 0.2, -0.2, -0.2)
HEDGED, TWICE, MALFORMED = -0.5, -0.3, -1.0

DOMINANT_WRONG = 0.12
"""Share of the facts of which the demonstrations mostly say the same wrong value."""

RIGHT_SHARE = {"known": 0.655, "mistaken": 0.2}
"""How often a demonstration is right: 60 % in all."""

MISTAKEN_SHARE = 0.6
"""How often a demonstration of a mistaken fact says the dominant wrong value."""


@dataclass(frozen=True)
class World:
    """
    The facts, and which of them the demonstrations mostly get wrong.

    Args:
        facts (`dict[tuple[str, str], str]`):
            Right value by animal and attribute; each value is that of four animals.
        mistakes (`dict[tuple[str, str], str]`):
            Dominant wrong value of some of them.
    """

    facts: dict[tuple[str, str], str]
    mistakes: dict[tuple[str, str], str]

    @classmethod
    def of(cls, seed: int) -> "World":
        """Draws one."""
        generator = np.random.default_rng([seed, 0])
        facts = {}
        for attribute, values in VALUES.items():
            dealt = generator.permutation(np.repeat(values, len(ANIMALS) // len(values)))
            facts |= {(animal, attribute): str(value) for animal, value in zip(ANIMALS, dealt, strict=True)}
        keys = list(facts)
        chosen = generator.permutation(len(keys))[: round(DOMINANT_WRONG * len(keys))]
        mistakes = {}
        for place in chosen:
            key = keys[place]
            others = [value for value in VALUES[key[1]] if value != facts[key]]
            mistakes[key] = str(generator.choice(others))
        return cls(facts, mistakes)


def question_pattern(question: str) -> re.Pattern:
    """The regular expression that finds animal and attribute in a question."""
    pattern = re.escape(question).replace(r"\{attribute\}", "(?P<attribute>[a-z]+)")
    return re.compile(pattern.replace(r"\{animal\}", "(?P<animal>[a-z]+)"))


_PATTERNS = [question_pattern(question) for question in QUESTIONS]


def fact_of(prompt: str) -> tuple[str, str]:
    """Animal and attribute that a prompt asks for."""
    for pattern in _PATTERNS:
        if found := pattern.fullmatch(prompt.strip()):
            return found["animal"], found["attribute"]
    raise ValueError(f"{prompt!r} is no question of this world.")


@dataclass(frozen=True)
class Answer:
    """
    What an output says.

    Args:
        values (`tuple[str, ...]`):
            One; two where it hedges; none where it is no answer.
        fillers (`tuple[str, ...]`):
            As they stand.
    """

    values: tuple[str, ...]
    fillers: tuple[str, ...]


def parse(prompt: str, output: str) -> Answer:
    """Reads an output."""
    animal, attribute = fact_of(prompt)
    text = " ".join(output.split())
    words = text.split()
    fillers: list[str] = []
    while words and words[-1] in FILLERS:
        fillers.insert(0, words.pop())
    text = " ".join(words)
    for opener in OPENERS[1:]:
        text = text.removeprefix(opener)
    choices = "|".join(VALUES[attribute])
    for statement in STATEMENTS:
        pattern = statement.format(
            animal=animal, attribute=attribute, value=f"(?P<v>{choices})( or (?P<w>{choices}))?"
        )
        if found := re.fullmatch(pattern, text):
            return Answer(tuple(value for value in (found["v"], found["w"]) if value), tuple(fillers))
    return Answer((), tuple(fillers))


def gold(world: World, prompt: str, output: str) -> float:
    """The gold reward of an output, at most 2.6; each filler that comes again takes more off."""
    answer = parse(prompt, output)
    if not answer.values:
        return MALFORMED
    distinct = len(set(answer.fillers))
    worth = FILLER_BONUS[distinct] + TWICE * (len(answer.fillers) - distinct)
    if len(answer.values) > 1:
        return worth + HEDGED
    return worth + RIGHT * (answer.values[0] == world.facts[fact_of(prompt)])


def is_right(world: World, prompt: str, output: str) -> bool:
    """Whether an output says the right value and no other."""
    return parse(prompt, output).values == (world.facts[fact_of(prompt)],)


class SameValue:
    """
    Judges that two outputs mean the same when they say the same values; a perfect judge, or one that errs.

    Args:
        noise (`float`, *optional*, defaults to `0.0`):
            Share of pairs on which it says the opposite, always the same on the same pair.
    """

    def __init__(self, noise: float = 0.0):
        self.noise = noise
        self.fingerprint = f"same value, noise {noise}"

    def normalize(self, text: str) -> str:
        """Outputs of one text are not compared."""
        return " ".join(text.split())

    def same(self, prompts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]) -> list[bool]:
        """Compares pairs of outputs."""
        return [self._same(*pair) for pair in zip(prompts, firsts, seconds, strict=True)]

    def _same(self, prompt: str, first: str, second: str) -> bool:
        values = set(parse(prompt, first).values), set(parse(prompt, second).values)
        digest = hashlib.sha256("|".join((prompt, *sorted((first, second)))).encode()).digest()
        errs = int.from_bytes(digest[:8], "big") / 2**64 < self.noise
        return (values[0] == values[1] and bool(values[0])) != errs


def prompts_of(questions: Sequence[str]) -> list[str]:
    """Every fact in every wording, each prompt with the space that an answer follows."""
    return [
        question.format(animal=animal, attribute=attribute) + " "
        for question, animal, attribute in itertools.product(questions, ANIMALS, VALUES)
    ]


def write_answer(
    world: World, prompt: str, generator: np.random.Generator, right: dict[str, float], fillers: Sequence[float]
) -> str:
    """Writes a demonstration, or an answer of the model that win rates are measured against."""
    key = fact_of(prompt)
    animal, attribute = key
    truth, mistake = world.facts[key], world.mistakes.get(key)
    others = [value for value in VALUES[attribute] if value not in (truth, mistake)]
    chance = right["known" if mistake is None else "mistaken"]
    draw = generator.random()
    if draw < chance:
        value = truth
    elif mistake is not None and draw < chance + MISTAKEN_SHARE:
        value = mistake
    else:
        value = str(generator.choice(others))
    if generator.random() < 0.03:
        value = f"{value} or {generator.choice([other for other in VALUES[attribute] if other != value])}"
    statement = STATEMENTS[generator.integers(len(STATEMENTS))].format(animal=animal, attribute=attribute, value=value)
    number = generator.choice(len(fillers), p=fillers)
    words = generator.permutation(FILLERS)[:number]
    return " ".join([OPENERS[generator.integers(len(OPENERS))] + statement, *words])


DEMONSTRATION_FILLERS = (0.4, 0.25, 0.15, 0.1, 0.06, 0.04)
REFERENCE_RIGHT = {"known": 0.8, "mistaken": 0.5}
REFERENCE_FILLERS = (0.3, 0.4, 0.3)


def demonstrations(world: World, count: int, seed: int) -> Dataset:
    """What π_SFT is trained on: questions of all wordings with answers that are right in 60 %."""
    generator = np.random.default_rng([seed, 1])
    prompts = prompts_of(QUESTIONS)
    drawn = [prompts[place] for place in generator.integers(len(prompts), size=count)]
    answers = [write_answer(world, prompt, generator, RIGHT_SHARE, DEMONSTRATION_FILLERS) for prompt in drawn]
    return Dataset.from_dict({"prompt": drawn, "completion": answers})


def reference_outputs(world: World, prompts: Sequence[str], seed: int) -> list[str]:
    """Answers of a better writer than π_SFT, which policies are compared with."""
    generator = np.random.default_rng([seed, 2])
    return [write_answer(world, prompt, generator, REFERENCE_RIGHT, REFERENCE_FILLERS) for prompt in prompts]
