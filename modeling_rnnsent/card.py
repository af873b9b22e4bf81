"""The model card: how to use a model, what was measured, its recipe and data, and its surest mistakes."""

import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedModel

from .data import MOVIE_REVIEWS
from .explaining import Explainer
from .pictures import PICTURES, Predictions
from .showing import figures
from .tokenization import HTML_TAG

MODEL_CARD = "README.md"
REPORTS = (MODEL_CARD, *PICTURES)
# Texts shown among the most confident mistakes, and how much of each.
MISTAKES, MISTAKE_WORDS = 5, 80
_METRIC_TYPES = {"accuracy": "accuracy", "precision": "precision", "recall": "recall", "f1": "f1"}
_METRIC_TYPES |= {"roc_auc": "roc_auc", "mse": "mse", "pearson": "pearsonr", "perplexity": "perplexity"}


def find_mistakes(predictions: Predictions, number: int = MISTAKES) -> np.ndarray:
    """Rows of the texts with the most confident wrong answers, the surest first."""
    wrong = np.flatnonzero(predictions.probabilities.argmax(axis=1) != predictions.labels)
    return wrong[np.argsort(-predictions.probabilities[wrong].max(axis=1), kind="stable")][:number]


def show_mistakes(explainer: Explainer, texts: list[str], labels: list[str]) -> list[str]:
    """
    Markdown of wrongly classified texts, in which the words that the wrong answer would lose most without are bold.

    Args:
        explainer ([`Explainer`]): Of the model.
        texts (`list[str]`): The texts, of which the first words are shown and explained.
        labels (`list[str]`): Their right labels.
    """
    lines = []
    for text, label in zip(texts, labels):
        whole = explainer(text, contributions=False)
        changes = MISTAKE_WORDS if len(whole.words) <= 1000 else False
        explanation = explainer(text, whole.label, contributions=False, changes=changes)
        spans = explanation.spans[:MISTAKE_WORDS]
        changes = np.zeros(0) if explanation.changes is None else explanation.changes[: len(spans)]
        bold = set(np.argsort(-changes)[:5]) & set(np.flatnonzero(changes > 0))
        parts, end = [], 0
        for place, (start, stop) in enumerate(spans):
            word = _plain(text[start:stop])
            # Not by asterisks, which beside punctuation are no markup.
            parts += [_plain(text[end:start]), f"<b>{word}</b>" if place in bold else word]
            end = stop
        more = " ..." if len(spans) < len(explanation.spans) else _plain(text[end:])
        lines += [
            f"`{explanation.label}` with {explanation.score:.1%}, right is `{label}`:",
            "",
            f"> {_START.sub(_escaped, ''.join(parts))}{more}",
            "",
        ]
    return lines


def _plain(text: str) -> str:
    """Text as Markdown shows it: on one line, without tags, nothing taken for markup."""
    text = re.sub(r"\s+", " ", re.sub(HTML_TAG, " ", text)).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*_{}\[\]#|~])", r"\\\1", text)


# What at the start of a line would make it a list, a quotation or a heading.
_START = re.compile(r"^\s*(?:<b>)?\d*([-+>=.)])")


def _escaped(match: re.Match) -> str:
    return f"{match[0][:-1]}\\{match[1]}"


@dataclass
class FinishedRun:
    """
    What a model card tells of a run.

    Args:
        folder (`Path`): The run's directory, with its pictures.
        model ([`~transformers.PreTrainedModel`]): The model.
        settings (`dict`): The run's settings by name.
        recipe (`str`): The same as the text of `recipe.yaml`.
        results (`dict[str, dict[str, float]]`): Metrics of `validation` and `test`, without prefixes.
        sizes (`dict[str, int]`): Texts in each split, of a language model their pieces.
        own_splits (`dict[str, str]`): As in [`LabeledTexts`].
        pictures (`dict[str, str]`): Titles by file name.
        mistakes (`list[str]`): Lines that show the most confident ones; may be empty.
        repo_id (`str`, *optional*): Where on the Hub it will stand. None: nowhere.
        processes (`int`): How many shared each step, a batch of the recipe's size each.
    """

    folder: Path
    model: PreTrainedModel
    settings: dict[str, Any]
    recipe: str
    results: dict[str, dict[str, float]]
    sizes: dict[str, int]
    own_splits: dict[str, str]
    pictures: dict[str, str]
    mistakes: list[str]
    repo_id: str | None
    processes: int

    @property
    def task(self) -> str:
        """The Hub's name for what the model does."""
        if self.settings["task"] == "language-modeling":  # two directions beside each other generate nothing
            return "feature-extraction" if self.model.config.bidirectional else "text-generation"
        return self.settings["task"]

    @property
    def texts(self) -> str:
        """What the splits hold."""
        return "pieces of text" if self.settings["task"] == "language-modeling" else "texts"

    @property
    def hub_dataset(self) -> str | None:
        """The data set's name on the Hub, if it is from there."""
        name = self.settings.get("dataset_name")
        return None if name is None or name == MOVIE_REVIEWS or Path(name).exists() else name

    @property
    def data_name(self) -> str:
        """A data set's name; of a folder or file the last part, since its path stands in the recipe."""
        name = self.settings.get("dataset_name")
        return name if self.hub_dataset or name == MOVIE_REVIEWS else Path(name or self.settings["train_file"]).name

    @property
    def place(self) -> str:
        """Where the model is loaded from: `./` since the Hub may have a repository of the same name as a folder."""
        is_elsewhere = self.folder.is_absolute() or not self.folder.name
        return self.repo_id or f"./{self.folder.resolve().name if is_elsewhere else self.folder.as_posix()}"


def write_model_card(run: FinishedRun):
    """Writes `README.md` into a run's folder: how to use the model, what was measured, the recipe and the data."""
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=run.task,
        tags=["rnnsent", run.model.config.cell_type],
        datasets=[run.hub_dataset] if run.hub_dataset else None,
        metrics=[_METRIC_TYPES[key] for key in next(iter(run.results.values())) if key in _METRIC_TYPES],
        model_name=run.folder.resolve().name,
        eval_results=[
            EvalResult(
                task_type=run.task,
                **_measured_on(split, run),
                metric_type=_METRIC_TYPES[key],
                metric_value=float(f"{value:.6g}"),
                metric_name=key,
            )
            for split, values in run.results.items()
            for key, value in values.items()
            if key in _METRIC_TYPES
        ],
    )
    ModelCard(f"---\n{data.to_yaml()}\n---\n\n{_card_text(run)}").save(run.folder / MODEL_CARD)


def _measured_on(split: str, run: FinishedRun) -> dict[str, str | None]:
    """What an entry of the model index says of its data: only a data set's own split is named as that one's."""
    if split in run.own_splits:
        found = {"dataset_type": run.hub_dataset or "other", "dataset_name": run.data_name}
        config = run.settings.get("dataset_config_name")
        return {**found, "dataset_split": run.own_splits[split], "dataset_config": config}
    path = run.settings.get(f"{split}_file")
    name = f"{run.data_name}, held out of the training split" if path is None else Path(path).name
    return {"dataset_type": "other", "dataset_name": name, "dataset_split": split}


_ALONE = (
    "Curves over training, and what a checkpoint is chosen by, are of the recurrent layers alone, without n-grams and "
    "temperature; everything else is of the whole model."
)
_BOLD = "In bold, up to five words without which the wrong answer would be least sure."


def _card_text(run: FinishedRun) -> str:
    tested = "test" if "test" in run.results else "validation"
    shown = [f"![{title}]({file})" for file, title in run.pictures.items()]
    if len(shown) > 1:
        shown.insert(1, f"\nOn the {tested} split:\n")
    has_ngrams = run.task == "text-classification" and run.model.config.ngram_order
    kept = (
        f"The best of the run's checkpoints by {run.settings['metric_for_best_model']} on the validation split is kept."
        if run.settings.get("load_best_model_at_end", False)
        else "The model is the one at the end of training."
    )
    lines = [
        *[f"# {run.place.split('/')[-1]}", "", _description(run), ""],
        *["## Use", "", *_use(run), ""],
        *["## Results", "", *_results_table(run), "", *_averages(run), *shown, ""],
        *([_ALONE, ""] if has_ngrams else []),
        *(["## Most confident mistakes", "", _BOLD, "", *run.mistakes] if run.mistakes else []),
        *["## Data", "", _data_line(run), kept, ""],
        *["## Training", "", f"`{repeating(run.processes)}` gives this run again, with", ""],
        *["```yaml", run.recipe.strip(), "```", ""],
        f"Python {platform.python_version()}, torch {torch.__version__}, transformers {transformers.__version__}.",
        "",
    ]
    return "\n".join(lines)


def _description(run: FinishedRun) -> str:
    """What the model is made of, in a sentence."""
    config, is_classifier = run.model.config, run.task == "text-classification"
    kind = f"{'bidirectional ' if config.bidirectional else ''}{config.cell_type.upper()}"
    layers = f"one {kind} layer" if config.num_hidden_layers == 1 else f"{config.num_hidden_layers} {kind} layers"
    first = config.vocab_size if config.input_encoding == "one_hot" else config.embedding_size
    parts = [
        f"A recurrent {'text classifier' if is_classifier else 'language model'}: {config.vocab_size:,} words",
        f"{config.input_encoding.replace('_', '-')} of size {first}",
        f"{layers} of {config.hidden_size} units",
    ]
    if is_classifier:
        parts.append(f"{config.pooling} pooling")
    if is_classifier and config.ngram_order:
        counted = "once a text" if config.ngram_presence else "as often as it stands in a text"
        parts += [
            f"a linear model of n-grams to {config.ngram_order} words ({run.model.ngrams.scores.numel():,} scores)",
            f"each counted {counted}",
            f"of weight {config.ngram_weight} beside it",
        ]
    return ", ".join([*parts, f"{run.model.num_parameters():,} parameters."])


def _results_table(run: FinishedRun) -> list[str]:
    """A row for every split that was measured."""
    told = (*_METRIC_TYPES, "loss", "calibration_error")
    metrics = [key for key in next(iter(run.results.values())) if key in told]
    rows = [
        f"| {split} | {run.sizes[split]:,} | "
        + " | ".join(figures(values[key]) if key in values else "" for key in metrics)
        + " |"
        for split, values in run.results.items()
    ]
    names = " | ".join(name.replace("_", " ") for name in metrics)
    return [f"| split | {run.texts} | {names} |", "|---" * (len(metrics) + 2) + "|", *rows]


def _averages(run: FinishedRun) -> list[str]:
    """Of what precision, recall and F1 are, which their names leave open."""
    if "f1" not in next(iter(run.results.values())):
        return []
    names = list(run.model.config.id2label.values())
    over = f"of `{names[-1]}`" if len(names) == 2 else "means over the classes"
    if run.model.config.problem_type == "multi_label_classification":
        over = "counted over all labels"
    return [f"Precision, recall and F1 are {over}.", ""]


def _data_line(run: FinishedRun) -> str:
    """Which texts were for what."""
    config = run.settings.get("dataset_config_name")
    named = f"`{run.data_name}`{f' (`{config}`)' if config else ''}"
    parts = [f"{named}: {run.sizes['train']:,} {run.texts} for training"]
    for split, purpose in (("validation", "for validation"), ("test", "for the test")):
        if split in run.sizes:
            path = run.settings.get(f"{split}_file")
            origin = "" if split in run.own_splits else " held out" if path is None else f" of `{Path(path).name}`"
            parts.append(f"{run.sizes[split]:,}{origin} {purpose}")
    return ", ".join(parts) + "."


def repeating(processes: int) -> str:
    """The command that gives a run again from the recipe in its directory."""
    launch = f"torchrun --nproc_per_node {processes} " if processes > 1 else ""  # accelerate's is another without GPUs
    return f"{launch}train.py recipe.yaml"


def _use(run: FinishedRun) -> list[str]:
    """Lines that show how the model is used."""
    if run.task == "feature-extraction":
        return [f"A classifier starts from it: `train.py RECIPE.yaml --model_name_or_path {run.place}`."]
    name, call = ("generator", '"the film was ", max_new_tokens=40')
    if run.task == "text-classification":
        name, call = "classifier", '"A text of yours."'
    code = [
        *["```python", "from transformers import pipeline", ""],
        f'{name} = pipeline("{run.task}", model="{run.place}", trust_remote_code=True)',
        f"{name}({call})",
        "```",
    ]
    if run.task == "text-generation":
        return code
    labels = ", ".join(f"`{label}`" for label in run.model.config.id2label.values())
    return [*code, "", f"Labels: {labels}. Text of any length is read in full."]
