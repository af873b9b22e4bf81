"""
What the vectors of documents say of texts without labels (PV-DBOW: Le & Mikolov, 2014; of n-grams: Li et al., 2015).

Every text has a vector, trained to tell the words and the runs of two and three words that stand in the text from
others: what texts have in common is in it. Words and runs that are known to stand as often in the texts of one label as
in others are left out, as no use comes of telling them (after Bingyu & Arefyev, 2022, who draw n-grams by their
log-count ratios). A linear model learns the labels from the vectors of the texts that have one, and answers for the
others. A text that comes later has no vector, so this is no classifier to keep but a teacher, and one that is wrong
elsewhere than recurrent layers are.

The vectors are gensim's. They take longer than all else, so they are kept in the cache of `datasets`.
"""

import hashlib
import os
import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import datasets
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from .encoding import WordEncoder
from .errors import InputError
from .metrics import mean_loss
from .objectives import soft_cross_entropy
from .vectors import MOST_WORDS, import_gensim, in_pieces

logger = logging.get_logger(__name__)

DOCUMENTS = "doc2vec"
ORDER = 3
# With 200 elements the loss of imdb_best.yaml's teachers is 0.001 higher, with 500 as much lower (docs/results.md). One
# worker: with more no run gives the same again.
_SETTINGS = {
    "dm": 0,
    "vector_size": 300,
    "epochs": 10,
    "alpha": 0.05,
    "min_alpha": 0.0005,
    "min_count": 5,
    "workers": 1,
}
_VERSION = 2  # of what is made of these settings, for the cache
# Least |log-count ratio| + 1 / sqrt(labelled texts with it) of an n-gram that is kept: the second part spares those
# that are too rare to be judged.
TELLING = 0.4
# Penalties on the squared weights (scikit-learn's 1 / C), the largest first.
PENALTIES = (1000.0, 300.0, 100.0, 30.0, 10.0, 3.0, 1.0)


def answer_by_documents(
    labeled: Sequence[str],
    labels: np.ndarray,
    validation: Sequence[str],
    validation_labels: np.ndarray,
    unlabeled: Sequence[str],
    problem_type: str,
    columns: int,
    tokenizer: PreTrainedTokenizerBase,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """
    Logits (values, for regression) of the validation and the unlabelled texts.

    Args:
        labeled (`Sequence[str]`): Texts to learn from.
        labels (`np.ndarray`): Class ids, rows of 0 and 1 (multi-label) or values (regression).
        validation, validation_labels: The same of texts that choose the penalty on the linear model's weights.
        unlabeled (`Sequence[str]`): Texts without labels.
        problem_type (`str`): As in `config.problem_type`.
        columns (`int`): Number of labels, 1 for regression.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tells the words.
        seed (`int`, *optional*, defaults to 0): Of the vectors. The same seed gives the same.

    Returns:
        `tuple[np.ndarray, np.ndarray]`: of shapes `(len(validation), columns)` and `(len(unlabeled), columns)`.

    Raises:
        InputError: where gensim is missing, or no word stands five times and tells of a label.
    """
    targets = torch.as_tensor(np.asarray(labels))
    if problem_type == "single_label_classification":
        targets = F.one_hot(targets.long(), columns)
    targets = targets.float().view(len(labeled), columns)
    shift, scale = 0.0, 1.0
    if problem_type == "regression":  # fitted to values of mean 0 and deviation 1
        shift, scale = targets.mean(), targets.std(correction=0).clamp(min=1e-12)
    targets = (targets - shift) / scale
    inside = (targets > 0).numpy()
    vectors = torch.from_numpy(_vectors([*labeled, *validation, *unlabeled], inside, tokenizer, seed))
    vectors = vectors / vectors.norm(dim=1, keepdim=True).clamp(min=1e-12)
    vectors /= vectors.std().clamp(min=1e-12)
    parts = vectors.split([len(labeled), len(validation), len(unlabeled)])
    lowest, best = float("inf"), None
    for penalty in PENALTIES:
        linear = _fit_linear(parts[0], targets, penalty, problem_type)
        with torch.no_grad():
            answers = [(linear(part) * scale + shift).numpy() for part in parts[1:]]
        if (loss := mean_loss(answers[0], validation_labels, problem_type)) < lowest:
            lowest, best = loss, answers
    return best


def _vectors(texts: list[str], inside: np.ndarray, tokenizer: PreTrainedTokenizerBase, seed: int) -> np.ndarray:
    """As they were trained before, where the cache of `datasets` has those of the same texts, labels and seed."""
    gensim = import_gensim("the teacher doc2vec")
    encode = WordEncoder(tokenizer)
    rows = [row for start in range(0, len(texts), 1000) for row in encode(texts[start : start + 1000])]
    digest = hashlib.sha256(repr((_VERSION, _SETTINGS, ORDER, TELLING, seed, version("gensim"))).encode())
    digest.update(inside.tobytes())
    if ORDER * max(map(len, rows), default=0) > MOST_WORDS:  # cut into pieces
        digest.update(MOST_WORDS.to_bytes(8))
    for row in rows:
        digest.update(len(row).to_bytes(8) + row.tobytes())
    place = Path(datasets.config.HF_DATASETS_CACHE, "doc2vec", f"{digest.hexdigest()}.npy")
    if datasets.is_caching_enabled() and place.exists():
        try:
            vectors = np.load(place)
            print(f"document vectors trained before: {place}", flush=True)
            return vectors
        except (ValueError, EOFError):
            logger.warning(f"{place} is not readable: document vectors are trained again.")
    print(f"training document vectors of {len(rows):,} texts", flush=True)
    vectors = _train(gensim.doc2vec, _ngrams(rows, inside), seed)
    if datasets.is_caching_enabled():
        _keep(vectors, place)
    return vectors


def _keep(vectors: np.ndarray, place: Path):
    """Whole or not at all; where they cannot be kept, the run goes on all the same."""
    unfinished = place.with_name(f"{place.stem}.{os.getpid()}.npy")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        np.save(unfinished, vectors)
        os.replace(unfinished, place)
    except OSError as error:
        logger.warning(f"The document vectors cannot be kept as {place}: {error}")
    finally:
        with suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _train(doc2vec, texts: list[list[str]], seed: int) -> np.ndarray:
    if not any(texts):
        least = _SETTINGS["min_count"]
        raise InputError(
            f"the teacher doc2vec needs words that stand {least} times and more often under one label than another, "
            "and there are none."
        )
    parts = ((index, part) for index, ngrams in enumerate(texts) for part in in_pieces(ngrams))
    documents = [doc2vec.TaggedDocument(part, [index]) for index, part in parts]
    # Within an epoch the n-grams' vectors move on, and with them those of the texts: in the order of a file sorted by
    # label they would tell the place in the file (half of IMDb's validation reviews right).
    random.Random(seed).shuffle(documents)
    model = doc2vec.Doc2Vec(seed=seed, **_SETTINGS)
    model.build_vocab(documents)
    with tqdm(desc="training doc2vec", total=len(documents) * model.epochs, disable=None) as bar:
        model.train(_Shown(documents, bar), total_examples=len(documents), epochs=model.epochs)
    vectors = model.dv.vectors
    vectors[[not ngrams for ngrams in texts]] = 0  # of which nothing is known: not the random numbers of the start
    return vectors


class _Shown:
    """What is read again every epoch, with a bar that tells how far the reading is."""

    def __init__(self, documents: list, bar: tqdm):
        self.documents, self.bar = documents, bar

    def __iter__(self) -> Iterator:
        for document in self.documents:
            yield document
            self.bar.update()


def _ngrams(rows: list[np.ndarray], inside: np.ndarray) -> list[list[str]]:
    """
    A name for every run of one to three words of every text, where the run stands five times and may tell the labels.

    Args:
        rows (`list[np.ndarray]`): Ids of the words of the texts, those with labels first.
        inside (`np.ndarray` of shape `(number of labelled texts, columns)`): Whether a text has a label.
    """
    words = np.concatenate(rows).astype(np.int64)
    texts = np.repeat(np.arange(len(rows)), [len(row) for row in rows])
    runs, names, owners, known = np.zeros_like(words), [], [], 0
    for order in range(ORDER):
        # A run is the one that starts there and is a word shorter, and the word that follows it.
        runs = runs[: len(words) - order] * (words.max(initial=0) + 1) + words[order:]
        whole = texts[: len(texts) - order] == texts[order:]
        _, runs = np.unique(np.where(whole, runs, -1), return_inverse=True)
        kept = _telling(runs[whole], texts[: len(runs)][whole], runs.max(initial=-1) + 1, inside)
        places = whole & kept[runs]
        names.append(np.cumsum(kept)[runs[places]] + known)
        owners.append(texts[: len(runs)][places])
        known += kept.sum()
    owners, names = np.concatenate(owners), np.concatenate(names)
    strings = [str(name) for name in range(known + 1)]
    ends = np.cumsum(np.bincount(owners, minlength=len(rows)))[:-1]
    return [[strings[name] for name in part] for part in np.split(names[np.argsort(owners, kind="stable")], ends)]


def _telling(runs: np.ndarray, texts: np.ndarray, size: int, inside: np.ndarray) -> np.ndarray:
    """Of `size` runs whether each stands often enough, and more in a label's texts than in others, or might."""
    labeled = texts < len(inside)
    pairs = np.unique(runs[labeled] * len(inside) + texts[labeled])  # once a text
    run, text = np.divmod(pairs, len(inside))
    everywhere = np.bincount(run, minlength=size)
    best = np.zeros(size)
    for column in inside.T[inside.any(axis=0)]:  # of a label that no text has there is nothing to know
        within = np.bincount(run[column[text]], minlength=size)
        shares = (column.sum() + 1) / (len(column) - column.sum() + 1)
        best = np.maximum(best, np.abs(np.log((within + 1) / (everywhere - within + 1) / shares)))
    often = np.bincount(runs, minlength=size) >= _SETTINGS["min_count"]
    return often & (best + 1 / np.sqrt(everywhere + 1) >= TELLING)


def _fit_linear(vectors: Tensor, targets: Tensor, penalty: float, problem_type: str) -> nn.Linear:
    """Logistic regression, or least squares, with a penalty on the squares of the weights, but not of the bias."""
    linear = nn.Linear(vectors.shape[1], targets.shape[1])
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)

    def closure() -> Tensor:
        linear.zero_grad()
        loss = soft_cross_entropy(linear(vectors), targets, problem_type)
        loss = loss + penalty / (2 * len(vectors)) * linear.weight.square().sum()
        loss.backward()
        return loss

    torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe").step(closure)
    return linear
