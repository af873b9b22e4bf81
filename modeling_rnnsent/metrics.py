"""Metrics as `evaluate` modules that need no network: `evaluate.load` would download their code when called."""

from collections.abc import Callable

import datasets
import evaluate
import numpy as np
import torch
from scipy.optimize import minimize_scalar
from sklearn import metrics
from torch.nn import functional as F
from transformers import EvalPrediction

from .errors import Diverged
from .labels import Labels
from .scoring import probabilities


class SingleLabelMetrics(evaluate.Metric):
    """
    Accuracy, precision, recall, F1 and ROC AUC of one class a text, computed by scikit-learn, and the expected
    calibration error.

    Predictions are rows of class probabilities, references class ids. For two classes the last three speak of class 1;
    for more they are means over the classes that are right or given as an answer (ROC AUC: over all, one class against
    the rest, and left out where one has no example).
    """

    def _info(self):
        return _info(
            self,
            {"predictions": datasets.List(datasets.Value("float32")), "references": datasets.Value("int64")},
        )

    def _compute(self, predictions, references):
        scores, truth = np.asarray(predictions), np.asarray(references)
        guesses = scores.argmax(axis=1)
        classes = np.arange(scores.shape[1])
        average = "binary" if len(classes) == 2 else "macro"
        return {
            "accuracy": float(metrics.accuracy_score(truth, guesses)),
            **_precision_recall_f1(truth, guesses, average),
            **_roc_auc(truth, scores, classes),
            "calibration_error": calibration_error(scores.max(axis=1), guesses == truth),
        }


class MultiLabelMetrics(evaluate.Metric):
    """
    Accuracy (all labels of a text right), precision, recall and F1 (counted over all labels: micro average) and ROC AUC
    (mean over labels), computed by scikit-learn.

    Predictions are rows of label probabilities, of which 0.5 and more count as given; references are rows of 0 and 1.
    """

    def _info(self):
        row = datasets.List(datasets.Value("float32"))
        return _info(self, {"predictions": row, "references": row})

    def _compute(self, predictions, references):
        scores, truth = np.asarray(predictions), np.asarray(references).astype(int)
        guesses = (scores >= 0.5).astype(int)
        mixed = [column for column in range(truth.shape[1]) if 0 < truth[:, column].sum() < len(truth)]
        return {
            "accuracy": float(metrics.accuracy_score(truth, guesses)),
            # One column is what scikit-learn takes for two classes of one label: count its 1s only.
            **_precision_recall_f1(truth, guesses, "micro", labels=[1] if truth.shape[1] == 1 else None),
            **({"roc_auc": float(metrics.roc_auc_score(truth[:, mixed], scores[:, mixed]))} if mixed else {}),
        }


class RegressionMetrics(evaluate.Metric):
    """Mean squared error and Pearson's correlation; predictions and references are floats."""

    def _info(self):
        value = datasets.Value("float32")
        return _info(self, {"predictions": value, "references": value})

    def _compute(self, predictions, references):
        guesses, truth = np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.float64)
        varies = len(truth) > 1 and guesses.std() > 0 and truth.std() > 0
        return {
            "mse": float(metrics.mean_squared_error(truth, guesses)),
            "pearson": float(np.corrcoef(truth, guesses)[0, 1]) if varies else 0.0,
        }


def metrics_for(labels: Labels) -> Callable[[EvalPrediction], dict[str, float]]:
    """
    The `compute_metrics` of a `Trainer`.

    Args:
        labels ([`Labels`]): What the labels are.

    Returns:
        A function from predictions (logits) and label ids to metrics by name, which raises `Diverged` where the
        predictions are no finite numbers.
    """
    measure = measure_for(labels)

    def compute_metrics(prediction: EvalPrediction) -> dict[str, float]:
        if not np.isfinite(prediction.predictions).all():
            raise Diverged(
                "the training has diverged: the model's answers are no finite numbers. Lower its learning_rate."
            )
        return measure(probabilities(prediction.predictions, labels.problem_type), prediction.label_ids)

    return compute_metrics


def measure_for(labels: Labels) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
    """A function from probabilities (values, for regression) and labels to metrics by name."""
    module = {
        "single_label_classification": SingleLabelMetrics,
        "multi_label_classification": MultiLabelMetrics,
        "regression": RegressionMetrics,
    }[labels.problem_type](keep_in_memory=True)
    # Not by `compute`, which makes Python's lists of all the numbers first.
    return module._compute


def fit_temperature(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """
    What logits are to be divided by for the lowest loss, 0.1 to 10 (Guo et al., "On Calibration", 2017); 1 for values.

    Below 1 its logarithm's square is added to the loss of all texts together: a few texts without an error are no
    reason to be ten times as sure.

    Args:
        logits (`np.ndarray` of shape `(texts, num_labels)`): Of texts not trained on.
        labels (`np.ndarray`): Their labels.
        problem_type (`str`): As in `config.problem_type`.
    """
    if problem_type == "regression":
        return 1.0
    logits = np.asarray(logits, dtype=np.float64)
    found = minimize_scalar(
        lambda log: mean_loss(logits / np.exp(log), labels, problem_type) + min(log, 0.0) ** 2 / len(logits),
        bounds=(np.log(0.1), np.log(10)),
    )
    return round(float(np.exp(found.x)), 4)


def calibration_error(scores: np.ndarray, is_right: np.ndarray, bins: int = 15) -> float:
    """
    Expected calibration error: the mean distance between the confidence and the accuracy of texts of about the same
    confidence (Naeini et al., 2015), in bins of equal width.

    Args:
        scores (`np.ndarray` of shape `(texts,)`): Probability of the answer to each text.
        is_right (`np.ndarray` of shape `(texts,)`): Whether it is the right one.
        bins (`int`, *optional*, defaults to 15): How many bins.
    """
    place = np.clip((np.asarray(scores) * bins).astype(int), 0, bins - 1)
    counts = np.bincount(place, minlength=bins)
    gaps = np.bincount(place, weights=np.asarray(scores) - np.asarray(is_right), minlength=bins)
    return float(np.abs(gaps).sum() / max(1, counts.sum()))


def mean_loss(logits: np.ndarray, labels: np.ndarray, problem_type: str) -> float:
    """Cross-entropy (of every label, for multi-label) or mean squared error, mean over texts."""
    logits, labels = torch.from_numpy(np.asarray(logits, dtype=np.float64)), torch.from_numpy(np.asarray(labels))
    if problem_type == "single_label_classification":
        return float(F.cross_entropy(logits, labels.long()))
    loss = F.mse_loss if problem_type == "regression" else F.binary_cross_entropy_with_logits
    return float(loss(logits, labels.double().view_as(logits)))


def _info(module: evaluate.Metric, features: dict) -> evaluate.MetricInfo:
    description = type(module).__doc__
    return evaluate.MetricInfo(
        description=description, citation="", inputs_description=description, features=datasets.Features(features)
    )


def _precision_recall_f1(truth, guesses, average: str, labels=None) -> dict[str, float]:
    values = metrics.precision_recall_fscore_support(truth, guesses, average=average, labels=labels, zero_division=0)
    return {name: float(value) for name, value in zip(("precision", "recall", "f1"), values)}


def _roc_auc(truth, scores, classes) -> dict[str, float]:
    if len(np.unique(truth)) < len(classes):
        return {}
    if len(classes) == 2:
        return {"roc_auc": float(metrics.roc_auc_score(truth, scores[:, 1]))}
    # scikit-learn wants rows that sum to 1 to the last digit, which float32 does not keep
    scores = scores / scores.sum(axis=1, keepdims=True)
    return {"roc_auc": float(metrics.roc_auc_score(truth, scores, multi_class="ovr", labels=classes))}
