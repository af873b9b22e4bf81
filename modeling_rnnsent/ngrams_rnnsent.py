"""
Logits of a text from its n-grams: a linear model over hashed runs of words, computed from `input_ids`.

What a recurrent layer has to learn from thousands of texts, that `not worth` is bad and `well worth` is good, a table
of n-grams knows after seeing each a few times. Its logits are b + (sum of the scores of the text's n-grams) /
sqrt(number of n-grams), so that a long text is surer than a short one but not in proportion. An n-gram is counted once
a text (an opinion given twice says nothing new: Wang & Manning, "Baselines and Bigrams", 2012) or as often as it stands
there (what a text is about, it names again and again): `config.ngram_presence`. A row of the table is found by hashing
(Weinberger et al., "Feature hashing", 2009): no vocabulary of n-grams has to be kept. The scores are not trained by
gradient with the recurrent layers but fitted before: see `ngrams.fit_ngrams` in the package. This file travels with
every checkpoint and imports torch, numpy and transformers alone.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import is_tracing

# Hashing is polynomial modulo a Mersenne prime: products of two residues fit in int64, and every step is an operator
# that ONNX has.
_PRIME = 2**31 - 1
_BASE = 1_103_515_245
_SPREAD = 1_664_525_001
# Of n-grams times labels that are looked up at once, outside of an export.
_MOST_SCORES = 1 << 25


def find_ngrams(input_ids: Tensor, lengths: Tensor | None, order: int, num_buckets: int) -> tuple[Tensor, Tensor]:
    """
    The n-grams of every text and where they are found in a table.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, order - 1 + time)`):
            Ids, padded on the right; the first `order - 1` were read before, -1 where nothing was.
        lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): How many of the `time` are tokens. None: all.
        order (`int`): Longest n-gram.
        num_buckets (`int`): Rows of the table.

    Returns:
        `tuple[torch.LongTensor, torch.BoolTensor]`, both `(batch, time, order)`: the row of the n-gram of each size
        that ends at each token, and whether there is one.
    """
    time = input_ids.shape[1] - (order - 1)
    is_token = torch.ones_like(input_ids[:, order - 1 :], dtype=torch.bool)
    if lengths is not None:
        is_token = torch.arange(time, device=input_ids.device) < lengths.unsqueeze(1)
    rows, is_ngram, hashes = [], [], torch.zeros_like(input_ids[:, order - 1 :])
    for size in range(1, order + 1):
        first = input_ids[:, order - size : order - size + time]
        hashes = (hashes * _BASE + first + 2) % _PRIME
        rows.append((hashes * _SPREAD + size) % _PRIME % num_buckets)
        is_ngram.append(is_token & (first >= 0))
    return torch.stack(rows, dim=-1), torch.stack(is_ngram, dim=-1)


def is_traced(input: Tensor) -> bool:
    return is_tracing(input) or torch.compiler.is_compiling()


def sort_rows(input: Tensor) -> Tensor:
    """`(batch, n)` numbers below 2^31, each row in rising order: on a CPU by numpy, in less time than torch takes."""
    if input.device.type != "cpu" or is_traced(input):
        return input.sort(dim=1).values
    return torch.from_numpy(np.sort(input.numpy().astype(np.int32), axis=1)).long()


class RNNSentNgrams(nn.Module):
    """
    A table of n-gram scores and the logits it gives.

    Args:
        config ([`RNNSentConfig`]): `ngram_order` (longest n-gram; all shorter ones count too), `ngram_buckets` (rows of
            the table), `ngram_presence` (whether each counts once a text), `num_labels` and `problem_type`. For two
            classes one score z is kept, for the logits `[0, z]`.
    """

    def __init__(self, config):
        super().__init__()
        self.order = config.ngram_order
        self.num_buckets = config.ngram_buckets
        self.config = config  # whose `ngram_presence` counts, whenever it is set
        self.is_binary = config.num_labels == 2 and config.problem_type in (None, "single_label_classification")
        columns = 1 if self.is_binary else config.num_labels
        # Buffers, since they are not trained with the rest: an optimizer would go over millions of rows for the few
        # thousand that a batch reads.
        self.register_buffer("scores", torch.zeros(self.num_buckets, columns))
        self.register_buffer("bias", torch.zeros(columns))

    def state_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        """
        Shapes of the parts of the past: last ids, a bit for each row met (where each counts once), sum of scores,
        number of n-grams.
        """
        sizes = (
            self.order - 1,
            self.num_buckets // 8 + 1 if self.config.ngram_presence else 0,
            self.scores.shape[1],
            1,
        )
        return [(batch_size, size) for size in sizes]

    def no_past(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The past of a text of which nothing was read: -1 stands where no token was."""
        last_ids, bits, total, count = self.state_shapes(input_ids.shape[0])
        return (
            input_ids.new_full(last_ids, -1),
            input_ids.new_zeros(bits, dtype=torch.uint8),
            torch.zeros(total, device=input_ids.device),
            input_ids.new_zeros(count),
        )

    def forward(
        self,
        input_ids: Tensor,
        lengths: Tensor | None = None,
        past: tuple[Tensor, ...] | None = None,
        use_cache: bool = False,
    ) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, time)`): Ids, padded on the right.
            lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): Tokens of each text. None: all of them.
            past (`tuple[torch.Tensor]`, *optional*): What the text read so far has left, as returned.
            use_cache (`bool`, *optional*, defaults to `False`): Whether the past of what is read next is wanted.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_labels)`, and the past of what is read next, or None.
        """
        if past is None and use_cache:
            past = self.no_past(input_ids)
        last_ids = input_ids.new_full((input_ids.shape[0], self.order - 1), -1) if past is None else past[0]
        ids = torch.cat((last_ids, input_ids), dim=1)
        rows, is_ngram = find_ngrams(ids, lengths, self.order, self.num_buckets)
        rows, counts = rows.flatten(1), is_ngram.flatten(1)
        bits, total, count = (None, 0, 0) if past is None else past[1:]
        if self.config.ngram_presence:
            # Sorted, equal ones stand together. What is no n-gram goes to the end, as a row that there is not.
            rows = sort_rows(rows.masked_fill(~counts, _PRIME))
            counts = (rows.diff(dim=1, prepend=rows.new_full((rows.shape[0], 1), -1)) > 0) & (rows < _PRIME)
            if past is not None:
                counts, bits = self._mark(rows, counts, bits)
        parts = [(rows, counts)]
        if not is_traced(rows) and rows.numel() * self.scores.shape[1] > _MOST_SCORES:
            most = max(1, _MOST_SCORES // (rows.shape[0] * self.scores.shape[1]))
            parts = zip(rows.split(most, dim=1), counts.split(most, dim=1))
        for part, is_counted in parts:
            scores = F.embedding(part.masked_fill(~is_counted, 0), self.scores).float() * is_counted.unsqueeze(-1)
            total = total + scores.sum(dim=1)
        count = count + counts.sum(dim=1, keepdim=True)
        logits = self.bias.float() + total / count.clamp(min=1).sqrt()
        if self.is_binary:
            logits = F.pad(logits, (1, 0))
        past = (self._last_ids(ids, lengths), bits, total, count) if use_cache else None
        return logits.to(self.scores.dtype), past

    @staticmethod
    def _mark(rows: Tensor, is_new: Tensor, bits: Tensor) -> tuple[Tensor, Tensor]:
        """Which of the new rows `(batch, n-grams)` were not met before, by their bits, and the bits with theirs."""
        rows = rows.masked_fill(~is_new, 0)
        place, bit = rows // 8, 1 << rows % 8
        is_new = is_new & (bits.gather(1, place) & bit == 0)
        return is_new, bits.scatter_add(1, place, (bit * is_new).to(torch.uint8))

    def _last_ids(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """The last `order - 1` ids of each text, which stand before its end in `(batch, order - 1 + time)`."""
        if lengths is None:
            return ids[:, ids.shape[1] - (self.order - 1) :]
        return ids.gather(1, lengths.unsqueeze(1) + torch.arange(self.order - 1, device=ids.device))

    def extra_repr(self) -> str:
        return f"order={self.order}, num_buckets={self.num_buckets}, presence={self.config.ngram_presence}"
