"""What a run's pictures show, by the numbers that are drawn."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from modeling_rnnsent import pictures
from modeling_rnnsent.pictures import Predictions
from modeling_rnnsent.showing import wilson_margins

# Of class 1: four texts of it, of which one is missed, and four of class 0, of which two are taken for it.
POSITIVE = np.array([0.9, 0.8, 0.7, 0.3, 0.6, 0.55, 0.2, 0.1])
LABELS = np.array([1, 1, 1, 1, 0, 0, 0, 0])
TWO = Predictions(np.stack([1 - POSITIVE, POSITIVE], axis=1), LABELS, np.array([8, 7, 6, 5, 4, 3, 2, 1]))


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are drawn."""
    figures = []

    class Kept(Figure):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            figures.append(self)

    monkeypatch.setattr(pictures, "Figure", Kept)
    return figures


def test_rows_of_the_confusion_matrix_are_the_true_classes(drawn, tmp_path):
    pictures.draw_confusion_matrix(TWO, ["neg", "pos"], tmp_path / "a.png")
    axes = drawn[0].axes[0]
    np.testing.assert_allclose(axes.images[0].get_array(), [[2 / 4, 2 / 4], [1 / 4, 3 / 4]])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["neg", "pos"]
    shown = {text.get_position(): text.get_text() for text in axes.texts}  # (column, row)
    assert shown[0, 1] == "1\n25.0%" and shown[1, 1] == "3\n75.0%"


def test_roc_is_of_the_second_of_two_classes(drawn, tmp_path):
    pictures.draw_roc(TWO, ["neg", "pos"], tmp_path / "a.png")
    (line,) = [line for line in drawn[0].axes[0].lines if str(line.get_label()).startswith("pos")]
    assert "area 0.875" in line.get_label()  # of the sixteen pairs two go wrong
    points = set(zip(line.get_xdata(), line.get_ydata()))
    assert (0.0, 0.75) in points and (0.5, 1.0) in points


def test_reliability_is_accuracy_over_confidence(drawn, tmp_path):
    pictures.draw_reliability(TWO, tmp_path / "a.png")
    axes, counts = drawn[0].axes
    (line,) = [line for line in axes.lines if "expected" in str(line.get_label())]
    # 0.55 and 0.6 are both wrong, 0.7 is right once of twice.
    np.testing.assert_allclose(line.get_xdata(), [0.55, 0.6, 0.7, 0.8, 0.9])
    np.testing.assert_allclose(line.get_ydata(), [0, 0, 1 / 2, 1, 1])
    assert sorted(bar.get_height() for bar in counts.patches) == [0] * 10 + [1, 1, 2, 2, 2]
    assert "error 0.269" in line.get_label()  # (0.55 + 0.6 + |2 * 0.7 - 1| + 2 * 0.2 + 2 * 0.1) / 8
    assert (axes.get_ylabel(), counts.get_ylabel()) == ("accuracy", "texts")


def test_accuracy_by_length_goes_from_short_to_long_with_wilsons_margins(drawn, tmp_path):
    pictures.draw_accuracy_by_length(TWO, tmp_path / "a.png")
    axes = drawn[0].axes[0]
    line, _, (bars,) = axes.containers[0]
    right = [1, 1, 0, 0, 0, 1, 1, 1]
    assert list(line.get_xdata()) == list(range(1, 9))
    np.testing.assert_allclose(line.get_ydata(), right)
    for (low, high), value in zip(bars.get_segments(), right):
        below, above = wilson_margins(value, 1)
        np.testing.assert_allclose([low[1], high[1]], [value - below, value + above])


def test_training_curves_are_of_their_epochs(drawn, tmp_path):
    history = [{"epoch": 0.5, "loss": 0.7}, {"epoch": 1.0, "eval_loss": 0.6, "eval_accuracy": 0.8}]
    pictures.draw_training_curves([*history, {"epoch": 1.5, "loss": 0.5}], tmp_path / "a.png")
    loss, accuracy = drawn[0].axes
    lines = {line.get_label(): list(zip(line.get_xdata(), line.get_ydata())) for line in loss.lines}
    assert lines == {"training": [(0.5, 0.7), (1.5, 0.5)], "validation": [(1.0, 0.6)]}
    assert [tuple(point) for point in accuracy.lines[0].get_xydata()] == [(1.0, 0.8)]


def test_f1_of_every_label(drawn, tmp_path):
    truth = np.array([[1, 0], [1, 1], [0, 1], [0, 1]])
    scores = np.array([[0.9, 0.1], [0.4, 0.6], [0.5, 0.7], [0.2, 0.8]])
    pictures.draw_f1_by_label(Predictions(scores, truth, np.arange(4)), ["a", "b"], tmp_path / "a.png")
    axes = drawn[0].axes[0]
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], [0.5, 1.0])
    assert [text.get_text() for text in axes.texts] == ["0.50 (2)", "1.00 (3)"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]


def test_values_are_drawn_true_against_predicted(drawn, tmp_path):
    guesses, truth = np.array([1.0, 2.0, 4.0]), np.array([1.5, 2.5, 3.0])
    pictures.draw_values(Predictions(guesses, truth, np.arange(3)), tmp_path / "a.png")
    axes = drawn[0].axes[0]
    assert [tuple(point) for point in axes.lines[0].get_xydata()] == list(zip(truth, guesses))
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("true", "predicted")
