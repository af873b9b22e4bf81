"""
AdamW whose step costs what a batch touches of the vocabulary, with the result of the dense one.

A batch of reviews holds a few thousand words, the vocabulary a hundred thousand: a dense update of the embedding, and
the dense gradient it reads, are most of a small model's step. But leaving untouched rows alone, as
`torch.optim.SparseAdam` does, is another algorithm: in Adam a row goes on moving by its momentum after the batch that
touched it, in all about ten times as far as in that one step. Here such a row is brought up to date when it is next
read. While its gradient is zero, step t moves it by

    lr_t sqrt(1 - beta2^t) / (1 - beta1^t) * (beta1 / sqrt(beta2))^(t - s) * m_s / (sqrt(v_s) + eps)

where s is the last step that touched it. All but the last factor is a number that depends on s alone, and the sum of
these numbers up to now is kept for every s. In Adam eps is not divided by sqrt(v)'s own corrections, which change with
t; their value at the move's mean age stands for all: an error only where sqrt(v) is as small as eps.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

# Every row is brought up to date after so many steps, so that the sums stay few.
_MOST_STEPS_BEHIND = 1000
# Rows brought up to date at once, which takes their memory several times.
_MOST_ROWS = 1 << 16


class LazyAdamW(AdamW):
    """
    `torch.optim.AdamW` (Loshchilov & Hutter, 2019) that updates the rows of a matrix with sparse gradients when they
    are read.

    Whoever reads rows of such a parameter calls `catch_up` with them before, or `settle` for all: see
    [`lazy_embedding`]. `state_dict` settles by itself.

    Args:
        params, lr, betas, eps, weight_decay, fused: As in `torch.optim.AdamW`. It has no `amsgrad` and `maximize`.

    Raises:
        ValueError: where beta1 is not below the square root of beta2: a row that nothing touches would never come to
            rest.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        fused: bool | None = None,
    ):
        if not self.can_take(betas):
            raise ValueError(f"LazyAdamW needs beta1 below the square root of beta2, got betas={betas}.")
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=fused)
        self._behind: dict[Tensor, _Behind] = {}

    @staticmethod
    def can_take(betas: tuple[float, float]) -> bool:
        """Whether a row's moves without a gradient add up to something."""
        return betas[0] ** 2 < betas[1]

    @torch.no_grad()
    def step(self, closure=None):
        """One step; parameters with sparse gradients have theirs taken away."""
        if closure is not None:
            raise ValueError("LazyAdamW takes no closure.")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and parameter.grad.is_sparse:
                    gradient, parameter.grad = parameter.grad.coalesce(), None
                    self._step_rows(group, parameter, gradient.indices()[0], gradient.values())
        super().step()

    def _step_rows(self, group: dict[str, Any], parameter: Tensor, rows: Tensor, gradient: Tensor):
        state = self.state[parameter]
        if not state:
            state["step"] = torch.tensor(0.0)
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        self.catch_up(parameter, rows)
        behind = self._behind_of(parameter)
        state["step"] += 1
        step, lr, (beta1, beta2) = behind.step + 1, float(group["lr"]), group["betas"]
        decay = 1 - lr * group["weight_decay"]
        rate = lr * math.sqrt(1 - beta2**step) / (1 - beta1**step)

        first = state["exp_avg"].index_select(0, rows).lerp_(gradient, 1 - beta1)
        second = state["exp_avg_sq"].index_select(0, rows).mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        denominator = second.sqrt().add_(group["eps"] * math.sqrt(1 - beta2**step))
        values = parameter.index_select(0, rows).mul_(decay).addcdiv_(first, denominator, value=-rate)
        for target, source in ((parameter, values), (state["exp_avg"], first), (state["exp_avg_sq"], second)):
            target.index_copy_(0, rows, source)
        behind.advance(rows, rate, decay, beta1 / math.sqrt(beta2))
        if len(behind.moves) > _MOST_STEPS_BEHIND:
            self.settle()

    @torch.no_grad()
    def catch_up(self, parameter: Tensor, rows: Tensor):
        """Brings rows (integers of any shape) of a parameter with sparse gradients up to the last step."""
        if parameter not in self.state:
            return
        behind, group = self._behind_of(parameter), self._group_of(parameter)
        rows = rows.flatten()
        rows = rows[behind.row_steps[rows] < behind.step].unique()
        if len(rows) == 0:
            return
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        since = behind.row_steps[rows] - behind.first_step
        missed = (behind.step - behind.row_steps[rows]).to(parameter.dtype).unsqueeze(1)
        move, decay = (sums[since].to(parameter.dtype).unsqueeze(1) for sums in (behind.moves, behind.decays))
        first, second = state["exp_avg"].index_select(0, rows), state["exp_avg_sq"].index_select(0, rows)
        age = 1 / (1 - beta1 / math.sqrt(beta2))
        eps = group["eps"] * (1 - beta2 ** (behind.row_steps[rows] + age)).sqrt() / beta2 ** (age / 2)
        moved = first.mul(move).div_(second.sqrt().add_(eps.to(parameter.dtype).unsqueeze(1)))
        parameter.index_copy_(0, rows, parameter.index_select(0, rows).mul_(decay).sub_(moved))
        state["exp_avg"].index_copy_(0, rows, first.mul_(beta1**missed))
        state["exp_avg_sq"].index_copy_(0, rows, second.mul_(beta2**missed))
        behind.row_steps[rows] = behind.step

    def settle(self):
        """Brings every row up to the last step."""
        for parameter in list(self._behind):
            for rows in torch.arange(len(parameter)).split(_MOST_ROWS):
                self.catch_up(parameter, rows)
            del self._behind[parameter]

    def state_dict(self) -> dict[str, Any]:
        self.settle()
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]):
        self._behind.clear()
        super().load_state_dict(state_dict)

    def _group_of(self, parameter: Tensor) -> dict[str, Any]:
        return next(group for group in self.param_groups if any(parameter is other for other in group["params"]))

    def _behind_of(self, parameter: Tensor) -> "_Behind":
        if parameter not in self._behind:
            self._behind[parameter] = _Behind(len(parameter), int(self.state[parameter]["step"]))
        return self._behind[parameter]


class _Behind:
    """
    Which rows are behind, and what each step since has added to the way they have to go.

    Args:
        num_rows (`int`): Rows of the parameter, all of them up to date.
        step (`int`): Steps taken.
    """

    def __init__(self, num_rows: int, step: int):
        self.first_step = self.step = step
        self.row_steps = torch.full((num_rows,), step)
        # By last step, counted from `first_step`: the sum of the moves since, and the product of the decays.
        self.moves = torch.zeros(1, dtype=torch.float64)
        self.decays = torch.ones(1, dtype=torch.float64)

    def advance(self, rows: Tensor, rate: float, decay: float, ratio: float):
        """Counts a step that touched `rows`; for all others it was one of zero gradient."""
        self.step += 1
        age = torch.arange(len(self.moves), 0, -1, dtype=torch.float64)
        self.moves = torch.cat((self.moves * decay + rate * ratio**age, torch.zeros(1, dtype=torch.float64)))
        self.decays = torch.cat((self.decays * decay, torch.ones(1, dtype=torch.float64)))
        self.row_steps[rows] = self.step


class lazy_embedding:
    """
    Gives an embedding sparse gradients and brings its rows up to date whenever it is read, until `remove` is called.

    Args:
        embedding (`torch.nn.Embedding`): Rows are read by it alone: its weights are not tied to another layer.
        optimizer ([`LazyAdamW`]): Updates it.
    """

    def __init__(self, embedding: nn.Embedding, optimizer: LazyAdamW):
        self.embedding, self.optimizer = embedding, optimizer
        embedding.sparse = True
        self._hook = embedding.register_forward_pre_hook(self._before_reading)

    def _before_reading(self, module: nn.Embedding, inputs: tuple[Tensor, ...]):
        if module.training:
            self.optimizer.catch_up(module.weight, inputs[0])
        else:  # many batches follow whose rows stay as they are
            self.optimizer.settle()

    def remove(self):
        """Brings every row up to date and makes the embedding a plain one again."""
        self.optimizer.settle()
        self.embedding.sparse = False
        self._hook.remove()


def clip_gradients(parameters: list[Tensor], max_norm: float) -> Tensor:
    """
    `torch.nn.utils.clip_grad_norm_` for gradients of which some are sparse.

    Args:
        parameters (`list[torch.Tensor]`): Their gradients are scaled in place.
        max_norm (`float`): Largest Euclidean norm of all gradients together; infinite to measure only.

    Returns:
        `torch.Tensor` of shape `()`: the norm before.
    """
    gradients = []
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
            gradients.append(parameter.grad.values())
        elif parameter.grad is not None:
            gradients.append(parameter.grad)
    norm = nn.utils.get_total_norm(gradients)
    if math.isfinite(max_norm):
        scale = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(scale)
    return norm
