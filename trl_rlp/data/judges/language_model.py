"""A language model as a judge. Its next-token probabilities tell which of two completions is better."""

from __future__ import annotations

import re

import torch
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from trl_rlp.data.batching import eval_mode, pad_right, require_context, split_by_token_budget
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
"""The default question. With a chat template it is the user's turn, otherwise "Better response:" follows it."""


def language_model_judge(
    model: PreTrainedModel | PeftModel,
    processing_class: PreTrainedTokenizerBase,
    *,
    template: str = JUDGE_TEMPLATE,
    tokens_per_batch: int = 8192,
    tolerance: float = 1.0,
) -> LanguageModelJudge:
    """
    Creates a judge from a causal LM, which reads each pair in both orders.

    In each order, the model's next-token logits of the labels A and B give the probability of A against B. The judge
    returns the mean probability of the first completion over both orders. The mean cancels a preference for one
    position: a model that only looks at the position gives 0.5. If both labels begin with the same tokens, the first
    token that differs counts.

    Args:
        model ([`~transformers.PreTrainedModel`] or [`~peft.PeftModel`]):
            Causal LM. For the paper's RLAIF, it is the policy.
        processing_class ([`~transformers.PreTrainedTokenizerBase`]):
            Tokenizer of `model`. If it has a chat template, the question is the user's turn.
        template (`str`, *optional*, defaults to `JUDGE_TEMPLATE`):
            Question with `{prompt}`, `{first}` and `{second}`, to be answered with A or B. A prompt of several
            messages is written with one line per message, which starts with the role.
        tokens_per_batch (`int`, *optional*, defaults to `8192`):
            Maximum number of tokens per batch, padding included.
        tolerance (`float`, *optional*, defaults to `1.0`):
            Maximum share of questions in one call, in [0, 1], whose most likely next token is neither label. A larger
            share is an error. The probabilities of these questions count like all others.

    Returns:
        [`LanguageModelJudge`]: `judge(prompts, firsts, seconds)`, with the attributes `asked` and `unreadable`.

    Raises:
        ValueError: If `template` lacks a field or `tolerance` is out of range. When the judge is called, if a question
            is longer than the model's context, a probability is NaN, or the share of answers that are neither A nor B
            exceeds `tolerance`.
    """
    return LanguageModelJudge(model, processing_class, template, tokens_per_batch, tolerance)


class LanguageModelJudge(AskedJudge):
    """The judge that [`language_model_judge`] returns. It takes the same arguments."""

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
        questions = [build_question(self.template, *order) for order in orders]
        texts = [_render_question(self.processing_class, question) for question in questions]
        stems, labels = _tokenize_questions(self.processing_class, texts)
        probabilities, top_tokens = _compute_label_probabilities(self.model, stems, labels, self.tokens_per_batch)
        answers = [self.processing_class.decode(token) for token in top_tokens]
        unreadable = [text for text in answers if text.strip() not in ("A", "B")]
        self._count_answers(unreadable, len(questions), "The more likely of the two letters counts.")
        first_wins, second_wins = probabilities.view(2, len(prompts))
        return snap_ties((first_wins + 1 - second_wins) / 2)


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
    return processing_class.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def _render_prompt(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return prompt[0]["content"]
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _tokenize_questions(
    processing_class: PreTrainedTokenizerBase, questions: list[str]
) -> tuple[list[list[int]], list[tuple[int, int]]]:
    """
    Returns the token ids of each question and of its two labels.

    Both answers, A and B, are tokenized together with the question. The stem is their common beginning, and the labels
    are the first tokens that differ. This also works for tokenizers that merge a label with the text before it.
    """
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


def _compute_label_probabilities(
    model: PreTrainedModel, stems: list[list[int]], labels: list[tuple[int, int]], tokens_per_batch: int
) -> tuple[torch.Tensor, list[int]]:
    """Returns the probability of A against B after each stem, of shape `(rows,)`, and the most likely next tokens."""
    lengths = [len(stem) for stem in stems]
    require_context(model.config, lengths)
    probabilities = torch.empty(len(stems), dtype=torch.float64)
    top_tokens = torch.empty(len(stems), dtype=torch.long)
    with eval_mode(model):
        for batch in split_by_token_budget(lengths, tokens_per_batch):
            # Attention is causal, so tokens never attend to padding on the right.
            input_ids, attention_mask = pad_right([stems[row] for row in batch], 0, model.device)
            last = torch.tensor([lengths[row] - 1 for row in batch], device=model.device)  # (batch,)
            kept, index = last.unique(return_inverse=True)
            outputs = model(
                input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=kept, use_cache=False
            )  # logits: (batch, kept, vocabulary)
            logits = outputs.logits[torch.arange(len(batch), device=model.device), index]  # (batch, vocabulary)
            pair = logits.gather(1, torch.tensor([labels[row] for row in batch], device=model.device))  # (batch, 2)
            probabilities[batch] = pair.double().softmax(dim=1)[:, 0].cpu()
            top_tokens[batch] = logits.argmax(dim=1).cpu()
    return probabilities, top_tokens.tolist()
