"""The table of printed completions."""

import io

from rich.console import Console

from trl_rlp.trainer.ppo.sample_generations import MAX_ROWS, print_table


def print_to_text(rows: list[dict]) -> str:
    console = Console(file=io.StringIO(), width=200)
    print_table(rows, console)
    return console.file.getvalue()


def test_text_is_printed_unchanged():
    row = {"query": "[INST] list [a] and [bold]q [/INST]", "model response": "[/b]", "score": 0.12345}
    text = print_to_text([row])
    assert "[INST] list [a] and [bold]q [/INST]" in text and "[/b]" in text and "0.123" in text


def test_messages_are_printed_line_by_line_and_the_number_of_rows_is_limited():
    chat = [{"role": "user", "content": "ab"}, {"role": "assistant", "content": "cd"}]
    text = print_to_text([{"query": chat, "score": float(row)} for row in range(MAX_ROWS + 1)])
    assert text.count("ab") == text.count("cd") == MAX_ROWS
    assert print_to_text([]) == ""
