from xml.etree import ElementTree

from trl_rlp.quickstart.plots import confidence_plot, policy_plot, reward_plot


def texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_confidence_plot_is_svg_that_names_the_threshold():
    rows = [{"confidence": 0.5, "majority_right": True}, {"confidence": 0.3, "majority_right": False}]
    svg = confidence_plot(rows, 10, 0.5)
    assert svg.startswith('<svg role="img" aria-label="Confidence')
    assert any("γ = 0.5" in text for text in texts(svg))
    assert {"majority right", "majority wrong"} <= set(texts(svg))
    assert svg == confidence_plot(rows, 10, 0.5)


def test_plots_without_questions_still_draw():
    assert texts(confidence_plot([], 10, 0.5))


def test_reward_plot_names_each_set_and_its_size():
    figures = {side: {"accuracy": 0.6, "pairs": 40} for side in ("before", "after")}
    found = texts(reward_plot({"human": figures, "policy": figures}))
    assert {"human", "policy", "(40 pairs)", "r, before", "r̂, after"} <= set(found)


def test_policy_plot_writes_each_accuracy():
    names = ("sft", "policy", "retrained_policy")
    policies = {name: {"accuracy": 0.1 + place / 10, "interval": [0.05, 0.6]} for place, name in enumerate(names)}
    assert {"0.100", "0.200", "0.300"} <= set(texts(policy_plot(policies)))
