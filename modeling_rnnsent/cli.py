"""The console script `rnnsent`."""

import argparse

from .errors import InputError, one_line_errors


def main(argv: list[str] | None = None):
    """Runs `rnnsent COMMAND ...`; status 1 says that an input cannot be used, 2 that the command line is wrong."""
    parser = argparse.ArgumentParser(prog="rnnsent", description="Recurrent text classification.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    command = commands.add_parser(
        "predict",
        help="classify texts with a trained model",
        description="Prints one line a text: label, probability and the text, separated by tabs.",
        epilog='example: rnnsent predict runs/default "What a film!" "I fell asleep."',
    )
    command.add_argument("model", metavar="MODEL", help="directory or Hub id of a trained model")
    command.add_argument("texts", metavar="TEXT", nargs="+", help="text to classify")
    command.set_defaults(run=lambda arguments: predict(arguments.model, arguments.texts))
    arguments = parser.parse_args(argv)
    with one_line_errors():
        arguments.run(arguments)


def predict(model: str, texts: list[str]):
    """Prints each text's label and probability (multi-label: every label; regression: the value)."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    classify = load_pipeline(model)
    every_label = classify.model.config.problem_type == "multi_label_classification"
    for text, answers in zip(texts, classify(texts, top_k=None)):
        shown = answers if every_label else answers[:1]
        print(*(f"{answer['label']}\t{answer['score']:.4f}" for answer in shown), text, sep="\t")


def load_pipeline(model: str):
    """
    The text-classification pipeline of a saved model.

    Args:
        model (`str`): Directory or Hub id.

    Returns:
        [`~transformers.TextClassificationPipeline`]

    Raises:
        InputError: where it is not a model of this package, or is not whole.
    """
    from safetensors import SafetensorError
    from transformers import AutoConfig, pipeline

    from . import RNNSentConfig

    try:
        config = AutoConfig.from_pretrained(model)
        if not isinstance(config, RNNSentConfig):
            raise InputError(f"{model!r} holds a model of type {config.model_type!r}, not 'rnnsent'.")
        return pipeline("text-classification", model=model)
    except InputError:
        raise
    except (OSError, ValueError, SafetensorError) as error:
        raise InputError(f"cannot load a model from {model!r}: {error}") from error
