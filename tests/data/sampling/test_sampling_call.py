from datasets import Dataset

from tests.tiny_models import tiny_causal_lm, tiny_tokenizer
from trl_rlp.data.sampling.sampling_call import PolicySampling, SamplingCall, add_completions


def test_an_engine_gets_rows_and_token_ids_and_its_tokens_become_texts():
    """The engine draws the number of the row and EOS. The longest prompts come first."""
    tokenizer = tiny_tokenizer()
    data = Dataset.from_dict({"prompt": ["a", "abc", "ab"], "finished": ["stale"] * 3})
    call = SamplingCall(data, "model", tokenizer, {"max_new_tokens": 2}, shard_size=2)
    sampling = PolicySampling(call, "some engine", tiny_causal_lm(tokenizer), tokenizer)
    seen, digits = [], [tokenizer(str(row))["input_ids"][0] for row in range(3)]

    def draw(rows, prompt_ids, advance):
        seen.append((rows, list(map(len, prompt_ids))))
        advance(len(rows))
        return [[[digits[row], tokenizer.eos_token_id], [digits[row]] * 2] for row in rows], {}

    samples = sampling.run(draw, lambda: 1 / 0, shard_size=64)  # no folder: nobody asks for the fingerprint
    assert seen == [([1, 2], [3, 2]), ([0], [1])]
    assert samples.to_list() == [
        {"prompt": text, "completions": [str(row), str(row) * 2], "finished": [True, False]}
        for row, text in enumerate(data["prompt"])
    ]


def test_completions_are_added_to_selected_prompts():
    prompts = Dataset.from_dict({"prompt": list("abc"), "completions": [["old"]] * 3}).select([2, 0])
    samples = Dataset.from_dict({"completions": [["x"], ["y"]], "finished": [[True], [False]], "note": [1, 2]})
    assert add_completions(prompts, samples).to_list() == [
        {"prompt": "c", "completions": ["x"], "finished": [True]},
        {"prompt": "a", "completions": ["y"], "finished": [False]},
    ]
