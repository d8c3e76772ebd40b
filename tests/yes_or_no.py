"""Yes-or-no questions, and a tiny model that is trained to answer them with yes or no."""

import torch

from tests.tiny_models import save, tiny_causal_lm, tiny_tokenizer
from trl_rlp.quickstart.questions import Question


QUESTIONS = [
    Question(("odd", "even")[number % 2], f"Is {number} odd?", ("no", "yes")[number % 2 :][:1]) for number in range(40)
]


def train_yes_or_no_model(folder) -> str:
    """
    Trains a tiny model on both answers to every question, and saves it.

    Its samples are right about as often as wrong.
    """
    tokenizer = tiny_tokenizer(chat=False)
    model = tiny_causal_lm(tokenizer).train()
    texts = [f"{question.prompt}{answer}<eos>" for question in QUESTIONS for answer in (" yes", " no")]
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels[:, :-6] = -100
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return save(model.eval(), tokenizer, folder)
