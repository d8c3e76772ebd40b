from xml.etree import ElementTree

from trl_rlp.quickstart.plots import plot_confidence, plot_policies


def get_texts(image):
    return [element.text for element in ElementTree.fromstring(image.svg).iter() if element.tag.endswith("text")]


def test_confidence_plot_is_an_svg_with_the_threshold():
    rows = [{"confidence": 0.5, "majority_right": True}, {"confidence": 0.3, "majority_right": False}]
    image = plot_confidence(rows, 10, 0.5)
    assert image.title.startswith("Confidence") and image.svg.startswith("<svg")
    assert any("γ = 0.5" in text for text in get_texts(image))
    assert {"majority right", "majority wrong"} <= set(get_texts(image))
    assert image == plot_confidence(rows, 10, 0.5)


def test_confidence_plot_works_without_questions():
    assert get_texts(plot_confidence([], 10, 0.5))


def test_policy_plot_shows_each_accuracy():
    names = ("sft", "policy", "retrained_policy")
    policies = {name: {"accuracy": 0.1 + index / 10, "interval": [0.05, 0.6]} for index, name in enumerate(names)}
    assert {"0.100", "0.200", "0.300"} <= set(get_texts(plot_policies(policies)))
