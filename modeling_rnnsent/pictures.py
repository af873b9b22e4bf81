"""The pictures that a run leaves behind."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure
from matplotlib.ft2font import FT2Font
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
from sklearn.metrics import auc, confusion_matrix, f1_score, roc_curve

from .labels import Labels
from .metrics import calibration_error
from .showing import wilson_margins

TRAINING_CURVES, CONFUSION_MATRIX, BY_LENGTH = "training_curves.png", "confusion_matrix.png", "accuracy_by_length.png"
RELIABILITY, ROC = "reliability.png", "roc.png"
BY_LABEL, VALUES = "f1_by_label.png", "predicted_values.png"
PICTURES = (TRAINING_CURVES, CONFUSION_MATRIX, BY_LENGTH, RELIABILITY, ROC, BY_LABEL, VALUES)
# Beyond so many classes the confusion matrix grows no more and shows their numbers at intervals, in place of names.
NAMED_CLASSES = 40
# Of so many classes the curves are drawn in one picture.
CURVES = 10
# Of a class's name so many are drawn: longer ones would leave the picture no room.
LETTERS = 30


@dataclass
class Predictions:
    """
    Predictions on one split, in any order.

    Args:
        probabilities (`np.ndarray` of shape `(texts, labels)`): Class probabilities (regression: values, `(texts,)`).
        labels (`np.ndarray`): Label ids `(texts,)`, rows of 0 and 1 `(texts, labels)`, or values `(texts,)`.
        lengths (`np.ndarray` of shape `(texts,)`): Tokens of each text.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    lengths: np.ndarray


def draw_training_curves(log_history: list[dict[str, Any]], path: Path):
    """Loss and the main metric over epochs, from `TrainerState.log_history`."""
    training = [(entry["epoch"], entry["loss"]) for entry in log_history if "loss" in entry]
    evaluations = [entry for entry in log_history if "eval_loss" in entry]
    metric = next((name for name in ("accuracy", "mse") if any(f"eval_{name}" in entry for entry in evaluations)), None)
    count = 1 if metric is None else 2  # a language model has a loss only
    figure = Figure(figsize=(4.5 * count, 3.6), layout="constrained")
    loss_axes, metric_axes = [*figure.subplots(1, count, squeeze=False)[0], None][:2]
    if training:
        loss_axes.plot(*zip(*training), "-" if len(training) > 9 else "o-", label="training")
    if evaluations:
        epochs = [entry["epoch"] for entry in evaluations]
        loss_axes.plot(epochs, [entry["eval_loss"] for entry in evaluations], "o-", label="validation")
        if metric is not None and all(f"eval_{metric}" in entry for entry in evaluations):
            metric_axes.plot(epochs, [entry[f"eval_{metric}"] for entry in evaluations], "o-C1", label="validation")
    for axes, title in ((loss_axes, "loss"), (metric_axes, metric))[:count]:
        axes.set(title=title, xlabel="epoch")
        axes.grid(alpha=0.3)
        if axes.has_data():
            axes.legend()
    figure.savefig(path, dpi=120)


def draw_confusion_matrix(predictions: Predictions, names: list[str], path: Path):
    """Texts of each class by the class they were given, as counts and shares."""
    counts = confusion_matrix(predictions.labels, predictions.probabilities.argmax(axis=1), labels=range(len(names)))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    size = 2.6 + 0.55 * min(len(names), NAMED_CLASSES)
    figure = Figure(figsize=(size + 0.8, size), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.set(xlabel="predicted", ylabel="true", title="Confusion matrix")
    if len(names) <= NAMED_CLASSES:
        axes.set(xticks=range(len(names)), yticks=range(len(names)))
        rotation = 0 if max(map(len, names)) <= 6 else 45
        axes.set_xticklabels(names, rotation=rotation, ha="center", parse_math=False)
        axes.set_yticklabels(names, parse_math=False)
    if len(names) <= 12:
        for (row, column), count in np.ndenumerate(counts):
            axes.text(
                column,
                row,
                f"{count}\n{shares[row, column]:.1%}",
                ha="center",
                va="center",
                color="white" if shares[row, column] > 0.5 else "black",
            )
    figure.colorbar(image, label="share of the true class", shrink=0.8)
    figure.savefig(path, dpi=120)


def draw_accuracy_by_length(predictions: Predictions, path: Path):
    """Accuracy of eight groups of texts of about equal number, from short to long, with its 95 % interval."""
    right = predictions.probabilities.argmax(axis=1) == predictions.labels
    order = np.argsort(predictions.lengths, kind="stable")
    groups = [group for group in np.array_split(order, 8) if len(group)]
    accuracy = np.array([right[group].mean() for group in groups])
    middle = [np.median(predictions.lengths[group]) for group in groups]
    margins = np.array([wilson_margins(int(right[group].sum()), len(group)) for group in groups]).T
    figure = Figure(figsize=(6, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.errorbar(middle, accuracy, yerr=margins, fmt="o-", capsize=3)
    axes.axhline(right.mean(), color="gray", linestyle=":", label=f"all texts: {right.mean():.1%}")
    axes.set(title="Accuracy against length", xlabel="tokens in the text (median of the group)", ylabel="accuracy")
    if min(middle) > 0 and max(middle) > 8 * min(middle):
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def draw_reliability(predictions: Predictions, path: Path):
    """Accuracy against confidence in fifteen bins, and how many texts lie in each."""
    scores = predictions.probabilities.max(axis=1)
    is_right = predictions.probabilities.argmax(axis=1) == predictions.labels
    edges = np.linspace(0, 1, 16)
    place = np.clip(np.digitize(scores, edges) - 1, 0, 14)
    bins = [index for index in range(15) if (place == index).any()]
    confidence = [scores[place == index].mean() for index in bins]
    accuracy = [is_right[place == index].mean() for index in bins]
    figure = Figure(figsize=(5, 5), layout="constrained")
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot([0, 1], [0, 1], ":", color="gray", label="calibrated")
    error = calibration_error(scores, is_right)
    axes.plot(confidence, accuracy, "o-", label=f"expected calibration error {error:.3f}")
    axes.set(title="Reliability", ylabel="accuracy", ylim=(0, 1.02))
    axes.legend()
    axes.grid(alpha=0.3)
    counts.bar(edges[:-1] + 1 / 30, np.bincount(place, minlength=15), width=1 / 16)
    least = 1 / predictions.probabilities.shape[1]
    counts.set(xlabel="confidence: probability of the answer", ylabel="texts", xlim=(max(0.0, least - 0.05), 1.01))
    figure.savefig(path, dpi=120)


def draw_roc(predictions: Predictions, names: list[str], path: Path):
    """
    Receiver operating characteristic: of class 1 for two classes, else of each class, of many those with most texts,
    against the rest.
    """
    counts = np.bincount(predictions.labels, minlength=len(names))
    classes = [1] if len(names) == 2 else np.sort(np.argsort(-counts, kind="stable")[:CURVES])
    figure = Figure(figsize=(4.6, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], ":", color="gray")
    for index in classes:
        truth = predictions.labels == index
        if 0 < truth.sum() < len(truth):
            false, true, _ = roc_curve(truth, predictions.probabilities[:, index])
            name = names[index].replace("$", r"\$")
            # matplotlib leaves out what begins with an underscore, as fastText's __label__ does.
            axes.plot(false, true, label=f"{' ' * name.startswith('_')}{name}: area {auc(false, true):.3f}")
    part = f": the largest {CURVES} of {len(names)} classes" if len(names) > CURVES else ""
    axes.set(title=f"ROC{part}", xlabel="false positive rate", ylabel="true positive rate")
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[1]:
        axes.legend()
    figure.savefig(path, dpi=120)


def draw_f1_by_label(predictions: Predictions, names: list[str], path: Path):
    """F1 of every label, of many those that most texts have, and the number of these texts."""
    truth, guesses = predictions.labels.astype(int), predictions.probabilities >= 0.5
    scores = np.array([f1_score(*columns, zero_division=0) for columns in zip(truth.T, guesses.T)])
    counts = truth.sum(axis=0)
    shown = np.sort(np.argsort(-counts, kind="stable")[:NAMED_CLASSES])
    figure = Figure(figsize=(6, 1.4 + 0.3 * len(shown)), layout="constrained")
    axes = figure.subplots()
    bars = axes.barh(range(len(shown)), scores[shown])
    axes.bar_label(bars, [f"{scores[index]:.2f} ({counts[index]:,})" for index in shown], padding=3)
    axes.set(title="F1 of each label", xlabel="F1 (texts that have the label)", xlim=(0, 1.25))
    axes.set(xticks=np.linspace(0, 1, 6), yticks=range(len(shown)))
    axes.set_yticklabels([names[index] for index in shown], parse_math=False)
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)


def draw_values(predictions: Predictions, path: Path):
    """Predicted against true values: points, or where there are many how many lie where."""
    guesses, truth = predictions.probabilities.ravel(), predictions.labels.ravel()
    figure = Figure(figsize=(4.8, 4.6), layout="constrained")
    axes = figure.subplots()
    if len(truth) > 1000:
        cells = axes.hexbin(truth, guesses, gridsize=40, bins="log", mincnt=1, cmap="Blues")
        figure.colorbar(cells, label="texts", shrink=0.8)
    else:
        axes.plot(truth, guesses, "o", markersize=4, alpha=0.5, markeredgewidth=0)
    ends = [min(truth.min(), guesses.min()), max(truth.max(), guesses.max())]
    axes.plot(ends, ends, ":", color="gray", label="as it should be")
    axes.set(title="Predicted and true values", xlabel="true", ylabel="predicted")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=120)


def drawable(names: list[str]) -> tuple[list[str], list[str]]:
    """
    Fonts that have the letters of names, the usual one first; and the names, with `class N` for what no font shows.

    Args:
        names (`list[str]`): Classes.
    """
    usual, fonts = font_manager.findfont("DejaVu Sans"), ["DejaVu Sans"]
    missing = {letter for name in names for letter in name} - _letters(usual)
    if not missing:
        return fonts, names
    for path in sorted(font_manager.findSystemFonts()):
        try:
            found = _letters(path) & missing
            family = font_manager.FontProperties(fname=path).get_name()
            if found and font_manager.findfont(family, fallback_to_default=False) == path:
                fonts.append(family)
                missing -= found
        except (OSError, RuntimeError, ValueError):  # a file that is no font, or none that can be had by its name
            continue
        if not missing:
            break
    return fonts, [f"class {index}" if missing & set(name) else name for index, name in enumerate(names)]


def _letters(path: str) -> set[str]:
    return set(map(chr, FT2Font(path).get_charmap()))


def write_pictures(
    folder: Path, log_history: list[dict[str, Any]], predictions: Predictions | None, labels: Labels | None
) -> dict[str, str]:
    """Draws what fits the labels into `folder`; returns the pictures' titles by file name."""
    draw_training_curves(log_history, folder / TRAINING_CURVES)
    if labels is None:
        return {TRAINING_CURVES: "Loss over training"}
    if labels.problem_type == "regression":
        draw_values(predictions, folder / VALUES)
        return {TRAINING_CURVES: "Loss and error over training", VALUES: "Predicted and true values"}
    fonts, names = drawable([name[:LETTERS] + "…" * (len(name) > LETTERS) for name in labels.names])
    pictures = {TRAINING_CURVES: "Loss and accuracy over training"}
    if labels.problem_type == "multi_label_classification":
        with rc_context({"font.family": fonts}):
            draw_f1_by_label(predictions, names, folder / BY_LABEL)
        return pictures | {BY_LABEL: "F1 of each label"}
    with rc_context({"font.family": fonts}):
        draw_confusion_matrix(predictions, names, folder / CONFUSION_MATRIX)
        draw_roc(predictions, names, folder / ROC)
    draw_accuracy_by_length(predictions, folder / BY_LENGTH)
    draw_reliability(predictions, folder / RELIABILITY)
    return pictures | {
        CONFUSION_MATRIX: "Confusion matrix",
        RELIABILITY: "Reliability diagram",
        ROC: "Receiver operating characteristic",
        BY_LENGTH: "Accuracy against length",
    }
