"""A language model as a judge. Its next-token probabilities tell which of two completions is better."""

from __future__ import annotations

import functools
import math
import os
import re

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.batching import eval_mode, pad_right, split_by_token_budget
from trl_rlp.data.context import read_context
from trl_rlp.data.judges.answer_cache import Answer
from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.judge import snap_ties
from trl_rlp.data.judges.verdicts import Labels, find_labels
from trl_rlp.data.turns import Messages, apply_template, message_text, split_assistant_prefill
from trl_rlp.storage.fingerprints import weights_fingerprint
from trl_rlp.storage.processes import run_on_main, share_work


Question = tuple[str | None, list[int], tuple[int, int]]
"""What decides an answer: fingerprint of the model, token ids of the question, and the first tokens of the labels."""

JUDGE_TEMPLATE = """Which of two responses to an instruction is better?

Instruction:
{prompt}

Response A:
{first}

Response B:
{second}

Say which response is better, with one letter, A or B."""
"""The default question. With a chat template it is the user's turn, otherwise "Better response:" follows it."""


def language_model_judge(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    template: str = JUDGE_TEMPLATE,
    tokens_per_batch: int = 8192,
    tolerance: float = 1.0,
    cache: str | os.PathLike | None = None,
    share_batches: bool = False,
) -> LanguageModelJudge:
    """
    Creates a judge from a causal LM, which reads each pair in both orders.

    In each order, the model's next-token logits of the labels A and B give the probability of A against B. The judge
    returns the mean probability of the first completion over both orders. The mean cancels a preference for one
    position: a model that only looks at the position gives 0.5. If both labels begin with the same tokens, the first
    token that differs counts. A pair whose question is longer than the model's context is left out.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal LM. For the paper's RLAIF, it is the policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`. If it has a chat template, the question is the user's turn.
        template (`str`, *optional*, defaults to `JUDGE_TEMPLATE`):
            Question with `{prompt}`, `{first}` and `{second}`, to be answered with A or B. If it calls the completions
            1 and 2, with these numbers before the fields, the labels are 1 and 2. A prompt of several messages is
            written with one line per message, which starts with the role.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Maximum number of tokens per batch, padding included.
        tolerance (`float`, *optional*, defaults to `1.0`):
            Maximum share of questions in one call, in [0, 1], whose most likely next token is neither label. A larger
            share is an error. The probabilities of these questions count like all others.
        cache (`str` or `os.PathLike`, *optional*):
            File that stores the answers, see [`AnswerCache`]. An interrupted run resumes from it. The weights of
            `model` must not change after the first call, because they are hashed once.
        share_batches (`bool`, *optional*, defaults to `False`):
            Whether the processes of `accelerate launch` share the batches of each call. Each of them must then call
            the judge with the same pairs, and each gets all probabilities.

    Returns:
        [`LanguageModelJudge`]: `judge(prompts, firsts, seconds)`, with the attributes `asked`, `unreadable` and
        `refused`.

    Raises:
        ValueError: If `template` lacks a field, `tolerance` is out of range, or `cache` is not a file of answers. When
            the judge is called, if all questions are longer than the model's context, a probability is NaN, or the
            share of answers that are neither A nor B exceeds `tolerance`.
    """
    return LanguageModelJudge(model, processing_class, template, tokens_per_batch, tolerance, cache, share_batches)


class LanguageModelJudge(AskedJudge):
    """The judge that [`language_model_judge`] returns. It takes the same arguments."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processing_class: PreTrainedTokenizerBase,
        template: str,
        tokens_per_batch: int,
        tolerance: float,
        cache: str | os.PathLike | None,
        share_batches: bool,
    ):
        require_template(template)
        self.model, self.processing_class = model, processing_class
        self.template, self.tokens_per_batch, self.share_batches = template, tokens_per_batch, share_batches
        super().__init__(tolerance, cache)

    def __call__(self, prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float | None]:
        if not prompts:
            return []
        labels = find_labels(self.template)
        orders = [*zip(prompts, firsts, seconds, strict=True), *zip(prompts, seconds, firsts, strict=True)]
        questions = [build_question(self.template, *order) for order in orders]
        texts = [_render_question(self.processing_class, question) for question in questions]
        stems, label_tokens = _tokenize_questions(self.processing_class, texts, labels)
        refused = self._find_overlong([len(stem) for stem in stems], len(prompts))
        pairs = [pair for pair in range(len(prompts)) if pair not in refused]
        rows = [*pairs, *(len(prompts) + pair for pair in pairs)]
        answers = self._answer([stems[row] for row in rows], [label_tokens[row] for row in rows])
        unreadable = [answer["text"] for answer in answers if answer["text"].strip() not in labels]
        self._count_answers(unreadable, len(rows), "The more likely of the two letters counts.")
        self._count_refused(refused, prompts)
        probabilities = torch.tensor([answer["probability"] for answer in answers], dtype=torch.float64)
        first_wins, second_wins = probabilities.view(2, len(pairs))
        found = dict(zip(pairs, snap_ties((first_wins + 1 - second_wins) / 2), strict=True))
        return [found.get(pair) for pair in range(len(prompts))]

    @functools.cached_property
    def _fingerprint(self) -> str:
        """Computed once, because it reads all weights."""
        return weights_fingerprint(self.model)

    def _find_overlong(self, lengths: list[int], pairs: int) -> dict[int, str]:
        """Returns the pairs with a question beyond the model's context, and what is wrong with each of them."""
        context = read_context(self.model)
        return {
            row % pairs: f"The question has {length} tokens, more than the model's context of {context}."
            for row, length in enumerate(lengths)
            if context is not None and length > context
        }

    def _answer(self, stems: list[list[int]], label_tokens: list[tuple[int, int]]) -> list[Answer]:
        """Returns the probability of A against B after each stem, and the text of the most likely next token."""
        is_kept = self._cache.path is not None
        fingerprint = self._fingerprint if is_kept else None
        questions = list(zip([fingerprint] * len(stems), stems, label_tokens, strict=True))
        answers = dict(enumerate(self._find_answers(questions) if is_kept else [None] * len(stems)))
        missing = [row for row, answer in answers.items() if answer is None]
        indices = split_by_token_budget([len(stems[row]) for row in missing], self.tokens_per_batch)
        batches = [[missing[index] for index in batch] for batch in indices]

        def ask(own: list[list[int]]) -> list[list[Answer]]:
            return [self._ask([questions[row] for row in rows], is_kept) for rows in own]

        found = share_work(batches, ask) if self.share_batches else ask(batches)
        for rows, batch in zip(batches, found, strict=True):
            answers.update(zip(rows, batch, strict=True))
        if is_kept and self.share_batches:
            for row in missing:
                if math.isfinite(answers[row]["probability"]):
                    self._cache.keep(*questions[row], answer=answers[row])
        return [answers[row] for row in range(len(stems))]

    def _find_answers(self, questions: list[Question]) -> list[Answer | None]:
        """Looks up known answers. With shared batches, the main process decides what is known."""

        def find() -> list[Answer | None]:
            return [self._cache.find(*question) for question in questions]

        return run_on_main(find) if self.share_batches else find()

    def _ask(self, questions: list[Question], is_kept: bool) -> list[Answer]:
        """Answers the questions of one batch."""
        _, stems, label_tokens = zip(*questions, strict=True)
        with eval_mode(self.model):
            probabilities, top_tokens = _compute_label_probabilities(self.model, list(stems), list(label_tokens))
        answers = [
            {"probability": probability, "text": self.processing_class.decode(token)}
            for probability, token in zip(probabilities, top_tokens, strict=True)
        ]
        for question, answer in zip(questions, answers, strict=True):
            if is_kept and math.isfinite(answer["probability"]):
                self._cache.store(*question, answer=answer)
        return answers


def require_template(template: str) -> None:
    """
    Checks that a question template has all of its fields.

    Args:
        template (`str`):
            Question with `{prompt}`, `{first}` and `{second}`.

    Raises:
        ValueError: If a field is missing.
    """
    missing = [field for field in ("{prompt}", "{first}", "{second}") if field not in template]
    if missing:
        raise ValueError(f"`template` lacks {missing}. Add the fields for the prompt and the two completions.")


def build_question(template: str, prompt: str | Messages, first: str, second: str) -> str:
    """
    Fills a question template with a prompt and two completions.

    Args:
        template (`str`):
            Question with `{prompt}`, `{first}` and `{second}`.
        prompt (`str` or `list[dict[str, str]]`):
            Text or messages. One message is written without its role, several with one line and role per message.
        first (`str`):
            Completion that is called A.
        second (`str`):
            Completion that is called B.

    Returns:
        `str`: The question.
    """
    prompt, prefill = split_assistant_prefill(prompt)
    fields = {"{prompt}": _render_prompt(prompt), "{first}": prefill + first, "{second}": prefill + second}
    # Completions may contain braces, which str.format or repeated str.replace would treat as fields.
    pieces = re.split(r"(\{prompt\}|\{first\}|\{second\})", template)
    return "".join(fields.get(piece, piece) for piece in pieces)


def _render_question(processing_class: PreTrainedTokenizerBase, question: str) -> str:
    if processing_class.chat_template is None:
        return question + "\n\nBetter response: "
    messages = [{"role": "user", "content": question}]
    return apply_template(processing_class, messages, tokenize=False, add_generation_prompt=True)


def _render_prompt(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return message_text(prompt[0])
    return "\n".join(f"{message['role']}: {message_text(message)}" for message in prompt)


def _tokenize_questions(
    processing_class: PreTrainedTokenizerBase, questions: list[str], labels: Labels
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """
    Returns the token ids of each question and of its two labels.

    Both answers, A and B, are tokenized together with the question. The stem is their common beginning, and the
    returned tokens are the first ones that differ. This also works for tokenizers that merge a label with the text
    before it.
    """
    add_special_tokens = processing_class.chat_template is None
    with_a, with_b = (
        processing_class(text=[question + label for question in questions], add_special_tokens=add_special_tokens)
        for label in labels
    )
    stems, label_tokens = [], []
    for ids_a, ids_b in zip(with_a["input_ids"], with_b["input_ids"], strict=True):
        shared = next(i for i, (a, b) in enumerate(zip(ids_a, ids_b, strict=False)) if a != b)
        stems.append(ids_a[:shared])
        label_tokens.append((ids_a[shared], ids_b[shared]))
    return stems, label_tokens


def _compute_label_probabilities(
    model: PreTrainedModel, stems: list[list[int]], labels: list[tuple[int, int]]
) -> tuple[list[float], list[int]]:
    """Returns the probability of A against B after each stem of a batch, and the most likely next tokens."""
    # Attention is causal, so tokens never attend to padding on the right.
    input_ids, attention_mask = pad_right(stems, 0, model.device)
    last = torch.tensor([len(stem) - 1 for stem in stems], device=model.device)  # (batch,)
    kept, index = last.unique(return_inverse=True)
    outputs = model(
        input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=kept, use_cache=False
    )  # logits: (batch, kept, vocabulary)
    logits = outputs.logits[torch.arange(len(stems), device=model.device), index]  # (batch, vocabulary)
    pair = logits.gather(1, torch.tensor(labels, device=model.device))  # (batch, 2)
    return pair.double().softmax(dim=1)[:, 0].tolist(), logits.argmax(dim=1).tolist()
