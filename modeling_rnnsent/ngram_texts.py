"""The n-grams of texts as rows of a hashed table, found once for all that asks for them again and again."""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from .ngrams_rnnsent import find_ngrams

# Beyond so many n-grams (512 MB, twice that at the start) they are found anew whenever they are asked for.
MOST_KEPT = 1 << 27


def ngrams_of(
    rows: Sequence[np.ndarray], order: int, num_buckets: int, presence: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """
    The n-grams of texts (with `presence`: the different ones of each), text by text.

    Args:
        rows (`Sequence[np.ndarray]`): Ids of every text.
        order (`int`): Longest n-gram.
        num_buckets (`int`): Rows of the table, below 2^31.
        presence (`bool`): Whether an n-gram counts once a text.

    Returns:
        Their rows of the table `(n-grams,)` (int32), the place of each one's text in `rows` `(n-grams,)`, and how many
        each text has `(len(rows),)`.
    """
    apart = np.full(order - 1, -1, dtype=np.int64)  # no n-gram reaches over these
    # One after the other and not padded: one long text would set the length of all.
    ids = torch.from_numpy(np.concatenate([part for row in rows for part in (apart, row)]).astype(np.int64))
    buckets, is_ngram = (part[0] for part in find_ngrams(ids.unsqueeze(0), None, order, num_buckets))
    is_ngram &= (ids[order - 1 :] >= 0).unsqueeze(1)
    lengths = torch.tensor([order - 1 + len(row) for row in rows])
    text = torch.arange(len(rows)).repeat_interleave(lengths)[order - 1 :, None].expand_as(buckets)[is_ngram]
    buckets = buckets[is_ngram]
    if presence:
        both = np.sort((text * num_buckets + buckets).numpy())  # in less time than torch takes
        both = torch.from_numpy(both[np.diff(both, prepend=-1) > 0])
        text = both // num_buckets
        buckets = both - text * num_buckets
    return buckets.int(), text, text.bincount(minlength=len(rows))


class TextNgrams:
    """
    [`ngrams_of`] some of many texts at a time, kept where there is room.

    Args:
        rows, order, num_buckets, presence: As of [`ngrams_of`].
        keep (`bool`, *optional*, defaults to `True`): Whether they will be asked for more than once.
    """

    def __init__(self, rows: Sequence[np.ndarray], order: int, num_buckets: int, presence: bool, keep: bool = True):
        self.rows, self.order, self.num_buckets, self.presence = rows, order, num_buckets, presence
        self._buckets = None
        if keep and order * sum(map(len, rows)) <= MOST_KEPT:
            found = [(buckets, counts) for buckets, _, counts in self.batches(256)]
            self._counts = torch.cat([counts for _, counts in found])
            self._ends = [0, *self._counts.cumsum(0).tolist()]
            self._buckets = torch.cat([buckets for buckets, _ in found])

    def __len__(self) -> int:
        return len(self.rows)

    def batches(self, size: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Those of all texts in their order, `size` texts at a time."""
        for start in range(0, len(self), size):
            yield self(np.arange(start, min(start + size, len(self))))

    def __call__(self, texts: np.ndarray) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the texts of these numbers."""
        if self._buckets is None:
            return ngrams_of([self.rows[index] for index in texts], self.order, self.num_buckets, self.presence)
        counts = self._counts[torch.from_numpy(texts)]
        buckets = torch.cat([self._buckets[self._ends[index] : self._ends[index + 1]] for index in texts.tolist()])
        return buckets, torch.arange(len(texts)).repeat_interleave(counts), counts
