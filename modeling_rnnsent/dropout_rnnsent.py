"""Dropout, whose random numbers would take a small model an eighth of its training step on a CPU.

This file travels with every checkpoint and imports torch alone.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

# A mask is drawn as so many equally likely numbers an element.
_LEVELS = 1 << 16


def drop_out(input: Tensor, probability: float, training: bool, is_variational: bool = False) -> Tensor:
    """
    Dropout (Srivastava et al., 2014) of `(batch, time, size)`; `is_variational`: one mask a sequence for all its
    positions (Gal & Ghahramani, 2016).

    On a CPU the probability is rounded to a multiple of 1/65,536, and what is kept is scaled accordingly.
    """
    if not training or probability == 0:
        return input
    if is_variational:
        return input * F.dropout(input.new_ones(input.shape[0], 1, input.shape[2]), probability)
    dropped = round(probability * _LEVELS)
    if input.device.type != "cpu" or torch.compiler.is_compiling() or not 0 < dropped < _LEVELS:
        return F.dropout(input, probability)
    # torch draws a number for every element, in one thread; four fit into what its generator gives at a time.
    bits = torch.empty(-(-input.numel() // 4), dtype=torch.int64, device=input.device).random_(-(2**63), None)
    levels = bits.view(torch.int16)[: input.numel()].view(input.shape)  # from -_LEVELS / 2 on
    return input * (levels >= dropped - _LEVELS // 2).to(input.dtype).mul_(_LEVELS / (_LEVELS - dropped))
