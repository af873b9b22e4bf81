"""From the states of a text's tokens to one vector. This file travels with every checkpoint."""

import torch
from torch import Tensor, nn

from .configuration_rnnsent import RNNSentConfig
from .dropout_rnnsent import drop_out
from .recurrence_rnnsent import merge_directions


class RNNSentPooler(nn.Module):
    """
    One vector a text from its tokens' states, by `config.pooling`. A text of no tokens gives zeros (or, for `"last"`,
    the initial state).

    Attention is that of Yang et al., "Hierarchical Attention Networks" (2016): weights softmax(u . tanh(W h_t + b)).
    """

    def __init__(self, config: RNNSentConfig):
        super().__init__()
        self.pooling = config.pooling
        self.dropout = config.pooling_dropout
        self.merge_mode = config.merge_mode
        self.output_size = config.output_size
        self.num_directions = 2 if config.bidirectional else 1
        if self.pooling == "attention":
            self.attention = nn.Linear(config.output_size, config.output_size)
            self.context = nn.Linear(config.output_size, 1, bias=False)

    def forward(
        self,
        hidden_states: Tensor,
        final_hidden: Tensor,
        mask: Tensor | None,
        past: tuple[Tensor, ...] | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch_size, sequence_length, output_size)`):
                States, zero at padding.
            final_hidden (`torch.FloatTensor` of shape `(num_layers * num_directions, batch_size, hidden_size)`):
                Final hidden states.
            mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`, *optional*):
                True at tokens. None: everywhere.
            past (`tuple[torch.FloatTensor]`, *optional*):
                What the text read so far has left, as returned, each of shape `(batch_size, size)` by `state_sizes`.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, pooled_size)`, and the past of what is read next.
        """
        if self.pooling == "last":
            if self.num_directions == 1:
                return final_hidden[-1], ()
            return merge_directions(final_hidden[-2], final_hidden[-1], self.merge_mode), ()
        whole, hidden_states = hidden_states, drop_out(hidden_states, self.dropout, self.training)
        if past is None:
            past = self._no_past(hidden_states)
        if hidden_states.shape[1] > 0:
            top = whole
            if hidden_states is not whole and self.pooling in ("max", "max_mean"):
                # A maximum of scaled states would be another number than that of all states which is to come.
                top = whole.masked_fill(hidden_states == 0, torch.finfo(whole.dtype).min)
            if self.pooling == "attention":
                past = self._read_attention(hidden_states, mask, past)
            elif self.pooling == "max":
                past = self._read_max(top, mask, past)
            elif self.pooling == "mean":
                past = self._read_mean(hidden_states, mask, past)
            else:
                past = (*self._read_max(top, mask, past[:1]), *self._read_mean(hidden_states, mask, past[1:]))
        pooled = []
        if self.pooling in ("max", "max_mean"):
            pooled.append(past[0].masked_fill(past[0] == torch.finfo(past[0].dtype).min, 0).to(hidden_states.dtype))
        if self.pooling != "max":
            pooled.append((past[-2] / past[-1].clamp(min=1)).to(hidden_states.dtype))  # a text of no tokens: 0 / 1
        return pooled[0] if len(pooled) == 1 else torch.cat(pooled, dim=-1), past

    @property
    def state_sizes(self) -> list[int]:
        """Size of each part of the past: maximum; sum and number of tokens; or top score, weighted sum and weight."""
        size = self.output_size
        return {"last": [], "max": [size], "mean": [size, 1], "max_mean": [size, size, 1], "attention": [1, size, 1]}[
            self.pooling
        ]

    def _no_past(self, hidden_states: Tensor) -> tuple[Tensor, ...]:
        # Sums and counts are no half numbers: in bfloat16 256 + 1 is 256.
        types = [torch.promote_types(hidden_states.dtype, torch.float32)] * len(self.state_sizes)
        if self.pooling in ("max", "max_mean"):
            types[0] = hidden_states.dtype
        past = [
            hidden_states.new_zeros(hidden_states.shape[0], size, dtype=dtype)
            for size, dtype in zip(self.state_sizes, types)
        ]
        if self.pooling != "mean":
            past[0] = past[0] + torch.finfo(types[0]).min  # below every state and score, but finite
        return tuple(past)

    @staticmethod
    def _read_max(hidden_states: Tensor, mask: Tensor | None, past: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if mask is not None:  # padding is zero, and a sum takes a CPU half the time of a mask, its gradient none
            lowest = hidden_states.new_zeros(mask.shape).masked_fill(~mask, torch.finfo(hidden_states.dtype).min)
            hidden_states = hidden_states + lowest.unsqueeze(-1)
        return (torch.maximum(past[0], hidden_states.amax(dim=1)),)

    @staticmethod
    def _read_mean(hidden_states: Tensor, mask: Tensor | None, past: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        total, count = past
        read = hidden_states.shape[1] if mask is None else mask.sum(dim=1, keepdim=True).to(count.dtype)
        return total + hidden_states.sum(dim=1, dtype=total.dtype), count + read

    def _read_attention(
        self, hidden_states: Tensor, mask: Tensor | None, past: tuple[Tensor, ...]
    ) -> tuple[Tensor, ...]:
        """Softmax over all that was read, taken up where it was left (Milakov & Gimelshein, 2018)."""
        past_top, weighted, weight = past
        scores = self.context(torch.tanh(self.attention(hidden_states))).squeeze(-1).to(weight.dtype)
        if mask is not None:
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        top = torch.maximum(past_top, scores.amax(dim=1, keepdim=True))
        weights = torch.exp(scores - top)
        kept = torch.exp(past_top - top)
        return (
            top,
            weighted * kept + (weights.unsqueeze(1) @ hidden_states.to(weight.dtype)).squeeze(1),
            weight * kept + weights.sum(dim=1, keepdim=True),
        )
