"""A language model as a judge: what it is asked about two outputs, and what its next token says."""

from __future__ import annotations

import re

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.batching import eval_mode, pad_right, require_context, token_budget_batches
from trl_rlp.data.judges.asked_judge import AskedJudge
from trl_rlp.data.judges.judge import snap_ties
from trl_rlp.data.turns import Messages, split_assistant_prefill


JUDGE_TEMPLATE = """Which of two responses to an instruction is better?

Instruction:
{prompt}

Response A:
{first}

Response B:
{second}

Say which response is better, with one letter, A or B."""
"""What a language model is asked. With a chat template it is the user's turn, else "Better response:" follows."""


def language_model_judge(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    template: str = JUDGE_TEMPLATE,
    tokens_per_batch: int = 8192,
    tolerance: float = 1.0,
) -> LanguageModelJudge:
    """
    Makes a judge of a causal LM: the probability it gives to the label of an output, averaged over both orders.

    The model reads the pair once in each order; p(A) is taken from its next-token logits of the two labels alone.
    Where both labels begin with the same tokens, the first token that differs counts. Averaging cancels a preference
    for one position; a judge that hears nothing but position gives one half.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal LM; for the paper's RLAIF the policy.
        processing_class (`transformers.PreTrainedTokenizerBase`):
            Its tokenizer. With a chat template the question is the user's turn.
        template (`str`, *optional*, defaults to `JUDGE_TEMPLATE`):
            Question with `{prompt}`, `{first}` and `{second}` that is answered with A or B. A prompt of several
            messages is written as one line a message, with its role.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Tokens a batch holds, padding included.

        tolerance (`float`, *optional*, defaults to `1.0`):
            Share of questions, in [0, 1], to which some other token than the two labels may be the likeliest answer
            before a call is an error. Their probabilities count as all others do.

    Returns:
        [`LanguageModelJudge`]: `judge(prompts, firsts, seconds)`, with `asked` and `unreadable`.

    Raises:
        ValueError: if `template` lacks a field or `tolerance` is out of range; when called, if a question is longer
            than the model's context, a probability is NaN, or more answers than `tolerance` are neither A nor B.
    """
    return LanguageModelJudge(model, processing_class, template, tokens_per_batch, tolerance)


class LanguageModelJudge(AskedJudge):
    """What [`language_model_judge`] makes; it has its arguments."""

    def __init__(
        self,
        model: PreTrainedModel | PeftModel,
        processing_class: PreTrainedTokenizerBase,
        template: str,
        tokens_per_batch: int,
        tolerance: float,
    ):
        super().__init__(tolerance)
        require_template(template)
        self.model, self.processing_class = model, processing_class
        self.template, self.tokens_per_batch = template, tokens_per_batch

    def __call__(self, prompts: list[str | Messages], firsts: list[str], seconds: list[str]) -> list[float]:
        if not prompts:
            return []
        orders = [*zip(prompts, firsts, seconds, strict=True), *zip(prompts, seconds, firsts, strict=True)]
        questions = [_rendered(self.processing_class, judge_question(self.template, *order)) for order in orders]
        stems, labels = _stems_and_labels(self.processing_class, questions)
        probabilities, likeliest = _label_probabilities(self.model, stems, labels, self.tokens_per_batch)
        said = [self.processing_class.decode(token) for token in likeliest]
        unreadable = [text for text in said if text.strip() not in ("A", "B")]
        self._count(unreadable, len(questions), "Of their two letters the likelier one counts.")
        first_wins, second_wins = probabilities.view(2, len(prompts))
        return snap_ties((first_wins + 1 - second_wins) / 2)


def require_template(template: str) -> None:
    """
    Checks that a question has a place for all that it is about.

    Args:
        template (`str`):
            Question with `{prompt}`, `{first}` and `{second}`.

    Raises:
        ValueError: if one is missing.
    """
    missing = [field for field in ("{prompt}", "{first}", "{second}") if field not in template]
    if missing:
        raise ValueError(f"`template` lacks {missing}. Write them where the prompt and the two outputs belong.")


def judge_question(template: str, prompt: str | Messages, first: str, second: str) -> str:
    """
    Gives what a language model is asked about two outputs.

    Args:
        template (`str`):
            Question with `{prompt}`, `{first}` and `{second}`.
        prompt (`str` or `list[dict[str, str]]`):
            Text, or messages: one alone is written as it is, several one a line with their roles.
        first (`str`):
            Output that is called A.
        second (`str`):
            Output that is called B.

    Returns:
        `str`.
    """
    prompt, begun = split_assistant_prefill(prompt)
    fields = {"{prompt}": _conversation(prompt), "{first}": begun + first, "{second}": begun + second}
    # Split, not formatted: outputs may hold braces, and must not be searched for fields.
    pieces = re.split(r"(\{prompt\}|\{first\}|\{second\})", template)
    return "".join(fields.get(piece, piece) for piece in pieces)


def _rendered(processing_class: PreTrainedTokenizerBase, question: str) -> str:
    if processing_class.chat_template is None:
        return question + "\n\nBetter response: "
    messages = [{"role": "user", "content": question}]
    return processing_class.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _conversation(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _stems_and_labels(
    processing_class: PreTrainedTokenizerBase, questions: list[str]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """What the model reads, and the two tokens that tell A from B after it, whatever the tokenizer merges."""
    add_special_tokens = processing_class.chat_template is None
    with_a, with_b = (
        processing_class(text=[question + label for question in questions], add_special_tokens=add_special_tokens)
        for label in ("A", "B")
    )
    stems, labels = [], []
    for ids_a, ids_b in zip(with_a["input_ids"], with_b["input_ids"], strict=True):
        shared = next(i for i, (a, b) in enumerate(zip(ids_a, ids_b, strict=False)) if a != b)
        stems.append(ids_a[:shared])
        labels.append((ids_a[shared], ids_b[shared]))
    return stems, labels


def _label_probabilities(
    model: PreTrainedModel, stems: list[list[int]], labels: list[tuple[int, int]], tokens_per_batch: int
) -> tuple[torch.Tensor, list[int]]:
    """After each stem the probability of A against B, `torch.Tensor` of shape `(rows,)`, and the likeliest token."""
    lengths = [len(stem) for stem in stems]
    require_context(model.config, lengths)
    probabilities = torch.empty(len(stems), dtype=torch.float64)
    likeliest = torch.empty(len(stems), dtype=torch.long)
    with eval_mode(model):
        for batch in token_budget_batches(lengths, tokens_per_batch):
            # Attention is causal, so what pads on the right is never seen.
            input_ids, attention_mask = pad_right([stems[row] for row in batch], 0, model.device)
            last = torch.tensor([lengths[row] - 1 for row in batch], device=model.device)  # (batch,)
            kept, place = last.unique(return_inverse=True)
            outputs = model(
                input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=kept, use_cache=False
            )  # logits: (batch, kept, vocabulary)
            logits = outputs.logits[torch.arange(len(batch), device=model.device), place]  # (batch, vocabulary)
            pair = logits.gather(1, torch.tensor([labels[row] for row in batch], device=model.device))  # (batch, 2)
            probabilities[batch] = pair.double().softmax(dim=1)[:, 0].cpu()
            likeliest[batch] = logits.argmax(dim=1).cpu()
    return probabilities, likeliest.tolist()
