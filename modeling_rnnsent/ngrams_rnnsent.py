"""
Logits of a text from its n-grams: a linear model over hashed runs of words, computed from `input_ids`.

What a recurrent layer has to learn from thousands of texts, that `not worth` is bad and `well worth` is good, a table of
n-grams knows after seeing each a few times. Its logits are b + (sum of the text's n-grams' scores) / sqrt(number of
n-grams), so that a long text is surer than a short one but not in proportion. A row of the table is found by hashing
(Weinberger et al., "Feature hashing", 2009): no vocabulary of n-grams has to be kept. The scores are not trained by
gradient with the recurrent layers but fitted before: see `ngrams.fit_ngrams` in the package. This file travels with
every checkpoint and imports torch alone.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Hashing is polynomial modulo a Mersenne prime: products of two residues fit in int64, and every step is an operator
# that ONNX has.
_PRIME = 2**31 - 1
_BASE = 1_103_515_245
_SPREAD = 1_664_525_001


def hash_ngrams(input_ids: Tensor, order: int, num_buckets: int) -> list[Tensor]:
    """
    Buckets of a batch's n-grams.

    Args:
        input_ids (`torch.LongTensor` of shape `(batch, order - 1 + time)`): Ids, `order - 1` of them read before.
        order (`int`): Longest n-gram.
        num_buckets (`int`): Number of rows to hash to.

    Returns:
        `list[torch.LongTensor]`: for n = 1 to `order` the bucket of the n-gram that ends at each of the `time` tokens,
        each `(batch, time)`.
    """
    time = input_ids.shape[1] - (order - 1)
    tokens = input_ids + 2
    buckets, hashes = [], torch.zeros_like(tokens[:, order - 1 :])
    for size in range(1, order + 1):
        # The last token first: h_n(t) = h_(n-1)(t) * base + token(t - n + 1).
        start = order - size
        hashes = (hashes * _BASE + tokens[:, start : start + time]) % _PRIME
        buckets.append((hashes * _SPREAD + size) % _PRIME % num_buckets)
    return buckets


class RNNSentNgrams(nn.Module):
    """
    A table of n-gram scores and the logits it gives.

    Args:
        order (`int`): Longest n-gram; all shorter ones count too.
        num_buckets (`int`): Rows of the table.
        num_labels (`int`): Logits of a text. For two, one score z is kept for the logits `[0, z]`.
        is_single_label (`bool`): Whether labels exclude each other, as the two of `[0, z]` do.
    """

    def __init__(self, order: int, num_buckets: int, num_labels: int, is_single_label: bool):
        super().__init__()
        self.order = order
        self.num_buckets = num_buckets
        self.is_binary = is_single_label and num_labels == 2
        columns = 1 if self.is_binary else num_labels
        # Fitted, not trained: the optimizer would move four million rows for the few thousand that a batch reads.
        self.scores = nn.Parameter(torch.zeros(num_buckets, columns), requires_grad=False)
        self.bias = nn.Parameter(torch.zeros(columns), requires_grad=False)

    def state_shapes(self, batch_size: int) -> list[tuple[int, int]]:
        """Shapes of these parts: last ids, sum of scores, number of n-grams."""
        return [(batch_size, self.order - 1), (batch_size, self.scores.shape[1]), (batch_size, 1)]

    def no_past(self, input_ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The past of a text of which nothing was read: -1 stands where no token was."""
        batch_size = input_ids.shape[0]
        return (
            input_ids.new_full((batch_size, self.order - 1), -1),
            torch.zeros(batch_size, self.scores.shape[1], device=input_ids.device),
            input_ids.new_zeros(batch_size, 1),
        )

    def forward(
        self, input_ids: Tensor, lengths: Tensor | None = None, past: tuple[Tensor, ...] | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch, time)`): Ids, padded on the right.
            lengths (`torch.LongTensor` of shape `(batch,)`, *optional*): Tokens of each text. None: all of them.
            past (`tuple[torch.Tensor]`, *optional*): What the text read so far has left, as returned.

        Returns:
            `torch.FloatTensor` of shape `(batch, num_labels)`, and the past of what is read next.
        """
        last_ids, total, count = self.no_past(input_ids) if past is None else past
        ids = torch.cat((last_ids, input_ids), dim=1)
        for bucket, is_ngram in self.ngrams(ids, lengths):
            scores = F.embedding(bucket, self.scores).float()
            total = total + (scores * is_ngram.unsqueeze(-1)).sum(dim=1)
            count = count + is_ngram.sum(dim=1, keepdim=True)
        logits = self.bias.float() + total / count.clamp(min=1).sqrt()
        if self.is_binary:
            logits = F.pad(logits, (1, 0))
        return logits.to(self.scores.dtype), (self._last_ids(ids, lengths), total, count)

    def ngrams(self, ids: Tensor, lengths: Tensor | None):
        """For n = 1 to `order`: buckets `(batch, time)` and where an n-gram ends, of `(batch, order - 1 + time)`."""
        time = ids.shape[1] - (self.order - 1)
        is_token = ids[:, self.order - 1 :] >= 0
        if lengths is not None:
            is_token = torch.arange(time, device=ids.device) < lengths.unsqueeze(1)
        for size, bucket in enumerate(hash_ngrams(ids, self.order, self.num_buckets), start=1):
            start = self.order - size
            yield bucket, is_token & (ids[:, start : start + time] >= 0)

    def _last_ids(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """The last `order - 1` ids of each text, which stand before its end in `(batch, order - 1 + time)`."""
        if lengths is None:
            return ids[:, ids.shape[1] - (self.order - 1) :]
        return ids.gather(1, lengths.unsqueeze(1) + torch.arange(self.order - 1, device=ids.device))

    def extra_repr(self) -> str:
        return f"order={self.order}, num_buckets={self.num_buckets}"
