import pytest

from trl_rlp.data.judges.asked_judge import AskedJudge


class ReadyAnswers(AskedJudge):
    """Gets the answers in the place of prompts. An answer is readable if it is A or B."""

    def __call__(self, prompts, firsts, seconds):
        self._count_answers([answer for answer in prompts if answer not in "AB"], len(prompts), "They are ties.")
        return [0.5] * len(firsts)


def judge_answers(judge, *answers):
    return judge(list(answers), [], [])


def test_answers_of_all_calls_are_counted(caplog):
    judge = ReadyAnswers(tolerance=0.5)
    judge_answers(judge, "A", "B", "A")
    assert (judge.asked, judge.unreadable) == (3, 0) and not caplog.records
    judge_answers(judge, "A", " both\n of them ")
    assert (judge.asked, judge.unreadable) == (5, 1)
    (record,) = caplog.records
    assert record.message == (
        "1 of 2 answers of the judge name neither A nor B alone, such as 'both of them'. They are ties."
    )


@pytest.mark.parametrize("tolerance, is_error", [(0.0, True), (0.24, True), (0.25, False), (1.0, False)])
def test_the_tolerance_is_a_share_of_one_call(tolerance, is_error):
    """One of four answers cannot be read. The earlier call does not change the share."""
    judge = ReadyAnswers(tolerance)
    judge_answers(judge, *"AB" * 50)
    if is_error:
        with pytest.raises(
            ValueError, match=rf"1 of 4 answers .*'\?': more than `tolerance`={tolerance}. Use another"
        ):
            judge_answers(judge, "A", "?", "B", "A")
    else:
        judge_answers(judge, "A", "?", "B", "A")
    assert (judge.asked, judge.unreadable) == (104, 1)


def test_a_part_is_judged_by_all_answers_so_far():
    """
    2 of 2, and then 2 of 200 cannot be read. With 22 of 220, a tenth is reached, and with 23 of 221 exceeded. What was
    asked before does not count.
    """
    judge = ReadyAnswers(tolerance=0.1)
    judge_answers(judge, *"AB" * 5000)
    with judge.in_parts():
        judge_answers(judge, "?", "?")
        judge_answers(judge, *"AB" * 99)
        judge_answers(judge, *"?" * 20)
        with pytest.raises(ValueError, match="1 of 1 answers .* and 23 of 221 so far: more than `tolerance`=0.1"):
            judge_answers(judge, "?")
    with pytest.raises(ValueError, match="1 of 1 answers"):
        judge_answers(judge, "?")


def test_a_part_that_cannot_be_read_at_all_is_a_warning(caplog):
    judge = ReadyAnswers(tolerance=0.1)
    with judge.in_parts():
        judge._count_refused({0: "too long"}, ["Why?"])
    assert judge.refused == 1 and "could not read 1 of 1 pairs" in caplog.text
    with pytest.raises(ValueError, match="could read none of 1 pairs. The reason for pair 0: too long"):
        judge._count_refused({0: "too long"}, ["Why?"])


def test_the_share_of_all_answers_can_be_checked_later():
    judge = ReadyAnswers(tolerance=1.0)
    judge.require_readable(0.0)
    judge_answers(judge, "?", "A")
    judge_answers(judge, "B", "A")
    judge.require_readable(0.25)
    with pytest.raises(ValueError, match="1 of 4 answers of the judge name neither .* more than `tolerance`=0.2. Use"):
        judge.require_readable(0.2)


@pytest.mark.parametrize("tolerance", [-0.1, 1.1, float("nan")])
def test_a_tolerance_outside_0_to_1_is_an_error(tolerance):
    with pytest.raises(ValueError, match=rf"`tolerance` is a share of the answers, in \[0, 1\], got {tolerance}"):
        ReadyAnswers(tolerance)


def test_a_long_answer_is_shortened_in_the_message():
    with pytest.raises(ValueError, match="such as 'x{80}':"):
        judge_answers(ReadyAnswers(0.0), "x" * 500)


def test_answers_that_were_cut_are_counted_and_named(caplog):
    class CutAnswers(AskedJudge):
        def __call__(self, prompts, firsts, seconds):
            self._count_answers(["Both", "I"], 4, "They are ties.", cut=1)

    judge = CutAnswers(tolerance=0.5)
    judge(["?"] * 2, [], [])
    judge(["?"] * 2, [], [])
    assert (judge.asked, judge.unreadable, judge.cut) == (8, 4, 2)
    assert (
        "2 of 4 answers of the judge name neither A nor B alone (1 were cut by the token limit), such as"
        in caplog.text
    )


def test_pairs_that_the_judge_could_not_read_are_named(caplog):
    class ShortJudge(AskedJudge):
        def __call__(self, prompts, firsts, seconds):
            refused = {pair: f"{prompt} is too long." for pair, prompt in enumerate(prompts) if len(prompt) > 1}
            self._count_answers([], 2 * (len(prompts) - len(refused)), "They are ties.")
            self._count_refused(refused, prompts)

    judge = ShortJudge(tolerance=0.0)
    with pytest.raises(ValueError, match="could read none of 2 pairs. The reason for pair 0: ab is too long"):
        judge(["ab", "cd"], [], [])
    judge(["a", "bc", "d", "x" * 50], [], [])
    assert (judge.asked, judge.refused) == (4, 4)
    names = f"pair 1 ('bc'), 3 ('{'x' * 40}'). The reason for pair 1: bc is too long."
    assert f"could not read 2 of 4 pairs. They are left out: {names}" in caplog.text
    judge(["b" * 2] * 30, [], [])  # It has answered before, so this concerns the pairs.
    assert judge.refused == 34 and "9 ('bb'), .... The reason" in caplog.text
