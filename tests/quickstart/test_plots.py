from xml.etree import ElementTree

from trl_rlp.quickstart.plots import plot_confidence, plot_policies, plot_reward_models


def get_texts(svg):
    return [element.text for element in ElementTree.fromstring(svg).iter() if element.tag.endswith("text")]


def test_confidence_plot_is_an_svg_with_the_threshold():
    rows = [{"confidence": 0.5, "majority_right": True}, {"confidence": 0.3, "majority_right": False}]
    svg = plot_confidence(rows, 10, 0.5)
    assert svg.startswith('<svg role="img" aria-label="Confidence')
    assert any("γ = 0.5" in text for text in get_texts(svg))
    assert {"majority right", "majority wrong"} <= set(get_texts(svg))
    assert svg == plot_confidence(rows, 10, 0.5)


def test_confidence_plot_works_without_questions():
    assert get_texts(plot_confidence([], 10, 0.5))


def test_reward_model_plot_shows_each_set_and_its_size():
    metrics = {side: {"accuracy": 0.6, "pairs": 40} for side in ("before", "after")}
    found = get_texts(plot_reward_models({"human": metrics, "policy": metrics}))
    assert {"human", "policy", "(40 pairs)", "r, before", "r̂, after"} <= set(found)


def test_policy_plot_shows_each_accuracy():
    names = ("sft", "policy", "retrained_policy")
    policies = {name: {"accuracy": 0.1 + index / 10, "interval": [0.05, 0.6]} for index, name in enumerate(names)}
    assert {"0.100", "0.200", "0.300"} <= set(get_texts(plot_policies(policies)))
