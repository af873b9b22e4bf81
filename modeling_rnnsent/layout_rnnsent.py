"""
How a batch of sequences of different lengths is laid out for a CPU: sorted by length, cut in time.

At any step only the sequences that are still alive are worth computing. Sorted by falling length they are the first
`counts[step]` rows, so a layer can run on one segment of time after the other with fewer and fewer rows, its state
carried over, and gives exactly the numbers of the padded batch. This file travels with every checkpoint and imports
torch and numpy alone.
"""

from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function

# Where padding is a smaller share than this of the batch, moving the rows costs more than it saves.
_LEAST_SAVED = 0.1
# Cuts fall on multiples of so many steps, and segments have multiples of so many rows: torch's kernel is prepared once
# for every new shape and then kept.
_GRAIN, _ROWS = 16, 4


class BatchLayout:
    """
    A right-padded batch `(batch, time, size)` as flat rows `(num_rows, size)`: step after step, at each step the first
    `counts[step]` sequences by falling length.

    Args:
        lengths (`torch.LongTensor` of shape `(batch,)`): Number of positions of each sequence, 0 to `max_length`.
        max_length (`int`): Number of steps of the padded batch.
        segment_cost (`float`): What one more cut costs, in rows computed for one step. 0 cuts wherever a sequence ends.

    Attributes:
        segments (`list[tuple[int, int]]`): Steps and rows of each stretch of time that has one count.
        counts (`list[int]`): Rows at each step.
        order (`torch.LongTensor` of shape `(batch,)`): The sequences by falling length.
        rank (`torch.LongTensor` of shape `(batch,)`): Each sequence's place in `order`.
    """

    def __init__(self, lengths: Tensor, max_length: int, segment_cost: float = 0.0):
        self.lengths = lengths
        self.max_length = max_length
        sorted_lengths, self.order = lengths.sort(descending=True, stable=True)
        self.segments = _cut(sorted_lengths.numpy(), segment_cost)
        steps, rows = np.array(self.segments, dtype=np.int64).reshape(-1, 2).T
        counts = np.repeat(rows, steps)
        self.counts = counts.tolist()
        self.num_rows = int(counts.sum())
        starts = np.cumsum(counts) - counts
        self._starts = torch.from_numpy(starts)
        time = np.repeat(np.arange(len(counts)), counts)
        rank = np.arange(self.num_rows) - np.repeat(starts, counts)
        self.rank = self.order.argsort()
        self._time = torch.from_numpy(time)
        self._sequence = self.order[torch.from_numpy(rank)]
        self._places: dict[bool, tuple[Tensor, Tensor]] = {}

    @staticmethod
    def can_save(lengths: Tensor, max_length: int) -> bool:
        """Whether there is so much padding that a layout may be less work than the padded batch."""
        return 0 < int(lengths.sum()) < (1 - _LEAST_SAVED) * len(lengths) * max_length

    @property
    def saves(self) -> bool:
        """Whether this is less work than the padded batch by enough to pay for moving the rows."""
        return self.num_rows < (1 - _LEAST_SAVED) * len(self.lengths) * self.max_length

    @cached_property
    def is_padding(self) -> Tensor:
        """`(num_rows,)`: True at rows beyond their sequence's end."""
        return self._time >= self.lengths[self._sequence]

    def gather(self, input: Tensor, reverse: bool) -> Tensor:
        """`(batch, time, ...)` to `(num_rows, ...)`; with `reverse` each sequence from its own end."""
        return take_rows(input.flatten(0, 1), *self._find_places(reverse))

    def scatter(self, output: Tensor, reverse: bool) -> Tensor:
        """`(num_rows, size)` back to `(batch, time, size)` in the text's own order, zero at padding."""
        place, row = self._find_places(reverse)
        return take_rows(output, row, place.masked_fill(self.is_padding, -1)).unflatten(
            0, (len(self.lengths), self.max_length)
        )

    def _find_places(self, reverse: bool) -> tuple[Tensor, Tensor]:
        """Where each row comes from in the padded batch, and where each place of that is among the rows, -1 at none."""
        if reverse in self._places:
            return self._places[reverse]
        position = self._time
        if reverse:
            mirrored = self.lengths[self._sequence] - 1 - position
            position = torch.where(mirrored >= 0, mirrored, position)
        place = self._sequence * self.max_length + position
        # By device: scripts have the GPU for a default.
        row = torch.full((len(self.lengths) * self.max_length,), -1, device=place.device)
        row[place] = torch.arange(self.num_rows, device=place.device).masked_fill_(self.is_padding, -1)
        self._places[reverse] = place, row
        return place, row

    def at_end(self, output: Tensor, initial: Tensor) -> Tensor:
        """Each sequence's last row of `(num_rows, size)`; without a token its row of `initial`, `(batch, size)`."""
        has_tokens = self.lengths > 0
        row = self._starts[(self.lengths - 1).clamp(min=0)] + self.rank
        final = output[row.masked_fill(~has_tokens, 0)]
        return torch.where(has_tokens.unsqueeze(1), final, initial.to(final.dtype))


class _TakeRows(Function):
    @staticmethod
    def forward(ctx, input: Tensor, index: Tensor, inverse: Tensor, may_lack: bool) -> Tensor:
        ctx.save_for_backward(index, inverse)
        ctx.may_lack = may_lack
        if not may_lack:
            return input.index_select(0, index)
        output = input.index_select(0, index.clamp(min=0))
        missing = (index < 0).nonzero().squeeze(1)
        return output.index_fill_(0, missing, 0) if len(missing) else output

    @staticmethod
    def backward(ctx, grad: Tensor):
        index, inverse = ctx.saved_tensors
        return _TakeRows.apply(grad.contiguous(), inverse, index, ctx.may_lack), None, None, None


def take_rows(input: Tensor, index: Tensor, inverse: Tensor, may_lack: bool = True) -> Tensor:
    """
    `input[index]`, each row of which is taken once at most; zero where the index is -1, which with `may_lack=False` it
    is nowhere, nor is the inverse: a GPU need not be waited for then.

    The gradient goes the same way back by `inverse`, the place of each row of the input among those taken. To add it up
    as that of any lookup, where a row may be taken twice, would take a CPU several times as long.
    """
    return _TakeRows.apply(input, index, inverse, may_lack) if input.is_floating_point() else input[index]


def _cut(lengths: np.ndarray, segment_cost: float) -> list[tuple[int, int]]:
    """
    The cheapest segments `(steps, rows)` for lengths in falling order, each costing `steps * rows + segment_cost`.

    Shortest path over the candidate cuts: a sequence's end. Where a cut has a cost it is rounded up to `_GRAIN` steps,
    and the rows to `_ROWS`.
    """
    ends = np.unique(lengths[lengths > 0])
    if segment_cost > 0:
        ends = np.unique(np.minimum(-(-ends // _GRAIN) * _GRAIN, lengths[0]))
    cuts = np.concatenate(([0], ends))
    alive = np.searchsorted(-lengths, -cuts[:-1])  # sequences longer than each cut
    if segment_cost <= 0:
        return list(zip(np.diff(cuts).tolist(), alive.tolist()))
    alive = np.minimum(-(-alive // _ROWS) * _ROWS, len(lengths))
    cost, origin = np.zeros(len(cuts)), np.zeros(len(cuts), dtype=np.int64)
    for end in range(1, len(cuts)):
        costs = cost[:end] + segment_cost + (cuts[end] - cuts[:end]) * alive[:end]
        origin[end] = costs.argmin()
        cost[end] = costs[origin[end]]
    segments, end = [], len(cuts) - 1
    while end > 0:
        start = origin[end]
        segments.append((int(cuts[end] - cuts[start]), int(alive[start])))
        end = start
    return segments[::-1]
