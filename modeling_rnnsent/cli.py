"""The console script `rnnsent`."""

import argparse
import json

from .errors import InputError, one_line_errors


def main(argv: list[str] | None = None):
    """Runs `rnnsent COMMAND ...`; status 1 says that an input cannot be used, 2 that the command line is wrong."""
    parser = argparse.ArgumentParser(prog="rnnsent", description="Recurrent text classification.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_export(commands)
    arguments = parser.parse_args(argv)
    with one_line_errors():
        arguments.run(arguments)


def _add_predict(commands):
    command = commands.add_parser(
        "predict",
        help="classify texts with a trained model",
        description="Prints one line a text: label, probability and the text, separated by tabs. With --input, "
        "classifies a file or data set of any size into --output instead.",
        epilog='examples: rnnsent predict runs/default "What a film!" "I fell asleep."\n'
        "          rnnsent predict runs/default --input reviews.csv --output labels.jsonl",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument("model", metavar="MODEL", help="directory or Hub id of a trained model, or an exported one")
    command.add_argument("texts", metavar="TEXT", nargs="*", help="text to classify")
    command.add_argument(
        "--input",
        help="a .txt (one text a line), .csv, .tsv, .json, .jsonl or .parquet file, or a data set's name or folder",
    )
    command.add_argument("--output", help="file to write, .jsonl or .csv, in the order of the input")
    command.add_argument("--text_column_name", default="text", help="column that holds the text (default: text)")
    command.add_argument("--split", help="split of a data set (default: test)")
    command.add_argument("--overwrite", action="store_true", help="replace the output instead of going on with it")
    command.add_argument("--num_threads", type=int, help="CPU cores of a process (default: all)")
    command.set_defaults(run=predict)


def _add_evaluate(commands):
    command = commands.add_parser(
        "evaluate",
        help="measure trained models on labelled texts, alone and together",
        description="Prints the metrics of every model and, of several, those of the mean of their probabilities.",
        epilog="example: rnnsent evaluate runs/seed1 runs/seed2 runs/seed3 --input reviews.csv",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "models", metavar="MODEL", nargs="+", help="directory or Hub id of a trained or exported model"
    )
    command.add_argument(
        "--input",
        required=True,
        help="a .csv, .tsv, .json, .jsonl or .parquet file, or a data set's name or folder",
    )
    command.add_argument("--split", help="split of a data set (default: test)")
    command.add_argument("--text_column_name", default="text", help="column that holds the text (default: text)")
    command.add_argument("--label_column_name", default="label", help="column that holds the label (default: label)")
    command.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    command.set_defaults(run=evaluate)


def _add_export(commands):
    command = commands.add_parser(
        "export",
        help="export a trained model to ONNX",
        description="Writes the model as ONNX with its tokenizer and labels, and checks it against the original.",
        epilog="example: rnnsent export runs/default runs/default-onnx",
    )
    command.add_argument("model", metavar="MODEL", help="directory or Hub id of a trained model")
    command.add_argument("output", metavar="DIRECTORY", help="directory to write")
    command.add_argument("--int8", action="store_true", help="quantize the weights: smaller, a little less exact")
    command.set_defaults(run=export)


def predict(arguments: argparse.Namespace):
    """Prints each text's label and probability, or writes those of a whole file or data set."""
    _show_errors_only()
    if arguments.input is None:
        if not arguments.texts:
            raise InputError("give texts to classify, or a file or data set with --input.")
        return print_predictions(arguments.model, arguments.texts)
    if arguments.texts or arguments.output is None:
        raise InputError("--input goes with --output and without texts.")
    from .predicting import predict_to_file

    options = ("text_column_name", "split", "overwrite", "num_threads")
    number = predict_to_file(
        arguments.model,
        arguments.input,
        arguments.output,
        **{name: getattr(arguments, name) for name in options},
    )
    if number:
        print(f"{number:,} texts classified: {arguments.output}")


def _show_errors_only():
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def print_predictions(model: str, texts: list[str]):
    """Prints each text's label and probability (multi-label: every label; regression: the value)."""
    from .bulk import check_unicode

    for number, text in enumerate(texts, start=1):
        check_unicode(text, f"text {number}")
    classify = load_pipeline(model)
    every_label = classify.model.config.problem_type == "multi_label_classification"
    for text, answers in zip(texts, classify(texts, top_k=None)):
        shown = answers if every_label else answers[:1]
        print(*(f"{answer['label']}\t{answer['score']:.4f}" for answer in shown), text, sep="\t")


def evaluate(arguments: argparse.Namespace):
    """Prints the metrics of models and of their mean."""
    from .evaluating import evaluate_models

    _show_errors_only()
    results = evaluate_models(
        arguments.models,
        arguments.input,
        **{name: getattr(arguments, name) for name in ("split", "text_column_name", "label_column_name")},
    )
    if arguments.json:
        for name, metrics in results.items():
            print(json.dumps({"model": name, **metrics}))
        return
    columns = list(next(iter(results.values())))
    width = max(map(len, results))
    print(" " * width, *(f"{column:>9}" for column in columns))
    for name, metrics in results.items():
        print(f"{name:{width}}", *(f"{metrics[column]:9.4f}" for column in columns))


def export(arguments: argparse.Namespace):
    """Exports a model and prints how large and how exact the result is."""
    from .exporting import export_model

    _show_errors_only()
    result = export_model(arguments.model, arguments.output, arguments.int8)
    print(
        f"{arguments.output}: {result['megabytes']:.1f} MB, logits within {result['largest_difference']:.1g} of the "
        "model's"
    )


def load_pipeline(model: str):
    """
    The text-classification pipeline of a trained or exported model.

    Args:
        model (`str`): Directory or Hub id.

    Returns:
        [`~transformers.TextClassificationPipeline`]

    Raises:
        InputError: where it is not a model of this package, or is not whole.
    """
    from transformers import TextClassificationPipeline

    from .exporting import exported_pipeline
    from .scoring import OnnxScorer, load_scorer

    scorer = load_scorer(model)
    if isinstance(scorer, OnnxScorer):
        return exported_pipeline(model)
    return TextClassificationPipeline(model=scorer.model, tokenizer=scorer.tokenizer)


if __name__ == "__main__":
    main()
