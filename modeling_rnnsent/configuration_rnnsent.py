"""
Configuration of RNNSent models.

This file travels with every checkpoint and imports transformers and the Hub library below it.
"""

import os
from numbers import Integral
from pathlib import Path
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

# Every saved config lists every Auto class, so that one directory serves them all without the package installed.
AUTO_MAP = {
    "AutoConfig": "configuration_rnnsent.RNNSentConfig",
    "AutoModel": "modeling_rnnsent.RNNSentModel",
    "AutoModelForSequenceClassification": "modeling_rnnsent.RNNSentForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_rnnsent.RNNSentForTokenClassification",
    "AutoModelForCausalLM": "modeling_rnnsent.RNNSentForCausalLM",
}

_SIZES = ("vocab_size", "embedding_size", "hidden_size", "num_hidden_layers", "ngram_buckets")
_DROPOUTS = (
    "word_dropout",
    "embedding_dropout",
    "hidden_dropout",
    "weight_dropout",
    "pooling_dropout",
    "classifier_dropout",
)
_PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


@strict
class RNNSentConfig(PreTrainedConfig):
    r"""
    Configuration of an [`RNNSentModel`]: an embedding, stacked recurrent layers, a pooling and a small head, as in
    chapter 15 of "Machine Learning with PyTorch and Scikit-Learn" (Raschka, Liu, Mirjalili, 2022).

    Args:
        vocab_size (`int`, *optional*, defaults to 30000):
            Number of tokens in the vocabulary.
        embedding_size (`int`, *optional*, defaults to 128):
            Size of a token's embedding. Unused with `input_encoding="one_hot"`.
        hidden_size (`int`, *optional*, defaults to 128):
            Size of the hidden state of one direction of a recurrent layer.
        num_hidden_layers (`int`, *optional*, defaults to 1):
            Number of stacked recurrent layers.
        cell_type (`str`, *optional*, defaults to `"lstm"`):
            Recurrent cell: `"rnn"` (Elman), `"lstm"` or `"gru"`, each as `torch.nn` defines it.
        nonlinearity (`str`, *optional*, defaults to `"tanh"`):
            Activation of the `"rnn"` cell, `"tanh"` or `"relu"`. The other cells have their own.
        recurrence (`str`, *optional*, defaults to `"hidden"`):
            What a layer feeds back: `"hidden"`, its hidden state, or `"output"` (for `cell_type="rnn"`):
            h_t = f(W_xh x_t + W_oh o_(t-1) + b_h), o_t = f(W_ho h_t + b_o), whose layer output is o_t.
        bidirectional (`bool`, *optional*, defaults to `False`):
            Whether a second set of weights reads each sequence from its end.
        merge_mode (`str`, *optional*, defaults to `"concat"`):
            How the two directions become one output after every layer: `"concat"`, `"sum"`, `"mul"` or `"mean"`.
        pooling (`str`, *optional*, defaults to `"last"`):
            How token states become one vector: `"last"` (each direction's final state, merged), `"max"`, `"mean"`,
            `"max_mean"` (both, concatenated) or `"attention"` (Yang et al., 2016). Padding never takes part.
        input_encoding (`str`, *optional*, defaults to `"embedding"`):
            `"embedding"`, or `"one_hot"`: the first layer reads one-hot vectors of size `vocab_size`.
        classifier_hidden_size (`int`, *optional*, defaults to 0):
            Units of a ReLU layer before the classifier's output layer; 0 for no such layer.
        classifier_head (`str`, *optional*, defaults to `"softmax"`):
            `"softmax"`: one output unit per label, also for several labels a text (each with a binary loss of its
            own) and regression (one unit). `"sigmoid"`: one unit for two classes, whose logit z stands for the
            logits `[0, z]`; the loss is then binary cross-entropy.
        word_dropout (`float`, *optional*, defaults to 0.0):
            Probability in training that a token's whole embedding is set to zero.
        embedding_dropout (`float`, *optional*, defaults to 0.0):
            Dropout probability of the elements of the embeddings.
        hidden_dropout (`float`, *optional*, defaults to 0.0):
            Dropout probability between recurrent layers.
        weight_dropout (`float`, *optional*, defaults to 0.0):
            DropConnect probability of the recurrent weights (Merity et al., 2018).
        pooling_dropout (`float`, *optional*, defaults to 0.0):
            Dropout probability of the elements of the states that are pooled, drawn for every token.
        classifier_dropout (`float`, *optional*, defaults to 0.0):
            Dropout probability before each linear layer of the head; in a language model, of the states that words
            are predicted from.
        variational_dropout (`bool`, *optional*, defaults to `False`):
            Whether dropout of embeddings, between layers and before a language model's output layer draws one mask a
            text instead of one a token (Gal & Ghahramani, 2016).
        ngram_order (`int`, *optional*, defaults to 0):
            Longest n-gram of a linear model beside the classifier's recurrent layers; 0 for no such model. It is fitted
            before them (`ngrams.fit_ngrams`) and has no part in their training.
        ngram_buckets (`int`, *optional*, defaults to 1048576):
            Rows of its table, to which n-grams are hashed.
        ngram_presence (`bool`, *optional*, defaults to `True`):
            Whether an n-gram counts once in a text, however often it stands there, which suits opinions (Wang &
            Manning, 2012); otherwise as often as it stands there, which suits topics.
        ngram_weight (`float`, *optional*, defaults to 0.5):
            Its share of the logits: (1 - w) * recurrent + w * n-grams, in evaluation.
        temperature (`float`, *optional*, defaults to 1.0):
            What the classifier's logits are divided by, except in training, so that probabilities mean what they say
            (Guo et al., 2017). `train.py` fits it on the validation split.
        value_mean (`float`, *optional*, defaults to 0.0):
            Regression: what is added to the head's output, after it is multiplied with `value_scale`.
        value_scale (`float`, *optional*, defaults to 1.0):
            Regression: what the head's output is multiplied with, and the unit of the loss in training. `train.py` sets
            both to the mean and deviation of the training values, so that values of any size are learned alike.
        initializer_range (`float`, *optional*, defaults to 1.0):
            Standard deviation of the embeddings at the start; 1.0 is `torch.nn.Embedding`'s own. Other weights start
            as in `torch.nn`.
        pad_token_id (`int`, *optional*, defaults to 0):
            Id of the padding token, any id of the vocabulary. Its embedding starts at zero and is trained only through
            an output layer that shares it; no state depends on it.
        bos_token_id (`int`, *optional*):
            Id of the token that starts a generated text.
        eos_token_id (`int` or `list[int]`, *optional*):
            Id of the token, or tokens, that end a generated text.
        tie_word_embeddings (`bool`, *optional*, defaults to `False`):
            Whether the language model's output layer shares the embedding's weights, through a linear layer where
            `embedding_size` and `hidden_size` differ.
        sampled_softmax_size (`int`, *optional*, defaults to 0):
            Words that the language model compares the right one with in training; 0 for the whole vocabulary.

    Raises:
        huggingface_hub.errors.StrictDataclassError: where a field has a value that it cannot have, alone or beside the
            others; the message names the field, the value and what is allowed.

    Example:

    ```python
    >>> from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification

    >>> config = RNNSentConfig(vocab_size=1000, embedding_size=20, hidden_size=64, classifier_head="sigmoid")
    >>> model = RNNSentForSequenceClassification(config)
    ```"""

    model_type = "rnnsent"
    keys_to_ignore_at_inference = ["state"]

    vocab_size: int = 30000
    embedding_size: int = 128
    hidden_size: int = 128
    num_hidden_layers: int = 1
    cell_type: Literal["rnn", "lstm", "gru"] = "lstm"
    nonlinearity: Literal["tanh", "relu"] = "tanh"
    recurrence: Literal["hidden", "output"] = "hidden"
    bidirectional: bool = False
    merge_mode: Literal["concat", "sum", "mul", "mean"] = "concat"
    pooling: Literal["last", "max", "mean", "max_mean", "attention"] = "last"
    input_encoding: Literal["embedding", "one_hot"] = "embedding"
    classifier_hidden_size: int = 0
    classifier_head: Literal["softmax", "sigmoid"] = "softmax"
    word_dropout: float | int = 0.0
    embedding_dropout: float | int = 0.0
    hidden_dropout: float | int = 0.0
    weight_dropout: float | int = 0.0
    pooling_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.0
    variational_dropout: bool = False
    ngram_order: int = 0
    ngram_buckets: int = 1 << 20
    ngram_presence: bool = True
    ngram_weight: float | int = 0.5
    temperature: float | int = 1.0
    value_mean: float | int = 0.0
    value_scale: float | int = 1.0
    initializer_range: float | int = 1.0
    pad_token_id: int = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = False
    sampled_softmax_size: int = 0

    def __post_init__(self, **kwargs):
        for name in ("id2label", "label2id"):  # which the parent takes for granted
            if not isinstance(getattr(self, name), dict | None):
                raise ValueError(f"`{name}` must be a mapping, got {getattr(self, name)!r}.")
        super().__post_init__(**kwargs)

    @property
    def num_labels(self) -> int | None:
        """Number of labels: of the entries of `id2label`."""
        return PreTrainedConfig.num_labels.fget(self)

    @num_labels.setter
    def num_labels(self, value: int):
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:  # numpy's are integers, too
            raise ValueError(f"`num_labels` must be an integer of at least 1, got {value!r}.")
        PreTrainedConfig.num_labels.fset(self, int(value))

    @classmethod
    def from_dict(cls, config_dict: dict, **kwargs) -> "RNNSentConfig":
        """As `PreTrainedConfig.from_dict`, which sets `num_labels` before the fields that are to go with it."""
        given = {name: value for name, value in kwargs.items() if name in cls.__dataclass_fields__ and name != "dtype"}
        return super().from_dict({**config_dict, **given}, **kwargs)

    @property
    def output_size(self) -> int:
        """Size of a recurrent layer's output: `hidden_size`, or twice that where two directions are concatenated."""
        return self.hidden_size * (2 if self.bidirectional and self.merge_mode == "concat" else 1)

    def validate_sizes(self):
        """Part of `@strict` validation: sizes are positive, `pad_token_id` is an id of the vocabulary."""
        for name in _SIZES:
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be an integer of at least 1, got {getattr(self, name)}.")
        for name in ("classifier_hidden_size", "sampled_softmax_size", "ngram_order"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be 0 or more, got {getattr(self, name)}.")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"`pad_token_id` must be an id of the vocabulary, 0 to {self.vocab_size - 1}, got {self.pad_token_id}."
            )

    def validate_probabilities(self):
        """Part of `@strict` validation: dropouts lie in [0, 1), weights in [0, 1], deviations in [0, 1000]."""
        for name in _DROPOUTS:
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 0 and below 1, got {getattr(self, name)}.")
        if not 0 <= self.ngram_weight <= 1:
            raise ValueError(f"`ngram_weight` must be at least 0 and at most 1, got {self.ngram_weight}.")
        if not 1e-3 <= self.temperature <= 1e3:
            raise ValueError(f"`temperature` must be at least 0.001 and at most 1000, got {self.temperature}.")
        if not abs(self.value_mean) < float("inf"):
            raise ValueError(f"`value_mean` must be finite, got {self.value_mean}.")
        if not 0 < self.value_scale < float("inf"):
            raise ValueError(f"`value_scale` must be finite and above 0, got {self.value_scale}.")
        if not 0 <= self.initializer_range <= 1000:
            raise ValueError(f"`initializer_range` must be at least 0 and at most 1000, got {self.initializer_range}.")

    def validate_combinations(self):
        """Part of `@strict` validation: fields that exclude each other are not set together."""
        if self.recurrence == "output" and self.cell_type != "rnn":
            raise ValueError(f'`recurrence="output"` needs `cell_type="rnn"`, got cell_type="{self.cell_type}".')
        if self.nonlinearity != "tanh" and self.cell_type != "rnn":
            raise ValueError(
                f'`nonlinearity="{self.nonlinearity}"` needs `cell_type="rnn"`, got cell_type="{self.cell_type}".'
            )
        if self.hidden_dropout > 0 and self.num_hidden_layers == 1:
            raise ValueError(
                f"`hidden_dropout` acts between recurrent layers and needs `num_hidden_layers` of at least 2, got "
                f"hidden_dropout={self.hidden_dropout} with num_hidden_layers=1."
            )
        if self.pooling_dropout > 0 and self.pooling == "last":
            raise ValueError(
                f'`pooling_dropout` acts on the states of all tokens and needs a `pooling` other than "last", got '
                f'pooling_dropout={self.pooling_dropout} with pooling="last".'
            )
        if self.input_encoding == "one_hot":
            for name in ("word_dropout", "embedding_dropout", "tie_word_embeddings"):
                if getattr(self, name):
                    raise ValueError(
                        f'`{name}` acts on embeddings and must be 0 with `input_encoding="one_hot"`, '
                        f"got {getattr(self, name)}."
                    )

    def validate_classifier_head(self):
        """Part of `@strict` validation: there are labels; the one-unit sigmoid head serves two, one of them a text."""
        if not self.id2label or sorted(self.id2label) != list(range(len(self.id2label))):
            raise ValueError(f"`id2label` must name a label for every id from 0 on, got {self.id2label}.")
        if self.problem_type not in (None, *_PROBLEM_TYPES):
            raise ValueError(f"`problem_type` must be None or one of {_PROBLEM_TYPES}, got {self.problem_type!r}.")
        if self.classifier_head == "sigmoid" and (
            self.num_labels != 2 or self.problem_type not in (None, "single_label_classification")
        ):
            raise ValueError(
                '`classifier_head="sigmoid"` is one unit for two classes: it needs `num_labels=2` and `problem_type` '
                f'None or "single_label_classification", got num_labels={self.num_labels}, '
                f"problem_type={self.problem_type!r}."
            )

    @staticmethod
    def _is_saved(folder: str | os.PathLike, name: str, place: str) -> bool:
        """Whether the code of an entry of `auto_map` lies in the folder; a config's own is yet to be saved."""
        return name == "AutoConfig" or Path(folder, f"{str(place).split('.')[0]}.py").is_file()

    def save_pretrained(self, save_directory: str | os.PathLike, push_to_hub: bool = False, **kwargs):
        # Set here and not at construction: whoever loads a config from a Hub repository and saves it again writes the
        # code files beside it, and must not go on pointing at that repository. What a model of a class made from these
        # has entered before stays, and nothing points at a file that is not there.
        own = {name: place for name, place in (getattr(self, "auto_map", None) or {}).items() if "--" not in str(place)}
        entries = [entry for entry in (*AUTO_MAP.items(), *own.items()) if self._is_saved(save_directory, *entry)]
        self.auto_map = dict(entries)
        super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)


RNNSentConfig.register_for_auto_class()

__all__ = ["RNNSentConfig"]
