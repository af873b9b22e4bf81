"""
A page to try trained models: a text's label, the words that moved it, the answer as the text is read; and whole files.

    python app.py [MODEL ...] [--port 7860]

Without MODEL it offers what it finds in `runs/`, or the models that the environment variable RNNSENT_MODELS names
(separated by commas), which is how a Hugging Face Space is told.
"""

import argparse
import functools
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import pandas

from modeling_rnnsent.bulk import BulkClassifier, check_unicode
from modeling_rnnsent.data import stream_texts
from modeling_rnnsent.errors import InputError, one_line_errors
from modeling_rnnsent.explaining import Explainer, Explanation
from modeling_rnnsent.predicting import result_writer, written
from modeling_rnnsent.scoring import CLASSIFIER, ONNX_FILE, TorchScorer
from modeling_rnnsent.showing import strengths

try:
    import gradio as gr
except ModuleNotFoundError:
    sys.exit('error: the page needs Gradio: pip install -c constraints.txt ".[app]"')

EXAMPLES = [
    "A dull film with a great ending.",
    "I loved every minute of it: great story, wonderful actors.",
    "The trailer promised a thriller. What I got was two hours of people looking out of windows.",
]
# A page is for reading: what is longer goes through the file tab, or `rnnsent explain`.
MOST_WORDS = 2000
MOST_WORDS_BELOW = 40
SECONDS_KEPT = 3600


def find_models(given: list[str]) -> list[str]:
    """
    The models to offer.

    Raises:
        InputError: where there is none; the message says which command trains one.
    """
    if given:
        return given
    named = [name.strip() for name in os.environ.get("RNNSENT_MODELS", "").split(",") if name.strip()]
    if named:
        return named
    found = []
    for path in sorted(Path("runs").glob("*/config.json"), key=lambda path: path.stat().st_mtime, reverse=True):
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        has_gradients = not (path.parent / ONNX_FILE).exists()
        if has_gradients and isinstance(config, dict) and CLASSIFIER in (config.get("architectures") or []):
            found.append(str(path.parent))
    if not found:
        raise InputError(
            "there is no trained model in runs/: run `accelerate launch train.py configuration/default.yaml` (some "
            "minutes on a laptop), or name a model: python app.py MODEL"
        )
    return found


@functools.lru_cache(maxsize=4)
def load(name: str) -> Explainer:
    return Explainer.from_pretrained(name)


def classify(name: str, text: str):
    """Label and probabilities, coloured words, and what else is known of the answer."""
    try:
        if not text.strip():
            raise InputError("Write or paste a text first.")
        check_unicode(text, "The text")
        explainer = load(name)
        number = len(explainer.tokenizer(text, verbose=False)["input_ids"])
        if number > MOST_WORDS:
            raise InputError(f"The text has {number:,} words, the page explains up to {MOST_WORDS:,}: use a file.")
        explanation = explainer(text, reading=True)
        scores = explainer.probabilities(text)
    except (InputError, OSError) as error:
        raise gr.Error(str(error), print_exception=False) from error
    if explanation.unit == "value":
        scores = f"{explanation.score:.6g}"
    return scores, coloured(explanation), explanation


def plot(explanation: Explanation) -> gr.LinePlot:
    """The answer after every word; the words of a short text stand below the line, those of a long one have no room."""
    numbers = range(1, len(explanation.words) + 1)
    named = [f"{number} {word}" for number, word in zip(numbers, explanation.words)]
    is_short = len(named) <= MOST_WORDS_BELOW
    return gr.LinePlot(
        pandas.DataFrame(
            {"word": named if is_short else numbers, "read so far": named, explanation.unit: explanation.reading}
        ),
        x="word",
        y=explanation.unit,
        x_title="words read",
        x_label_angle=-90 if is_short else 0,
        sort=named if is_short else None,
        y_lim=[0, 1] if explanation.unit == "probability" else None,
        tooltip=["read so far"],
        title=f"{explanation.unit.capitalize()} of “{explanation.label}” after every word",
        label="As it is read",
        elem_id="reading",
    )


def coloured(explanation) -> list[tuple[str, float | None]]:
    """The text in pieces: words with their strength, -1 to 1, and what stands between them."""
    pieces, end = [], 0
    for (start, stop), strength in zip(explanation.spans, strengths(explanation)):
        pieces += [(explanation.text[end:start], None), (explanation.text[start:stop], round(strength, 2))]
        end = stop
    return [piece for piece in (*pieces, (explanation.text[end:], None)) if piece[0]]


def classify_file(name: str, path: str | None, column: str, progress=gr.Progress()):  # noqa: B008 (how Gradio is told)
    """A CSV file with every text of the file, its label and score."""
    try:
        if not path:
            raise InputError("Choose a file first.")
        texts, again, total = (stream_texts(path, column.strip() or "text") for _ in range(3))
        total = sum(1 for _ in total)  # a first reading takes little beside what follows, and what is wrong is said now
        explainer = load(name)
        answers = BulkClassifier(TorchScorer(explainer.model, explainer.tokenizer))(texts)
        output, number = new_folder() / f"{Path(path).stem}-labels.csv", 0
        with open(output, "w", encoding="utf-8", newline="") as file:
            write = result_writer(file, ".csv", explainer.config, with_text=True)
            for number, (text, row) in enumerate(zip(again, answers), start=1):
                write(*written(row[None], explainer.config), text=text)
                if number % 200 == 0:
                    progress((number, total), desc="Classifying", unit="texts")
    except (InputError, OSError) as error:
        message = str(error).replace(repr(path), repr(Path(path).name)) if path else str(error)  # as the user knows it
        raise gr.Error(message, print_exception=False) from error
    return str(output), f"{number:,} texts classified."


@functools.cache
def place() -> Path:
    return Path(tempfile.mkdtemp(prefix="rnnsent-"))


def new_folder() -> Path:
    """For what is about to be downloaded; those of an hour ago and before are removed."""
    for folder in place().iterdir():
        if folder.stat().st_mtime < time.time() - SECONDS_KEPT:
            shutil.rmtree(folder, ignore_errors=True)
    return Path(tempfile.mkdtemp(dir=place()))


def make_page(models: list[str]) -> gr.Blocks:
    with gr.Blocks(title="Text classification with rnnsent", delete_cache=(SECONDS_KEPT, SECONDS_KEPT)) as page:
        gr.Markdown("# What a recurrent classifier reads\nA trained model's answer, and the words that moved it.")
        model = gr.Dropdown(models, value=models[0], label="Model", visible=len(models) > 1)
        with gr.Tab("A text"):
            text = gr.Textbox(label="Text", lines=4, max_lines=20, placeholder="Write or paste a text", elem_id="text")
            button = gr.Button("Classify", variant="primary", elem_id="classify")
            label = gr.Label(label="Answer", elem_id="answer")
            words = gr.HighlightedText(
                label="Words that speak for the answer (red) and against it (violet)", elem_id="words"
            )
            explanation = gr.State()
            # Made anew for every answer: one that is there takes another title or scale, but keeps the words it had.
            gr.render(inputs=explanation)(lambda known: known and plot(known))
            examples = gr.Examples(EXAMPLES, text)
            for event in (button.click, text.submit, examples.load_input_event.then):
                event(classify, [model, text], [label, words, explanation], api_name="classify")
        with gr.Tab("A file"):
            gr.Markdown(".txt (one text a line), .csv, .tsv, .json, .jsonl or .parquet")
            file = gr.File(
                label="A file of texts",
                file_types=[".txt", ".csv", ".tsv", ".json", ".jsonl", ".parquet"],
                elem_id="file",
            )
            column = gr.Textbox("text", label="Column that holds the text", elem_id="column")
            start = gr.Button("Classify the file", variant="primary", elem_id="classify-file")
            summary = gr.Markdown(elem_id="summary")
            result = gr.File(label="Labels", interactive=False, elem_id="labels")
            # One after the other: each takes every core.
            start.click(
                classify_file,
                [model, file, column],
                [result, summary],
                api_name="classify_file",
                concurrency_limit=1,
                scroll_to_output=True,
            )
    return page


def main():
    parser = argparse.ArgumentParser(description="A page to try trained models.")
    parser.add_argument("models", metavar="MODEL", nargs="*", help="directory or Hub id of a trained model")
    parser.add_argument("--port", type=int, default=None, help="port to listen on (default: 7860)")
    arguments = parser.parse_args()
    with one_line_errors():
        models = find_models(arguments.models)
        load(models[0])  # what is wrong with it is to be said here
        make_page(models).queue(default_concurrency_limit=2).launch(server_port=arguments.port)


if __name__ == "__main__":
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    sys.exit(main())
