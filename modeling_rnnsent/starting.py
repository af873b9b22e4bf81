"""The model that a training starts from: new or trained, with word vectors and n-grams where they are asked for."""

from functools import cache
from pathlib import Path

import datasets
import numpy as np

from .arguments import Run
from .configuration_rnnsent import RNNSentConfig
from .data import LabeledTexts
from .encoding import WordEncoder
from .errors import InputError, loading
from .labels import Labels, label_array
from .launching import from_main_process
from .modeling_rnnsent import RNNSentForCausalLM, RNNSentForSequenceClassification, RNNSentPreTrainedModel
from .ngrams import choose_buckets, fit_ngrams
from .vectors import set_vectors


def load_model(
    run: Run, texts: LabeledTexts, parts: datasets.DatasetDict, tokenizer, checkpoint: str | None
) -> RNNSentPreTrainedModel:
    """The model that the training starts from: with vectors and n-grams unless a model or checkpoint has them."""
    given = {name: value for name, value in vars(run.model).items() if value is not None}
    given.update(pad_token_id=tokenizer.pad_token_id, **(texts.labels.config if texts.labels else {}))
    vectors = given.pop("word_vectors", None)
    keeps_ngrams = texts.labels is not None and take_over_ngrams(run, given)
    if checkpoint is not None:  # which has the n-grams, counted as was chosen then
        given["ngram_presence"] = RNNSentConfig.from_pretrained(checkpoint).ngram_presence
    if texts.labels is None or not given.get("ngram_order"):
        model = start_model(
            run, given, tokenizer, RNNSentForSequenceClassification if texts.labels else RNNSentForCausalLM
        )
    else:
        model = start_with_ngrams(run, given, parts, texts.labels, tokenizer, checkpoint is not None or keeps_ngrams)
    if vectors is not None and checkpoint is None:

        def set_and_tell():
            share = set_vectors(model, vectors, tokenizer, texts.texts(), run.training.seed)
            print(f"{share:.1%} of the vocabulary start from word vectors", flush=True)
            return model.get_input_embeddings().state_dict()

        model.get_input_embeddings().load_state_dict(from_main_process(set_and_tell))
    return model


def take_over_ngrams(run: Run, given: dict) -> bool:
    """
    Whether the n-grams of the model started from serve the run. If so their settings are added to those given; if they
    are for other labels, and no others are asked for, it goes on without. A regression's mean and scale stay.
    """
    name = given.get("model_name_or_path")
    if name is None:
        return False
    with loading("model", name):
        held = RNNSentConfig.from_pretrained(name)
    is_classifier = RNNSentForSequenceClassification.__name__ in (held.architectures or ())
    if is_classifier and held.problem_type == "regression":
        given.update(value_mean=held.value_mean, value_scale=held.value_scale)  # which its head was trained with
    if is_classifier and not held.ngram_order:
        return False
    if not is_classifier or (held.problem_type, held.id2label) != (given["problem_type"], given["id2label"]):
        given.setdefault("ngram_order", 0)
        return False
    settings = {name: getattr(held, name) for name in ("ngram_order", "ngram_buckets", "ngram_presence")}
    if any(given.get(name, value) != value for name, value in settings.items()):
        return False
    given.update(settings)
    if run.training.should_log:
        print(f"the n-grams of {name} are kept", flush=True)
    return True


def start_with_ngrams(
    run: Run, given: dict, parts: datasets.DatasetDict, kind: Labels, tokenizer, has_ngrams: bool
) -> RNNSentPreTrainedModel:
    """The model that the training starts from, with n-grams fitted unless they come from a model or checkpoint."""
    learned = ("train", "unlabeled") if run.training.teacher_name_or_path else ("train",)

    @cache
    def read(split: str) -> list[np.ndarray]:
        encode, rows = WordEncoder(tokenizer), []
        for batch in parts[split].select_columns("text").iter(batch_size=1000):
            rows += [row.astype(np.int32) for row in encode(batch["text"])]  # half the memory of int64
        return rows

    def fit_and_tell():
        print(f"fitting {given['ngram_buckets']:,} rows of n-grams to {given['ngram_order']} words", flush=True)
        labels = {split: label_array(parts[split]) for split in (*learned, "validation")}
        losses = fit_ngrams(
            model,
            read("train"),
            labels["train"],
            read("validation"),
            labels["validation"],
            run.training.seed,
            read("unlabeled") if "unlabeled" in learned else (),
            labels.get("unlabeled"),
            run.model.ngram_presence,
        )
        presence = model.config.ngram_presence
        order, smoothing, history = min(
            ((order, smoothing, history) for (way, order, smoothing), history in losses.items() if way == presence),
            key=lambda found: min(found[-1]),
        )
        how = "each counted once a text" if presence else "each counted as often as it stands in a text"
        how += ", with a penalty" if smoothing is None else f", counts smoothed by {smoothing:g}"
        print(f"n-grams alone: validation loss {min(history):.4f}, to {order} words, {how}", flush=True)
        return presence, model.ngrams.state_dict()

    if "ngram_buckets" not in given:
        given["ngram_buckets"] = from_main_process(
            lambda: choose_buckets(
                [row for split in learned for row in read(split)], given["ngram_order"], len(kind.names)
            )
        )
    model = start_model(run, given, tokenizer, RNNSentForSequenceClassification)
    if not has_ngrams:
        presence, table = from_main_process(fit_and_tell)
        model.config.ngram_presence = presence
        model.ngrams.load_state_dict(table)
    return model


def start_model(run: Run, given: dict, tokenizer, model_class) -> RNNSentPreTrainedModel:
    """A new model of the settings given, or with them the one that the run starts from."""
    name = given.pop("model_name_or_path", None)
    if name is None:
        try:
            return model_class(RNNSentConfig(vocab_size=len(tokenizer), **given))
        except ValueError as error:  # settings of which each is allowed, but not these together
            raise InputError(str(error)) from error
    keep_source(name, run)
    with loading("model", name):
        config = RNNSentConfig.from_pretrained(name, **given)
        model, info = model_class.from_pretrained(
            name, config=config, ignore_mismatched_sizes=True, output_loading_info=True
        )
    # Another head is as it should be for other labels; another body would be an untrained one.
    strange = [key for key in (*info["missing_keys"], *(key for key, *_ in info["mismatched_keys"]))]
    strange = sorted(key for key in strange if key.startswith(f"{model.base_model_prefix}."))
    if strange:
        raise InputError(f"the model {name!r} does not fit the settings given: it has no such {', '.join(strange)}.")
    if config.vocab_size < len(tokenizer):
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {name!r} only {config.vocab_size}: use the "
            "tokenizer that the model was trained with."
        )
    return model


def keep_source(name: str, run: Run):
    """Keeps a run from overwriting what it starts from."""
    output_dir = Path(run.training.output_dir).resolve()
    if run.training.overwrite_output_dir and Path(name).resolve().is_relative_to(output_dir):
        raise InputError(f"{name!r}, which the run starts from, lies in the output_dir that is to be overwritten.")
