"""
Word vectors to start an embedding from: read from a file, or trained on the texts at hand (CBOW, Mikolov et al., 2013).

Training and the binary format are gensim's. Its own format is a pickle, which runs whatever code it holds: only the
plain formats are read.
"""

import gzip
from collections.abc import Container, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .encoding import WordEncoder
from .errors import InputError
from .modeling_rnnsent import RNNSentPreTrainedModel

TRAINED = "word2vec"
_SUFFIXES = (".txt", ".vec", ".bin", ".txt.gz", ".vec.gz", ".bin.gz")
# gensim's own choices, but that the vocabulary is chosen already, and only one worker gives the same vectors again.
_SETTINGS = {"min_count": 1, "workers": 1}
MOST_WORDS = 10_000  # of a text, by gensim's own limit


def set_vectors(
    model: RNNSentPreTrainedModel,
    name: str,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[str],
    seed: int = 0,
) -> float:
    """
    Gives every word of the vocabulary that has a vector this vector as its embedding; the others keep theirs.

    The vectors are scaled to the size of the embeddings that they replace, `config.initializer_range`: as they are,
    gensim's are ten times as large as what a small model learns well from.

    Args:
        model ([`RNNSentPreTrainedModel`]): A new model; its embedding is changed.
        name (`str`): A file in word2vec's or GloVe's text format (.txt, .vec) or word2vec's binary one (.bin), also
            compressed (.gz); or `"word2vec"`, to train vectors on `texts`.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Tells the words.
        texts (`Iterable[str]`): To train on.
        seed (`int`, *optional*, defaults to 0): Of the training.

    Returns:
        `float`: share of the vocabulary, special tokens apart, that has a vector.

    Raises:
        InputError: where gensim is missing and needed (for all but text files), the file cannot be read, its vectors
            are of another size than the embedding, or it has none of the words.
    """
    embedding = model.get_input_embeddings()
    if embedding is None:
        raise InputError('word_vectors needs an embedding, got input_encoding="one_hot".')
    check_vectors(name)
    special = set(tokenizer.all_special_ids)
    vocabulary = {word: index for word, index in tokenizer.get_vocab().items() if index not in special}
    if name == TRAINED:
        rows, vectors = _train(tokenizer, texts, embedding.embedding_dim, seed)
    else:
        found = _read(name, embedding.embedding_dim, vocabulary)
        if not found:
            raise InputError(f"word_vectors {name!r}: it has none of the {len(vocabulary)} words of the vocabulary.")
        rows, vectors = [vocabulary[word] for word in found], list(found.values())
    vectors = torch.from_numpy(np.array(vectors, dtype=np.float32))
    vectors *= model.config.initializer_range / vectors.square().mean().sqrt().clamp(min=1e-12)
    with torch.no_grad():
        embedding.weight[rows] = vectors.to(embedding.weight)
    return len(rows) / max(1, len(vocabulary))


def check_vectors(name: str):
    """
    Sees to it that there are such vectors, before anything that takes time.

    Args:
        name (`str`): As in [`set_vectors`].

    Raises:
        InputError: where gensim is missing and needed, or there is no such file in one of the formats.
    """
    if name == TRAINED or _is_binary(name):
        import_gensim()
    if name == TRAINED:
        return
    if not name.endswith(_SUFFIXES):
        raise InputError(f"word_vectors {name!r}: give word2vec, or a file whose name ends in {', '.join(_SUFFIXES)}.")
    if not Path(name).is_file():
        raise InputError(f"word_vectors {name!r}: there is no such file.")


def import_gensim(what: str = "word_vectors"):
    """`gensim.models`, or an InputError that says that `what` needs it."""
    try:
        import gensim.models
    except ModuleNotFoundError:
        raise InputError(f"{what} needs gensim: pip install gensim") from None
    return gensim.models


def in_pieces(row: list[str]) -> Iterator[list[str]]:
    """A text as gensim reads it: without a word, it leaves out what is beyond 10,000 words."""
    for start in range(0, max(1, len(row)), MOST_WORDS):
        yield row[start : start + MOST_WORDS]


def _is_binary(name: str) -> bool:
    return name.removesuffix(".gz").endswith(".bin")


def _read(name: str, size: int, vocabulary: Container[str]) -> dict[str, np.ndarray]:
    """The vectors, of `size` elements, of those words of a file that are in the vocabulary."""
    try:
        if _is_binary(name):
            vectors = import_gensim().KeyedVectors.load_word2vec_format(name, binary=True, unicode_errors="replace")
            _check_size(name, vectors.vector_size, size)
            return {word: vectors[word] for word in vectors.index_to_key if word in vocabulary}
        settings = {"encoding": "utf-8", "errors": "replace", "newline": "\n"}
        with (gzip.open if name.endswith(".gz") else open)(name, "rt", **settings) as lines:
            return _read_lines(name, lines, size, vocabulary)
    except InputError:
        raise
    except Exception as error:  # a file may be broken in many ways
        raise InputError(f"word_vectors {name!r} is not readable: {error}") from error


def _read_lines(name: str, lines: Iterable[str], size: int, vocabulary: Container[str]) -> dict[str, np.ndarray]:
    """
    A word and its vector a line. gensim would hold all words, and refuses those with spaces in them, of which GloVe's
    largest file has some.
    """
    found, words, expected = {}, 0, None
    for number, line in enumerate(lines, 1):
        if number == 1:
            elements = len(line.split()) - 1
            if elements == 1:  # how many words there are, and of how many elements: not in GloVe's files
                expected, elements = (int(part) for part in line.split())
            _check_size(name, elements, size)
            if expected is not None:
                continue
        if not line.strip():
            continue
        word, *vector = line.rstrip("\r\n ").rsplit(" ", size)
        if len(vector) != size:
            raise ValueError(f"line {number} has {len(vector)} elements, not {size}")
        words += 1
        if word in vocabulary and word not in found:
            found[word] = np.array(vector, dtype=np.float32)
    if expected not in (None, words):
        raise ValueError(f"{words} words where its first line says {expected}")
    return found


def _check_size(name: str, elements: int, size: int):
    if elements != size:
        raise InputError(f"word_vectors {name!r}: its vectors have {elements} elements, embedding_size is {size}.")


def _train(tokenizer, texts: Iterable[str], size: int, seed: int) -> tuple[list[int], np.ndarray]:
    """Vectors of the ids themselves: words outside the vocabulary are left out."""
    sentences = _Sentences(tokenizer, texts)
    vectors = import_gensim().Word2Vec(sentences, vector_size=size, seed=seed, **_SETTINGS).wv
    return [int(word) for word in vectors.index_to_key], vectors.vectors


class _Sentences:
    """Texts as gensim reads them, once an epoch: ids in four bytes each, which are words only while they are read."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]):
        encode, unknown, left = WordEncoder(tokenizer), tokenizer.unk_token_id, iter(texts)
        self.words = np.array([str(index) for index in range(len(tokenizer))], dtype=object)
        self.rows: list[np.ndarray] = []
        while some := list(islice(left, 1000)):
            self.rows += [row[row != unknown].astype(np.int32) for row in encode(some)]

    def __iter__(self) -> Iterator[list[str]]:
        for row in self.rows:
            yield from in_pieces(self.words[row].tolist())
