"""
Test accuracy of what people use instead of a recurrent classifier, on IMDb's 25,000 + 25,000 reviews:

    python benchmarks/baselines.py [DATASET]

DATASET is `stanfordnlp/imdb` (the default) or a local folder in its layout. Every rival gets punctuation marks as
tokens, as `default.yaml` does, and has its library's defaults or the settings of the paper named; only the penalty of
logistic regression is the best of a few on a tenth of the training reviews, held out film by film as for the recipes.
Nothing is chosen by the test split. The time is that of reading words, fitting with the penalty chosen, and the test.
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
MARKS = r"\w+|[^\w\s]"  # without them each of the three has 0.3 to 0.6 points less
# Texts and labels to fit, texts to classify and logistic regression's inverse penalty (fastText has none) to classes.
Fit = Callable[[list[str], np.ndarray, list[str], float | None], np.ndarray]


def tfidf(ngrams: int) -> Fit:
    """TF-IDF of words (and n-grams) and logistic regression."""

    def fit(texts: list[str], labels: np.ndarray, others: list[str], inverse_penalty: float) -> np.ndarray:
        vectorizer = TfidfVectorizer(ngram_range=(1, ngrams), token_pattern=MARKS, preprocessor=plain)
        classifier = LogisticRegression(C=inverse_penalty, max_iter=1000).fit(vectorizer.fit_transform(texts), labels)
        return classifier.predict(vectorizer.transform(others))

    return fit


def naive_bayes(texts: list[str], labels: np.ndarray, others: list[str], inverse_penalty: float) -> np.ndarray:
    """Presence of 1- to 3-grams times naive Bayes' log-count ratio, logistic regression (Wang & Manning, 2012)."""
    vectorizer = CountVectorizer(
        ngram_range=(1, 3), binary=True, dtype=np.float32, token_pattern=MARKS, preprocessor=plain
    )
    counts = vectorizer.fit_transform(texts)
    inside, outside = (np.asarray(counts[labels == label].sum(axis=0)).ravel() + 1 for label in (1, 0))
    ratios = np.log((inside / inside.sum()) / (outside / outside.sum())).astype(np.float32)
    classifier = LogisticRegression(C=inverse_penalty, solver="liblinear")
    classifier.fit(counts.multiply(ratios).tocsr(), labels)
    return classifier.predict(vectorizer.transform(others).multiply(ratios).tocsr())


def plain(text: str) -> str:
    return text.lower().replace("<br />", " ")


def fasttext_bigrams(texts: list[str], labels: np.ndarray, others: list[str], _: None) -> np.ndarray:
    """fastText with pairs of words (Joulin et al., 2017): rate 0.5, 5 epochs, marks apart from words as there."""
    import fasttext

    def separate(text: str) -> str:
        return " ".join(re.sub(r"([.!?,'/():;\"])", r" \1 ", plain(text)).split())

    clean = [[separate(text) for text in part] for part in (texts, others)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.txt"
        lines = [f"__label__{label} {text}" for text, label in zip(clean[0], labels)]
        random.Random(1).shuffle(lines)  # it reads them in their order, and the data set's is by class
        path.write_text("\n".join(lines))
        model = fasttext.train_supervised(str(path), wordNgrams=2, lr=0.5, epoch=5, verbose=0)
    # Its `predict` fails with numpy 2: the library's own call underneath does not.
    return np.array([int(model.f.predict(text + "\n", 1, 0.0, "strict")[0][1][-1]) for text in clean[1]])


# With the inverse penalties to choose from.
RIVALS: dict[str, tuple[Fit, tuple[float | None, ...]]] = {
    "TF-IDF, words + logistic regression": (tfidf(1), (1.0, 3.0, 10.0, 30.0)),
    "TF-IDF, 1-2-grams + logistic regression": (tfidf(2), (3.0, 10.0, 30.0, 100.0)),
    "naive Bayes weighted 1-3-grams + logistic regression": (naive_bayes, (0.3, 1.0, 3.0, 10.0)),
    "fastText, 1-2-grams": (fasttext_bigrams, (None,)),
}


def choose(fit: Fit, inverse_penalties: tuple[float | None, ...], texts: list[str], labels: np.ndarray) -> float | None:
    """The one with the highest accuracy on a tenth of the texts, held out film by film."""
    blocks = np.arange(len(texts)) // HOLDOUT_BLOCK_SIZE
    held = np.isin(blocks, np.random.default_rng(1).permutation(blocks.max() + 1)[: blocks.max() // 10])
    fitted, others = ([text for text, is_held in zip(texts, held) if is_held == part] for part in (False, True))

    def accuracy(inverse_penalty: float | None) -> float:
        return float(np.mean(fit(fitted, labels[~held], others, inverse_penalty) == labels[held]))

    return max(inverse_penalties, key=accuracy) if len(inverse_penalties) > 1 else inverse_penalties[0]


def measure(dataset_name: str) -> Iterator[dict]:
    data = load_dataset(dataset_name)
    texts, test_texts = (list(data[split]["text"]) for split in ("train", "test"))
    labels, test_labels = (np.array(data[split]["label"]) for split in ("train", "test"))
    for name, (fit, inverse_penalties) in RIVALS.items():
        inverse_penalty = choose(fit, inverse_penalties, texts, labels)
        start = time.perf_counter()
        accuracy = float(np.mean(fit(texts, labels, test_texts, inverse_penalty) == test_labels))
        seconds = round(time.perf_counter() - start, 1)
        yield {"model": name, "C": inverse_penalty, "test accuracy": f"{accuracy:.4f}", "seconds": seconds}


if __name__ == "__main__":
    rows = list(measure(sys.argv[1] if len(sys.argv) > 1 else "stanfordnlp/imdb"))
    show("IMDb, trained on 25,000 reviews, tested on 25,000", rows)
    write("baselines", describe_machine(), rows)
