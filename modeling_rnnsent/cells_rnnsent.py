"""
Elman and GRU layers for training on a CPU, which has no oneDNN kernel for them.

`torch.nn` runs these cells as a loop whose every operation leaves a node in the graph. Here one autograd function holds
the loop. Forward, a step is two to six operations in place; backward, everything that does not depend on the
gradient of the step after is computed for a block of steps at once, which leaves two to four operations a step.
The numbers are those of `torch.nn`'s formulas. This file travels with every checkpoint and imports torch alone.

Rows are laid out step after step: step t has the first `counts[t]` sequences, and counts never grow.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd import Function

# Elements of a block's largest tensor in the backward pass: small enough to stay in a core's cache.
_BLOCK_ELEMENTS = 1 << 19


class _ElmanLayer(Function):
    """h_t = tanh or relu (projected_t + W_hh h_(t-1))."""

    @staticmethod
    def forward(ctx, projected: Tensor, initial: Tensor, weight_hh: Tensor, counts: list[int], relu: bool) -> Tensor:
        output = projected.clone()
        weight, hidden = weight_hh.t(), initial
        activate = torch.relu_ if relu else torch.tanh_
        for step in output.split(counts):
            hidden = activate(step.addmm_(hidden[: step.shape[0]], weight))
        ctx.save_for_backward(output, initial, weight_hh)
        ctx.counts, ctx.relu = counts, relu
        return output

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        _refuse_graph()
        output, initial, weight = ctx.saved_tensors
        grad_projected = (output > 0).to(output.dtype) if ctx.relu else (1 - output.square())
        grad_weight = torch.zeros_like(weight)
        grad_hidden = None
        for steps, rows in _blocks(ctx.counts, weight.shape[0]):
            block = grad_projected[rows]
            for grad, grad_step in _backward(ctx.counts[steps], block, grad_output[rows]):
                grad.mul_(_add(grad_step, grad_hidden))
                grad_hidden = grad @ weight
            grad_weight.addmm_(block.t(), _previous(output, initial, ctx.counts, steps, rows))
        return grad_projected, grad_hidden, grad_weight, None, None


class _GRULayer(Function):
    """
    r, z = sigmoid(projected_rz + W_hrz h), m = W_hn h + b_hn, n = tanh(projected_n + r * m), h' = (1 - z) n + z h.
    """

    @staticmethod
    def forward(
        ctx, projected: Tensor, initial: Tensor, weight_hh: Tensor, bias_hn: Tensor, counts: list[int]
    ) -> Tensor:
        size = weight_hh.shape[1]
        gates, candidate, recurrent, output = (
            projected.new_empty(projected.shape[0], width) for width in (2 * size, size, size, size)
        )
        weight_rz, weight_n = weight_hh.t().split((2 * size, size), dim=1)
        hidden = initial
        columns = (projected[:, : 2 * size], projected[:, 2 * size :], gates, gates[:, :size], gates[:, size:])
        steps = zip(*(part.split(counts) for part in (*columns, candidate, recurrent, output)))
        for input_rz, input_n, rz, reset, update, new, product, out in steps:
            hidden = hidden[: out.shape[0]]
            torch.addmm(input_rz, hidden, weight_rz, out=rz).sigmoid_()
            torch.addmm(bias_hn, hidden, weight_n, out=product)
            torch.addcmul(input_n, reset, product, out=new).tanh_()
            hidden = torch.lerp(new, hidden, update, out=out)
        ctx.save_for_backward(gates, candidate, recurrent, output, initial, weight_hh)
        ctx.counts = counts
        return output

    @staticmethod
    def backward(ctx, grad_output: Tensor):
        _refuse_graph()
        gates, candidate, recurrent, output, initial, weight = ctx.saved_tensors
        size = weight.shape[1]
        grad_projected = gates.new_empty(gates.shape[0], 3 * size)
        grad_weight, grad_bias = torch.zeros_like(weight), weight.new_zeros(size)
        grad_hidden = None
        for steps, rows in _blocks(ctx.counts, 3 * size):
            reset, update = gates[rows].split(size, dim=1)
            new, product = candidate[rows], recurrent[rows]
            previous = _previous(output, initial, ctx.counts, steps, rows)
            # What the gradient of h' is multiplied with, for r, z and m, and for n beside them.
            by_new = (1 - update).mul_(1 - new.square())
            factors = torch.stack(
                (by_new * product * reset * (1 - reset), (previous - new) * update * (1 - update), by_new * reset), 1
            )
            grads_new = torch.empty_like(new)
            parts = _backward(ctx.counts[steps], grad_output[rows], factors, update, grads_new)
            for grad_step, grad, keep, total in parts:
                _add(grad_step, grad_hidden, out=total)
                grad.mul_(total.unsqueeze(1))
                grad_hidden = torch.addmm(total * keep, grad.flatten(1), weight)
            flat = factors.flatten(1)
            grad_weight.addmm_(flat.t(), previous)
            grad_bias += flat[:, 2 * size :].sum(0)
            grad_projected[rows, : 2 * size] = flat[:, : 2 * size]
            torch.mul(grads_new, by_new, out=grad_projected[rows, 2 * size :])
        return grad_projected, grad_hidden, grad_weight, grad_bias, None


def elman_layer(projected: Tensor, initial: Tensor, weight_hh: Tensor, counts: list[int], nonlinearity: str) -> Tensor:
    """
    Args:
        projected (`torch.Tensor` of shape `(num_rows, hidden)`): W_ih x_t + b_ih + b_hh.
        initial (`torch.Tensor` of shape `(counts[0], hidden)`): h_0.
        weight_hh (`torch.Tensor` of shape `(hidden, hidden)`): W_hh.
        counts (`list[int]`): Rows of each step, never growing; their sum is num_rows.
        nonlinearity (`str`): `"tanh"` or `"relu"`.

    Returns:
        `torch.Tensor` of shape `(num_rows, hidden)`: every h_t. It can be differentiated once.
    """
    return _ElmanLayer.apply(projected, initial, weight_hh, counts, nonlinearity == "relu")


def gru_layer(projected: Tensor, initial: Tensor, weight_hh: Tensor, bias_hn: Tensor, counts: list[int]) -> Tensor:
    """
    Args:
        projected (`torch.Tensor` of shape `(num_rows, 3 * hidden)`): W_ih x_t + b_ih, to which b_hh is added for r, z.
        initial (`torch.Tensor` of shape `(counts[0], hidden)`): h_0.
        weight_hh (`torch.Tensor` of shape `(3 * hidden, hidden)`): W_hr, W_hz, W_hn.
        bias_hn (`torch.Tensor` of shape `(hidden,)`): b_hn.
        counts (`list[int]`): Rows of each step, never growing; their sum is num_rows.

    Returns:
        `torch.Tensor` of shape `(num_rows, hidden)`: every h_t. It can be differentiated once.
    """
    return _GRULayer.apply(projected, initial, weight_hh, bias_hn, counts)


def _refuse_graph():
    if torch.is_grad_enabled():
        raise RuntimeError("An RNN or GRU layer can be differentiated once on a CPU, got `create_graph=True`.")


def _blocks(counts: list[int], width: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of steps from the last to the first: the steps, and their rows."""
    end, end_row = len(counts), sum(counts)
    while end > 0:
        start, start_row = end, end_row
        while start > 0 and (start == end or (end_row - start_row + counts[start - 1]) * width <= _BLOCK_ELEMENTS):
            start -= 1
            start_row -= counts[start]
        yield slice(start, end), slice(start_row, end_row)
        end, end_row = start, start_row


def _backward(counts: list[int], *parts: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of each step, from the last step to the first."""
    return zip(*(reversed(part.split(counts)) for part in parts))


def _add(grad_step: Tensor, grad_hidden: Tensor | None, out: Tensor | None = None) -> Tensor:
    """A step's own gradient and, for the sequences that go on, that of the step after."""
    if grad_hidden is not None and grad_hidden.shape[0] == grad_step.shape[0]:
        return torch.add(grad_step, grad_hidden, out=out)
    total = grad_step.clone() if out is None else out.copy_(grad_step)
    if grad_hidden is not None:
        total[: grad_hidden.shape[0]] += grad_hidden
    return total


def _previous(output: Tensor, initial: Tensor, counts: list[int], steps: slice, rows: slice) -> Tensor:
    """h_(t-1) for the rows of a block: at each step, of those of the step before, the sequences that go on."""
    first_row = rows.start - counts[steps.start - 1] if steps.start > 0 else 0
    before = counts[max(steps.start - 1, 0) : steps.stop - 1]
    parts = output[first_row : first_row + sum(before)].split(before)
    going_on = [part[:count] for part, count in zip(parts, counts[max(steps.start, 1) : steps.stop])]
    return torch.cat(going_on if steps.start > 0 else [initial, *going_on])
