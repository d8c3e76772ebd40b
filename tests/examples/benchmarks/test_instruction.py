import json
import runpy
import sys
from pathlib import Path

from tests.tiny_models import save, tiny_nli, tiny_tokenizer


SCRIPT = Path(__file__).parents[3] / "examples/benchmarks/instruction.py"


def test_auto_gives_every_form_the_result_of_the_question(tmp_path, monkeypatch, capsys):
    """The third question has no incorrect answer and the fourth has fewer answers, so both are left out."""
    answers = [("a", True), ("a b", True), ("c", False)]
    rows = [answers, answers, [(text, True) for text, _ in answers], answers[1:]]
    path = tmp_path / "clusters/evouna_tq_1000.jsonl"
    path.parent.mkdir()
    path.write_text(
        "".join(
            json.dumps(
                {"question": f"{row}?", "answers": [{"text": text, "correct": correct} for text, correct in given]}
            )
            + "\n"
            for row, given in enumerate(rows)
        )
    )
    tokenizer = tiny_tokenizer()
    folder = save(tiny_nli(tokenizer, initializer_range=1.0, max_position_embeddings=512), tokenizer, tmp_path / "nli")
    output = tmp_path / "results.json"
    monkeypatch.setattr(
        sys, "argv", [str(SCRIPT), "--model", folder, "--data", str(tmp_path), "--output", str(output)]
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    results = json.loads(output.read_text())
    forms = ("question", "Alpaca", "ChatML", "examples")
    assert set(results) == {f"{form}, {name}" for form in forms for name in ("auto", "prompt", "none")}
    assert all(results[f"{form}, auto"] == results["question, prompt"] for form in forms)
    assert all(low <= mean <= high for shares in results.values() for mean, low, high in shares.values())
    assert capsys.readouterr().out.startswith("2 questions")
