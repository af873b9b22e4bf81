"""
Classifying many texts: windows sorted by length, tokenizer and model at work at the same time on every core.

A recurrent layer is a chain of small steps, which two threads together do little faster than one alone. So on a CPU each
core runs batches of its own, with one thread each, while the next window is tokenized.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from .data import pad
from .errors import InputError
from .metrics import probabilities
from .modeling_rnnsent import RNNSentForSequenceClassification
from .tokenization import WordEncoder

# Padded tokens of one batch: a layer's states then stay in the cache of a core.
BATCH_TOKENS = 8192
# A text is read in pieces of so many tokens where the model can carry its state.
PIECE_TOKENS = 16384


class BulkClassifier:
    """
    Classifies any number of texts in constant memory, in their order.

    Args:
        model ([`RNNSentForSequenceClassification`]): On a CPU or one GPU, where it stays.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's own, a fast one.
        window_size (`int`, *optional*, defaults to 8192): Texts that are read ahead and sorted by length together.
        num_threads (`int`, *optional*): CPU cores to use. None: as many as torch uses now.

    Raises:
        ValueError: where a number is below 1.
    """

    def __init__(
        self,
        model: RNNSentForSequenceClassification,
        tokenizer: PreTrainedTokenizerBase,
        window_size: int = 8192,
        num_threads: int | None = None,
    ):
        for name, value in (("window_size", window_size), ("num_threads", num_threads)):
            if value is not None and value < 1:
                raise ValueError(f"`{name}` must be at least 1, got {value}.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.encode = WordEncoder(tokenizer)
        self.window_size = window_size
        self.num_threads = num_threads or torch.get_num_threads()

    def __call__(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """
        Yields what the pipeline gives, one row a text in the order of `texts`: probabilities of the labels
        `(num_labels,)`, or the value `(1,)` of a regression. Texts are taken from the iterable as they are needed.
        """
        for window in self.windows(islice_windows(texts, self.window_size)):
            yield from window

    def windows(self, windows: Iterable[list[str]]) -> Iterator[np.ndarray]:
        """The same for lists of texts, as arrays `(len(window), num_labels)`."""
        on_cpu = self.model.device.type == "cpu"
        workers = self.num_threads if on_cpu else 1
        with _torch_threads(1 if on_cpu else self.num_threads), ThreadPoolExecutor(workers + 1) as pool:
            windows = iter(windows)
            ahead = _submit_next(pool, self.encode, windows)
            while ahead is not None:
                rows = ahead.result()
                ahead = _submit_next(pool, self.encode, windows)
                yield self._classify(rows, pool)

    def _classify(self, rows: list[np.ndarray], pool: ThreadPoolExecutor) -> np.ndarray:
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        config = self.model.config
        logits = np.empty((len(rows), config.num_labels), dtype=np.float32)

        def run(batch: list[int]):
            logits[batch] = self._logits([rows[index] for index in batch])

        # The longest first, so that no core is left with one at the end.
        for future in [pool.submit(run, batch) for batch in self._batches(order, rows)]:
            future.result()
        return probabilities(logits, config.problem_type or "single_label_classification")

    def _batches(self, order: list[int], rows: list[np.ndarray]) -> Iterator[list[int]]:
        start = 0
        limit = BATCH_TOKENS if self.model.device.type == "cpu" else 32 * BATCH_TOKENS
        while start < len(order):
            longest = max(1, len(rows[order[start]]))
            stop = start + max(1, min(limit // longest, 512))
            yield order[start:stop]
            start = stop

    @torch.inference_mode()
    def _logits(self, rows: list[np.ndarray]) -> np.ndarray:
        device, longest = self.model.device, max(len(row) for row in rows)
        if longest > PIECE_TOKENS and not self.model.config.bidirectional:
            return np.concatenate([self._logits_in_pieces(row) for row in rows])
        input_ids, attention_mask = pad(rows, self.tokenizer.pad_token_id)
        batch = {"input_ids": torch.from_numpy(input_ids).to(device)}
        if not attention_mask.all():
            batch["attention_mask"] = torch.from_numpy(attention_mask).to(device)
        return self.model(**batch).logits.float().cpu().numpy()

    def _logits_in_pieces(self, row: np.ndarray) -> np.ndarray:
        """One long text, its state carried from piece to piece."""
        state = None
        for start in range(0, len(row), PIECE_TOKENS):
            piece = torch.from_numpy(row[start : start + PIECE_TOKENS]).unsqueeze(0).to(self.model.device)
            output = self.model(piece, attention_mask=torch.ones_like(piece), state=state, use_cache=True)
            state = output.state
        return output.logits.float().cpu().numpy()


def islice_windows(texts: Iterable[str], size: int) -> Iterator[list[str]]:
    """Lists of `size` texts; the last may be shorter."""
    texts = iter(texts)
    while window := list(islice(texts, size)):
        for text in window:
            if not isinstance(text, str):
                raise InputError(f"a text must be a string, got {type(text).__name__}: {text!r:.100}.")
        yield window


def _submit_next(pool: ThreadPoolExecutor, encode, windows: Iterator[list[str]]) -> Future | None:
    window = next(windows, None)
    return None if window is None else pool.submit(encode, window)


@contextmanager
def _torch_threads(number: int):
    """torch's number of threads, for this thread and for those that it starts."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
