"""Exact variable-length recurrence on right-padded batches, without packed sequences.

`torch.nn` runs sequences of different lengths by packing them, which is slow on a CPU by an order of magnitude (pytorch
issue 149194). A right-padded batch gives the same numbers without it: what a forward direction computes up to a
sequence's end does not depend on what follows, and a backward direction is a forward one over each sequence reversed
within its own length. One thing is lost that way, the LSTM's cell state at each sequence's own end; `_held_after_end`
keeps it.

On a CPU most of the padding is not computed either: where lengths differ, the batch is sorted and cut in time
(`layout_rnnsent`). torch's own kernel runs each segment; Elman and GRU layers, for which torch has none to train, run
by `cells_rnnsent`. On a GPU the padded batch goes to cuDNN, and an exported graph takes the plain formulas. This file
travels with every checkpoint and imports torch and its neighbours alone.
"""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .cells_rnnsent import elman_layer, gru_layer
from .dropout_rnnsent import drop_out
from .layout_rnnsent import BatchLayout, take_rows

NUM_GATES = {"rnn": 1, "lstm": 4, "gru": 3}


def multiplies_in_bfloat16(device_type: str) -> bool:
    """Whether a device (`"cpu"`, `"cuda"`, ...) does; a CPU without AVX-512 BF16 or AMX and older GPUs emulate it."""
    if device_type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type != "cpu" or torch.cpu._is_avx512_bf16_supported()


def without_autocast(input: Tensor):
    """A context in which `input`'s device computes in the types it is given. To switch off what is off takes time."""
    kind = input.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.autocast(kind, enabled=False) if is_on else nullcontext()


def sequence_mask(lengths: Tensor, max_length: int) -> Tensor:
    """True where a position belongs to its sequence: lengths `(batch,)` to `(batch, max_length)`."""
    return torch.arange(max_length, device=lengths.device) < lengths.unsqueeze(1)


def reverse_sequences(input: Tensor, lengths: Tensor | None) -> Tensor:
    """
    Each sequence of `(batch, time, ...)` reversed within its own length; padding stays where it is. In memory, what is
    reversed lies step after step, as torch's kernels read it.
    """
    if lengths is None:
        return input.flip(1)
    batch_size, max_length = input.shape[:2]
    positions = torch.arange(max_length, device=input.device).unsqueeze(1)
    sequences = torch.arange(batch_size, device=input.device)
    mirrored = lengths - 1 - positions
    mirrored = torch.where(mirrored >= 0, mirrored, positions)  # (time, batch)
    place = mirrored * batch_size + sequences
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return input.transpose(0, 1).flatten(0, 1)[place].transpose(0, 1)
    # Reversed twice it is what it was: the way back is the same, but between one order of memory and the other.
    if _is_step_by_step(input):
        rows, index, inverse = input.transpose(0, 1).flatten(0, 1), place, place
    else:
        rows, index, inverse = input.flatten(0, 1), sequences * max_length + mirrored, place.t()
    reverse = take_rows(rows, index.flatten(), inverse.flatten(), may_lack=False)
    return reverse.view(max_length, batch_size, *input.shape[2:]).transpose(0, 1)


def _is_step_by_step(input: Tensor) -> bool:
    """Whether `(batch, time, ...)` lies in memory as `(time, batch, ...)`."""
    return input.transpose(0, 1).is_contiguous()


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
        variational_dropout (`bool`, *optional*, defaults to `False`): Whether a sequence keeps one mask between layers.
    """

    # Set while a model is exported to ONNX.
    uses_onnx_operators = False
    # Where the weights lay when they were last flattened: loading and moving a model gives them another place.
    _flattened_at: int | None = None

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
        variational_dropout: bool = False,
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
        self.variational_dropout = variational_dropout
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

    def flatten_parameters(self):
        """
        Lays each direction's weights in one piece of memory, which cuDNN would copy them to at every call. Nothing is
        done where they lie so already or another library runs the layer, nor can it be done in inference mode.
        """
        first = self.weight_ih_l0
        is_cudnn = first.is_cuda and self.recurrence == "hidden" and torch.backends.cudnn.is_acceptable(first)
        if not is_cudnn or self._flattened_at == first.data_ptr() or torch.is_inference_mode_enabled():
            return
        name = {"rnn": f"RNN_{self.nonlinearity.upper()}"}.get(self.cell_type, self.cell_type.upper())
        mode = torch.backends.cudnn.rnn.get_cudnn_mode(name)
        for layer in range(self.num_layers):
            for direction in range(self.num_directions):
                names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
                weights = [getattr(self, name + self._suffix(layer, direction)) for name in names]
                with torch.no_grad(), torch.cuda.device_of(weights[0]):
                    torch._cudnn_rnn_flatten_weight(
                        weights, len(weights), weights[0].shape[1], mode, self.hidden_size, 0, 1, True, False
                    )
        self._flattened_at = first.data_ptr()

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
        num_states = self.num_layers * self.num_directions
        if state is None:
            dtype = self.weight_ih_l0.dtype
            zeros = torch.zeros(num_states, batch_size, self.hidden_size, dtype=dtype, device=input.device)
            state = (zeros, zeros) if self.cell_type == "lstm" else (zeros,)
        else:  # it may be of a model in another type
            state = tuple(part.to(self.weight_ih_l0.dtype) for part in state)
        if max_length == 0:  # torch's kernels refuse it: nothing is read and the state stays as it is
            output_size = self.hidden_size * (2 if self.num_directions == 2 and self.merge_mode == "concat" else 1)
            empty = state[0].new_zeros(batch_size, 0, output_size)
            return [empty] * self.num_layers, state[0], state if return_state else None

        if input.is_cuda and not torch.compiler.is_compiling():
            self.flatten_parameters()
        layout = None if lengths is None else self._layout(input, lengths)
        outputs, finals = [], []
        for layer in range(self.num_layers):
            if layer > 0:
                input = drop_out(outputs[-1], self.hidden_dropout, self.training, self.variational_dropout)
            directions = []
            for direction in range(self.num_directions):
                index = layer * self.num_directions + direction
                initial = state if num_states == 1 else tuple(part[index : index + 1] for part in state)
                weights = self._weights(layer, direction)
                if layout is not None:
                    output, final = self._run_rows(input, layout, initial, weights, direction, return_state)
                else:
                    output, final = self._run_padded(input, lengths, initial, weights, direction, return_state)
                directions.append(output)
                finals.append(final)
            output = directions[0] if len(directions) == 1 else merge_directions(*directions, self.merge_mode)
            outputs.append(output)
        final_state = tuple(_join(parts) for parts in zip(*finals)) if return_state else None
        final_hidden = final_state[0] if return_state else _join([final[0] for final in finals])
        return outputs, final_hidden, final_state

    @torch.compiler.disable  # the layout depends on the lengths themselves
    def _layout(self, input: Tensor, lengths: Tensor) -> BatchLayout | None:
        """How to skip the padding of this batch, or None where that is not possible or not worth it."""
        is_graph = torch.jit.is_tracing() or torch.compiler.is_exporting()
        if is_graph or input.device.type != "cpu" or self.recurrence == "output":
            return None
        if not BatchLayout.can_save(lengths, input.shape[1]):
            return None
        size = input.shape[2] if input.dim() == 3 else self.hidden_size
        # Fitted to measured steps: one more call of torch's kernel takes as long as so many rows of one time step.
        segment_cost = 0 if self._has_own_cell() else 30 + 1e6 / (self.hidden_size * (size + self.hidden_size))
        layout = BatchLayout(lengths, input.shape[1], segment_cost)
        return layout if layout.saves else None

    def _has_own_cell(self) -> bool:
        """Whether `cells_rnnsent` runs the layer: cells whose kernel in torch has a gradient only as a slow loop."""
        return self.cell_type != "lstm" and self.recurrence == "hidden" and torch.is_grad_enabled()

    @torch.compiler.disable
    def _run_rows(
        self,
        input: Tensor,
        layout: BatchLayout,
        initial: tuple[Tensor, ...],
        weights: list[Tensor],
        direction: int,
        return_state: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer, one direction, by `layout`: what `_run_padded` gives, zero at padding."""
        rows, weights = _look_up(layout.gather(input, reverse=direction == 1), weights)
        if self.cell_type == "lstm" and return_state:
            rows, weights = _held_after_end(rows, weights, layout.is_padding)
        state = tuple(part.index_select(1, layout.order) for part in initial)
        if self._has_own_cell():
            output = self._own_cell(rows, state[0][0], weights, layout.counts)
            cell_state = ()
        else:
            output, *cell_state = self._segments(rows, state, weights, layout.segments)
            cell_state = tuple(part[:, layout.rank] for part in cell_state)
        hidden_state = layout.at_end(output, initial[0][0]).unsqueeze(0)
        return layout.scatter(output, reverse=direction == 1), (hidden_state, *cell_state)

    def _segments(
        self, rows: Tensor, state: tuple[Tensor, ...], weights: list[Tensor], segments: list[tuple[int, int]]
    ) -> list[Tensor]:
        """
        torch's kernel over one segment of time after the other, each with the sequences that are still alive: output
        `(num_rows, hidden)` and, for an LSTM, c_n `(1, batch, hidden)`, both in the layout's order.
        """
        outputs, ended = [], []
        for part, (steps, count) in zip(rows.split([steps * count for steps, count in segments]), segments):
            ended.append(tuple(part[:, count:] for part in state[1:]))
            state = tuple(part[:, :count] for part in state)
            output, *state = self._kernel(part.view(steps, count, -1), state, weights)
            outputs.append(output.view(-1, self.hidden_size))
        ended.append(tuple(state[1:]))
        return [torch.cat(outputs), *(torch.cat(parts[::-1], dim=1) for parts in zip(*ended))]

    def _own_cell(self, rows: Tensor, hidden: Tensor, weights: list[Tensor], counts: list[int]) -> Tensor:
        """The layer by `cells_rnnsent`: `(num_rows, input)` to `(num_rows, hidden)`."""
        weight_ih, weight_hh, bias_ih, bias_hh = weights
        rows, hidden = rows.to(weight_ih.dtype), hidden[: counts[0]].to(weight_ih.dtype)
        with torch.autocast("cpu", enabled=False):
            if self.cell_type == "rnn":
                projected = F.linear(rows, weight_ih, bias_ih + bias_hh)
                return elman_layer(projected, hidden, weight_hh, counts, self.nonlinearity)
            bias_rz, bias_n = bias_hh.split((2 * self.hidden_size, self.hidden_size))
            projected = F.linear(rows, weight_ih, bias_ih + F.pad(bias_rz, (0, self.hidden_size)))
            return gru_layer(projected, hidden, weight_hh, bias_n, counts)

    def _run_padded(
        self,
        input: Tensor,
        lengths: Tensor | None,
        initial: tuple[Tensor, ...],
        weights: list[Tensor],
        direction: int,
        return_state: bool,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        One layer, one direction: output `(batch, time, hidden)` in reading order of the text, zero at padding, and
        final state.
        """
        if self.uses_onnx_operators or torch.onnx.is_in_onnx_export():
            output, final = self._onnx(*_look_up(input, weights), lengths, initial, direction)
            return _without_padding(output, lengths), final
        if direction == 1:
            input = reverse_sequences(input, lengths)
        input, weights = _look_up(input, weights)
        holds = lengths is not None and self._holds(input, return_state)
        if holds:
            input, weights = _held_after_end(input, weights, ~sequence_mask(lengths, input.shape[1]))

        if torch.compiler.is_exporting():
            output, *final = self._scan(input, initial, weights)
        elif self.recurrence == "output":
            output, *final = self._loop(input, initial, weights)
        else:
            output, *final = self._kernel(input.transpose(0, 1), initial, weights)
            output = output.transpose(0, 1)

        if lengths is not None:
            final = (_at_end(output, lengths, initial[0]), *final[1:])
        if not holds:
            output = _without_padding(output, lengths)
        if direction == 1:
            output = reverse_sequences(output, lengths)
        return output, tuple(final)

    def _holds(self, input: Tensor, return_state: bool) -> bool:
        """Whether an LSTM is to stand still at padding: for its last state, or since it costs less than to clear up."""
        is_cheap = input.device.type == "cpu" and input.shape[2] < self.hidden_size and torch.is_grad_enabled()
        return self.cell_type == "lstm" and (return_state or is_cheap)

    @torch.compiler.disable  # torch.compile would unroll the kernel into one piece of graph a time step
    def _kernel(self, input: Tensor, initial: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """
        `torch`'s own layer (oneDNN on a CPU, cuDNN on a GPU) over `(time, batch, input)`: output `(time, batch,
        hidden)`, h_n and, for an LSTM, c_n.
        """
        device = input.device.type
        if device == "cpu" and self._has_own_cell() and not torch.jit.is_tracing():
            max_length, batch_size = input.shape[:2]
            output = self._own_cell(input.flatten(0, 1), initial[0][0], weights, [batch_size] * max_length)
            output = output.view(max_length, batch_size, self.hidden_size)
            return output, output[-1:]
        # cuDNN gives gradients only for what ran in training mode; without dropout the mode changes nothing else.
        train = self.training or torch.is_grad_enabled()
        own = weights[0].dtype
        is_autocast = device in ("cpu", "cuda") and torch.is_autocast_enabled(device)
        dtype = self._autocast_dtype(device, own) if is_autocast else own
        if dtype != own:
            weights = _cast(weights, dtype)
        settings = (weights, True, 1, 0.0, train, False, False)
        if any(part.dtype != dtype for part in (input, *initial)):  # a call that changes nothing takes time, too
            input, *initial = (part.to(dtype) for part in (input, *initial))
        input, initial = input.contiguous(), [part.contiguous() for part in initial]
        with without_autocast(input):
            if self.cell_type == "lstm":
                result = torch.lstm(input, initial, *settings)
            elif self.cell_type == "gru":
                result = torch.gru(input, initial[0], *settings)
            else:
                kernel = torch.rnn_tanh if self.nonlinearity == "tanh" else torch.rnn_relu
                result = kernel(input, initial[0], *settings)
        return tuple(result) if dtype == own else tuple(part.to(own) for part in result)

    def _autocast_dtype(self, device: str, dtype: torch.dtype) -> torch.dtype:
        """
        What the layer is computed in under autocast: what was asked for where the device has it, or its weights' type.

        A CPU has it for the LSTM where it multiplies in bfloat16 (AVX-512 BF16, AMX); elsewhere oneDNN has no such
        layer, and for the other cells it has none at all. Of a GPU's layers, autocast itself makes float16 ones
        whatever was asked for (pytorch's `_cudnn_rnn_cast_reflatten`), and without a scaled loss their gradients can
        vanish.
        """
        if dtype != torch.float32:
            return dtype
        asked = torch.get_autocast_dtype(device)
        if device == "cuda":
            return asked
        can = self.cell_type == "lstm" and asked == torch.bfloat16 and multiplies_in_bfloat16(device)
        return torch.bfloat16 if can else dtype

    @torch.compiler.disable
    def _loop(self, input: Tensor, initial: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """
        One layer step by step, for a cell that `torch` has no kernel for, in the type of its weights: `(batch, time,
        input_size)` to output `(batch, time, hidden_size)` and final state, each part `(1, batch, hidden_size)`.
        """
        own = weights[0].dtype
        state = tuple(part.squeeze(0).to(own) for part in initial)
        outputs = []
        with without_autocast(input):
            for projected in self._project(input.to(own), weights).unbind(1):
                state = self._step(projected, state, weights)
                outputs.append(state[0])
        return torch.stack(outputs, dim=1), *(part.unsqueeze(0) for part in state)

    def _scan(self, input: Tensor, initial: tuple[Tensor, ...], weights: list[Tensor]) -> tuple[Tensor, ...]:
        """
        What `_loop` computes for `torch.export`, which would freeze the number of time steps into the graph of a kernel
        or a loop (pytorch issue 115092); a scan keeps it free.
        """
        from torch._higher_order_ops.scan import scan  # has no public name yet

        def step(state, projected):
            state = self._step(projected, state, weights)
            return state, state[0].clone()

        state = tuple(part.squeeze(0).clone() for part in initial)
        state, output = scan(step, state, self._project(input, weights).transpose(0, 1))
        return output.transpose(0, 1), *(part.unsqueeze(0) for part in state)

    def _onnx(
        self,
        input: Tensor,
        weights: list[Tensor],
        lengths: Tensor | None,
        initial: tuple[Tensor, ...],
        direction: int,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """
        One layer, one direction, as ONNX's own RNN, LSTM or GRU operator, which reads each sequence to its own length
        and, in reverse, from its own end. Traced only: the operator computes nothing here.
        """
        if self.recurrence == "output":
            raise ValueError('ONNX has no layer that feeds back its output: `recurrence="output"` cannot be exported.')
        batch_size, max_length = input.shape[:2]
        operator, order, attributes = {
            "rnn": ("RNN", (0,), {"activations": [self.nonlinearity.capitalize()]}),
            "lstm": ("LSTM", (0, 3, 1, 2), {}),  # input, output, forget gate, candidate
            "gru": ("GRU", (1, 0, 2), {"linear_before_reset": 1}),  # update, reset gate, candidate
        }[self.cell_type]

        def arrange(weight: Tensor) -> Tensor:
            # By slices, which exporters can do beforehand: `chunk` they leave to the graph.
            size = self.hidden_size
            return torch.cat([weight[gate * size : (gate + 1) * size] for gate in order])

        weight_ih, weight_hh, bias_ih, bias_hh = map(arrange, weights)
        if lengths is None:
            lengths = torch.full((batch_size,), max_length, device=input.device)
        has_tokens = (lengths > 0).view(1, -1, 1)
        state_shape = (1, batch_size, self.hidden_size)
        output, *final = torch.onnx.ops.symbolic_multi_out(
            operator,
            (
                input.transpose(0, 1),
                weight_ih.unsqueeze(0),
                weight_hh.unsqueeze(0),
                torch.cat((bias_ih, bias_hh)).unsqueeze(0),
                lengths.clamp(min=1).to(torch.int32),
                *initial,
            ),
            {"hidden_size": self.hidden_size, "direction": ("forward", "reverse")[direction], **attributes},
            dtypes=(input.dtype,) * (1 + len(initial)),
            shapes=((max_length, *state_shape), *(state_shape for _ in initial)),
        )
        return output.squeeze(1).transpose(0, 1), tuple(map(partial(torch.where, has_tokens), final, initial))

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


def _cast(weights: list[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """A layer's weights in another type and, for cuDNN, in one piece of memory, in its order: it would copy them."""
    if weights[0].device.type == "cpu":
        return [weight.to(dtype) for weight in weights]
    parts = torch.cat([weight.flatten() for weight in weights]).to(dtype).split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights)]


def _join(parts: Sequence[Tensor]) -> Tensor:
    """Parts as one, along their first dimension; a single one as it is, since copying takes a short text's time."""
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _at_end(output: Tensor, lengths: Tensor, initial: Tensor) -> Tensor:
    """`(1, batch, hidden)`: each sequence's output at its own end, or its initial state where it has no token."""
    index = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, output.shape[2])
    final = output.gather(1, index).transpose(0, 1)
    return torch.where((lengths > 0).view(1, -1, 1), final, initial.to(final.dtype))


def _without_padding(output: Tensor, lengths: Tensor | None) -> Tensor:
    """`(batch, time, size)` with zeros at padding."""
    if lengths is None:
        return output
    padding = ~sequence_mask(lengths, output.shape[1])
    is_graph = torch.jit.is_tracing() or torch.compiler.is_compiling()
    if is_graph or output.device.type != "cpu" or not _is_step_by_step(output):
        padding = padding.unsqueeze(-1)
        return output.masked_fill(padding, 0) if output.requires_grad else output.masked_fill_(padding, 0)
    steps, places = output.transpose(0, 1), padding.t().flatten().nonzero().squeeze(1)
    rows = steps.flatten(0, 1)  # whole rows take a CPU half the time of a mask, or less
    rows = rows.index_fill(0, places, 0) if output.requires_grad else rows.index_fill_(0, places, 0)
    return rows.view(steps.shape).transpose(0, 1)


def _look_up(input: Tensor, weights: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """
    Vectors as they are. Ids of one-hot vectors become what the input weights make of them, a column of W for each, and
    the layer's own input weights become the identity.
    """
    if input.is_floating_point():
        return input, weights
    identity = torch.eye(weights[0].shape[0], dtype=weights[0].dtype, device=input.device)
    return F.embedding(input, weights[0].t()), [identity, *weights[1:]]


def _held_after_end(input: Tensor, weights: list[Tensor], is_padding: Tensor) -> tuple[Tensor, list[Tensor]]:
    """
    The LSTM's input and input weights with one column more, which is 1 at padding and there drives the input and output
    gates to 0 and the forget gate to 1: c_t = 1 * c_(t-1) + 0 * g_t and h_t = 0. The layer's c_n is then the cell state
    at each sequence's own end, its output is 0 after it, and no gradient passes through padding.
    """
    saturated = 1e4  # beyond where the sigmoid reaches 0 and 1 exactly, and within float16
    size = weights[0].shape[0] // 4
    column = weights[0].new_zeros(4 * size, 1)
    column[:size] = column[3 * size :] = -saturated
    column[size : 2 * size] = saturated
    input = torch.cat((input, is_padding.unsqueeze(-1).to(input.dtype)), dim=-1)
    return input, [torch.cat((weights[0], column), dim=-1), *weights[1:]]
