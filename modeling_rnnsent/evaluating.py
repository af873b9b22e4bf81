"""How good trained models are on labelled texts, each by itself and all of them together."""

import numpy as np
import torch
from tqdm.auto import tqdm

from .arguments import DataArguments
from .bulk import BulkClassifier
from .data import load_labeled_split
from .errors import InputError
from .labels import Labels, label_array
from .metrics import measure_for
from .scoring import load_scorer

ENSEMBLE = "mean of all"


def evaluate_models(
    names: list[str],
    source: str,
    split: str | None = None,
    text_column_name: str = "text",
    label_column_name: str = "label",
    dataset_config_name: str | None = None,
    bf16: bool = False,
) -> dict[str, dict[str, float]]:
    """
    Metrics of every model and, of several, of the mean of their probabilities (values, for regression).

    Args:
        names (`list[str]`): Directories or Hub ids of trained classifiers, or directories of exported ones.
        source (`str`): A .csv, .tsv, .json, .jsonl or .parquet file, or a data set: a name on the Hub or a folder.
        split (`str`, *optional*): Split of a data set. None: `"test"`.
        text_column_name, label_column_name (`str`, *optional*): Columns.
        dataset_config_name (`str`, *optional*): Configuration of a data set.
        bf16 (`bool`, *optional*, defaults to `False`): Whether models compute in bfloat16: see [`load_scorer`].

    Returns:
        `dict[str, dict[str, float]]`: metrics by name, for each model and for `"mean of all"`.

    Raises:
        InputError: where a model or the data cannot be used, or the models' labels differ.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    arguments = DataArguments(
        text_column_name=text_column_name,
        label_column_name=label_column_name,
        dataset_config_name=dataset_config_name,
    )
    labels, texts, answers = None, None, []
    for name in names:
        scorer = load_scorer(name, device, bf16)
        if labels is None:
            labels = Labels.of(scorer.config)
            texts = load_labeled_split(source, labels, arguments, split)
        elif Labels.of(scorer.config) != labels:
            raise InputError(
                f"{name!r} has the labels {Labels.of(scorer.config)}, {names[0]!r} has {labels}: they cannot be "
                "averaged."
            )
        rows = tqdm(BulkClassifier(scorer)(texts["text"]), desc=name, total=len(texts), disable=None, leave=False)
        answers.append(np.array(list(rows)))
    measure, references = measure_for(labels), label_array(texts)
    results = {name: measure(answer, references) for name, answer in zip(names, answers)}
    if len(names) > 1:
        results[ENSEMBLE] = measure(np.mean(answers, axis=0), references)
    return results
