"""
Classifying many texts: windows sorted by length, tokenizer and model at work at the same time on every core.

A recurrent layer is a chain of small steps, which two threads together do little faster than one alone. So on a CPU
each core runs batches of its own, with one thread each, while the next window is tokenized.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import chain, islice

import numpy as np
import torch

from .encoding import WordEncoder
from .errors import InputError
from .scoring import OnnxScorer, TorchScorer, probabilities

# Texts of a window, and characters: whole books would be too many otherwise.
WINDOW_SIZE, WINDOW_CHARACTERS = 4096, 1 << 26
PART_SIZE = 1024
# Padded tokens of one batch: on a CPU its states stay in the cache of a core.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 16384, 262144


class BulkClassifier:
    """
    Classifies any number of texts in their order, reading no more than a few windows of them ahead.

    Args:
        scorer ([`TorchScorer`] or [`OnnxScorer`]): The model: see [`load_scorer`].
        num_threads (`int`, *optional*): CPU cores to use. None: as many as torch uses now.

    Example:

    ```python
    >>> from modeling_rnnsent.bulk import BulkClassifier
    >>> from modeling_rnnsent.scoring import load_scorer

    >>> classify = BulkClassifier(load_scorer("runs/default"))
    >>> for probabilities in classify(open("reviews.txt", encoding="utf-8")):
    ...     print(probabilities)
    ```
    """

    def __init__(self, scorer: TorchScorer | OnnxScorer, num_threads: int | None = None):
        if num_threads is not None and num_threads < 1:
            raise ValueError(f"`num_threads` must be at least 1, got {num_threads}.")
        self.scorer = scorer
        self.encode = WordEncoder(scorer.tokenizer)
        self.num_threads = num_threads or torch.get_num_threads()

    def __call__(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """
        Yields for each text what the pipeline gives: the labels' probabilities `(num_labels,)`, or the value of a
        regression. Texts are taken from the iterable as they are needed.

        Raises:
            InputError: where a text is not a string.
        """
        for window in self.windows(in_windows(texts)):
            yield from window

    def windows(self, windows: Iterable[list[str]]) -> Iterator[np.ndarray]:
        """The same for lists of texts, one array a list."""
        workers = self.num_threads if self.scorer.on_cpu else 1
        with ThreadPoolExecutor(workers + 1) as pool:
            windows = iter(windows)
            first = next(windows, None)
            if first is None:
                return
            # While the first is encoded there is nothing to classify, so it goes in parts.
            parts = [first[start : start + PART_SIZE] for start in range(0, len(first), PART_SIZE)] or [first]
            answers = self._overlapped(pool, chain(parts, windows))
            yield np.concatenate(list(islice(answers, len(parts))))
            yield from answers

    def _overlapped(self, pool: ThreadPoolExecutor, windows: Iterator[list[str]]) -> Iterator[np.ndarray]:
        """Answers to each window, the next being encoded meanwhile."""
        ahead = self._encode_next(pool, windows)
        while ahead is not None:
            rows = ahead.result()
            ahead = self._encode_next(pool, windows)
            yield self._classify(rows, pool)

    def _encode_next(self, pool: ThreadPoolExecutor, windows: Iterator[list[str]]) -> Future | None:
        window = next(windows, None)
        return None if window is None else pool.submit(self.encode, window)

    def _classify(self, rows: list[np.ndarray], pool: ThreadPoolExecutor) -> np.ndarray:
        config = self.scorer.config
        logits = np.empty((len(rows), config.num_labels), dtype=np.float32)

        def run(batch: list[int]):
            logits[batch] = self.scorer([rows[index] for index in batch])

        # Not beyond the answers: between them the caller may have torch at work on something else.
        with _torch_threads(1 if self.scorer.on_cpu else self.num_threads):
            # The longest first, so that no core is left alone with one at the end.
            for future in [pool.submit(run, batch) for batch in self._batches(rows)]:
                future.result()
        return probabilities(logits, config.problem_type or "single_label_classification")

    def _batches(self, rows: list[np.ndarray]) -> Iterator[list[int]]:
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        limit = CPU_BATCH_TOKENS if self.scorer.on_cpu else GPU_BATCH_TOKENS
        start = 0
        while start < len(order):
            stop = start + max(1, limit // max(16, len(rows[order[start]])))
            yield order[start:stop]
            start = stop


def in_windows(texts: Iterable[str]) -> Iterator[list[str]]:
    """Lists of `WINDOW_SIZE` texts, or of fewer that have `WINDOW_CHARACTERS` together; the last may be shorter."""
    window, characters = [], 0
    for row, text in enumerate(texts, start=1):
        if not isinstance(text, str):
            raise InputError(f"row {row}: a text must be a string, got {type(text).__name__} {text!r:.100}.")
        check_unicode(text, f"row {row}")
        window.append(text)
        characters += len(text)
        if len(window) == WINDOW_SIZE or characters >= WINDOW_CHARACTERS:
            yield window
            window, characters = [], 0
    if window:
        yield window


def check_unicode(text: str, where: str):
    """Raises `InputError` for a text with half a character in it, a surrogate without its partner."""
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{where} is no valid Unicode: {text[error.start]!r} stands alone in it.") from None


@contextmanager
def _torch_threads(number: int):
    """torch's number of threads, for this thread and for those that it starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
