"""Exact variable-length recurrence on right-padded batches, without packed sequences.

`torch.nn` runs sequences of different lengths by packing them, which is slow on a CPU by an order of magnitude (pytorch
issue 149194). A right-padded batch gives the same numbers without it: what a forward direction computes up to a
sequence's end does not depend on what follows, and a backward direction is a forward one over each sequence reversed
within its own length. One thing is lost that way, the LSTM's cell state at each sequence's own end; `_held_after_end`
keeps it. This file travels with every checkpoint and imports torch alone.
"""

import math
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NUM_GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def sequence_mask(lengths: Tensor, max_length: int) -> Tensor:
    """True where a position belongs to its sequence: lengths `(batch,)` to `(batch, max_length)`."""
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)


def reverse_sequences(input: Tensor, lengths: Tensor | None) -> Tensor:
    """Each sequence of `(batch, time, ...)` reversed within its own length; padding stays where it is."""
    if lengths is None:
        return input.flip(1)
    batch_size, max_length = input.shape[:2]
    positions = torch.arange(max_length, device=input.device).expand(batch_size, -1)
    mirrored = lengths.unsqueeze(1) - 1 - positions
    rows = torch.arange(batch_size, device=input.device).unsqueeze(1) * max_length
    index = rows + torch.where(mirrored >= 0, mirrored, positions)
    # A lookup of rows: on a CPU its gradient is three times as fast as that of `gather`.
    return F.embedding(index, input.flatten(0, 1)) if input.dim() == 3 else input.flatten(0, 1)[index]


def merge_directions(forward: Tensor, backward: Tensor, merge_mode: str) -> Tensor:
    """Two directions' `(..., hidden)` as one: `(..., 2 * hidden)` for `"concat"`, else `(..., hidden)`."""
    if merge_mode == "concat":
        return torch.cat((forward, backward), dim=-1)
    if merge_mode == "sum":
        return forward + backward
    if merge_mode == "mul":
        return forward * backward
    return (forward + backward) / 2


class RNNSentRecurrence(nn.Module):
    """
    Stacked Elman, LSTM or GRU layers on right-padded batches; equal to `torch.nn`'s on packed sequences.

    Parameters have `torch.nn`'s names, shapes and gate order, so a state dict moves to and from `nn.RNN`, `nn.LSTM`
    and `nn.GRU` unchanged (with two directions: for `merge_mode="concat"`). A `recurrence="output"` layer has
    `weight_ih` (W_xh), `weight_oh` (W_oh), `bias_ih` (b_h), `weight_ho` (W_ho) and `bias_ho` (b_o) instead.

    Args:
        input_size (`int`): Size of an input vector, or the number of ids where the input is one-hot.
        hidden_size (`int`): Size of the hidden state of one direction.
        num_layers (`int`, *optional*, defaults to 1): Number of stacked layers.
        cell_type (`str`, *optional*, defaults to `"lstm"`): `"rnn"`, `"lstm"` or `"gru"`.
        nonlinearity (`str`, *optional*, defaults to `"tanh"`): `"tanh"` or `"relu"`, for `"rnn"`.
        recurrence (`str`, *optional*, defaults to `"hidden"`): `"hidden"` or, for `"rnn"`, `"output"`.
        bidirectional (`bool`, *optional*, defaults to `False`): Whether there is a direction from the end.
        merge_mode (`str`, *optional*, defaults to `"concat"`): `"concat"`, `"sum"`, `"mul"` or `"mean"`, per layer.
        hidden_dropout (`float`, *optional*, defaults to 0.0): Dropout between layers.
        weight_dropout (`float`, *optional*, defaults to 0.0): DropConnect on the recurrent weights.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        cell_type: str = "lstm",
        nonlinearity: str = "tanh",
        recurrence: str = "hidden",
        bidirectional: bool = False,
        merge_mode: str = "concat",
        hidden_dropout: float = 0.0,
        weight_dropout: float = 0.0,
    ):
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.cell_type = cell_type
        self.nonlinearity = nonlinearity
        self.recurrence = recurrence
        self.merge_mode = merge_mode
        self.hidden_dropout = hidden_dropout
        self.weight_dropout = weight_dropout
        self.num_directions = 2 if bidirectional else 1
        output_size = hidden_size * (2 if bidirectional and merge_mode == "concat" else 1)
        for layer in range(num_layers):
            for direction in range(self.num_directions):
                self._add_parameters(layer, direction, input_size if layer == 0 else output_size)
        self.reset_parameters()

    def _add_parameters(self, layer: int, direction: int, input_size: int):
        size, gates = self.hidden_size, NUM_GATES[self.cell_type] * self.hidden_size
        if self.recurrence == "output":
            shapes = {
                "weight_ih": (size, input_size),
                "weight_oh": (size, size),
                "bias_ih": (size,),
                "weight_ho": (size, size),
                "bias_ho": (size,),
            }
        else:
            shapes = {
                "weight_ih": (gates, input_size),
                "weight_hh": (gates, size),
                "bias_ih": (gates,),
                "bias_hh": (gates,),
            }
        for name, shape in shapes.items():
            self.register_parameter(name + self._suffix(layer, direction), nn.Parameter(torch.empty(shape)))

    @staticmethod
    def _suffix(layer: int, direction: int) -> str:
        return f"_l{layer}" + ("_reverse" if direction else "")

    def reset_parameters(self):
        """Draws every parameter from U(-1/sqrt(hidden_size), 1/sqrt(hidden_size)), as `torch.nn` does."""
        bound = 1 / math.sqrt(self.hidden_size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def _weights(self, layer: int, direction: int) -> list[Tensor]:
        names = (
            ("weight_ih", "weight_oh", "bias_ih", "weight_ho", "bias_ho")
            if self.recurrence == "output"
            else ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        )
        weights = [getattr(self, name + self._suffix(layer, direction)) for name in names]
        if self.training and self.weight_dropout > 0:
            weights[1] = F.dropout(weights[1], self.weight_dropout)
        return weights

    def forward(
        self,
        input: Tensor,
        lengths: Tensor | None = None,
        state: tuple[Tensor, ...] | None = None,
        return_state: bool = True,
    ) -> tuple[list[Tensor], Tensor, tuple[Tensor, ...] | None]:
        """
        Args:
            input (`torch.Tensor` of shape `(batch, time, input_size)`, or integers of shape `(batch, time)`):
                Right-padded vectors. Integers stand for one-hot vectors of size `input_size`.
            lengths (`torch.LongTensor` of shape `(batch,)`, *optional*):
                Number of positions of each sequence, 0 to time. None: no sequence is padded.
            state (`tuple[torch.Tensor]`, *optional*):
                Initial state `(h_0,)`, or `(h_0, c_0)` for an LSTM, each of shape `(num_layers * num_directions, batch,
                hidden_size)` as in `torch.nn`. None: zeros.
            return_state (`bool`, *optional*, defaults to `True`):
                Whether the final state is wanted. The LSTM's cell state costs a little where lengths differ.

        Returns:
            `tuple`: the output of every layer, each `(batch, time, output_size)` and zero at padding; the final hidden
            states `(num_layers * num_directions, batch, hidden_size)`, each at its own sequence's end; and the final
            state, of the same form as `state`, or None.
        """
        batch_size, max_length = input.shape[:2]
        if state is None:
            dtype = self.weight_ih_l0.dtype
            zeros = torch.zeros(
                self.num_layers * self.num_directions, batch_size, self.hidden_size, dtype=dtype, device=input.device
            )
            state = (zeros, zeros) if self.cell_type == "lstm" else (zeros,)
        if max_length == 0:  # torch's kernels refuse it: nothing is read and the state stays as it is
            output_size = self.hidden_size * (2 if self.num_directions == 2 and self.merge_mode == "concat" else 1)
            empty = state[0].new_zeros(batch_size, 0, output_size)
            return [empty] * self.num_layers, state[0], state if return_state else None

        outputs, finals = [], []
        for layer in range(self.num_layers):
            if layer > 0:
                input = F.dropout(outputs[-1], self.hidden_dropout, self.training)
            directions = []
            for direction in range(self.num_directions):
                index = layer * self.num_directions + direction
                initial = tuple(part[index : index + 1] for part in state)
                output, final = self._run_direction(input, lengths, initial, layer, direction, return_state)
                directions.append(output)
                finals.append(final)
            output = directions[0] if len(directions) == 1 else merge_directions(*directions, self.merge_mode)
            if lengths is not None:
                output = output.masked_fill(~sequence_mask(lengths, max_length).unsqueeze(-1), 0)
            outputs.append(output)
        final_state = tuple(torch.cat(parts) for parts in zip(*finals)) if return_state else None
        final_hidden = final_state[0] if return_state else torch.cat([final[0] for final in finals])
        return outputs, final_hidden, final_state

    def _run_direction(
        self,
        input: Tensor,
        lengths: Tensor | None,
        initial: tuple[Tensor, ...],
        layer: int,
        direction: int,
        return_state: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer, one direction: output `(batch, time, hidden)` in reading order of the text, and final state."""
        weights = self._weights(layer, direction)
        if direction == 1:
            input = reverse_sequences(input, lengths)
        if not input.is_floating_point():
            # W times a one-hot vector is a column of W: look it up, and let the layer's own input weights be 1.
            input = F.embedding(input, weights[0].t())
            weights[0] = torch.eye(weights[0].shape[0], dtype=input.dtype, device=input.device)
        if self.cell_type == "lstm" and return_state and lengths is not None:
            input, weights[0] = _held_after_end(input, weights[0], lengths)

        if torch.compiler.is_exporting() and not torch.onnx.is_in_onnx_export():
            output, *final = self._scan(input, initial, weights)
        elif self.recurrence == "output":
            output, *final = self._loop(input, initial, weights)
        else:
            output, *final = self._kernel(input, initial, weights)

        if lengths is not None:
            final = (_at_end(output, lengths, initial[0]), *final[1:])
        if direction == 1:
            output = reverse_sequences(output, lengths)
        return output, tuple(final)

    @torch.compiler.disable  # torch.compile would unroll the kernel into one piece of graph a time step
    def _kernel(self, input: Tensor, initial: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """`torch`'s own layer (oneDNN on a CPU, cuDNN on a GPU): output, h_n and, for an LSTM, c_n."""
        # cuDNN gives gradients only for what ran in training mode; without dropout the mode changes nothing else.
        train = self.training or torch.is_grad_enabled()
        settings = (weights, True, 1, 0.0, train, False, True)
        # On a CPU autocast would ask oneDNN for a half-precision layer, which most CPUs have no kernel for: the layer
        # keeps the precision of its weights there.
        on_cpu = input.device.type == "cpu"
        dtype = weights[0].dtype if on_cpu else input.dtype
        input, *initial = (part.to(dtype).contiguous() for part in (input, *initial))
        with torch.autocast("cpu", enabled=False) if on_cpu else nullcontext():
            if self.cell_type == "lstm":
                return torch.lstm(input, initial, *settings)
            if self.cell_type == "gru":
                return torch.gru(input, initial[0], *settings)
            kernel = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
            return kernel(input, initial[0], *settings)

    def _loop(self, input: Tensor, initial: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """The same for a cell that `torch` has no layer for, one step after the other."""
        state = tuple(part.squeeze(0) for part in initial)
        outputs = []
        for projected in self._project(input, weights).unbind(1):
            state = self._step(projected, state, weights)
            outputs.append(state[0])
        return torch.stack(outputs, dim=1), *(part.unsqueeze(0) for part in state)

    def _scan(self, input: Tensor, initial: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """
        The same for `torch.export`, which would freeze the number of time steps into the graph of a kernel or a loop
        (pytorch issue 115092); a scan keeps it free.
        """
        from torch._higher_order_ops.scan import scan  # has no public name yet

        def step(state, projected):
            state = self._step(projected, state, weights)
            return state, state[0].clone()

        state = tuple(part.squeeze(0).clone() for part in initial)
        state, output = scan(step, state, self._project(input, weights).transpose(0, 1))
        return output.transpose(0, 1), *(part.unsqueeze(0) for part in state)

    def _project(self, input: Tensor, weights: list[Tensor]) -> Tensor:
        """What the input adds to every step: `(batch, time, input)` to `(batch, time, gates * hidden)`."""
        return F.linear(input, weights[0], weights[2])

    def _step(self, projected: Tensor, state: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """One time step by the formulas of `torch.nn`'s documentation: `(h,)`, or `(h, c)` for an LSTM."""
        hidden = state[0]
        activation = torch.tanh if self.nonlinearity == "tanh" else torch.relu
        if self.recurrence == "output":
            _, weight_oh, _, weight_ho, bias_ho = weights
            return (activation(F.linear(activation(projected + F.linear(hidden, weight_oh)), weight_ho, bias_ho)),)
        recurrent = F.linear(hidden, weights[1], weights[3])
        if self.cell_type == "rnn":
            return (activation(projected + recurrent),)
        if self.cell_type == "gru":
            input_r, input_z, input_n = projected.chunk(3, dim=-1)
            hidden_r, hidden_z, hidden_n = recurrent.chunk(3, dim=-1)
            update = torch.sigmoid(input_z + hidden_z)
            candidate = torch.tanh(input_n + torch.sigmoid(input_r + hidden_r) * hidden_n)
            return ((1 - update) * candidate + update * hidden,)
        input_gate, forget_gate, candidate, output_gate = (projected + recurrent).chunk(4, dim=-1)
        cell = torch.sigmoid(forget_gate) * state[1] + torch.sigmoid(input_gate) * torch.tanh(candidate)
        return torch.sigmoid(output_gate) * torch.tanh(cell), cell

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, num_layers={self.num_layers}, cell_type={self.cell_type!r}, "
            f"bidirectional={self.num_directions == 2}, merge_mode={self.merge_mode!r}"
        )


def _at_end(output: Tensor, lengths: Tensor, initial: Tensor) -> Tensor:
    """`(1, batch, hidden)`: each sequence's output at its own end, or its initial state where it has no token."""
    index = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, output.shape[2])
    final = output.gather(1, index).transpose(0, 1)
    return torch.where((lengths > 0).view(1, -1, 1), final, initial.to(final.dtype))


def _held_after_end(input: Tensor, weight_ih: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """
    The LSTM's input and input weights with one column more, which is 1 at padding and there drives the input gate to 0
    and the forget gate to 1: c_t = 1 * c_(t-1) + 0 * g_t. The layer's c_n is then the cell state at each sequence's own
    end, and no gradient passes through padding.
    """
    saturated = 1e4  # beyond where the sigmoid reaches 0 and 1 exactly, and within float16
    padding = ~sequence_mask(lengths, input.shape[1]).unsqueeze(-1)
    hidden_size = weight_ih.shape[0] // 4
    column = weight_ih.new_zeros(weight_ih.shape[0], 1)
    column[:hidden_size] = -saturated
    column[hidden_size : 2 * hidden_size] = saturated
    return torch.cat((input, padding.to(input.dtype)), dim=-1), torch.cat((weight_ih, column), dim=-1)
