"""
Test accuracy of what people use instead of a recurrent classifier, on IMDb's 25,000 + 25,000 reviews:

    python benchmarks/baselines.py [DATASET]

DATASET is `stanfordnlp/imdb` (the default) or a local folder in its layout. Every rival has its library's defaults or
the setting of the paper named, but for TF-IDF's penalty, which is the best of three on a tenth of the training reviews,
held out film by film as for the recipes; nothing is chosen by the test split.
"""

import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from datasets import load_dataset
from measuring import describe_machine, show, write
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.linear_model import LogisticRegression

HOLDOUT_BLOCK_SIZE = 50  # IMDb's reviews stand film by film
Fit = Callable[[list[str], np.ndarray, list[str]], np.ndarray]


def tfidf(ngrams: int) -> Fit:
    """TF-IDF of words (and n-grams) and logistic regression."""

    def fit(texts: list[str], labels: np.ndarray, test_texts: list[str]) -> np.ndarray:
        vectorizer = TfidfVectorizer(ngram_range=(1, ngrams))
        vectors, blocks = vectorizer.fit_transform(texts), np.arange(len(texts)) // HOLDOUT_BLOCK_SIZE
        held = np.isin(blocks, np.random.default_rng(1).permutation(blocks.max() + 1)[: blocks.max() // 10])

        def accuracy(inverse_penalty: float) -> float:
            classifier = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(vectors[~held], labels[~held])
            return classifier.score(vectors[held], labels[held])

        classifier = LogisticRegression(C=max((1.0, 10.0, 100.0), key=accuracy), max_iter=1000).fit(vectors, labels)
        return classifier.predict(vectorizer.transform(test_texts))

    return fit


def naive_bayes(texts: list[str], labels: np.ndarray, test_texts: list[str]) -> np.ndarray:
    """Presence of 1- to 3-grams times naive Bayes' log-count ratio, logistic regression (Wang & Manning, 2012)."""
    vectorizer = CountVectorizer(ngram_range=(1, 3), binary=True, dtype=np.float32)
    counts = vectorizer.fit_transform(texts)
    inside, outside = (np.asarray(counts[labels == label].sum(axis=0)).ravel() + 1 for label in (1, 0))
    ratios = np.log((inside / inside.sum()) / (outside / outside.sum())).astype(np.float32)
    classifier = LogisticRegression(C=1.0, solver="liblinear").fit(counts.multiply(ratios).tocsr(), labels)
    return classifier.predict(vectorizer.transform(test_texts).multiply(ratios).tocsr())


def fasttext_bigrams(texts: list[str], labels: np.ndarray, test_texts: list[str]) -> np.ndarray:
    """fastText with pairs of words (Joulin et al., 2017): rate 0.5, 5 epochs, marks apart from words as there."""
    import fasttext

    def separate(text: str) -> str:
        return " ".join(re.sub(r"([.!?,'/():;\"])", r" \1 ", text.lower().replace("<br />", " ")).split())

    clean = [[separate(text) for text in part] for part in (texts, test_texts)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        lines = [f"__label__{label} {text}" for text, label in zip(clean[0], labels)]
        random.Random(1).shuffle(lines)  # it reads them in their order, and the data set's is by class
        path.write_text("\n".join(lines))
        model = fasttext.train_supervised(str(path), wordNgrams=2, lr=0.5, epoch=5, verbose=0)
    # Its `predict` fails with numpy 2: the library's own call underneath does not.
    return np.array([int(model.f.predict(text + "\n", 1, 0.0, "strict")[0][1][-1]) for text in clean[1]])


RIVALS: dict[str, Fit] = {
    "TF-IDF, words + logistic regression": tfidf(1),
    "TF-IDF, 1-2-grams + logistic regression": tfidf(2),
    "naive Bayes weighted 1-3-grams + logistic regression": naive_bayes,
    "fastText, 1-2-grams": fasttext_bigrams,
}


def measure(dataset_name: str) -> Iterator[dict]:
    data = load_dataset(dataset_name)
    texts, test_texts = (list(data[split]["text"]) for split in ("train", "test"))
    labels, test_labels = (np.array(data[split]["label"]) for split in ("train", "test"))
    for name, fit in RIVALS.items():
        start = time.perf_counter()
        guesses = fit(texts, labels, test_texts)
        accuracy = float(np.mean(guesses == test_labels))
        yield {"model": name, "test accuracy": f"{accuracy:.4f}", "seconds": round(time.perf_counter() - start, 1)}


if __name__ == "__main__":
    rows = list(measure(sys.argv[1] if len(sys.argv) > 1 else "stanfordnlp/imdb"))
    show("IMDb, trained on 25,000 reviews, tested on 25,000", rows)
    write("baselines", describe_machine(), rows)
