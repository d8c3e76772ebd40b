from xml.etree import ElementTree

import pytest
from matplotlib import rc_context

from trl_rlp.quickstart import plots as quickstart_plots
from trl_rlp.report import plots as report_plots
from trl_rlp.report.acceptance import sweep_thresholds
from trl_rlp.report.plots import (
    _create_threshold_axes,
    name_label,
    plot_acceptance,
    plot_against_kl,
    plot_curves,
    plot_label_accuracy,
    plot_lengths,
    plot_reward_models,
)


HOSTILE = "$\\frac{1}$ <b>\x1b\u202e\ud83d"
ACCEPTANCE = sweep_thresholds([1.0, 0.4], [1.0, 0.45], [1.0], [(True, False)])


def get_texts(image):
    return [element.text for element in ElementTree.fromstring(image.svg).iter() if element.tag.endswith("text")]


def test_equal_data_give_equal_plots_with_the_threshold():
    image = plot_acceptance(ACCEPTANCE, 0.5)
    assert any("γ = 0.5" in text for text in get_texts(image)) and image.svg.startswith("<svg")
    assert image == plot_acceptance(ACCEPTANCE, 0.5)


def test_settings_of_the_user_do_not_change_a_plot():
    """`text.usetex` is common in papers' settings, and it cannot draw γ or the underscores in names."""
    pairs = {"pairs": 40, "accuracy": 0.6}
    arguments = {
        report_plots.plot_acceptance: (ACCEPTANCE, 0.5),
        report_plots.plot_label_accuracy: (ACCEPTANCE, 0.5),
        report_plots.plot_reward_models: ({"human": {"before": pairs, "after": pairs}}, "accuracy", "axis"),
        report_plots.plot_curves: ("loss", {"reward_model": [(1, 0.5), (2, 0.4)]}),
        report_plots.plot_against_kl: ("accuracy", {"sft": (0.1, 0.5, 0.1)}),
        report_plots.plot_lengths: ("rewards", {"a": ([1, 2], [0.1, 0.2])}),
        quickstart_plots.plot_confidence: ([{"confidence": 0.5, "majority_right": True}], 4, 0.5),
        quickstart_plots.plot_policies: ({"sft": {"accuracy": 0.5, "interval": [0.4, 0.6]}},),
    }
    functions = {**vars(report_plots), **vars(quickstart_plots)}
    assert set(arguments) == {value for name, value in functions.items() if name.startswith("plot_")}
    for plot, values in arguments.items():
        expected = plot(*values)
        with rc_context({"font.size": 20, "text.usetex": True, "axes.grid": True, "savefig.facecolor": "black"}):
            assert plot(*values) == expected


@pytest.mark.parametrize("threshold", [0.0, 0.5, 1.0])
def test_no_curve_hides_the_label_of_the_threshold(threshold):
    figure, axes = _create_threshold_axes("share", threshold)
    figure.draw_without_rendering()
    (label,) = axes.texts
    box = label.get_window_extent()
    assert box.y0 >= axes.get_window_extent().y1
    assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 and box.y1 <= figure.bbox.y1


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_label_accuracy_is_plotted_also_if_nothing_is_known(threshold):
    assert "label accuracy" in get_texts(plot_label_accuracy(ACCEPTANCE, threshold))
    assert get_texts(plot_label_accuracy(sweep_thresholds([1.0], [1.0], []), threshold))


@pytest.mark.parametrize("metric", ["accuracy", "calibration_error"])
def test_each_set_of_pairs_and_its_size_is_plotted(metric):
    metrics = {side: {metric: 0.6, "pairs": 40} for side in ("before", "after")}
    found = get_texts(plot_reward_models({"human": metrics, "policy": metrics}, metric, "axis"))
    assert {"human", "policy", "(40 pairs)", "r, before", "r̂, after", "axis"} <= set(found)
    single = {side: {metric: 0.0, "pairs": 1} for side in ("before", "after")}
    assert "(1 pair)" in get_texts(plot_reward_models({"human": single}, metric, "axis"))


def test_every_training_has_a_curve():
    found = get_texts(plot_curves("loss", {"first": [(1, 0.5), (2, 0.4)]}, {"first": [(1, 0.6)], "second": [(1, 1)]}))
    assert {"loss", "first", "first, evaluation", "second, evaluation"} <= set(found)


@pytest.mark.filterwarnings("error")
def test_names_of_a_run_are_plain_labels():
    """The browser draws them, so matplotlib does not warn of characters that its own font lacks."""
    label = name_label("a$b\n" + "x" * 100)
    assert label == "a\\$b " + "x" * 52
    for image in (
        plot_against_kl(HOSTILE, {HOSTILE: (0.1, 0.5, 0.1)}),
        plot_curves(HOSTILE, {HOSTILE: [(1, 1.0)], "报酬": [(1, 2.0)]}),
        plot_lengths(HOSTILE, {HOSTILE: ([1, 2], [0.1, 0.2])}),
    ):
        assert "$\\frac{1}$ <b>⟨U+001B⟩⟨U+202E⟩⟨U+D83D⟩" in get_texts(image)


def test_a_plot_of_many_points_stays_small():
    many = list(range(50_000))
    assert len(plot_lengths("rewards", {"a": (many, many), "b": (many, many)}).svg) < 300_000
