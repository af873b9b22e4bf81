"""What can be wrong with a run's settings, said before anything that takes time."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers.integrations import get_available_reporting_integrations, get_reporting_integration_callbacks

from .arguments import RNNSentTrainingArguments, Run
from .errors import InputError
from .labels import Labels
from .launching import from_main_process
from .publishing import check_access

# Both keep weights as views of their own memory, which cuDNN's layers lay out anew: these would stay what they were.
NO_SHARDING = "fsdp and deepspeed are for models larger than a GPU: leave them out; --num_processes N is for N GPUs."


def check_settings_of(run: Run):
    """
    Says now what `Trainer` would find out when the data is read and the n-grams are fitted.

    Raises:
        InputError: for settings that a recurrent model, this machine or the data's kind of task cannot have.
    """
    training, model = run.training, run.model
    if training.gradient_checkpointing or training.use_liger_kernel:
        name = "gradient_checkpointing" if training.gradient_checkpointing else "use_liger_kernel"
        raise InputError(f"{name} is for transformers' own layers, not for recurrent ones: leave it out.")
    if training.neftune_noise_alpha is not None and model.input_encoding == "one_hot":
        raise InputError("neftune_noise_alpha is for an embedding, which input_encoding 'one_hot' has not.")
    if run.data.task == "text-classification":
        check_evaluation(training)
    if training.early_stopping_patience is not None:
        if not training.load_best_model_at_end:
            raise InputError("early_stopping_patience needs load_best_model_at_end.")
        if training.eval_strategy == "no":
            raise InputError("early_stopping_patience needs an eval_strategy, 'epoch' or 'steps', got 'no'.")
    if training.fp16 and training.device.type == "cpu":
        raise InputError("fp16 is for a GPU: on a CPU give bf16, where it multiplies in it, or neither.")
    for name in ("bf16_full_eval", "fp16_full_eval"):
        if getattr(training, name):
            raise InputError(f"{name} would leave a model of half the precision: give {name[:4]} instead.")
    if training.torch_compile and (training.adversarial_weight or training.needs_unlabeled_texts):
        raise InputError(
            "torch_compile is for labels alone: adversarial training and texts without labels look into the embedding, "
            "which a compiled model passes over."
        )
    if training.fsdp or training.deepspeed:
        raise InputError(NO_SHARDING)
    with usable("report_to", training.report_to):
        for name, callback in zip(training.report_to, get_reporting_integration_callbacks(training.report_to)):
            if name not in get_available_reporting_integrations():
                callback()  # says what it lacks
    if training.push_to_hub:
        from_main_process(lambda: check_access(training))


def check_smoothing(arguments: RNNSentTrainingArguments, labels: Labels | None):
    """Raises `InputError` where labels are to be smoothed that are no classes, one a text."""
    if arguments.label_smoothing_factor and getattr(labels, "problem_type", None) != "single_label_classification":
        raise InputError(
            f"label_smoothing_factor must be 0 but for one class a text, got {arguments.label_smoothing_factor}."
        )


@contextmanager
def usable(name: str, value: Any) -> Iterator[None]:
    """Says in one line that `transformers` cannot do what a setting asks for: a package is missing, or another one."""
    try:
        yield
    except (ImportError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"{name} {getattr(value, 'value', value)!r} cannot be used: {error}") from error


def check_step(arguments: RNNSentTrainingArguments, num_texts: int):
    """Raises `InputError` where `dataloader_drop_last` leaves no step of all processes to train on."""
    texts = arguments.train_batch_size * arguments.world_size
    if arguments.dataloader_drop_last and num_texts < texts:
        raise InputError(f"dataloader_drop_last leaves nothing of {num_texts} texts in steps of {texts}.")


def check_evaluation(arguments: RNNSentTrainingArguments):
    """Raises `InputError` where a classifier's answers would not be there for its metrics."""
    for name, needed in (
        ("prediction_loss_only", False),
        ("batch_eval_metrics", False),
        ("eval_do_concat_batches", True),
    ):
        if getattr(arguments, name) != needed:
            raise InputError(f"{name} must be {needed} for a classifier, whose metrics are of all answers at once.")


def choose_metric(arguments: RNNSentTrainingArguments, labels: Labels | None):
    """
    Sees to it that the best checkpoint is told by a metric that there is, in the right direction.

    A regression has no accuracy, which recipes name: its mean squared error takes the place.

    Args:
        arguments ([`RNNSentTrainingArguments`]): `metric_for_best_model` and `greater_is_better` are set.
        labels ([`Labels`], *optional*): What the labels are. None for language modeling, which has a loss only.

    Raises:
        InputError: for a metric that the labels do not have.
    """
    metric = arguments.metric_for_best_model
    if metric is None:
        return
    metric = metric.removeprefix("eval_")
    if labels is None:
        names = ()
    elif labels.problem_type == "regression":
        names = ("mse", "pearson")
        metric = "mse" if metric == "accuracy" else metric
    else:
        names = ("accuracy", "precision", "recall", "f1", "roc_auc")
    if metric not in ("loss", *names):
        raise InputError(f"metric_for_best_model must be one of {', '.join(('loss', *names))}, got {metric!r}.")
    arguments.metric_for_best_model = metric
    arguments.greater_is_better = metric not in ("loss", "mse")
