"""
The console script `rnnsent`: one program with a command for each thing to do with a trained model.

Status 0 says that all went well, 1 that what was given cannot be used (one line on standard error names it), 2 that it
is no command line of this program, 130 that it was interrupted, 141 that the reader of its output went away.
"""

import argparse
import difflib
import json
import os
import re
import select
import shlex
import signal
import sys
import threading
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version

from .errors import InputError, one_line_errors
from .showing import figures, prepare_output

MODEL = "directory or Hub id of a trained model, or directory of an exported one"
INPUT = ".csv, .tsv, .json, .jsonl or .parquet file, or a data set's name or folder"
BF16 = "compute in bfloat16 where the processor multiplies in it: faster, a little less exact"


def main(argv: list[str] | None = None):
    """Runs `rnnsent COMMAND ...`."""
    parser = argparse.ArgumentParser(
        prog="rnnsent", description="Recurrent text classification.", epilog="rnnsent COMMAND --help shows an example."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", dest="command", required=True)
    for add in (_add_predict, _add_explain, _add_evaluate, _add_compare, _add_export, _add_tune):
        add(commands)
    arguments, flags = parser.parse_known_args(argv)
    _take_words_after_options(arguments, flags)
    if flags and arguments.run is not tune:
        command = commands.choices[arguments.command]
        wrong = [flag for flag in flags if flag.startswith("-")] or flags
        nearest = difflib.get_close_matches(wrong[0], command._option_string_actions, n=1)
        hint = f" (did you mean {nearest[0]}?)" if nearest else ""
        command.error(f"unrecognized arguments: {' '.join(wrong)}{hint}")
    arguments.flags = flags  # of train.py
    prepare_output()
    with one_line_errors():
        arguments.run(arguments)


def _version() -> str:
    try:
        return version("rnnsent")
    except PackageNotFoundError:  # read from a checkout that is not installed
        return "(not installed)"


def _take_words_after_options(arguments: argparse.Namespace, rest: list[str]):
    """`predict MODEL --json TEXT`: argparse takes a list of words in one piece, and leaves those after an option."""
    words = next((getattr(arguments, name) for name in ("texts", "models", "runs") if hasattr(arguments, name)), None)
    # As argparse itself does: what begins with a dash and has a space in it is a text.
    if words is not None and not any(word.startswith("-") and " " not in word for word in rest):
        words += rest
        rest.clear()


def _add(commands, name: str, run, help: str, description: str, example: str) -> argparse.ArgumentParser:
    command = commands.add_parser(
        name,
        help=help,
        description=description,
        epilog=f"example: {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.set_defaults(run=run)
    return command


def _add_predict(commands):
    command = _add(
        commands,
        "predict",
        predict,
        "classify texts with a trained model",
        "Prints one line a text: label, probability and the text, separated by tabs. Without TEXT, reads one text a\n"
        "line from standard input. With --input, classifies a file or data set of any size into --output. A text\n"
        "without words is answered too, so that answers stay in step with texts.",
        'rnnsent predict runs/default "What a film!" "I fell asleep."\n'
        "         cat reviews.txt | rnnsent predict runs/default --json | head\n"
        "         rnnsent predict runs/default --input reviews.csv --output labels.jsonl",
    )
    command.add_argument("model", metavar="MODEL", help=MODEL)
    command.add_argument("texts", metavar="TEXT", nargs="*", default=[], help="text to classify")
    command.add_argument("--json", action="store_true", help="print one JSON object a line (without --input)")
    command.add_argument("--input", help=f"a .txt (one text a line), {INPUT}")
    command.add_argument(
        "--output", help="file to write, .jsonl or .csv, in the order of the input (goes with --input)"
    )
    command.add_argument("--text_column_name", default="text", help="column that holds the text (default: text)")
    command.add_argument("--dataset_config_name", help="configuration of a data set")
    command.add_argument("--split", help="split of a data set (default: test)")
    command.add_argument("--overwrite", action="store_true", help="replace a finished output")
    command.add_argument("--num_threads", type=int, help="CPU cores of a process (default: all)")
    command.add_argument("--bf16", action="store_true", help=BF16)


def _add_explain(commands):
    command = _add(
        commands,
        "explain",
        explain,
        "show which words moved an answer",
        "Prints the answer and what every word contributed to it (integrated gradients, in log-odds). On a terminal,\n"
        "words that speak for the answer are red, those against it violet. Without TEXT, reads one text a line from\n"
        "standard input.",
        'rnnsent explain runs/default "A dull film with a great ending." --leave_one_out --reading',
    )
    command.add_argument("model", metavar="MODEL", help="directory or Hub id of a trained model")
    command.add_argument("texts", metavar="TEXT", nargs="*", default=[], help="text to explain the answer to")
    command.add_argument("--label", help="label to explain (default: the answer)")
    command.add_argument("--leave_one_out", action="store_true", help="add what the answer loses without each word")
    command.add_argument("--reading", action="store_true", help="add the answer after every word")
    command.add_argument("--json", action="store_true", help="print one JSON object a line")


def _add_evaluate(commands):
    command = _add(
        commands,
        "evaluate",
        evaluate,
        "measure trained models on labelled texts, alone and together",
        "Prints the metrics of every model and, of several, those of the mean of their probabilities.",
        "rnnsent evaluate runs/seed1 runs/seed2 runs/seed3 --input reviews.csv",
    )
    command.add_argument("models", metavar="MODEL", nargs="+", help=MODEL)
    command.add_argument("--input", required=True, help=f"a {INPUT}")
    command.add_argument("--dataset_config_name", help="configuration of a data set")
    command.add_argument("--split", help="split of a data set (default: test)")
    command.add_argument("--text_column_name", default="text", help="column that holds the text (default: text)")
    command.add_argument("--label_column_name", default="label", help="column that holds the label (default: label)")
    command.add_argument("--bf16", action="store_true", help=BF16)
    command.add_argument("--json", action="store_true", help="print one JSON object a line")


def _add_compare(commands):
    command = _add(
        commands,
        "compare",
        compare,
        "compare finished runs in one table and one picture",
        "Prints what the runs' directories say of their results, and the settings in which they differ.",
        "rnnsent compare runs/book runs/default --picture comparison.png",
    )
    command.add_argument("runs", metavar="RUN", nargs="+", help="directory that train.py wrote")
    command.add_argument("--picture", help="file to draw the comparison into, .png, .svg or .pdf")
    command.add_argument("--json", action="store_true", help="print one JSON object a line")


def _add_export(commands):
    command = _add(
        commands,
        "export",
        export,
        "export a trained model to ONNX",
        "Writes the model as ONNX with its tokenizer and labels, and checks it against the original.",
        "rnnsent export runs/default runs/default-onnx",
    )
    command.add_argument("model", metavar="MODEL", help="directory or Hub id of a trained model")
    command.add_argument("output", metavar="DIRECTORY", help="directory to write")
    what = "quantize the weights: smaller and faster, a little less exact"
    command.add_argument("--int8", action="store_true", help=what)
    command.add_argument("--json", action="store_true", help="print one JSON object")


def _add_tune(commands):
    command = _add(
        commands,
        "tune",
        tune,
        "search for better settings of a recipe",
        "Trains with other settings again and again within a time budget and writes the best as a recipe. Flags of\n"
        "train.py may follow. Started again, it goes on.",
        "rnnsent tune configuration/default.yaml --minutes 60 --output runs/tuned --train_file reviews.csv",
    )
    command.add_argument("recipe", metavar="RECIPE", help="recipe to start from")
    command.add_argument("--output", default="runs/tuned", help="directory to write (default: runs/tuned)")
    command.add_argument("--minutes", type=float, default=60, help="time budget (default: 60)")
    command.add_argument("--trials", type=int, help="most trainings in all (default: as many as the time allows)")
    command.add_argument("--json", action="store_true", help="print the best settings as one JSON object")


def predict(arguments: argparse.Namespace):
    """Prints each text's label and probability, or writes those of a whole file or data set."""
    _show_errors_only()
    if arguments.num_threads is not None and arguments.num_threads < 1:
        raise InputError(f"--num_threads must be at least 1, got {arguments.num_threads}.")
    if arguments.input is None:
        given = {"output": arguments.output, "split": arguments.split, "overwrite": arguments.overwrite}
        given["dataset_config_name"] = arguments.dataset_config_name
        given["text_column_name"] = arguments.text_column_name != "text"
        if stray := [name for name, value in given.items() if value]:
            raise InputError(f"--{stray[0]} goes with --input, the file or data set to classify.")
        return print_predictions(
            arguments.model, _texts(arguments), arguments.json, arguments.num_threads, arguments.bf16
        )
    if arguments.texts or arguments.output is None:
        raise InputError("--input goes with --output and without texts.")
    if arguments.json:
        raise InputError("--json is for what is printed: name an --output that ends in .jsonl.")
    from .predicting import predict_to_file

    options = ("text_column_name", "dataset_config_name", "split", "overwrite", "num_threads", "bf16")
    number = predict_to_file(
        arguments.model,
        arguments.input,
        arguments.output,
        **{name: getattr(arguments, name) for name in options},
    )
    if number:
        print(f"{number:,} texts classified: {arguments.output}")


def _texts(arguments: argparse.Namespace) -> Iterator[list[str]]:
    """Lists of texts: those on the command line, or the lines of standard input as they come."""
    from .bulk import check_unicode

    if arguments.texts:
        for number, text in enumerate(arguments.texts, start=1):
            check_unicode(text, f"text {number}")
        return iter([arguments.texts])
    if sys.stdin is None or sys.stdin.isatty():
        raise InputError("give texts, or one a line on standard input.")
    waited_for = [sys.stdin.fileno()]
    if threading.current_thread() is threading.main_thread():  # elsewhere Python allows no handlers
        signal.signal(signal.SIGINT, _end_at_once)
        if os.name == "posix":
            # A signal that comes just before a read begins would be heard of only when it ends.
            woken, wakes = os.pipe()
            os.set_blocking(wakes, False)
            signal.set_wakeup_fd(wakes)
            waited_for.append(woken)
    return _lines(waited_for)


def _end_at_once(number: int, frame):
    """
    For what reads a pipe: there is nothing to put in order, and an exception that came while Python tidies up an object
    would be swallowed, so that the program read on.
    """
    os.write(2, b"error: interrupted\n")
    os._exit(128 + number)


def _lines(waited_for: list[int]) -> Iterator[list[str]]:
    """
    The lines that have come, in lists: of a file many at a time, of a slow pipe each at once. They come from the first
    of the descriptors to wait for.
    """
    rest, number, is_open = b"", 0, True
    while is_open:
        if len(waited_for) > 1:
            select.select(waited_for, [], [])
        chunk = os.read(waited_for[0], 1 << 20)
        is_open = bool(chunk)
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield [_decode(line, number + index) for index, line in enumerate(lines, start=1)]
            number += len(lines)
    if rest:
        yield [_decode(rest, number + 1)]


def _decode(line: bytes, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"line {number} of standard input is not UTF-8: {error.reason}.") from None


def _show_errors_only():
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def print_predictions(
    model: str,
    windows: Iterable[list[str]],
    as_json: bool = False,
    num_threads: int | None = None,
    bf16: bool = False,
):
    """Prints each text's label and probability (multi-label: every label; regression: the value)."""
    from .bulk import BulkClassifier
    from .scoring import as_answer, load_scorer, rounded

    scorer = load_scorer(model, bf16=bf16)
    classify = BulkClassifier(scorer, num_threads)
    for texts in windows:  # one list after the other: an answer is not to wait for the next list
        for text, row in zip(texts, classify(texts)):
            answer = as_answer(rounded(row[None])[0], scorer.config)
            if as_json:
                print(json.dumps({**answer, "text": text}, ensure_ascii=False))
            else:
                shown = answer.get("labels") or {answer["label"]: answer["score"]}
                print(_in_one_line(shown, text, scorer.config.problem_type == "regression"))
        sys.stdout.flush()


def _in_one_line(scores: dict[str, float], text: str, are_values: bool) -> str:
    """Labels, their scores and the text, separated by tabs, which the text keeps as little as line breaks."""
    form = ".6g" if are_values else ".4f"
    return "\t".join((*(f"{label}\t{score:{form}}" for label, score in scores.items()), re.sub(r"\s", " ", text)))


def explain(arguments: argparse.Namespace):
    """Prints what every word contributed to the answer."""
    from .explaining import Explainer
    from .showing import as_json, in_colours, in_columns

    _show_errors_only()
    explainer = Explainer.from_pretrained(arguments.model)
    colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for texts in _texts(arguments):
        for text in texts:
            explanation = explainer(text, arguments.label, changes=arguments.leave_one_out, reading=arguments.reading)
            if arguments.json:
                print(as_json(explanation))
            else:
                line = _in_one_line({explanation.label: explanation.score}, text, explanation.unit == "value")
                print(in_colours(explanation) if colours else line)
                print(in_columns(explanation), end="\n\n")
        sys.stdout.flush()


def evaluate(arguments: argparse.Namespace):
    """Prints the metrics of models and of their mean."""
    from .evaluating import evaluate_models

    _show_errors_only()
    options = ("split", "text_column_name", "label_column_name", "dataset_config_name", "bf16")
    results = evaluate_models(
        arguments.models,
        arguments.input,
        **{name: getattr(arguments, name) for name in options},
    )
    _print_rows([{"model": name, **metrics} for name, metrics in results.items()], arguments.json)


def compare(arguments: argparse.Namespace):
    """Prints the results of runs beside each other."""
    from .comparing import compare_runs, draw_comparison

    rows = compare_runs(arguments.runs)
    if arguments.json:
        _print_rows(rows, as_json=True)
    else:
        _print_rows([{name: value for name, value in row.items() if name != "settings"} for row in rows], as_json=False)
        settings = [
            {"setting": name, **{row["run"]: _cell(row["settings"][name], ".4g") for row in rows}}
            for name in rows[0]["settings"]
        ]
        if settings:
            print()
            _print_rows(settings, as_json=False)
    if arguments.picture:
        draw_comparison(rows, arguments.picture)


def _print_rows(rows: list[dict], as_json: bool):
    """Rows as JSON lines, or as a table whose columns are the keys of all of them."""
    if as_json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    forms = {"minutes": ".1f"}
    cells = [columns, *([_cell(row.get(column), forms.get(column, "")) for column in columns] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells)]
    for line in cells:
        aligned = (cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))
        print(line[0].ljust(widths[0]), *aligned, sep="  ")


def _cell(value, form: str = "") -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return format(value, form) if form else figures(value)
    return f"{value:,}" if type(value) is int else str(value)


def export(arguments: argparse.Namespace):
    """Exports a model and prints how large and how exact the result is."""
    from .exporting import export_model

    _show_errors_only()
    result = export_model(arguments.model, arguments.output, arguments.int8)
    if arguments.json:
        print(json.dumps({"directory": arguments.output, **result}))
        return
    print(
        f"{arguments.output}: {result['megabytes']:.1f} MB, logits within {result['largest_difference']:.1g} of the "
        "model's"
    )


def tune(arguments: argparse.Namespace):
    """Searches for better settings of a recipe."""
    from .tuning import tune_recipe

    best = tune_recipe(arguments.recipe, arguments.output, arguments.minutes, arguments.trials, arguments.flags)
    if arguments.json:
        print(json.dumps(best))
        return
    without = " (of the recurrent layers; the n-grams join when the recipe is trained)" if best["ngrams"] else ""
    value = f"{best['metric']} {figures(best['value'])}"
    print(f"{best['trainings']} trainings, the best with {value} on validation{without}:")
    for name, value in best["settings"].items():
        print(f"  {name}: {value:.6g}" if isinstance(value, float) else f"  {name}: {value}")
    print(f"To train it: accelerate launch train.py {shlex.quote(str(best['recipe']))}")


if __name__ == "__main__":
    main()
