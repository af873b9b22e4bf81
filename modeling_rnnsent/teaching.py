"""What trained classifiers say of texts without labels, for another to learn (Hinton et al., 2015)."""

import datasets
import numpy as np
from datasets import Dataset
from tqdm import tqdm

from .bulk import BulkClassifier
from .data import Labels
from .errors import InputError
from .launching import from_main_process
from .scoring import load_scorer


def ask_teachers(names: list[str], texts: Dataset, labels: Labels) -> Dataset:
    """
    The texts with the mean of the teachers' probabilities (values, for regression) as their label.

    The main process asks; the others are told.

    Args:
        names (`list[str]`): Directories or Hub ids of trained classifiers, or directories of exported ones.
        texts (`Dataset`): Column `text`.
        labels ([`Labels`]): What is to be learned.

    Raises:
        InputError: where a teacher cannot be loaded or has other labels.
    """
    mean = from_main_process(lambda: _mean_answer(names, texts, labels))
    return texts.select_columns("text").add_column(
        "label", list(mean), feature=datasets.List(datasets.Value("float32"))
    )


def _mean_answer(names: list[str], texts: Dataset, labels: Labels) -> np.ndarray:
    answers = []
    for name in names:
        try:
            scorer = load_scorer(name)
        except InputError as error:
            raise InputError(f"the teacher {error}") from error
        if list(scorer.config.id2label.values()) != list(labels.config["id2label"].values()):
            raise InputError(
                f"the teacher {name!r} has the labels {list(scorer.config.id2label.values())}, the data has "
                f"{list(labels.config['id2label'].values())}."
            )
        rows = BulkClassifier(scorer)(texts["text"])
        answers.append(np.array(list(tqdm(rows, desc=f"asking {name}", total=len(texts), disable=None))))
    return np.mean(answers, axis=0).reshape(len(texts), -1).astype(np.float32)
