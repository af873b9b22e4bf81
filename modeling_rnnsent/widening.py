"""More units for a trained language model, a start for a larger one (after Net2Net, Chen et al., 2016)."""

from copy import deepcopy

import torch
from torch import Tensor
from torch.nn import functional as F

from .modeling_rnnsent import RNNSentForCausalLM


def widen(model: RNNSentForCausalLM, hidden_size: int) -> RNNSentForCausalLM:
    """
    A language model with more units in every layer and the same logits.

    What the paper adds are copies of units, which share their originals' work. Here they are those of a new model,
    and nothing that was there reads them yet: the weights from them start at zero. What they are good for is learned.

    Args:
        model ([`RNNSentForCausalLM`]): A trained one; it stays as it is.
        hidden_size (`int`): Units of a direction, more than the model has.

    Returns:
        [`RNNSentForCausalLM`]: one of that `hidden_size`, in evaluation mode. States of the size of the embedding need
        no projection between them: a model that had them so has one now.

    Raises:
        ValueError: where the model has as many units already, or its projection would be needed no more.
    """
    old_size = model.config.hidden_size
    if hidden_size <= old_size:
        raise ValueError(f"`hidden_size` must be more than the {old_size} that the model has, got {hidden_size}.")
    config = deepcopy(model.config)
    config.hidden_size = hidden_size
    wide = RNNSentForCausalLM(config).eval().to(model.dtype)
    if model.projections is not None and wide.projections is None:
        raise ValueError(
            f"`hidden_size` must be other than the embedding's {config.embedding_size}, got {hidden_size}."
        )
    old = dict(model.named_parameters())
    if wide.projections is not None and model.projections is None:
        identity = torch.eye(old_size, dtype=model.dtype)
        old |= {f"projections.{direction}.weight": identity for direction in range(len(wide.projections))}
    with torch.no_grad():
        for name, parameter in wide.named_parameters():
            _place(old[name], parameter, old_size)
    return wide


def _place(old: Tensor, new: Tensor, old_size: int):
    """Writes a weight `(gates * units, inputs)` or bias over the first units of each gate of one for more of them."""
    gates = 1 if len(new) == len(old) else len(old) // old_size
    old, new = old.unflatten(0, (gates, -1)), new.unflatten(0, (gates, -1))
    if new.dim() == 3:
        old = F.pad(old, (0, new.shape[2] - old.shape[2]))
    new[:, : old.shape[1]] = old
