"""
A world of 40 facts with a known gold reward: the questions, the possible answers and their gold reward.

An answer has an opener, one of eight statements and up to six fillers, so one value can be said in many ways. The gold
reward is high for the correct value. A few fillers raise it, many fillers lower it. Hedging, repeated fillers and
malformed answers lower it.
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

CORRECT_REWARD = 2.0
FILLER_BONUS = (0.0, 0.4, 0.6, 0.5, 0.2, -0.2, -0.2)
"""Reward for 0 to 6 different fillers."""

HEDGE_PENALTY, REPEAT_PENALTY, MALFORMED_REWARD = -0.5, -0.3, -1.0

DOMINANT_WRONG = 0.12
"""Share of the facts for which most demonstrations give the same wrong value."""

CORRECT_SHARE = {"known": 0.655, "mistaken": 0.2}
"""Probability that a demonstration is correct. It is 60% over all facts."""

MISTAKEN_SHARE = 0.6
"""Probability that a demonstration of a mistaken fact gives the dominant wrong value."""


@dataclass(frozen=True)
class World:
    """
    The facts, and the facts that most demonstrations get wrong.

    Args:
        facts (`dict[tuple[str, str], str]`):
            Correct value of each animal and attribute. Four animals share each value.
        mistakes (`dict[tuple[str, str], str]`):
            Dominant wrong value of some facts.
    """

    facts: dict[tuple[str, str], str]
    mistakes: dict[tuple[str, str], str]

    @classmethod
    def draw(cls, seed: int) -> "World":
        """Draws a world."""
        generator = np.random.default_rng([seed, 0])
        facts = {}
        for attribute, values in VALUES.items():
            shuffled = generator.permutation(np.repeat(values, len(ANIMALS) // len(values)))
            facts |= {(animal, attribute): str(value) for animal, value in zip(ANIMALS, shuffled, strict=True)}
        keys = list(facts)
        mistaken = generator.permutation(len(keys))[: round(DOMINANT_WRONG * len(keys))]
        mistakes = {}
        for index in mistaken:
            key = keys[index]
            others = [value for value in VALUES[key[1]] if value != facts[key]]
            mistakes[key] = str(generator.choice(others))
        return cls(facts, mistakes)


def compile_question(question: str) -> re.Pattern:
    """Compiles the regular expression that finds the animal and the attribute in a question."""
    pattern = re.escape(question).replace(r"\{attribute\}", "(?P<attribute>[a-z]+)")
    return re.compile(pattern.replace(r"\{animal\}", "(?P<animal>[a-z]+)"))


_PATTERNS = [compile_question(question) for question in QUESTIONS]


def find_fact(prompt: str) -> tuple[str, str]:
    """Returns the animal and the attribute that a prompt asks about."""
    for pattern in _PATTERNS:
        if match := pattern.fullmatch(prompt.strip()):
            return match["animal"], match["attribute"]
    raise ValueError(f"{prompt!r} is not a question of this world.")


@dataclass(frozen=True)
class Answer:
    """
    The content of a completion.

    Args:
        values (`tuple[str, ...]`):
            One value. Two if the completion hedges, none if it is malformed.
        fillers (`tuple[str, ...]`):
            The fillers in their order.
    """

    values: tuple[str, ...]
    fillers: tuple[str, ...]


def parse(prompt: str, completion: str) -> Answer:
    """Parses a completion."""
    animal, attribute = find_fact(prompt)
    words = completion.split()
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
        if match := re.fullmatch(pattern, text):
            return Answer(tuple(value for value in (match["v"], match["w"]) if value), tuple(fillers))
    return Answer((), tuple(fillers))


def gold_reward(world: World, prompt: str, completion: str) -> float:
    """Computes the gold reward of a completion, at most 2.6. Each repeated filler lowers it."""
    answer = parse(prompt, completion)
    if not answer.values:
        return MALFORMED_REWARD
    distinct = len(set(answer.fillers))
    reward = FILLER_BONUS[distinct] + REPEAT_PENALTY * (len(answer.fillers) - distinct)
    if len(answer.values) > 1:
        return reward + HEDGE_PENALTY
    return reward + CORRECT_REWARD * (answer.values[0] == world.facts[find_fact(prompt)])


def is_correct(world: World, prompt: str, completion: str) -> bool:
    """Checks whether a completion gives the correct value and no other value."""
    return parse(prompt, completion).values == (world.facts[find_fact(prompt)],)


class SameValue:
    """
    Equivalence of completions that give the same values. It can make errors on purpose.

    Args:
        noise (`float`, *optional*, defaults to `0.0`):
            Share of pairs with the opposite verdict, in [0, 1]. The verdict on a pair is always the same.
    """

    def __init__(self, noise: float = 0.0):
        self.noise = noise
        self.fingerprint = f"same value, noise {noise}"

    def normalize(self, text: str) -> str:
        """Normalizes white space. Completions that are equal after that are not compared."""
        return " ".join(text.split())

    def are_equivalent(self, prompts: Sequence[str], firsts: Sequence[str], seconds: Sequence[str]) -> list[bool]:
        """Compares pairs of completions."""
        return [self._is_same(*pair) for pair in zip(prompts, firsts, seconds, strict=True)]

    def _is_same(self, prompt: str, first: str, second: str) -> bool:
        values = set(parse(prompt, first).values), set(parse(prompt, second).values)
        digest = hashlib.sha256("|".join((prompt, *sorted((first, second)))).encode()).digest()
        is_flipped = int.from_bytes(digest[:8], "big") / 2**64 < self.noise
        return (values[0] == values[1] and bool(values[0])) != is_flipped


def build_prompts(questions: Sequence[str]) -> list[str]:
    """Builds a prompt for every fact in every wording. Each prompt ends with a space."""
    return [
        question.format(animal=animal, attribute=attribute) + " "
        for question, animal, attribute in itertools.product(questions, ANIMALS, VALUES)
    ]


def write_answer(
    world: World, prompt: str, generator: np.random.Generator, correct: dict[str, float], fillers: Sequence[float]
) -> str:
    """Writes an answer with given probabilities of a correct value and of each number of fillers. 3% hedge."""
    key = find_fact(prompt)
    animal, attribute = key
    truth, mistake = world.facts[key], world.mistakes.get(key)
    others = [value for value in VALUES[attribute] if value not in (truth, mistake)]
    probability = correct["known" if mistake is None else "mistaken"]
    draw = generator.random()
    if draw < probability:
        value = truth
    elif mistake is not None and draw < probability + MISTAKEN_SHARE:
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
REFERENCE_CORRECT = {"known": 0.8, "mistaken": 0.5}
REFERENCE_FILLERS = (0.3, 0.4, 0.3)


def write_demonstrations(world: World, count: int, seed: int) -> Dataset:
    """Writes the training data of π_SFT: questions in all wordings. 60% of the answers are correct."""
    generator = np.random.default_rng([seed, 1])
    all_prompts = build_prompts(QUESTIONS)
    prompts = [all_prompts[index] for index in generator.integers(len(all_prompts), size=count)]
    answers = [write_answer(world, prompt, generator, CORRECT_SHARE, DEMONSTRATION_FILLERS) for prompt in prompts]
    return Dataset.from_dict({"prompt": prompts, "completion": answers})


def write_reference_completions(world: World, prompts: Sequence[str], seed: int) -> list[str]:
    """Writes the reference completions for the win rate. They are better than those of π_SFT."""
    generator = np.random.default_rng([seed, 2])
    return [write_answer(world, prompt, generator, REFERENCE_CORRECT, REFERENCE_FILLERS) for prompt in prompts]
