"""
Logits of a text from its n-grams: a linear model over hashed runs of words, computed from `input_ids`.

What a recurrent layer has to learn from thousands of texts, that `not worth` is bad and `well worth` is good, a table
of n-grams knows after seeing each a few times. Its logits are b + (sum of the text's n-grams' scores) / sqrt(number of
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


class RNNSentNgrams(nn.Module):
    """
    A table of n-gram scores and the logits it gives.

    Args:
        config ([`RNNSentConfig`]): `ngram_order` (longest n-gram; all shorter ones count too), `ngram_buckets` (rows of
            the table), `num_labels` and `problem_type`. For two classes one score z is kept, for the logits `[0, z]`.
    """

    def __init__(self, config):
        super().__init__()
        self.order = config.ngram_order
        self.num_buckets = config.ngram_buckets
        self.is_binary = config.num_labels == 2 and config.problem_type in (None, "single_label_classification")
        columns = 1 if self.is_binary else config.num_labels
        # Buffers, since they are not trained with the rest: an optimizer would go over millions of rows for the few
        # thousand that a batch reads.
        self.register_buffer("scores", torch.zeros(self.num_buckets, columns))
        self.register_buffer("bias", torch.zeros(columns))

    def state_shapes(self, batch_size: int) -> list[tuple[int, ...]]:
        """Shapes of the parts of the past: last ids, sum of scores, number of n-grams."""
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
        rows, is_ngram = find_ngrams(ids, lengths, self.order, self.num_buckets)
        scores = F.embedding(rows, self.scores).float() * is_ngram.unsqueeze(-1)
        total = total + scores.sum(dim=(1, 2))
        count = count + is_ngram.sum(dim=(1, 2)).unsqueeze(1)
        logits = self.bias.float() + total / count.clamp(min=1).sqrt()
        if self.is_binary:
            logits = F.pad(logits, (1, 0))
        return logits.to(self.scores.dtype), (self._last_ids(ids, lengths), total, count)

    def _last_ids(self, ids: Tensor, lengths: Tensor | None) -> Tensor:
        """The last `order - 1` ids of each text, which stand before its end in `(batch, order - 1 + time)`."""
        if lengths is None:
            return ids[:, ids.shape[1] - (self.order - 1) :]
        return ids.gather(1, lengths.unsqueeze(1) + torch.arange(self.order - 1, device=ids.device))

    def extra_repr(self) -> str:
        return f"order={self.order}, num_buckets={self.num_buckets}"
