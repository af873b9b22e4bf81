"""What trained classifiers say of texts without labels, for another to learn (Hinton et al., 2015)."""

import datasets
import numpy as np
import torch
from datasets import Dataset, DatasetDict
from scipy.optimize import minimize
from scipy.special import logit
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase

from .bulk import BulkClassifier
from .documents import DOCUMENTS, answer_by_documents
from .errors import InputError
from .labels import Labels, label_array
from .launching import from_main_process
from .metrics import mean_loss
from .scoring import load_scorer, probabilities

# What no teacher is surer of: beside an answer that is sure beyond it the others would say nothing.
_LEAST_PROBABILITY = 1e-6


def ask_teachers(
    names: list[str],
    splits: DatasetDict,
    unlabeled: Dataset,
    labels: Labels,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 0,
    device: torch.device | str = "cpu",
    bf16: bool = False,
) -> Dataset:
    """
    Texts with the teachers' probabilities (values, for regression) as their label.

    The teachers' logits (values, for regression) are added up, each with a weight: those with which the sum has the
    lowest loss on the validation texts. So one that knows little has little to say, and the sum is as sure as it is
    right. The main process asks; the others are told.

    Args:
        names (`list[str]`): Directories or Hub ids of trained classifiers, directories of exported ones, or
            `"doc2vec"`: document vectors that are trained on the spot, see [`answer_by_documents`].
        splits (`DatasetDict`): `train` and `validation`, with columns `text` and `label`.
        unlabeled (`Dataset`): The texts: column `text`.
        labels ([`Labels`]): What is to be learned.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tells `"doc2vec"` the words.
        seed (`int`, *optional*, defaults to 0): Of the document vectors.
        device (`torch.device`, *optional*, defaults to the CPU): Where the classifiers run.
        bf16 (`bool`, *optional*, defaults to `False`): Whether they compute in bfloat16: see [`load_scorer`].

    Raises:
        InputError: where a teacher cannot be loaded or has other labels.
    """

    def ask() -> np.ndarray:
        answers = []
        for name in names:
            if name == DOCUMENTS:
                answers.append(_ask_documents(splits, unlabeled, labels, tokenizer, seed))
            else:
                answers.append(_ask_model(name, splits["validation"], unlabeled, labels, device, bf16))
        logits = _weigh(names, answers, label_array(splits["validation"]), labels.problem_type)
        return probabilities(logits, labels.problem_type).reshape(len(unlabeled), -1).astype(np.float32)

    feature = datasets.List(datasets.Value("float32"))
    return unlabeled.select_columns("text").add_column("label", list(from_main_process(ask)), feature=feature)


def _ask_model(
    name: str, validation: Dataset, unlabeled: Dataset, labels: Labels, device: torch.device | str, bf16: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A classifier's logits of the validation and the unlabelled texts, each `(texts, labels)`."""
    try:
        scorer = load_scorer(name, device, bf16)
    except InputError as error:
        raise InputError(f"teacher_name_or_path: {error}") from error
    known = Labels.of(scorer.config)
    if (known.problem_type, known.names) != (labels.problem_type, labels.names):
        raise InputError(f"the teacher {name!r} has the labels {known}, the data has {labels}.")
    print(f"asking the teacher {name} about {len(validation) + len(unlabeled):,} texts", flush=True)
    classify, answers = BulkClassifier(scorer), []
    for texts in (validation["text"], unlabeled["text"]):
        rows = np.array(list(tqdm(classify(texts), desc=f"asking {name}", total=len(texts), disable=None)))
        answers.append(_logits(rows.reshape(len(texts), -1), labels.problem_type))
    return answers[0], answers[1]


def _logits(answers: np.ndarray, problem_type: str) -> np.ndarray:
    """Probabilities as logits; values as they are."""
    if problem_type == "regression":
        return answers
    answers = np.clip(answers, _LEAST_PROBABILITY, 1 - _LEAST_PROBABILITY)
    return logit(answers) if problem_type == "multi_label_classification" else np.log(answers)


def _ask_documents(
    splits: DatasetDict, unlabeled: Dataset, labels: Labels, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    train, validation = splits["train"], splits["validation"]
    return answer_by_documents(
        train["text"],
        label_array(train),
        validation["text"],
        label_array(validation),
        unlabeled["text"],
        labels.problem_type,
        len(labels.config["id2label"]),
        tokenizer,
        seed,
    )


def _weigh(
    names: list[str], answers: list[tuple[np.ndarray, np.ndarray]], labels: np.ndarray, problem_type: str
) -> np.ndarray:
    """The sum of the teachers' logits of the unlabelled texts, weighted as is best on the validation texts."""
    validation, unlabeled = (np.stack(parts) for parts in zip(*answers))

    def loss(weights: np.ndarray) -> float:
        return mean_loss(np.tensordot(weights, validation, axes=1), labels, problem_type)

    def aim(weights: np.ndarray) -> float:
        if problem_type == "regression":  # of small values the search would take its first step's gain for none
            return loss(weights) / (float(np.var(labels)) or 1.0)
        # A few texts without an error are no reason to be many times as sure: see `fit_temperature`.
        return loss(weights) + np.log(max(1.0, weights.sum())) ** 2 / len(labels)

    bounds = [(0, None)] * len(names)
    weights = minimize(aim, x0=np.full(len(names), 1 / len(names)), bounds=bounds).x
    alone = [mean_loss(part, labels, problem_type) for part in validation]
    told = "".join(f"{name} {weight:.2f} ({own:.4f}), " for name, weight, own in zip(names, weights, alone))
    print(f"teachers' weights (and validation losses): {told}together ({loss(weights):.4f})", flush=True)
    return np.tensordot(weights, unlabeled, axes=1)
