"""What labels are: told by a data set's column, checked, and as numbers."""

import difflib
import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import datasets
import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset
from transformers import PreTrainedConfig
from transformers.utils import logging

from .errors import InputError
from .files import is_number

logger = logging.get_logger(__name__)

_FEW = 20  # texts of which each may well have a class of its own, and whole numbers that may well be classes
_MANY = 100  # whole numbers that may well be values


@dataclass
class Labels:
    """
    What the labels are.

    Args:
        problem_type (`str`): As in `config.problem_type`.
        names (`list[str]`): Class names in the order of their ids; empty for regression.
        have_ids (`bool`): Whether the data itself gives the names their ids, so that integers elsewhere are such ids.
        mean, scale (`float`): Of a regression's training values: mean and standard deviation (1.0 where there is none).
    """

    problem_type: str
    names: list[str] = field(default_factory=list)
    have_ids: bool = False
    mean: float = 0.0
    scale: float = 1.0

    def __str__(self) -> str:
        return f"{self.names} ({self.problem_type})" if self.names else f"values ({self.problem_type})"

    @property
    def config(self) -> dict[str, Any]:
        """Fields of the model's config that say the same."""
        names = self.names or ["value"]
        values = {} if self.names else {"value_mean": self.mean, "value_scale": self.scale}
        return {
            **values,
            "problem_type": self.problem_type,
            "id2label": dict(enumerate(names)),
            "label2id": {name: index for index, name in enumerate(names)},
        }

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Labels":
        """The labels of a trained model: integers elsewhere are their ids, unless a name is a number itself."""
        if config.problem_type == "regression":
            return cls(config.problem_type)
        names = [config.id2label[index] for index in range(config.num_labels)]
        has_numbers = any(map(is_number, names))
        return cls(config.problem_type or "single_label_classification", names, have_ids=not has_numbers)


def find_labels(train: Dataset, problem_type: str | None) -> Labels:
    """What the labels are, by the training data's label column or `problem_type`."""
    feature = train.features["label"]
    inner = getattr(feature, "feature", None)
    kind = feature if inner is None else inner
    if getattr(kind, "dtype", None) is None:
        raise InputError(f"labels must be integers, names, floats or lists of these, got {feature}.")
    is_said, column = problem_type is not None, train["label"][:]
    if problem_type is None:
        if inner is not None:
            problem_type = "multi_label_classification"
        elif str(feature.dtype).startswith(("float", "double", "decimal")):
            problem_type = "regression"
        else:
            problem_type = "single_label_classification"
    if not is_said and inner is None and not isinstance(kind, ClassLabel):
        _warn_of_numbers(column, problem_type)
    if problem_type == "regression":
        return Labels(problem_type)
    if (problem_type == "multi_label_classification") != (inner is not None):
        raise InputError(
            f"problem_type {problem_type!r} does not fit a label column of {feature}: lists are for "
            "multi_label_classification, single values for single_label_classification."
        )
    if isinstance(kind, ClassLabel):
        names = list(kind.names)
        used = {names[index] for index in set(_flat(column, inner)) if 0 <= index < len(names)}
    else:
        values = sorted(set(_flat(column, inner)))
        if not is_said and inner is None:
            _check_numbers(values, column)
        _check_names(values, is_said)
        names = [str(int(value)) if isinstance(value, float) and value.is_integer() else str(value) for value in values]
        used = set(names)
    if problem_type == "single_label_classification" and len(used) < 2:
        raise InputError(f"the training data has one class only, {sorted(used)}: there is nothing to tell apart.")
    if not names:
        raise InputError("the training data's label lists are all empty: there is nothing to learn.")
    if inner is not None and len(set(map(frozenset, column))) == 1:
        raise InputError(
            f"the training data's texts all have the same labels, {names}: there is nothing to tell apart."
        )
    if inner is None and len(used) == len(train) > _FEW:
        raise InputError(
            f"each of the {len(train)} texts of the training data has a label of its own: is label_column_name the "
            "column of the labels?"
        )
    return Labels(problem_type, names, isinstance(kind, ClassLabel) and not any(map(is_number, names)))


def check_lists(column: Any, split: str):
    """Raises `InputError` for lists that lack a value, and of fractions or zeros and ones, which name no label."""
    are_rows, kinds = True, set()
    for row in column:
        if None in row:
            raise InputError(f"the {split} data has a label list with a missing value in it.")
        if any(isinstance(value, float) and not value.is_integer() for value in row):
            raise InputError(
                f"the {split} data's labels are lists of fractions, {row!r:.100} for one: give lists of the names or "
                "numbers of the labels that a text has. Several values a text cannot be learned."
            )
        are_rows = are_rows and len(row) == len(column[0]) and all(value in (0, 1) for value in row)
        if are_rows:
            kinds.add(tuple(row))
    if are_rows and (any(len(set(row)) < len(row) for row in kinds) or kinds == {(0, 1), (1, 0)}):
        raise InputError(
            f"the {split} data's labels are lists of zeros and ones, {column[0]!r:.100} in row 1: give lists of the "
            "names or numbers of the labels that a text has."
        )


def _warn_of_numbers(column: list, problem_type: str):
    """Says how numbers are read that may well be meant otherwise."""
    values = set(column)
    if problem_type == "regression" and len(values) <= _FEW and all(float(value).is_integer() for value in values):
        logger.warning(
            f"The labels are {len(values)} whole numbers written as fractions, {min(values)} to {max(values)}, and are "
            "learned as values: if they are classes, say problem_type single_label_classification."
        )
    if problem_type != "regression" and len(values) > _MANY and all(type(value) is int for value in values):
        logger.warning(
            f"The labels are {len(values)} different whole numbers, {min(values)} to {max(values)}, and are learned as "
            "classes: if they are values, say problem_type regression."
        )


def _check_names(values: list, is_said: bool):
    """Raises `InputError` for a name that is blank or a list in writing; says which names differ in case or blanks."""
    alike = defaultdict(list)
    names = [value for value in values if isinstance(value, str)]
    for name in names:
        if not name.strip():
            raise InputError(f"the training data has a label that is no name: {name!r}.")
        alike[name.strip().casefold()].append(name)
    if names and not is_said and all(name.startswith("[") and name.endswith("]") for name in names):
        raise InputError(
            f"the training data's labels are lists written as strings, {names[0]!r:.100} for one: .csv and .tsv files "
            "hold no lists, .jsonl and .parquet files do."
        )
    for same in alike.values():
        if len(same) > 1:
            logger.warning(f"The labels {', '.join(map(repr, same))} are taken for different classes.")


def _check_numbers(values: list, column: Any):
    """Raises `InputError` where some names are numbers and others are not: one of them is probably a mistake."""
    are_numbers = {value: is_number(value) for value in values if isinstance(value, str)}
    if len(set(are_numbers.values())) == 2:
        first = column[0]
        other = next(row for row, value in enumerate(column) if are_numbers[value] != are_numbers[first])
        raise InputError(
            f"the training data's labels are numbers and names, {first!r} in row 1 and {column[other]!r} in row "
            f"{other + 1}: if that is meant, say problem_type single_label_classification."
        )


def _flat(column: Any, inner: Any) -> list:
    return [value for row in column for value in row] if inner is not None else list(column)


def is_hidden(dataset: Dataset, column: str) -> bool:
    """Whether a test split has no labels, or None or -1 everywhere, as competitions publish it."""
    return column not in dataset.column_names or all(label in (None, -1) for label in dataset[column])


def encode_labels(dataset: Dataset, split: str, labels: Labels) -> Dataset:
    """The split with labels as numbers."""
    feature = dataset.features["label"]
    column = dataset["label"][:]  # at once: an iteration would read row by row
    inner = getattr(feature, "feature", None)
    if labels.problem_type == "regression":
        try:
            encoded = [float(value) for value in column]
        except (TypeError, ValueError):
            raise InputError(f"the {split} data's labels must be numbers for regression, got {feature}.") from None
        if not all(map(math.isfinite, encoded)):
            raise InputError(f"the {split} data's labels must be finite numbers.")
        return _with_labels(dataset, encoded, datasets.Value("float32"))

    ids = {name: index for index, name in enumerate(labels.names)}
    named = feature if inner is None else inner

    def encode(value: Any, row: int) -> int:
        if labels.have_ids and isinstance(value, int) and not isinstance(named, ClassLabel):
            name = labels.names[value] if 0 <= value < len(labels.names) else value
        elif isinstance(named, ClassLabel):
            name = named.names[value] if 0 <= value < len(named.names) else value
        else:
            name = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
        if name not in ids:
            raise InputError(
                f"the {split} data's row {row + 1} has the label {name!r}, which is not among the training data's: "
                f"{_shown(labels.names, str(name))}."
            )
        return ids[name]

    if labels.problem_type == "single_label_classification":
        return _with_labels(
            dataset, [encode(value, row) for row, value in enumerate(column)], ClassLabel(names=labels.names)
        )
    if inner is None:
        raise InputError(f"the {split} data's labels must be lists, of those that a text has, got {column[0]!r:.100}.")
    rows = np.zeros((len(column), len(labels.names)), dtype=np.float32)
    for row, values in enumerate(column):
        rows[row, [encode(value, row) for value in values]] = 1
    return _with_labels(dataset, list(rows), datasets.List(datasets.Value("float32")))


def _shown(names: list[str], wanted: str) -> str:
    """The names, of many those most like the one wanted and the first."""
    if len(names) <= _FEW:
        return str(names)
    some = dict.fromkeys([*difflib.get_close_matches(wanted, names), *names[:10]])
    return f"{', '.join(map(repr, some))} and {len(names) - len(some)} more"


def label_array(dataset: Dataset) -> np.ndarray:
    """Encoded labels: `(texts,)`, of several labels a text `(texts, labels)`. Not by way of Python's numbers."""
    column = dataset.with_format("arrow")[:]["label"].combine_chunks()
    is_list = isinstance(column, pyarrow.ListArray)
    return np.array(column.flatten()).reshape(len(column), -1) if is_list else np.array(column)


def _with_labels(dataset: Dataset, labels: list, feature: Any) -> Dataset:
    return dataset.remove_columns("label").add_column("label", labels, feature=feature)
