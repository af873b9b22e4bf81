"""
In what order texts are learned from: batches of about the same length, an order for every epoch.

The order depends on the seed and the epoch alone. `Trainer`'s own sampler draws it from the state of the process's
random numbers, which is another one when a run is taken up within a later epoch (transformers issue 40691).
"""

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler
from transformers.trainer_pt_utils import get_length_grouped_indices


def batches_by_length(lengths: list[int], batch_size: int, generator: torch.Generator) -> list[list[int]]:
    """
    Rows in batches of about the same length, the batches in random order; one that is not full comes last.

    `get_length_grouped_indices` sorts stretches of many batches by length. Left in that order, the lengths of batches
    would fall and fall and then jump, and with them the loss (transformers issue 20810).
    """
    order = get_length_grouped_indices(lengths, min(batch_size, len(lengths)), generator=generator)
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    full = len(order) // batch_size
    return [batches[index] for index in torch.randperm(full, generator=generator).tolist()] + batches[full:]


def epoch_generator(seed: int, epoch: int) -> torch.Generator:
    """Random numbers of one epoch of one seed."""
    return torch.Generator().manual_seed((seed << 16) + epoch)


class EpochSampler(Sampler[int]):
    """
    Rows in random order, or with `lengths` in batches of about the same length.

    Args:
        size (`int`): How many rows there are.
        seed (`int`): Of the orders.
        lengths (`list[int]`, *optional*): Length of every row.
        batch_size (`int`, *optional*, defaults to 1): Rows that go together: a batch of every process.
    """

    def __init__(self, size: int, seed: int, lengths: list[int] | None = None, batch_size: int = 1):
        self.size, self.seed, self.lengths, self.batch_size = size, seed, lengths, batch_size
        self.epoch = 0

    def set_epoch(self, epoch: int):
        """The epoch whose order comes next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[int]:
        generator = epoch_generator(self.seed, self.epoch)
        if self.lengths is None:
            return iter(torch.randperm(self.size, generator=generator).tolist())
        batches = batches_by_length(self.lengths, self.batch_size, generator)
        return (row for batch in batches for row in batch)
